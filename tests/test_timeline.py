"""Memory over time: reading mprof's files, the picture, and the figure to explore."""

import shutil

import bokeh.util.paths
import matplotlib.pyplot as plt
import numpy as np
import pytest

from beyond_the_masker.draw.figures import name_of, peak_text
from beyond_the_masker.draw.timeline import (
    _explorable,
    largest,
    plot_phases,
    samples,
    timeline_html,
)
from beyond_the_masker.experiments.methods import all_methods
from beyond_the_masker.experiments.mprof_run import read_phases, read_run
from good_figures import is_a_good_figure, nothing_overlaps

N = len(all_methods())
MIXED = ["measured", "predicted", "stopped"]
CASES = [  # durations, statuses, layout
    ([2, 2, 20, 13, 0.6, 0.6, 5, 2, 2] + [0.7] * (N - 9), MIXED, False),  # as in a default build
    ([3] * N, ["measured"], True),
    ([0.01] * N, ["predicted"], False),
    ([0.1] * (N - 1) + [900], MIXED, True),
    ([900] + [0.1] * (N - 1), MIXED, True),
]
CASES[3:] = [pytest.param(*case, marks=pytest.mark.extensive) for case in CASES[3:]]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def phases_of(seconds, status, pause=1.0):
    """Phases of all methods with these durations, and samples every 0.1 s."""
    phases, now = [], pause
    for i, (method, duration) in enumerate(zip(all_methods(), seconds, strict=True)):
        phase = {"method": method.name, "mode": method.mode, "peak_mib": 112345.0}
        phase |= {"status": status[i % len(status)], "predicted_mib": 112345.0}
        phases.append(phase | {"began": now, "ended": now + duration})
        now += duration + pause
    times = np.arange(0, now, 0.1)
    return times, 500 + 400 * np.sin(times), phases


@pytest.mark.parametrize(("seconds", "status", "tall"), CASES)
def test_numbers_and_list_are_inside_and_apart(seconds, status, tall):
    """Every method has its number and its line in the list, whatever its phase's length."""
    phases = phases_of(seconds, status)
    figure = plot_phases(*phases, "PSS", tall=tall)
    is_a_good_figure(figure, "NiftiMasker, path, parallel", "112,345 MiB")
    numbers, listed = figure.axes[0].texts, figure.legends[0].get_texts()
    assert [text.get_text() for text in numbers] == [str(i + 1) for i in range(N)]
    nothing_overlaps([*listed, *numbers, figure.axes[0].yaxis.label, figure._suptitle])
    assert [text.get_text().split(maxsplit=1)[0] for text in listed] == [
        str(i + 1) for i in range(N)
    ]
    for text, phase in zip(listed, phases[2], strict=True):
        assert name_of(phase) in text.get_text()
        assert text.get_text().endswith(peak_text(phase["status"], 112345))
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == sum(phase["status"] == "predicted" for phase in phases[2])


def test_a_long_run_keeps_its_peaks():
    """Peaks of a long run are drawn."""
    mib = np.full(100_000, 300.0)
    peaks = [7, 50_001, 99_999]
    mib[peaks] = 5000
    kept = largest(mib)
    assert len(kept) <= 1500
    assert kept[mib[kept] == 5000].tolist() == peaks
    assert (np.diff(kept) > 0).all()
    assert largest(mib[:9]).tolist() == list(range(9))


def test_phases_of_mprofs_files(tmp_path):
    """The peak of a phase is the largest sample within it, or the nearest if it has none."""
    lines = ["CMDLINE x"] + [f"MEM {mib} {1000 + i}" for i, mib in enumerate([9, 1, 5, 7, 2, 8, 3])]
    (tmp_path / "mprof.dat").write_text("\n".join(lines) + "\n")
    (tmp_path / "phases.csv").write_text(
        "method,mode,began,ended,status,predicted_mib,reason\n"
        "A,single,1001.5,1003.5,measured,5,\nB,parallel,1004.6,1004.7,predicted,99.5,Not run.\n"
    )
    times, mib, phases, _ = read_phases(tmp_path / "phases.csv", tmp_path / "mprof.dat")
    found = [(phase["status"], phase["peak_mib"], phase["predicted_mib"]) for phase in phases]
    assert found == [("measured", 7, 5), ("predicted", 8, 99.5)]
    assert (times[0], mib[0]) == (pytest.approx(0.5), 1)


def write_run(folder):
    """Write the files of a run: a caller, a tracker, two workers, and then one."""
    for metric, name in (("RSS", "mprof_rss.dat"), ("PSS", "mprof_pss.dat")):
        lines = ["CMDLINE x"]
        for i in range(101):
            now = 1000 + i / 10
            workers = [300, 200] if 20 <= i <= 30 else [50] if 60 <= i <= 70 else []
            total = 100 + sum(workers) + (40 if i >= 20 else 0)
            lines.append(f"MEM {total if metric == 'RSS' else 0.9 * total} {now:.4f}")
            for pid, mib in enumerate(workers, start=7 if i < 40 else 9):
                lines.append(f"CHLD {pid} {mib} {now + 0.0003:.4f}")
            if i >= 20:
                lines.append(f"CHLD 5 40 {now + 0.0004:.4f}")
        (folder / name).write_text("\n".join(lines) + "\n")
    (folder / "phases.csv").write_text(
        "method,mode,began,ended,status,predicted_mib,reason\n"
        '"NiftiMasker, path",parallel,1001.5,1003.5,measured,5,\n'
        '"NumPy indexing, path",parallel,1004,1005,predicted,777,Not run.\n'
        '"Streaming, masks",one pass,1005.5,1007.5,measured,5,\n'
    )


def test_processes_of_a_run(tmp_path):
    """Each worker has its own method and memory, and the tracker is not a worker."""
    write_run(tmp_path)
    times, _, _, children = read_run(tmp_path)["RSS"]
    # The clock begins a second before the first method.
    moments = [np.abs(times - moment).argmin() for moment in (1, 2, 4, 6, 9)]
    assert {name: rss_mib[moments].tolist() for name, rss_mib in children.items()} == {
        "worker 1": [0, 300, 0, 50, 0],
        "worker 2": [0, 200, 0, 0, 0],
        "resource trackers": [0, 40, 40, 40, 40],
    }


def test_samples_name_method_and_processes(tmp_path):
    """Each sample has its method, or none, and its processes; the caller's RSS is the rest."""
    write_run(tmp_path)
    columns = samples(*read_run(tmp_path)["RSS"])
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (at,) = [row for row in rows if row["seconds"] == 2]
    assert at == {
        "seconds": 2,
        "method": "NiftiMasker, path, parallel",
        "RSS": 640,
        "calling process": 100,
        "resource trackers": 40,
        "worker 1": 300,
        "worker 2": 200,
    }
    methods = {row["method"] for row in rows}
    assert "NumPy indexing, path, parallel (predicted 777 MiB)" in methods
    assert "between the methods" in methods


def test_each_process_has_its_colour(tmp_path):
    """The legend names each area and the line, each in its own colour, on a narrow screen too."""
    write_run(tmp_path)
    plot = _explorable(read_run(tmp_path))
    glyphs = {item.label.value: item.renderers[0].glyph for item in plot.legend.items}
    line = glyphs.pop("all processes, PSS")
    processes = {"calling process", "resource trackers", "worker 1", "worker 2"}
    assert set(glyphs) == processes | {"a method runs"}
    assert len({glyph.fill_color for glyph in glyphs.values()} | {line.line_color}) == 6
    assert len(plot.title.text) < 30


@pytest.fixture(scope="module")
def address(tmp_path_factory, serve):
    """A page with the figure to explore, and nothing else."""
    folder = tmp_path_factory.mktemp("timeline")
    write_run(folder)
    (folder / "_static").mkdir()
    shutil.copy(bokeh.util.paths.bokehjs_path() / "js" / "bokeh.min.js", folder / "_static")
    (folder / "index.html").write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>x</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        "<body><p>The picture.</p>" + timeline_html(read_run(folder))
    )
    return serve(folder)


@pytest.mark.parametrize("width", [1000, 360])
def test_pointing_reads_a_sample(browser, address, width):
    """The pointer reads a sample; the figure fits the screen and has the colour of the text."""
    page, messages = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("console", lambda m: m.type in ("error", "warning") and messages.append(m.text))
    page.goto(address)
    assert page.locator("#timeline").is_hidden()
    page.get_by_text("Explore this figure").click()
    page.locator("#timeline canvas").first.wait_for(timeout=120_000)
    box, read = page.locator("#timeline").bounding_box(), page.locator(".bk-tooltip-content")
    for part in np.linspace(0.2, 0.8, 25):  # until bokeh listens, and the pointer meets a method
        page.mouse.move(box["x"] + part * box["width"], box["y"] + 150)
        page.wait_for_timeout(200)
        if read.count() and "NiftiMasker, path, parallel" in read.first.inner_text():
            break
    words = read.first.inner_text()
    for name in ("time", "RSS", "calling process", "worker 1", "worker 2", "resource trackers"):
        assert name in words
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert messages == []
    page.close()


def test_without_scripts_nothing_is_shown(browser, address):
    """Without scripts, the page shows neither the button nor the data."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert page.locator("body").inner_text().strip() == "The picture."
    context.close()
