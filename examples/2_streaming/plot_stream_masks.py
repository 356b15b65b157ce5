"""
All masks in one pass over the file
===================================

The :term:`voxels <voxel>` of all masks together are a small part of the image, and a NIfTI
file holds one volume after the other. So the image need not be in memory at all: read a
volume, extract every mask's voxels, discard the volume, and read the next. One pass serves
all masks. On this page you will

1. write the function that does it and returns exactly NiftiMasker's values,
2. write results to files, in case they do not fit into memory, and
3. measure what it costs, in memory and in time.
"""

# %%
# The function
# ------------
# Most of the time goes into decompression. If isal is installed, it decompresses much faster than
# Python's own gzip, with the same result. nibabel interprets the header: its
# :term:`proxy <proxy image>` has the type of the data and the place where they begin, and
# :func:`~nibabel.volumeutils.apply_read_scaling` applies the scale factors, here only to the
# voxels in the masks.
#
# The order of voxels needs care. In a file x changes fastest (Fortran order), while in
# NiftiMasker's arrays z changes fastest (C order of the mask). An array of all positions in
# Fortran order, indexed with the mask, gives the positions in NiftiMasker's order.
#
# The file is read to its very end: gzip stores its checksum there, so a damaged file raises an
# error.

from pathlib import Path

import numpy as np



# %%
# Results in files
# ----------------
# With a mask of the whole brain, the result can be nearly as large as the image. It can go
# into ``.npy`` files: pass their names as ``out``, and copy the following functions as well. A
# file gets its name when it is complete; until then it has another one. The function returns maps
# of the files: their parts are read when you access them, and the system may drop them again
# when memory runs short.
#
# Each block is appended to each file, which is opened for that and closed again. So there may be
# any number of files, memory does not grow with them, and a full disk is an ordinary error.
# (Writing to a map of a file on a full disk would end the process.)

# %%
# What it costs
# -------------
# The same measurement as for the other methods: a fresh process, sampled from outside, with the
# arrays compared with NiftiMasker's. There are no workers.
from beyond_the_masker.experiment import measure_methods, prepare_all
from beyond_the_masker.figures import plot_traces
from beyond_the_masker.streaming import stream_masks

fmri_path, mask_paths, reference, image_mib = prepare_all()
traces = measure_methods(stream_masks)
plot_traces(traces, image_mib)

# %%
# How much of the memory above the start is the result:

trace = traces["Streaming, masks, one pass"]
output_mib = sum(series.nbytes for series in reference) / 2**20
print(f"the image in memory would be     {image_mib:8.1f} MiB")
if hasattr(trace, "above_mib"):  # it was run
    print(f"peak above the start             {trace.above_mib:8.1f} MiB")
print(f"the result                       {output_mib:8.1f} MiB")

# %%
# The same into files:

import tempfile

with tempfile.TemporaryDirectory() as folder:
    names = [Path(folder) / f"region_{i}.npy" for i in range(len(mask_paths))]
    for series in stream_masks(fmri_path, mask_paths, out=names):
        print(type(series).__name__, series.shape, series.dtype)
    same = all(
        np.array_equal(np.load(name, mmap_mode="r"), series)
        for name, series in zip(names, reference, strict=True)
    )
    print(f"the files hold NiftiMasker's arrays: {same}")

# %%
# Many images
# -----------
# One image needs no workers. For many images, use one task per image: each worker then needs its
# imports and the memory above. :mod:`beyond_the_masker.study` does that, on one machine or on a
# cluster, and continues where it was interrupted.
#
# What to conclude
# ----------------
# For the voxels of any number of masks, this function is enough on any machine, for an image of
# any length: memory grows with the result, and results too large for memory can go into files.
# :ref:`sphx_glr_auto_examples_3_cost_plot_limit.py` compares its time with the time to decompress the
# file, and shows how both grow. If you need more than voxels, such as smoothing, filtering or
# averages, go on with :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masker.py`.
#
# The function refuses a mask on another grid; it does not resample it. It does not detect a file
# that changes while being read.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masker.py`: when you need more than voxels.
# * :ref:`sphx_glr_auto_examples_3_cost_plot_limit.py`: how close this comes to the decompression time,
#   and how it grows.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_one_machine.py`: a study, one image for each worker.
