"""Read what memory depends on: the header of an image and the number of voxels of its masks.

The image itself is not read. Its file's size, or the size that gzip stores at its end, shows
whether it can hold the data that its header claims. Only if they disagree is it decompressed.
"""

import gzip
import os
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from beyond_the_masker.checks import damaged_file_named
from beyond_the_masker.model import DTYPES, Image
from beyond_the_masker.streaming import is_alone, open_mask, regions_in

MOST_FROM_A_BYTE = 1032  # bytes that a byte of gzip can become: https://zlib.net/zlib_tech.html


def read_header(fmri_path):
    """Return the header of a 4D NIfTI image of numbers as an `Image`.

    A ValueError names any other image, an OSError a file that cannot be read, or that holds less
    than its header claims.
    """
    path = Path(fmri_path)
    with damaged_file_named(path):
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
        raise OSError(
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


def count_all(masks, shape, threshold=None):
    """Count the voxels of each region, as `stream_masks` finds them; return numbers as they are.

    A ValueError names a mask that is empty or on another grid.
    """
    alone, counts = is_alone(masks), []
    for mask in [masks] if alone else masks:
        if not is_alone(mask):
            counts.append(mask)
            continue
        mask_img, name = open_mask(mask)
        if mask_img.shape[:3] != tuple(shape):  # before it is read: it may be large
            raise ValueError(
                f"{name} is on the grid {mask_img.shape}; the image is on {tuple(shape)}. To bring "
                "a mask there: "
                "nilearn.image.resample_to_img(mask, image, interpolation='nearest')."
            )
        counts += [len(found) for _, found in regions_in(mask_img, name, threshold, alone)]
    return counts
