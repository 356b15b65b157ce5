"""
How close to the limit
======================

How fast can voxels be taken out of an image's file? Not faster than the file can be
decompressed. On this page you will

1. see the time of every method beside that limit, and beside nilearn's other ways,
2. see how time and memory grow with the length of the image, with the number of masks, with
   the size of a block, and with the number of workers, and
3. find the same at full size, as it was recorded on one machine.

:doc:`/auto_examples/benchmark` says what is measured, and how. This page draws it.
"""

# %%
# Read and summarise
# ------------------
# Each time was taken together with the limit, right before it. What counts is the ratio of
# the two, and of the ratios the median, with the smallest and the largest beside it.

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np


def read_benchmark(folder):
    """Read what the benchmark wrote.

    Parameters
    ----------
    folder : str or pathlib.Path

    Returns
    -------
    times : dict
        For each question, what was measured, and x: an array of shape (n_repeats, 2) with the
        seconds of the call and of the limit.
    memory : dict
        For each question, what and x: peak PSS above the start and size of the output, in MiB.
    """
    times, memory = defaultdict(list), {}
    with open(Path(folder) / "benchmark.csv", newline="") as file:
        for row in csv.DictReader(file):
            key = row["question"], row["what"], int(row["x"])
            times[key].append((float(row["seconds"]), float(row["limit_seconds"])))
    with open(Path(folder) / "benchmark_memory.csv", newline="") as file:
        for row in csv.DictReader(file):
            key = row["question"], row["what"], int(row["x"])
            memory[key] = float(row["above_mib"]), float(row["output_mib"])
    return {key: np.array(pairs) for key, pairs in times.items()}, memory


def print_ratios(times, memory):
    """Print a table: seconds, time in units of the limit, and memory where it was measured.

    Parameters
    ----------
    times, memory : dict
        As `read_benchmark` gives them.
    """
    print(f"{'':41}seconds   times the limit (spread)   MiB above the start")
    for key, pairs in times.items():
        if key[0] == "methods":
            ratios = pairs[:, 0] / pairs[:, 1]
            spread = f"({ratios.min():.2f} to {ratios.max():.2f})"
            line = (
                f"{key[1]:41}{np.median(pairs[:, 0]):7.3f}   {np.median(ratios):6.2f} {spread:20}"
            )
            print(line + (f"{memory[key][0]:10,.0f}" if key in memory else ""))


# %%
# Draw
# ----

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from plot_memory_over_time import color_of


def plot_ratios(times, title):
    """Draw the time of each method in units of the limit, with the spread.

    Parameters
    ----------
    times : dict
        As `read_benchmark` gives it.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    ratios = {
        what: pairs[:, 0] / pairs[:, 1] for (q, what, _), pairs in times.items() if q == "methods"
    }
    ordered = sorted(ratios, key=lambda what: -np.median(ratios[what]))
    figure = plt.figure(figsize=(5, 0.9 + 0.42 * len(ordered)), layout="constrained")
    ax = figure.gca()
    for i, what in enumerate(ordered):
        low, middle, high = np.quantile(ratios[what], [0, 0.5, 1])
        ax.plot([low, high], [i, i], color=color_of(what), lw=3, solid_capstyle="butt", alpha=0.5)
        ax.plot(middle, i, "o", color=color_of(what), ms=7)
        ax.text(0.75, i - 0.22, f"{what}: {middle:.3g}", fontsize=9, va="bottom")
    ax.axvline(1, color="black", ls="--", lw=1)
    ax.text(1.03, len(ordered) - 0.35, "the limit", fontsize=9, va="center")
    ax.set(xscale="log", xlabel="time, in units of the limit", yticks=[])
    ax.set(ylim=(len(ordered), -0.9), xlim=(0.7, None))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_title(title, fontsize=11)
    return figure


GROWTH = {
    "length": "volumes in the image",
    "masks": "masks",
    "block size": "volumes in a block",
    "workers": "workers, or threads",
}


def plot_growth(times, memory, title):
    """Draw how time and memory grow.

    Parameters
    ----------
    times, memory : dict
        As `read_benchmark` gives them.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = plt.subplots(len(GROWTH), 1, figsize=(5, 11), layout="constrained")
    for ax, (question, label) in zip(axes, GROWTH.items(), strict=True):
        ways = sorted({what for q, what, _ in times if q == question})
        for what in ways:
            keys = sorted(key for key in times if key[:2] == (question, what))
            x = [key[2] for key in keys]
            low, middle, high = np.quantile([times[key][:, 0] for key in keys], [0, 0.5, 1], axis=1)
            style = "--" if "threads" in what else "-"
            ax.fill_between(x, low, high, color=color_of(what), alpha=0.2, lw=0)
            ax.plot(x, middle, style, marker="o", ms=4, color=color_of(what), label=what)
        if question != "workers":  # the limit of each time, below it
            limit = [np.median(times[key][:, 1]) for key in keys]
            ax.plot(x, limit, color="black", lw=1, ls=":", label="the limit")
        ax.set(xlabel=label, ylabel="seconds", ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.spines[["top", "right"]].set_visible(False)
        handles, labels = ax.get_legend_handles_labels()
        keys = [key for key in keys if key in memory]
        if keys:
            twin = ax.twinx()
            lines = ("above the start", "#555555", "s"), ("of it the output", "#555555", "None")
            for part, (name, color, marker) in enumerate(lines):
                mib = [memory[key][part] for key in keys]
                at = [key[2] for key in keys]
                (line,) = twin.plot(at, mib, "-.", marker=marker, ms=4, color=color, lw=1 + part)
                handles.append(line)
                labels.append(f"MiB {name}")
            twin.set(ylabel="MiB", ylim=(0, max(10, 1.3 * twin.get_ylim()[1])))
            twin.spines["top"].set_visible(False)
        ax.legend(handles, labels, fontsize=8, frameon=False, loc="upper left")
        ax.set_ylim(0, 1.6 * ax.get_ylim()[1])
    figure.suptitle(title, fontsize=11)
    return figure


# %%
# This build
# ----------
# The sizes are small here, so that a build does not take long: 42 volumes of the default
# data. Whatever takes a fixed time, such as to open 64 masks, weighs more than with a large
# image. Two lines of the table belong to a file that is not compressed, and there the limit is
# to read it.

if __name__ == "__main__":
    import subprocess
    import sys

    from options import read_options

    measured = Path(read_options().measured)
    subprocess.run([sys.executable, "benchmark.py", str(measured)], check=True)
    times, memory = read_benchmark(measured)
    print_ratios(times, memory)

# %%

if __name__ == "__main__":
    plot_ratios(times, "Time beside the limit, 42 volumes")
    plt.show()

# %%
# Memory is the peak PSS above the level before the call, and the output is a part of it.

if __name__ == "__main__":
    plot_growth(times, memory, "How time and memory grow, small sizes")
    plt.show()

# %%
# .. measured-download:: benchmark.csv benchmark_memory.csv benchmark.json
#
# Full size
# ---------
# ``make benchmark`` measures the same with 672 volumes (396 MB in memory), with up to 3360
# volumes (2 GB), and writes what it found into ``doc/recorded``. That takes about a quarter
# of an hour, and is not a part of a build: what follows was recorded earlier.

if __name__ == "__main__":
    import json

    recorded = measured.parent / "recorded"
    if (recorded / "benchmark.json").exists():
        about = json.loads((recorded / "benchmark.json").read_text())["benchmark"]
        print(f"Recorded on {about['date']}: {about['system']}, {about['cores']} cores, ", end="")
        print(f"{about['memory_gib']:.0f} GiB, Python {about['python']},")
        print(*(f"{name} {about[name]}" for name in ("nilearn", "nibabel", "isal")), end="; ")
        print(f"{about['n_repeats']} pairs of each.\n")
        times, memory = read_benchmark(recorded)
        print_ratios(times, memory)
    else:
        times = None
        print(f"Nothing was recorded in {recorded}: run 'make benchmark'.")

# %%

if __name__ == "__main__" and times:
    plot_ratios(times, f"Time beside the limit, {about['shape'][3]} volumes")
    plt.show()

# %%

if __name__ == "__main__" and times:
    plot_growth(times, memory, "How time and memory grow, full sizes")
    plt.show()

# %%
# .. recorded-download:: benchmark.csv benchmark_memory.csv benchmark.json
#
# What to conclude
# ----------------
# Nearly all of the time goes into decompression, and no method can avoid that, but a method
# can do it once instead of once for each worker. The masks come on top of it, and even
# 64 of them cost less than the file itself. Time grows with the length of the image and memory
# does not, except for the output. The size of a block hardly matters, as long as a block is
# small: the processor's cache is where the volume should still be when its voxels are taken.
#
# If a file is read often, keep it uncompressed: the limit is then the disk.
