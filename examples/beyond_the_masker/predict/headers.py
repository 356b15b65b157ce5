"""Read what memory depends on: the header of an image and the number of voxels of its masks.

The image itself is not read. Its file's size, or the size that gzip stores at its end, shows
whether it can hold the data that its header claims. Only if they disagree is it decompressed.
"""

import gzip
import math
import numbers
import os
import zlib
from pathlib import Path

from beyond_the_masker.extract.streaming import (
    is_alone,
    is_same_grid,
    open_mask,
    open_series,
    regions_in,
)
from beyond_the_masker.files import COMPRESSED
from beyond_the_masker.predict.model import DTYPES, Image

MOST_FROM_A_BYTE = 1032  # bytes that a byte of gzip can become: https://zlib.net/zlib_tech.html


def read_header(fmri_path):
    """Return the header of an image, or of several files as one series, as an `Image`.

    A ValueError names what is no 4D NIfTI image of numbers, an OSError a file that cannot be read,
    or that holds less than its header claims.
    """
    fmri = open_series(fmri_path)
    dtype = fmri.dtype.newbyteorder("=").name
    if dtype not in DTYPES:
        raise ValueError(f"{fmri.name} holds values of type {dtype}; known: {', '.join(DTYPES)}.")
    for part in fmri.parts:
        check_size(part, (*fmri.shape[:3], part.n_volumes))
    compressed = any(Path(part.path).suffix.lower() in COMPRESSED for part in fmri.parts)
    return Image(fmri.shape, dtype, compressed, slope=fmri.slope != 1, inter=fmri.inter != 0)


def check_size(part, shape):
    """Raise an OSError if a file holds less than its header claims."""
    needed = int(part.offset) + math.prod(shape) * part.dtype.itemsize
    if problem := _too_small(Path(part.path), needed):
        raise OSError(
            f"{part.path} is incomplete or damaged, or its header is wrong: by its header, "
            f"{shape} of {part.dtype.name}, it should hold {needed} bytes, but {problem}."
        )


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
        return "it cannot be decompressed to its end"
    return f"it unpacks to {size}" if size < needed else ""


def count_all(masks, shape, threshold=None, fmri=None):
    """Count the voxels of each region, as `stream_masks` finds them; return numbers as they are.

    A ValueError names a mask that is empty, or on another grid than a shape and an image.
    """
    alone, counts = is_alone(masks), []
    masks = masks.values() if isinstance(masks, dict) else masks
    for mask in [masks] if alone else masks:
        if isinstance(mask, numbers.Integral):
            counts.append(mask)
            continue
        mask_img, name = open_mask(mask)
        is_same = mask_img.shape[:3] == tuple(shape)  # before it is read: it may be large
        if not is_same or (fmri and not is_same_grid(mask_img, fmri)):
            raise ValueError(
                f"{name} is on the grid {mask_img.shape}\n{mask_img.affine}\nThe image is on "
                f"{tuple(shape)}\n{fmri and fmri.affine}\nTo bring a mask there: "
                "nilearn.image.resample_to_img(mask, image, interpolation='nearest')."
            )
        counts += [len(found) for _, found in regions_in(mask_img, name, threshold, alone)]
    return counts
