"""
One large image over many workers
=================================

A study is divided into images: one for each worker. A single image that takes too long on one
machine can be divided into :term:`blocks <block>` of volumes, if its file is not compressed: each
worker then reads only its own part of the file. On this page you will

1. write the function that does it, with processes of one machine or of a cluster, and returns the
   same arrays as :ref:`one pass <sphx_glr_auto_examples_2_streaming_plot_stream_masks.py>`,
2. see why a ``.nii.gz`` cannot be divided like that, and what it costs to try, and
3. see what an index into a ``.nii.gz`` costs, what it brings, and when it pays.
"""

# %%
# The function
# ------------
# In a NIfTI file one volume follows the other, and all have the same size: so the start of a block
# can be computed from the header. The calling process reads it once; each task carries a few
# numbers, the path, and the positions of the masks' voxels. The image does not travel: every
# worker must find it under the same path.
#
# A worker opens the file, reads its block, extracts the voxels of all masks, discards the block,
# and applies scale factors only to the voxels, with nibabel's
# :func:`~nibabel.volumeutils.apply_read_scaling`. The calling process puts each block's rows in
# their place, in whatever order they arrive. Copy this together with ``mask_study.py`` and
# ``plot_stream_masks.py``.

import os
from pathlib import Path

import nibabel as nib
import numpy as np

# %%
# What is refused
# ---------------
# The file must have all volumes of its header, and a compressed file must have an index. Both are
# checked before the first task is sent.
# %%
# The same arrays
# ---------------
# Two workers on the uncompressed file, and one pass over the compressed one.
# :mod:`beyond_the_masker.block_costs` prepared both files, and measures below.
from beyond_the_masker.block_costs import prepare_both, same
from beyond_the_masker.blocks import (
    Volumes,
    blocks_without_index,
    make_index,
    mask_blocks,
)
from beyond_the_masker.data import atlas_to_masks, get_atlas_path, prepare_fmri
from beyond_the_masker.options import read_options
from beyond_the_masker.streaming import stream_masks

options = read_options()
packed, plain = prepare_both(prepare_fmri(options.n_images))
_, mask_paths = atlas_to_masks(get_atlas_path(), packed, options.n_regions)
volumes = Volumes.of(nib.load(plain))
blocks, size_mib = volumes.blocks(block_mib=32), plain.stat().st_size / 2**20
print(f"{plain.name}, {volumes.shape}, {size_mib:,.1f} MiB: ", end="")
print(f"{len(blocks)} blocks of up to {blocks[0][1]} volumes")

one_pass = stream_masks(packed, mask_paths)
found = mask_blocks(plain, mask_paths, n_jobs=2)
print(f"bit for bit the same: {same(found, one_pass)}")

# %%
# What a .nii.gz cannot do
# ------------------------
# A gzip stream has one beginning: the meaning of a byte depends on those before it. To read a block
# from the middle, a worker must decompress and discard everything before it. So the last block
# takes as long as the whole file, and for *n* blocks of the same size the workers together
# decompress (*n* + 1) / 2 times the file. `mask_blocks` refuses to do so. These functions do it,
# and count:


n_bytes = blocks_without_index(packed, n_jobs=2)
print(f"needed            {size_mib:8,.1f} MiB")
print(f"decompressed      {n_bytes / 2**20:8,.1f} MiB, ", end="")
print(f"{n_bytes / plain.stat().st_size:.1f} times the file")

# %%
# An index
# --------
# `indexed_gzip <https://github.com/pauldmccarthy/indexed_gzip>`_ reads a ``.nii.gz`` once, and
# saves the state of the decompressor every few MiB: it can start again at such a point as at a
# beginning.
# Written to a file, this index serves every worker.
#
# It does not notice a missing end of the file, and a reader with an index never reaches that end.
# So `make_index` first reads the file to its end, where gzip stores its checksum. An index older
# than the image is refused, since it may belong to another image.


# %%
# .. warning::
#
#     Installing indexed_gzip changes nibabel. As soon as it can be imported, nibabel uses it for
#     every ``.nii.gz``, and so does everything built on nibabel: times, memory, and the messages
#     about a damaged file change. FSLeyes installs it, so you may have it without knowing.
#
# The build of this site keeps it in a separate folder, which only the processes that need it
# use: otherwise every other page would measure something else.

import sys

from beyond_the_masker.block_costs import APART, with_apart

with with_apart() as has_index:
    pass
if has_index:
    print("indexed_gzip is installed, and is measured below.")
else:
    print("indexed_gzip is not installed, so nothing with an index is measured.")
    print("To install it only for this page:")
    print(f"{sys.executable} -m pip install --no-deps --target {APART} indexed_gzip")

# %%
# What it costs
# -------------
# Each way runs once without being timed, so that imports are done and workers are started, and
# then twice, in turns with one pass over the ``.nii.gz``; we compare the mean of the ratios.
# Memory is the :term:`peak` of memory in use above the level when workers have done their imports,
# of the calling process and its workers together. The whole file is in the page cache: otherwise
# the disk sets the limit.

import tempfile
from functools import partial

import matplotlib.pyplot as plt

from beyond_the_masker.block_costs import decompress, memory_of, time_in_turns
from beyond_the_masker.figures import plot_ways
from beyond_the_masker.meter import measure


def read_middle(fmri_path, index=None):
    """Read the volume in the middle."""
    volumes = Volumes.of(nib.load(fmri_path), index)
    with volumes.open() as file:
        return volumes.read(file, middle, middle + 1)


middle = volumes.shape[3] // 2
FIRST, INDEX = "one pass, .nii.gz", "blocks, 2 workers, .nii.gz, index"
AGAIN = "one pass, .nii.gz, beside the index"
ways = {
    FIRST: partial(stream_masks, packed, mask_paths),
    "one pass, .nii": partial(stream_masks, plain, mask_paths),
    "blocks, 1 process, .nii": partial(mask_blocks, plain, mask_paths, 1),
    "blocks, 2 workers, .nii": partial(mask_blocks, plain, mask_paths, 2),
    "blocks, 2 workers, .nii.gz, no index": partial(blocks_without_index, packed, 2),
}

seconds = measure(time_in_turns, ways).result()
ratios = {name: seconds[name] / seconds[FIRST] for name in ways}
memories = {
    name: memory_of(call, 2 if "2 workers" in name else 1, ("mask_study",))
    for name, call in ways.items()
}

if has_index:
    with with_apart(), tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "fmri.gzidx"
        measure(make_index, packed, index).result()
        index_mib = index.stat().st_size / 2**20
        with_index = partial(mask_blocks, packed, mask_paths, 2, index=index)
        calls = {AGAIN: ways[FIRST], INDEX: with_index}
        times = measure(time_in_turns, calls).result()
        calls = {
            "make": partial(make_index, packed, Path(folder) / "new.gzidx"),
            "decompress": partial(decompress, packed, Path(folder) / "fmri.nii"),
            "volume": partial(read_middle, packed),
            "volume, index": partial(read_middle, packed, index),
        }
        times |= measure(time_in_turns, calls, n_repeats=1).result()
        memories[INDEX] = memory_of(with_index, 2, ("mask_study", "indexed_gzip"))
    seconds |= times
    ratios[INDEX] = times[INDEX] / times[AGAIN]

above_mib = {name: above for name, (_, above, *_) in memories.items()}
plot_ways(ratios, above_mib, f"An image of {size_mib:,.0f} MiB, {len(blocks)} blocks")
plt.show()

# %%
# The same as a table. It also has the seconds to start the workers, which you pay only once for
# several images, and whether the arrays are those of one pass, bit for bit. Blocks with an index
# are compared with one pass that was timed again, in turns with them:

print(f"{'':37}seconds  ratio    MiB  a worker  start  identical")
for name, (value, above, of_worker, start) in memories.items():
    if name == INDEX:
        print(f"{AGAIN:37}{np.median(seconds[AGAIN]):7.3f}   1.00")
    line = f"{name:37}{np.median(seconds[name]):7.3f} {np.median(ratios[name]):6.2f}"
    workers = f"{of_worker:9,.0f} {start:6.1f}" if of_worker else ""
    identical = same(value, one_pass) if isinstance(value, list) else ""
    print(f"{line} {above:6,.0f} {workers:16} {identical!s:>10}")

# %%
# When an index pays
# ------------------
# If the time of blocks is inversely proportional to the number of workers, each with a core of its
# own, they are faster than one pass from some number on. The index pays when the passes have saved
# more time than it took to make. Compare it with the alternative: decompressing the file once.

if has_index:
    from math import ceil

    from beyond_the_masker.block_costs import when_it_pays

    times = {name: float(np.median(values)) for name, values in times.items()}
    n_workers, n_passes = when_it_pays(times[AGAIN], times[INDEX], times["make"])
    gain = times["volume"] - times["volume, index"]
    n_volumes = ceil(times["make"] / gain) if gain > 0 else 0
    print(f"the index         {times['make']:6.3f} s to make, {index_mib:,.1f} MiB on disk")
    print(f"decompress once   {times['decompress']:6.3f} s, {size_mib:,.1f} MiB on disk")
    print(f"a middle volume   {times['volume, index']:6.3f} s with the index, ", end="")
    print(f"{times['volume']:.3f} s without")
    print(f"\nIf each worker has a core of its own (this machine has {os.cpu_count()}):")
    print(f"blocks with an index are faster from {n_workers} workers on;")
    print(f"{2 * n_workers} would take {times[INDEX] / n_workers:.3f} s, ", end="")
    print(f"and the index pays after {n_passes} pass{'es' * (n_passes > 1)}.")
    after = f"after {n_volumes} volume{'s' * (n_volumes > 1)} read" if n_volumes else "never"
    print(f"For single volumes, it pays {after}.")
else:
    print("Not measured: indexed_gzip is not installed.")

# %%
# And this is how indexed_gzip changes nibabel if it is merely installed. nibabel reads all volumes
# of the same ``.nii.gz``, and then the middle one again.

if has_index:
    from beyond_the_masker.block_costs import read_with_nibabel
    from beyond_the_masker.budget import guard

    _, reason = guard("NumPy indexing, path, single", packed, mask_paths, 1)
    if reason:
        print(f"Not run: the whole image would be in memory. {reason}")
    else:
        without = measure(read_with_nibabel, packed)
        with with_apart():
            installed = measure(read_with_nibabel, packed)
        print("                           all   a volume   MiB above the start")
        for name, trace in (("without indexed_gzip", without), ("with indexed_gzip", installed)):
            if isinstance(trace.exception, MemoryError):  # the machine was short of memory
                print(f"{name:24}stopped")
                continue
            every, volume = trace.result()
            print(f"{name:24}{every:6.2f} s {volume:8.3f} s {trace.above_mib:21,.0f}")

# %%
# What to conclude
# ----------------
# If you read an image more than once, decompress it once. On one machine, workers then have little
# to do, because extracting voxels is little work. Here, on the uncompressed file:

many = "blocks, 2 workers, .nii"
alone, together = (np.median(seconds[name]) for name in ("blocks, 1 process, .nii", many))
start, gains = memories[many][-1], alone - together
print(f"1 process took {alone:.3f} s, 2 workers {together:.3f} s after {start:.1f} s to start;")
much = "less" if gains < start else "more"
print(f"workers gained {much} than their start cost" if gains > 0 else "workers gained no time")

# %%
# Blocks in workers are for another case: an image so large that its time matters, on storage that
# serves many nodes faster than one.
#
# A ``.nii.gz`` is for one pass. Without an index, more workers repeat more decompression and cannot
# finish sooner. An index pays if you read single volumes, or read the file again and again with
# more workers than the number above; but then the disk usually has space for the ``.nii``, which
# needs no index.
#
# A study of many images needs none of this: it is divided into images.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_study_plan.py`: how long ten thousand images take, and where
#   the storage is the limit.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_dask_cluster.py`: a cluster, to which blocks can be given as
#   well.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: one pass.
