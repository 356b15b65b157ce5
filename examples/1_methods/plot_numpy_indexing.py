"""
NumPy indexing: take the voxels, nothing else
=============================================

You do not need a :term:`masker` to get the :term:`time series` of the voxels in a :term:`mask`:
index the image's array with the mask's. On this page you will

1. write a function that returns exactly the values that NiftiMasker returns,
2. run it for all masks, one after the other and in parallel, and
3. see which copies of the image remain.
"""

# %%
# One mask, image in memory
# -------------------------
# The idea fits one line: ``data[mask].T``. To return what NiftiMasker returns, the line needs
# three additions:
#
# * NumPy silently accepts a mask from another space, as long as its shape fits. So shapes and
#   affines are compared before the data are read.
# * NaN around a region, as SPM writes it, is outside the mask.
# * NiftiMasker returns float32 or float64, contiguous, without NaN or infinity.
#
# :mod:`beyond_the_masker.extract.checks` has these steps, since all methods share them. There
# ``take(data, mask)`` is ``data[mask].T`` in NiftiMasker's form.

import nibabel as nib
import numpy as np

from beyond_the_masker.extract.checks import check_same_grid, read_mask, take
from beyond_the_masker.extract.streaming import damaged_file_named


def numpy_masker_single_inmemory(fmri_img, mask_img):
    """Extract the voxel time series of one mask by indexing.

    Return an array of shape (n_timepoints, n_voxels) with the values of NiftiMasker. Data that are
    not in memory yet are read here.
    """
    check_same_grid(fmri_img, mask_img)
    mask = read_mask(mask_img)
    with damaged_file_named(fmri_img.get_filename()):
        data = np.asanyarray(fmri_img.dataobj)
    return take(data, mask)


# %%
# One mask, from a path
# ---------------------
# The same function can open the files itself. A changed byte within a compressed file can go
# unnoticed, here as with NiftiMasker, because nibabel stops reading before gzip's checksum:
# ``gzip -t`` detects it.


def numpy_masker_single_path(fmri_path, mask_path):
    """Extract the voxel time series of one mask by indexing, from files."""
    return numpy_masker_single_inmemory(nib.load(fmri_path), nib.load(mask_path))


# %%
# The same values as NiftiMasker's, for the first volumes and the first region:

from nilearn.maskers import NiftiMasker

from beyond_the_masker.inputs.data import first_volumes
from beyond_the_masker.experiments.experiment import prepare_all

fmri_path, mask_paths, _, image_mib = prepare_all()
fmri_img, mask_img = first_volumes(fmri_path), nib.load(mask_paths[0])
series = numpy_masker_single_inmemory(fmri_img, mask_img)
reference = NiftiMasker(mask_img=mask_img, standardize=None).fit_transform(fmri_img)
same = np.array_equal(series, reference)
print(f"{series.shape[0]} volumes, {series.shape[1]} voxels; the same as NiftiMasker's: {same}")

# %%
# All masks, one after the other
# ------------------------------
# An image that has been read once can be indexed with any number of masks. After reading, there is
# one copy of it. (Pass an in-memory image: a proxy image would be read for each mask.)


def numpy_masker_loop(fmri_img, mask_imgs):
    """Extract several masks by indexing, one after the other."""
    return [numpy_masker_single_inmemory(fmri_img, mask_img) for mask_img in mask_imgs]


# %%
# All masks in parallel
# ---------------------
# A path is a few bytes, and each :term:`worker` reads the file for itself. joblib does not send an
# array of more than 1 MB: it writes the array to a file, once, and the workers :term:`map <memory
# map>` that file. The file is in shared memory where 2 GB are free there, otherwise on disk.

from joblib import Parallel, delayed


def numpy_masker_parallel_path(fmri_path, mask_paths, n_jobs):
    """Extract several masks in workers that each read the file."""
    return Parallel(n_jobs=n_jobs)(
        delayed(numpy_masker_single_path)(fmri_path, mask_path) for mask_path in mask_paths
    )


def numpy_masker_parallel_inmemory(fmri_img, mask_imgs, n_jobs):
    """Extract several masks in workers from one image."""
    return Parallel(n_jobs=n_jobs)(
        delayed(numpy_masker_single_inmemory)(fmri_img, mask_img) for mask_img in mask_imgs
    )


# %%
# What it costs
# -------------
# Measured as in :ref:`sphx_glr_auto_examples_1_methods_plot_nifti_masker.py`: from the files, in
# fresh processes, with workers several times.

from beyond_the_masker.experiments.experiment import measure_methods
from beyond_the_masker.draw.figures import plot_traces

one_mask = numpy_masker_single_path, numpy_masker_single_inmemory
all_masks = numpy_masker_loop, numpy_masker_parallel_path, numpy_masker_parallel_inmemory
plot_traces(measure_methods(*one_mask, *all_masks), image_mib)

# %%
# What to conclude
# ----------------
# The masker's copy is gone. Yet while a compressed file is read, the image is in memory twice, with
# workers and without: as decompressed bytes, and as the array that they are copied into. So the
# peak of a process is about as high as with NiftiMasker, except for the imports, and with paths it
# grows with the number of workers. (A file that is neither compressed nor scaled is mapped, and
# costs little.)
#
# With an in-memory image, the workers share the copy in joblib's file, and the calling process has
# its own. The loop keeps one copy, and is faster when reading takes most of the time. When work on
# each region does need workers, one copy is enough for all, as the next page shows.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_1_methods_plot_shared_memory.py`: all workers share a single
#   copy of the image.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: no copy at all, and no workers.
