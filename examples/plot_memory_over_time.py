"""
Memory over time, with every method labelled
============================================

:doc:`/auto_examples/whole_experiment` runs all methods in sequence. On this page you will

1. run it under ``mprof``, and sample the same run with two metrics, the resident set size
   (:term:`RSS`) and the proportional set size (:term:`PSS`),
2. draw memory over time from mprof's files, with each method shaded and labelled by the
   program, and
3. compare the :term:`peaks <peak>` of all methods.
"""

# %%
# Run it under mprof
# ------------------
# ``--include-children`` adds up the memory of all processes, and ``--multiprocess`` also
# records each worker by itself. By default mprof reads the resident set size (RSS), in
# which a page that several workers share counts several times. With ``--backend psutil_pss``
# it counts once. One run provides both: while mprof samples RSS, ``memory_usage``, the
# function that mprof itself calls, samples PSS of the same processes. Where the system has no
# PSS, the unique set size (:term:`USS`) takes its place.

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from memory_profiler import memory_usage

DAY = 24 * 60 * 60


def run_under_mprof(script, folder, backend="psutil_pss"):
    """Run the whole experiment under mprof, and sample a second metric of the same run.

    Parameters
    ----------
    script : str or pathlib.Path
        The script to run.
    folder : str or pathlib.Path
        Where three files are written: ``mprof_rss.dat``, ``mprof_pss.dat``, and
        ``phases.csv``, in which the script writes when each method began and ended.
    backend : {"psutil_pss", "psutil_uss"}
        What ``mprof_pss.dat`` holds: PSS or USS.

    Returns
    -------
    bool
        Whether the script came to its end; False if the system killed it.

    Raises
    ------
    RuntimeError
        The script ended with an error.
    """
    rss_path, pss_path, phases_path = (
        Path(folder, name) for name in ("mprof_rss.dat", "mprof_pss.dat", "phases.csv")
    )
    for path in (rss_path, pss_path, phases_path):
        path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "mprof", "run", "--include-children", "--multiprocess"]
    command += ["--exit-code", "--output", str(rss_path)]
    command += [str(script), "--phases", str(phases_path)]
    with subprocess.Popen(command) as recorder:
        pid = child_of(recorder)
        how = {"backend": backend, "include_children": True, "multiprocess": True}
        try:
            with open(pss_path, "w") as file, contextlib.suppress(psutil.NoSuchProcess):
                file.write(f"CMDLINE {script} ({backend})\n")
                memory_usage(pid, timeout=DAY, stream=file, **how)  # until the script has ended
        except BaseException:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).send_signal(signal.SIGINT)  # it clears up, and mprof ends
            raise
    if not 0 <= recorder.returncode <= 128:  # a signal
        print(f"{script} was killed before its end, for want of memory perhaps.")
        return False
    if not phases_path.exists():
        raise RuntimeError(f"{script} did not come to its end; its messages are above.")
    return True


def child_of(process):
    """Wait for the process that mprof starts, and return its id; mprof's own if there is none."""
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children():
                return child.pid
        time.sleep(0.01)
    return process.pid


# %%
# Read and label
# --------------
# mprof's own reader gives the memory and the time of each sample. A phase's peak is the
# largest sample between its begin and its end.

import csv

import mprof
import numpy as np


def read_phases(phases_path, mprof_path):
    """Read mprof's samples and the phases that belong to them.

    Parameters
    ----------
    phases_path, mprof_path : str or pathlib.Path

    Returns
    -------
    times : array of shape (n_samples,)
        Seconds since a moment before the first phase.
    mib : array of shape (n_samples,)
        Memory of all processes.
    phases : list of dict
        ``method``, ``mode``, ``status`` (``measured``; ``predicted`` if it was not run;
        ``stopped``), and as numbers ``began``, ``ended`` (same clock as `times`), ``peak_mib``
        and ``predicted_mib``.
    """
    profile = mprof.read_mprofile_file(str(mprof_path))
    stamps, mib = np.array(profile["timestamp"]), np.array(profile["mem_usage"])
    with open(phases_path, newline="") as file:
        phases = list(csv.DictReader(file))
    start = float(phases[0]["began"]) - 1
    for phase in phases:
        phase["began"], phase["ended"] = (float(phase[key]) - start for key in ("began", "ended"))
        phase["predicted_mib"] = float(phase["predicted_mib"])
    times = stamps - start
    for phase in phases:
        inside = (times >= phase["began"]) & (times <= phase["ended"])
        nearest = np.abs(times - phase["ended"]).argmin()  # a phase shorter than a sample
        phase["peak_mib"] = float(mib[inside].max() if inside.any() else mib[nearest])
    shown = times >= 0
    return times[shown], mib[shown], phases


# %%
# A method that might not fit into memory was not run. Its place in the figure is hatched, and
# its label shows the model's prediction.


def peak_text(status, measured_mib, predicted_mib):
    """Return a peak as text: measured, predicted, or reached before the method was stopped."""
    return {
        "measured": f"{measured_mib:,.0f} MiB",
        "predicted": f"not run; predicted {predicted_mib:,.0f} MiB",
        "stopped": f"stopped at {measured_mib:,.0f} MiB",
    }[status]


# %%
# Each phase has a number, and a list next to the figure has its method and its peak. Numbers
# must not overlap, however short a phase is: they are moved apart, and a line leads from each to
# its phase. There are two layouts: the list to the right, for a wide screen, and below, for a
# phone. Of a long run, only the largest sample of each short interval is drawn.

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

COLORS = {
    "Streaming": "#aa4499",
    "shared memory": "#009e73",
    "NiftiMasker": "#d55e00",
    "NumPy indexing": "#0072b2",
}
MARKERS = {"Streaming": "o", "shared memory": "D", "NiftiMasker": "s", "NumPy indexing": "^"}


def color_of(method):
    """Return the colour of a family of methods, safe for colour-blind readers."""
    return next((color for word, color in COLORS.items() if word in method), "#707070")


def marker_of(method):
    """Return the marker of a family of methods, for those who do not see its colour."""
    return next((marker for word, marker in MARKERS.items() if word in method), "X")


def spread(positions, distance, low, high):
    """Move sorted positions so that they are at least `distance` apart, within limits."""
    distance = min(distance, (high - low) / len(positions))
    placed = np.array(positions, dtype=float)
    for i in range(len(placed)):
        least = low + distance / 2 if i == 0 else placed[i - 1] + distance
        placed[i] = max(placed[i], least)
    for i in reversed(range(len(placed))):
        most = high - distance / 2 if i == len(placed) - 1 else placed[i + 1] - distance
        placed[i] = min(placed[i], most)
    return placed


def thin(times, mib, n_parts=1500):
    """Keep the largest sample of each of `n_parts` parts of the time: peaks stay."""
    if len(times) <= n_parts:
        return times, mib
    parts = np.array_split(np.arange(len(times)), n_parts)
    kept = [part[np.argmax(mib[part])] for part in parts]
    return times[kept], mib[kept]


def name_of(phase):
    """Return a phase's method and mode, as short as they are clear."""
    return f"{phase['method'].replace(' image', '')}, {phase['mode']}"


def peak_of(phase):
    """Return a phase's peak as text."""
    return peak_text(phase["status"], phase["peak_mib"], phase["predicted_mib"])


def plot_phases(times, mib, phases, metric, tall=False):
    """Draw memory over time, each phase shaded, numbered, and listed with its peak.

    Parameters
    ----------
    times, mib, phases
        As `read_phases` returns them.
    metric : str
        What was summed: ``"PSS"`` or ``"RSS"``.
    tall : bool
        The list below the curve instead of beside it, for a narrow screen.

    Returns
    -------
    matplotlib.figure.Figure
    """
    # All lengths are in inches.
    line, between = 0.19, 0.09
    lines = [2 if tall or phase["status"] != "measured" else 1 for phase in phases]
    list_height = line * sum(lines) + between * (len(lines) - 1)
    if tall:
        width, height = 4.2, list_height + 4.05
        chart = 0.78, list_height + 0.75, 3.15, 2.5
        list_left, list_top = 0.1, list_height + 0.08
    else:
        width, height = 9.2, max(list_height + 0.75, 4.6)
        chart = 0.78, 0.55, 3.75, height - 1.45
        list_left, list_top = 4.7, height - 0.55
    figure = plt.figure(figsize=(width, height))
    ax = figure.add_axes(tuple(np.array(chart) / (width, height, width, height)))
    end = phases[-1]["ended"] + 1
    drawn_times, drawn_mib = thin(times, mib)
    ax.fill_between(drawn_times, drawn_mib, color="0.8", linewidth=0)
    for phase in phases:
        inside = (times >= phase["began"]) & (times <= phase["ended"])
        color = color_of(phase["method"])
        if phase["status"] == "predicted":
            style = {"fill": False, "hatch": "xxxx", "edgecolor": color}
        else:
            style = {"color": color, "alpha": 0.18}
            ax.fill_between(*thin(times[inside], mib[inside]), color=color, linewidth=0)
        ax.axvspan(phase["began"], phase["ended"], lw=0, **style)
    ax.set(xlabel="seconds", xlim=(0, end), ylim=(0, max(mib.max(), 1) * 1.05))
    ax.set_ylabel(f"MiB ({metric}, all processes)")
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.spines[["top", "right"]].set_visible(False)

    middles = [(phase["began"] + phase["ended"]) / 2 for phase in phases]
    places = spread(middles, end * 0.215 / chart[2], 0, end)
    top = list_top
    for number, phase in enumerate(phases):
        elbow = ax.get_xaxis_transform()
        at = [middles[number], places[number]], [1.01, 1 + 0.2 / chart[3]]
        ax.plot(*at, color="0.5", lw=0.8, transform=elbow, clip_on=False)
        above = (places[number], 1 + 0.23 / chart[3])
        ax.text(*above, f"{number + 1}", transform=elbow, ha="center", va="bottom")

        inches = figure.dpi_scale_trans
        style = {"color": color_of(phase["method"])}
        if phase["status"] == "predicted":
            style = {"fill": False, "hatch": "xxxx", "edgecolor": style["color"]}
        box = Rectangle((list_left, top - 0.155), 0.13, 0.13, lw=0.8, transform=inches, **style)
        figure.add_artist(box)
        left = list_left + 0.5
        beside, below = (width - 0.05, 0, "right"), (left, 1, "left")
        for (x, row, side), text in (
            ((list_left + 0.42, 0, "right"), f"{number + 1}"),
            ((left, 0, "left"), name_of(phase)),
            (beside if lines[number] == 1 else below, peak_of(phase)),
        ):
            y = top - row * line - 0.155
            figure.text(x, y, text, transform=inches, ha=side, va="baseline")
        top -= line * lines[number] + between
    figure.text(
        *(0.1, height - 0.08),
        f"Memory over time ({metric}), all methods",
        **{"transform": figure.dpi_scale_trans, "fontsize": 12, "va": "top"},
    )
    peaks = "; ".join(f"{i}, {name_of(p)}: {peak_of(p)}" for i, p in enumerate(phases, start=1))
    figure.set_label(
        f"Memory of the script and its workers over time ({metric}). Each method is shaded and "
        "numbered, and listed with its peak. Grey: between the methods. The figures of RSS and of "
        "PSS show the same run under mprof.\n\n"
        f"Area chart of the {metric} of all processes together over {end:,.0f} seconds, while "
        f"{len(phases)} methods run one after the other. Their peaks are: {peaks}."
    )
    return figure


# %%
# An interactive version
# ----------------------
# A page can also show the curve with the method and its processes at each moment. For that, the
# samples are written as they are drawn. mprof records each child process as RSS, with any backend.
# A child that outlives a method is not a worker, but a resource tracker, which removes what other
# processes leave behind.


def read_children(phases, times, mprof_path):
    """Read the RSS of each child process.

    Parameters
    ----------
    phases, times
        As `read_phases` returns them.
    mprof_path : str or pathlib.Path

    Returns
    -------
    list of dict
        ``name``, and ``rss_mib``, an array of shape (n_samples,) that is zero where the process
        was not there.
    """
    profile = mprof.read_mprofile_file(str(mprof_path))
    start = profile["timestamp"][-1] - times[-1]
    children, n_workers, n_trackers = [], [0] * len(phases), 0
    for samples in profile["children"].values():
        rss_mib, stamps = np.array(samples).T
        at = stamps - start
        during = [i for i, p in enumerate(phases) if at[0] <= p["ended"] and at[-1] >= p["began"]]
        if len(during) == 1:
            n_workers[during[0]] += 1
            name = f"worker {n_workers[during[0]]}"
        else:
            n_trackers += 1
            name = "resource tracker" + (f" {n_trackers}" if n_trackers > 1 else "")
        children.append({"name": name, "rss_mib": np.zeros(len(times))})
        children[-1]["rss_mib"][nearest(times, at)] = rss_mib
    return children


def nearest(times, at):
    """Return the index of the sample nearest to each moment."""
    after = np.clip(np.searchsorted(times, at), 1, len(times) - 1)
    return after - (at - times[after - 1] < times[after] - at)


def as_timeline(times, mib, phases, children, metric):
    """Return a drawing as plain numbers and words, so that a page can draw it, too.

    Parameters
    ----------
    times, mib, phases
        As `read_phases` returns them.
    children : list of dict
        As `read_children` returns them.
    metric : str

    Returns
    -------
    dict
    """
    kept = np.flatnonzero(np.isin(times, thin(times, mib)[0]))
    processes = []
    for child in children:
        rss_mib = child["rss_mib"][kept].round().astype(int)
        there = np.flatnonzero(rss_mib)
        if there.size:
            first, last = int(there[0]), int(there[-1])
            values = rss_mib[first : last + 1].tolist()
            processes.append({"name": child["name"], "first": first, "mib": values})
    return {
        "metric": metric,
        "times": times[kept].round(2).tolist(),
        "mib": mib[kept].round().astype(int).tolist(),
        "phases": [
            {
                "name": name_of(phase),
                "peak": peak_of(phase),
                "run": phase["status"] != "predicted",
                "color": color_of(phase["method"]),
                "began": round(phase["began"], 2),
                "ended": round(phase["ended"], 2),
            }
            for phase in phases
        ],
        "processes": processes,
    }


# %%
# Compare the peaks
# -----------------
# The peaks in this chart come from the meter, which gives each method a process of its own. It
# counts the :term:`memory in use`: what the machine cannot take back during the call. The faint
# part is the interpreter and its imports, before the call. The dashed line is the image's size,
# from 0: a method that holds the whole image needs at least that much on top of the faint part.
# A method with workers is measured three times. The line goes from the smallest peak to the
# largest: how many workers are at their own peak at the same moment is chance.


def peak_label(row):
    """Return the name of a method and its peak, with the range of several runs."""
    name = name_of(row).removesuffix(", parallel").removesuffix(", one pass")
    peak = peak_text(row["status"], *[float(row["peak_mib"])] * 2)
    if int(row["n_runs"]) > 1:
        low, high = (float(row[f"peak_mib_{end}"]) for end in ("min", "max"))
        peak += f" ({low:,.0f}–{high:,.0f})"
    return name, peak


def draw_bars(ax, row, top):
    """Draw a method's bars.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Its vertical axis is in inches, downwards.
    row : dict
    top : float

    Returns
    -------
    float
        Where the bars end.
    """
    color, thick = color_of(row["method"]), {"height": 0.18, "align": "edge"}
    empty = {"color": "white", "edgecolor": color, "lw": 1}
    peak_mib, file_mib = float(row["peak_mib"]), float(row["peak_file_mib"] or 0)
    if row["status"] == "predicted":
        ax.barh(top, peak_mib, hatch="xxxx", ls=":", **thick, **empty)
        return top + 0.18
    ax.barh(top, peak_mib, color=color, **thick)
    ax.barh(top, float(row["before_mib"]), color="white", alpha=0.6, **thick)
    if int(row["n_runs"]) > 1:
        ends = [float(row[f"peak_mib_{end}"]) for end in ("min", "max")]
        ax.plot(ends, [top + 0.09] * 2, color="black", lw=1.2, marker="|", ms=8)
    if file_mib < float(row["image_mib"]) / 4:
        return top + 0.18
    ax.barh(top + 0.21, file_mib, height=0.09, align="edge", hatch="//////", **empty)
    return top + 0.3


def plot_peaks(rows):
    """Draw the peaks of the methods for all masks, their ranges, and the size of the image.

    Parameters
    ----------
    rows : list of dict
        The rows of ``summary.csv``.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = [row for row in rows if row["mode"] != "single"]
    image_mib = float(rows[0]["image_mib"])
    width, left, right = 4.2, 0.12, 0.32  # all lengths are in inches
    figure = plt.figure(figsize=(width, 9))
    ax = figure.add_axes((left / width, 0, 1 - (left + right) / width, 1))
    top, described = 0, []
    for row in rows:
        name, peak = peak_label(row)
        label = ax.text(0, top, f"{name}: {peak}", va="top")
        label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 1})
        if label.get_window_extent().width > (width - 2 * left) * figure.dpi:
            label.set_text(f"{name}:\n{peak}")
        described.append(f"{name_of(row)}: {peak}")
        top += label.get_window_extent().height / figure.dpi + 0.03
        top = draw_bars(ax, row, top) + 0.1
    end = max(1.05 * ax.dataLim.x1, 1)
    ax.axvline(image_mib, color="black", ls="--", lw=1, zorder=0.5)
    side = "left" if image_mib < end / 2 else "right"
    beside = {"xytext": (4 if side == "left" else -4, 0), "textcoords": "offset points"}
    ax.annotate(f"the image: {image_mib:,.0f} MiB", (image_mib, top), ha=side, va="top", **beside)
    top += 0.2

    crossed = any(row["status"] == "predicted" for row in rows)
    meaning = ["MiB of memory in use (line: range of the runs)"]
    meaning += ["thin and hatched: file pages, droppable"]
    meaning += ["crossed: predicted, not run"] * crossed
    below = 0.5 + 0.17 * len(meaning)
    height = 0.4 + top + below
    figure.set_figheight(height)
    ax.set_position((left / width, below / height, 1 - (left + right) / width, top / height))
    ax.set(xlabel="\n".join(meaning), yticks=[], ylim=(top, 0), xlim=(0, end))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.spines[["top", "right", "left"]].set_visible(False)
    title = f"Peak memory for {rows[0]['n_masks']} masks"
    figure.suptitle(title, fontsize=12, y=1 - 0.1 / height, va="top")
    figure.set_label(
        f"{title}, each method in a process of its own: memory in use as solid bars. The faint "
        "part was there before the call: the interpreter and its imports. A method with workers "
        "is measured several times: the bar is the median, and the line goes from the smallest "
        "to the largest peak. Thin hatched bars: file pages, which the kernel may drop, where "
        "they exceed a quarter of the image. The dashed line is the image "
        f"itself. A loop takes one mask after the other; the other methods take all masks at once."
        f"{' Crossed: predicted, not run.' * crossed}"
        f"\n\nBar chart of {len(rows)} methods, with the image's {image_mib:,.0f} MiB as a line. "
        f"Peaks: {'; '.join(described)}."
    )
    return figure


def save(figure, path):
    """Save a figure as SVG, with words as words, and what it shows beside them."""
    with plt.rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Description": figure.get_label()})


# %%
# This build
# ----------
# The default metric first, as in ``mprof plot``:

if __name__ == "__main__":
    import json

    from measured_methods import complete_summary
    from options import read_options
    from peak_memory import HAS_PSS

    options = read_options()
    rows = complete_summary()
    measured = Path(options.measured)
    (measured / "mprof.json").write_text(json.dumps({"mprof": {"pause": options.pause}}))
    for drawing in (*measured.glob("memory_over_time_*.svg"), measured / "timeline.json"):
        drawing.unlink(missing_ok=True)
    finished = run_under_mprof(
        "whole_experiment.py", measured, "psutil_pss" if HAS_PSS else "psutil_uss"
    )

    def draw(metric, label):
        """Draw a metric in both layouts, and return it as a timeline."""
        path = measured / f"mprof_{metric}.dat"
        times, mib, phases = read_phases(measured / "phases.csv", path)
        for layout in ("wide", "tall"):
            figure = plot_phases(times, mib, phases, label, tall=layout == "tall")
            save(figure, measured / f"memory_over_time_{metric}_{layout}.svg")
        return as_timeline(times, mib, phases, read_children(phases, times, path), label)

    rss = draw("rss", "RSS") if finished else None

# %%
# And the proportional set size of the same run, which counts a shared page once:

if __name__ == "__main__":
    if finished:
        pss = draw("pss", "PSS" if HAS_PSS else "USS")
        (measured / "timeline.json").write_text(json.dumps([pss, rss]))

# %%
# .. memory-timeline:: timeline.json
#
# The peaks, method by method:

if __name__ == "__main__":
    save(plot_peaks(rows), measured / "peaks.svg")

# %%
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_prediction.py`: where these peaks come from, copy by copy.
