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
# Labels must not lie on each other, however short a phase is. They are moved apart, and a
# line leads from each to its phase. There are two layouts: time to the right, for a wide
# screen, and time downwards, for a phone.

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

COLORS = {
    "Streaming": "#aa4499",
    "shared memory": "#009e73",
    "NiftiMasker": "#d55e00",
    "NumPy indexing": "#0072b2",
}


def color_of(method):
    """One colour for each family of methods, safe for colour-blind readers."""
    return next((color for word, color in COLORS.items() if word in method), "#7f7f7f")


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


def plot_phases(times, mib, phases, metric, tall=False):
    """Draw memory over time, each phase shaded and labelled with its method and peak.

    Parameters
    ----------
    times, mib, phases
        As `read_phases` gives them.
    metric : str
        What was summed: ``"PSS"`` or ``"RSS"``.
    tall : bool
        Time downwards, for a narrow screen.

    Returns
    -------
    matplotlib.figure.Figure
    """
    length = 0.65 * len(phases) + 0.6 if tall else 0.49 * len(phases)  # of the axis, in inches
    length = max(length, 6.5)
    if tall:
        figure = plt.figure(figsize=(4, length + 1.1))
        ax = figure.add_axes((0.16, 0.57 / (length + 1.1), 0.39, length / (length + 1.1)))
    else:
        figure = plt.figure(figsize=(length + 3.1, 6))
        ax = figure.add_axes((0.85 / (length + 3.1), 0.09, length / (length + 3.1), 0.50))
    fill, span = (ax.fill_betweenx, ax.axhspan) if tall else (ax.fill_between, ax.axvspan)
    end = phases[-1]["ended"] + 1
    fill(times, mib, color="0.8", linewidth=0)
    for phase in phases:
        inside = (times >= phase["began"]) & (times <= phase["ended"])
        color = color_of(phase["method"])
        if phase["status"] == "predicted":
            span(phase["began"], phase["ended"], fill=False, hatch="xxxx", edgecolor=color, lw=0)
            continue
        span(phase["began"], phase["ended"], color=color, alpha=0.18, lw=0)
        fill(times, mib, where=inside, color=color, linewidth=0)
    time_axis, memory_axis = (ax.yaxis, ax.xaxis) if tall else (ax.xaxis, ax.yaxis)
    time_axis.set_label_text("seconds")
    memory_axis.set_label_text(f"MiB ({metric}, all processes)")
    memory_axis.set_major_formatter("{x:,.0f}")
    memory_axis.set_major_locator(MaxNLocator(3 if tall else 6))
    highest = max(mib.max(), 1) * 1.05
    ax.set(ylim=(end, 0), xlim=(0, highest)) if tall else ax.set(xlim=(0, end), ylim=(0, highest))
    ax.spines[["top", "right"]].set_visible(False)

    middles = [(phase["began"] + phase["ended"]) / 2 for phase in phases]
    places = spread(middles, end * (0.64 if tall else 0.47) / length, 0, end)
    for phase, middle, place in zip(phases, middles, places, strict=True):
        color = color_of(phase["method"])
        name = f"{phase['method'].replace(' image', '')}, {phase['mode']}"
        peak = peak_text(phase["status"], phase["peak_mib"], phase["predicted_mib"])
        if tall:
            name = "\n".join(name.split(", ", maxsplit=1))
            peak = peak.replace("; ", "\n")
        anchor, elbow, text = [
            (1 + step, at) if tall else (at, 1 + step)
            for step, at in ((0, middle), (0.06, place), (0.09, place))
        ]
        both = ax.get_yaxis_transform() if tall else ax.get_xaxis_transform()
        ax.plot(*zip(anchor, elbow, strict=True), color=color, lw=1, transform=both, clip_on=False)
        ax.text(
            *text,
            f"{name}\n{peak}",
            transform=both,
            rotation=0 if tall else 42,
            rotation_mode="anchor",
            ha="left",
            va="center",
            fontsize=8.5 if tall else 10,
            linespacing=1.1,
            color="0.1",
        )
    figure.suptitle(
        f"Memory over time ({metric}), all methods",
        y=1 - 0.1 / figure.get_figheight(),
        fontsize=11 if tall else 13,
    )
    return figure


# %%
# Compare the peaks
# -----------------
# The peaks in this chart come from the meter, which gives each method a process of its own,
# so that nothing lies under it but the interpreter and its imports, the pale part. The line is
# the image's size: less than that, on top of the pale part, is not possible for a method that
# has the whole image in memory.


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
    figure = plt.figure(figsize=(4.2, 0.9 + 0.6 * len(rows)), layout="constrained")
    ax = figure.gca()
    for i, row in enumerate(rows):
        pss, rss = float(row["peak_pss_mib"]), float(row["peak_rss_mib"])
        color = color_of(row["method"])
        if row["status"] == "predicted":
            ax.barh(i, pss, height=0.42, color="white", edgecolor=color, hatch="xxxx", lw=1, ls=":")
        else:
            ax.barh(i, rss, height=0.42, color="white", edgecolor=color, hatch="////", lw=1)
            ax.barh(i, pss, height=0.42, color=color)
            ax.barh(i, float(row["before_mib"]), height=0.42, color="white", alpha=0.6)
        name = row["method"].replace(" image", "")
        text = f"{name}: {peak_text(row['status'], pss, pss)}"
        label = ax.text(0, i - 0.29, text, fontsize=8.5, va="bottom")
        label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 1})
    image_mib = float(rows[0]["image_mib"])
    ax.axvline(image_mib, color="black", ls="--", lw=1, zorder=1.5)
    side = "left" if image_mib < 0.6 * ax.get_xlim()[1] else "right"
    ax.text(image_mib, len(rows) - 0.55, f" the image: {image_mib:,.0f} MiB ", fontsize=9, ha=side)
    crossed = any(row["status"] == "predicted" for row in rows)
    meaning = f"solid PSS, hatched RSS{', crossed: predicted' if crossed else ''}"
    ax.set(xlabel=f"MiB; {meaning}", yticks=[], ylim=(len(rows) - 0.35, -0.75))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_title(f"Peak memory for {rows[0]['n_masks']} masks", fontsize=11)
    return figure


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
        """Run under mprof and write the figure in both layouts; leave the wide one open."""
        label = {"psutil": "RSS", "psutil_pss": "PSS", "psutil_uss": "USS"}[backend]
        files = measured / f"mprof_{metric}.dat", measured / f"phases_{metric}.csv"
        run_under_mprof("whole_experiment.py", *files, backend)
        phases = read_phases(*reversed(files))
        for layout in ("tall", "wide"):
            figure = plot_phases(*phases, label, tall=layout == "tall")
            figure.savefig(measured / f"memory_over_time_{metric}_{layout}.svg")
            if layout == "tall":
                plt.close(figure)

    run_and_draw("rss", "psutil")

# %%
# And the proportional set size, which is what the machine really spends:

if __name__ == "__main__":
    run_and_draw("pss", "psutil_pss" if HAS_PSS else "psutil_uss")
    (measured / "mprof.json").write_text(json.dumps({"mprof": {"pause": options.pause}}))

# %%
# The peaks, method by method:

if __name__ == "__main__":
    plot_peaks(rows).savefig(measured / "peaks.svg")

# %%
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_prediction.py`: where these peaks come from, copy by copy.
