"""
One large image over many workers
=================================

A study is shared out by images: one for each worker. A single image that is too large for one
machine's patience can be shared out by :term:`blocks <block>` of volumes, if its file is not
compressed: each worker reads its own part of the file, and no other. On this page you will

1. write the function that does it, on the processes of one machine as on those of a cluster,
   with the very arrays that :ref:`one pass <sphx_glr_auto_examples_plot_stream_masks.py>` gives,
2. see why a ``.nii.gz`` cannot be shared out like that, and what it costs to try, and
3. see what an index into a ``.nii.gz`` costs, what it gives, and when it pays.
"""

# %%
# The function
# ------------
# In a NIfTI file one volume lies after the other, and all are of one size: so the header tells
# where a block begins. It is read once, by the calling process; with each task travel a few
# numbers, the path, and the positions of the masks' voxels. The image never does: it must be
# where every worker finds it under the same path.
#
# A worker opens the file, reads its block, takes the voxels of all masks, forgets the block, and
# applies scale factors to the voxels alone, with nibabel's
# :func:`~nibabel.volumeutils.apply_read_scaling`. The calling process puts each block's rows
# where they belong, in whatever order they come. Copy this together with ``mask_study.py`` and
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
    """Where the volumes of an image lie in its file: small enough to be sent with every task.

    Attributes
    ----------
    file : str
    shape : tuple of int
    dtype : numpy.dtype
        Of the stored numbers.
    offset : int
        Where the first volume begins.
    slope, inter : float
        The scale factors, which make values of stored numbers.
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
        """Ask an image's header."""
        proxy, file = fmri_img.dataobj, os.path.abspath(fmri_img.file_map["image"].filename)
        numbers = proxy.dtype, int(proxy.offset), float(proxy.slope), float(proxy.inter)
        return cls(file, proxy.shape, *numbers, index and os.path.abspath(index))

    @property
    def n_bytes(self):
        """Bytes of a volume."""
        return int(np.prod(self.shape[:3])) * self.dtype.itemsize

    def open(self):
        """Open the file where volumes are as they were before they were compressed."""
        if self.index:
            from indexed_gzip import IndexedGzipFile  # here: few readers need it

            return IndexedGzipFile(self.file, index_file=self.index)
        return gzip.open(self.file) if self.file.lower().endswith(".gz") else open(self.file, "rb")

    def read(self, file, start, stop):
        """Read a block as an array of shape (n_volumes, n_voxels), in the order of the file."""
        file.seek(self.offset + start * self.n_bytes)
        content = file.read((stop - start) * self.n_bytes)
        return np.frombuffer(content, self.dtype).reshape(stop - start, -1)

    def blocks(self, block_mib):
        """List the blocks of so many MiB, of one volume at least: start and stop of each."""
        n, step = self.shape[3], max(int(block_mib * 2**20 / self.n_bytes), 1)
        return [(start, min(start + step, n)) for start in range(0, n, step)]


def mask_blocks(fmri_path, masks, n_jobs=None, *, block_mib=32, index=None):
    """Extract the voxel time series of several masks, blocks of volumes shared out to workers.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
        4D NIfTI image that is not compressed; or a ``.nii.gz``, together with `index`.
    masks : list of str or pathlib.Path, or dict of str to str, pathlib.Path or Nifti1Image
        3D masks on the grid of the image: non-zero in the region.
    n_jobs : int, optional
        Workers, as for :class:`joblib.Parallel`: by default what `joblib.parallel_config` says,
        and else one, the calling process. That is also where the engine is chosen.
    block_mib : float
        MiB of a block as it is stored. A worker needs it once, and what it takes out of it.
    index : str or pathlib.Path, optional
        The index of a ``.nii.gz``, as `make_index` writes it. Each worker needs indexed_gzip.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask, bit for bit as `stream_masks` gives them.

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
    """Do one task: give the number of the first volume, and the values of all masks' voxels.

    Parameters
    ----------
    volumes : Volumes
    positions : array of int
        Of the voxels, in the order of the file.
    start, stop : int
        The first volume, and that behind the last.

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
    """Make values of stored numbers, as `stream_masks` does: finite, in native byte order."""
    values = apply_read_scaling(numbers, volumes.slope, volumes.inter)
    dtype = values.dtype.newbyteorder("=") if values.dtype.kind == "f" else np.dtype("float32")
    return np.nan_to_num(values.astype(dtype, copy=False), nan=0, posinf=0, neginf=0)


# %%
# What is refused
# ---------------
# The file must have all volumes that its header promises, and a compressed file must have an
# index. All that is known before the first task is sent.


def open_image(fmri_path):
    """Load an image without its data; refuse what is not a 4D image of numbers."""
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
    """Say that a file is not what it should be."""
    return OSError(f"{path} is incomplete or damaged ({error}): copy it again.")


# %%
# The same arrays
# ---------------
# Two workers, and one pass over the compressed file. The uncompressed one was made from it, as
# ``gunzip --keep`` does.

if __name__ == "__main__":
    import shutil

    from options import read_options
    from plot_large_image import atlas_to_masks, get_atlas_path, prepare, prepare_fmri
    from plot_stream_masks import stream_masks

    def prepare_both(fmri_path, most_mib=512):
        """Prepare a ``.nii.gz`` and the same as ``.nii``; of a larger image its first volumes."""
        img = nib.load(fmri_path)
        volume_mib = np.prod(img.shape[:3]) * img.dataobj[0, 0, 0, :1].itemsize / 2**20
        length = int(np.clip(most_mib // volume_mib, 1, img.shape[3]))

        def fill(folder):
            if fmri_path.name.endswith(".nii.gz") and length == img.shape[3]:
                (folder / "fmri.nii.gz").symlink_to(fmri_path.absolute())
            else:
                nib.save(img.slicer[..., :length], folder / "fmri.nii.gz")
            decompress(folder / "fmri.nii.gz", folder / "fmri.nii")

        stat = fmri_path.stat()
        stamp = [str(fmri_path.absolute()), stat.st_size, stat.st_mtime_ns, length]
        folder = prepare("in-blocks", stamp, fill)
        return folder / "fmri.nii.gz", folder / "fmri.nii"

    def decompress(source, target):
        """Write what is in a ``.nii.gz`` into a ``.nii``."""
        with gzip.open(source) as packed, open(target, "wb") as plain:
            shutil.copyfileobj(packed, plain, 2**20)

    options = read_options()
    packed, plain = prepare_both(prepare_fmri(options.n_images))
    _, mask_paths = atlas_to_masks(get_atlas_path(), packed, options.n_regions)
    volumes = Volumes.of(nib.load(plain))
    blocks = volumes.blocks(block_mib=32)
    print(f"{plain.name}, {volumes.shape}, {plain.stat().st_size / 2**20:.0f} MiB: ", end="")
    print(f"{len(blocks)} blocks of {blocks[0][1]} volumes")

    def same(every_series, others):
        """Tell whether arrays are the same, in shape, type and every bit."""
        pairs = list(zip(every_series, others, strict=True))
        return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)

    one_pass = stream_masks(packed, mask_paths)
    print(f"bit for bit the same: {same(mask_blocks(plain, mask_paths, n_jobs=2), one_pass)}")

# %%
# What a .nii.gz cannot do
# ------------------------
# A gzip stream has one beginning: what a byte means depends on those before it. To read a block
# from the middle, a worker decompresses all that comes before, and throws it away. So the last
# block takes as long as the whole file, and of *n* blocks the workers together decompress about
# *n* / 2 times the file. :func:`mask_blocks` refuses to do so. This does it, and counts:


def decompress_block(volumes, start, stop):
    """Read a block of a ``.nii.gz``, and give the bytes that were decompressed for it."""
    with volumes.open() as file:
        volumes.read(file, start, stop)
        return file.tell()


def blocks_without_index(fmri_path, n_jobs, block_mib=32):
    """Read all blocks of a ``.nii.gz``, each from the beginning of the file.

    Returns
    -------
    int
        Bytes that were decompressed.
    """
    volumes = Volumes.of(nib.load(fmri_path))
    blocks = volumes.blocks(block_mib)
    return sum(Parallel(n_jobs)(delayed(decompress_block)(volumes, *block) for block in blocks))


if __name__ == "__main__":
    n_bytes = blocks_without_index(packed, n_jobs=2)
    times_over = n_bytes / plain.stat().st_size
    print(f"decompressed {n_bytes / 2**20:,.0f} MiB, {times_over:.1f} times the file")

# %%
# An index
# --------
# `indexed_gzip <https://pypi.org/project/indexed-gzip/>`_ goes through a ``.nii.gz`` once, and
# keeps at every few MiB what the decompressor knows there: from such a point it can go on as
# from a beginning. Written into a file, beside the image, this index serves every worker.
#
# It does not notice when the end of the file was cut off, and whoever comes with an index
# never reads that end. So the file is first read to its end, where gzip has its checksum. An index
# that is older than its image is refused above, since it may be that of another.


def make_index(fmri_path, index):
    """Write an index of a ``.nii.gz``, with which workers can begin anywhere in it.

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
# **Do not install it just to have it.** As soon as indexed_gzip can be imported, nibabel uses it
# for every ``.nii.gz`` that it opens, and so does all that is built on nibabel: times, memory
# and what happens with a damaged file are others than before. (FSLeyes brings it along, so you may
# have it already.) The build of this site therefore keeps it in a folder apart, which only the
# following processes see.

if __name__ == "__main__":
    import sys
    from contextlib import contextmanager
    from importlib.util import find_spec

    apart = Path(sys.prefix) / "apart"

    @contextmanager
    def with_apart():
        """Let processes that begin meanwhile import what is kept apart."""
        sys.path.insert(0, str(apart))
        try:
            yield find_spec("indexed_gzip") is not None
        finally:
            sys.path.remove(str(apart))

    with with_apart() as has_indexed_gzip:
        if not has_indexed_gzip:
            print("indexed_gzip is not installed, so what follows about it is not measured.")
            print("To have it measured, and used by nothing else, install it apart:")
            print(f"    {sys.executable} -m pip install --no-deps --target {apart} indexed_gzip")
        else:
            print("indexed_gzip is there.")

# %%
# What it costs
# -------------
# Each way runs once without being timed, so that imports are done and workers are started, and
# then three times, in turns with one pass over the ``.nii.gz``: what counts is the median of the
# ratios. Memory is the :term:`peak` above the level when workers have done their imports, of
# the calling process and its workers together, in one call more.

if __name__ == "__main__":
    import tempfile
    import time
    from functools import partial

    import matplotlib.pyplot as plt

    from peak_memory import MIB, measure

    def time_in_turns(calls, n_repeats=3):
        """Time some calls, one after the other, again and again.

        Parameters
        ----------
        calls : dict of str to callable
        n_repeats : int

        Returns
        -------
        dict of str to array of shape (n_repeats,)
            Seconds.
        """
        seconds = {name: [] for name in calls}
        for repeat in range(n_repeats + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if repeat:
                    seconds[name].append(time.perf_counter() - start)
        return {name: np.array(values) for name, values in seconds.items()}

    def rest(*imported):
        """Be a task that has nothing to do but to import some functions."""
        time.sleep(0.3)

    def after_imports(call, n_workers):
        """Call, but first let workers start and import; say when they had."""
        if n_workers > 1:
            tasks = [delayed(rest)(extract_block, decompress_block)] * n_workers
            Parallel(n_workers)(tasks)
        ready = time.time()
        call()
        time.sleep(0.05)  # the meter looks again
        return ready

    def memory_of(call, n_workers):
        """Measure the peak above the level after the imports: of all, and of one worker."""
        trace = measure(after_imports, call, n_workers)
        ready = trace.result() - trace.started
        level = max(np.searchsorted(trace.times, ready) - 1, 0)
        _, *workers = (process["pss"] for process in trace.processes.values())
        above = [worker[level:].max() - worker[level] for worker in workers]
        return trace.peak_pss_mib - trace.total()[level], max(above, default=0), ready

    def measure_ways(ways, others):
        """Measure time and memory of some ways, and the time of some other calls.

        Parameters
        ----------
        ways : dict of str to tuple of callable and int
            What is called, and with how many workers.
        others : dict of str to callable

        Returns
        -------
        measured : dict of str to tuple
            Of each way the seconds, its peak in MiB above the imports, that of one worker, and
            the seconds that workers took to start.
        seconds : dict of str to array of shape (n_repeats,)
        """
        calls = {name: call for name, (call, _) in ways.items()}
        seconds = measure(time_in_turns, calls | others).result()
        return {name: (seconds[name], *memory_of(*way)) for name, way in ways.items()}, seconds

    FIRST, TWO = "one pass, .nii.gz", "two workers, .nii.gz, index"
    ways = {
        FIRST: (partial(stream_masks, packed, mask_paths), 1),
        "one pass, .nii": (partial(stream_masks, plain, mask_paths), 1),
        "blocks, one process, .nii": (partial(mask_blocks, plain, mask_paths, 1), 1),
        "two workers, .nii": (partial(mask_blocks, plain, mask_paths, 2), 2),
        "two workers, .nii.gz, no index": (partial(blocks_without_index, packed, 2), 2),
    }
    measured, _ = measure_ways(ways, {})
    ratios = {name: values[0] / measured[FIRST][0] for name, values in measured.items()}

# %%
# The same with an index, where indexed_gzip is there: in processes that find it. Their one pass
# over the ``.nii.gz`` is timed again, so that each ratio is of two times in one process. And
# what it takes to make the index, to decompress the file once instead, and to read one volume from
# the middle.

if __name__ == "__main__":

    def read_middle(fmri_path, index=None):
        """Read the volume in the middle."""
        volumes = Volumes.of(nib.load(fmri_path), index)
        with volumes.open() as file:
            return volumes.read(file, middle, middle + 1)

    middle = volumes.shape[3] // 2
    if has_indexed_gzip:
        with with_apart(), tempfile.TemporaryDirectory() as folder:
            index = Path(folder) / "fmri.gzidx"
            making = measure(make_index, packed, index)
            making.result()
            index_mib = index.stat().st_size / MIB
            found = measure(mask_blocks, packed, mask_paths, 2, index=index).result()
            print(f"bit for bit the same: {same(found, one_pass)}")
            with_index, times = measure_ways(
                {
                    FIRST: (partial(stream_masks, packed, mask_paths), 1),
                    TWO: (partial(mask_blocks, packed, mask_paths, 2, index=index), 2),
                },
                {
                    "make the index": partial(make_index, packed, Path(folder) / "new.gzidx"),
                    "decompress once": partial(decompress, packed, Path(folder) / "fmri.nii"),
                    "volume": partial(read_middle, packed),
                    "volume, index": partial(read_middle, packed, index),
                },
            )
        measured[TWO] = with_index[TWO]
        ratios[TWO] = times[TWO] / times[FIRST]

# %%


def plot_ways(ratios, above_mib, title):
    """Draw time and memory of some ways.

    Parameters
    ----------
    ratios : dict of str to array of shape (n_repeats,)
        Times as multiples of the first way's.
    above_mib : dict of str to float
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib.pyplot as plt

    figure, (times, memory) = plt.subplots(
        *(2, 1), figsize=(4.2, 1.8 + 0.9 * len(ratios)), layout="constrained"
    )
    first, found = next(iter(ratios)), []
    for y, (name, values) in enumerate(ratios.items()):
        low, median, high = np.quantile(values, [0, 0.5, 1])
        times.plot([low, high], [y, y], color="#0072b2", lw=3, solid_capstyle="butt", alpha=0.5)
        times.plot(median, y, "o", color="#0072b2", ms=7)
        memory.barh(y, above_mib[name], 0.3, color="#d55e00", hatch="//", edgecolor="white", lw=0)
        found.append(f"{name} {median:.2g} times, {above_mib[name]:,.0f} MiB")
        for ax, number in ((times, f"{median:.2g}"), (memory, f"{above_mib[name]:,.0f}")):
            label = ax.text(
                *(0, y - 0.2, f"{name}: {number}"),
                transform=ax.get_yaxis_transform(),
                va="bottom",
            )
            label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 0.5})
    times.axvline(1, color="black", ls="--", lw=1, zorder=1)
    times.set(xscale="log", xlabel=f"time, as a multiple of {first}")
    lows, highs = (function([function(v) for v in ratios.values()]) for function in (min, max))
    times.set_xlim(lows / 1.3, highs * 1.3)
    times.xaxis.set_major_formatter("{x:g}")
    memory.set(xlabel="peak above the imports, MiB")
    for ax in (times, memory):
        ax.set(ylim=(len(ratios) - 0.6, -0.8), yticks=[])
        ax.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    figure.set_label(
        f"{title}. Above the time, the median of three runs as a dot and from the fastest to the "
        f"slowest as a line; dashed is {first}. Below the peak of memory above the imports.\n\n"
        f"Dot chart of time, as multiples of that of {first}, and bar chart of memory, of "
        f"{len(ratios)} ways: {'; '.join(found)}."
    )
    return figure


if __name__ == "__main__":
    above_mib = {name: values[1] for name, values in measured.items()}
    plot_ways(ratios, above_mib, f"Blocks, {len(blocks)} of {plain.stat().st_size / MIB:,.0f} MiB")
    plt.show()

# %%
# In numbers. To start two workers took the seconds in the last column, once: this is why a file
# that is read in less is not worth it.

if __name__ == "__main__":
    print(f"{'':32}seconds   ratio   MiB, a worker's   start")
    for name, (seconds, above, of_worker, start) in measured.items():
        line = f"{name:32}{np.median(seconds):7.3f} {np.median(ratios[name]):7.2f} {above:5,.0f}"
        print(line + (f"{of_worker:12,.0f} {start:7.1f}" if of_worker else ""))

# %%
# What the index costs, and when it pays: from how many workers on a pass in blocks is shorter
# than one pass, if time went down with their number; and after how many passes, with twice as many,
# the making of the index is paid. Beside it the other way: to decompress the file once.

if __name__ == "__main__" and has_indexed_gzip:
    from math import ceil, floor

    middle_of = {name: float(np.median(values)) for name, values in times.items()}
    one, two, make = middle_of[FIRST], middle_of[TWO], middle_of["make the index"]
    enough = floor(2 * two / one) + 1
    passes = ceil(make / (one - 2 * two / (2 * enough)))
    gain = middle_of["volume"] - middle_of["volume, index"]
    print(f"the index           {make:7.3f} s to make, {index_mib:.1f} MiB on disk")
    print(f"decompress once     {middle_of['decompress once']:7.3f} s, ", end="")
    print(f"{plain.stat().st_size / MIB:,.0f} MiB on disk")
    print(f"one middle volume   {middle_of['volume, index']:7.3f} s with the index, ", end="")
    print(f"{middle_of['volume']:.3f} s without")
    print(
        f"a pass is shorter   from {enough} workers on; with {2 * enough} workers the index ",
        end="",
    )
    print(f"is paid after {passes} passes")
    after = f"after {ceil(make / gain)} volumes" if gain > 0 else "never, for so small a file"
    print(f"single volumes      the index is paid {after}")

# %%
# And what merely having it installed does to everybody who reads this ``.nii.gz`` with nibabel: all
# of it, and then the volume in the middle once more from the same image.


def read_with_nibabel(fmri_path):
    """Read all volumes, then that in the middle; give the seconds of both."""
    import time

    fmri_img, seconds = nib.load(fmri_path), []
    middle = fmri_img.shape[3] // 2
    for part in (slice(None), slice(middle, middle + 1)):
        start = time.perf_counter()
        fmri_img.dataobj[..., part]
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__" and has_indexed_gzip:
    without = measure(read_with_nibabel, packed)
    with with_apart():
        having = measure(read_with_nibabel, packed)
    print("nibabel                  all     one volume    peak above the start")
    for name, trace in (("as it is", without), ("with indexed_gzip", having)):
        every, volume = trace.result()
        above = trace.peak_pss_mib - trace.before_mib
        print(f"{name:20} {every:6.2f} s {volume:8.3f} s {above:12,.0f} MiB")

# %%
# What to conclude
# ----------------
# TODO
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_study_plan.py`: how long ten thousand images take, and where
#   the storage is the limit.
# * :ref:`sphx_glr_auto_examples_plot_dask_cluster.py`: a cluster to give the blocks to.
# * :ref:`sphx_glr_auto_examples_plot_stream_masks.py`: one pass, which needs none.
