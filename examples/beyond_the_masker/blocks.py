"""blocks."""

import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed
from nibabel.openers import ImageOpener
from nibabel.volumeutils import apply_read_scaling
from tqdm import tqdm

from beyond_the_masker.files import moved_into_place
from beyond_the_masker.streaming import gzip
from beyond_the_masker.masks import read_masks


@dataclass(frozen=True)
class Volumes:
    """The place of an image's volumes in its file: small enough to be sent with every task.

    Attributes
    ----------
    file : str
    shape : tuple of int
    dtype : numpy.dtype
        Of the stored numbers.
    offset : int
        Where the first volume begins.
    slope, inter : float
        The scale factors, from stored numbers to values.
    index : str or None
        The index of a ``.nii.gz``.
    """

    file: str
    shape: tuple
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    index: str | None = None

    @classmethod
    def of(cls, fmri_img, index=None):
        """Read an image's header."""
        proxy, file = fmri_img.dataobj, os.path.abspath(fmri_img.file_map["image"].filename)
        numbers = proxy.dtype, int(proxy.offset), float(proxy.slope), float(proxy.inter)
        return cls(file, proxy.shape, *numbers, index and os.path.abspath(index))

    @property
    def n_bytes(self):
        """Size of a volume in bytes."""
        return int(np.prod(self.shape[:3])) * self.dtype.itemsize

    def open(self):
        """Open the file, decompressing it if necessary."""
        if self.index:
            from indexed_gzip import IndexedGzipFile  # here, because few readers need it

            return IndexedGzipFile(self.file, index_file=self.index)
        return gzip.open(self.file) if self.file.lower().endswith(".gz") else open(self.file, "rb")

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
    masks : list of str or pathlib.Path, or dict of str to str, pathlib.Path or Nifti1Image
        3D masks on the grid of the image: non-zero in the region.
    n_jobs : int, optional
        Workers, as for :class:`joblib.Parallel`: by default the number set by
        `joblib.parallel_config`, which also selects the backend, or one, the calling process.
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
        The image is compressed and has no index, or is not 4D; or a mask is empty or on another
        grid.
    OSError
        A file is missing, incomplete or damaged; or the index is not that of the image.
    """
    fmri_img = open_image(fmri_path)
    volumes = Volumes.of(fmri_img, index)
    check_file(volumes, fmri_path)
    masks = read_masks(masks)
    if masks.shape != volumes.shape[:3] or not np.allclose(masks.affine, fmri_img.affine):
        raise ValueError(
            f"The masks are on the grid {masks.shape}\n{masks.affine}\nThey need that of "
            f"{fmri_path}: {volumes.shape[:3]}\n{fmri_img.affine}\n"
            "See nilearn.image.resample_to_img, interpolation='nearest'."
        )
    lengths = [len(positions) for positions in masks.positions]
    grid = np.unravel_index(np.concatenate(masks.positions), masks.shape)
    positions = np.ravel_multi_index(grid, masks.shape, order="F").astype("int32")

    n_volumes, dtype = volumes.shape[3], to_values(np.empty(0, volumes.dtype), volumes).dtype
    every_series = [np.empty((n_volumes, length), dtype) for length in lengths]
    blocks = [delayed(extract_block)(volumes, positions, *b) for b in volumes.blocks(block_mib)]
    with tqdm(total=n_volumes, unit="volume", delay=2) as progress:
        for start, rows in Parallel(n_jobs, return_as="generator_unordered")(blocks):
            parts = np.split(rows, np.cumsum(lengths)[:-1], axis=1)
            for series, part in zip(every_series, parts, strict=True):
                series[start : start + len(rows)] = part
            progress.update(len(rows))
    return every_series


def extract_block(volumes, positions, start, stop):
    """Do one task: return the number of the first volume, and the values of all masks' voxels.

    Parameters
    ----------
    volumes : Volumes
    positions : array of int
        Of the voxels, in the order of the file.
    start, stop : int
        The first volume, and the one after the last.

    Returns
    -------
    start : int
    rows : array of shape (n_volumes, n_voxels)
    """
    try:
        with volumes.open() as file:
            numbers = volumes.read(file, start, stop).take(positions, axis=1)
    except (FileNotFoundError, PermissionError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise damaged(volumes.file, error) from error
    return start, to_values(numbers, volumes)


def to_values(numbers, volumes):
    """Convert stored numbers to values like `stream_masks`: finite, in native byte order."""
    values = apply_read_scaling(numbers, volumes.slope, volumes.inter)
    dtype = values.dtype.newbyteorder("=") if values.dtype.kind == "f" else np.dtype("float32")
    values = values.astype(dtype, copy=False)
    return np.nan_to_num(values, copy=False, nan=0, posinf=0, neginf=0)


def open_image(fmri_path):
    """Load an image without its data; refuse anything but a 4D image of numbers."""
    try:
        fmri_img = nib.load(fmri_path)
    except (FileNotFoundError, PermissionError, MemoryError, TypeError):
        raise
    except Exception as error:  # nibabel lets a damaged file raise almost anything
        raise damaged(fmri_path, error) from error
    shape, proxy = fmri_img.shape, fmri_img.dataobj
    numbers = isinstance(fmri_img, nib.Nifti1Pair) and proxy.dtype.kind in "fiu"
    if not numbers or len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"{fmri_path} is not a 4D NIfTI image of numbers; its shape is {shape}.")
    return fmri_img


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
    try:
        with volumes.open() as file:
            length = file.seek(0, os.SEEK_END)
    except (FileNotFoundError, PermissionError, ImportError):
        raise
    except Exception as error:
        raise OSError(f"{volumes.index} is no index of {fmri_path} ({error}).") from error
    needed = volumes.offset + volumes.shape[3] * volumes.n_bytes
    if length < needed:
        there = max(length - volumes.offset, 0) // volumes.n_bytes
        raise OSError(
            f"{fmri_path} is incomplete: it has {there} of {volumes.shape[3]} volumes, "
            f"{length:,} of {needed:,} bytes: copy it again."
        )


def damaged(path, error):
    """Return the error for a damaged file."""
    return OSError(f"{path} is incomplete or damaged ({error}): copy it again.")


def decompress_block(volumes, start, stop):
    """Read a block of a ``.nii.gz``; return the number of bytes decompressed for it."""
    with volumes.open() as file:
        volumes.read(file, start, stop)
        return file.tell()


def blocks_without_index(fmri_path, n_jobs, block_mib=32):
    """Read all blocks of a ``.nii.gz``, each from the beginning; count bytes as above."""
    volumes = Volumes.of(nib.load(fmri_path))
    blocks = volumes.blocks(block_mib)
    return sum(Parallel(n_jobs)(delayed(decompress_block)(volumes, *block) for block in blocks))


def make_index(fmri_path, index):
    """Write an index of a ``.nii.gz``, so that workers can begin anywhere in it.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
        An image that ends in ``.gz``.
    index : str or pathlib.Path
        The file to write.

    Raises
    ------
    OSError
        The image is missing, incomplete or damaged.
    """
    from indexed_gzip import IndexedGzipFile

    try:
        with gzip.open(fmri_path) as file:
            while file.read(2**20):
                pass
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise damaged(fmri_path, error) from error
    with moved_into_place(Path(index)) as unfinished, IndexedGzipFile(str(fmri_path)) as file:
        file.build_full_index()
        file.export_index(str(unfinished))
