"""Figures, numbers in the text, and pictures: whole, legible, and what they should show."""

import csv
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import measured
import numpy as np
import pictures
import pytest
from matplotlib.collections import LineCollection
from measured import Measurements

from beyond_the_masker import model as memory_model
from beyond_the_masker.benchmark import FULL, read_benchmark
from beyond_the_masker.comparison import compare, is_outside, read_grid, table_of, tolerance
from beyond_the_masker.experiment import METHODS, title
from beyond_the_masker.figures import (
    KEYS,
    RANGE,
    name_of,
    peak_text,
    plot_growth,
    plot_memory_growth,
    plot_parts,
    plot_peaks,
    plot_phases,
    plot_points,
    plot_ratios,
    plot_scale,
    spread,
    thin,
)
from beyond_the_masker.imports import TYPICAL
from beyond_the_masker.model import METHODS as MODELS
from beyond_the_masker.model import Image, predict
from beyond_the_masker.model_check import COLUMNS, full_grid, measure_points
from beyond_the_masker.mprof_run import read_phases
from beyond_the_masker.published import PUBLISHED_GB, read_scale
from good_figures import is_a_good_figure, nothing_overlaps


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


STATUS = {
    "measured": ["measured"],
    "not run": ["predicted"],
    "mixed": ["measured", "predicted", "stopped"],
}


def phases_of(seconds, status=("measured",), pause=1.0):
    """Phases of all methods that take so many seconds each, and samples every 0.1 s."""
    phases, now = [], pause
    for i, (method, duration) in enumerate(zip(METHODS, seconds, strict=True)):
        phase = {"method": method.name, "mode": method.mode, "peak_mib": 112345.0}
        phase |= {"status": status[i % len(status)], "predicted_mib": 112345.0}
        phases.append(phase | {"began": now, "ended": now + duration})
        now += duration + pause
    times = np.arange(0, now, 0.1)
    return times, 500 + 400 * np.sin(times), phases


N = len(METHODS)
DURATIONS = {
    "as in the default build": [2, 2, 20, 13, 0.6, 0.6, 5, 2, 2] + [0.7] * (N - 9),
    "all alike": [3] * N,
    "very short": [0.01] * N,
    "one takes all the time": [0.1] * (N - 1) + [900],
    "the first takes all the time": [900] + [0.1] * (N - 1),
}


@pytest.mark.parametrize("tall", [False, True], ids=["wide", "tall"])
@pytest.mark.parametrize("seconds", DURATIONS.values(), ids=DURATIONS)
@pytest.mark.parametrize("status", STATUS.values(), ids=STATUS)
def test_numbers_and_list_are_inside_and_apart(status, seconds, tall):
    """Every method has its number and its line in the list, whatever its phase's length."""
    phases = phases_of(seconds, status)
    figure = plot_phases(*phases, "PSS", tall=tall)
    is_a_good_figure(figure, "NiftiMasker, path, parallel", "112,345 MiB")
    numbers = figure.axes[0].texts
    assert [text.get_text() for text in numbers] == [str(i + 1) for i in range(N)]
    nothing_overlaps([*figure.texts, *numbers, figure.axes[0].yaxis.label])
    listed = [text.get_text() for text in figure.texts[:-1]]
    expected = [
        words
        for number, phase in enumerate(phases[2], start=1)
        for words in (str(number), name_of(phase), peak_text(phase["status"], 112345, 112345))
    ]
    assert listed == expected
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == sum(phase["status"] == "predicted" for phase in phases[2])


def test_a_long_run_keeps_its_peaks():
    """Peaks of a long run are drawn."""
    times = np.arange(100_000) / 10
    mib = np.full(len(times), 300.0)
    peaks = [7, 50_001, 99_999]
    mib[peaks] = 5000
    drawn_times, drawn_mib = thin(times, mib)
    assert len(drawn_times) <= 1500
    assert drawn_times[drawn_mib == 5000].tolist() == times[peaks].tolist()
    assert (np.diff(drawn_times) > 0).all()
    assert thin(times[:9], mib[:9])[0].tolist() == times[:9].tolist()


def test_spread_keeps_places_that_are_apart():
    """Labels that have room stay where their phase is."""
    assert spread([1, 5, 9], 2, 0, 10).tolist() == [1, 5, 9]


def test_phases_of_mprofs_files(tmp_path):
    """The peak of a phase is the largest sample between its begin and its end."""
    lines = ["CMDLINE x"] + [f"MEM {mib} {1000 + i}" for i, mib in enumerate([9, 1, 5, 7, 2, 8, 3])]
    (tmp_path / "mprof.dat").write_text("\n".join(lines) + "\n")
    (tmp_path / "phases.csv").write_text(
        "method,mode,began,ended,status,predicted_mib,reason\n"
        "A,single,1001.5,1003.5,measured,5,\nB,parallel,1004.6,1004.7,predicted,99.5,Not run.\n"
    )
    times, mib, phases = read_phases(tmp_path / "phases.csv", tmp_path / "mprof.dat")
    assert [phase["peak_mib"] for phase in phases] == [7, 8]
    assert [phase["status"] for phase in phases] == ["measured", "predicted"]
    assert [phase["predicted_mib"] for phase in phases] == [5, 99.5]
    assert times[0] == pytest.approx(0.5)
    assert mib[0] == 1


def test_words_for_a_peak():
    """A prediction reads like a measurement."""
    assert peak_text("measured", 1234.5, 2000) == "1,234 MiB"
    assert peak_text("predicted", 5, 1999.6) == "not run; predicted 2,000 MiB"
    assert peak_text("stopped", 1234, 2000) == "stopped at 1,234 MiB"


def rows_of(status, image_mib=300, **values):
    """Rows of summary.csv for all methods, the largest numbers that a label may have to hold."""
    several = {"n_runs": "3", "peak_mib_min": "113456", "peak_mib_max": "134567"}
    once = {"n_runs": "1", "peak_mib_min": "123456", "peak_mib_max": "123456"}
    known = {"before_mib": "150", "peak_mib": "123456", "peak_file_mib": "2000"}
    rows = []
    for i, method in enumerate(METHODS):
        row = {"method": method.name, "mode": method.mode, "status": status[i % len(status)]}
        row |= {"n_masks": "6", "image_mib": str(image_mib)} | known | values
        row |= several if method.mode == "parallel" else once
        if row["status"] == "predicted":
            row |= {"n_runs": "0", "peak_file_mib": ""}
        rows.append(row)
    return rows


@pytest.mark.parametrize("image_mib", [1, 300, 100_000])
@pytest.mark.parametrize("status", STATUS.values(), ids=STATUS)
def test_chart_of_peaks_has_every_label_inside(status, image_mib):
    """The chart names each method for all masks, its peak and its range, and the image."""
    rows = rows_of(status, image_mib)
    figure = plot_peaks(rows)
    texts = figure.axes[0].texts
    shown = [row for row in rows if row["mode"] != "single"]
    assert len(texts) == len(shown) + 1
    for text, row in zip(texts[:-1], shown, strict=True):
        words = peak_text(row["status"], 123456, 123456)
        words += " (113,456–134,567)" if int(row["n_runs"]) > 1 else ""
        name, peak = re.split(r":\s", text.get_text(), maxsplit=1)
        loop = ", loop" if row["mode"] == "loop" else ""
        assert (name, peak) == (row["method"].replace(" image", "") + loop, words)
    label = figure.axes[0].xaxis.label
    assert ("predicted" in label.get_text()) == ("predicted" in {row["status"] for row in shown})
    is_a_good_figure(figure, "123,456 MiB", "NiftiMasker, path", f"{image_mib:,} MiB as a line")
    nothing_overlaps(texts)


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
    few = plot_peaks(rows_of(["measured"], peak_file_mib="30000", image_mib=150_000))
    assert len(few.axes[0].patches) == 2 * len(shown)


def test_chart_without_any_peak():
    """Numbers that are all zero are a chart as well."""
    rows = rows_of(["measured"], image_mib=0)
    for row in rows:
        row |= dict.fromkeys(row.keys() & {"before_mib", "peak_mib", "peak_file_mib"}, "0.0")
        row |= {"peak_mib_min": "0.0", "peak_mib_max": "0.0"}
    is_a_good_figure(plot_peaks(rows), "0 MiB")


# --- Prediction against measurement


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


@pytest.mark.parametrize("method", METHODS, ids=title)
@pytest.mark.parametrize("n_jobs", [1, 2, 6])
@pytest.mark.parametrize("compressed", [True, False])
def test_another_copy_in_each_process_is_noticed(method, n_jobs, compressed):
    """A library that copies the image once more in each process is outside of the range."""
    image, row = Image((50, 59, 50, 336), "float32", compressed), {"method": title(method)}
    point = compare(row | {"before_mib": 50, "peak_mib": 500}, image, [2000] * 6, n_jobs, TYPICAL)
    assert point["low_mib"] <= point["predicted_mib"] <= point["high_mib"]
    n_workers = predict(title(method), image, [2000] * 6, n_jobs, TYPICAL).n_jobs
    copies = max(n_workers, 1) * 50 * 59 * 50 * 336 * 4 / 2**20
    assert is_outside(point | {"measured_mib": point["high_mib"] + copies})


def test_points_that_are_off_are_marked():
    """The table has a line for each point, and marks those outside the range."""
    point = {"method": "A", "image": "int16.nii", "n_jobs": 2, "predicted_mib": 120}
    keys = ("measured_mib", "low_mib", "high_mib")
    lines = table_of(
        [
            point | dict(zip(keys, (160, 80, 150), strict=True)),
            point | dict(zip(keys, (190, 80, 150), strict=True)),
            point | dict(zip(keys, (2000, 2301, 2301), strict=True)),
        ]
    ).splitlines()
    assert [line.split()[3:] for line in lines[1:4]] == [
        ["80", "to", "150", "160"],
        ["80", "to", "150", "190", "<-", "outside"],
        ["2,301", "2,000", "<-", "outside"],
    ]
    assert lines[4].startswith("1 of 3 measured peaks")


def write_grid(folder):
    """Write a grid of two methods at three points, as `prediction_grid` does."""
    rows = []
    points = ("float32", ".nii.gz", 6), ("scaled", ".nii", 2), ("int16", ".nii", 1)
    for kind, ending, n_jobs in points:
        for method in ("NiftiMasker, path, parallel", "Streaming, masks, one pass"):
            values = (method, 2, kind, ending, n_jobs, "900 800", "64 64 36 336")
            scaled = kind == "scaled"
            values = (*values, scaled, scaled, 150.0, 400.0 + n_jobs, 450.0, 500.0, 1.5)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    with open(folder / "prediction.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    about = {"date": "2026-11-22", "imports": TYPICAL}
    (folder / "prediction.json").write_text(json.dumps({"prediction": about}))


def test_grid_has_every_combination(monkeypatch):
    """Each type, ending and number of workers is in the grid, and each method with it."""
    from beyond_the_masker import model_check as prediction_grid

    points = full_grid()
    for wanted in itertools.product((1, 2, 4), ("float32", "int16"), (".nii", ".nii.gz"), (2, 6)):
        assert points.count(wanted) == 1
    asked = []
    monkeypatch.setattr(prediction_grid, "write_image", lambda point, folder: "x.nii")
    monkeypatch.setattr(prediction_grid, "synthetic_atlas_path", lambda: "y.nii")
    monkeypatch.setattr(prediction_grid, "atlas_to_masks", lambda *_: ([], []))
    monkeypatch.setattr(prediction_grid, "measure_point", lambda p, *a: asked.append((p, *a)) or [])
    assert [*measure_points(points)] == []
    for image, calls in itertools.groupby(asked, lambda call: call[0][:3]):
        measured = [call[1] for call in calls]
        n_workers = len([point for point in points if point[:3] == image])
        for method in METHODS:
            assert measured.count(method) == (n_workers if method.mode == "parallel" else 1)


def test_grid_is_read_and_predicted(tmp_path):
    """A recorded peak is compared with the prediction for its own image and machine."""
    write_grid(tmp_path)
    points, about = read_grid(tmp_path)
    assert about["date"] == "2026-11-22"
    assert [point["n_jobs"] for point in points] == [6, 0, 2, 0, 0, 0]
    assert [point["measured_mib"] for point in points] == [406, 406, 402, 402, 401, 401]
    shape = (64, 64, 36, 336)
    images = [
        *[Image(shape, "float32", compressed=True)] * 2,
        *[Image(shape, "int16", compressed=False, slope=True, inter=True)] * 2,
        *[Image(shape, "int16", compressed=False)] * 2,
    ]
    for point, image in zip(points, images, strict=True):
        caller = f"caller {MODELS[point['method']].caller}"
        machine = TYPICAL | {caller: 150}  # as measured before the call
        found = predict(point["method"], image, [900, 800], max(point["n_jobs"], 1), machine)
        assert point["predicted_mib"] == found.peak_mib
        assert point["low_mib"] == found.low_mib
        assert point["high_mib"] == found.most_mib
    assert points[0]["image"] == "float32.nii.gz, 2 in one"


def test_chart_of_points(tmp_path):
    """Points and ranges are drawn where they are, and all words are seen."""
    write_grid(tmp_path)
    points, _ = read_grid(tmp_path)
    figure = plot_points({"this image": points[:2], "points of the grid": points[2:]}, "This build")
    is_a_good_figure(figure, "6 points", "401 to 406 MiB")
    drawn = [at for line in figure.axes[0].lines for at in line.get_xydata().tolist()]
    ranges = [
        path.vertices.tolist()
        for lines in figure.axes[0].collections
        if isinstance(lines, LineCollection)
        for path in lines.get_paths()
    ]
    for point in points:
        assert [point[key] for key in KEYS] in drawn
        low, high = ([point["measured_mib"], point[key]] for key in RANGE)
        assert [low, high] in ranges
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"this image", "points of the grid", "range of the prediction"} <= set(legend)
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        labelled = [tick for tick in axis.get_major_ticks() if tick.label1.get_text()]
        assert len(labelled) >= 2
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert axis.get_scale() == "log"


@pytest.mark.parametrize("n_volumes", [7, 20_000])
def test_chart_of_parts(n_volumes):
    """Bars end at the predicted peaks, and dots are at the measured ones."""
    image = Image((64, 64, 36, n_volumes), "int16", compressed=False)
    predictions = [predict(method, image, [2000] * 6, 6, TYPICAL) for method in MODELS]
    measured_mib = {p.method: 0.9 * p.peak_mib for p in predictions[::2]}
    figure = plot_parts(predictions, measured_mib)
    peak = f"{predictions[0].peak_mib:,.0f} MiB"
    is_a_good_figure(figure, f"{predictions[0].method}: predicted {peak}", "not measured")
    ax = figure.axes[0]
    nothing_overlaps(ax.texts)
    assert [text.get_text() for text in ax.texts] == list(MODELS)
    ends = {}
    for bar in ax.patches:
        y = round(bar.get_y() + bar.get_height() / 2)
        ends[y] = max(ends.get(y, 0), bar.get_x() + bar.get_width())
    assert [ends[i] for i in range(len(predictions))] == pytest.approx(
        [prediction.peak_mib for prediction in predictions]
    )
    dots = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in dots] == list(measured_mib.values())


# --- At the published scale


def write_scale(folder):
    """Write a record in which NiftiMasker was not run, and another method was stopped."""
    image = {"shape": [64, 64, 36, 1680], "stored_dtype": "float32", "mask_voxels": [2000] * 20}
    (folder / "experiment.json").write_text(json.dumps({"image": image, "date": "2026-11-22"}))
    with open(folder / "summary.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "mode", "peak_mib", "peak_rss_mib", "status"])
        for method in METHODS:
            status = "predicted" if "NiftiMasker" in method.name else "measured"
            writer.writerow([method.name, method.mode, 2048, 4096, status])


def test_published_scale(tmp_path):
    """Each method has its prediction, and its measurement where it was run."""
    write_scale(tmp_path)
    table, about = read_scale(tmp_path)
    assert about["date"] == "2026-11-22"
    assert [row["method"] for row in table] == [m for m in MODELS if MODELS[m].mode != "single"]
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
    """What was not run has words instead of a bar."""
    write_scale(tmp_path)
    table, _ = read_scale(tmp_path)
    figure = plot_scale(table)
    is_a_good_figure(figure, "published (RSS) 102", "measured not run")
    words = [text.get_text().strip() for text in figure.axes[0].texts]
    missing = [row for row in table if row["measured_rss_gib"] is None]
    assert words.count("not run") == 2 * len(missing) > 0
    assert words.count("not published") == sum(row["published_gib"] is None for row in table)
    assert [word for word in words if word in MODELS] == [row["method"] for row in table]
    nothing_overlaps(figure.axes[0].texts)


def test_page_of_the_published_scale(tmp_path):
    """The printed table has words in place of numbers for a method that was not run."""
    folder = tmp_path / "recorded" / "published_scale"
    folder.mkdir(parents=True)
    write_scale(folder)
    about = json.loads((folder / "experiment.json").read_text())
    about["image"] |= {"dtype": "float32", "in_memory_mib": 945, "n_masks": 20}
    about["machine"] = {"system": "Linux", "cores": 2, "memory_gib": 24}
    (folder / "experiment.json").write_text(json.dumps(about))
    script = Path(plot_scale.__code__.co_filename)
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"MEASURED": str(tmp_path / "measured")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    name = "NiftiMasker, path, parallel"
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(name)]
    assert line.removeprefix(name).split()[0] == "102"
    assert line.count("not run") == 2


# --- Beside the limit


@pytest.mark.parametrize("kind", ["ratios", "growth", "memory growth"])
def test_figures_of_the_benchmark(kind):
    """The figures of the benchmark are whole, and their descriptions have the numbers."""
    times, memory = read_benchmark(Path(measured.__file__).parents[1] / "recorded")
    if kind == "ratios":
        figure = plot_ratios(times, "Time beside the limit, 672 volumes")
        nothing_overlaps(figure.axes[0].texts)
        what = "methods", "Streaming, masks, one pass"
        (pairs,) = (times[key] for key in times if key[:2] == what)
        number = f"Streaming, masks, one pass {np.median(pairs[:, 0] / pairs[:, 1]):.3g}"
    elif kind == "growth":
        figure = plot_growth(times, "How time grows, full sizes", FULL)
        number = "Streaming, masks, masks from 1 to 64: "
    else:
        figure = plot_memory_growth(memory, "How memory grows, full sizes", FULL)
        number = "Streaming, masks, masks from 1 to 64: "
    is_a_good_figure(figure, number)


# --- Light and dark


SVG = (
    '<svg xmlns="x" width="72pt" viewBox="0 0 72 36"><metadata><dc:description>{label}'
    "</dc:description></metadata>"
    '<path d="M0" style="fill: {behind}"/><text style="font-family: \'DejaVu Sans\', serif; '
    'fill: #7f7f7f">a &lt; b</text><path style="stroke: #d55e00"/><rect fill="#000000"/></svg>'
)


def test_colours_of_the_theme():
    """Greys become the theme's, colours of data stay, and the type is the site's."""
    for theme, text, behind, middle in (
        ("light", "#222832", "#ffffff", "#909398"),
        ("dark", "#ced6dd", "#14181e", "#71777e"),
    ):
        svg = pictures.for_theme(SVG.format(label="", behind="#ffffff"), theme)
        assert re.findall(r"#\w{6}", svg) == [text, behind, middle, "#d55e00", text]
        assert "DejaVu" not in svg
        assert "system-ui" in svg
        own = pictures.for_theme(SVG.format(label="", behind="#000000"), theme)
        assert re.findall(r"#\w{6}", own) == ["#000000", "#7f7f7f", "#d55e00", "#000000"]


def scrape(folder, *figures):
    """Call the scraper as sphinx-gallery does; return the text and the folder of images."""
    from sphinx_gallery.scrapers import ImagePathIterator

    (folder / "images").mkdir(exist_ok=True)
    paths = ImagePathIterator(folder / "images" / "page_{0:03}.png")
    config = {"src_dir": str(folder)}
    return pictures.scraper(None, {"image_path_iterator": paths}, config), folder / "images"


def test_scraper(tmp_path):
    """Every figure is shown, and two layouts of one figure are one picture."""
    for label in ("A.\n\nFirst.", "B & C.\n\nSecond: 1 < 2.", "B & C.\n\nSecond: 1 < 2."):
        plt.figure(figsize=(4, 8)).text(0.5, 0.5, "words")
        plt.gcf().set_label(label)
    text, images = scrape(tmp_path)
    assert text.split() == [
        *("..", "picture::", "/images/page_001.svg"),
        *("..", "picture::", "/images/page_002.svg", ":tall:", "/images/page_003.svg"),
    ]
    assert plt.get_fignums() == []
    svg = (images / "page_002.svg").read_text()
    assert pictures.what_it_shows(svg) == ("B & C.", "Second: 1 < 2.")
    assert ">words</text>" in svg
    assert pictures.size(svg) == ("384", "768")
    assert [path.name for path in images.glob("*.png")] == ["page_001.png"]
    height, width, _ = plt.imread(images / "page_001.png").shape
    assert height / width == pytest.approx(pictures.THUMBNAIL, abs=0.01)


@pytest.mark.parametrize("label", ["", "A caption alone.", "\n\nA description alone."])
def test_a_figure_must_say_what_it_shows(label, tmp_path):
    """A build stops at a figure without a description or a caption."""
    plt.figure().set_label(label)
    with pytest.raises(pictures.ExtensionError, match=r"page_001\.svg: the figure's label"):
        scrape(tmp_path)


def build(folder, text, *options):
    """Build a page of one text, or again without any; return the process and the page."""
    folder.mkdir(exist_ok=True)
    if text:
        (folder / "index.rst").write_text(f"Page\n====\n\n{text}\n")
    (folder / "conf.py").write_text('extensions = ["measured", "pictures", "timeline"]\n')
    command = [sys.executable, "-m", "sphinx", "-W", "-b", "html", "-D", "measured_folder=measured"]
    folders = [str(Path(module.__file__).parent) for module in (measured, memory_model)]
    done = subprocess.run(
        [*command, "-D", "html_theme=basic", *options, ".", folder / "out"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, folder / "out" / "index.html"


def test_picture_in_a_page(tmp_path):
    """A picture has both versions, alternative text and a caption, and is loaded when seen."""
    (tmp_path / "a.svg").write_text(SVG.format(label="A.\n\nB &lt; 3.", behind="#ffffff"))
    (tmp_path / "b.svg").write_text(SVG.format(label="", behind="#000000"))
    text = ".. picture:: /a.svg\n   :tall: b.svg\n\n.. picture:: b.svg\n   :alt: D\n\n   *E*\n"
    done, page = build(tmp_path, text)
    assert done.returncode == 0, done.stderr
    first, second = re.findall(r"<figure.*?</figure>", page.read_text(), re.DOTALL)
    images = re.findall(r"<img [^>]*>", first)
    kinds = [re.search(r'class="([\w-]*)', image)[1] for image in images]
    assert kinds == ["only-light", "only-dark", "dark-light"]
    for image in images:
        assert 'alt="B &lt; 3."' in image
        assert 'loading="lazy"' in image
        assert {'width="96"', 'height="48"'} <= set(image.split())
        assert (page.parent / re.search(r'src="([^"]*)"', image)[1]).exists()
    assert re.search(r"picture-wide.*picture-narrow.*<figcaption>.*A\.", first, re.DOTALL)
    assert second.count("<img") == 1
    assert 'alt="D"' in second
    assert "<em>E</em>" in second


@pytest.mark.parametrize("label", ["", "Caption.", "\n\nDescription."])
def test_picture_without_words_fails(label, tmp_path):
    """A picture without a description or a caption is refused."""
    (tmp_path / "a.svg").write_text(SVG.format(label=label, behind="#ffffff"))
    done, _ = build(tmp_path, ".. picture:: a.svg\n")
    assert done.returncode != 0
    assert "has no description, or no caption" in done.stderr


def test_changed_picture_is_shown(tmp_path):
    """A page shows the new version of a figure, and is read again only then."""
    path = tmp_path / "a.svg"
    (tmp_path / "other.rst").write_text(":orphan:\n\nOther\n=====\n\n.. picture:: a.svg\n")
    for words in ("3 MiB", "4 MiB"):
        path.write_text(SVG.format(label=f"A.\n\nB: {words}.", behind="#ffffff"))
        done, page = build(tmp_path, ".. picture:: a.svg\n")
        assert done.returncode == 0, done.stderr
        assert page.read_text().count(words) == 2
        for image in page.parent.glob("_images/*.svg"):
            assert words in image.read_text()
    done, _ = build(tmp_path, "")
    assert "0 added, 0 changed" in done.stdout
    assert "no targets are out of date" in done.stdout


# --- In the text


def measurements(folder, *status):
    """Write a table with a row for each status, and read it as the text does."""
    columns = ["method", "mode", "n_jobs", "n_runs", "before_mib", "peak_mib", "peak_mib_min"]
    columns += ["peak_mib_max", "peak_file_mib", "peak_pss_mib", "peak_rss_mib"]
    columns += ["seconds", "seconds_min", "seconds_max", "identical", "status", "reason"]
    folder.mkdir()
    with open(folder / "summary.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for i, one in enumerate(status):
            peak = 1000 * (i + 1)
            row = ["ABCD"[i], "parallel", 2, 3, "100.4", f"{peak}.4", peak - 50, peak + 50.5]
            row += ["0.3", 2000, 3000, "2.5", "2.25", "1234.5", "true"]
            if one != "measured":
                row[3], row[8:] = 0, [""] * 7
            reason = "" if one == "measured" else f"Not run. Reason {i}."
            writer.writerow([*row, one, reason])
    return Measurements(folder)


def test_text_says_what_was_not_measured(tmp_path):
    """Each value has its unit and one rounding; what was not measured says so."""
    found = measurements(tmp_path / "numbers", "measured", "predicted", "stopped")
    texts = {
        "A / parallel / peak_mib": "1,000 MiB",
        "A / parallel / peak_mib with range": "1,000 MiB (950–1,050)",
        "A / parallel / peak_mib_min": "950 MiB",
        "A / parallel / peak_mib_max": "1,050 MiB",
        "A / parallel / above_mib": "900 MiB",
        "A / parallel / peak_file_mib": "less than 1 MiB",
        "B / parallel / peak_mib": "2,000 MiB (predicted)",
        "B / parallel / peak_mib with range": "2,000 MiB (predicted)",
        "B / parallel / peak_rss_mib": "not measured",
        "B / parallel / above_mib": "1,900 MiB (predicted)",
        "B / parallel / seconds": "not measured",
        "B / parallel / seconds with range": "not measured",
        "B / parallel / identical": "not measured",
        "C / parallel / peak_mib": "3,000 MiB (then stopped)",
        "C / parallel / seconds": "not measured",
        "A / parallel / seconds": "2.50 s",
        "A / parallel / seconds with range": "2.50 s (2.25–1,234)",
        "A / parallel / identical": "yes",
        "ratio / B / A": "2.0 (predicted)",
        "ratio / A, parallel / B": "0.5 (predicted)",
        "ratio / A / A": "1.0",
        "ratio / A / A / seconds": "1.0",
        "ratio / B / A / seconds": "not measured",
        "ratio / A / C / seconds": "not measured",
        "highest / parallel / method": "C",
        "lowest / all masks / peak_mib": "1,000 MiB",
        "B / parallel / n_jobs": "2",
    }
    assert {key: found.text(key) for key in texts} == texts
    assert found.find("highest / all masks / peak_mib").key == "C / parallel / peak_mib"


def test_a_method_without_a_row_has_a_placeholder(tmp_path):
    """A method that was not measured leaves a gap in the text; a wrong name is an error."""
    some = measurements(tmp_path / "some", "measured")
    (tmp_path / "none").mkdir()
    for found in (some, Measurements(tmp_path / "none")):
        for key in (
            "Streaming, masks / one pass / above_mib",
            "ratio / NiftiMasker, path, parallel / Streaming, masks / seconds",
        ):
            assert found.text(key) == measured.PLACEHOLDER
        for key in (
            "Streaming, mask / one pass / above_mib",
            "Streaming, masks / loop / above_mib",
        ):
            with pytest.raises(KeyError):
                found.text(key)
    with pytest.raises(KeyError):
        some.text("A / parallel / peak")


def test_a_table_of_an_earlier_version_is_not_read(tmp_path):
    """Columns that do not exist any more are measured again, not an error."""
    (tmp_path / "summary.csv").write_text("method,mode,peak_pss_mib\nA,single,5\n")
    assert Measurements(tmp_path).rows == []


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("peak_mib", "0.0", "less than 1 MiB"),
        ("above_mib", "-0.0", "less than 1 MiB"),
        ("peak_mib", "0.6", "1 MiB"),
        ("memory_gib", 23.5, "24 GiB"),
        ("seconds", "0.17", "0.170 s"),
        ("seconds", "21.34", "21.3 s"),
        ("seconds", "1234.50", "1,234 s"),
        ("pause", 0, "0 s"),
    ],
)
def test_a_value_is_rounded_once(name, value, text):
    """Small amounts are never nothing, large ones have no exponent."""
    assert measured.written(name, value) == text


def test_table_lists_the_reasons(tmp_path):
    """The table marks predictions, and lists the reasons below."""
    source = tmp_path / "source"
    source.mkdir()
    measurements(source / "measured", "measured", "predicted", "stopped")
    done, page = build(source, ".. measured-table::")
    assert done.returncode == 0, done.stderr
    page = page.read_text()
    assert len(re.findall(r'peak_mib">2,000 MiB</span> \(predicted\)', page)) == 1
    assert page.count("(then stopped)") == 2
    assert '<span class="measured" data-key="A / parallel / peak_mib">1,000 MiB</span> (950' in page
    assert len(re.findall(r'<tr class="[^"]*predicted[^"]*"', page)) == 1
    assert re.search(r'role="region" aria-label="\w+" tabindex="0">\s*<table', page)
    table, below = page.split("</table>")
    assert "Reason" not in table
    items = below.split("</li>")
    assert "B, parallel: Not run. Reason 1." in items[0]
    assert "C, parallel: Not run. Reason 2." in items[1]
    assert "A, parallel" not in below
