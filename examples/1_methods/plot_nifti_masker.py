"""
NiftiMasker: the usual way
==========================

:class:`~nilearn.maskers.NiftiMasker` is what most people reach for: it takes an image and a
mask, and gives the :term:`time series` of the :term:`voxels <voxel>` in the mask. It can
also smooth, detrend, filter and standardise. On this page you will

1. extract one region, then all regions one after the other and in parallel,
2. give the masker a path, and then an image whose data are in memory, and
3. see what each way costs, with all workers counted.
"""

# %%
# One mask
# --------
# The masker would resample an image to a mask on another grid, and would accept a 3D image
# as a single volume. Both would be mistakes here, so the function rejects them first. Opening an
# image reads its header only.

import zlib

import numpy as np
from nilearn.image import load_img, new_img_like
from nilearn.maskers import NiftiMasker


def nifti_masker_single(fmri, mask):
    """Extract the voxel time series of one mask with NiftiMasker.

    Parameters
    ----------
    fmri : path or nibabel.Nifti1Image
        4D image.
    mask : path or nibabel.Nifti1Image
        3D mask on the grid of the image: non-zero in the region.

    Returns
    -------
    array of shape (n_timepoints, n_voxels)
        float32 or float64, as the image; integers become float32. Voxels are in C order
        of the mask. Values that are not finite are replaced by zero.

    Raises
    ------
    ValueError
        A file is missing; the image is not 4D, or has no volume, or the mask is not 3D;
        their grids or affines differ; the mask is empty.
    OSError
        A file is incomplete, or so damaged that it cannot be read.
    """
    fmri_img, mask_img = load_img(fmri), load_img(mask)
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
        region = np.asarray(mask_img.dataobj)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise OSError(
            f"{mask_img.get_filename()} is incomplete or damaged ({error}). "
            "Copy or download it again."
        ) from error
    region = np.isfinite(region) & (region != 0)
    if not region.any():
        raise ValueError("The mask is empty: none of its voxels differs from zero.")
    masker = NiftiMasker(mask_img=new_img_like(mask_img, region), standardize=None)
    try:
        return masker.fit_transform(fmri)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise OSError(
            f"{fmri_img.get_filename()} is incomplete or damaged ({error}). "
            "Copy or download it again."
        ) from error


# %%
# All masks, one after the other
# ------------------------------
# A plain loop needs no workers. The masker reads the file again for each mask, and gives up the
# image before the next one, so the memory does not grow with the number of masks.


def nifti_masker_loop(fmri_path, mask_paths):
    """Extract the voxel time series of several masks with NiftiMasker, one after the other.

    Parameters
    ----------
    fmri_path : path
        4D image.
    mask_paths : list of paths
        3D masks on the grid of the image: non-zero in the region.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask; see `nifti_masker_single`, also for the errors.
    """
    return [nifti_masker_single(fmri_path, mask_path) for mask_path in mask_paths]


# %%
# All masks in parallel
# ---------------------
# One :term:`worker` for each mask, and the same function in each. A path travels to the
# workers as a few bytes, and each worker then reads the whole file. joblib writes an image in
# memory to a file, once, and the workers map that file. The file is in :term:`shared memory` where
# 2 GB are free there, else on disk.

from joblib import Parallel, delayed


def nifti_masker_parallel(fmri, masks, n_regions):
    """Extract the voxel time series of several masks, each in a worker of its own.

    Parameters
    ----------
    fmri : path or nibabel.Nifti1Image
        4D image.
    masks : list of paths or of nibabel.Nifti1Image
        3D masks on the grid of the image.
    n_regions : int
        Number of workers.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask; see `nifti_masker_single`, also for the errors.
    """
    return Parallel(n_jobs=n_regions)(delayed(nifti_masker_single)(fmri, mask) for mask in masks)


# %%
# What it costs
# -------------
# Each run starts from the files, in a fresh process, so the in-memory runs include the time to
# read the image. The returned arrays are compared with the output of NiftiMasker, value for
# value. With workers, the peak differs from run to run, because it is chance how many workers are
# at their own peak at once. These ways are measured three times: the median and the range are
# printed.

from beyond_the_masker.experiment import measure_methods, prepare_all
from beyond_the_masker.figures import plot_traces

*_, image_mib = prepare_all()
traces = measure_methods(nifti_masker_single, nifti_masker_loop, nifti_masker_parallel)
plot_traces(traces, image_mib)

# %%
# What to conclude
# ----------------
# The loop holds the image and the masker's copy of it in one process, as for a single mask.
# Compare its time with that of the workers: with few cores and an image that is read fast,
# starting workers and importing nilearn in each can take longer than the loop. In parallel from a
# path, each worker reads the file and makes the masker's copy before it extracts the region:
# memory grows with the number of workers. With an image in memory the file is read once, but each
# worker still makes the masker's own full copy. The rest of what the masker can do is not used
# here, but we still pay for its copies.
#
# Extracting voxels is all that we need: :ref:`sphx_glr_auto_examples_1_methods_plot_numpy_indexing.py`.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_1_methods_plot_numpy_indexing.py`: extracting voxels without the masker's
#   copy.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masker.py`: the masker with all that it can do, without
#   the image in memory.
