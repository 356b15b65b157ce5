"""
One large image over many workers
=================================

A study is divided into images, one for each worker. Can a single image that takes too long also be
divided? In an uncompressed NIfTI file, yes: all volumes have the same size, so the start of every
:term:`block` of volumes follows from the header, and each worker reads only its own part. On this
page you will

1. write the function that a worker runs, and use :func:`~beyond_the_masker.blocks.mask_blocks`,
   which returns the arrays of
   :ref:`one pass <sphx_glr_auto_examples_2_streaming_plot_stream_masks.py>`,
2. see why a ``.nii.gz`` cannot be divided without an index, and
3. measure what workers gain, and estimate when an index is worth it.
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

from beyond_the_masker.block_costs import prepare_both, same
from beyond_the_masker.data import atlas_to_masks, get_atlas_path, prepare_fmri
from beyond_the_masker.figures import plot_series
from beyond_the_masker.options import read_options
from beyond_the_masker.streaming import stream_masks

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
# The whole function
# ------------------
# :func:`~beyond_the_masker.blocks.mask_blocks` takes any number of masks, with joblib's processes
# or a cluster. Before the first task it checks that the file has all volumes of its header.

from beyond_the_masker.blocks import Volumes, mask_blocks

found = mask_blocks(plain, mask_paths, n_jobs=2)
print(f"bit for bit the arrays of one pass: {same(found, one_pass)}")

# %%
# Compressed files
# ----------------
# A gzip stream has one beginning: the meaning of a byte depends on those before it. To read a block
# from the middle, a worker must decompress and discard everything before it. So for *n* blocks of
# the same size, the workers together decompress (*n* + 1) / 2 times the file, and the last block
# takes as long as one pass. ``mask_blocks`` refuses to do so. We count the bytes:

from beyond_the_masker.block_costs import blocks_without_index

blocks, size_mib = Volumes.of(nib.load(plain)).blocks(block_mib=32), plain.stat().st_size / 2**20
n_bytes = blocks_without_index(packed, n_jobs=2)
print(f"{len(blocks)} blocks: {n_bytes / 2**20:,.0f} MiB are decompressed for ", end="")
print(f"{size_mib:,.0f} MiB, {n_bytes / plain.stat().st_size:.1f} times the file")

# %%
# `indexed_gzip <https://github.com/pauldmccarthy/indexed_gzip>`_ reads a ``.nii.gz`` once, and
# saves the state of the decompressor every few MiB. With this index in a file
# (:func:`~beyond_the_masker.blocks.make_index`), every worker can begin at its own block:
# ``mask_blocks(fmri_path, mask_paths, n_jobs=2, index=index)``. A reader with an index never
# reaches the checksum at the end of the file, so ``make_index`` checks it. An index older than
# the image is refused, since it may belong to another image.
#
# .. warning::
#
#     Installing indexed_gzip changes nibabel, which then uses it for every ``.nii.gz``: times,
#     memory, and the messages about a damaged file change. FSLeyes installs it, so you may have it
#     already. The build of this site keeps it in a separate folder.
#
# What it costs
# -------------
# Time is a multiple of that of one pass over the ``.nii.gz``, with workers already started and the
# file in the page cache: otherwise the disk sets the limit. Memory is the :term:`peak` of all
# processes above the start, the imports of the workers included.

from beyond_the_masker.block_costs import INDEX, SEPARATE, measure_ways
from beyond_the_masker.figures import plot_ways

ways, index = measure_ways(packed, plain, mask_paths)
ratios = {name: way["ratio"] for name, way in ways.items()}
above_mib = {name: way["above_mib"] for name, way in ways.items()}
plot_ways(ratios, above_mib, f"An image of {size_mib:,.0f} MiB, {len(blocks)} blocks")

# %%
# The same as a table; "identical" compares the arrays with those of one pass, bit for bit. The
# ratio is the median over pairs of runs, not the quotient of the seconds. Without an index, no
# arrays are made.

print("seconds  ratio   MiB  identical  way")
for name, way in ways.items():
    identical = "-" if way["identical"] is None else way["identical"]
    print(f"{np.median(way['seconds']):7.3f} {np.median(way['ratio']):6.2f} ", end="")
    print(f"{way['above_mib']:5,.0f}  {identical!s:9}  {name}")

# %%
# The index is worth it when the passes have saved more time than making it took. An estimate: if
# the time of blocks is inversely proportional to the number of workers, each with a core of its
# own:

if index:
    pair, ratio = np.median(ways[INDEX]["seconds"]), np.median(ways[INDEX]["ratio"])
    alone, n_workers = pair / ratio, math.floor(2 * ratio) + 1
    n_passes = math.ceil(index["make"] / (alone - pair / n_workers))
    print(f"the index took {index['make']:.3f} s to make and {index['mib']:,.1f} MiB on disk")
    print(f"decompressing once took {index['decompress']:.3f} s and {size_mib:,.0f} MiB on disk")
    print(f"{n_workers} or more workers with an index are faster than one pass")
    print(f"with {2 * n_workers} workers, {n_passes} passes save the time to make the index")
else:
    print("Nothing with an index is measured: indexed_gzip is not installed. For this page alone:")
    print(f"python -m pip install --no-deps --target {SEPARATE} indexed_gzip")

# %%
# What to conclude
# ----------------
# If you read an image more than once, decompress it once. On one machine, workers then have little
# to do, because extracting voxels is little work. On the uncompressed file here:

many = ways["blocks, 2 workers, .nii"]
alone = np.median(ways["blocks, 1 process, .nii"]["seconds"])
print(f"1 process took {alone:.3f} s, 2 workers {np.median(many['seconds']):.3f} s, and ", end="")
print(f"{many['first']:.3f} s the first time, when they were started")

# %%
# Blocks in workers are for another case: an image so large that its time matters, on storage whose
# bandwidth one node cannot use up. A ``.nii.gz`` is for one pass: without an index, more workers
# repeat more decompression and cannot finish sooner. An index is worth it if you read single
# volumes, or the same file many times with at least the number of workers above; but then the disk
# usually has space for the ``.nii``, which needs no index. A study of many images is divided into
# images.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_study_plan.py`: how long ten thousand images
#   take, and where the storage is the limit.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_dask_cluster.py`: a cluster, to which blocks can
#   be given as well.
