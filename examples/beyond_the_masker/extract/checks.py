"""Check and read what every masking function gets, and return what NiftiMasker would.

What `streaming` has, too, is imported from there, where it is needed: a worker that only takes
voxels loads NumPy alone.
"""

import warnings
from pathlib import Path

import numpy as np


def check_same_grid(fmri_img, mask_img):
    """Raise a ValueError unless the image is 4D and the mask is 3D and on the same grid."""
    from beyond_the_masker.extract.streaming import is_same_grid

    check_numbers(fmri_img)
    check_numbers(mask_img)
    is_4d = fmri_img.ndim == 4 and 0 not in fmri_img.shape
    is_3d = mask_img.ndim == 3 or mask_img.shape[3:] == (1,)
    if not is_4d or not is_3d or not is_same_grid(mask_img, fmri_img):
        raise ValueError(
            "A 4D image and a 3D mask on its grid are needed; the image has shape "
            f"{fmri_img.shape} and the mask {mask_img.shape}, and their affines are\n"
            f"{fmri_img.affine}\nand\n{mask_img.affine}\nTo bring a mask to the grid: "
            "nilearn.image.resample_to_img(mask, image, interpolation='nearest')."
        )


def check_numbers(img, name=None):
    """Raise a ValueError unless an image has a grid and real numbers."""
    from beyond_the_masker.extract.streaming import is_image

    if not is_image(img):
        name = name or getattr(img, "get_filename", str)() or f"A {type(img).__name__}"
        raise ValueError(f"{name} is not an image of real numbers on a grid.")


def are_inside(places, shape, allowed=None):
    """Return which places, (3, n), are nearest to a voxel of a grid that is allowed."""
    inside = np.ones(places.shape[1], bool)
    for axis, n_voxels in zip(places, shape, strict=True):  # half a voxel, but for rounding
        inside &= (axis > -0.51) & (axis < n_voxels - 0.49)
    if allowed is not None:
        last = np.subtract(shape, 1)[:, np.newaxis]
        inside[inside] = allowed[tuple(np.rint(places[:, inside]).astype(int).clip(0, last))]
    return inside


def is_inside(values):
    """Return which values are inside a mask: not zero, nor NaN or infinity, as SPM writes."""
    return np.isfinite(values) & (values != 0)


def read_mask(mask_img):
    """Return a mask's voxels as booleans, or raise a ValueError if there are none.

    Values other than 0 are inside, as for NiftiMasker; if they differ, a warning counts them.
    """
    values = read_3d(mask_img)
    inside = is_inside(values)
    values = values[inside]
    if not len(values):
        raise ValueError("The mask is empty: none of its voxels differs from zero.")
    if (values != values[0]).any():
        warnings.warn(
            f"{mask_img.get_filename() or 'A mask'} has {np.count_nonzero(values != 1):,} voxels "
            f"whose values are neither 0 nor 1. All {len(values):,} that are not zero are inside.",
            stacklevel=3,
        )
    return inside


def read_3d(img, name=None):
    """Return the values of a 3D image, or of one of shape (x, y, z, 1), as some tools write it."""
    from beyond_the_masker.extract.streaming import damaged_file_named, read_to_end

    with damaged_file_named(name or img.get_filename()):
        values = np.asanyarray(img.dataobj)
        if not isinstance(img.dataobj, np.ndarray):  # in a file
            read_to_end(img)
    return values[..., 0] if values.shape[3:] == (1,) else values


def open_checked(fmri, masks):
    """Return an image, of which only the header is read, and its masks as arrays of bool.

    Both are given as paths or as images.
    """
    fmri_img, mask_arrays = open_image(fmri), []
    for mask_img in map(open_image, masks):
        check_same_grid(fmri_img, mask_img)
        mask_arrays.append(read_mask(mask_img))
    return fmri_img, mask_arrays


def open_image(item):
    """Return the image of a path, its data not read, or an image as it is; refuse other files."""
    from beyond_the_masker.extract.streaming import damaged_file_named, load, read_to_end

    if not isinstance(item, (str, Path)):
        return item
    with damaged_file_named(item):
        img = load(item)
        read_to_end(img, "header")  # of a pair of files
    check_numbers(img, item)
    return img


def to_grid(region, img):
    """Return a 3D image of a region on the grid of another image, by nearest neighbour.

    nilearn leaves out a voxel of the grid whose centre lies beyond that of the region's first or
    last voxel, if only by rounding. A border of zeros lets it count up to half a voxel.
    """
    import nibabel as nib
    from nilearn.image import resample_img
    from nilearn.image.resampling import BoundingBoxError

    from beyond_the_masker.extract.streaming import is_same_grid

    data = np.asarray(region.dataobj)
    if is_same_grid(region, img):
        return nib.Nifti1Image(data, img.affine, dtype=data.dtype)
    if not np.isfinite(img.affine).all() or np.linalg.det(img.affine) == 0:
        raise ValueError(f"The affine of the image has no inverse:\n{img.affine}")
    affine = region.affine @ nib.affines.from_matvec(np.eye(3), [-1, -1, -1])
    grid = {"target_affine": img.affine, "target_shape": img.shape[:3]}
    options = {"interpolation": "nearest", "copy_header": True, "force_resample": True}
    try:
        return resample_img(nib.Nifti1Image(np.pad(data, 1), affine), **grid, **options)
    except BoundingBoxError:  # the grids do not overlap
        return nib.Nifti1Image(np.zeros(img.shape[:3], data.dtype), img.affine)


def value_type(img):
    """Return the type of an image's values, scale factors applied, without reading them all."""
    from beyond_the_masker.extract.streaming import damaged_file_named

    with damaged_file_named(img.get_filename()):
        return img.dataobj[..., :0].dtype


def size_in_bytes(img):
    """Return how much memory all values of an image need."""
    return value_type(img).itemsize * int(np.prod(img.shape))


def read_volumes(fmri_img, scaled=True):
    """Yield the volumes of a 4D image, each read when its turn comes.

    Scale factors are applied, unless the values of a file are wanted as they are stored. A file is
    read to its end, where gzip stores its checksum.
    """
    from beyond_the_masker.extract.streaming import (
        ArrayProxy,
        apply_read_scaling,
        damaged_file_named,
        unchanged,
    )

    proxy, (*grid, n_volumes) = fmri_img.dataobj, fmri_img.shape
    path = fmri_img.get_filename()
    if not path or not isinstance(proxy, ArrayProxy):  # in memory
        yield from (proxy[..., i] for i in range(n_volumes))
        return
    n_bytes, holder = int(np.prod(grid)) * proxy.dtype.itemsize, fmri_img.file_map["image"]
    with (
        unchanged(holder.filename),
        damaged_file_named(path),
        holder.get_prepare_fileobj("rb") as file,
    ):
        file.seek(proxy.offset)
        for _ in range(n_volumes):
            volume = np.frombuffer(file.read(n_bytes), proxy.dtype).reshape(grid, order="F")
            yield apply_read_scaling(volume, proxy.slope, proxy.inter) if scaled else volume
        while file.read(2**20):
            pass


def take(data, mask):
    """Return the voxels of a mask out of an array, as NiftiMasker does."""
    return as_nifti_masker(data[mask])


def as_nifti_masker(voxels):
    """Return an array (n_voxels, n_timepoints) as NiftiMasker does: (n_timepoints, n_voxels).

    It is contiguous, in native byte order, float32 or float64 as given, integers as float32. Values
    that are not finite are zero.
    """
    series = voxels.T
    dtype = series.dtype.newbyteorder("=") if series.dtype.kind == "f" else "float32"
    series = np.ascontiguousarray(series, dtype=dtype)
    return np.nan_to_num(series, copy=False, nan=0, posinf=0, neginf=0)
