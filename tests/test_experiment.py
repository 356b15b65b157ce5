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

import mprof
import nibabel as nib
import numpy as np
import pytest
from joblib import parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError
from nilearn.maskers import NiftiLabelsMasker, NiftiMasker

from beyond_the_masker.draw.figures import plot_traces
from beyond_the_masker.experiments import experiment, sequence
from beyond_the_masker.experiments.experiment import (
    COLUMNS,
    N_RUNS,
    NotRun,
    complete_summary,
    identical,
    in_a_line,
    in_blocks,
    measure_methods,
    prepare_all,
    prepare_reference,
    read_summary,
)
from beyond_the_masker.experiments.methods import Method, all_methods
from beyond_the_masker.experiments.pages import PAGES
from beyond_the_masker.meter import Trace, measure
from beyond_the_masker.predict import budget
from beyond_the_masker.predict.imports import TYPICAL
from beyond_the_masker.predict.model import Image, predict
from good_figures import is_a_good_figure
from made_images import flip, keep_typical_imports, use_own

FUNCTIONS = {method.function.__name__: method.function for method in all_methods()}
nifti_masker_single = FUNCTIONS["nifti_masker_single"]
numpy_masker_single_path = FUNCTIONS["numpy_masker_single_path"]
numpy_masker_single_inmemory = FUNCTIONS["numpy_masker_single_inmemory"]
SINGLE = [method for method in all_methods() if method.mode == "single"]
AFFINE = np.diag([4.0, 4, 4, 1])


@pytest.fixture(autouse=True)
def measured(tmp_path, monkeypatch):
    """Options that choose a tiny image with two masks; the folder of measurements."""
    write_labels(tmp_path, 1, 2)
    write_image(tmp_path)
    use_own(monkeypatch, tmp_path / "fmri.nii", tmp_path / "labels.nii.gz")
    # The tests must not depend on the machine's free memory.
    monkeypatch.setattr(budget, "available_mib", lambda: 2.0**16)
    monkeypatch.setattr(budget, "available_shm_mib", lambda: 2.0**16)
    keep_typical_imports()
    return tmp_path / "measured"


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
    """Stands in for the meter: calls in this process, and returns known numbers.

    `peaks`, `errors` and what is added to the values, `spoil`, are those of the next runs; the last
    one is used for all that follow.
    """

    def __init__(self):
        self.called, self.peaks, self.spoil, self.errors, self.limits = [], [100.0], [0], [None], []

    def __call__(self, memory_mib, func, *args):
        """Return a trace with the next peak, and values changed by the next `spoil`."""
        self.limits.append(memory_mib)
        self.called.append(func.__name__)
        peak, spoil, error = (
            one.pop(0) if len(one) > 1 else one[0] for one in (self.peaks, self.spoil, self.errors)
        )
        known = np.array([10, peak])
        metrics = {"anon": known, "file": known / 2} | dict.fromkeys(("pss", "rss", "uss"), known)
        return Trace(
            name=func.__name__,
            started=1.7e9,
            seconds=peak / 200,
            before_mib=10.0,
            times=np.array([-0.01, 0.2]),
            processes={1: metrics},
            value=[series + spoil for series in func(*args)],
            exception=error,
        )


@pytest.fixture
def here(monkeypatch):
    """Replace the meter."""
    here = Here()
    monkeypatch.setattr(experiment, "measure_within", here)
    return here


def use_methods(monkeypatch, methods):
    """Replace the list of methods."""
    for module in (experiment, sequence):
        monkeypatch.setattr(module, "all_methods", lambda: methods)


def names(rows):
    """Method and mode of each row."""
    return [(row["method"], row["mode"]) for row in rows]


def ends(row, key="peak_mib"):
    """Smallest, median and largest value of a row."""
    return [row[f"{key}{end}"] for end in ("_min", "", "_max")]


ONE = np.array([[1, 2, np.nan]], dtype="float32")


def test_identical_means_every_bit_shape_and_type():
    """Lists are identical if length, shape, type and bits are, in any order of bytes."""
    short = ONE[:, :2]
    for reference in ([ONE, short], [ONE.astype(">f4"), short]):
        assert identical([ONE.copy(), short.copy()], reference)
        for other in (ONE + np.float32(1e-6), np.nan_to_num(ONE), ONE.astype("float64"), ONE[0]):
            assert not identical([other, short], reference)
        for series in ([], [ONE], [short, ONE], [ONE.astype(">f4"), short]):
            assert not identical(series, reference)
    for reference in ([], [ONE]):
        assert not identical([ONE, short], reference)
    assert not identical([], [])
    assert not identical([np.zeros(1)], [-np.zeros(1)])


@pytest.mark.chance
def test_measured_method_is_written_down(measured, capsys):
    """The row, the saved trace and the output have the numbers of the returned trace."""
    ((title, trace),) = measure_methods(numpy_masker_single_path).items()
    assert title == "NumPy indexing, path, single"
    files = {path.relative_to(measured).as_posix() for path in measured.rglob("*")}
    saved = "traces/numpy-indexing-path-single.dat"
    assert files == {"experiment.json", "summary.csv", "traces", saved}
    with open(measured / "summary.csv", newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    (row,) = read_summary()
    expected = {
        "function": "numpy_masker_single_path",
        "n_jobs": "1",
        "image_mib": f"{4 * 5 * 6 * 7 * 8 / 2**20:.3f}",
        "n_masks": "1",
        "n_runs": "1",
        **{k: f"{getattr(trace, k):.3f}" for k in ("before_mib", "peak_mib", "peak_pss_mib")},
        **dict.fromkeys(("peak_mib_min", "peak_mib_max"), f"{trace.peak_mib:.3f}"),
        **dict.fromkeys(("seconds", "seconds_min", "seconds_max"), f"{trace.seconds:.6f}"),
        "identical": "true",
        "status": "measured",
        "reason": "",
    }
    assert expected.items() <= row.items()
    assert 0 < float(row["before_mib"]) <= float(row["peak_mib"])
    assert capsys.readouterr().out == f"{title}\n    {in_a_line(row)}\n"
    content = mprof.read_mprofile_file(measured / saved)
    assert max(content["mem_usage"]) == pytest.approx(trace.total().max())


def test_description_of_image_and_machine(measured, tmp_path, here):
    """The description is that of the image and the machine."""
    prepare_all()
    described = json.loads((measured / "experiment.json").read_text())
    expected = {
        "name": "fmri.nii",
        "source": "own",
        "shape": [4, 5, 6, 7],
        "dtype": "float64",
        "stored_dtype": "int16",
        "on_disk_mib": (tmp_path / "fmri.nii").stat().st_size / 2**20,
        "in_memory_mib": 4 * 5 * 6 * 7 * 8 / 2**20,
        "mask_voxels": [60, 36],
    }
    assert expected.items() <= described["image"].items()
    assert described["machine"]["numpy"] == np.__version__
    assert described["machine"]["cores"] >= 1


OWN = {"extract", "checks", "files", "meter", "orphans", "running", "streaming"}
NUMPY = (OWN, {"joblib", "scipy"})
OF_MASKERS = {"cleaning", "maskers", "regions", "two_passes"}
NILEARN = (OWN | OF_MASKERS, {"joblib", "nilearn", "pandas", "scipy"})
NEEDED = {  # modules of the package, and large packages, by the module of the method
    "plot_nifti_masker": NILEARN,
    "plot_region_averages": NILEARN,
    "beyond_the_masker.extract.maskers": NILEARN,
    "beyond_the_masker.extract.streaming": (OWN, {"scipy"}),  # nibabel has scipy
}


@pytest.mark.chance
@pytest.mark.parametrize("module", sorted({m.function.__module__ for m in all_methods()}))
def test_a_method_imports_what_it_needs(module, tmp_path):
    """The process of a method imports neither the experiment nor packages that it does not use."""

    def imported_by(call):
        import sys

        call()
        return set(sys.modules)

    method = next(m for m in all_methods() if m.function.__module__ == module)
    call = method.call(tmp_path / "fmri.nii", [tmp_path / "labels.nii.gz"])
    found = measure(imported_by, call).result()
    modules, packages = NEEDED.get(module, NUMPY)
    own = {name.split(".")[-1] for name in found if name.startswith("beyond_the_masker.")}
    assert own <= modules
    large = {"dask", "joblib", "matplotlib", "nilearn", "pandas", "scipy"}
    assert large & found <= packages


def test_rows_are_in_order_and_replaced(measured, here):
    """Rows are in the order of METHODS, and a new measurement replaces the old row."""
    measure_methods(numpy_masker_single_inmemory)
    measure_methods(nifti_masker_single)
    assert names(read_summary()) == [(m.name, m.mode) for m in (SINGLE[0], SINGLE[1], SINGLE[3])]
    here.peaks = [200]
    measure_methods(numpy_masker_single_inmemory)
    assert [row["peak_mib"] for row in read_summary()] == ["100.000", "100.000", "200.000"]
    assert [row["peak_file_mib"] for row in read_summary()] == ["50.000", "50.000", "100.000"]
    assert len(list((measured / "traces").iterdir())) == 3


@pytest.mark.parametrize("change", ["values", "regions", "N_REGIONS", "machine"])
def test_other_image_or_machine_empties_the_table(change, measured, here, tmp_path, monkeypatch):
    """Another image, mask or machine empties the folder."""
    measure_methods(nifti_masker_single)
    for name in ("mprof_rss.dat", "peaks.svg", "mprof.json", "timeline.html"):
        (measured / name).touch()
    if change == "values":
        write_image(tmp_path, seed=1)
    elif change == "regions":
        write_labels(tmp_path, 2, 1)
    elif change == "machine":
        monkeypatch.setattr(platform, "python_version", lambda: "3.99")
    else:
        monkeypatch.setenv("N_REGIONS", "1")
    measure_methods(numpy_masker_single_path)
    assert read_summary()[0]["identical"] == "true"
    files = sorted(path.name for path in measured.glob("**/*") if path.is_file())
    assert files == ["experiment.json", "numpy-indexing-path-single.dat", "summary.csv"]


def test_complete_summary_measures_what_is_missing(measured, here, monkeypatch):
    """Only methods without a row are measured; rows of another version count as missing."""
    use_methods(monkeypatch, SINGLE)
    measure_methods(nifti_masker_single)
    here.called.clear()
    assert names(complete_summary()) == [(method.name, "single") for method in SINGLE]
    assert here.called == [f"{method.name}, single" for method in SINGLE[2:]]
    here.called.clear()
    assert len(complete_summary()) == len(SINGLE)
    assert here.called == []
    lines = (measured / "summary.csv").read_text().splitlines()
    (measured / "summary.csv").write_text("\n".join(line.partition(",")[2] for line in lines))
    (measured / "peaks.svg").touch()
    assert read_summary() == []
    assert len(complete_summary()) == len(SINGLE) == len(here.called)
    assert not (measured / "peaks.svg").exists()


@pytest.fixture
def three(here, monkeypatch):
    """The call that measures one method with workers, in three runs."""

    def alone(fmri_path, mask_paths, n_jobs):
        return [numpy_masker_single_path(fmri_path, mask_path) for mask_path in mask_paths]

    use_methods(monkeypatch, [Method("NumPy indexing, path", alone, "parallel")])
    return functools.partial(measure_methods, alone)


def test_method_with_workers_is_measured_three_times(here, three, measured, capfd):
    """The row has median and range of the runs, and the run with the median peak is kept."""
    here.peaks = [310.16, 600, 290]
    ((title, trace),) = three().items()
    assert here.called == [title] * N_RUNS
    assert trace.peak_mib == 310.16
    (row,) = read_summary()
    assert (row["n_runs"], row["n_jobs"], row["identical"]) == ("3", "2", "true")
    assert ends(row) == ["290.000", "310.160", "600.000"]
    assert ends(row, "seconds") == ["1.450000", "1.550800", "3.000000"]
    assert (row["peak_pss_mib"], row["peak_file_mib"]) == ("310.160", "155.080")
    content = mprof.read_mprofile_file(measured / "traces" / "numpy-indexing-path-parallel.dat")
    assert max(content["mem_usage"]) == pytest.approx(310.16)
    out, err = capfd.readouterr()
    assert "peak 310 MiB (290 to 600 in 3 runs),\n    10 MiB before the call; 1.55 s" in out
    assert "1.55 s (1.45 s to 3.00 s)" in out
    for number in (1, 2, 3):
        assert f"[1 of 1] {title}, run {number} of 3 ..." in err


def test_all_runs_must_be_identical(here, three):
    """A method that returns other values in one of its runs is not identical."""
    here.spoil = [0, 1, 0]
    three()
    assert read_summary()[0]["identical"] == "false"


@pytest.mark.parametrize(
    "error",
    [
        OSError("stopped: the disk is full"),
        TerminatedWorkerError("stopped: a worker was killed"),
        RuntimeError("stopped: The measured process was ended by signal SIGKILL."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_run_without_room_stops_the_method(here, three, error):
    """Too little memory or disk in one of the runs leads to the row "stopped", and no error."""
    here.peaks, here.errors = [300, 200, 100], [None, error]
    ((_, trace),) = three().items()
    assert len(here.called) == 2
    assert trace.exception is error
    (row,) = read_summary()
    assert (row["status"], row["n_runs"], row["reason"]) == ("stopped", "1", str(error))
    assert ends(row) == ["200.000"] * 3
    assert {row[key] for key in ("seconds", "seconds_min", "seconds_max", "identical")} == {""}


@pytest.mark.parametrize("error", [ValueError("ended: no region"), RuntimeError("ended: SIGSEGV")])
def test_an_error_of_a_method_is_raised(here, three, error):
    """An error or a signal that has nothing to do with memory ends the build, without a row."""
    here.errors = [None, error]
    with pytest.raises(type(error), match="ended"):
        three()
    assert len(here.called) == 2
    assert read_summary() == []


DAMAGES = [
    *(("experiment.json", damage) for damage in (b"", b"{", b'{"image": 1}', b"[1]", b"\xff")),
    *(("summary.csv", damage) for damage in (b"", b"\xff\xfe", b"a\0b\n1")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damaged_folder_is_emptied(name, damage, measured, here):
    """Where description or table is damaged, everything is measured anew."""
    measure_methods(nifti_masker_single)
    (measured / name).write_bytes(damage)
    assert len(read_summary()) == (0 if name == "summary.csv" else 2)
    (measured / "summary.csv.0.unfinished").touch()  # by a killed build
    prepare_all()
    assert {path.name for path in measured.iterdir()} == {"experiment.json", "traces"}
    assert json.loads((measured / "experiment.json").read_text())["image"]["n_masks"] == 2


def test_row_that_was_cut_off_is_left_out(measured, here):
    """The rows before it are read."""
    measure_methods(nifti_masker_single)
    os.truncate(measured / "summary.csv", (measured / "summary.csv").stat().st_size - 9)
    assert len(read_summary()) == 1


SMALL_SUBJECTS = """
import functools, re, resource
from pathlib import Path
import numpy as np
from beyond_the_masker.experiments import experiment
from beyond_the_masker.inputs import data, synthetic

affine = np.array([[8.0, 0, 0, -96], [0, 8, 0, -132], [0, 0, 8, -78], [0, 0, 0, 1]])
data.FMRI_SHAPE = (25, 30, 25, 84)
make = functools.partial(synthetic.synthetic_fmri, shape=data.FMRI_SHAPE, affine=affine)
data.synthetic_fmri = make
data.get_atlas_path()
used = re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
resource.setrlimit(resource.RLIMIT_DATA, [int(used) * 2**10 + 80 * 2**20] * 2)
print(experiment.prepare_all()[3])
"""


@pytest.mark.extensive
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_data_are_prepared_in_constant_memory(tmp_path):
    """An image of 120 MiB, and what it is compared with, are made in less than 80 MiB."""
    environ = {k: v for k, v in os.environ.items() if k not in ("FMRI", "ATLAS")}
    environ |= {"N_IMAGES": "20", "PYTHONPATH": str(PAGES)}
    command = [sys.executable, "-c", SMALL_SUBJECTS]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 120


@pytest.mark.parametrize("n_volumes", [1, 3, 7])
def test_reference_from_blocks_is_that_of_the_whole_image(n_volumes, tmp_path):
    """The series of blocks, joined, are those of the whole image, of each masker."""
    fmri, labels = tmp_path / "fmri.nii", tmp_path / "labels.nii.gz"
    plain = {"standardize": None, "reports": False}
    maskers = NiftiMasker(labels, **plain), NiftiLabelsMasker(labels, **plain)
    whole = [masker.fit_transform(fmri) for masker in maskers]
    joined = list(in_blocks(maskers, fmri, n_volumes * 4 * 5 * 6 * 8 / 2**20))
    assert identical(joined, whole)


def test_reference_is_kept_and_damage_to_it_is_found(monkeypatch):
    """References come from the cache; those that are lost, flipped or cut are made again."""
    made = []
    monkeypatch.setattr(experiment, "in_blocks", lambda *_: made.append(1) or in_blocks(*_))
    fmri_path, mask_paths, reference, _ = prepare_all()
    for spoil in (flip, lambda path: os.truncate(path, 300), Path.unlink, None):
        for path in Path(os.environ["MASKER_CACHE"]).glob("reference-*/1.npy"):
            (spoil or Path.touch)(path)
        assert identical(prepare_all()[2], reference)
    assert len(made) == 4
    (averages,) = prepare_reference(fmri_path, mask_paths, averages=True)
    np.testing.assert_allclose(averages[:, 0], reference[0].mean(axis=1))


def test_averages_are_compared_with_those_of_nifti_labels_masker(here, capsys):
    """Averages have a reference of their own."""
    stream = FUNCTIONS["stream_labels_masker"]
    for spoil, same in ((0, "true"), (1, "false")):
        here.spoil = [spoil]
        measure_methods(stream)
        (row,) = read_summary()
        assert (row["n_masks"], row["identical"]) == ("2", same)
        assert f"identical to NiftiLabelsMasker: {same}" in capsys.readouterr().out


KINDS = {  # name: kind of image, type of its values
    "pair.hdr": (nib.Nifti1Pair, ">i2"),
    "pair.img.gz": (nib.Nifti1Pair, "<f4"),
    "packed.nii.bz2": (nib.Nifti1Image, "<i8"),
    "UPPER.NII.GZ": (nib.Nifti1Image, ">f4"),
    "run [1].nii": (nib.Nifti1Image, "u1"),
    "50% of \u00fc's \"$~#;.nii.gz": (nib.Nifti1Image, "<u8"),
}


@pytest.mark.filterwarnings("ignore:Data array used")  # nilearn warns of 64-bit integers
@pytest.mark.parametrize("name", [*KINDS, pytest.param("long.nii", marks=pytest.mark.extensive)])
def test_every_method_takes_what_the_header_reader_takes(name, tmp_path, here, monkeypatch):
    """Any kind of NIfTI file, by any name and through a link, goes through the whole build."""
    kind, dtype = KINDS.get(name, (nib.Nifti2Image, "<f8"))
    (tmp_path / "own").mkdir()
    (tmp_path / "link").symlink_to("own")
    n_volumes = 2**15 if kind is nib.Nifti2Image else 7  # more than NIfTI-1 can count
    data = np.random.default_rng(1).integers(0, 99, (4, 5, 6, n_volumes)).astype(dtype)
    kind(data, AFFINE, dtype=data.dtype).to_filename(tmp_path / "own" / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FMRI", f"~/link/{name}")
    with parallel_config(backend="sequential"):
        measure_methods(*FUNCTIONS.values())
    assert len(read_summary()) == len(all_methods())
    assert {row["identical"] for row in read_summary()} == {"true"}


def test_method_that_may_not_fit_is_not_run(here, monkeypatch, capsys):
    """A method that might not fit is predicted, not run."""
    monkeypatch.setenv("MEMORY", "300M")
    traces = measure_methods(nifti_masker_single, FUNCTIONS["nifti_masker_parallel"])
    ran = [name for name in traces if name.endswith("single")]
    assert here.called == ran
    assert here.limits == [300, 300]
    rows = read_summary()
    assert [row["status"] for row in rows] == ["measured"] * 2 + ["predicted"] * 2
    image = Image((4, 5, 6, 7), "int16", compressed=False, slope=True, inter=True)
    for row in rows[2:]:
        method = f"{row['method']}, {row['mode']}"
        found = predict(method, image, [60, 36], 2, TYPICAL)
        assert isinstance(traces[method], NotRun)
        assert row["reason"] == (
            f"Not run. It may need {found.most_mib:,.0f} MiB, and 300 MiB are available."
        )
        assert ends(row) == [
            f"{mib:.3f}" for mib in (found.low_mib, found.peak_mib, found.most_mib)
        ]
        assert row["before_mib"] == f"{found.parts[0].mib:.3f}"
        assert (row["n_runs"], row["n_jobs"]) == ("0", "2")
        assert {row[c] for c in ("peak_file_mib", "peak_rss_mib", "seconds", "identical")} == {""}
    out = capsys.readouterr().out
    assert "NiftiMasker, path, parallel\n    not run: It may need" in out
    assert out.count("identical to NiftiMasker") == 2


def test_figure_of_several_traces(here, monkeypatch):
    """Traces and predictions are drawn on one scale; the words of a prediction fit its panel."""
    traces = measure_methods(numpy_masker_single_path)
    here.peaks = [300]
    traces |= measure_methods(numpy_masker_single_inmemory)
    monkeypatch.setenv("MEMORY", "1M")
    traces |= measure_methods(FUNCTIONS["nifti_masker_loop"])
    figure = plot_traces(traces, image_mib=70)
    titles = [ax.get_title("left") for ax in figure.axes]
    assert titles[0] == "NumPy indexing, path, single:\npeak 100 MiB"
    assert titles[2].startswith("NiftiMasker, path, loop:\npredicted peak ")
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"calling process", "with mapped files", "before the call", "the image"}
    numbers = "10 MiB before the call to a peak of 100 MiB, 0.200 s into", "peak of 300 MiB"
    words = "no child process; mapped files take 50 MiB", "not run, predicted"
    is_a_good_figure(figure, *numbers, *words, "The image has 70 MiB")
    (limits,) = {ax.get_ylim() for ax in figure.axes}
    assert limits[1] >= 300
    (words,) = figure.axes[2].texts
    assert words.get_text().startswith("Not run. It may need")
    box, frame = words.get_window_extent(), figure.axes[2].get_window_extent()
    assert frame.x0 < box.x0 < box.x1 < frame.x1
    assert frame.y0 < box.y0 < box.y1 < frame.y1


@pytest.mark.parametrize(("memory", "status"), [("1M", "predicted"), ("unlimited", "measured")])
def test_phases_of_all_methods(memory, status, tmp_path, monkeypatch, capsys):
    """The phases have the status of each method, and when it began and ended."""
    monkeypatch.setenv("MEMORY", memory)
    methods = [SINGLE[2], all_methods()[-1]]
    use_methods(monkeypatch, methods)
    unlimited = contextlib.nullcontext()  # the machine's own limit could stop a method
    unlimited.reason = ""
    monkeypatch.setattr(sequence, "Watchdog", lambda *_: unlimited)
    sequence.run_all(2, 2, pause=0, phases_path=tmp_path / "phases.csv")
    with open(tmp_path / "phases.csv", newline="") as file:
        phases = list(csv.DictReader(file))
    assert names(phases) == [(m.name, m.mode) for m in methods]
    assert [phase["status"] for phase in phases] == [status] * 2
    for phase in phases:
        assert float(phase["predicted_mib"]) > 10
        assert float(phase["began"]) <= float(phase["ended"])
        assert phase["reason"].startswith("Not run. It may need") == (status == "predicted")
    if status == "predicted":
        assert capsys.readouterr().out.count("Not run. It may need") == 2
        assert all(float(p["ended"]) - float(p["began"]) > 0.4 for p in phases)
