"""Figures are whole and legible, and show the numbers that they were given."""

import csv
import itertools
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from beyond_the_masker.draw.figures import (
    BLUE,
    ORANGE,
    by_similarity,
    peak_text,
    plot_correlations,
    plot_lanes,
    plot_peaks,
    plot_plan,
    plot_series,
    plot_study,
    save,
)
from beyond_the_masker.experiments.comparison import PUBLISHED_GB, read_scale
from beyond_the_masker.experiments.methods import all_methods
from beyond_the_masker.experiments.prediction_figures import (
    KEYS,
    RANGE,
    plot_parts,
    plot_points,
    plot_scale,
)
from beyond_the_masker.inputs.synthetic import FMRI_SHAPE
from beyond_the_masker.predict.imports import TYPICAL
from beyond_the_masker.predict.model import METHODS, Image, predict
from good_figures import is_a_good_figure, nothing_overlaps


@pytest.fixture(autouse=True)
def _close_figures():
    """Close the figures of each test."""
    yield
    plt.close("all")


def test_words_for_a_peak():
    """A peak is measured, predicted, or reached before the method was stopped."""
    assert peak_text("measured", 1234.5) == "1,234 MiB"
    assert peak_text("predicted", 1999.6) == "predicted 2,000 MiB"
    assert peak_text("stopped", 1234) == "stopped at 1,234 MiB"


def test_saved_figure_has_its_description(tmp_path):
    """The SVG holds the label, and no date, which would differ each time."""
    figure = plt.figure()
    figure.set_label("Caption & more.\n\nDescription.")
    save(figure, tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    assert "<dc:description>Caption &amp; more.\n\nDescription.</dc:description>" in svg
    assert "<dc:date>" not in svg


def upright_lines(ax):
    """Return the style of each upright line by its place."""
    across = [line for line in ax.lines if list(line.get_ydata()) == [0, 1]]
    return {line.get_xdata()[0]: line.get_linestyle() for line in across}


def test_time_series():
    """Lines are those of the series; borders are dotted; a series without numbers is named."""
    series = {"NiftiMasker": np.arange(5.0), "streaming": np.arange(5.0) + 1}
    figure = plot_series(series | {"none": np.full(5, np.nan)}, "A region", "mean", borders=[2])
    found = "NiftiMasker from 0 to 4", "streaming from 1 to 5", "none without a number"
    is_a_good_figure(figure, *found)
    ax = figure.axes[0]
    for line, values in zip(ax.lines, series.values(), strict=False):
        np.testing.assert_array_equal(line.get_ydata(), values)
    assert upright_lines(ax) == {2: ":"}


@pytest.mark.parametrize("plot", [plot_series, plot_lanes])
@pytest.mark.parametrize("own_image", [False, True])
def test_a_line_where_another_subject_begins(plot, own_image, monkeypatch, tmp_path):
    """The build's own image joins subjects, the reader's does not; the caption says so."""
    if own_image:
        (tmp_path / "own.nii").touch()
        for name in ("FMRI", "ATLAS"):
            monkeypatch.setenv(name, str(tmp_path / "own.nii"))
    length = FMRI_SHAPE[3]
    figure = plot({"a region": np.arange(2.0 * length + 1)}, "Region averages", "signal")
    expected = {} if own_image else {length: "-", 2 * length: "-"}
    assert upright_lines(figure.axes[0]) == expected
    assert ("subject" in figure.get_label()) == (not own_image)


def test_lanes():
    """Each series has a lane of its own, above the next, in the order of the names."""
    rng = np.random.default_rng(0)
    series = {f"region {i}": 100 * i + rng.normal(size=50) for i in range(4)}
    figure = plot_lanes(series, "Region averages", "signal (SD)")
    low, high = series["region 3"].min(), series["region 3"].max()
    is_a_good_figure(figure, "4 series over 50 volumes", f"region 3 from {low:.3g} to {high:.3g}")
    lines = [line.get_ydata() for line in figure.axes[0].lines]
    for (above, below), values in zip(itertools.pairwise(lines), series.values(), strict=False):
        assert above.min() > below.max()
        np.testing.assert_allclose(np.diff(above), np.diff(values))
    assert [text.get_text() for text in figure.axes[0].texts] == list(series)
    nothing_overlaps(figure.axes[0].texts)


@pytest.mark.parametrize("n_regions", [2, 60])
def test_matrix_of_correlations(n_regions):
    """The colours are centred on 0, and regions of one network are next to each other."""
    rng = np.random.default_rng(0)
    network = np.arange(n_regions) % 3
    series = rng.normal(size=(3, 200))[network] + rng.normal(size=(n_regions, 200))
    correlations = np.corrcoef(series)
    figure = plot_correlations(correlations, "Correlations of all regions")
    pairs = correlations[np.triu_indices(n_regions, 1)]
    numbers = f"{n_regions} regions", f"from {pairs.min():.2f} to {pairs.max():.2f}"
    is_a_good_figure(figure, *numbers)
    (image,) = figure.axes[0].images
    assert image.norm.vmin == -image.norm.vmax == -np.abs(pairs).max()
    assert [to_hex(image.cmap(at)) for at in (0.0, 1.0)] == [BLUE, ORANGE]
    order = by_similarity(correlations)
    assert sorted(order) == list(range(n_regions))
    np.testing.assert_array_equal(image.get_array(), correlations[np.ix_(order, order)])
    assert np.count_nonzero(np.diff(network[order])) == min(n_regions, 3) - 1


def write_results(folder, n_subjects, n_regions):
    """Write the records of two runs of some subjects; return the table, in which one run failed."""
    rows, rng = [], np.random.default_rng(0)
    for name in (f"sub-{i:03d}_run-{run}" for i in range(1, n_subjects + 1) for run in (1, 2)):
        file = folder / f"{name}_atlas-A_timeseries.tsv"
        shares = 0.6 + 0.4 * rng.random(n_regions)
        coverage = {f"region_{i}": share for i, share in enumerate(shares)}
        coverage |= {"region_0": None, "region_1": 0.25} if name.startswith("sub-002_run-2") else {}
        record = {"Coverage": coverage, "Regions": list(coverage)}
        file.with_suffix(".json").write_text(json.dumps(record, sort_keys=True))
        row = {"file": str(file), "atlas": "A", "status": "done", "kept": 120, "mean_fd": 0.1}
        rows += [row, row | {"atlas": "B"}]
    rows[-2] |= {"file": "", "status": "failed", "kept": np.nan, "mean_fd": np.nan}
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("n_subjects", "n_regions"), [(2, 3), (8, 64), (120, 400)])
def test_picture_of_a_study(tmp_path, n_subjects, n_regions):
    """Each image has a row, each region a column, and what is n/a has a cross."""
    table = write_results(tmp_path, n_subjects, n_regions)
    figure = plot_study(table, "A")
    numbers = f"{n_regions} regions", "0.10 to 0.10 mm", f"1 of {2 * n_subjects} images failed"
    is_a_good_figure(figure, *numbers)
    above, below, _ = figure.axes
    assert above.images[0].get_array().shape == (2 * n_subjects - 1, n_regions)
    crosses = [[1, 3]] if n_subjects > 2 else []  # of two subjects, the last run failed
    assert above.lines[0].get_xydata().tolist() == crosses
    assert 1 <= len(above.get_yticks()) <= 12
    nothing_overlaps(above.get_yticklabels())
    assert len(below.lines[0].get_xdata()) == 2 * n_subjects


def test_picture_of_nothing(tmp_path):
    """An atlas without results is named."""
    with pytest.raises(ValueError, match=r"no results of C, only of .*A"):
        plot_study(write_results(tmp_path, 2, 3), "C")


def test_plan():
    """The hours of the slower part are written beside each number of workers."""
    hours = {"processors": [60.0, 0.4, 0.04], "storage": [6.0, 0.5, 0.3]}
    hours = pd.DataFrame(hours, index=[2, 320, 3200]).assign(hours=[60.0, 0.5, 0.3])
    figure = plot_plan(hours)
    is_a_good_figure(figure, "3,200 workers: processors 0.04 h, storage 0.3 h")
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.texts] == ["60 h", "0.5 h", "0.3 h"]
    nothing_overlaps(ax.texts)
    for line, text in itertools.product(ax.lines, ax.texts):
        path = line.get_path().transformed(line.get_transform())
        assert not path.intersects_bbox(text.get_window_extent(), filled=False), (line, text)


def rows_of(status, image_mib=300, **values):
    """Rows of summary.csv for all methods, with the largest numbers that a label may hold."""
    several = {"n_runs": "3", "peak_mib_min": "113456", "peak_mib_max": "134567"}
    once = {"n_runs": "1", "peak_mib_min": "123456", "peak_mib_max": "123456"}
    known = {"before_mib": "150", "peak_mib": "123456", "peak_file_mib": "2000"}
    rows = []
    for i, method in enumerate(all_methods()):
        row = {"method": method.name, "mode": method.mode, "status": status[i % len(status)]}
        row |= {"n_masks": "6", "image_mib": str(image_mib)} | known | values
        row |= several if method.mode == "parallel" else once
        if row["status"] == "predicted":
            row |= {"n_runs": "0", "peak_file_mib": ""}
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("status", "image_mib"),
    [(["measured"], 1), (["predicted"], 100_000), (["measured", "predicted", "stopped"], 300)],
)
def test_chart_of_peaks_has_every_label_inside(status, image_mib):
    """The chart names each method for all masks, its peak and its range, and the image."""
    rows = rows_of(status, image_mib)
    figure = plot_peaks(rows)
    *texts, image = figure.axes[0].texts
    shown = [row for row in rows if row["mode"] != "single"]
    for text, row in zip(texts, shown, strict=True):
        name, peak = re.split(r":\s", text.get_text())
        assert name == f"{row['method'].replace(' image', '')}, {row['mode']}"
        assert peak == peak_text(row["status"], 123456)
    assert image.get_text().strip() == f"the image: {image_mib:,} MiB"
    label = figure.axes[0].xaxis.label
    assert ("predicted" in label.get_text()) == ("predicted" in {row["status"] for row in shown})
    is_a_good_figure(figure, "123,456 MiB", "NiftiMasker, path", f"{image_mib:,} MiB as a line")
    nothing_overlaps([*texts, image])
    labels = [text.get_bbox_patch().get_window_extent() for text in texts]
    bars = [bar.get_window_extent() for bar in figure.axes[0].patches]
    assert not any(label.overlaps(bar) for label in labels for bar in bars)


def test_chart_of_peaks_shows_the_numbers():
    """Bars end at the median and at the level before, lines at the ends of the range."""
    rows = rows_of(["measured"], peak_file_mib="40000", image_mib=150_000)
    figure = plot_peaks(rows)
    shown = [row for row in rows if row["mode"] != "single"]
    bars = [bar.get_width() for bar in figure.axes[0].patches]
    assert [bars.count(width) for width in (123456, 150, 40000)] == [len(shown)] * 3
    lines = [list(line.get_xdata()) for line in figure.axes[0].lines]
    parallel = sum(row["mode"] == "parallel" for row in shown)
    assert lines.count([113456, 134567]) == parallel


def test_chart_of_points():
    """Points and ranges are drawn where they are, and all words are seen."""
    methods = "NiftiMasker, path, parallel", "Streaming, masks, one pass"
    points = [
        {"method": methods[i % 2]}
        | {key: 400.0 + 7 * i + k for k, key in enumerate((*KEYS, *RANGE))}
        for i in range(6)
    ]
    figure = plot_points(points, "This build")
    is_a_good_figure(figure, "6 points", "400 to 435 MiB")
    ax = figure.axes[0]
    drawn = [at for line in ax.lines for at in line.get_xydata().tolist()]
    lines = [one for one in ax.collections if isinstance(one, LineCollection)]
    ranges = [path.vertices.tolist() for one in lines for path in one.get_paths()]
    for point in points:
        assert [point[key] for key in KEYS] in drawn
        assert [[point["measured_mib"], point[key]] for key in RANGE] in ranges
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"NiftiMasker", "Streaming", "range of the prediction"} <= set(legend)
    for axis in (ax.xaxis, ax.yaxis):
        assert axis.get_scale() == "log"
        assert sum(bool(tick.label1.get_text()) for tick in axis.get_major_ticks()) >= 2


@pytest.mark.parametrize("n_volumes", [7, 20_000])
def test_chart_of_parts(n_volumes):
    """Bars end at the predicted peaks, and dots are at the measured ones."""
    image = Image((64, 64, 36, n_volumes), "int16", compressed=False)
    predictions = [predict(method, image, [2000] * 6, 6, TYPICAL) for method in METHODS]
    measured_mib = {p.method: 0.9 * p.peak_mib for p in predictions[::2]}
    figure = plot_parts(predictions, measured_mib)
    peak = f"{predictions[0].peak_mib:,.0f} MiB"
    is_a_good_figure(figure, f"{predictions[0].method}: predicted {peak}", "not measured")
    ax = figure.axes[0]
    nothing_overlaps(ax.texts)
    assert [text.get_text() for text in ax.texts] == list(METHODS)
    ends = {}
    for bar in ax.patches:
        y = round(bar.get_y() + bar.get_height() / 2)
        ends[y] = max(ends.get(y, 0), bar.get_x() + bar.get_width())
    expected = [prediction.peak_mib for prediction in predictions]
    assert [ends[i] for i in range(len(predictions))] == pytest.approx(expected)
    dots = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in dots] == list(measured_mib.values())


def write_scale(folder):
    """Write a record in which NiftiMasker was not run."""
    about = {
        "image": {"shape": [64, 64, 36, 1680], "stored_dtype": "float32", "dtype": "float32"},
        "machine": {"system": "Linux", "cores": 2, "memory_gib": 24},
        "date": "2026-11-22",
    }
    about["image"] |= {"mask_voxels": [2000] * 20, "n_masks": 20, "in_memory_mib": 945}
    (folder / "experiment.json").write_text(json.dumps(about))
    with open(folder / "summary.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "mode", "peak_mib", "peak_rss_mib", "status", "before_mib"])
        for method in all_methods():
            status = "predicted" if "NiftiMasker" in method.name else "measured"
            writer.writerow([method.name, method.mode, 2048, 4096, status, 30])


def test_published_scale(tmp_path):
    """Each method has its prediction, and its measurement where it was run."""
    write_scale(tmp_path)
    table, about = read_scale(tmp_path)
    assert about["date"] == "2026-11-22"
    assert [row["method"] for row in table] == [m for m in METHODS if METHODS[m].mode != "single"]
    image = Image((64, 64, 36, 1680), "float32")
    for row in table:
        found = predict(row["method"], image, [2000] * 20, 20, TYPICAL)
        assert row["predicted_gib"] == found.peak_mib / 1024
        run = "NiftiMasker" not in row["method"]
        assert row["measured_rss_gib"] == (4 if run else None)
        assert row["measured_gib"] == (2 if run else None)
        gb = PUBLISHED_GB.get(row["method"])
        assert row["published_gib"] == (None if gb is None else pytest.approx(gb / 1.073741824))
    assert sum(row["published_gib"] is not None for row in table) == len(PUBLISHED_GB)


def test_chart_of_the_published_scale(tmp_path):
    """A method that was not run has words instead of a bar."""
    write_scale(tmp_path)
    table, _ = read_scale(tmp_path)
    figure = plot_scale(table)
    is_a_good_figure(figure, "published (RSS) 102", "measured not run")
    words = [text.get_text().strip() for text in figure.axes[0].texts]
    missing = [row for row in table if row["measured_rss_gib"] is None]
    assert words.count("not run") == 2 * len(missing) > 0
    assert words.count("not published") == sum(row["published_gib"] is None for row in table)
    assert [word for word in words if word in METHODS] == [row["method"] for row in table]
    nothing_overlaps(figure.axes[0].texts)
