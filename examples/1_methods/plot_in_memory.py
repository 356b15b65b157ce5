"""
When the image must be in memory: threads
=========================================

Sometimes you need the whole image as an array: you use its voxels again and again, or you choose
masks while you look at the results. Then at least one copy must be in memory. The :term:`threads
<thread>` of one process share that copy. On this page you will

1. read an image into one array, without a second copy on the way,
2. extract all masks from it in threads, and
3. see that NumPy lets threads work at the same time.
"""

# %%
# The function
# ------------
# The image is read volume by volume into one array. ``np.asanyarray`` on a compressed file would
# hold the decompressed bytes and the array at the same time. An image whose data are in memory
# already is used as it is. ``take(data, mask)`` is ``data[mask]`` in NiftiMasker's form.

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed

from beyond_the_masker.extract.checks import open_checked, read_volumes, take, value_type


def numpy_masker_threads(fmri, masks, n_jobs):
    """Extract the voxel time series of several masks from one array, in threads.

    Image and masks are paths or nibabel images. Return an array of shape (n_timepoints, n_voxels)
    for each mask, with the values of NiftiMasker.
    """
    fmri_img, mask_arrays = open_checked(fmri, masks)
    data = fmri_img.dataobj
    if nib.is_proxy(data):  # on disk, so far
        data = np.empty(fmri_img.shape, value_type(fmri_img), order="F")
        for i, volume in enumerate(read_volumes(fmri_img)):
            data[..., i] = volume
    tasks = (delayed(take)(data, mask) for mask in mask_arrays)
    return Parallel(n_jobs=n_jobs, prefer="threads")(tasks)


# %%
# The first volumes, and all masks:

from beyond_the_masker.inputs.data import first_volumes
from beyond_the_masker.experiments.experiment import prepare_all

fmri_path, mask_paths, _, image_mib = prepare_all()
for series in numpy_masker_threads(first_volumes(fmri_path), mask_paths, n_jobs=2):
    print(f"{series.shape[0]} volumes, {series.shape[1]} voxels, {series.dtype}")

# %%
# Do threads wait for each other?
# -------------------------------
# Python runs one thread at a time: the one that has the global interpreter lock (GIL). NumPy
# releases the lock when it indexes with a mask. To see that, one thread indexes while this one
# counts how often it gets a turn. If NumPy kept the lock, that would be once or twice.

import threading
import time

array = np.ones((50, 50, 50, 200), "float32", order="F")
indexing = threading.Thread(target=array.__getitem__, args=(np.ones(array.shape[:3], bool),))
turns = 0
indexing.start()
while indexing.is_alive():
    turns += 1
    time.sleep(0.001)
print(f"While one thread indexed, the other had {turns} turns.")

# %%
# For the regions of an atlas this hardly matters: taking a few hundred voxels out of an array takes
# milliseconds. Most of the time goes into reading the file, which happens once.
#
# What it costs
# -------------

from beyond_the_masker.experiments.experiment import measure_methods
from beyond_the_masker.draw.figures import plot_traces

plot_traces(measure_methods(numpy_masker_threads), image_mib)

# %%
# What to conclude
# ----------------
# For taking voxels from an image in memory, threads are the simplest way: one array, one process,
# no file, and next to no memory beyond the array. Your own Python code holds the lock, so run it
# in processes; they can share an image too. If you take voxels only once, the image need not be in
# memory at all.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_1_methods_plot_mapped_file.py`: worker processes share
#   one file, and the image need not fit in memory.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: when the image need not be in
#   memory.
