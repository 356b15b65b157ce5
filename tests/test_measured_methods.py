"""If these fail, the tables and figures tell of another image, another method, or other numbers."""

import csv
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import mprof
import nibabel as nib
import numpy as np
import pytest

import measured_methods
import memory_budget
import whole_experiment
from good_figures import is_a_good_figure
from measured_methods import (
    COLUMNS,
    NotRun,
    complete_summary,
    identical,
    measure_methods,
    plot_traces,
    prepare_all,
    read_summary,
)
from memory_budget import TYPICAL
from memory_model import Image, predict
from peak_memory import Trace
from plot_nifti_masker import nifti_masker_parallel, nifti_masker_single
from plot_numpy_indexing import numpy_masker_single_inmemory, numpy_masker_single_path
from whole_experiment import METHODS, Method

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
    machine = TYPICAL | {"measured": memory_budget._versions()}  # to measure it takes a while
    memory_budget.machine_path().parent.mkdir()
    memory_budget.machine_path().write_text(json.dumps(machine))
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
    """Stands in for the meter: calls in this process, and gives numbers that are known."""

    def __init__(self):
        self.called, self.peak, self.spoil, self.error, self.limits = [], 100.0, 0, None, []

    def within(self, memory_mib, func, *args):
        """Note the limit."""
        self.limits.append(memory_mib)
        return self(func, *args)

    def __call__(self, func, *args):
        """Give a trace whose peak is `peak` and whose values are off by `spoil`."""
        self.called.append(func.__name__)
        value = [series + self.spoil for series in func(*args)]
        known = np.array([10, self.peak])
        return Trace(
            name=func.__name__,
            started=1.7e9,
            seconds=0.5,
            before_mib=10.0,
            times=np.array([-0.01, 0.2]),
            processes={1: {"pss": known, "rss": 2 * known, "uss": known}},
            value=value,
            exception=self.error,
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
    """The table says that a method gives NiftiMasker's arrays when it does not, or the reverse."""
    assert identical(series, [ONE, ONE[:, :2]]) is same


def test_identical_to_a_reference_of_foreign_byte_order():
    """A method that gives native values for a big-endian image counts as wrong."""
    assert identical([ONE], [ONE.astype(">f4")])


# --- Measurements


def test_measured_method_is_written_down(measured, capsys):
    """A measurement does not reach the table, or the trace, or says other numbers there."""
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
        "image_mib": f"{4 * 5 * 6 * 7 * 8 / 2**20:.1f}",
        "n_masks": "1",
        "before_mib": f"{trace.before_mib:.1f}",
        "peak_pss_mib": f"{trace.peak_pss_mib:.1f}",
        "peak_rss_mib": f"{trace.peak_rss_mib:.1f}",
        "seconds": f"{trace.seconds:.2f}",
        "identical": "true",
        "status": "measured",
        "reason": "",
    }
    assert 20 < float(row["before_mib"]) <= float(row["peak_pss_mib"])
    assert "identical to NiftiMasker: true" in capsys.readouterr().out
    (saved,) = (measured / "traces").iterdir()
    assert saved.name == "numpy-indexing-path-single.dat"
    content = mprof.read_mprofile_file(saved)
    assert max(content["mem_usage"]) == pytest.approx(trace.total().max())
    assert not list(measured.glob("**/*unfinished*"))


def test_description_of_image_and_machine(measured, tmp_path, here):
    """The chapter describes another image, or another machine, than was measured."""
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


def test_rows_are_in_order_and_replaced(measured, here):
    """The table depends on the order of the pages, or shows a method of an earlier build too."""
    measure_methods(numpy_masker_single_inmemory)
    measure_methods(nifti_masker_single)
    assert names(read_summary()) == [(m.name, m.mode) for m in (SINGLE[0], SINGLE[1], SINGLE[3])]
    assert {row["peak_pss_mib"] for row in read_summary()} == {"100.0"}
    here.peak = 200
    measure_methods(numpy_masker_single_inmemory)
    assert [row["peak_pss_mib"] for row in read_summary()] == ["100.0", "100.0", "200.0"]
    assert [row["peak_rss_mib"] for row in read_summary()] == ["200.0", "200.0", "400.0"]
    assert len(list((measured / "traces").iterdir())) == 3
    assert here.called.count("reference_series") == 1, "the reference is made for every page"


@pytest.mark.parametrize("change", ["volumes", "values", "regions", "N_REGIONS", "machine"])
def test_other_image_or_machine_empties_the_table(change, measured, here, tmp_path, monkeypatch):
    """The rows of one table are about different images, masks or machines."""
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
    """The table calls a method identical that gives other values than NiftiMasker."""
    prepare_all()
    here.spoil = 1
    measure_methods(numpy_masker_single_path)
    assert read_summary()[0]["identical"] == "false"
    assert "identical to NiftiMasker: false" in capsys.readouterr().out


def test_missing_region_is_told(here, monkeypatch):
    """The table calls a method identical that leaves out a region."""

    def first_region_only(fmri_path, mask_paths, n_regions):
        return [numpy_masker_single_path(fmri_path, mask_paths[0])]

    method = Method("NumPy indexing, path", first_region_only, "parallel")
    monkeypatch.setattr(measured_methods, "METHODS", [method])
    measure_methods(first_region_only)
    (row,) = read_summary()
    assert (row["n_masks"], row["n_jobs"], row["identical"]) == ("2", "2", "false")


def test_failed_method_is_not_written_down(here):
    """A method that failed has a row with numbers."""
    prepare_all()
    here.error = ValueError("no such region")
    with pytest.raises(ValueError, match="no such region"):
        measure_methods(numpy_masker_single_path)
    assert read_summary() == []


def test_complete_summary_measures_what_is_missing(here, monkeypatch):
    """The chapter lacks a method, or all are measured anew for it."""
    monkeypatch.setattr(measured_methods, "METHODS", SINGLE)
    measure_methods(nifti_masker_single)
    here.called.clear()
    assert names(complete_summary()) == [(method.name, "single") for method in SINGLE]
    assert here.called == [f"{method.name}, single" for method in SINGLE[2:]]
    here.called.clear()
    assert len(complete_summary()) == len(SINGLE)
    assert here.called == []


def test_figure_of_several_traces(here):
    """The amounts of two methods cannot be compared in the figure, or it has no description."""
    import matplotlib.pyplot as plt

    traces = measure_methods(numpy_masker_single_path)
    here.peak = 300
    traces |= measure_methods(numpy_masker_single_inmemory)
    figure = plot_traces(traces, image_mib=70)
    try:
        assert figure.get_suptitle() == "Memory over time"
        assert [ax.get_title("left") for ax in figure.axes] == [
            "NumPy indexing, path, single:\npeak 100 MiB PSS",
            "NumPy indexing, in-memory image, single:\npeak 300 MiB PSS",
        ]
        assert [ax.get_legend() for ax in figure.axes] == [None, None]
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert {"calling process", "RSS, summed", "before the call", "the image"} <= set(labels)
        is_a_good_figure(figure, "peak of 100 MiB", "peak of 300 MiB", "The image has 70 MiB")
        first, second = figure.axes
        assert first.get_ylim() == second.get_ylim()
        assert first.get_ylim()[1] >= 300
    finally:
        plt.close(figure)


# --- What may not fit


def test_method_that_may_not_fit_is_not_run(measured, here, monkeypatch, capsys):
    """A method that may not fit is run, is missing in the table, or seems to be measured."""
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
        assert row["peak_pss_mib"] == f"{found.peak_pss_mib:.1f}"
        assert row["peak_rss_mib"] == f"{found.peak_rss_mib:.1f}"
        assert row["before_mib"] == f"{TYPICAL['caller'][0]:.1f}"
        assert (row["seconds"], row["identical"], row["n_jobs"]) == ("", "", "2")
    assert len(list((measured / "traces").iterdir())) == 2
    out = capsys.readouterr().out
    assert "NiftiMasker, path, parallel\n    not run: It may need" in out
    assert out.count("identical to NiftiMasker") == 2


def test_nothing_fits(here, monkeypatch):
    """Where nothing fits the build fails, or the reference is made with what does not fit."""
    monkeypatch.setenv("MEMORY", "100M")
    measure_methods(*{method.function for method in METHODS})
    assert here.called == ["stream_nifti_maskers"]
    assert names(read_summary()) == [(method.name, method.mode) for method in METHODS]
    assert {row["status"] for row in read_summary()} == {"predicted"}


def test_unlimited_memory_runs_all(here, monkeypatch):
    """The reader cannot have a method run that may not fit."""
    monkeypatch.setattr(memory_budget, "available_mib", lambda: 1)
    monkeypatch.setenv("MEMORY", "unlimited")
    measure_methods(nifti_masker_single)
    assert {row["status"] for row in read_summary()} == {"measured"}
    assert here.limits == [np.inf, np.inf]


def test_predicted_row_is_replaced(here, monkeypatch):
    """A prediction stays in the table when the method was measured."""
    monkeypatch.setenv("MEMORY", "100M")
    measure_methods(numpy_masker_single_path)
    monkeypatch.setenv("MEMORY", "unlimited")
    measure_methods(numpy_masker_single_path)
    (row,) = read_summary()
    assert (row["status"], row["reason"], row["identical"]) == ("measured", "", "true")


def test_method_that_was_stopped(here):
    """A method that was stopped ends the build, or seems to have come to its end."""
    prepare_all()
    here.error = MemoryError("stopped while it ran")
    measure_methods(numpy_masker_single_path)
    (row,) = read_summary()
    assert (row["status"], row["reason"]) == ("stopped", "stopped while it ran")
    assert (row["seconds"], row["identical"], row["peak_pss_mib"]) == ("", "", "100.0")


def test_figure_with_a_method_that_was_not_run(here, monkeypatch):
    """A prediction looks like a trace, or its words are cut off."""
    import matplotlib.pyplot as plt

    traces = measure_methods(numpy_masker_single_path)
    monkeypatch.setenv("MEMORY", "100M")
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


@pytest.mark.parametrize(("memory", "status"), [("100M", "predicted"), ("unlimited", "measured")])
def test_phases_of_the_whole_experiment(memory, status, tmp_path, monkeypatch, capsys):
    """The whole experiment runs what may not fit, or its figure takes it for measured."""
    monkeypatch.setenv("MEMORY", memory)
    monkeypatch.setattr(whole_experiment, "METHODS", [SINGLE[2], METHODS[-1]])
    whole_experiment.main(2, 2, pause=0, phases_path=tmp_path / "phases.csv")
    with open(tmp_path / "phases.csv", newline="") as file:
        phases = list(csv.DictReader(file))
    assert names(phases) == [(m.name, m.mode) for m in whole_experiment.METHODS]
    assert [phase["status"] for phase in phases] == [status] * 2
    for phase in phases:
        assert float(phase["predicted_mib"]) > 100
        assert float(phase["began"]) < float(phase["ended"])
        assert phase["reason"].startswith("Not run. It may need") == (status == "predicted")
    if status == "predicted":
        assert capsys.readouterr().out.count("Not run. It may need") == 2
        assert all(float(p["ended"]) - float(p["began"]) >= 0.5 for p in phases)


@pytest.mark.parametrize("wrong", ["option", "atlas"])
def test_what_is_wrong_ends_the_build_with_a_message(wrong, tmp_path, monkeypatch):
    """``make`` shows a traceback instead of the sentence that says what is wrong."""
    if wrong == "option":
        monkeypatch.setenv("N_REGIONS", "3")
    else:
        (tmp_path / "labels.nii.gz").write_text("not an image")
    done = subprocess.run(
        [sys.executable, measured_methods.__file__],
        env=os.environ | {"PYTHONPATH": str(Path(measured_methods.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert ("N_REGIONS to 2 or less" if wrong == "option" else "labels.nii.gz") in done.stderr
