"""Time every method right after decompressing the file alone, and measure how time and memory grow.

No method can be faster than this limit: :term:`decompressing <decompression>` the file and
discarding the content, or reading it if it is not compressed. The benchmark compares ratios: what
slows a machine down usually slows both. Each method first runs once without being timed, so imports
are done, workers are started and the file is in the page cache.
"""

import datetime
import gzip
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import nibabel as nib
import numpy as np
import pandas as pd
from joblib.externals.loky import get_reusable_executor

from beyond_the_masker.draw.figures import short
from beyond_the_masker.experiments.averages import AVERAGES, LABELS, PEERS, averages, twenty
from beyond_the_masker.experiments.experiment import describe_machine, identical, show_progress
from beyond_the_masker.experiments.methods import all_methods
from beyond_the_masker.extract import streaming
from beyond_the_masker.extract.blocks import mask_blocks
from beyond_the_masker.files import write_bytes
from beyond_the_masker.inputs.cache import prepare_file, stamp_of
from beyond_the_masker.inputs.data import (
    atlas_to_masks,
    cut_to,
    get_atlas_path,
    n_volumes_within,
    packed,
    prepare_2mm,
    prepare_fmri,
    write_stored,
)
from beyond_the_masker.inputs.synthetic import FMRI_SHAPE
from beyond_the_masker.meter import MIB, measure
from beyond_the_masker.predict.budget import guard
from beyond_the_masker.predict.model import METHODS

KEY = ["question", "what", "x"]
COLUMNS = (*KEY, "repeat", "seconds", "limit_seconds")
MEMORY_COLUMNS = (*KEY, "above_mib", "output_mib")
WITH_WORKERS = [title for title, model in METHODS.items() if model.imports]
SMALL = {  # sizes for `questions`
    "volumes": 42,  # of the image for the comparison of methods
    "regions": 2,  # of that comparison
    "parallel": WITH_WORKERS[:1],  # the methods with workers that are timed
    "lengths": [42, 168],  # volumes
    "masks": [6, 64],
    "blocks": [1, 8, 42],  # volumes
    "workers": [],
    "atlases": [20, 60],  # regions that are averaged
    "2 mm": [],  # volumes of the images whose regions are averaged, by default the image above
    "twenty": 42,  # volumes of the image for twenty masks
}
FULL = {
    "volumes": 672,
    "regions": 6,
    "parallel": WITH_WORKERS,
    "lengths": [168, 672, 1680, 3360],
    "masks": [1, 6, 16, 64],
    "blocks": [1, 4, 16, 64, 672],
    "workers": [1, 2, 6],
    "atlases": [100, 400, 1000],
    "2 mm": [200, 1200],
    "twenty": 10 * FMRI_SHAPE[3],
}
QUESTIONS = ("methods", "length", "masks", "block size", "workers", "regions")


class Timing(NamedTuple):
    """A measurement: question, name and the value of what changes; the call, and its file."""

    key: tuple
    call: Callable
    path: Path


def benchmark(folder, sizes=SMALL, n_repeats=3, with_memory=("length", "masks")):
    """Answer all `questions` of some sizes, and write two tables and a description into a folder.

    Each call and the limit are timed `n_repeats` times. Memory is measured for the questions
    `with_memory`.
    """
    todo = questions(sizes)
    times = time_pairs(todo, n_repeats)
    memory = measure_memory([one for one in todo if one.key[0] in with_memory])
    for name, table in (("benchmark.csv", times), ("benchmark_memory.csv", memory)):
        write_bytes(Path(folder, name), table.to_csv(index=False).encode())
    about = {
        "shape": nib.load(cut_image(sizes["volumes"])).shape,
        "averaged": nib.load(images(sizes)[0]).shape,
        "date": datetime.date.today().isoformat(),
        "n_repeats": n_repeats,
        **describe_machine(),
        "peers": {name: peer.version for name, peer in PEERS.items()},
        "not_installed": [name for name, peer in PEERS.items() if not peer.installed],
    }
    content = json.dumps({"benchmark": about}, indent=1).encode()
    write_bytes(Path(folder, "benchmark.json"), content)


def questions(sizes):
    """Return a `Timing` for each measurement of some sizes, such as SMALL."""
    path, n = cut_image(sizes["volumes"]), sizes["regions"]
    _, every = atlas_to_masks(get_atlas_path(), path, 64)
    some = every[:n]
    methods = [
        method._replace(workers=False)  # the first call has started them
        for method in all_methods()
        if not method.workers or method.title in sizes["parallel"]
        if fits(method.title, path, some)
    ]
    return [
        *(Timing(("methods", m.title, n), m.call(path, some), path) for m in methods),
        *other_ways(path, every, some),
        *growth(path, every, some, sizes),
        *(timing("regions", *one) for one in averages(images(sizes), sizes["atlases"])),
        *(timing("regions", *one) for one in twenty(cut_image(sizes["twenty"]), every[:20])),
    ]


def fits(title, path, mask_paths):
    """Return whether a method may be run; print why it is left out otherwise."""
    _, reason = guard(title, path, mask_paths, len(mask_paths))
    if reason:
        print(f"{title} is left out. {reason}")
    return not reason


def other_ways(path, every, some):
    """Return measurements of more masks, without isal, and of files that are read faster."""
    (_, plain), n = prepare_both(path, most_mib=math.inf), len(some)
    threads = function_of("NumPy indexing, threads, parallel")
    mapped = function_of("NumPy indexing, mapped file, parallel")
    calls = (
        ("Streaming, 64 masks", 64, streaming.stream_masks, path, every),
        ("Streaming, without isal", n, stream_without_isal, path, some),
        ("Streaming, uncompressed", n, streaming.stream_masks, plain, some),
        ("NumPy indexing, threads, uncompressed", n, threads, plain, some, n),
        ("NumPy indexing, mapped, uncompressed", n, mapped, plain, some, n),
    )
    return [timing("methods", *call) for call in calls]


def growth(path, every, some, sizes):
    """Return measurements with more volumes, masks, volumes in a block, and workers or threads."""
    name, stream = "Streaming, masks", streaming.stream_masks
    with_workers = "NumPy indexing, path", "NumPy indexing, threads"
    functions = {way: function_of(f"{way}, parallel") for way in with_workers}
    return [
        *(timing("length", name, n, stream, cut_image(n), some) for n in sizes["lengths"]),
        *(timing("masks", name, n, stream, path, every[:n]) for n in sizes["masks"]),
        *(timing("block size", name, n, stream, path, every, n) for n in sizes["blocks"]),
        *(
            timing("workers", way, n, function, path, some, n)
            for n in sizes["workers"]
            for way, function in functions.items()
        ),
    ]


def timing(question, name, x, function, path, *arguments):
    """Return the measurement of a function that is called with an image and other arguments."""
    return Timing((question, name, x), partial(function, path, *arguments), path)


def function_of(title):
    """Return the function of a method."""
    return next(method.function for method in all_methods() if method.title == title)


def stream_without_isal(fmri_path, mask_paths):
    """Run `stream_masks` as if isal were not installed."""
    with mock.patch.object(streaming, "gzip", gzip):
        return streaming.stream_masks(fmri_path, mask_paths)


def cut_image(n_volumes):
    """Prepare the first volumes of the default data; return the file's path."""
    return cut_to(prepare_fmri(math.ceil(n_volumes / FMRI_SHAPE[3])), n_volumes)


def images(sizes):
    """Prepare the images whose regions are averaged; return their paths."""
    return [prepare_2mm(n) for n in sizes["2 mm"]] or [cut_image(sizes["volumes"])]


def time_pairs(todo, n_repeats):
    """Time each call right after the limit, several times; return ``benchmark.csv`` as a table."""
    rows = []
    for number, one in enumerate(todo, start=1):
        show_progress(f"[{number} of {len(todo)}] {', '.join(map(str, one.key))}")
        one.call()
        for repeat in range(1, n_repeats + 1):
            start = time.perf_counter()
            read_and_discard(one.path)
            middle = time.perf_counter()
            one.call()
            seconds, limit = time.perf_counter() - middle, middle - start
            rows.append((*one.key, repeat, f"{seconds:.4f}", f"{limit:.4f}"))
        get_reusable_executor().shutdown(wait=True)
    return pd.DataFrame(rows, columns=COLUMNS)


def read_and_discard(path):
    """Decompress or read a file and discard its content: the limit of every method."""
    compressed = str(path).endswith(".gz")
    with streaming.gzip.open(path) if compressed else open(path, "rb", buffering=0) as file:
        while file.read(2**18):
            pass


def measure_memory(todo):
    """Measure the memory of each call; return ``benchmark_memory.csv`` as a table."""
    rows = []
    for one in todo:
        trace = measure(call_and_stay, one.call)
        if not isinstance(trace.exception, MemoryError):
            output_mib = sum(series.nbytes for series in trace.result()) / MIB
            rows.append((*one.key, f"{trace.above_mib:.1f}", f"{output_mib:.1f}"))
    return pd.DataFrame(rows, columns=MEMORY_COLUMNS)


def call_and_stay(call):
    """Make a call, and keep its result until the meter has taken a sample."""
    result = call()
    time.sleep(0.1)
    return result


def read_benchmark(folder):
    """Read the tables that `benchmark` has written into a folder.

    Returns
    -------
    times : dict
        For each question, name and x: an array of shape (n_repeats, 2) with the seconds of the
        call and of the limit.
    memory : dict
        For each question, name and x: peak above the level before the call, and output, in MiB.
    """
    times = pd.read_csv(Path(folder, "benchmark.csv")).groupby(KEY, sort=False)
    memory = pd.read_csv(Path(folder, "benchmark_memory.csv")).itertuples(index=False, name=None)
    pairs = {key: rows[["seconds", "limit_seconds"]].to_numpy() for key, rows in times}
    return pairs, {row[:3]: row[3:] for row in memory}


def label_of(key):
    """Return what a measurement is called: its name, and the number of regions if it averages."""
    question, name, x = key
    return f"{name}, {x:,} regions" if question == "regions" else name


def print_ratios(times, memory, question="methods"):
    """Print what `read_benchmark` returns: seconds, their ratio to the limit, and memory if any."""
    measured = any(key in memory for key in times if key[0] == question)
    print("MiB: peak memory in use, minus what was in use before\n" * measured, end="")
    print(f"seconds  ratio {'(spread)':16}" + "    MiB" * measured)
    for key, pairs in times.items():
        if key[0] == question:
            low, middle, high = map(short, np.quantile(pairs[:, 0] / pairs[:, 1], [0, 0.5, 1]))
            seconds = short(np.median(pairs[:, 0]))
            line = f"{seconds:>7} {middle:>6} {f'({low} to {high})':16}"
            mib = f"{memory[key][0]:7,.0f}" if key in memory else " " * 7 * measured
            print(f"{line}{mib}  {label_of(key)}")


def print_peers(about):
    """Print what each program can do, and which are not installed, from ``benchmark.json``."""
    for name, peer in PEERS.items():
        missing = ": not installed, so not compared" * (name in about["not_installed"])
        version = about["peers"].get(name) or ""
        how = " (all labels at once)" if peer.at_once else ""
        print(f"{name}{version and f', {version}'}{how}{missing}")


def print_conclusions(times, memory):
    """Print how streaming compares with the limit, and how it grows, from the same two."""
    for name in ("Streaming, masks, one pass", "Streaming, 64 masks"):
        for n, pairs in _growth(times, "methods", name):
            print(f"{n} masks: {short(np.median(pairs[:, 0] / pairs[:, 1]))} times the limit")
    for n, pairs in _growth(times, "regions", AVERAGES):
        both = pairs, times["regions", LABELS, n]
        streamed, other = (short(np.median(one[:, 0] / one[:, 1])) for one in both)
        print(f"averages of {n:,} regions: {streamed} times the limit; {LABELS}: {other}")
    (few, fast), *_, (many, slow) = _growth(times, "length")
    ratio = np.median(slow[:, 0]) / np.median(fast[:, 0])
    print(f"{many / few:.0f} times as many volumes: {ratio:.1f} times the time")
    blocks = [(n, np.median(pairs[:, 0])) for n, pairs in _growth(times, "block size")]
    print("blocks of", ", ".join(f"{n}: {seconds:.3f} s" for n, seconds in blocks[:3]))
    if seconds := [seconds for _, seconds in blocks[3:]]:
        print(f"larger blocks: {min(seconds):.3f} to {max(seconds):.3f} s")
    for n, (above, output) in _growth(memory, "length"):
        print(f"{n:,} volumes: {above - output:.1f} MiB beyond the output")


def _growth(found, question, name="Streaming, masks"):
    """Return x and the result of each measurement of a question, in the order of x."""
    return sorted((key[2], found[key]) for key in found if key[:2] == (question, name))


# One pass, and blocks in workers


def prepare_both(fmri_path, most_mib=512):
    """Return an image as a ``.nii.gz`` and decompressed, cut to some MiB in memory."""
    image = packed(cut_to(fmri_path, n_volumes_within(nib.load(fmri_path), most_mib)))
    how = "fmri.nii", write_stored, nib.load(image), None
    return image, prepare_file("decompressed", stamp_of(image), *how)


def measure_ways(packed, plain, mask_paths):
    """Measure one pass and blocks of an image, as `measure_calls` does."""
    return measure_calls(
        {
            "one pass, .nii.gz": partial(streaming.stream_masks, packed, mask_paths),
            "one pass, .nii": partial(streaming.stream_masks, plain, mask_paths),
            "blocks, 1 process, .nii": partial(mask_blocks, plain, mask_paths, 1),
            "blocks, 2 workers, .nii": partial(mask_blocks, plain, mask_paths, 2),
        }
    )


def measure_calls(calls):
    """Measure some calls in fresh processes, and compare them with the first.

    Return a dict for each call: ``seconds`` in two runs, after a ``first`` that also starts
    workers; their ``ratio`` to those of the first call; the peak ``above_mib`` the start; whether
    arrays are ``identical`` to those of the first call.
    """
    seconds = measure(time_in_turns, calls).result()
    traces = {name: measure(call) for name, call in calls.items()}
    first = next(iter(calls))
    return {
        name: {
            "first": seconds[name][0],
            "seconds": seconds[name][1:],
            "ratio": seconds[name][1:] / seconds[first][1:],
            "above_mib": trace.above_mib,
            "identical": identical(trace.result(), traces[first].result()),
        }
        for name, trace in traces.items()
    }


def time_in_turns(calls, n_repeats=2):
    """Time a dict of calls, one after the other, in a first round and in `n_repeats` rounds.

    In the first round, imports are done and workers are started. Return the seconds of each call,
    an array of shape (1 + n_repeats,).
    """
    seconds = {name: [] for name in calls}
    for _ in range(1 + n_repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}
