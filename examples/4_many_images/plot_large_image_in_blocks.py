"""
One large image over many workers
=================================

A study is divided into images, one for each worker. Can a single image that takes too long also be
divided? In an uncompressed NIfTI file, yes: all volumes have the same size, so the start of every
:term:`block` of volumes follows from the header, and each worker reads only its own part. On this
page you will

1. write the function that a worker runs, and use :func:`~beyond_the_masker.mask_blocks`, which
   returns the arrays of
   :ref:`one pass <sphx_glr_auto_examples_2_streaming_plot_stream_masks.py>`,
2. see why a ``.nii.gz`` cannot be divided, and
3. measure what workers gain.
"""

# %%
# A worker's block
# ----------------
# The image does not travel to the worker: it finds the file under the same path, opens it, reads
# its block and keeps the voxels of the mask.

import math

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed
from nibabel.volumeutils import apply_read_scaling


def extract_block(fmri_path, positions, start, stop):
    """Return an array of shape (n_volumes, n_voxels) for the volumes from start to stop."""
    proxy = nib.load(fmri_path).dataobj
    n_voxels = math.prod(proxy.shape[:3])
    with open(fmri_path, "rb") as file:
        file.seek(int(proxy.offset) + start * n_voxels * proxy.dtype.itemsize)
        stored = np.fromfile(file, proxy.dtype, (stop - start) * n_voxels)
    voxels = stored.reshape(-1, n_voxels)[:, positions]
    return apply_read_scaling(voxels, proxy.slope, proxy.inter)


# %%
# Two workers share the image of this build, uncompressed. In the file x changes fastest (Fortran
# order), in NiftiMasker's arrays z does.

from beyond_the_masker.experiments.benchmark import prepare_both
from beyond_the_masker.inputs.data import atlas_to_masks, get_atlas_path, prepare_fmri
from beyond_the_masker.experiments.experiment import identical
from beyond_the_masker.draw.figures import plot_series
from beyond_the_masker.options import read_options
from beyond_the_masker.extract.streaming import stream_masks

options = read_options()
packed, plain = prepare_both(prepare_fmri(options.n_images))
mask_imgs, mask_paths = atlas_to_masks(get_atlas_path(), packed, options.n_regions)
one_pass = stream_masks(packed, mask_paths)

inside = np.asarray(mask_imgs[0].dataobj) != 0
positions = np.arange(inside.size).reshape(inside.shape, order="F")[inside]
n_volumes = len(one_pass[0])
tasks = [(0, n_volumes // 2), (n_volumes // 2, n_volumes)]
rows = Parallel(n_jobs=2)(delayed(extract_block)(plain, positions, *task) for task in tasks)
series = np.concatenate(rows)
print(f"equal to one pass: {np.array_equal(series, one_pass[0])}")
means = {"region 1": series.mean(axis=1)}
plot_series(means, "A region, half from each worker", "mean (arbitrary units)")

# %%
# Any number of masks: mask_blocks
# --------------------------------
# :func:`~beyond_the_masker.mask_blocks` takes any number of masks, with joblib's
# processes or threads, or a Dask cluster. Before the first task it checks that the file has all
# volumes of its header, and after each block that the file has not changed.

from beyond_the_masker import mask_blocks

found = mask_blocks(plain, mask_paths, n_jobs=2)
print(f"identical to one pass: {identical(found, one_pass)}")

# %%
# Compressed files
# ----------------
# A gzip stream has one beginning: the meaning of a byte depends on those before it. To read a block
# from the middle, a worker must decompress and discard everything before it. So for *n* blocks of
# the same size, the workers together decompress (*n* + 1) / 2 times the file, and the last block
# takes as long as one pass. ``mask_blocks`` refuses such a file: take all masks in one pass, or
# decompress it once.
#
# What it costs
# -------------
# Time is a multiple of that of one pass over the ``.nii.gz``, with workers already started and the
# file in the page cache: otherwise the disk sets the limit. Memory is the :term:`peak` of all
# processes above the start, the imports of the workers included.

from beyond_the_masker.experiments.benchmark import measure_ways
from beyond_the_masker.draw.figures import plot_ways

ways = measure_ways(packed, plain, mask_paths)
ratios = {name: way["ratio"] for name, way in ways.items()}
above_mib = {name: way["above_mib"] for name, way in ways.items()}
plot_ways(ratios, above_mib, f"An image of {plain.stat().st_size / 2**20:,.0f} MiB")

# %%
# The same as a table; "identical" compares the arrays with those of one pass. The ratio is the
# median over pairs of runs, not the quotient of the seconds.

print("seconds  ratio   MiB  identical  way")
for name, way in ways.items():
    print(f"{np.median(way['seconds']):7.3f} {np.median(way['ratio']):6.2f} ", end="")
    print(f"{way['above_mib']:5,.0f}  {way['identical']!s:9}  {name}")

# %%
# What to conclude
# ----------------
# If you read an image more than once, decompress it once. On one machine, workers then gain little,
# because extracting voxels is fast. On the uncompressed file here:

many = ways["blocks, 2 workers, .nii"]
alone = np.median(ways["blocks, 1 process, .nii"]["seconds"])
print(f"1 process took {alone:.3f} s, 2 workers {np.median(many['seconds']):.3f} s, and ", end="")
print(f"{many['first']:.3f} s the first time, when they were started")

# %%
# Blocks in workers are for another case: an image so large that its time matters, on storage whose
# bandwidth one node cannot use up. A ``.nii.gz`` is for one pass: more workers would repeat more
# decompression and could not finish sooner. A study of many images is divided into images.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_study_plan.py`: how long thousands of images
#   take, and where the storage is the limit.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_dask_cluster.py`: a cluster, to which blocks can
#   be given as well.
