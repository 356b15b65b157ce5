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

Memory is measured as on all pages, by :mod:`beyond_the_masker.meter`, in a fresh process, as the peak above the level before
the call.

:ref:`sphx_glr_auto_examples_3_cost_plot_limit.py` runs this at small sizes and draws the result.
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

import nibabel as nib
import numpy as np
from joblib.externals.loky import get_reusable_executor
from nilearn.maskers import NiftiLabelsMasker
from nilearn.masking import apply_mask

from beyond_the_masker import streaming as plot_stream_masks
from beyond_the_masker.budget import guard
from beyond_the_masker.data import atlas_to_masks, get_atlas_path, prepare, prepare_fmri
from beyond_the_masker.experiment import describe_machine
from beyond_the_masker.benchmark_figures import GROWTH
from beyond_the_masker.figures import short
from beyond_the_masker.meter import MIB, measure
from beyond_the_masker.methods import all_methods
from beyond_the_masker.model import METHODS as MODELS
from beyond_the_masker.options import read_options
from beyond_the_masker.pages import load_page
from beyond_the_masker.running import run_method
from beyond_the_masker.streaming import gzip as fast_gzip
from beyond_the_masker.streaming import stream_masks

numpy_masker_mapped = load_page("plot_in_memory").numpy_masker_mapped
numpy_masker_threads = load_page("plot_in_memory").numpy_masker_threads

numpy_masker_parallel_path = load_page("plot_numpy_indexing").numpy_masker_parallel_path

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

    for method in all_methods():
        if not MODELS[method.title].imports or method.title in sizes["parallel"]:
            one_run = functools.partial(run_method, method.function, method.mode, method.in_memory)
            add("methods", method.title, n, one_run, path, some)
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
    path = prepare_fmri(math.ceil(n_volumes / 168))

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
