"""Measure time and memory of one pass and of blocks in workers, on the same image."""

import shutil
import time
from functools import partial

import nibabel as nib
import numpy as np

from beyond_the_masker.blocks import mask_blocks
from beyond_the_masker.cache import prepare, stamp_of
from beyond_the_masker.meter import measure
from beyond_the_masker.streaming import gzip, stream_masks


def prepare_both(fmri_path, most_mib=512):
    """Return an image as a ``.nii.gz`` and decompressed, cut to some MiB in memory."""
    from beyond_the_masker.data import cut_to, n_volumes_within  # not in workers

    image = cut_to(fmri_path, n_volumes_within(nib.load(fmri_path), most_mib)).absolute()

    def fill(folder):
        packed = folder / "fmri.nii.gz"
        if image.name.endswith(".nii.gz"):
            packed.symlink_to(image)
        else:
            nib.load(image).to_filename(packed)
        with gzip.open(packed) as compressed, open(folder / "fmri.nii", "wb") as plain:
            shutil.copyfileobj(compressed, plain, 2**20)

    folder = prepare("in-blocks", stamp_of(image), fill)
    return folder / "fmri.nii.gz", folder / "fmri.nii"


def measure_ways(packed, plain, mask_paths):
    """Measure one pass and blocks of an image, as `measure_calls` does."""
    return measure_calls(
        {
            "one pass, .nii.gz": partial(stream_masks, packed, mask_paths),
            "one pass, .nii": partial(stream_masks, plain, mask_paths),
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
    from beyond_the_masker.experiment import identical  # not in workers

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
