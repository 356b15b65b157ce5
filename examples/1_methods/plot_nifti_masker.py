"""
NiftiMasker: the usual way
==========================

:class:`~nilearn.maskers.NiftiMasker` takes an image and a mask, and returns the :term:`time series`
of the :term:`voxels <voxel>` in the mask. It can also smooth, detrend, filter and standardise. On
this page you will

1. extract one region, then all regions one after the other and in parallel,
2. give the masker a path, and then an image whose data are in memory, and
3. see what each way costs, with all workers counted.
"""

# %%
# One mask
# --------
# The masker would resample an image to a mask on another grid, and accept a 3D image as a single
# volume. Both would be mistakes here, so we reject them first. Opening an image reads its header
# only. If a file turns out to be damaged later, the error names it.

from nilearn.image import load_img, new_img_like
from nilearn.maskers import NiftiMasker

from beyond_the_masker.extract.checks import check_same_grid, read_mask
from beyond_the_masker.extract.streaming import damaged_file_named


def nifti_masker_single(fmri, mask):
    """Extract the voxel time series of one mask with NiftiMasker.

    Parameters
    ----------
    fmri, mask : path or nibabel.Nifti1Image
        A 4D image, and a 3D mask on its grid: non-zero in the region.

    Returns
    -------
    array of shape (n_timepoints, n_voxels)
        float32 or float64, as the image. Integers become float32; with scale factors, usually
        float64. Voxels are in C order of the mask. Values that are not finite become zero.
    """
    fmri_img, mask_img = load_img(fmri), load_img(mask)
    check_same_grid(fmri_img, mask_img)
    mask_img = new_img_like(mask_img, read_mask(mask_img))
    with damaged_file_named(fmri_img.get_filename()):
        return NiftiMasker(mask_img=mask_img, standardize=None).fit_transform(fmri)


# %%
# The first volumes of the image, and its first region:

from beyond_the_masker.inputs.data import first_volumes
from beyond_the_masker.experiments.experiment import prepare_all
from beyond_the_masker.draw.figures import plot_series, plot_traces

fmri_path, mask_paths, _, image_mib = prepare_all()
series = nifti_masker_single(first_volumes(fmri_path, most_mib=64), mask_paths[0])
print(f"{series.shape[0]} volumes, {series.shape[1]} voxels, {series.dtype}")

centred = series - series.mean(axis=0)
shown = {"first voxel": centred[:, 0], "last voxel": centred[:, -1], "mean": centred.mean(axis=1)}
plot_series(shown, "The first region, centred", "signal (arbitrary units)")

# %%
# All masks, one after the other
# ------------------------------
# A plain loop needs no workers. The masker reads the file again for each mask, and releases the
# image before the next one, so memory does not grow with the number of masks.


def nifti_masker_loop(fmri_path, mask_paths):
    """Extract several masks with NiftiMasker, one after the other; see `nifti_masker_single`."""
    return [nifti_masker_single(fmri_path, mask_path) for mask_path in mask_paths]


# %%
# All masks in parallel
# ---------------------
# One :term:`worker` for each mask, and the same function in each. A path reaches the workers as a
# few bytes, and each worker then reads the whole file. joblib writes an in-memory image to a file,
# once, and the workers map that file. The file is in :term:`shared memory` where 2 GB are free
# there, otherwise on disk.

from joblib import Parallel, delayed


def nifti_masker_parallel(fmri, masks, n_jobs):
    """Extract several masks with NiftiMasker, in workers; see `nifti_masker_single`."""
    return Parallel(n_jobs=n_jobs)(delayed(nifti_masker_single)(fmri, mask) for mask in masks)


# %%
# What it costs
# -------------
# Each run starts from the files, in a fresh process, so the in-memory runs include the time to
# read the image. The returned arrays are compared with NiftiMasker's own output, value for value.
# With workers, the peak differs from run to run, because chance decides how many workers reach
# their own peak at once. Such a method is measured several times; you see the median and the range.

from beyond_the_masker.experiments.experiment import measure_methods

methods = nifti_masker_single, nifti_masker_loop, nifti_masker_parallel
plot_traces(measure_methods(*methods), image_mib)

# %%
# What to conclude
# ----------------
# The loop holds the image and the masker's copy of it in one process, as for a single mask. With
# few cores, starting workers and importing nilearn in each can take longer than the loop.
#
# In parallel from a path, each worker reads the file and makes the masker's copy, so memory grows
# with the number of workers. With an image in memory the file is read once, but each worker still
# makes a full copy. The masker's other steps use that copy; extracting voxels does not need it, but
# we still pay for it.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_1_methods_plot_numpy_indexing.py`: extract voxels without the
#   masker's copy.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masker.py`: everything that the masker can
#   do, without the image in memory.
