"""
Shared memory: one copy of the image for all
============================================

Workers on one machine can look at the same memory. If the image is put there once, it is
there once, however many workers there are. On this page you will

1. fill a block of shared memory from the image's file, part by part, so that no second copy
   exists at any time,
2. let workers attach to the block by its name and take their voxels out, and
3. see what goes wrong when the array itself is given to joblib, which looks the same.
"""

# %%
# What a worker does
# ------------------
# A worker gets the name of the block, not its content. Indexing with a mask makes a copy of
# the region's voxels; nothing else leaves the block. The array over the block must not
# outlive it, because touching it then ends the interpreter, so it is never given a name.

import sys
from multiprocessing.shared_memory import SharedMemory

import numpy as np


def numpy_masker_shared_single(block_name, shape, dtype, mask):
    """Extract the voxel time series of one mask from an image in shared memory.

    Parameters
    ----------
    block_name : str
        Name of the `multiprocessing.shared_memory.SharedMemory` block with the image.
    shape : tuple of int
        Shape of the image, (x, y, z, n_timepoints).
    dtype : numpy.dtype
        Type of the image's values in the block.
    mask : array of bool, shape (x, y, z)
        True in the region.

    Returns
    -------
    array of shape (n_timepoints, n_voxels)
        float32 or float64, as the image; integers become float32. Voxels are in C order
        of the mask. Values that are not finite are replaced by zero, as NiftiMasker does.

    Raises
    ------
    FileNotFoundError
        There is no block of that name.
    """
    # From Python 3.13 on, a worker can leave the tracking of blocks to whoever made them.
    untracked = {"track": False} if sys.version_info >= (3, 13) else {}
    block = SharedMemory(name=block_name, **untracked)
    try:
        series = np.ndarray(shape, dtype, buffer=block.buf, order="F")[mask].T
    finally:
        block.close()
    dtype = series.dtype.newbyteorder("=") if series.dtype.kind == "f" else "float32"
    series = np.ascontiguousarray(series, dtype=dtype)
    return np.nan_to_num(series, copy=False, nan=0, posinf=0, neginf=0)


# %%
# All masks in parallel
# ---------------------
# The image is copied volume by volume: a NIfTI file stores one volume after the other, so
# every part is read once, in order, as long as the file stays open. Whatever happens after
# the block was made, the block goes away: a region that fails, a worker that is killed, an
# interrupt. Linux ends a process that writes to shared memory when there is none left, so
# the room is looked at first.

import shutil
import zlib
from pathlib import Path

import nibabel as nib
from joblib import Parallel, delayed


def numpy_masker_shared_parallel(fmri, masks, n_regions):
    """Extract the voxel time series of several masks from one shared copy of the image.

    Parameters
    ----------
    fmri : path or nibabel.Nifti1Image
        4D image.
    masks : list of paths or of nibabel.Nifti1Image
        3D masks on the grid of the image: non-zero in the region.
    n_regions : int
        Number of workers.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask; see `numpy_masker_shared_single`.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        The image is not 4D or a mask not 3D; their grids or affines differ; a mask is
        empty.
    OSError
        The image's file is incomplete or damaged.
    MemoryError
        There is not enough room for shared memory.
    """
    fmri_img, *mask_imgs = (
        item if isinstance(item, nib.Nifti1Pair) else nib.load(item, keep_file_open=True)
        for item in (fmri, *masks)
    )
    mask_arrays = []
    for mask_img in mask_imgs:
        if (
            fmri_img.ndim != 4
            or mask_img.shape != fmri_img.shape[:3]
            or not np.allclose(mask_img.affine, fmri_img.affine)
        ):
            raise ValueError(
                "A 4D image and a 3D mask on its grid are needed; the image has shape "
                f"{fmri_img.shape} and the mask {mask_img.shape}, and their affines are\n"
                f"{fmri_img.affine}\nand\n{mask_img.affine}\nTo bring a mask to the grid: "
                "nilearn.image.resample_to_img(mask, image, interpolation='nearest')."
            )
        mask_arrays.append(np.asarray(mask_img.dataobj) != 0)
        if not mask_arrays[-1].any():
            raise ValueError("A mask is empty: none of its voxels differs from zero.")

    shape, volumes = fmri_img.shape, fmri_img.dataobj
    dtype = np.asanyarray(volumes[..., :1]).dtype
    size = dtype.itemsize * int(np.prod(shape))
    if Path("/dev/shm").is_dir() and size > shutil.disk_usage("/dev/shm").free:
        raise MemoryError(
            f"The image needs {size / 2**20:,.0f} MiB of shared memory, and /dev/shm has "
            f"{shutil.disk_usage('/dev/shm').free / 2**20:,.0f} MiB left. Make room there "
            "(docker: --shm-size), or use a method that needs no shared memory."
        )
    block = SharedMemory(create=True, size=size)
    try:
        data = np.ndarray(shape, dtype, buffer=block.buf, order="F")
        for i in range(shape[3]):
            data[..., i] = volumes[..., i]
        return Parallel(n_jobs=n_regions)(
            delayed(numpy_masker_shared_single)(block.name, shape, dtype, mask)
            for mask in mask_arrays
        )
    except (EOFError, zlib.error) as error:
        raise OSError(
            f"{fmri} is incomplete or damaged ({error}). Copy or download it again."
        ) from error
    finally:
        data = None  # the array over the block must not outlive it
        block.close()
        block.unlink()


# %%
# What it costs
# -------------

if __name__ == "__main__":
    from measured_methods import measure_methods, plot_traces

    traces = measure_methods(numpy_masker_shared_parallel)
    plot_traces(traces)
