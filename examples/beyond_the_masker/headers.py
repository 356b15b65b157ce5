"""Read what memory depends on: the header of an image and the number of voxels of its masks.

The image itself is not read. Its file's size, or the size that gzip stores at its end, shows
whether it can hold the data that its header claims. Only if they disagree is it decompressed.
"""

import gzip
import os
import zlib
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np

from beyond_the_masker.checks import is_inside, read_to_end
from beyond_the_masker.model import DTYPES, Image

MOST_FROM_A_BYTE = 1032  # bytes that a byte of gzip can become: https://zlib.net/zlib_tech.html


@contextmanager
def readable(path, kind):
    """Turn all errors that nibabel raises for an existing file into a ValueError that names it."""
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # nibabel lets a damaged file raise almost anything
        raise ValueError(f"{path} is not {kind} that can be read ({error}).") from error


def read_header(fmri_path):
    """Return the header of a 4D NIfTI image as an `Image`, or raise a ValueError.

    The file must be a 4D NIfTI image of numbers, and hold as much as its header claims.
    """
    path = Path(fmri_path)
    with readable(path, "a NIfTI image"):
        img = nib.load(path)
    shape = getattr(img, "shape", ())  # a surface has none
    if not isinstance(img, nib.Nifti1Pair) or len(shape) != 4 or min(shape) < 1:
        raise ValueError(
            f"{path} is a {type(img).__name__} of shape {shape}; a 4D NIfTI image is needed."
        )
    proxy = img.dataobj
    dtype = proxy.dtype.newbyteorder("=").name
    if dtype not in DTYPES:
        raise ValueError(f"{path} holds values of type {dtype}; {', '.join(DTYPES)} are known.")
    source = Path(img.file_map["image"].filename)
    needed = int(proxy.offset) + int(np.prod(shape, dtype=object)) * proxy.dtype.itemsize
    if problem := _too_small(source, needed):
        raise ValueError(
            f"{path} is incomplete, or its header is wrong: by its header, {shape} of {dtype}, "
            f"it should hold {needed} bytes, and {problem}."
        )
    compressed = source.suffix.lower() in (".gz", ".bz2", ".zst")
    return Image(shape, dtype, compressed, slope=proxy.slope != 1, inter=proxy.inter != 0)


def _too_small(path, needed):
    """Return in words how a file holds less than so many bytes, or nothing."""
    kind, size = path.suffix.lower(), path.stat().st_size
    if kind in (".bz2", ".zst"):  # these do not store the size of their content
        return ""
    if kind != ".gz":
        return f"it has {size}" if size < needed else ""
    if size * MOST_FROM_A_BYTE < needed:
        return f"no gzip file holds more than {MOST_FROM_A_BYTE} times its size, which is {size}"
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        if int.from_bytes(file.read(), "little") == needed % 2**32:  # stored modulo 2 ** 32
            return ""
    # Truncated, or a wrong header; or several parts, or zeros at the end, which are allowed.
    try:
        with gzip.open(path) as file:
            size = file.seek(0, os.SEEK_END)
    except (EOFError, OSError, zlib.error):
        return "it is damaged, or cut off"
    return f"it unpacks to {size}" if size < needed else ""


def count_voxels(mask_path, shape):
    """Count the voxels of a mask, or raise a ValueError if it is on another grid or empty."""
    with readable(mask_path, "an image"):
        mask_img = nib.load(mask_path)
        grid = getattr(mask_img, "shape", ())  # a surface has none
        grid = grid[:3] if grid[3:] == (1,) else grid
        if same := grid == tuple(shape):  # otherwise it may be large
            inside = int(np.count_nonzero(is_inside(np.asarray(mask_img.dataobj))))
            read_to_end(mask_img)
    if not same:
        raise ValueError(
            f"{mask_path} is on the grid {grid}; the image is on {tuple(shape)}. To "
            "bring a mask there: "
            "nilearn.image.resample_to_img(mask, image, interpolation='nearest')."
        )
    if not inside:
        raise ValueError(f"{mask_path} has 0 voxels that are not zero; a mask has some.")
    return inside


def count_all(masks, shape):
    """Count the voxels of the masks that are files; return numbers as they are."""
    masks = [masks] if isinstance(masks, (str, Path)) else masks
    return [count_voxels(m, shape) if isinstance(m, (str, Path)) else m for m in masks]
