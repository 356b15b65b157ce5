"""
Shared memory: one copy of the image for all
============================================

:term:`Workers <worker>` on one machine can access the same memory. An image in
:term:`shared memory` is there once, however many workers there are. On this page you will

1. fill a :term:`block` of shared memory from the image's file, part by part, so that no second
   copy ever exists,
2. let workers attach to the block by its name and take their voxels out, and
3. see what goes wrong when you give the array itself to joblib, which looks the same.
"""

# %%
# What a worker does
# ------------------
# A worker gets the name of the block, not its content. Indexing with a mask makes a copy of
# the region's voxels; nothing else leaves the block. The array over the block must not
# outlive it: accessing it then crashes Python, so it is never bound to a name.

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
    # Since Python 3.13 a worker can leave the tracking of a block to the process that made it.
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
# every part is read once, in order, as long as the file stays open. The block is removed
# whatever happens after it was made: a region fails, a worker is killed, the user interrupts.
# Linux ends a process that writes to shared memory when there is none left, so we check the
# free space first.

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
        The image is not 4D, or has no volume, or a mask is not 3D; their grids or affines
        differ; a mask is empty.
    OSError
        A file is incomplete, or so damaged that it cannot be read.
    MemoryError
        There is not enough room for shared memory.
    """
    fmri_img, *mask_imgs = (
        item
        if isinstance(item, nib.spatialimages.SpatialImage)
        else nib.load(item, keep_file_open=True)
        for item in (fmri, *masks)
    )
    mask_arrays = []
    for mask_img in mask_imgs:
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
                f"{mask_img.get_filename()} is incomplete or damaged ({error}). "
                "Copy or download it again."
            ) from error
        mask_arrays.append(np.isfinite(mask) & (mask != 0))
        if not mask_arrays[-1].any():
            raise ValueError("A mask is empty: none of its voxels differs from zero.")

    shape, volumes = fmri_img.shape, fmri_img.dataobj
    dtype = volumes[..., :0].dtype  # scale factors applied; nothing is read yet
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
        try:
            for i in range(shape[3]):
                data[..., i] = volumes[..., i]
        except (EOFError, ValueError, zlib.error) as error:
            raise OSError(
                f"{fmri_img.get_filename()} is incomplete or damaged ({error}). "
                "Copy or download it again."
            ) from error
        return Parallel(n_jobs=n_regions)(
            delayed(numpy_masker_shared_single)(block.name, shape, dtype, mask)
            for mask in mask_arrays
        )
    finally:
        data = None  # the array over the block must not outlive it
        block.close()
        block.unlink()


# %%
# What it costs
# -------------

from beyond_the_masker.experiment import measure_methods, prepare_all
from beyond_the_masker.figures import plot_traces

fmri_path, mask_paths, _, image_mib = prepare_all()
traces = measure_methods(numpy_masker_shared_parallel)
plot_traces(traces, image_mib)

# %%
# Is it one copy?
# ---------------
# The meter counts shared memory once, whether or not a process maps it at that moment. So its
# peak shows how many copies of the image there were. (With a single region joblib starts no
# worker, and there is nothing to share.)

from beyond_the_masker.meter import Trace, measure


def print_copies(title, trace):
    """Print how much shared memory a call used, as copies of the image, and its peak."""
    if not isinstance(trace, Trace) or trace.exception is not None:
        print(f"{title}: not run to its end")
        return
    print(f"{title}:")
    if trace.shm_mib is not None:
        shm_mib = trace.shm_mib.max()
        print(f"  shared memory {shm_mib:,.0f} MiB: {shm_mib / image_mib:.2f} times the image")
    print(f"  {trace.metric} {trace.above_mib:,.0f} MiB above the start, workers included")


print_copies("the block's name is sent", *traces.values())

# %%
# What goes wrong when the array is sent
# --------------------------------------
# An array over shared memory looks like any other array. When it is an argument of a task,
# joblib treats it like every array of more than 1 MB: it writes it to a file, in ``/dev/shm`` if
# that has 2 GB free. This is a second full copy in shared memory, and the workers never use the
# block.


def take(data, mask):
    """Take the voxels of a mask out of an array."""
    return data[mask].T


def shared_array_as_argument(fmri_path, mask_paths, n_regions):
    """Give joblib the array over the block instead of its name: do not copy this."""
    volumes = nib.load(fmri_path, keep_file_open=True).dataobj
    dtype = np.asanyarray(volumes[..., :1]).dtype
    block = SharedMemory(create=True, size=dtype.itemsize * int(np.prod(volumes.shape)))
    try:
        data = np.ndarray(volumes.shape, dtype, buffer=block.buf, order="F")
        for i in range(volumes.shape[3]):
            data[..., i] = volumes[..., i]
        masks = [np.asarray(nib.load(mask_path).dataobj) != 0 for mask_path in mask_paths]
        return Parallel(n_jobs=n_regions)(delayed(take)(data, mask) for mask in masks)
    finally:
        data = None
        block.close()
        block.unlink()


# As a function of the module, so that workers import the same as above.

from beyond_the_masker.budget import available_shm_mib, guard

# It needs as much as an image in memory that is sent to workers, with both copies in /dev/shm.
like = "NumPy indexing, in-memory image, parallel"
_, reason = guard(like, fmri_path, mask_paths, len(mask_paths))
free_mib = available_shm_mib()
if reason or 2 * image_mib > free_mib:
    print(f"the array is sent: not run. {reason or '/dev/shm cannot hold two copies.'}")
else:
    sent = measure(shared_array_as_argument, fmri_path, mask_paths, len(mask_paths))
    print_copies("the array is sent", sent)
    if free_mib < 2e9 / 2**20:
        print("  /dev/shm has less than 2 GB free: joblib's copy is a file elsewhere")
    ax = sent.plot(image_mib=image_mib, title="The array is sent to the workers")

# %%
# What to conclude
# ----------------
# Shared memory holds the image once, for any number of workers, as long as they get the
# block's name. The remaining cost is the workers themselves: each is a Python process that
# imports what it needs. This method takes more care than the others: the space in ``/dev/shm``
# is limited (64 MB in a container by default), and you must remove the block.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_1_methods_plot_in_memory.py`: one copy that takes less care, in threads or
#   in a file.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: no copy at all, and no workers.
