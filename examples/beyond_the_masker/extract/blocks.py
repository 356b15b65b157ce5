"""Extract the voxels of one large image with workers that each read their own part of the file."""

import math
import os
from pathlib import Path

import numpy as np
from joblib import delayed
from nibabel.openers import ImageOpener

from beyond_the_masker.extract.running import results_as_ready
from beyond_the_masker.extract.streaming import (
    Part,
    check_version,
    damaged_file_named,
    empty_arrays,
    find_voxels,
    open_image,
    progress_bar,
    result_dtype,
    to_values,
)

__all__ = ["mask_blocks"]


def mask_blocks(fmri_path, masks, n_jobs=None, *, block_mib=32, threshold=None):
    """Extract the voxel time series of several masks, with blocks of volumes in workers.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
        4D NIfTI image that is not compressed.
    masks, threshold
        As for `stream_masks`.
    n_jobs : int, optional
        Workers, as for :class:`joblib.Parallel`; by default the calling process does the work.
        `joblib.parallel_config` selects the backend: loky, threading or dask.
    block_mib : float
        MiB of a block as it is stored. A worker holds one block and the values from it.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each region, bit for bit those of `stream_masks`.

    Raises
    ------
    ValueError
        The image is compressed or not 4D; a mask is empty, on another grid, or needs a threshold;
        or the backend does not return results as they become ready.
    OSError
        A file is missing, incomplete or damaged.
    """
    fmri_img = open_image(fmri_path)
    part, n_voxels = Part.of(fmri_img), math.prod(fmri_img.shape[:3])  # its path is absolute
    check_file(part, n_voxels)
    positions = find_voxels(masks, fmri_img, part.path, threshold)
    sizes = [len(one) for one in positions]
    every_series = empty_arrays([((part.n_volumes, n), result_dtype(part)) for n in sizes])
    positions, ends = np.concatenate(positions), np.cumsum(sizes)
    blocks = divide(part.n_volumes, block_mib * 2**20 / (n_voxels * part.dtype.itemsize))
    tasks = [delayed(extract_block)(part, n_voxels, positions, *block) for block in blocks]
    with (
        progress_bar(part.n_volumes, "volume") as progress,
        results_as_ready(tasks, n_jobs) as results,
    ):
        for start, rows in results:
            parts = np.split(rows, ends[:-1], axis=1)
            for series, values in zip(every_series, parts, strict=True):
                series[start : start + len(rows)] = values
            progress.update(len(rows))
    return every_series


def check_file(part, n_voxels):
    """Refuse a file that is compressed or lacks volumes."""
    if Path(part.path).suffix.lower() in filter(None, ImageOpener.compress_ext_map):
        raise ValueError(
            f"{part.path} is compressed. Its stream has one beginning, and every worker would "
            "decompress from there. Take all masks in one pass (stream_masks); or decompress it "
            "once, and give that file."
        )
    length, volume = os.path.getsize(part.path), n_voxels * part.dtype.itemsize
    needed = part.offset + part.n_volumes * volume
    if length < needed:
        complete = max(length - part.offset, 0) // volume
        raise OSError(
            f"{part.path} is incomplete: it has {complete} of {part.n_volumes} volumes, "
            f"{length:,} of {needed:,} bytes: copy it again."
        )


def divide(n_volumes, most):
    """Return start and stop of blocks of at most so many volumes, or of one."""
    step = int(min(max(most, 1), n_volumes))
    return [(start, min(start + step, n_volumes)) for start in range(0, n_volumes, step)]


def extract_block(part, n_voxels, positions, start, stop):
    """Return the number of a block's first volume, and an array (n_volumes, n_voxels) of values."""
    offset = part.offset + start * n_voxels * part.dtype.itemsize
    with damaged_file_named(part.path):
        stored = np.fromfile(part.path, part.dtype, (stop - start) * n_voxels, offset=offset)
        stored = stored.reshape(stop - start, n_voxels).take(positions, axis=1)
    check_version(part.path, part.version)
    return start, to_values(stored, part, result_dtype(part))
