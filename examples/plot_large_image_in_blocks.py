"""
One large image over many workers
=================================

A study is divided into images: one for each worker. A single image that takes too long on one
machine can be divided into :term:`blocks <block>` of volumes, if its file is not compressed: each
worker then reads only its own part of the file. On this page you will

1. write the function that does it, with processes of one machine or of a cluster, and returns the
   same arrays as :ref:`one pass <sphx_glr_auto_examples_plot_stream_masks.py>`,
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
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed
from nibabel.openers import ImageOpener
from nibabel.volumeutils import apply_read_scaling
from tqdm import tqdm

from mask_study import moved_into_place, read_masks
from plot_stream_masks import gzip


@dataclass(frozen=True)
class Volumes:
    """The place of an image's volumes in its file: small enough to be sent with every task.

    Attributes
    ----------
    file : str
    shape : tuple of int
    dtype : numpy.dtype
        Of the stored numbers.
    offset : int
        Where the first volume begins.
    slope, inter : float
        The scale factors, from stored numbers to values.
    index : str or None
        The index of a ``.nii.gz``.
    """

    file: str
    shape: tuple
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    index: str | None = None

    @classmethod
    def of(cls, fmri_img, index=None):
        """Read an image's header."""
        proxy, file = fmri_img.dataobj, os.path.abspath(fmri_img.file_map["image"].filename)
        numbers = proxy.dtype, int(proxy.offset), float(proxy.slope), float(proxy.inter)
        return cls(file, proxy.shape, *numbers, index and os.path.abspath(index))

    @property
    def n_bytes(self):
        """Size of a volume in bytes."""
        return int(np.prod(self.shape[:3])) * self.dtype.itemsize

    def open(self):
        """Open the file, decompressing it if necessary."""
        if self.index:
            from indexed_gzip import IndexedGzipFile  # here, because few readers need it

            return IndexedGzipFile(self.file, index_file=self.index)
        return gzip.open(self.file) if self.file.lower().endswith(".gz") else open(self.file, "rb")

    def read(self, file, start, stop):
        """Read a block as an array of shape (n_volumes, n_voxels), in the order of the file."""
        file.seek(self.offset + start * self.n_bytes)
        content = file.read((stop - start) * self.n_bytes)
        return np.frombuffer(content, self.dtype).reshape(stop - start, -1)

    def blocks(self, block_mib):
        """List start and stop of blocks of so many MiB, at least one volume each."""
        n, step = self.shape[3], max(int(block_mib * 2**20 / self.n_bytes), 1)
        return [(start, min(start + step, n)) for start in range(0, n, step)]


def mask_blocks(fmri_path, masks, n_jobs=None, *, block_mib=32, index=None):
    """Extract the voxel time series of several masks, with blocks of volumes in workers.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
        4D NIfTI image that is not compressed; or a ``.nii.gz``, together with `index`.
    masks : list of str or pathlib.Path, or dict of str to str, pathlib.Path or Nifti1Image
        3D masks on the grid of the image: non-zero in the region.
    n_jobs : int, optional
        Workers, as for :class:`joblib.Parallel`: by default the number set by
        `joblib.parallel_config`, which also selects the backend, or one, the calling process.
    block_mib : float
        MiB of a block as it is stored. A worker holds one block and the values from it.
    index : str or pathlib.Path, optional
        The index of a ``.nii.gz``, from `make_index`. Each worker needs indexed_gzip.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask, bit for bit those of `stream_masks`.

    Raises
    ------
    ValueError
        The image is compressed and has no index, or is not 4D; or a mask is empty or on another
        grid.
    OSError
        A file is missing, incomplete or damaged; or the index is not that of the image.
    """
    fmri_img = open_image(fmri_path)
    volumes = Volumes.of(fmri_img, index)
    check_file(volumes, fmri_path)
    masks = read_masks(masks)
    if masks.shape != volumes.shape[:3] or not np.allclose(masks.affine, fmri_img.affine):
        raise ValueError(
            f"The masks are on the grid {masks.shape}\n{masks.affine}\nThey need that of "
            f"{fmri_path}: {volumes.shape[:3]}\n{fmri_img.affine}\n"
            "See nilearn.image.resample_to_img, interpolation='nearest'."
        )
    lengths = [len(positions) for positions in masks.positions]
    grid = np.unravel_index(np.concatenate(masks.positions), masks.shape)
    positions = np.ravel_multi_index(grid, masks.shape, order="F").astype("int32")

    n_volumes, dtype = volumes.shape[3], to_values(np.empty(0, volumes.dtype), volumes).dtype
    every_series = [np.empty((n_volumes, length), dtype) for length in lengths]
    blocks = [delayed(extract_block)(volumes, positions, *b) for b in volumes.blocks(block_mib)]
    with tqdm(total=n_volumes, unit="volume", delay=2) as progress:
        for start, rows in Parallel(n_jobs, return_as="generator_unordered")(blocks):
            parts = np.split(rows, np.cumsum(lengths)[:-1], axis=1)
            for series, part in zip(every_series, parts, strict=True):
                series[start : start + len(rows)] = part
            progress.update(len(rows))
    return every_series


def extract_block(volumes, positions, start, stop):
    """Do one task: return the number of the first volume, and the values of all masks' voxels.

    Parameters
    ----------
    volumes : Volumes
    positions : array of int
        Of the voxels, in the order of the file.
    start, stop : int
        The first volume, and the one after the last.

    Returns
    -------
    start : int
    rows : array of shape (n_volumes, n_voxels)
    """
    try:
        with volumes.open() as file:
            numbers = volumes.read(file, start, stop).take(positions, axis=1)
    except (FileNotFoundError, PermissionError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise damaged(volumes.file, error) from error
    return start, to_values(numbers, volumes)


def to_values(numbers, volumes):
    """Convert stored numbers to values like `stream_masks`: finite, in native byte order."""
    values = apply_read_scaling(numbers, volumes.slope, volumes.inter)
    dtype = values.dtype.newbyteorder("=") if values.dtype.kind == "f" else np.dtype("float32")
    values = values.astype(dtype, copy=False)
    return np.nan_to_num(values, copy=False, nan=0, posinf=0, neginf=0)


# %%
# What is refused
# ---------------
# The file must have all volumes of its header, and a compressed file must have an index. Both are
# checked before the first task is sent.


def open_image(fmri_path):
    """Load an image without its data; refuse anything but a 4D image of numbers."""
    try:
        fmri_img = nib.load(fmri_path)
    except (FileNotFoundError, PermissionError, MemoryError, TypeError):
        raise
    except Exception as error:  # nibabel lets a damaged file raise almost anything
        raise damaged(fmri_path, error) from error
    shape, proxy = fmri_img.shape, fmri_img.dataobj
    numbers = isinstance(fmri_img, nib.Nifti1Pair) and proxy.dtype.kind in "fiu"
    if not numbers or len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"{fmri_path} is not a 4D NIfTI image of numbers; its shape is {shape}.")
    return fmri_img


def check_file(volumes, fmri_path):
    """Refuse a file that cannot be read in blocks, or lacks volumes."""
    suffix = Path(volumes.file).suffix.lower()
    if suffix in filter(None, ImageOpener.compress_ext_map) and not volumes.index:
        raise ValueError(
            f"{fmri_path} is compressed. Its stream has one beginning, and every worker would "
            "decompress from there. Take all masks in one pass (stream_masks); or decompress it "
            "once, and give that file; or, if it ends in .gz, make an index (make_index)."
        )
    if volumes.index and suffix != ".gz":
        raise ValueError(f"{fmri_path} does not end in .gz: an index is of no use for it.")
    if volumes.index and os.stat(volumes.index).st_mtime < os.stat(volumes.file).st_mtime:
        raise OSError(f"{volumes.index} is older than {fmri_path}: make the index again.")
    try:
        with volumes.open() as file:
            length = file.seek(0, os.SEEK_END)
    except (FileNotFoundError, PermissionError, ImportError):
        raise
    except Exception as error:
        raise OSError(f"{volumes.index} is no index of {fmri_path} ({error}).") from error
    needed = volumes.offset + volumes.shape[3] * volumes.n_bytes
    if length < needed:
        there = max(length - volumes.offset, 0) // volumes.n_bytes
        raise OSError(
            f"{fmri_path} is incomplete: it has {there} of {volumes.shape[3]} volumes, "
            f"{length:,} of {needed:,} bytes: copy it again."
        )


def damaged(path, error):
    """Return the error for a damaged file."""
    return OSError(f"{path} is incomplete or damaged ({error}): copy it again.")


# %%
# The same arrays
# ---------------
# Two workers on the uncompressed file, and one pass over the compressed one.
# :ref:`sphx_glr_auto_examples_measured_blocks.py` prepared both files, and measures below.

if __name__ == "__main__":
    from measured_blocks import prepare_both, same
    from options import read_options
    from plot_large_image import atlas_to_masks, get_atlas_path, prepare_fmri
    from plot_stream_masks import stream_masks

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


def decompress_block(volumes, start, stop):
    """Read a block of a ``.nii.gz``; return the number of bytes decompressed for it."""
    with volumes.open() as file:
        volumes.read(file, start, stop)
        return file.tell()


def blocks_without_index(fmri_path, n_jobs, block_mib=32):
    """Read all blocks of a ``.nii.gz``, each from the beginning; count bytes as above."""
    volumes = Volumes.of(nib.load(fmri_path))
    blocks = volumes.blocks(block_mib)
    return sum(Parallel(n_jobs)(delayed(decompress_block)(volumes, *block) for block in blocks))


if __name__ == "__main__":
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


def make_index(fmri_path, index):
    """Write an index of a ``.nii.gz``, so that workers can begin anywhere in it.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
        An image that ends in ``.gz``.
    index : str or pathlib.Path
        The file to write.

    Raises
    ------
    OSError
        The image is missing, incomplete or damaged.
    """
    from indexed_gzip import IndexedGzipFile

    try:
        with gzip.open(fmri_path) as file:
            while file.read(2**20):
                pass
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise damaged(fmri_path, error) from error
    with moved_into_place(Path(index)) as unfinished, IndexedGzipFile(str(fmri_path)) as file:
        file.build_full_index()
        file.export_index(str(unfinished))


# %%
# .. warning::
#
#     Installing indexed_gzip changes nibabel. As soon as it can be imported, nibabel uses it for
#     every ``.nii.gz``, and so does everything built on nibabel: times, memory, and the messages
#     about a damaged file change. FSLeyes installs it, so you may have it without knowing.
#
# The build of this site keeps it in a separate folder, which only the processes that need it
# use: otherwise every other page would measure something else.

if __name__ == "__main__":
    import sys

    from measured_blocks import APART, with_apart

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

if __name__ == "__main__":
    import tempfile
    from functools import partial

    import matplotlib.pyplot as plt

    from measured_blocks import decompress, memory_of, plot_ways, time_in_turns
    from peak_memory import measure

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

if __name__ == "__main__":
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

if __name__ == "__main__" and has_index:
    from math import ceil

    from measured_blocks import when_it_pays

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
elif __name__ == "__main__":
    print("Not measured: indexed_gzip is not installed.")

# %%
# And this is how indexed_gzip changes nibabel if it is merely installed. nibabel reads all volumes
# of the same ``.nii.gz``, and then the middle one again.

if __name__ == "__main__" and has_index:
    from measured_blocks import read_with_nibabel
    from memory_budget import guard

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

if __name__ == "__main__":
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
# * :ref:`sphx_glr_auto_examples_plot_study_plan.py`: how long ten thousand images take, and where
#   the storage is the limit.
# * :ref:`sphx_glr_auto_examples_plot_dask_cluster.py`: a cluster, to which blocks can be given as
#   well.
# * :ref:`sphx_glr_auto_examples_plot_stream_masks.py`: one pass.
