"""
All masks in one pass over the file
===================================

A masker loads the whole image to extract a few of its :term:`voxels <voxel>`. But a NIfTI file
stores one volume after the other, so the image need not be in memory at all: read a volume, keep
the voxels of every mask, discard the volume, and read the next. One pass serves all masks. On this
page you will

1. write this in fifteen lines, and compare the result with NiftiMasker's,
2. see what a function for real data adds, and where to get it, and
3. measure what it costs, in memory and in time.
"""

# %%
# The idea in fifteen lines
# -------------------------
# nibabel interprets the header: its :term:`proxy <proxy image>` has the type of the data and the
# position where they begin, and :func:`~nibabel.volumeutils.apply_read_scaling` applies the scale
# factors, here only to the voxels in the masks.
#
# The order of voxels needs care. In the file x changes fastest (Fortran order), in NiftiMasker's
# arrays z does (C order). So number the grid in Fortran order, then index these numbers with the
# mask: the result is each voxel's position in the file, in NiftiMasker's order.

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.volumeutils import apply_read_scaling


def stream_without_checks(fmri_path, mask_paths):
    """Return an array of shape (n_timepoints, n_voxels) for each mask."""
    proxy = nib.load(fmri_path).dataobj
    grid, n_volumes = proxy.shape[:3], proxy.shape[3]
    in_file = np.arange(np.prod(grid)).reshape(grid, order="F")
    places = [in_file[np.asarray(nib.load(path).dataobj) != 0] for path in mask_paths]
    every_series = [[] for _ in places]
    with ImageOpener(proxy.file_like) as file:
        file.seek(proxy.offset)
        for _ in range(n_volumes):
            volume = np.frombuffer(file.read(in_file.size * proxy.dtype.itemsize), proxy.dtype)
            for series, place in zip(every_series, places, strict=True):
                voxels = apply_read_scaling(volume[place], proxy.slope, proxy.inter)
                series.append(voxels)
    return [np.array(series) for series in every_series]


# %%
# Call it with the image and the masks of this build, and compare with NiftiMasker. The arrays are
# equal if all voxels are finite; NiftiMasker replaces the others by zero:

from beyond_the_masker.experiments.experiment import prepare_all
from beyond_the_masker.draw.figures import plot_series

fmri_path, mask_paths, reference, image_mib = prepare_all()
every_series = stream_without_checks(fmri_path, mask_paths)
for number, (series, expected) in enumerate(zip(every_series, reference, strict=True), 1):
    print(f"mask {number}: {series.shape}, equal to NiftiMasker: ", end="")
    print(np.array_equal(series, expected))

# %%
# The mean over each region's voxels, for the first regions:

means = {f"region {i}": series.mean(axis=1) for i, series in enumerate(every_series[:4], 1)}
plot_series(means, "Region means", "mean (arbitrary units)")

# %%
# The function for real data
# --------------------------
# :func:`~beyond_the_masker.stream_masks` is the same loop in small functions. In
# addition, it
#
# * refuses a mask that is empty or on another grid, which would select the wrong voxels
#   (``find_voxels``);
# * takes a label image, each label a region, or a 4D image, each volume a region, in place of a
#   list of masks; probabilities need a ``threshold``, and different values in a mask of a list
#   cause a warning (``regions_in``);
# * takes volumes or runs in files of their own, as a list or a pattern such as ``vol_*.nii``: one
#   file after the other, never joined (``open_series``);
# * reads the file to its end, where gzip stores its checksum: a damaged file raises an error
#   instead of returning wrong numbers (``read_volumes``);
# * decompresses with isal if it is installed, which is much faster than Python's own gzip
#   (``open_data``);
# * collects the voxels of a few volumes, so that files are written in larger pieces
#   (``read_voxels``);
# * returns NiftiMasker's types, and zeros where values are not finite (``to_values``);
# * writes into your own arrays or files (``prepare_results``).
#
# It is one file, and it needs nibabel, NumPy and tqdm: save :download:`streaming.py
# <../../../examples/beyond_the_masker/extract/streaming.py>` next to your script and write
# ``from streaming import stream_masks``, or :ref:`install the package <install>`.
#
# .. dropdown:: The whole file
#
#     .. literalinclude:: ../../../examples/beyond_the_masker/extract/streaming.py

from beyond_the_masker.extract.streaming import stream_masks

every_series = stream_masks(fmri_path, mask_paths)

# %%
# Results in files
# ----------------
# With a mask of the whole brain, the result can be nearly as large as the image. Pass the names of
# ``.npy`` files as ``out``, and memory no longer grows with the result. The function then returns
# :term:`memory maps <memory map>`.

import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    names = [Path(folder) / f"region_{i}.npy" for i in range(len(mask_paths))]
    maps = stream_masks(fmri_path, mask_paths, out=names)
    same = all(np.array_equal(a, b) for a, b in zip(maps, reference, strict=True))
    print(f"{len(maps)} files such as {names[0].name}; equal to NiftiMasker: {same}")

# %%
# What it costs
# -------------
# Measured like the other methods: in a fresh process, sampled from outside. There are no workers,
# and most of the time goes into :term:`decompression`.

from beyond_the_masker.experiments.experiment import measure_methods
from beyond_the_masker.draw.figures import plot_traces

plot_traces(measure_methods(stream_masks), image_mib)

# %%
# The result is part of the peak:

print(f"the image in memory would be {image_mib:8,.0f} MiB")
print(f"the result                   {sum(s.nbytes for s in reference) / 2**20:8,.0f} MiB")

# %%
# What to conclude
# ----------------
# For the voxels of any number of masks, this function is enough on any machine and for an image of
# any length: memory grows only with the result, and a result too large for memory can go into
# files. The function does not resample masks. A mask whose affine differs only by rounding is used
# unchanged; NiftiMasker would resample the image, which can lose a slice. If the
# image changes while it is read, you get an error.
#
# One image needs no workers. For many images, use one task per image:
# :mod:`beyond_the_masker.studies.study` does that, on one machine or on a cluster, and continues
# where it was interrupted.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_region_averages.py`: one series for each region of
#   an atlas, cleaned, and how similar they are.
# * :ref:`sphx_glr_auto_examples_3_cost_plot_limit.py`: how close this comes to the decompression
#   time, and how it grows.
