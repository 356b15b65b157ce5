"""The figures that the program labels: nothing clipped, nothing on top of each other."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest

from plot_memory_over_time import plot_peaks, plot_phases, read_phases, spread
from whole_experiment import METHODS


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def phases_of(seconds, pause=1.0):
    """Phases of all methods that take so many seconds each, and samples every 0.1 s."""
    phases, now = [], pause
    for method, duration in zip(METHODS, seconds, strict=True):
        phase = {"method": method.name, "mode": method.mode, "peak_mib": 112345.0}
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
def test_labels_are_inside_and_apart(seconds, tall):
    """Every method has its label, whole, whatever its phase's length and place."""
    figure = plot_phases(*phases_of(seconds), "PSS", tall=tall)
    figure.canvas.draw()
    page = figure.bbox
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    assert len(texts) == N
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
        "method,mode,began,ended\nA,single,1001.5,1003.5\nB,parallel,1004.6,1004.7\n"
    )
    times, mib, phases = read_phases(tmp_path / "phases.csv", tmp_path / "mprof.dat")
    assert [phase["peak_mib"] for phase in phases] == [7, 8]
    assert times[0] == pytest.approx(0.5)
    assert mib[0] == 1


@pytest.mark.parametrize("image_mib", [1, 300, 100_000])
def test_chart_of_peaks_has_every_label_inside(image_mib):
    """The chart names each method for all masks and the image, small or large."""
    rows = [
        {
            "method": method.name,
            "mode": method.mode,
            "n_masks": "6",
            "image_mib": str(image_mib),
            "before_mib": "150",
            "peak_pss_mib": "1000",
            "peak_rss_mib": "1400",
        }
        for method in METHODS
    ]
    figure = plot_peaks(rows)
    figure.canvas.draw()
    texts = figure.axes[0].texts
    assert len(texts) == sum(method.mode != "single" for method in METHODS) + 1
    for text in texts:
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1, text
