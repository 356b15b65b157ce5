"""
Memory over time, with every method labelled
============================================

:doc:`/auto_examples/whole_experiment` runs all methods in sequence. On this page you will

1. run it under ``mprof``, once with its default metric and once with the proportional set
   size (:term:`PSS`),
2. draw memory over time from mprof's files, with each method shaded and labelled by the
   program, and
3. compare the :term:`peaks <peak>` of all methods.
"""

# %%
# Run it under mprof
# ------------------
# ``--include-children`` adds up the memory of all processes, and ``--multiprocess`` also
# writes down each worker by itself. By default mprof reads the resident set size (RSS), in
# which a page that several workers share counts several times. With ``--backend psutil_pss``
# it counts once. Where the system does not tell the PSS, the unique set size (USS) is read.

import subprocess
import sys
from pathlib import Path


def run_under_mprof(script, output, phases_path, backend="psutil"):
    """Run the whole experiment under mprof.

    Parameters
    ----------
    script : str or pathlib.Path
        The script to run.
    output : str or pathlib.Path
        mprof's file.
    phases_path : str or pathlib.Path
        Table that the script writes when it is through: when each method began and ended.
    backend : {"psutil", "psutil_pss", "psutil_uss"}
        RSS, PSS or USS.

    Raises
    ------
    RuntimeError
        The script did not come to its end.
    """
    for path in (output, phases_path):
        Path(path).unlink(missing_ok=True)
    command = [sys.executable, "-m", "mprof", "run", "--include-children", "--multiprocess"]
    command += ["--backend", backend, "--output", str(output)]
    command += [str(script), "--phases", str(phases_path)]
    subprocess.run(command, check=False)
    if not Path(phases_path).exists():
        raise RuntimeError(f"{script} did not come to its end; its messages are above.")


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
# A method that may not fit into memory was not run. Its place in the figure is hatched, and
# its label says what the model predicts.


def peak_text(status, measured_mib, predicted_mib):
    """Write a peak: as measured, as predicted, or as far as it went before it was stopped."""
    return {
        "measured": f"{measured_mib:,.0f} MiB",
        "predicted": f"not run; predicted {predicted_mib:,.0f} MiB",
        "stopped": f"stopped at {measured_mib:,.0f} MiB",
    }[status]


# %%
# Each phase has a number, and a list beside the figure tells its method and its peak. Numbers
# must not lie on each other, however short a phase is: they are moved apart, and a line leads
# from each to its phase. There are two layouts: the list to the right, for a wide screen, and
# below, for a phone. Of a long run, only the largest sample of each short while is drawn.

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
    """One colour for each family of methods, safe for colour-blind readers."""
    return next((color for word, color in COLORS.items() if word in method), "#707070")


def marker_of(method):
    """One marker for each family of methods, for those who do not see its colour."""
    return next((marker for word, marker in MARKERS.items() if word in method), "X")


def spread(positions, distance, low, high):
    """Move sorted positions so that they are at least so far apart, within limits."""
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
    """Keep the largest sample of each of so many parts of the time: peaks stay."""
    if len(times) <= n_parts:
        return times, mib
    parts = np.array_split(np.arange(len(times)), n_parts)
    kept = [part[np.argmax(mib[part])] for part in parts]
    return times[kept], mib[kept]


def name_of(phase):
    """Give a phase's method and mode, as short as they are clear."""
    return f"{phase['method'].replace(' image', '')}, {phase['mode']}"


def peak_of(phase):
    """Write a phase's peak."""
    return peak_text(phase["status"], phase["peak_mib"], phase["predicted_mib"])


def plot_phases(times, mib, phases, metric, tall=False):
    """Draw memory over time, each phase shaded, numbered, and listed with its peak.

    Parameters
    ----------
    times, mib, phases
        As `read_phases` gives them.
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
        f"Memory of the script and its workers over time ({metric}), recorded by mprof. Each "
        "method is shaded and numbered, and listed with its peak. Grey: between the methods.\n\n"
        f"Area chart of the {metric} of all processes together over {end:,.0f} seconds, while "
        f"{len(phases)} methods run one after the other. Their peaks are: {peaks}."
    )
    return figure


# %%
# The same to point at
# --------------------
# A page can also show the curve so that it tells, at each moment, the method and its processes.
# For that, the samples are written down as they are drawn. mprof records each child process as
# RSS, with any backend. A child that outlives a method is not a worker, but a resource tracker,
# which removes what others leave behind.


def read_children(phases, times, mprof_path):
    """Read the RSS of each child process.

    Parameters
    ----------
    phases, times
        As `read_phases` gives them.
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
    """Give the index of the sample that is nearest to each moment."""
    after = np.clip(np.searchsorted(times, at), 1, len(times) - 1)
    return after - (at - times[after - 1] < times[after] - at)


def as_timeline(times, mib, phases, children, metric):
    """Give what is drawn as plain numbers and words, so that a page can draw it, too.

    Parameters
    ----------
    times, mib, phases
        As `read_phases` gives them.
    children : list of dict
        As `read_children` gives them.
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
# The peaks in this chart come from the meter, which gives each method a process of its own,
# so that nothing lies under it but the interpreter and its imports, the faint part. The line is
# the image's size, from 0: less than that, on top of the faint part, is not possible for a method
# that has the whole image in memory.


def plot_peaks(rows):
    """Draw the peaks of the methods for all masks, PSS and RSS, and the size of the image.

    Parameters
    ----------
    rows : list of dict
        The rows of ``summary.csv``.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = [row for row in rows if row["mode"] != "single"]
    crossed = any(row["status"] == "predicted" for row in rows)
    unfinished = any(row["status"] != "measured" for row in rows)  # their labels have two lines
    pitch = 0.78 if unfinished else 0.58
    height = 1.15 + pitch * len(rows)
    figure = plt.figure(figsize=(4.2, height), layout="constrained")
    ax = figure.gca()
    bar, peaks = 0.2 / pitch, []
    for i, row in enumerate(rows):
        pss, rss = float(row["peak_pss_mib"]), float(row["peak_rss_mib"])
        color = color_of(row["method"])
        if row["status"] == "predicted":
            ax.barh(i, pss, height=bar, color="white", edgecolor=color, hatch="xxxx", lw=1, ls=":")
        else:
            ax.barh(i, rss, height=bar, color="white", edgecolor=color, hatch="////", lw=1)
            ax.barh(i, pss, height=bar, color=color)
            ax.barh(i, float(row["before_mib"]), height=bar, color="white", alpha=0.6)
        name = row["method"].replace(" image", "")
        peak = peak_text(row["status"], pss, pss)
        between = ": " if row["status"] == "measured" else ":\n"
        label = ax.text(0, i - bar / 2 - 0.03 / pitch, f"{name}{between}{peak}", va="bottom")
        label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 1})
        peaks.append(f"{row['method']}: {peak}")
        if row["status"] == "measured":
            peaks[-1] += f" (RSS {rss:,.0f} MiB)"
    image_mib = float(rows[0]["image_mib"])
    ax.axvline(image_mib, color="black", ls="--", lw=1, zorder=1.5)
    side = "left" if image_mib < 0.5 * ax.get_xlim()[1] else "right"
    bottom = len(rows) - 1 + bar / 2 + 0.34 / pitch
    words = f" the image: {image_mib:,.0f} MiB "
    ax.text(image_mib, bottom, words, ha=side, va="bottom")
    meaning = f"solid PSS, hatched RSS{', crossed: predicted' if crossed else ''}"
    ax.set(xlabel=f"MiB; {meaning}", yticks=[], ylim=(bottom, -bar / 2 - (pitch - 0.2) / pitch))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.spines[["top", "right", "left"]].set_visible(False)
    title = f"Peak memory for {rows[0]['n_masks']} masks"
    figure.suptitle(title, fontsize=12)
    figure.set_label(
        f"{title}, each method in a process of its own: PSS as solid bars, RSS as hatched bars. "
        "The faint part was there before the call: the interpreter and its imports. The dashed "
        f"line is the image itself.{' Crossed: predicted, not run.' if crossed else ''}\n\n"
        f"Bar chart of {len(rows)} methods, with the image's {image_mib:,.0f} MiB as a line. "
        f"Peak PSS of {'; '.join(peaks)}."
    )
    return figure


def save(figure, path):
    """Save a figure as SVG, with words as words, and what it shows beside them."""
    with plt.rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Description": figure.get_label()})


# %%
# This build
# ----------
# The default metric first: what ``mprof plot`` would show.

if __name__ == "__main__":
    import json

    from measured_methods import complete_summary
    from options import read_options
    from peak_memory import HAS_PSS

    options = read_options()
    rows = complete_summary()
    measured = Path(options.measured)

    def run_and_draw(metric, backend):
        """Run under mprof, draw the figure in both layouts, and write it."""
        label = {"psutil": "RSS", "psutil_pss": "PSS", "psutil_uss": "USS"}[backend]
        files = measured / f"mprof_{metric}.dat", measured / f"phases_{metric}.csv"
        run_under_mprof("whole_experiment.py", *files, backend)
        times, mib, phases = read_phases(*reversed(files))
        for layout in ("wide", "tall"):
            figure = plot_phases(times, mib, phases, label, tall=layout == "tall")
            save(figure, measured / f"memory_over_time_{metric}_{layout}.svg")
        children = read_children(phases, times, files[0])
        return as_timeline(times, mib, phases, children, label)

    rss = run_and_draw("rss", "psutil")

# %%
# And the proportional set size, which is what the machine really spends:

if __name__ == "__main__":
    pss = run_and_draw("pss", "psutil_pss" if HAS_PSS else "psutil_uss")
    (measured / "timeline.json").write_text(json.dumps([pss, rss]))
    (measured / "mprof.json").write_text(json.dumps({"mprof": {"pause": options.pause}}))

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
