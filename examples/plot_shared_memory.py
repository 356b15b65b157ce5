"""
Shared memory: one copy of the image for all
============================================

:term:`Workers <worker>` on one machine can look at the same memory. If the image is put
there once, it is there once, however many workers there are. On this page you will

1. fill a :term:`block` of :term:`shared memory` from the image's file, part by part, so
   that no second copy exists at any time,
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

if __name__ == "__main__":
    from measured_methods import measure_methods, plot_traces, prepare_all

    fmri_path, mask_paths, _, image_mib = prepare_all()
    traces = measure_methods(numpy_masker_shared_parallel)
    plot_traces(traces, image_mib)

# %%
# Is it one copy?
# ---------------
# The workers' imports take memory too. What they take shows when the same call works on the
# first volume alone. What is left above that is the image, once, and what the workers take out
# of it at the moment of the peak. The surer evidence is the files in ``/dev/shm``, which count
# whether or not a process looks at them: the image should be there once. (With a single region
# joblib starts no worker, and there is nothing to share.)

if __name__ == "__main__":
    import tempfile
    from peak_memory import Trace, measure
    from whole_experiment import METHODS, run

    shared = next(m for m in METHODS if m.function.__name__ == "numpy_masker_shared_parallel")
    with tempfile.TemporaryDirectory() as folder:
        one_volume = Path(folder) / "one_volume.nii.gz"
        nib.load(fmri_path).slicer[..., :1].to_filename(one_volume)
        imports = measure(run, shared, one_volume, mask_paths)
    imports.result()
    imports_mib = imports.peak_pss_mib - imports.before_mib

    def print_copies(title, trace):
        """Print how often the image is in memory, as processes and as files show it."""
        if not isinstance(trace, Trace) or trace.exception is not None:
            print(f"{title}: was not run to its end")
            return
        if image_mib < 50:
            print(f"{title}: the image is too small to tell a copy of it from noise")
            return
        above_mib = trace.peak_pss_mib - trace.before_mib
        print(f"{title}:")
        print(f"  {above_mib:,.0f} MiB above the start, {imports_mib:,.0f} MiB of it imports:")
        print(f"  leaves {(above_mib - imports_mib) / image_mib:.2f} times the image")
        if trace.shm_mib is not None:
            print(f"  files in /dev/shm: {trace.shm_mib.max() / image_mib:.2f} times the image")

    print_copies("the block's name is sent", *traces.values())

# %%
# What goes wrong when the array is sent
# --------------------------------------
# An array over shared memory looks like any other array. When it is an argument of a task,
# joblib does with it what it does with every array of more than 1 MB: it writes it to a file
# in shared memory. That is a second full copy, and the workers never see the block. The
# files in ``/dev/shm`` show both copies in full; PSS shows of the second what workers have
# looked at so far.


def take(data, mask):
    """Take the voxels of a mask out of an array."""
    return data[mask].T


def shared_array_as_argument(fmri_path, mask_paths, n_regions):
    """Not to be copied: give joblib the array over the block instead of its name."""
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


if __name__ == "__main__":
    # As a function of the module: workers then import the same as above.
    from memory_budget import available_shm_mib, guard
    from plot_shared_memory import shared_array_as_argument

    # As much as an image in memory that is sent to workers, with both copies in /dev/shm.
    like = "NumPy indexing, in-memory image, parallel"
    _, reason = guard(like, fmri_path, mask_paths, len(mask_paths))
    if reason or 2 * image_mib > available_shm_mib():
        print(f"the array is sent: not run. {reason or 'There is no room for two copies.'}")
    else:
        sent = measure(shared_array_as_argument, fmri_path, mask_paths, len(mask_paths))
        print_copies("the array is sent", sent)
        ax = sent.plot(image_mib=image_mib, title="The array is sent to the workers")

# %%
# What to conclude
# ----------------
# Shared memory holds the image once, for any number of workers, as long as they get the
# block's name. What else is paid for is the workers themselves: each is a Python process
# that imports what it needs. It takes more care than the other methods: the room in
# ``/dev/shm`` is limited (64 MB in a container, unless one asks for more), and somebody has
# to remove the block.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_in_memory.py`: one copy with less care to take, in threads or
#   in a file.
# * :ref:`sphx_glr_auto_examples_plot_stream_masks.py`: no copy at all, and no workers.
