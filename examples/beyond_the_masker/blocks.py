"""Extract the voxels of one large image with workers that each read their own part of the file."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import delayed
from nibabel.openers import ImageOpener
from tqdm import tqdm

from beyond_the_masker.running import results_as_ready
from beyond_the_masker.streaming import (
    check_version,
    damaged_file_named,
    find_voxels,
    open_image,
    result_dtype,
    to_values,
    version_of,
)

__all__ = ["mask_blocks"]


@dataclass(frozen=True)
class Volumes:
    """Where the volumes of an image lie in its file: small enough to be sent with every task."""

    file: str
    shape: tuple
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    version: tuple

    @classmethod
    def of(cls, fmri_img):
        """Read an image's header."""
        proxy, file = fmri_img.dataobj, os.path.abspath(fmri_img.file_map["image"].filename)
        numbers = proxy.dtype, int(proxy.offset), float(proxy.slope), float(proxy.inter)
        return cls(file, proxy.shape, *numbers, version_of(file))

    @property
    def n_bytes(self):
        """Size of a volume in bytes."""
        return math.prod(self.shape[:3]) * self.dtype.itemsize

    def read(self, start, stop):
        """Read a block as an array of shape (n_volumes, n_voxels), in the order of the file."""
        n_voxels, offset = math.prod(self.shape[:3]), self.offset + start * self.n_bytes
        stored = np.fromfile(self.file, self.dtype, (stop - start) * n_voxels, offset=offset)
        return stored.reshape(stop - start, n_voxels)

    def blocks(self, block_mib):
        """List start and stop of blocks of so many MiB, at least one volume each."""
        n, step = self.shape[3], max(int(block_mib * 2**20 / self.n_bytes), 1)
        return [(start, min(start + step, n)) for start in range(0, n, step)]


def mask_blocks(fmri_path, masks, n_jobs=None, *, block_mib=32, threshold=None):
    """Extract the voxel time series of several masks, with blocks of volumes in workers.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
        4D NIfTI image that is not compressed.
    masks : str, pathlib.Path or nibabel.Nifti1Image, or a list or dict of them
        As for `stream_masks`: a list of 3D masks, a label image, or a 4D image of masks.
    n_jobs : int, optional
        Workers, as for :class:`joblib.Parallel`; by default the calling process does the work.
        `joblib.parallel_config` selects the backend: loky, threading or dask.
    block_mib : float
        MiB of a block as it is stored. A worker holds one block and the values from it.
    threshold : float, optional
        As for `stream_masks`.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each region, bit for bit those of `stream_masks`.

    Raises
    ------
    ValueError
        The image is compressed or not 4D, a mask is empty or on another grid, or the backend does
        not return results as they become ready.
    OSError
        A file is missing, incomplete or damaged.
    """
    fmri_img = open_image(fmri_path)
    volumes = Volumes.of(fmri_img)
    check_file(volumes, fmri_path)
    positions = find_voxels(masks, fmri_img, fmri_path, threshold)
    n_volumes, ends = volumes.shape[3], np.cumsum([len(one) for one in positions])
    dtype = result_dtype(volumes)
    every_series = [np.empty((n_volumes, len(one)), dtype) for one in positions]
    positions = np.concatenate(positions)
    tasks = [delayed(extract_block)(volumes, positions, *b) for b in volumes.blocks(block_mib)]
    with tqdm(total=n_volumes, unit="volume", delay=2) as progress:
        for start, rows in results_as_ready(tasks, n_jobs):
            parts = np.split(rows, ends[:-1], axis=1)
            for series, part in zip(every_series, parts, strict=True):
                series[start : start + len(rows)] = part
            progress.update(len(rows))
    return every_series


def extract_block(volumes, positions, start, stop):
    """Return the number of a block's first volume, and an array (n_volumes, n_voxels) of values."""
    with damaged_file_named(volumes.file):
        stored = volumes.read(start, stop).take(positions, axis=1)
    check_version(volumes.file, volumes.version)
    return start, to_values(stored, volumes, result_dtype(volumes))


def check_file(volumes, fmri_path):
    """Refuse a file that is compressed or lacks volumes."""
    if Path(volumes.file).suffix.lower() in filter(None, ImageOpener.compress_ext_map):
        raise ValueError(
            f"{fmri_path} is compressed. Its stream has one beginning, and every worker would "
            "decompress from there. Take all masks in one pass (stream_masks); or decompress it "
            "once, and give that file."
        )
    length = os.path.getsize(volumes.file)
    needed = volumes.offset + volumes.shape[3] * volumes.n_bytes
    if length < needed:
        complete = max(length - volumes.offset, 0) // volumes.n_bytes
        raise OSError(
            f"{fmri_path} is incomplete: it has {complete} of {volumes.shape[3]} volumes, "
            f"{length:,} of {needed:,} bytes: copy it again."
        )
