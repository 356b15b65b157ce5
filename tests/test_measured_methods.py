"""The rows, traces and figures are those of the image, the method and the runs that they name."""

import contextlib
import csv
import functools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mprof
import nibabel as nib
import numpy as np
import pytest
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor, reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from beyond_the_masker import budget as memory_budget
from beyond_the_masker import experiment as measured_methods
from beyond_the_masker import experiment as whole_experiment
from beyond_the_masker import imports as memory_imports
from beyond_the_masker import model as memory_model
from beyond_the_masker.experiment import (
    COLUMNS,
    METHODS,
    N_RUNS,
    Method,
    NotRun,
    complete_summary,
    describe_machine,
    identical,
    in_a_line,
    measure_methods,
    prepare_all,
    read_summary,
)
from beyond_the_masker.figures import plot_traces
from beyond_the_masker.imports import TYPICAL
from beyond_the_masker.meter import Trace, measure
from beyond_the_masker.model import Image, predict
from beyond_the_masker.pages import load_page
from beyond_the_masker.running import run_method, start_workers
from good_figures import is_a_good_figure

nifti_masker_parallel = load_page("plot_nifti_masker").nifti_masker_parallel
nifti_masker_single = load_page("plot_nifti_masker").nifti_masker_single
numpy_masker_single_inmemory = load_page("plot_numpy_indexing").numpy_masker_single_inmemory
numpy_masker_single_path = load_page("plot_numpy_indexing").numpy_masker_single_path

SINGLE = [method for method in METHODS if method.mode == "single"]
AFFINE = np.diag([4.0, 4, 4, 1])


@pytest.fixture(autouse=True)
def measured(tmp_path, monkeypatch):
    """A tiny image and two masks of one's own, and a folder for measurements."""
    write_labels(tmp_path, 1, 2)
    write_image(tmp_path)
    monkeypatch.setenv("FMRI", str(tmp_path / "fmri.nii"))
    monkeypatch.setenv("ATLAS", str(tmp_path / "labels.nii.gz"))
    monkeypatch.setenv("N_REGIONS", "2")
    monkeypatch.setenv("MASKER_CACHE", str(tmp_path / "prepared"))
    monkeypatch.setenv("MEASURED", str(tmp_path / "numbers"))
    # The tests must not depend on what the machine has left.
    monkeypatch.setattr(memory_budget, "available_mib", lambda: 2.0**16)
    monkeypatch.setattr(memory_budget, "available_shm_mib", lambda: 2.0**16)
    machine = TYPICAL | {"measured": memory_imports.versions()}  # to measure it takes a while
    memory_imports.machine_path().parent.mkdir()
    memory_imports.machine_path().write_text(json.dumps(machine))
    return tmp_path / "numbers"


def write_image(folder, n_volumes=7, seed=0):
    """Write an image that is stored as scaled integers, with a time of its own."""
    data = np.random.default_rng(seed).integers(-99, 99, (4, 5, 6, n_volumes), dtype="int16")
    img = nib.Nifti1Image(data, AFFINE)
    img.header.set_slope_inter(0.25, 3)
    img.to_filename(folder / "fmri.nii")
    os.utime(folder / "fmri.nii", (seed, seed))


def write_labels(folder, first, second):
    """Write two regions of 60 and 36 voxels."""
    labels = np.zeros((4, 5, 6), dtype="uint8")
    labels[:2], labels[2:, :3] = first, second
    nib.Nifti1Image(labels, AFFINE).to_filename(folder / "labels.nii.gz")


class Here:
    """Stands in for the meter: calls in this process, and returns numbers that are known.

    `peaks` and `errors` are those of the next runs, the last one of all that follow.
    """

    def __init__(self):
        self.called, self.peaks, self.spoil, self.errors, self.limits = [], [100.0], [0], [None], []

    def within(self, memory_mib, func, *args):
        """Note the limit."""
        self.limits.append(memory_mib)
        return self(func, *args)

    def __call__(self, func, *args):
        """Return a trace with the next peak, and values that are off by the next `spoil`."""
        self.called.append(func.__name__)
        peak, spoil, error = (
            one.pop(0) if len(one) > 1 else one[0] for one in (self.peaks, self.spoil, self.errors)
        )
        known = np.array([10, peak])
        return Trace(
            name=func.__name__,
            started=1.7e9,
            seconds=peak / 200,
            before_mib=10.0,
            times=np.array([-0.01, 0.2]),
            processes={
                1: {"anon": known, "file": known / 2} | dict.fromkeys(("pss", "rss", "uss"), known)
            },
            value=[series + spoil for series in func(*args)],
            exception=error,
        )


@pytest.fixture
def here(monkeypatch):
    """Replace the meter."""
    here = Here()
    monkeypatch.setattr(measured_methods, "measure", here)
    monkeypatch.setattr(measured_methods, "measure_within", here.within)
    return here


def names(rows):
    """Method and mode of each row."""
    return [(row["method"], row["mode"]) for row in rows]


# --- Comparing arrays

ONE = np.array([[1, 2, np.nan]], dtype="float32")


@pytest.mark.parametrize(
    ("series", "same"),
    [
        ([ONE.copy(), ONE[:, :2].copy()], True),
        ([ONE.copy()], True),
        ([], False),
        ([ONE + np.float32(1e-6)], False),
        ([np.nan_to_num(ONE)], False),
        ([ONE.astype("float64")], False),
        ([ONE.astype(">f4")], False),
        ([ONE[0]], False),
        ([ONE.T], False),
        ([ONE[:, :2]], False),
        ([ONE, ONE], False),
        ([ONE[:, :2], ONE], False),
    ],
)
def test_identical_means_every_value_shape_and_type(series, same):
    """Arrays are identical if shape, type and every value are."""
    assert identical(series, [ONE, ONE[:, :2]]) is same


def test_identical_to_a_reference_of_foreign_byte_order():
    """The byte order of an array does not matter."""
    assert identical([ONE], [ONE.astype(">f4")])


# --- Measurements


@pytest.mark.chance
def test_measured_method_is_written_down(measured, capsys):
    """The row, the saved trace and the output have the numbers of the returned trace."""
    traces = measure_methods(numpy_masker_single_path)
    ((title, trace),) = traces.items()
    assert title == "NumPy indexing, path, single"
    assert sorted(path.name for path in measured.iterdir()) == [
        "experiment.json",
        "summary.csv",
        "traces",
    ]
    with open(measured / "summary.csv", newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames) == COLUMNS
        (row,) = reader
    assert [row] == read_summary()
    assert row == {
        "method": "NumPy indexing, path",
        "function": "numpy_masker_single_path",
        "mode": "single",
        "n_jobs": "1",
        "image_mib": f"{4 * 5 * 6 * 7 * 8 / 2**20:.3f}",
        "n_masks": "1",
        "n_runs": "1",
        "before_mib": f"{trace.before_mib:.3f}",
        "peak_mib": f"{trace.peak_mib:.3f}",
        "peak_mib_min": f"{trace.peak_mib:.3f}",
        "peak_mib_max": f"{trace.peak_mib:.3f}",
        "peak_file_mib": f"{trace.peak_file_mib:.3f}",
        "peak_pss_mib": f"{trace.peak_pss_mib:.3f}",
        "peak_rss_mib": f"{trace.peak_rss_mib:.3f}",
        **dict.fromkeys(("seconds", "seconds_min", "seconds_max"), f"{trace.seconds:.4f}"),
        "identical": "true",
        "status": "measured",
        "reason": "",
    }
    assert 0 < float(row["before_mib"]) <= float(row["peak_mib"])
    assert capsys.readouterr().out == f"{title}\n    {in_a_line(row)}\n"
    (saved,) = (measured / "traces").iterdir()
    assert saved.name == "numpy-indexing-path-single.dat"
    content = mprof.read_mprofile_file(saved)
    assert max(content["mem_usage"]) == pytest.approx(trace.total().max())
    assert not list(measured.glob("**/*unfinished*"))


def test_description_of_image_and_machine(measured, tmp_path, here):
    """The description is that of the image and the machine."""
    prepare_all()
    described = json.loads((measured / "experiment.json").read_text())
    image = described["image"]
    assert image["name"] == "fmri.nii"
    assert image["source"] == "own"
    assert image["n_images"] is None
    assert image["shape"] == [4, 5, 6, 7]
    assert (image["stored_dtype"], image["dtype"]) == ("int16", "float64")
    assert image["in_memory_mib"] == 4 * 5 * 6 * 7 * 8 / 2**20
    assert image["on_disk_mib"] == (tmp_path / "fmri.nii").stat().st_size / 2**20
    assert (image["n_masks"], image["mask_voxels"]) == (2, [60, 36])
    assert described["machine"]["numpy"] == np.__version__
    assert described["machine"]["cores"] >= 1


def test_systems_that_do_not_tell_the_cores_of_a_process(monkeypatch):
    """Where psutil has no cpu_affinity, as on macOS, all cores count."""
    monkeypatch.setattr(measured_methods.psutil, "Process", SimpleNamespace)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert describe_machine()["cores"] == 7


NEEDED = {  # by its page, of the packages that are large
    "plot_nifti_masker": {"joblib", "nilearn", "pandas", "scipy", "sklearn"},
    "plot_stream_masker": {"joblib", "nilearn", "pandas", "scipy", "sklearn"},
    "plot_stream_masks": {"scipy"},  # nibabel has it
}


@pytest.mark.chance
@pytest.mark.parametrize("module", sorted({m.module for m in memory_model.METHODS.values()}))
def test_a_method_imports_what_it_needs(module, tmp_path):
    """The process of a method imports its page and one_run, and no other large package."""

    def imported_by(*call):
        run_method(*call)
        return set(sys.modules)

    method = next(m for m in METHODS if m.function.__module__ == module)
    call = method.function, method.mode, method.in_memory, tmp_path / "fmri.nii"
    found = measure(imported_by, *call, [tmp_path / "labels.nii.gz"]).result()
    examples = {path.stem for path in Path(measured_methods.__file__).parent.glob("*.py")}
    assert examples & found == {module, "one_run", "peak_memory"}
    large = {"dask", "joblib", "matplotlib", "nilearn", "pandas", "scipy", "sklearn"}
    assert large & found <= NEEDED.get(module, {"joblib", "scipy"})


def test_rows_are_in_order_and_replaced(measured, here):
    """Rows are in the order of METHODS, and a new measurement replaces the old row."""
    measure_methods(numpy_masker_single_inmemory)
    measure_methods(nifti_masker_single)
    assert names(read_summary()) == [(m.name, m.mode) for m in (SINGLE[0], SINGLE[1], SINGLE[3])]
    assert {row["peak_mib"] for row in read_summary()} == {"100.000"}
    here.peaks = [200]
    measure_methods(numpy_masker_single_inmemory)
    assert [row["peak_mib"] for row in read_summary()] == ["100.000", "100.000", "200.000"]
    assert [row["peak_file_mib"] for row in read_summary()] == ["50.000", "50.000", "100.000"]
    assert len(list((measured / "traces").iterdir())) == 3
    assert here.called.count("reference_series") == 1, "the reference is made for every page"


@pytest.mark.parametrize("change", ["volumes", "values", "regions", "N_REGIONS", "machine"])
def test_other_image_or_machine_empties_the_table(change, measured, here, tmp_path, monkeypatch):
    """Another image, mask or machine empties the folder."""
    measure_methods(nifti_masker_single)
    for name in ("summary.csv", "mprof_rss.dat", "peaks.svg", "mprof.json"):
        (measured / name).touch()
    if change == "volumes":
        write_image(tmp_path, n_volumes=8)
    elif change == "values":
        write_image(tmp_path, seed=1)
    elif change == "regions":
        write_labels(tmp_path, 2, 1)
    elif change == "machine":
        monkeypatch.setattr(platform, "python_version", lambda: "3.99")
    else:
        monkeypatch.setenv("N_REGIONS", "1")
    measure_methods(numpy_masker_single_path)
    assert names(read_summary()) == [("NumPy indexing, path", "single")]
    assert read_summary()[0]["identical"] == "true"
    files = sorted(path.name for path in measured.glob("**/*") if path.is_file())
    assert files == ["experiment.json", "numpy-indexing-path-single.dat", "summary.csv"]


def test_other_values_are_told(here, capsys):
    """A method with other values than NiftiMasker is not identical."""
    prepare_all()
    here.spoil = [1]
    measure_methods(numpy_masker_single_path)
    assert read_summary()[0]["identical"] == "false"
    assert "identical to NiftiMasker: false" in capsys.readouterr().out


def test_missing_region_is_told(here, monkeypatch):
    """A method that leaves out a region is not identical."""

    def first_region_only(fmri_path, mask_paths, n_regions):
        return [numpy_masker_single_path(fmri_path, mask_paths[0])]

    method = Method("NumPy indexing, path", first_region_only, "parallel")
    monkeypatch.setattr(measured_methods, "METHODS", [method])
    measure_methods(first_region_only)
    (row,) = read_summary()
    assert (row["n_masks"], row["n_jobs"], row["identical"]) == ("2", "2", "false")


def test_failed_method_is_not_written_down(here):
    """A method that fails has no row, and its error ends the build."""
    prepare_all()
    here.errors = [ValueError("no such region")]
    with pytest.raises(ValueError, match="no such region"):
        measure_methods(numpy_masker_single_path)
    assert read_summary() == []


def test_complete_summary_measures_what_is_missing(here, monkeypatch):
    """Only the methods without a row are measured."""
    monkeypatch.setattr(measured_methods, "METHODS", SINGLE)
    measure_methods(nifti_masker_single)
    here.called.clear()
    assert names(complete_summary()) == [(method.name, "single") for method in SINGLE]
    assert here.called == [f"{method.name}, single" for method in SINGLE[2:]]
    here.called.clear()
    assert len(complete_summary()) == len(SINGLE)
    assert here.called == []


def test_rows_of_another_version_are_not_used(measured, here, monkeypatch):
    """A summary with other columns counts as not measured, and its folder is emptied."""
    monkeypatch.setattr(measured_methods, "METHODS", SINGLE)
    measure_methods(nifti_masker_single)
    lines = (measured / "summary.csv").read_text().splitlines()
    (measured / "summary.csv").write_text("\n".join(line.partition(",")[2] for line in lines))
    (measured / "peaks.svg").touch()
    assert read_summary() == []
    assert names(complete_summary()) == [(method.name, "single") for method in SINGLE]
    assert not (measured / "peaks.svg").exists()


# --- Several runs


@pytest.fixture
def three(here, monkeypatch):
    """Reference and one method, whose runs then are three. (The reference has no workers.)"""
    prepare_all()
    here.called.clear()

    def alone(fmri_path, mask_paths, n_jobs):
        return [numpy_masker_single_path(fmri_path, mask_path) for mask_path in mask_paths]

    monkeypatch.setattr(
        measured_methods, "METHODS", [Method("NumPy indexing, path", alone, "parallel")]
    )
    return functools.partial(measure_methods, alone)


def test_method_with_workers_is_measured_three_times(here, three, measured, capfd):
    """The row has median and range of the runs, and the run with the median peak is kept."""
    here.peaks = [310.16, 600, 290]
    ((title, trace),) = three().items()
    assert here.called == [title] * N_RUNS
    assert trace.peak_mib == 310.16
    (row,) = read_summary()
    assert (row["n_runs"], row["n_jobs"], row["identical"]) == ("3", "2", "true")
    ends = [row[f"peak_mib{end}"] for end in ("_min", "", "_max")]
    assert ends == ["290.000", "310.160", "600.000"]
    assert [row[f"seconds{end}"] for end in ("_min", "", "_max")] == ["1.4500", "1.5508", "3.0000"]
    assert (row["peak_pss_mib"], row["peak_file_mib"]) == ("310.160", "155.080")
    content = mprof.read_mprofile_file(measured / "traces" / "numpy-indexing-path-parallel.dat")
    assert max(content["mem_usage"]) == pytest.approx(310.16)
    out, err = capfd.readouterr()
    assert (
        "peak 310 MiB (290 to 600 in 3 runs), 10 MiB before the call; 1.55 s (1.45 s to 3.00 s)"
        in out
    )
    for number in (1, 2, 3):
        assert f"[1 of 1] {title}, run {number} of 3 ..." in err


def test_method_without_workers_is_measured_once(here, capfd):
    """One run has no range, and no number."""
    measure_methods(numpy_masker_single_path)
    assert here.called == ["reference_series", "NumPy indexing, path, single"]
    out, err = capfd.readouterr()
    assert "peak 100 MiB, 10 MiB before the call; 0.500 s\n" in out
    assert "run 1" not in err


def test_a_region_is_not_sent_to_workers(here, three, monkeypatch):
    """joblib starts no workers for one mask, so that a single run is enough."""
    monkeypatch.setenv("N_REGIONS", "1")
    three()
    assert read_summary()[0]["n_runs"] == "1"


def test_all_runs_must_be_identical(here, three):
    """A method that gives other values in one of its runs is not identical."""
    here.spoil = [0, 1, 0]
    three()
    assert read_summary()[0]["identical"] == "false"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("stopped"),
        OSError("stopped: the disk is full"),
        TerminatedWorkerError("stopped: a worker was killed"),
        RuntimeError("stopped: The measured process was ended by signal SIGKILL."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_run_without_room_stops_the_method(here, three, error):
    """Too little memory or disk in one of the runs gives the row "stopped", and no error."""
    here.peaks, here.errors = [300, 200, 100], [None, error]
    ((_, trace),) = three().items()
    assert len(here.called) == 2
    assert trace.exception is error
    (row,) = read_summary()
    assert (row["status"], row["n_runs"], row["reason"]) == ("stopped", "1", str(error))
    ends = [row[f"peak_mib{end}"] for end in ("_min", "", "_max")]
    assert ends == ["200.000"] * 3
    assert {row[key] for key in ("seconds", "seconds_min", "seconds_max", "identical")} == {""}


@pytest.mark.parametrize("error", [ValueError("wrong"), RuntimeError("ended by signal SIGSEGV")])
def test_an_error_of_a_method_is_raised(here, three, error):
    """An error that is not the machine's ends the build."""
    here.errors = [None, error]
    with pytest.raises(type(error), match=str(error)):
        three()
    assert len(here.called) == 2
    assert read_summary() == []


def test_reference_where_the_machine_has_less_room_than_it_seemed(here, capfd):
    """If the masker is stopped, the reference comes from blocks of volumes."""
    here.errors = [MemoryError("stopped"), None]
    prepare_all()
    assert here.called == ["reference_series", "stream_nifti_maskers"]
    assert "The reference comes from blocks of volumes: stopped" in capfd.readouterr().err


def test_figure_of_several_traces(here):
    """Two methods are drawn on one scale, with a description."""
    import matplotlib.pyplot as plt

    traces = measure_methods(numpy_masker_single_path)
    here.peaks = [300]
    traces |= measure_methods(numpy_masker_single_inmemory)
    figure = plot_traces(traces, image_mib=70)
    try:
        assert figure.get_suptitle() == "Memory over time"
        assert [ax.get_title("left") for ax in figure.axes] == [
            "NumPy indexing, path, single:\npeak 100 MiB",
            "NumPy indexing, in-memory image, single:\npeak 300 MiB",
        ]
        assert [ax.get_legend() for ax in figure.axes] == [None, None]
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert {"calling process", "with mapped files", "before the call", "the image"} <= set(
            labels
        )
        is_a_good_figure(figure, "peak of 100 MiB", "peak of 300 MiB", "The image has 70 MiB")
        first, second = figure.axes
        assert first.get_ylim() == second.get_ylim()
        assert first.get_ylim()[1] >= 300
    finally:
        plt.close(figure)


# --- What may not fit


def test_method_that_may_not_fit_is_not_run(measured, here, monkeypatch, capsys):
    """A method that might not fit is predicted, not run."""
    monkeypatch.setenv("MEMORY", "300M")
    traces = measure_methods(nifti_masker_single, nifti_masker_parallel)
    ran = [name for name in traces if name.endswith("single")]
    assert here.called == ["reference_series", *ran]
    assert here.limits == [300, 300]
    rows = read_summary()
    assert [row["status"] for row in rows] == ["measured"] * 2 + ["predicted"] * 2
    assert [row["reason"] for row in rows[:2]] == ["", ""]
    image = Image((4, 5, 6, 7), "int16", compressed=False, slope=True, inter=True)
    for row in rows[2:]:
        method = f"{row['method']}, {row['mode']}"
        found = predict(method, image, [60, 36], 2, TYPICAL)
        assert isinstance(traces[method], NotRun)
        assert row["reason"] == (
            f"Not run. It may need {found.most_mib:,.0f} MiB, and 300 MiB are available."
        )
        assert row["peak_mib"] == f"{found.peak_mib:.3f}"
        assert row["peak_mib_min"] == f"{found.low_mib:.3f}"
        assert row["peak_mib_max"] == f"{found.most_mib:.3f}"
        assert row["before_mib"] == f"{found.parts[0].mib:.3f}"
        assert (row["n_runs"], row["n_jobs"]) == ("0", "2")
        for column in ("peak_file_mib", "peak_pss_mib", "peak_rss_mib", "seconds", "identical"):
            assert row[column] == ""
    assert len(list((measured / "traces").iterdir())) == 2
    out = capsys.readouterr().out
    assert "NiftiMasker, path, parallel\n    not run: It may need" in out
    assert out.count("identical to NiftiMasker") == 2


def test_nothing_fits(here, monkeypatch):
    """Where nothing fits, all methods are predicted, and the reference comes from blocks."""
    monkeypatch.setenv("MEMORY", "1M")
    measure_methods(*{method.function for method in METHODS})
    assert here.called == ["stream_nifti_maskers"]
    assert names(read_summary()) == [(method.name, method.mode) for method in METHODS]
    assert {row["status"] for row in read_summary()} == {"predicted"}


def test_unlimited_memory_runs_all(here, monkeypatch):
    """MEMORY=unlimited runs a method that might not fit."""
    monkeypatch.setattr(memory_budget, "available_mib", lambda: 1.0)
    monkeypatch.setenv("MEMORY", "unlimited")
    measure_methods(nifti_masker_single)
    assert {row["status"] for row in read_summary()} == {"measured"}
    assert here.limits == [np.inf, np.inf]


def test_predicted_row_is_replaced(here, monkeypatch):
    """A measurement replaces a prediction."""
    monkeypatch.setenv("MEMORY", "1M")
    measure_methods(numpy_masker_single_path)
    monkeypatch.setenv("MEMORY", "unlimited")
    measure_methods(numpy_masker_single_path)
    (row,) = read_summary()
    assert (row["status"], row["reason"], row["identical"]) == ("measured", "", "true")


def test_method_that_was_stopped(here):
    """A method that was stopped has its peak so far and the reason."""
    prepare_all()
    here.errors = [MemoryError("stopped while it ran")]
    measure_methods(numpy_masker_single_path)
    (row,) = read_summary()
    assert (row["status"], row["reason"]) == ("stopped", "stopped while it ran")
    assert (row["seconds"], row["identical"], row["peak_mib"]) == ("", "", "100.000")


def test_figure_with_a_method_that_was_not_run(here, monkeypatch):
    """A prediction is hatched, and its words stay within its panel."""
    import matplotlib.pyplot as plt

    traces = measure_methods(numpy_masker_single_path)
    monkeypatch.setenv("MEMORY", "1M")
    traces |= measure_methods(nifti_masker_parallel)
    figure = plot_traces(traces, image_mib=70)
    try:
        figure.canvas.draw()
        assert len(figure.axes) == 3
        for ax, title in zip(figure.axes[1:], list(traces)[1:], strict=True):
            assert ax.get_title("left").startswith(f"{title}:\npredicted peak ")
            assert ax.patches[0].get_hatch()
            (words,) = ax.texts
            assert words.get_text().startswith("Not run. It may need")
            box, frame = words.get_window_extent(), ax.get_window_extent()
            assert frame.x0 < box.x0 < box.x1 < frame.x1
            assert frame.y0 < box.y0 < box.y1 < frame.y1
        assert len({ax.get_ylim() for ax in figure.axes}) == 1
        is_a_good_figure(figure, "peak of 100 MiB", "not run, predicted peak")
    finally:
        plt.close(figure)


@pytest.mark.parametrize(("memory", "status"), [("1M", "predicted"), ("unlimited", "measured")])
def test_phases_of_the_whole_experiment(memory, status, tmp_path, monkeypatch, capsys):
    """The phases have the status of each method, and when it began and ended."""
    monkeypatch.setenv("MEMORY", memory)
    monkeypatch.setattr(whole_experiment, "METHODS", [SINGLE[2], METHODS[-1]])
    # With what the machine has left, a method could be stopped.
    unlimited = contextlib.nullcontext()
    unlimited.reason = ""
    monkeypatch.setattr(whole_experiment, "Watchdog", lambda *_: unlimited)
    whole_experiment.main(2, 2, pause=0, phases_path=tmp_path / "phases.csv")
    with open(tmp_path / "phases.csv", newline="") as file:
        phases = list(csv.DictReader(file))
    assert names(phases) == [(m.name, m.mode) for m in whole_experiment.METHODS]
    assert [phase["status"] for phase in phases] == [status] * 2
    for phase in phases:
        assert float(phase["predicted_mib"]) > 10
        assert float(phase["began"]) <= float(phase["ended"])
        assert phase["reason"].startswith("Not run. It may need") == (status == "predicted")
    if status == "predicted":
        assert capsys.readouterr().out.count("Not run. It may need") == 2
        assert all(float(p["ended"]) - float(p["began"]) > 0.4 for p in phases)


@pytest.mark.parametrize("wrong", ["option", "atlas"])
def test_what_is_wrong_ends_the_build_with_a_message(wrong, tmp_path, monkeypatch):
    """A wrong option or atlas ends ``make`` with one sentence."""
    if wrong == "option":
        monkeypatch.setenv("N_REGIONS", "3")
    else:
        (tmp_path / "labels.nii.gz").write_text("not an image")
    done = subprocess.run(
        [sys.executable, measured_methods.__file__],
        env=os.environ | {"PYTHONPATH": str(Path(measured_methods.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert ("N_REGIONS to 2 or less" if wrong == "option" else "labels.nii.gz") in done.stderr


def test_workers_are_there_before_the_work():
    """All workers have started before the work begins, and the work is given to them."""
    try:
        start_workers(3)
        there = set(reusable_executor._executor._processes)
        assert len(there) == 3
        assert set(Parallel(n_jobs=3)(delayed(os.getpid)() for _ in range(9))) <= there
    finally:
        get_reusable_executor().shutdown(wait=True)
