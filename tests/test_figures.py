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
import pytest
from measured import Measurements

from memory_budget import TYPICAL
from memory_model import METHODS as MODELS
from memory_model import Image, predict
from plot_memory_over_time import peak_text, plot_peaks, plot_phases, read_phases, spread
from plot_prediction import (
    KEYS,
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


def everything_is_inside(figure):
    """Check that no words of a figure are cut off."""
    figure.canvas.draw()
    ax = figure.axes[0]
    texts = [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    for legend in figure.legends:
        texts += legend.get_texts()
    for text in texts:
        if text.get_text():
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0, text
            assert box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0, text
            assert box.y1 <= figure.bbox.y1, text


def nothing_overlaps(texts):
    """Check that words do not lie on each other, by more than the room around letters."""
    boxes = [text.get_window_extent() for text in texts]
    for (one, a), (other, b) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert wide <= 1 or high <= 0.2 * min(a.height, b.height), (one, other)


@pytest.mark.parametrize("tall", [False, True], ids=["wide", "tall"])
@pytest.mark.parametrize("seconds", DURATIONS.values(), ids=DURATIONS)
@pytest.mark.parametrize("status", STATUS.values(), ids=STATUS)
def test_labels_are_inside_and_apart(status, seconds, tall):
    """Every method has its label, whole, whatever its phase's length and place."""
    phases = phases_of(seconds, status)
    figure = plot_phases(*phases, "PSS", tall=tall)
    figure.canvas.draw()
    page = figure.bbox
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    assert len(texts) == N
    for text, phase in zip(texts, phases[2], strict=True):
        words = text.get_text().replace("not run\n", "not run; ")
        assert words.endswith(peak_text(phase["status"], 112345, 112345))
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == sum(phase["status"] == "predicted" for phase in phases[2])
    for text in [*texts, figure._suptitle, figure.axes[0].xaxis.label, figure.axes[0].yaxis.label]:
        box = text.get_window_extent()
        assert page.x0 <= box.x0, text
        assert box.x1 <= page.x1, text
        assert page.y0 <= box.y0, text
        assert box.y1 <= page.y1, text
    for one, other in itertools.pairwise(texts):
        turned = np.deg2rad(one.get_rotation())
        across = np.array([np.sin(turned), np.cos(turned)])
        ends = figure.axes[0].transAxes.transform  # both are placed along one axis
        places = [t.get_transform().transform(t.get_position()) for t in (one, other)]
        distance = abs(np.dot(places[1] - places[0], across))
        one.set_rotation(0)
        height = one.get_window_extent().height
        one.set_rotation(np.rad2deg(turned))
        assert distance >= 0.95 * height, (one, other, ends)


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
        assert text.get_text() == f"{row['method'].replace(' image', '')}: {words}"
    label = figure.axes[0].xaxis.label
    assert ("predicted" in label.get_text()) == ("predicted" in {row["status"] for row in shown})
    everything_is_inside(figure)
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
    everything_is_inside(figure)
    drawn = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    for point in points:
        assert [[point[key] for key in KEYS]] in drawn
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert axis.get_scale() == "log"


@pytest.mark.parametrize("n_volumes", [7, 20_000])
def test_chart_of_parts(n_volumes):
    """Bars are not the predicted peaks, or names are cut off or overlap."""
    image = Image((64, 64, 36, n_volumes), "int16", compressed=False)
    predictions = [predict(method, image, [2000] * 6, 6, TYPICAL) for method in MODELS]
    measured_mib = {p.method: 0.9 * p.peak_pss_mib for p in predictions[::2]}
    figure = plot_parts(predictions, measured_mib)
    everything_is_inside(figure)
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
    everything_is_inside(figure)
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
    (source / "index.rst").write_text("Page\n====\n\n.. measured-table::\n")
    (source / "conf.py").write_text('extensions = ["measured"]\n')
    command = [sys.executable, "-m", "sphinx", "-W", "-b", "html", "-D", "measured_folder=measured"]
    done = subprocess.run(
        [*command, "-D", "html_theme=basic", ".", tmp_path / "out"],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(Path(measured.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("2,000 MiB (predicted)") == 1
    assert page.count("(then stopped)") == 2
    assert len(re.findall(r'<tr class="[^"]*predicted[^"]*"', page)) == 1
    table, below = page.split("</table>")
    assert "Reason" not in table
    items = below.split("</li>")
    assert "B, parallel: Not run. Reason 1." in items[0]
    assert "C, parallel: Not run. Reason 2." in items[1]
    assert "A, parallel" not in below
