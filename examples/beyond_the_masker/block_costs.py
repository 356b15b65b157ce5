"""Measure time and memory of one pass and of blocks in workers, on the same image."""

import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed

from beyond_the_masker.blocks import Volumes, make_index, mask_blocks
from beyond_the_masker.meter import measure
from beyond_the_masker.streaming import gzip, stream_masks

INDEX = "blocks, 2 workers, .nii.gz, index"
SEPARATE = Path(sys.prefix) / "apart"  # where indexed_gzip is installed, for this page alone


def prepare_both(fmri_path, most_mib=512):
    """Return an image as a ``.nii.gz`` and decompressed, cut to some MiB in memory."""
    from beyond_the_masker.data import cut_to, n_volumes_within, prepare  # not in measured ones

    image = cut_to(fmri_path, n_volumes_within(nib.load(fmri_path), most_mib)).absolute()

    def fill(folder):
        if image.name.endswith(".nii.gz"):
            (folder / "fmri.nii.gz").symlink_to(image)
        else:
            nib.load(image).to_filename(folder / "fmri.nii.gz")
        decompress(folder / "fmri.nii.gz", folder / "fmri.nii")

    stat = image.stat()
    folder = prepare("in-blocks", [str(image), stat.st_size, stat.st_mtime_ns], fill)
    return folder / "fmri.nii.gz", folder / "fmri.nii"


def decompress(source, target):
    """Decompress a ``.nii.gz`` into a ``.nii``, like ``gunzip --keep``."""
    with gzip.open(source) as packed, open(target, "wb") as plain:
        shutil.copyfileobj(packed, plain, 2**20)


def same(every_series, others):
    """Return whether arrays are the same, in number, shape, type and every bit."""
    pairs = zip(every_series, others, strict=True)
    return all((a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes()) for a, b in pairs)


def blocks_without_index(fmri_path, n_jobs, block_mib=32):
    """Read all blocks of a ``.nii.gz``, each from the beginning; return the decompressed bytes."""
    volumes = Volumes.of(nib.load(fmri_path))
    tasks = [delayed(decompress_block)(volumes, *block) for block in volumes.blocks(block_mib)]
    return sum(Parallel(n_jobs)(tasks))


def decompress_block(volumes, start, stop):
    """Read a block of a ``.nii.gz``; return the number of bytes decompressed for it."""
    with volumes.open() as file:
        volumes.read(file, start, stop)
        return file.tell()


@contextmanager
def indexed_gzip_importable():
    """Let processes that start meanwhile import indexed_gzip; yield whether it is installed."""
    sys.path.insert(0, str(SEPARATE))
    try:
        yield any(Path(folder, "indexed_gzip").is_dir() for folder in sys.path)
    finally:
        sys.path.remove(str(SEPARATE))


def measure_ways(packed, plain, mask_paths):
    """Measure one pass and blocks, compressed and not, and with an index if possible.

    Return a dict by way, as from `measure_calls`, and what `measure_index` returns; the latter is
    empty if indexed_gzip is not installed.
    """
    one_pass = {"one pass, .nii.gz": partial(stream_masks, packed, mask_paths)}
    others = {
        "one pass, .nii": partial(stream_masks, plain, mask_paths),
        "blocks, 1 process, .nii": partial(mask_blocks, plain, mask_paths, 1),
        "blocks, 2 workers, .nii": partial(mask_blocks, plain, mask_paths, 2),
        "blocks, 2 workers, .nii.gz, no index": partial(blocks_without_index, packed, 2),
    }
    ways = measure_calls(one_pass | others)
    with indexed_gzip_importable() as installed, tempfile.TemporaryDirectory() as folder:
        if not installed:
            return ways, {}
        index = measure_index(packed, Path(folder))
        with_index = partial(mask_blocks, packed, mask_paths, 2, index=index["path"])
        ways[INDEX] = measure_calls(one_pass | {INDEX: with_index})[INDEX]
    return ways, index


def measure_calls(calls):
    """Measure some calls in fresh processes, and compare them with the first.

    Return a dict for each call: ``seconds`` in two runs, after a ``first`` that also starts
    workers; their ``ratio`` to those of the first call; the peak ``above_mib`` the start; whether
    arrays are ``identical`` to those of the first call, None if it returns none.
    """
    seconds = measure(time_in_turns, calls).result()
    traces = {name: measure(call) for name, call in calls.items()}
    results = {name: trace.result() for name, trace in traces.items()}
    first = next(iter(calls))
    return {
        name: {
            "first": seconds[name][0],
            "seconds": seconds[name][1:],
            "ratio": seconds[name][1:] / seconds[first][1:],
            "above_mib": traces[name].above_mib,
            "identical": same(found, results[first]) if isinstance(found, list) else None,
        }
        for name, found in results.items()
    }


def measure_index(packed, folder):
    """Return the seconds to ``make`` an index and ``decompress`` the file, its path and size."""
    path = folder / "fmri.gzidx"
    calls = {
        "make": partial(make_index, packed, path),
        "decompress": partial(decompress, packed, folder / "fmri.nii"),
    }
    seconds = measure(time_in_turns, calls, 1).result()
    best = {name: float(runs.min()) for name, runs in seconds.items()}
    return {**best, "path": path, "mib": path.stat().st_size / 2**20}


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
