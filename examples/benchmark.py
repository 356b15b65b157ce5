"""
The benchmark: time compared with the limit, and how it grows
=============================================================

No method can be faster than the limit: :term:`decompressing <decompression>` the file and
discarding the content, or, for an uncompressed file, reading it. So each method is timed right
after the limit, and the benchmark compares their ratio: machines are noisy, and what slows one
down usually slows the other, too.

Each method first runs once without being timed, so that imports are done, workers are started
and the file is in the page cache. The repeats use the same workers. The times therefore leave
out the start of workers, which the times in the table of all methods include: compare ratios
only with ratios.

Memory is measured as on all pages, by :ref:`the meter
<sphx_glr_auto_examples_peak_memory.py>`, in a fresh process, as the peak above the level before
the call.

:ref:`sphx_glr_auto_examples_plot_limit.py` runs this at small sizes and draws the result.
``make benchmark`` runs it at full size, with ``--full``. On the command line:

.. code-block:: bash

    python benchmark.py folder
"""

import argparse
import csv
import datetime
import functools
import gzip
import json
import math
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from joblib.externals.loky import get_reusable_executor
from matplotlib.ticker import MaxNLocator
from nilearn.maskers import NiftiLabelsMasker
from nilearn.masking import apply_mask

import plot_stream_masks
from measured_methods import describe_machine
from memory_budget import guard
from memory_model import METHODS as MODELS
from one_run import run_method
from options import read_options
from peak_memory import MIB, measure
from plot_in_memory import numpy_masker_mapped, numpy_masker_threads
from plot_large_image import atlas_to_masks, get_atlas_path, get_fmri_path, prepare
from plot_memory_over_time import color_of, marker_of
from plot_numpy_indexing import numpy_masker_parallel_path
from plot_stream_masks import gzip as fast_gzip
from plot_stream_masks import stream_masks
from whole_experiment import METHODS, title

COLUMNS = ("question", "what", "x", "repeat", "seconds", "limit_seconds")
MEMORY_COLUMNS = ("question", "what", "x", "above_mib", "output_mib")


# %%
# What is timed
# -------------


def read_and_forget(path):
    """Do what limits every method: decompress or read a file, and discard its content.

    Parameters
    ----------
    path : str or pathlib.Path
        A ``.nii.gz`` or a ``.nii`` file.
    """
    with (
        fast_gzip.open(path) if str(path).endswith(".gz") else open(path, "rb", buffering=0) as file
    ):
        while file.read(2**18):
            pass


def time_pairs(todo, n_repeats):
    """Time each call right after the limit, again and again.

    Parameters
    ----------
    todo : list of tuple
        As `questions` returns it.
    n_repeats : int

    Returns
    -------
    list of tuple
        Rows of ``benchmark.csv``.
    """
    rows = []
    for number, (question, what, x, call, path) in enumerate(todo, start=1):
        print(f"[{number} of {len(todo)}] {question}: {what}, {x}", file=sys.stderr, flush=True)
        call()
        for repeat in range(1, n_repeats + 1):
            start = time.perf_counter()
            read_and_forget(path)
            middle = time.perf_counter()
            call()
            seconds, limit = time.perf_counter() - middle, middle - start
            rows.append((question, what, x, repeat, f"{seconds:.4f}", f"{limit:.4f}"))
        get_reusable_executor().shutdown(wait=True)
    return rows


def hold(call):
    """Make a call and keep its result until the meter has taken a sample."""
    result = call()
    time.sleep(0.1)
    return result


def labels_masker(fmri_path, labels_path):
    """Average all regions at once with nilearn's masker for labels."""
    masker = NiftiLabelsMasker(labels_path, standardize=None, reports=False)
    return [masker.fit_transform(fmri_path)]


def masks_applied(fmri_path, mask_paths):
    """Call nilearn's function for one mask for each mask, one after the other."""
    return [apply_mask(fmri_path, mask_path) for mask_path in mask_paths]


def without_isal(fmri_path, mask_paths):
    """Run `stream_masks` as if isal were not installed."""
    plot_stream_masks.gzip = gzip
    try:
        return stream_masks(fmri_path, mask_paths)
    finally:
        plot_stream_masks.gzip = fast_gzip


# %%
# The questions
# -------------
# Each question has a list of measurements: what is measured, the value of what changes, the call,
# and the file that it reads.


def questions(sizes):
    """List what is measured.

    Parameters
    ----------
    sizes : dict
        ``volumes`` and ``regions`` of the comparison of methods, ``parallel``, the names of
        those with workers, and lists of ``lengths`` (volumes), ``masks``, ``blocks`` (volumes)
        and ``workers``.

    Returns
    -------
    list of tuple
        Question, what, x, call, path.
    """

    path = _image(sizes["volumes"])
    n = sizes["regions"]
    _, every = atlas_to_masks(get_atlas_path(), path, 64)
    some, plain = every[:n], _uncompressed(path)
    todo = []

    def add(question, what, x, function, fmri_path, *arguments):
        call = functools.partial(function, fmri_path, *arguments)
        todo.append((question, what, x, call, fmri_path))

    for method in METHODS:
        if not MODELS[title(method)].imports or title(method) in sizes["parallel"]:
            one_run = functools.partial(run_method, method.function, method.mode, method.in_memory)
            add("methods", title(method), n, one_run, path, some)
    add("methods", "NiftiLabelsMasker (averages)", n, labels_masker, path, _labels(some))
    add("methods", "apply_mask, one by one", n, masks_applied, path, some)
    add("methods", "Streaming, 64 masks", 64, stream_masks, path, every)
    add("methods", "Streaming, without isal", n, without_isal, path, some)
    add("methods", "Streaming, uncompressed", n, stream_masks, plain, some)
    add("methods", "NumPy indexing, threads, uncompressed", n, numpy_masker_threads, plain, some, n)
    add("methods", "NumPy indexing, mapped, uncompressed", n, numpy_masker_mapped, plain, some, n)
    for n_volumes in sizes["lengths"]:
        add("length", "Streaming, masks", n_volumes, stream_masks, _image(n_volumes), some)
    for n_masks in sizes["masks"]:
        add("masks", "Streaming, masks", n_masks, stream_masks, path, every[:n_masks])
    for size in sizes["blocks"]:
        add("block size", "Streaming, masks", size, stream_masks, path, every, size)
    for workers in sizes["workers"]:
        for what, function in (
            ("NumPy indexing, path", numpy_masker_parallel_path),
            ("NumPy indexing, threads", numpy_masker_threads),
        ):
            add("workers", what, workers, function, path, some, workers)
    return todo


def _image(n_volumes):
    """Prepare the image of the default data with so many volumes."""
    path = get_fmri_path(math.ceil(n_volumes / 168))[1]

    def fill(folder):
        nib.load(path).slicer[..., :n_volumes].to_filename(folder / "fmri.nii.gz")

    if n_volumes % 168 == 0:
        return path
    return prepare(f"{n_volumes}-volumes", [str(path), n_volumes], fill) / "fmri.nii.gz"


def _uncompressed(path):
    """Prepare the same image in an uncompressed file."""

    def fill(folder):
        img = nib.load(path)
        img.__class__(np.asanyarray(img.dataobj), img.affine, img.header).to_filename(
            folder / "fmri.nii"
        )

    return prepare("uncompressed", [str(path), path.stat().st_mtime_ns], fill) / "fmri.nii"


def _labels(mask_paths):
    """Prepare one image of labels for the regions of several masks."""

    def fill(folder):
        imgs = [nib.load(path) for path in mask_paths]
        labels = np.zeros(imgs[0].shape, "uint8")
        for number, img in enumerate(imgs, start=1):
            labels[np.asarray(img.dataobj) != 0] = number
        nib.Nifti1Image(labels, imgs[0].affine).to_filename(folder / "labels.nii.gz")

    return prepare("labels", [str(path) for path in mask_paths], fill) / "labels.nii.gz"


# %%
# Read, print and draw
# --------------------
# The figures show the ratio of each time to the limit that was timed right before it: the median
# of all ratios, the smallest and the largest.


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
        For each question, what and x: peak memory above the start and size of the output, in MiB.
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
        As `read_benchmark` returns them.
    """
    there = any(key in memory for key in times if key[0] == "methods")
    print(f"{'':41}seconds   times the limit (spread)" + "   MiB above the start" * there)
    for key, pairs in times.items():
        if key[0] == "methods":
            ratios = pairs[:, 0] / pairs[:, 1]
            low, middle, high = map(short, np.quantile(ratios, [0, 0.5, 1]))
            spread = f"({low} to {high})"
            seconds = short(np.median(pairs[:, 0]))
            line = f"{key[1]:41}{seconds:>7}   {middle:>6} {spread:20}"
            print(line + (f"{memory[key][0]:10,.0f}" if key in memory else ""))


def plot_ratios(times, title):
    """Draw the time of each method in units of the limit, with the spread.

    Parameters
    ----------
    times : dict
        As `read_benchmark` returns it.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    ratios = {
        what: pairs[:, 0] / pairs[:, 1] for (q, what, _), pairs in times.items() if q == "methods"
    }
    ordered = sorted(ratios, key=lambda what: -np.median(ratios[what]))
    figure = plt.figure(figsize=(4.2, 1.2 + 0.45 * len(ordered)), layout="constrained")
    ax = figure.gca()
    found = []
    for i, what in enumerate(ordered):
        low, middle, high = np.quantile(ratios[what], [0, 0.5, 1])
        ax.plot([low, high], [i, i], color=color_of(what), lw=3, solid_capstyle="butt", alpha=0.5)
        ax.plot(middle, i, "o", color=color_of(what), ms=7)
        label = ax.text(0.75, i - 0.22, f"{what}: {short(middle)}", va="bottom")
        label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 0.5})
        found.append(f"{what} {short(middle)} ({short(low)} to {short(high)})")
    ax.axvline(1, color="black", ls="--", lw=1, zorder=1)
    ax.text(1.03, len(ordered) - 0.35, "the limit", va="center")
    ax.set(xscale="log", xlabel="time, in units of the limit", yticks=[])
    ax.set(ylim=(len(ordered), -0.9), xlim=(0.7, None))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    figure.set_label(
        f"{title}: each method as a dot, the median of several runs; the line goes from the "
        "smallest to the largest ratio. The dashed line is the limit.\n\n"
        f"Dot chart of the time of {len(ordered)} methods, as multiples of the limit, median with "
        f"smallest and largest: {'; '.join(found)}."
    )
    return figure


GROWTH = {
    "length": "volumes in the image ({regions} masks)",
    "masks": "masks",
    "block size": "volumes in a block (64 masks)",
    "workers": "workers, or threads ({regions} masks)",
}


def plot_growth(times, title, sizes):
    """Draw how time grows, with the spread, and the limit where each panel has one line.

    Parameters
    ----------
    times : dict
        As `read_benchmark` returns it.
    title : str
    sizes : dict
        As for `questions`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, panels = _panels(times, title, sizes)
    for question, ax, what, x, keys in panels:
        low, middle, high = np.quantile([times[key][:, 0] for key in keys], [0, 0.5, 1], axis=1)
        ax.fill_between(x, low, high, color=color_of(what), alpha=0.25, lw=0)
        _line(ax, what, x, middle)
        if question != "workers":
            limit = [np.median(times[key][:, 1]) for key in keys]
            ax.plot(x, limit, color="black", lw=1.2, ls=":", label="the limit")
        _finish(ax, "seconds")
    _describe(
        figure,
        f"{title}: the line is the median of several runs, the band goes from the fastest to the "
        "slowest. Dotted: the limit.",
        [
            (q, what, x, [np.median(times[key][:, 0]) for key in keys])
            for q, _, what, x, keys in panels
        ],
        "seconds",
        sizes,
    )
    return figure


def plot_memory_growth(memory, title, sizes):
    """Draw how the peak above the start grows, and the size of the output.

    Parameters
    ----------
    memory : dict
        As `read_benchmark` returns it.
    title : str
    sizes : dict
        As for `questions`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, panels = _panels(memory, title, sizes)
    for _, ax, what, x, keys in panels:
        above, output = zip(*(memory[key] for key in keys), strict=True)
        _line(ax, what, x, above)
        if "Streaming" in what:
            ax.plot(x, output, color="black", lw=1.2, ls=":", label="the output")
        _finish(ax, "MiB")
    _describe(
        figure,
        f"{title}: the peak above the level before the call. Dotted: the size of the output.",
        [(q, what, x, [memory[key][0] for key in keys]) for q, _, what, x, keys in panels],
        "MiB",
        sizes,
    )
    return figure


def _panels(measured, title, sizes):
    """Prepare a panel for each question; list question, panel, what, x and keys of each line."""
    asked = [question for question in GROWTH if any(key[0] == question for key in measured)]
    ways = {q: sorted({what for one, what, _ in measured if one == q}) for q in asked}
    heights = [2.1 + 0.2 * len(ways[question]) for question in asked]
    figure, axes = plt.subplots(
        *(len(asked), 1),
        figsize=(4.2, 0.4 + sum(heights)),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    lines = []
    for question, ax in zip(asked, axes[:, 0], strict=True):
        ax.set_xlabel(GROWTH[question].format(**sizes))
        for what in ways[question]:
            keys = sorted(key for key in measured if key[:2] == (question, what))
            lines.append((question, ax, what, [key[2] for key in keys], keys))
    figure.suptitle(title, fontsize=12)
    return figure, lines


def _line(ax, what, x, y):
    """Draw one line in the colour of its method; threads are dashed."""
    style = "--" if "threads" in what else "-"
    ax.plot(x, y, style, marker=marker_of(what), ms=5, color=color_of(what), label=what)


def _finish(ax, label):
    """Label a panel, with the legend above the lines."""
    ax.set_ylabel(label)
    ax.set_ylim(0, 1.05 * ax.dataLim.y1)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.03, 1), borderaxespad=0)


def short(number):
    """Write a number with three digits, or all digits of its integer part."""
    return f"{number:,.0f}" if number >= 100 else f"{number:#.3g}".rstrip(".")


def _describe(figure, caption, lines, unit, sizes):
    """Write the caption of a figure of growth, with the numbers at the ends of each line."""
    ends = [
        f"{what}, {GROWTH[question].format(**sizes)} from {x[0]} to {x[-1]}: "
        f"{short(y[0])} to {short(y[-1])} {unit}"
        for question, what, x, y in lines
    ]
    panels = len(figure.axes)
    figure.set_label(
        f"{caption}\n\nLine chart in {panels} panel{'s' if panels > 1 else ''}. {'; '.join(ends)}."
    )


# %%
# Run it
# ------

WITH_WORKERS = [name for name, model in MODELS.items() if model.imports]
SMALL = {
    "volumes": 42,
    "regions": 2,
    "parallel": WITH_WORKERS[:1],
    "lengths": [42, 168],
    "masks": [6, 64],
    "blocks": [1, 8, 42],
    "workers": [],
}
FULL = {
    "volumes": 672,
    "regions": 6,
    "parallel": WITH_WORKERS,
    "lengths": [168, 336, 672, 1344, 2016, 3360],
    "masks": [1, 2, 6, 16, 32, 64],
    "blocks": [1, 2, 4, 8, 16, 32, 64, 168, 672],
    "workers": [1, 2, 4, 6],
}
# Questions for which memory is measured, too; summary.csv has the memory of the methods.
WITH_MEMORY = ("length", "masks")


def benchmark(folder, sizes=SMALL, n_repeats=3, with_memory=WITH_MEMORY):
    """Answer all questions and write two tables and a description.

    Parameters
    ----------
    folder : str or pathlib.Path
    sizes : dict
        As for `questions`.
    n_repeats : int
        Times of each, and of the limit.
    with_memory : tuple of str
        Questions for which memory is measured, too.
    """
    todo, not_run = [], {}
    for one in questions(sizes):
        _, what, _, call, path = one
        masks = call.args[-1]
        reason = guard(what, path, masks, len(masks))[1] if what in MODELS else ""
        if reason:
            not_run[what] = reason
        else:
            todo.append(one)
    times, memory = time_pairs(todo, n_repeats), []
    for question, what, x, call, _ in todo:
        if question in with_memory:
            trace = measure(hold, call)
            if isinstance(trace.exception, MemoryError):  # the machine was short of memory
                continue
            output_mib = sum(series.nbytes for series in trace.result()) / MIB
            memory.append((question, what, x, f"{trace.above_mib:.1f}", f"{output_mib:.1f}"))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns, rows in (
        ("benchmark.csv", COLUMNS, times),
        ("benchmark_memory.csv", MEMORY_COLUMNS, memory),
    ):
        with open(folder / f"{name}.unfinished", "w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        os.replace(folder / f"{name}.unfinished", folder / name)
    path = _image(sizes["volumes"])
    img = nib.load(path)
    described = {
        "shape": img.shape,
        "dtype": str(img.get_data_dtype()),
        "on_disk_mib": path.stat().st_size / MIB,
        "in_memory_mib": np.prod(img.shape) * img.get_data_dtype().itemsize / MIB,
        "n_repeats": n_repeats,
        "not_run": not_run,
        "date": datetime.date.today().isoformat(),
    }
    text = json.dumps({"benchmark": described | describe_machine()}, indent=1)
    (folder / "benchmark.json.unfinished").write_text(text)
    os.replace(folder / "benchmark.json.unfinished", folder / "benchmark.json")


if __name__ == "__main__":
    for name in ("FMRI", "ATLAS", "DATA"):  # the default data, whatever the build's image is
        os.environ.pop(name, None)
    parser = argparse.ArgumentParser(description="Time the methods and the limit.")
    measured = read_options().measured
    parser.add_argument("folder", nargs="?", default=measured, help="where to write the results")
    parser.add_argument("--full", action="store_true", help="at full size")
    arguments = parser.parse_args()
    if arguments.full:
        benchmark(arguments.folder, FULL, 5, with_memory=("methods", *GROWTH))
    else:
        benchmark(arguments.folder)

# %%
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_limit.py`: the results.
