"""
NumPy indexing: take the voxels, nothing else
=============================================

To get the :term:`time series` of the voxels in a :term:`mask`, a :term:`masker` is not
needed: index the image's array with the mask's. On this page you will

1. write the function that gives the very values that NiftiMasker gives,
2. run it for all masks, one after the other and in parallel, and
3. see which copies of the image are left.
"""

# %%
# One mask, image in memory
# -------------------------
# NumPy indexing silently accepts a mask from another space, as long as its shape fits. So the
# function compares shapes and affines before it reads the data.

import nibabel as nib
import numpy as np


def numpy_masker_single_inmemory(fmri_img, mask_img):
    """Extract the voxel time series of one mask by indexing.

    Parameters
    ----------
    fmri_img : nibabel.Nifti1Image
        4D image. If its data are not in memory yet, they are read here.
    mask_img : nibabel.Nifti1Image
        3D mask on the grid of the image: non-zero in the region.

    Returns
    -------
    array of shape (n_timepoints, n_voxels)
        float32 or float64, as the image; integers become float32. Voxels are in C order
        of the mask. Values that are not finite are replaced by zero, as NiftiMasker does.

    Raises
    ------
    ValueError
        The image is not 4D, or has no volume, or the mask is not 3D; their grids or affines
        differ; the mask is empty.
    """
    if (
        fmri_img.ndim != 4
        or 0 in fmri_img.shape
        or mask_img.shape != fmri_img.shape[:3]
        or not np.allclose(mask_img.affine, fmri_img.affine)
    ):
        raise ValueError(
            "A 4D image and a 3D mask on its grid are needed; the image has shape "
            f"{fmri_img.shape} and the mask {mask_img.shape}, and their affines are\n"
            f"{fmri_img.affine}\nand\n{mask_img.affine}\nTo bring a mask to the grid: "
            "nilearn.image.resample_to_img(mask, image, interpolation='nearest')."
        )
    mask = np.asarray(mask_img.dataobj)
    mask = np.isfinite(mask) & (mask != 0)
    if not mask.any():
        raise ValueError("The mask is empty: none of its voxels differs from zero.")
    series = np.asanyarray(fmri_img.dataobj)[mask].T
    dtype = series.dtype.newbyteorder("=") if series.dtype.kind == "f" else "float32"
    series = np.ascontiguousarray(series, dtype=dtype)
    return np.nan_to_num(series, copy=False, nan=0, posinf=0, neginf=0)


# %%
# One mask, from a path
# ---------------------
# The same function, which opens the files itself. Reading detects a file that ends too early. A
# changed byte within a compressed file can go unnoticed, here as with NiftiMasker, because nibabel
# stops reading before gzip's checksum: ``gzip -t`` finds it.

import zlib


def numpy_masker_single_path(fmri_path, mask_path):
    """Extract the voxel time series of one mask by indexing, from files.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
        4D image.
    mask_path : str or pathlib.Path
        3D mask on the grid of the image: non-zero in the region.

    Returns
    -------
    array of shape (n_timepoints, n_voxels)
        As `numpy_masker_single_inmemory` gives it.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        As for `numpy_masker_single_inmemory`.
    OSError
        A file is incomplete, or so damaged that it cannot be read.
    """
    fmri_img, mask_img = nib.load(fmri_path), nib.load(mask_path)
    if (
        fmri_img.ndim != 4
        or 0 in fmri_img.shape
        or mask_img.shape != fmri_img.shape[:3]
        or not np.allclose(mask_img.affine, fmri_img.affine)
    ):
        raise ValueError(
            "A 4D image and a 3D mask on its grid are needed; the image has shape "
            f"{fmri_img.shape} and the mask {mask_img.shape}, and their affines are\n"
            f"{fmri_img.affine}\nand\n{mask_img.affine}\nTo bring a mask to the grid: "
            "nilearn.image.resample_to_img(mask, image, interpolation='nearest')."
        )
    try:
        mask = np.asarray(mask_img.dataobj)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise OSError(
            f"{mask_path} is incomplete or damaged ({error}). Copy or download it again."
        ) from error
    mask = np.isfinite(mask) & (mask != 0)
    if not mask.any():
        raise ValueError("The mask is empty: none of its voxels differs from zero.")
    try:
        data = np.asanyarray(fmri_img.dataobj)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise OSError(
            f"{fmri_path} is incomplete or damaged ({error}). Copy or download it again."
        ) from error
    series = data[mask].T
    dtype = series.dtype.newbyteorder("=") if series.dtype.kind == "f" else "float32"
    series = np.ascontiguousarray(series, dtype=dtype)
    return np.nan_to_num(series, copy=False, nan=0, posinf=0, neginf=0)


# %%
# All masks, one after the other
# ------------------------------
# An image that has been read once can be indexed with any number of masks. Without workers there
# is one copy of it.


def numpy_masker_loop(fmri_img, mask_imgs):
    """Extract several masks by indexing one image in memory, one after the other.

    Parameters
    ----------
    fmri_img : nibabel.Nifti1Image
        4D image, its data in memory. (The file of a lazily loaded one is read for each mask.)
    mask_imgs : list of nibabel.Nifti1Image
        3D masks on the grid of the image: non-zero in the region.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask; see `numpy_masker_single_inmemory`, also for the errors.
    """
    return [numpy_masker_single_inmemory(fmri_img, mask_img) for mask_img in mask_imgs]


# %%
# All masks in parallel
# ---------------------
# A path is a few bytes, and each :term:`worker` reads the file for itself. joblib does not send an
# array of more than 1 MB: it writes the array to a file, once, and the workers :term:`map <memory
# map>` that file. The file is in shared memory where 2 GB are free there, else on disk.

from joblib import Parallel, delayed


def numpy_masker_parallel_path(fmri_path, mask_paths, n_regions):
    """Extract several masks by indexing, each in a worker that reads the image's file.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
        4D image.
    mask_paths : list of str or pathlib.Path
        3D masks on the grid of the image.
    n_regions : int
        Number of workers.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask; see `numpy_masker_single_path`, also for the errors.
    """
    return Parallel(n_jobs=n_regions)(
        delayed(numpy_masker_single_path)(fmri_path, mask_path) for mask_path in mask_paths
    )


def numpy_masker_parallel_inmemory(fmri_img, mask_imgs, n_regions):
    """Extract several masks by indexing one image in memory, each in a worker of its own.

    Parameters
    ----------
    fmri_img : nibabel.Nifti1Image
        4D image, its data in memory. (A lazily loaded one makes each worker read the file.)
    mask_imgs : list of nibabel.Nifti1Image
        3D masks on the grid of the image.
    n_regions : int
        Number of workers.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask; see `numpy_masker_single_inmemory`, also for the errors.
    """
    return Parallel(n_jobs=n_regions)(
        delayed(numpy_masker_single_inmemory)(fmri_img, mask_img) for mask_img in mask_imgs
    )


# %%
# What it costs
# -------------
# Measured as in :ref:`sphx_glr_auto_examples_1_methods_plot_nifti_masker.py`: from the files, in fresh
# processes, with workers three times.

from beyond_the_masker.experiment import measure_methods, prepare_all
from beyond_the_masker.figures import plot_traces

*_, image_mib = prepare_all()
traces = measure_methods(
    numpy_masker_single_path,
    numpy_masker_single_inmemory,
    numpy_masker_loop,
    numpy_masker_parallel_path,
    numpy_masker_parallel_inmemory,
)
plot_traces(traces, image_mib)

# %%
# What to conclude
# ----------------
# From a path, the masker's copy is gone, but while a compressed file is read the image is there
# twice in each worker. So a worker's peak is about as high as with NiftiMasker, apart from what
# NiftiMasker imports, and memory grows with the number of workers. (A file that is neither
# compressed nor scaled is mapped, and costs little.) From memory, the workers share one copy, in
# joblib's file, and the calling process has its own. The loop has no second copy, and where
# reading the file takes most of the time, it is faster than the workers: compare the times above.
# When work on each region does need workers, one copy is enough for all:
# :ref:`sphx_glr_auto_examples_1_methods_plot_shared_memory.py`.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_1_methods_plot_shared_memory.py`: one copy of the image for all workers.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: no copy at all, and no workers.
