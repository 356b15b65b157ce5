"""
Shared memory: all workers use one copy of the image
====================================================

:term:`Workers <worker>` on one machine can access the same memory. An image in
:term:`shared memory` exists once, however many workers there are. On this page you will

1. fill a :term:`block` of shared memory from the image's file, volume by volume, so that no second
   copy ever exists,
2. let workers attach to the block by its name and extract their voxels, and
3. see what goes wrong when you give joblib the array itself, which looks the same.
"""

# %%
# What a worker does
# ------------------
# A worker gets the name of the block, and the shape and type of the image in it, but not its
# content. Indexing with a mask copies the region's voxels. An array over the block must not outlive
# it: accessing it would crash Python. So it is never bound to a name.

import sys
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from beyond_the_masker.extract.checks import as_nifti_masker


def numpy_masker_shared_single(block_name, shape, dtype, mask):
    """Extract the time series of one mask, an array of bool, from an image in shared memory."""
    # Since Python 3.13 a worker can leave the tracking of a block to the process that made it.
    untracked = {"track": False} if sys.version_info >= (3, 13) else {}
    block = SharedMemory(name=block_name, **untracked)
    try:
        voxels = np.ndarray(shape, dtype, buffer=block.buf, order="F")[mask]
    finally:
        block.close()
    return as_nifti_masker(voxels)


# %%
# One copy of the image
# ---------------------
# A NIfTI file stores one volume after the other, so the image is read once, in order. Linux kills a
# process that writes to ``/dev/shm`` when it is full, so ``shared_block`` reserves all the space
# before writing. It removes the block whatever happens: a region fails, you press Ctrl-C, a worker
# or your script is killed.

from contextlib import contextmanager

from beyond_the_masker.extract.checks import open_checked, read_volumes, size_in_bytes, value_type
from beyond_the_masker.extract.orphans import shared_block


@contextmanager
def shared_copy(fmri_img):
    """Yield a block of shared memory with the values of an image; remove it in the end."""
    with shared_block(size_in_bytes(fmri_img)) as block:
        like = {"shape": fmri_img.shape, "dtype": value_type(fmri_img), "order": "F"}
        for i, volume in enumerate(read_volumes(fmri_img)):
            np.ndarray(buffer=block.buf, **like)[..., i] = volume
        yield block


# %%
# All masks in parallel
# ---------------------
# The image and the masks are opened and checked as on the other pages. The block exists while the
# workers need it, and no longer. ``WORKERS`` lets a worker end with the process that started it;
# otherwise it would keep the block for minutes if that process is killed.

from joblib import Parallel, delayed

from beyond_the_masker.extract.orphans import WORKERS


def numpy_masker_shared_parallel(fmri, masks, n_jobs):
    """Extract the voxel time series of several masks from one shared copy of the image.

    Image and masks are paths or nibabel images. Return an array of shape (n_timepoints, n_voxels)
    for each mask, with the values of NiftiMasker.
    """
    fmri_img, mask_arrays = open_checked(fmri, masks)
    with shared_copy(fmri_img) as block:
        return Parallel(n_jobs=n_jobs, **WORKERS)(
            delayed(numpy_masker_shared_single)(
                block.name, fmri_img.shape, value_type(fmri_img), mask
            )
            for mask in mask_arrays
        )


# %%
# What it costs
# -------------
# A worker adds only its interpreter, its imports and the voxels of its region. In a measurement the
# workers start first, and wait while the calling process fills the block: so their memory rises
# before that of the block.

from beyond_the_masker.experiments.experiment import measure_methods, prepare_all
from beyond_the_masker.draw.figures import plot_traces

fmri_path, mask_paths, _, image_mib = prepare_all()
traces = measure_methods(numpy_masker_shared_parallel)
plot_traces(traces, image_mib)

# %%
# Is it one copy?
# ---------------
# The memory meter counts shared memory once, so its peak shows how many copies of the image there
# were. (With a single region joblib starts no worker, and nothing is shared.)

from beyond_the_masker.meter import Trace


def print_copies(trace):
    """Print how much shared memory a call used, as copies of the image."""
    if not isinstance(trace, Trace) or trace.exception or trace.shm_mib is None:
        print("not measured")
    else:
        print(f"shared memory: {trace.shm_mib.max() / image_mib:.2f} times the image")
        print(f"{trace.metric}: {trace.above_mib:,.0f} MiB above the start, with all workers")


print_copies(*traces.values())

# %%
# What goes wrong when the array is sent
# --------------------------------------
# When an array over shared memory is an argument of a task, joblib treats it like every array of
# more than 1 MB: it writes it to a file, in ``/dev/shm`` if that has 2 GB free. The result is a
# second full copy in shared memory, and the workers never use the block.


from beyond_the_masker.extract.checks import take


def shared_array_as_argument(fmri_path, mask_paths, n_jobs):
    """Give joblib the array over the block instead of its name: do not copy this."""
    fmri_img, masks = open_checked(fmri_path, mask_paths)
    with shared_copy(fmri_img) as block:
        data = np.ndarray(fmri_img.shape, value_type(fmri_img), buffer=block.buf, order="F")
        try:
            return Parallel(n_jobs=n_jobs, **WORKERS)(delayed(take)(data, m) for m in masks)
        finally:
            del data


# %%
# Both copies must fit into ``/dev/shm``. In this call the workers start when the block is full, as
# in a script of your own:

from beyond_the_masker.predict.budget import available_shm_mib, guard
from beyond_the_masker.meter import measure

like = "NumPy indexing, in-memory image, parallel"
_, reason = guard(like, fmri_path, mask_paths, len(mask_paths))
if reason or 2 * image_mib > available_shm_mib():
    print(f"not run: {reason or '/dev/shm cannot hold two copies.'}")
else:
    sent = measure(shared_array_as_argument, fmri_path, mask_paths, len(mask_paths))
    print_copies(sent)
    plot_traces({"The array is sent to the workers": sent}, image_mib, repeated=False)

# %%
# What to conclude
# ----------------
# Shared memory holds the image once, for any number of workers, as long as they get the block's
# name. The remaining cost is the workers themselves, with their imports. This method takes more
# care than the others: the space in ``/dev/shm`` is limited (64 MB in a container by default), and
# you must remove the block.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_1_methods_plot_in_memory.py`: also one copy, with less to take
#   care of.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: no copy at all, and no workers.
