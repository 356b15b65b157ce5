"""The interactive figure of memory over time: its data, and what a browser shows."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from beyond_the_masker.figures import as_timeline
from beyond_the_masker.mprof_run import read_children, read_phases

ROOT = Path(__file__).parent.parent
BEGAN = 1000.0


def write_run(folder, metric):
    """Write what mprof and the script write: a caller, a tracker and two workers."""
    lines = ["CMDLINE x"]
    for i in range(101):
        now = BEGAN + i / 10
        workers = [300, 200] if 20 <= i <= 30 else [50] if 60 <= i <= 70 else []
        total = 100 + sum(workers) + (40 if i >= 20 else 0)
        lines.append(f"MEM {total if metric == 'RSS' else 0.9 * total} {now:.4f}")
        for pid, mib in enumerate(workers, start=7 if i < 40 else 9):
            lines.append(f"CHLD {pid} {mib} {now + 0.0003:.4f}")
        if i >= 20:
            lines.append(f"CHLD 5 40 {now + 0.0004:.4f}")
    (folder / "mprof.dat").write_text("\n".join(lines) + "\n")
    (folder / "phases.csv").write_text(
        "method,mode,began,ended,status,predicted_mib,reason\n"
        f'"NiftiMasker, path",parallel,{BEGAN + 1.5},{BEGAN + 3.5},measured,5,\n'
        f'"NumPy indexing, path",parallel,{BEGAN + 4},{BEGAN + 5},predicted,777,Not run.\n'
        f'"Streaming, masks",one pass,{BEGAN + 5.5},{BEGAN + 7.5},measured,5,\n'
    )
    times, mib, phases = read_phases(folder / "phases.csv", folder / "mprof.dat")
    children = read_children(phases, times, folder / "mprof.dat")
    return as_timeline(times, mib, phases, children, metric)


def test_processes_of_a_run(tmp_path):
    """Each worker has its own method and memory, and the tracker is not a worker."""
    run = write_run(tmp_path, "RSS")
    assert [phase["name"] for phase in run["phases"]][::2] == [
        "NiftiMasker, path, parallel",
        "Streaming, masks, one pass",
    ]
    assert [phase["run"] for phase in run["phases"]] == [True, False, True]
    assert run["phases"][1]["peak"] == "not run; predicted 777 MiB"
    found = {}
    for process in run["processes"]:
        at = process["first"] + np.flatnonzero(process["mib"])
        times = [run["times"][at[0]], run["times"][at[-1]]]
        found.setdefault(process["name"], []).append((max(process["mib"]), *times))
    # The clock begins a second before the first method.
    assert found == {
        "worker 1": [(300, 1.5, 2.5), (50, 5.5, 6.5)],
        "worker 2": [(200, 1.5, 2.5)],
        "resource tracker": [(40, 1.5, 9.5)],
    }


@pytest.fixture(scope="module")
def address(tmp_path_factory, serve):
    """A page with the data, the script and the style, and nothing else."""
    folder = tmp_path_factory.mktemp("timeline")
    data = json.dumps([write_run(folder, metric) for metric in ("PSS", "RSS")])
    for name in ("timeline.js", "custom.css"):
        shutil.copy(ROOT / "doc" / "_static" / name, folder)
    (folder / "index.html").write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>x</title>'
        '<meta name="viewport" content="width=device-width">'
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="custom.css">'
        "<style>:root { --pst-color-primary: #0a7d91 }</style><body><p>The picture.</p>"
        f'<div class="timeline"><script type="application/json">{data}</script></div>'
        '<script src="timeline.js"></script>'
    )
    return serve(folder)


@pytest.fixture(params=[1000, 360], ids=["wide", "phone"])
def page(request, browser, address):
    """The page with the drawing open; no error may be on the console."""
    context = browser.new_context(
        viewport={"width": request.param, "height": 900}, has_touch=request.param < 500
    )
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.goto(address)
    assert page.locator("svg").count() == 0
    page.get_by_role("button", name="Explore this figure").click()
    yield page
    context.close()
    assert errors == []


def readout(page):
    """What is read at the cursor, by its terms."""
    rows = page.locator(".timeline-readout div").all()
    texts = [(row.locator("dt").inner_text(), row.locator("dd").inner_text()) for row in rows]
    return {term: text.replace("\u00a0", " ") for term, text in texts}


def place(page, time):
    """Where a time is in the drawing, in pixels of the window."""
    box = page.locator(".timeline-drawing").bounding_box()
    ticks = page.locator(".timeline-axes text").all()
    known = {}
    for tick in ticks:
        x, y = (float(tick.get_attribute(name)) for name in ("x", "y"))
        if y > 300 and re.fullmatch(r"[\d.]+", tick.text_content()):
            known[float(tick.text_content())] = x
    low, high = min(known), max(known)
    scale = (known[high] - known[low]) / (high - low)
    return box["x"] + known[low] + (time - low) * scale, box["y"] + 150


def test_pointing_reads_a_sample(page):
    """The mouse reads the moment, method, processes and amounts that it points at."""
    page.mouse.move(*place(page, 2.0))
    assert readout(page) == {
        "Time": "2.0 s",
        "Method": "NiftiMasker, path, parallel",
        "All processes": "576 MiB PSS",
        "Child processes, RSS": "worker 1 300 MiB, worker 2 200 MiB, resource tracker 40 MiB",
    }
    page.mouse.move(*place(page, 3.5))
    assert readout(page)["Method"] == "NumPy indexing, path, parallel (not run; predicted 777 MiB)"
    page.mouse.move(*place(page, 8.0))
    assert readout(page)["Method"] == "between the methods"
    page.get_by_label("RSS", exact=True).check()
    page.mouse.move(*place(page, 2.0))
    assert readout(page)["All processes"] == "640 MiB RSS"
    assert readout(page)["Each"].startswith("caller 100 MiB, worker 1 300 MiB")


def test_a_finger_reads_a_sample(browser, address):
    """A tap reads a sample."""
    context = browser.new_context(viewport={"width": 360, "height": 900}, has_touch=True)
    page = context.new_page()
    page.goto(address)
    page.get_by_role("button", name="Explore this figure").tap()
    page.touchscreen.tap(*place(page, 6.0))
    assert readout(page)["Method"] == "Streaming, masks, one pass"
    context.close()


def test_keys_move_and_zoom(page):
    """The keyboard reads what the mouse reads, and screen readers announce it."""
    drawing = page.get_by_role("slider", name="Memory over time")
    drawing.focus()
    page.keyboard.press("Home")
    assert drawing.get_attribute("aria-valuenow") == "0"
    page.keyboard.press("ArrowRight")
    assert readout(page)["Time"] == "0.1 s"
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert readout(page)["Time"] == "2.1 s"
    text = drawing.get_attribute("aria-valuetext").replace("\u00a0", " ")
    assert text.startswith("2.1 s, NiftiMasker, path, parallel: 576 MiB PSS; worker 1 300 MiB")
    page.keyboard.press("PageUp")
    assert readout(page)["Method"].startswith("NumPy indexing")
    page.keyboard.press("PageUp")
    assert readout(page)["Method"].startswith("Streaming")
    page.keyboard.press("PageDown")
    assert readout(page)["Method"].startswith("NumPy indexing")

    def seen():
        return page.locator(".timeline-phase").count()

    assert seen() == 3
    for _ in range(3):
        page.keyboard.press("+")
    assert seen() == 1
    page.keyboard.press("End")  # what is read stays in sight
    assert page.locator(".timeline-cursor").get_attribute("visibility") == "visible"
    page.keyboard.press("0")
    assert seen() == 3
    page.keyboard.press("Control+ArrowLeft")
    assert readout(page)["Time"] == "9.5 s"


def test_zoom_without_keys(page):
    """Buttons, a drag and the wheel with Ctrl zoom; the wheel alone does not."""

    def seen():
        return page.locator(".timeline-phase").count()

    page.locator("select").select_option("2")
    assert seen() == 1
    assert readout(page)["Method"].startswith("Streaming")
    assert readout(page)["All processes"] == "171 MiB PSS"
    page.get_by_role("button", name="Zoom out").click()
    page.get_by_role("button", name="Zoom out").click()
    assert seen() > 1
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Earlier").click()
    page.locator("select").select_option("-1")
    assert seen() == 3
    start, end = place(page, 1.0), place(page, 2.5)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end)
    page.mouse.up()
    assert seen() == 1
    page.locator("select").select_option("0")
    page.locator("select").select_option("-1")
    page.mouse.move(*place(page, 2.0))
    page.mouse.wheel(0, -300)
    assert seen() == 3
    page.keyboard.down("Control")
    for _ in range(12):
        page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    page.wait_for_function("document.querySelectorAll('.timeline-phase').length === 1")


def test_controls_can_be_hit_and_seen(page):
    """Controls are large enough for a finger, show focus, and fit the width of the page."""
    controls = page.locator(".timeline :is(button, select, input, svg)").all()
    assert len(controls) == 9
    for control in controls:
        box = control.bounding_box()
        if control.get_attribute("type") == "radio":
            box = control.locator("..").bounding_box()
        assert min(box["width"], box["height"]) >= 24
    seen = page.evaluate("document.documentElement.scrollWidth")
    assert seen <= page.viewport_size["width"]
    page.keyboard.press("Tab")
    focused = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert focused == "solid"
    page.get_by_role("button", name="Explore this figure").click()
    assert page.locator("svg").is_hidden()


def test_without_scripts_nothing_is_shown(browser, address):
    """Without scripts, the page shows neither the button nor the data."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert page.locator("body").inner_text().strip() == "The picture."
    context.close()
