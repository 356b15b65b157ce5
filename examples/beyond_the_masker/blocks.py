"""Extract the voxels of one large image with workers that each read their own part of the file."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from nibabel.openers import ImageOpener
from tqdm import tqdm

from beyond_the_masker.files import moved_into_place
from beyond_the_masker.streaming import (
    check_version,
    damaged_file_named,
    find_voxels,
    gzip,
    open_data,
    open_image,
    result_dtype,
    to_values,
    version_of,
)

__all__ = ["make_index", "mask_blocks"]


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
    index: str | None = None

    @classmethod
    def of(cls, fmri_img, index=None):
        """Read an image's header."""
        proxy, file = fmri_img.dataobj, os.path.abspath(fmri_img.file_map["image"].filename)
        numbers = proxy.dtype, int(proxy.offset), float(proxy.slope), float(proxy.inter)
        index = index and os.path.abspath(index)
        return cls(file, proxy.shape, *numbers, version_of(file), index)

    @property
    def n_bytes(self):
        """Size of a volume in bytes."""
        return int(np.prod(self.shape[:3])) * self.dtype.itemsize

    def open(self):
        """Open the file, decompressing it if necessary."""
        if self.index:
            from indexed_gzip import IndexedGzipFile  # here, because few readers need it

            return IndexedGzipFile(self.file, index_file=self.index)
        return open_data(self.file)

    def read(self, file, start, stop):
        """Read a block as an array of shape (n_volumes, n_voxels), in the order of the file."""
        file.seek(self.offset + start * self.n_bytes)
        content = file.read((stop - start) * self.n_bytes)
        return np.frombuffer(content, self.dtype).reshape(stop - start, -1)

    def blocks(self, block_mib):
        """List start and stop of blocks of so many MiB, at least one volume each."""
        n, step = self.shape[3], max(int(block_mib * 2**20 / self.n_bytes), 1)
        return [(start, min(start + step, n)) for start in range(0, n, step)]


def mask_blocks(fmri_path, masks, n_jobs=None, *, block_mib=32, index=None):
    """Extract the voxel time series of several masks, with blocks of volumes in workers.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
        4D NIfTI image that is not compressed; or a ``.nii.gz``, together with `index`.
    masks : list or dict of str, pathlib.Path or nibabel.Nifti1Image
        3D masks on the grid of the image: non-zero in the region.
    n_jobs : int, optional
        Workers, as for :class:`joblib.Parallel`; by default the calling process does the work.
        `joblib.parallel_config` selects the backend.
    block_mib : float
        MiB of a block as it is stored. A worker holds one block and the values from it.
    index : str or pathlib.Path, optional
        The index of a ``.nii.gz``, from `make_index`. Each worker needs indexed_gzip.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask, bit for bit those of `stream_masks`.

    Raises
    ------
    ValueError
        The image is not 4D, or compressed without an index; or a mask is empty or on another grid.
    OSError
        A file is missing, incomplete or damaged, or the index is not that of the image.
    """
    fmri_img = open_image(fmri_path)
    volumes = Volumes.of(fmri_img, index)
    check_file(volumes, fmri_path)
    masks = masks.values() if isinstance(masks, dict) else masks
    positions = find_voxels(masks, fmri_img, fmri_path)
    n_volumes, ends = volumes.shape[3], np.cumsum([len(one) for one in positions])
    dtype = result_dtype(volumes)
    every_series = [np.empty((n_volumes, len(one)), dtype) for one in positions]
    positions = np.concatenate(positions)
    tasks = [delayed(extract_block)(volumes, positions, *b) for b in volumes.blocks(block_mib)]
    with tqdm(total=n_volumes, unit="volume", delay=2) as progress:
        for start, rows in Parallel(n_jobs, return_as="generator_unordered")(tasks):
            parts = np.split(rows, ends[:-1], axis=1)
            for series, part in zip(every_series, parts, strict=True):
                series[start : start + len(rows)] = part
            progress.update(len(rows))
    return every_series


def extract_block(volumes, positions, start, stop):
    """Return the number of a block's first volume, and an array (n_volumes, n_voxels) of values."""
    with damaged_file_named(volumes.file), volumes.open() as file:
        stored = volumes.read(file, start, stop).take(positions, axis=1)
    check_version(volumes.file, volumes.version)
    return start, to_values(stored, volumes, result_dtype(volumes))


def check_file(volumes, fmri_path):
    """Refuse a file that cannot be read in blocks, or lacks volumes."""
    suffix = Path(volumes.file).suffix.lower()
    if suffix in filter(None, ImageOpener.compress_ext_map) and not volumes.index:
        raise ValueError(
            f"{fmri_path} is compressed. Its stream has one beginning, and every worker would "
            "decompress from there. Take all masks in one pass (stream_masks); or decompress it "
            "once, and give that file; or, if it ends in .gz, make an index (make_index)."
        )
    if volumes.index and suffix != ".gz":
        raise ValueError(f"{fmri_path} does not end in .gz: an index is of no use for it.")
    if volumes.index and os.stat(volumes.index).st_mtime < os.stat(volumes.file).st_mtime:
        raise OSError(f"{volumes.index} is older than {fmri_path}: make the index again.")
    length = length_of(volumes, fmri_path)
    needed = volumes.offset + volumes.shape[3] * volumes.n_bytes
    if length < needed:
        complete = max(length - volumes.offset, 0) // volumes.n_bytes
        raise OSError(
            f"{fmri_path} is incomplete: it has {complete} of {volumes.shape[3]} volumes, "
            f"{length:,} of {needed:,} bytes: copy it again."
        )


def length_of(volumes, fmri_path):
    """Return the number of uncompressed bytes; refuse an index of another file."""
    try:
        with volumes.open() as file:
            return file.seek(0, os.SEEK_END)
    except (FileNotFoundError, PermissionError, ImportError):
        raise
    except Exception as error:
        raise OSError(f"{volumes.index} is no index of {fmri_path} ({error}).") from error


def make_index(fmri_path, index):
    """Write the index of a ``.nii.gz`` to a file, so that workers can begin anywhere in it.

    An OSError names an image that is missing, incomplete or damaged.
    """
    from indexed_gzip import IndexedGzipFile

    with damaged_file_named(fmri_path), gzip.open(fmri_path) as file:
        while file.read(2**20):  # indexed_gzip does not compare the checksum at the end
            pass
    with moved_into_place(Path(index)) as unfinished, IndexedGzipFile(str(fmri_path)) as file:
        file.build_full_index()
        file.export_index(str(unfinished))
