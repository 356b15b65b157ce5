"""The figures that the program labels: nothing clipped, nothing on top of each other."""

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

from benchmark import plot_growth, plot_memory_growth, plot_ratios, read_benchmark
from good_figures import is_a_good_figure, nothing_overlaps
from memory_budget import TYPICAL
from memory_model import METHODS as MODELS
from memory_model import Image, predict
from plot_memory_over_time import (
    name_of,
    peak_text,
    plot_peaks,
    plot_phases,
    read_phases,
    spread,
    thin,
)
from plot_prediction import (
    KEYS,
    RANGE,
    off,
    plot_parts,
    plot_points,
    predicted,
    read_grid,
    say_off,
    tolerance,
)
from plot_published_scale import PUBLISHED_GB, plot_scale, read_scale
from whole_experiment import METHODS, title


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
    """Of a long run, a peak is not drawn."""
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


@pytest.mark.parametrize("image_mib", [1, 300, 100_000])
@pytest.mark.parametrize("status", STATUS.values(), ids=STATUS)
def test_chart_of_peaks_has_every_label_inside(status, image_mib):
    """The chart names each method for all masks and the image, small or large."""
    rows = [
        {
            "method": method.name,
            "mode": method.mode,
            "n_masks": "6",
            "image_mib": str(image_mib),
            "before_mib": "150",
            "peak_pss_mib": "123456",
            "peak_rss_mib": "134567",
            "status": status[i % len(status)],
        }
        for i, method in enumerate(METHODS)
    ]
    figure = plot_peaks(rows)
    figure.canvas.draw()
    texts = figure.axes[0].texts
    assert len(texts) == sum(method.mode != "single" for method in METHODS) + 1
    for text in texts:
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1, text
    shown = [row for row in rows if row["mode"] != "single"]
    for text, row in zip(texts[:-1], shown, strict=True):
        words = peak_text(row["status"], 123456, 123456)
        name, peak = re.split(r":\s", text.get_text(), maxsplit=1)
        assert (name, peak) == (row["method"].replace(" image", ""), words)
    label = figure.axes[0].xaxis.label
    assert ("predicted" in label.get_text()) == ("predicted" in {row["status"] for row in shown})
    is_a_good_figure(figure, "123,456 MiB", "NiftiMasker, path", f"{image_mib:,} MiB as a line")
    nothing_overlaps(texts)


# --- Prediction against measurement


def test_tolerance():
    """A prediction may be off by more, or by less, than the page says."""
    assert tolerance(100) == 40
    assert tolerance(1000) == 150
    for low, high, expected in (
        *((1000, 1000, 0), (1150, 1150, 1), (850, 850, -1), (1300, 1300, 2)),
        *((900, 1300, 0), (1000, 1300, 0), (700, 1000, 0), (1150, 1300, 1), (700, 850, -1)),
    ):
        point = {"measured_mib": 1000, "low_mib": low, "high_mib": high}
        assert off(point) == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS, ids=title)
@pytest.mark.parametrize("n_jobs", [1, 2, 6])
@pytest.mark.parametrize("compressed", [True, False])
def test_another_copy_in_each_process_is_noticed(method, n_jobs, compressed):
    """The range is so wide that a library could copy the image once more."""
    image, machine = Image((50, 59, 50, 336), "float32", compressed), TYPICAL
    point = predicted(title(method), image, [2000] * 6, n_jobs, machine)
    assert point["low_mib"] <= point["predicted_mib"] <= point["high_mib"]
    n_workers = predict(title(method), image, [2000] * 6, n_jobs, machine).n_jobs
    copies = max(n_workers, 1) * 50 * 59 * 50 * 336 * 4 / 2**20
    assert abs(off(point | {"measured_mib": point["high_mib"] + copies})) > 1


def test_points_that_are_off_are_told():
    """The page does not say which methods are off."""
    point = {"method": "A", "image": "int16.nii", "n_jobs": 2}
    keys = ("measured_mib", "predicted_mib", "low_mib", "high_mib")
    text = say_off(
        [
            point | dict(zip(keys, (100, 139, 80, 150), strict=True)),
            point | dict(zip(keys, (100, 141, 80, 150), strict=True)),
            point | dict(zip(keys, (2000, 2310, 2301, 2320), strict=True)),
        ]
    )
    assert text.splitlines() == [
        "A, int16.nii, 2 workers: predicted 2,301 to 2,320 MiB, measured 2,000 MiB",
        "2 of 3 within the tolerance of the range",
        "1 of 3 within the tolerance of the likely peak",
    ]


def write_grid(folder):
    """Write a grid of two methods at three points, as `prediction_grid` does."""
    from prediction_grid import COLUMNS as GRID_COLUMNS

    rows = []
    for kind, ending, n_jobs in (("float32", ".nii.gz", 6), ("scaled", ".nii", 0), *INT16):
        for method in ("NiftiMasker, path, parallel", "Streaming, masks, one pass"):
            values = (method, 2, kind, ending, n_jobs, "900 800", "64 64 36 336")
            scaled = kind == "scaled"
            values = (*values, scaled, scaled, 150.0, 400.0 + n_jobs, 500.0, 1.5)
            rows.append(dict(zip(GRID_COLUMNS, values, strict=True)))
    with open(folder / "prediction.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, GRID_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    about = {"date": "2026-11-22", "imports": TYPICAL | {"caller": [100, 120]}}
    (folder / "prediction.json").write_text(json.dumps({"prediction": about}))


INT16 = [("int16", ".nii", 1)]


def test_grid_has_every_combination():
    """A method, a type, an ending or a number of workers is left out."""
    from prediction_grid import full_grid, methods_at, small_grid

    points = full_grid()
    for wanted in itertools.product(
        (1, 2, 4, 8), ("float32", "int16"), (".nii", ".nii.gz"), (1, 2, 6)
    ):
        assert points.count(wanted) == 1
    for grid, full in ((points, True), (small_grid(), False)):
        images = itertools.groupby(grid, lambda point: point[:3])
        measured = [
            {method for i, point in enumerate(group) for method in methods_at(point, i == 0, full)}
            for _, group in images
        ]
        assert set.union(*measured) == set(METHODS)
        assert all(len(methods) == len(METHODS) for methods in measured) == full


def test_grid_is_read_and_predicted(tmp_path):
    """What was measured is held against the prediction for another image or machine."""
    write_grid(tmp_path)
    points, about = read_grid(tmp_path)
    assert about["date"] == "2026-11-22"
    assert [point["n_jobs"] for point in points] == [6, 6, 1, 1, 1, 1]
    assert [point["measured_mib"] for point in points] == [406, 406, 400, 400, 401, 401]
    shape = (64, 64, 36, 336)
    images = [
        *[Image(shape, "float32", compressed=True)] * 2,
        *[Image(shape, "int16", compressed=False, slope=True, inter=True)] * 2,
        *[Image(shape, "int16", compressed=False)] * 2,
    ]
    for point, image in zip(points, images, strict=True):
        machine = about["imports"] | {"caller": [150, 120]}  # as measured before the call
        found, alone, together = (
            predict(point["method"], image, [900, 800], point["n_jobs"], machine, overlap)
            for overlap in (None, 0, 1)
        )
        assert point["predicted_mib"] == found.peak_pss_mib
        assert point["low_mib"] == alone.least_pss_mib
        assert point["high_mib"] == together.peak_pss_mib
    assert points[0]["image"] == "float32.nii.gz, 2 in one"
    assert points[2]["point"] == (2, "scaled", ".nii", 0)


def test_chart_of_points(tmp_path):
    """Points are drawn elsewhere than they are, or words are cut off."""
    write_grid(tmp_path)
    points, _ = read_grid(tmp_path)
    figure = plot_points({"this image": points[:2], "points of the grid": points[2:]}, "This build")
    is_a_good_figure(figure, "6 points", "400 to 406 MiB")
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
    """Bars are not the predicted peaks, or names are cut off or overlap."""
    image = Image((64, 64, 36, n_volumes), "int16", compressed=False)
    predictions = [predict(method, image, [2000] * 6, 6, TYPICAL) for method in MODELS]
    measured_mib = {p.method: 0.9 * p.peak_pss_mib for p in predictions[::2]}
    figure = plot_parts(predictions, measured_mib)
    peak = f"{predictions[0].peak_pss_mib:,.0f} MiB"
    is_a_good_figure(figure, f"{predictions[0].method}: predicted {peak}", "not measured")
    ax = figure.axes[0]
    nothing_overlaps(ax.texts)
    assert [text.get_text() for text in ax.texts] == list(MODELS)
    ends = {}
    for bar in ax.patches:
        y = round(bar.get_y() + bar.get_height() / 2)
        ends[y] = max(ends.get(y, 0), bar.get_x() + bar.get_width())
    assert [ends[i] for i in range(len(predictions))] == pytest.approx(
        [prediction.peak_pss_mib for prediction in predictions]
    )
    dots = [line for line in ax.lines if len(line.get_xdata())]
    assert [line.get_xdata()[0] for line in dots] == list(measured_mib.values())


# --- At the published scale


def write_scale(folder):
    """Write a record in which NiftiMasker was not run, and another method was stopped."""
    image = {"shape": [64, 64, 36, 1680], "stored_dtype": "float32", "mask_voxels": [2000] * 20}
    (folder / "experiment.json").write_text(json.dumps({"image": image, "date": "2026-11-22"}))
    with open(folder / "summary.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "mode", "peak_pss_mib", "peak_rss_mib", "status"])
        for method in METHODS:
            status = "predicted" if "NiftiMasker" in method.name else "measured"
            writer.writerow([method.name, method.mode, 2048, 4096, status])


def test_published_scale(tmp_path):
    """A prediction stands where a measurement should, or the reverse."""
    write_scale(tmp_path)
    table, about = read_scale(tmp_path)
    assert about["date"] == "2026-11-22"
    assert [row["method"] for row in table] == [m for m in MODELS if MODELS[m].mode != "single"]
    image = Image((64, 64, 36, 1680), "float32")
    for row in table:
        found = predict(row["method"], image, [2000] * 20, 20, TYPICAL)
        assert row["rss_gib"] == found.peak_rss_mib / 1024
        assert row["pss_gib"] == found.peak_pss_mib / 1024
        run = "NiftiMasker" not in row["method"]
        assert row["measured_rss_gib"] == (4 if run else None)
        assert row["measured_pss_gib"] == (2 if run else None)
        gb = PUBLISHED_GB.get(row["method"])
        assert row["published_gib"] == (None if gb is None else pytest.approx(gb / 1.073741824))
    assert sum(row["published_gib"] is not None for row in table) == len(PUBLISHED_GB)


def test_chart_of_the_published_scale(tmp_path):
    """What was not run has a bar, or words are cut off or overlap."""
    write_scale(tmp_path)
    table, _ = read_scale(tmp_path)
    figure = plot_scale(table)
    is_a_good_figure(figure, "published (RSS) 102.4", "measured (PSS) not run")
    words = [text.get_text().strip() for text in figure.axes[0].texts]
    missing = [row for row in table if row["measured_rss_gib"] is None]
    assert words.count("not run") == 2 * len(missing) > 0
    assert words.count("not published") == sum(row["published_gib"] is None for row in table)
    assert [word for word in words if word in MODELS] == [row["method"] for row in table]
    nothing_overlaps(figure.axes[0].texts)


def test_page_of_the_published_scale(tmp_path):
    """The printed table has a number for a method that was not run."""
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
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line.startswith("NiftiMasker, path")]
    (line,) = lines
    assert line.split()[3] == "102.4"
    assert line.count("not run") == 2


# --- Beside the limit


@pytest.mark.parametrize("kind", ["ratios", "growth", "memory growth"])
def test_figures_of_the_benchmark(kind):
    """A figure of the benchmark is cut off, or does not say what it shows."""
    times, memory = read_benchmark(Path(measured.__file__).parents[1] / "recorded")
    if kind == "ratios":
        figure = plot_ratios(times, "Time beside the limit, 672 volumes")
        nothing_overlaps(figure.axes[0].texts)
        what = "methods", "Streaming, masks, one pass"
        (pairs,) = (times[key] for key in times if key[:2] == what)
        number = f"Streaming, masks, one pass {np.median(pairs[:, 0] / pairs[:, 1]):.3g}"
    elif kind == "growth":
        figure = plot_growth(times, "How time grows, full sizes")
        number = "Streaming, masks, masks from 1 to 64: "
    else:
        figure = plot_memory_growth(memory, "How memory grows, full sizes")
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
    """A grey is not the theme's, a colour of data is another, or the type is not the site's."""
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
    """Call the scraper as sphinx-gallery does; give the text and the folder of images."""
    from sphinx_gallery.scrapers import ImagePathIterator

    (folder / "images").mkdir(exist_ok=True)
    paths = ImagePathIterator(folder / "images" / "page_{0:03}.png")
    config = {"src_dir": str(folder)}
    return pictures.scraper(None, {"image_path_iterator": paths}, config), folder / "images"


def test_scraper(tmp_path):
    """A figure is not shown, or two layouts of one figure are shown as two."""
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
    """A build goes on with a figure that has no description or no caption."""
    plt.figure().set_label(label)
    with pytest.raises(pictures.ExtensionError, match=r"page_001\.svg: the figure's label"):
        scrape(tmp_path)


def build(folder, text, *options):
    """Build a page of one text, or again without any; give the process and the page."""
    folder.mkdir(exist_ok=True)
    if text:
        (folder / "index.rst").write_text(f"Page\n====\n\n{text}\n")
    (folder / "conf.py").write_text('extensions = ["measured", "pictures", "timeline"]\n')
    command = [sys.executable, "-m", "sphinx", "-W", "-b", "html", "-D", "measured_folder=measured"]
    done = subprocess.run(
        [*command, "-D", "html_theme=basic", *options, ".", folder / "out"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(measured.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, folder / "out" / "index.html"


def test_picture_in_a_page(tmp_path):
    """A picture has one version only, no alternative text, no caption, or is loaded unseen."""
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
    """A picture that says nothing of what it shows is put into a page."""
    (tmp_path / "a.svg").write_text(SVG.format(label=label, behind="#ffffff"))
    done, _ = build(tmp_path, ".. picture:: a.svg\n")
    assert done.returncode != 0
    assert "has no description, or no caption" in done.stderr


def test_changed_picture_is_shown(tmp_path):
    """A page keeps an old version of a figure, or is read again when nothing has changed."""
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
    columns = ["method", "mode", "n_jobs", "before_mib", "peak_pss_mib", "peak_rss_mib"]
    columns += ["seconds", "identical", "status", "reason"]
    folder.mkdir()
    with open(folder / "summary.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for i, one in enumerate(status):
            row = ["ABCD"[i], "parallel", 2, 100, 1000 * (i + 1), 3000]
            known = ["2.5", "true"] if one == "measured" else ["", ""]
            reason = "" if one == "measured" else f"Not run. Reason {i}."
            writer.writerow([*row, *known, one, reason])
    return Measurements(folder)


def test_text_says_what_was_not_measured(tmp_path):
    """A predicted peak stands in the text as if it had been measured."""
    found = measurements(tmp_path / "numbers", "measured", "predicted", "stopped")
    texts = {
        "A / parallel / peak_pss_mib": "1,000 MiB",
        "B / parallel / peak_pss_mib": "2,000 MiB (predicted)",
        "B / parallel / peak_rss_mib": "3,000 MiB (predicted)",
        "B / parallel / above_mib": "1,900 MiB (predicted)",
        "B / parallel / seconds": "not measured",
        "B / parallel / identical": "not measured",
        "C / parallel / peak_pss_mib": "3,000 MiB (then stopped)",
        "C / parallel / seconds": "not measured",
        "A / parallel / seconds": "2.5 s",
        "A / parallel / identical": "yes",
        "ratio / B / A": "2.0 (predicted)",
        "ratio / A / B": "0.5 (predicted)",
        "ratio / A / A": "1.0",
        "ratio / A / A / seconds": "1.0",
        "ratio / B / A / seconds": "not measured",
        "ratio / A / C / seconds": "not measured",
        "highest / parallel / method": "C",
        "B / parallel / n_jobs": "2",
    }
    assert {key: found.text(key) for key in texts} == texts


def test_table_lists_the_reasons(tmp_path):
    """The table does not mark what is predicted, or does not say why."""
    source = tmp_path / "source"
    source.mkdir()
    measurements(source / "measured", "measured", "predicted", "stopped")
    done, page = build(source, ".. measured-table::")
    assert done.returncode == 0, done.stderr
    page = page.read_text()
    assert page.count("2,000 MiB (predicted)") == 1
    assert page.count("(then stopped)") == 2
    assert len(re.findall(r'<tr class="[^"]*predicted[^"]*"', page)) == 1
    assert re.search(r'role="region" aria-label="\w+" tabindex="0">\s*<table', page)
    table, below = page.split("</table>")
    assert "Reason" not in table
    items = below.split("</li>")
    assert "B, parallel: Not run. Reason 1." in items[0]
    assert "C, parallel: Not run. Reason 2." in items[1]
    assert "A, parallel" not in below
