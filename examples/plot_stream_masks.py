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

from multiprocessing import parent_process
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.volumeutils import apply_read_scaling
from tqdm import tqdm

try:
    from isal import igzip as gzip
except ImportError:
    import gzip


def stream_masks(fmri_path, masks, block_size=None, *, memory_mib=8, out=None):
    """Extract the voxel time series of several masks in one pass over the image's file.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
        4D NIfTI image, compressed or not.
    masks : iterable of str, pathlib.Path or nibabel.Nifti1Image
        3D masks on the grid of the image: non-zero in the region.
    block_size : int, optional
        Volumes whose voxels are collected before they are written to the result.
    memory_mib : float
        If `block_size` is not given: MiB for a block. In addition, the function needs one volume
        and 8 bytes for each voxel of each mask.
    out : list or callable, optional
        For each mask an array to write into, or the name of a ``.npy`` file for
        `stream_masks_to_files`; or a function of number, shape and dtype that returns the array.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask, as parts of one large array: if you keep only one region, copy it.
        float32 or float64, as the image; integers become float32. Voxels are in C order of the
        mask. Values that are not finite are replaced by zero, as NiftiMasker does.

    Raises
    ------
    ValueError
        The image is not 4D, or a mask is empty or on another grid, or `out` does not fit.
    OSError
        A file is missing, incomplete or damaged.
    """

    if isinstance(out, (list, tuple)) and any(isinstance(one, (str, Path)) for one in out):
        return stream_masks_to_files(fmri_path, masks, out, block_size, memory_mib=memory_mib)

    def read(path, function, *args):
        try:
            return function(*args)
        except (FileNotFoundError, PermissionError, MemoryError, TypeError):
            raise
        except Exception as error:  # nibabel lets a damaged file raise almost anything
            raise OSError(f"{path} is incomplete or damaged ({error}): copy it again.") from error

    fmri_img = read(fmri_path, nib.load, fmri_path)
    shape, proxy = fmri_img.shape, fmri_img.dataobj
    numbers = isinstance(fmri_img, nib.Nifti1Pair) and proxy.dtype.kind in "fiu"
    if not numbers or len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"{fmri_path} is not a 4D NIfTI image of numbers; its shape is {shape}.")
    indices = []
    for mask in [] if isinstance(masks, (str, Path)) else masks:
        mask_img = read(mask, nib.load, mask) if isinstance(mask, (str, Path)) else mask
        name = mask_img.get_filename() or "A mask"
        inside = np.nan_to_num(read(name, np.asarray, mask_img.dataobj), posinf=0, neginf=0) != 0
        inside = inside[..., 0] if inside.shape[3:] == (1,) else inside
        on_grid = inside.shape == shape[:3] and np.allclose(mask_img.affine, fmri_img.affine)
        if not on_grid or not inside.any():
            raise ValueError(
                f"{name} has {inside.sum()} voxels that are not zero, on the grid {inside.shape}\n"
                f"{mask_img.affine}\nIt needs some, on that of {fmri_path}: {shape[:3]}\n"
                f"{fmri_img.affine}\nSee nilearn.image.resample_to_img, interpolation='nearest'."
            )
        indices.append(np.arange(inside.size, dtype="i4").reshape(shape[:3], order="F")[inside])
    if not indices:
        raise ValueError("A list of masks is needed, with one mask at least.")
    lengths = [len(positions) for positions in indices]
    index, ends, indices = np.concatenate(indices, dtype=np.intp), np.cumsum(lengths)[:-1], None

    dtype = apply_read_scaling(np.empty(0, proxy.dtype), proxy.slope, proxy.inter).dtype
    dtype = dtype.newbyteorder("=") if dtype.kind == "f" else np.dtype("float32")
    wanted = [((shape[3], length), dtype) for length in lengths]
    if out is None:  # one large allocation is faster than many small ones
        out = np.split(np.empty(shape[3] * len(index), dtype), shape[3] * ends)
        out = [part.reshape(shape[3], -1) for part in out]
    elif callable(out):
        out = [out(number, *one) for number, one in enumerate(wanted)]
    if [(getattr(o, "shape", None), getattr(o, "dtype", None)) for o in out] != wanted:
        raise ValueError(f"out needs an array or the name of a file for each of {wanted}.")
    n_rows = block_size or int(memory_mib * 2**20 / (4 * dtype.itemsize * len(index)))
    block = np.empty((np.clip(n_rows, 1, shape[3]), len(index)), proxy.dtype)
    source = fmri_img.file_map["image"].filename
    progress = tqdm(total=shape[3], unit="volume", delay=2, disable=bool(parent_process()))
    with progress, gzip.open(source) if source.endswith(".gz") else ImageOpener(source) as file:
        read(fmri_path, file.seek, proxy.offset)
        for start in range(0, shape[3], len(block)):
            rows = block[: shape[3] - start]
            for row in rows:
                volume = read(fmri_path, file.read, inside.size * proxy.dtype.itemsize)
                volume = read(fmri_path, np.frombuffer, volume, proxy.dtype, inside.size)
                volume.take(index, out=row, mode="clip")
                progress.update()
            values = apply_read_scaling(rows, proxy.slope, proxy.inter).astype(dtype, copy=False)
            if not np.isfinite(values).all():
                np.nan_to_num(values, copy=False, nan=0, posinf=0, neginf=0)
            for series, part in zip(out, np.split(values, ends, axis=1), strict=True):
                series[start : start + len(rows)] = part
        while read(fmri_path, file.read, 2**20):  # gzip has its checksum at the end
            pass
    return list(out)


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

import os
import shutil
import uuid


class NpyFile:
    """A ``.npy`` file, written from beginning to end, block by block.

    Parameters
    ----------
    path : pathlib.Path
        The name of the complete file.
    shape : tuple of int
    dtype : numpy.dtype
    """

    def __init__(self, path, shape, dtype):
        self.path, self.shape, self.dtype = path, shape, dtype
        self.unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        with open(self.unfinished, "xb") as file:
            np.lib.format.write_array_header_1_0(file, header)

    def __setitem__(self, rows, values):
        """Append values as the next rows."""
        with open(self.unfinished, "ab") as file:
            file.write(np.ascontiguousarray(values))


def stream_masks_to_files(fmri_path, masks, names, block_size=None, *, memory_mib=8):
    """Do what `stream_masks` does, with results in ``.npy`` files.

    Parameters
    ----------
    fmri_path, masks, block_size, memory_mib
        As for `stream_masks`.
    names : list of str or pathlib.Path
        A file for each mask. Files of these names are replaced when all results are complete.
        An array in place of a name is written into.

    Returns
    -------
    list of numpy.memmap of shape (n_timepoints, n_voxels)
        One for each file, read-only; an array where there was one.

    Raises
    ------
    ValueError, OSError
        As for `stream_masks`; or there is not enough room for the files.
    """
    masks = list(masks)
    names = [Path(name).resolve() if isinstance(name, (str, Path)) else name for name in names]
    paths = [name for name in names if isinstance(name, Path)]
    if len(names) != len(masks) or len(set(paths)) < len(paths):
        raise ValueError(f"out needs a name of its own for each of {len(masks)} masks: {names}")
    files = []

    def make(number, shape, dtype):
        if not isinstance(names[number], Path):
            return names[number]
        files.append(NpyFile(names[number], shape, dtype))
        needed = sum(int(np.prod(file.shape)) for file in files) * dtype.itemsize
        room = shutil.disk_usage(names[number].parent).free
        if needed > room:
            needed, room = (f"{size / 2**20:,.1f} MiB" for size in (needed, room))
            raise OSError(f"There is not enough room for {names[number]}: {needed}, of {room}.")
        return files[-1]

    try:
        results = stream_masks(fmri_path, masks, block_size, memory_mib=memory_mib, out=make)
        for file in files:
            os.replace(file.unfinished, file.path)
    finally:
        for file in files:
            file.unfinished.unlink(missing_ok=True)
    return [
        np.load(one.path, mmap_mode="r") if isinstance(one, NpyFile) else one for one in results
    ]


# %%
# What it costs
# -------------
# The same measurement as for the other methods: a fresh process, sampled from outside, with the
# arrays compared with NiftiMasker's. There are no workers.

if __name__ == "__main__":
    from measured_methods import measure_methods, plot_traces, prepare_all

    fmri_path, mask_paths, reference, image_mib = prepare_all()
    traces = measure_methods(stream_masks)
    plot_traces(traces, image_mib)

# %%
# How much of the memory above the start is the result:

if __name__ == "__main__":
    trace = traces["Streaming, masks, one pass"]
    output_mib = sum(series.nbytes for series in reference) / 2**20
    print(f"the image in memory would be     {image_mib:8.1f} MiB")
    if hasattr(trace, "above_mib"):  # it was run
        print(f"peak above the start             {trace.above_mib:8.1f} MiB")
    print(f"the result                       {output_mib:8.1f} MiB")

# %%
# The same into files:

if __name__ == "__main__":
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
# imports and the memory above. :doc:`/auto_examples/mask_study` does that, on one machine or on a
# cluster, and continues where it was interrupted.
#
# What to conclude
# ----------------
# For the voxels of any number of masks, this function is enough on any machine, for an image of
# any length: memory grows with the result, and results too large for memory can go into files.
# :ref:`sphx_glr_auto_examples_plot_limit.py` compares its time with the time to decompress the
# file, and shows how both grow. If you need more than voxels, such as smoothing, filtering or
# averages, go on with :ref:`sphx_glr_auto_examples_plot_stream_masker.py`.
#
# The function refuses a mask on another grid; it does not resample it. It does not detect a file
# that changes while being read.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_stream_masker.py`: when you need more than voxels.
# * :ref:`sphx_glr_auto_examples_plot_limit.py`: how close this comes to the decompression time,
#   and how it grows.
# * :ref:`sphx_glr_auto_examples_plot_one_machine.py`: a study, one image for each worker.
