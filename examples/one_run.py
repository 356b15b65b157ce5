"""
One run of one method
=====================

The whole work of one method, from the files to the arrays. This module imports NumPy and nibabel
only, which every method needs. A fresh process that imports it and the page of one method holds
what that method needs, and nothing else: the memory before the call is the method's own.
"""

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

# What nibabel raises for a file that is cut off, damaged, or not an image.
UNREADABLE = (
    *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
    *(EOFError, OSError, OverflowError, zlib.error),
)


def load_in_memory(path):
    """Load an image so that its data are an array, not a lazy proxy to the file.

    Parameters
    ----------
    path : str or pathlib.Path

    Returns
    -------
    nibabel.Nifti1Image
        ``dataobj`` is an array, scale factors applied.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is incomplete, or not an image.
    """
    try:
        img = nib.load(path)
        data = np.asanyarray(img.dataobj)
    except FileNotFoundError:
        raise
    except (*UNREADABLE, ValueError) as error:
        raise ValueError(f"{path} is not a complete image ({error}).") from error
    if isinstance(data, np.memmap):  # an uncompressed file: mapped, not read
        data = np.array(data)
    return nib.Nifti1Image(data, img.affine, img.header, dtype=data.dtype)


def run_method(function, mode, in_memory, fmri_path, mask_paths, n_jobs=None):
    """Do the whole work of one method, from the files to the arrays.

    Parameters
    ----------
    function : callable
        The function of the method.
    mode : {"single", "loop", "parallel", "one pass"}
        The function takes one mask if it is single, a list of masks otherwise, and also the
        number of workers if it is parallel.
    in_memory : bool
        Pass images whose data are in memory instead of paths.
    fmri_path : path
        4D image.
    mask_paths : list of paths
        3D masks on its grid.
    n_jobs : int, optional
        Workers of a parallel method; one for each mask by default.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for the first mask if the mode is single, else one for each mask.
    """
    load = load_in_memory if in_memory else Path
    fmri = load(fmri_path)
    if mode == "single":
        return [function(fmri, load(mask_paths[0]))]
    masks = [load(mask_path) for mask_path in mask_paths]
    if mode == "parallel":
        return function(fmri, masks, n_jobs or len(masks))
    return function(fmri, masks)


# %%
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_measured_methods.py`: how each method is run and measured.
