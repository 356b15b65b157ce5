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
from measured_methods import (
    COLUMNS,
    complete_summary,
    identical,
    measure_methods,
    plot_traces,
    prepare_all,
    read_summary,
)
from peak_memory import Trace
from plot_nifti_masker import nifti_masker_single
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
        self.called, self.peak, self.spoil, self.error = [], 100.0, 0, None

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
    }
    assert 20 < float(row["before_mib"]) <= float(row["peak_pss_mib"])
    assert "identical to NiftiMasker: true" in capsys.readouterr().out
    (saved,) = (measured / "traces").iterdir()
    assert saved.name == "numpy-indexing-path-single.dat"
    content = mprof.read_mprofile_file(saved)
    assert max(content["mem_usage"]) == pytest.approx(trace.peak_pss_mib)
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

    method = Method("First region only", first_region_only, "parallel")
    monkeypatch.setattr(measured_methods, "METHODS", [method])
    measure_methods(first_region_only)
    (row,) = read_summary()
    assert (row["n_masks"], row["n_jobs"], row["identical"]) == ("2", "2", "false")


def test_failed_method_is_not_written_down(here):
    """A method that failed has a row with numbers."""
    prepare_all()
    here.error = MemoryError("no room")
    with pytest.raises(MemoryError, match="no room"):
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
        assert [ax.get_title() for ax in figure.axes] == [
            "NumPy indexing, path, single: peak 100 MiB PSS",
            "NumPy indexing, in-memory image, single: peak 300 MiB PSS",
        ]
        assert [ax.get_legend() is not None for ax in figure.axes] == [True, False]
        first, second = figure.axes
        assert first.get_ylim() == second.get_ylim()
        assert first.get_ylim()[1] >= 300
    finally:
        plt.close(figure)


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
