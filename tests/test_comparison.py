"""Measured peaks are compared with the ranges of their predictions, and the grid is complete."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from beyond_the_masker.experiments import comparison
from beyond_the_masker.experiments.comparison import (
    COLUMNS,
    compare,
    count_of,
    full_grid,
    is_outside,
    read_grid,
    table_of,
    tolerance,
)
from beyond_the_masker.experiments.methods import all_methods
from beyond_the_masker.predict.imports import TYPICAL
from beyond_the_masker.predict.model import METHODS, Image, predict
from made_images import make_image


def test_tolerance():
    """A prediction may miss a peak by as much as the page says, beyond its range."""
    assert tolerance(100) == 30
    assert tolerance(1000) == 100
    for low, high, expected in (
        *((1000, 1000, False), (1100, 1100, False), (900, 900, False), (1101, 1101, True)),
        *((900, 1300, False), (1000, 1300, False), (1150, 1300, True), (700, 850, True)),
    ):
        point = {"measured_mib": 1000, "low_mib": low, "high_mib": high}
        assert is_outside(point) == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n_jobs", "compressed"), [(1, True), (2, False), (6, True)])
def test_another_copy_in_each_process_is_noticed(method, n_jobs, compressed):
    """A library that copies the image once more in each process is outside of the range."""
    image, row = Image((50, 59, 50, 336), "float32", compressed), {"method": method}
    point = compare(row | {"before_mib": 50, "peak_mib": 500}, image, [2000] * 6, n_jobs, TYPICAL)
    assert point["low_mib"] <= point["predicted_mib"] <= point["high_mib"]
    n_workers = predict(method, image, [2000] * 6, n_jobs, TYPICAL).n_jobs
    copies = max(n_workers, 1) * 50 * 59 * 50 * 336 * 4 / 2**20
    assert is_outside(point | {"measured_mib": point["high_mib"] + copies})


def test_points_outside_their_range_are_marked():
    """The table has a line for each point, and marks those outside the range."""
    point = {"method": "A", "image": "int16.nii", "n_jobs": 2, "predicted_mib": 120}
    keys = ("measured_mib", "low_mib", "high_mib")
    values = (160, 80, 150), (190, 80, 150), (2000, 2301, 2301)
    points = [point | dict(zip(keys, numbers, strict=True)) for numbers in values]
    _, *lines = table_of(points).splitlines()
    assert [line.split() for line in lines] == [
        ["80", "to", "150", "160", "2", "A;", "int16.nii"],
        ["80", "to", "150", "190", "2", "A;", "int16.nii", "<-", "outside"],
        ["2,301", "2,000", "2", "A;", "int16.nii", "<-", "outside"],
    ]
    assert count_of(points).startswith("1 of 3 measured peaks")


def test_grid_has_every_combination():
    """Each type, ending and number of workers is in the grid, those of an image together."""
    points = full_grid()
    for wanted in itertools.product((1, 2, 4), ("float32", "int16"), (".nii", ".nii.gz"), (2, 6)):
        assert points.count(wanted) == 1
    images = [image for image, _ in itertools.groupby(points, lambda point: point[:3])]
    assert len(set(images)) == len(images)


def test_points_are_measured(tmp_path, monkeypatch):
    """A row has the medians of the runs; a method that does not fit or is stopped has none."""
    monkeypatch.setattr(comparison, "synthetic_fmri", lambda _: make_image((24, 29, 24, 4)))
    labels = make_image(data=np.indices((24, 29, 24))[0] % 7, dtype="u1")
    labels.to_filename(tmp_path / "labels.nii")
    monkeypatch.setattr(comparison, "synthetic_atlas_path", lambda: tmp_path / "labels.nii")
    monkeypatch.setattr(comparison, "show_progress", lambda _: None)
    methods = {method.title: method for method in all_methods()}
    streaming, usual = "Streaming, masks, one pass", "NumPy indexing, path, parallel"
    monkeypatch.setattr(comparison, "all_methods", lambda: [methods[streaming], methods[usual]])
    traces = [SimpleNamespace(peak_mib=peak, exception=None) for peak in (30, 10, 20)]
    for trace in traces:
        vars(trace).update(before_mib=1, peak_pss_mib=2, peak_rss_mib=3, seconds=0.125)
    monkeypatch.setattr(comparison, "repeat", lambda call, n, _: (traces[0], traces[:n]))
    points = [comparison.Point(1, "scaled", ".nii", n_jobs) for n_jobs in (2, 6)]
    rows = list(comparison.measure_points(points, 3))
    assert [row["method"] for row in rows] == [streaming, usual, usual]
    assert [row["peak_mib"] for row in rows] == ["30.0", "20.0", "20.0"]
    assert [len(row["mask_voxels"].split()) for row in rows] == [6, 2, 6]
    assert {(row["shape"], row["slope"], row["inter"], row["seconds"]) for row in rows} == {
        ("24 29 24 4", True, True, "0.12")
    }
    monkeypatch.setattr(comparison, "repeat", lambda call, n, _: (stopped, [stopped]))
    stopped = SimpleNamespace(exception=MemoryError("stopped"))
    assert list(comparison.measure_points(points)) == []
    monkeypatch.setenv("MEMORY", "1M")
    assert list(comparison.measure_points(points)) == []


def test_grid_is_recorded_and_predicted(tmp_path, monkeypatch):
    """A recorded peak is compared with the prediction for its own image and machine."""
    usual, streaming = "NiftiMasker, path, parallel", "Streaming, masks, one pass"
    rows, shape = [], (64, 64, 36, 336)
    for method, kind, ending, n_jobs in (
        (usual, "float32", ".nii.gz", 6),
        (usual, "scaled", ".nii", 2),
        (streaming, "int16", ".nii", 1),
    ):
        values = (method, 2, kind, ending, n_jobs, "900 800", "64 64 36 336")
        values += (kind == "scaled", kind == "scaled", 150.0, 400.0 + n_jobs, 450.0, 500.0, 1.5)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    monkeypatch.setattr(comparison, "measure_points", lambda points: rows)
    monkeypatch.setattr(comparison, "calibrate", lambda: TYPICAL)
    comparison.record(tmp_path)
    found, about = read_grid(tmp_path)
    assert about["imports"] == TYPICAL
    assert [point["n_jobs"] for point in found] == [6, 2, 0]
    assert [point["measured_mib"] for point in found] == [406, 402, 401]
    assert found[0]["image"] == "float32.nii.gz, 2 in one"
    images = [
        Image(shape, "float32", compressed=True),
        Image(shape, "int16", compressed=False, slope=True, inter=True),
        Image(shape, "int16", compressed=False),
    ]
    for point, image in zip(found, images, strict=True):
        caller = f"caller {METHODS[point['method']].caller}"
        typical = TYPICAL | {caller: 150}  # as measured before the call
        expected = predict(point["method"], image, [900, 800], max(point["n_jobs"], 1), typical)
        assert point["predicted_mib"] == expected.peak_mib
        assert point["low_mib"] == expected.low_mib
        assert point["high_mib"] == expected.most_mib
