"""
One run of one method
=====================

The whole work of one method, from the files to the arrays. This module imports NumPy and nibabel
only, which every method needs. A fresh process that imports it and the page of one method holds
what that method needs, and nothing else: the memory before the call is the method's own.
"""

import tempfile
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


def run_method(function, mode, in_memory, fmri_path, mask_paths, n_jobs=None, workers=False):
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
    workers : bool
        Whether they are processes. If so, they are started before the work begins. Else the first
        ones would be through with a small image before the last one is there, and chance would
        decide how many of them take memory at the same time.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for the first mask if the mode is single, else one for each mask.
    """
    n_jobs = n_jobs or len(mask_paths)
    if workers and n_jobs > 1:
        start_workers(n_jobs)
    load = load_in_memory if in_memory else Path
    fmri = load(fmri_path)
    if mode == "single":
        return [function(fmri, load(mask_paths[0]))]
    masks = [load(mask_path) for mask_path in mask_paths]
    if mode == "parallel":
        return function(fmri, masks, n_jobs)
    return function(fmri, masks)


def start_workers(n_workers):
    """Start joblib's workers, which the next call of `joblib.Parallel` uses, and wait for all.

    Parameters
    ----------
    n_workers : int
    """
    from joblib import Parallel, delayed, effective_n_jobs

    def meet(folder, number):  # as an inner function, it makes workers import nothing
        import os
        import time

        open(os.path.join(folder, str(number)), "w").close()
        deadline = time.monotonic() + 60
        while len(os.listdir(folder)) < n_workers and time.monotonic() < deadline:
            time.sleep(0.005)

    if effective_n_jobs(n_workers) < n_workers:
        return  # joblib works without processes here
    with tempfile.TemporaryDirectory() as folder:
        Parallel(n_jobs=n_workers, batch_size=1)(delayed(meet)(folder, i) for i in range(n_workers))
