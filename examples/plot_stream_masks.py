"""
All masks in one pass over the file
===================================

The voxels of all masks together are a small part of the image, and a NIfTI file holds one
volume after the other. So the image need not be in memory at all: read a volume, take the
voxels of every mask from it, forget it, and read the next. One pass serves all masks. On
this page you will

1. write the function that does it, and gives the very values that NiftiMasker gives,
2. see what it costs: the result, one volume, and the time to decompress the file, and
3. put the results into files, for those that are themselves too large for the memory.
"""

# %%
# The function
# ------------
# What takes time is to decompress the file. isal, where it is installed, does that in half
# the time that Python's own gzip needs, or less, with the same result. What the header says,
# and how stored numbers become values, stays with nibabel: its proxy tells where the data
# begin, and of which type they are, and :func:`~nibabel.volumeutils.apply_read_scaling`
# applies the scale factors, here to the voxels in the masks alone.
#
# The order of voxels needs care. A file counts them in Fortran order, x first, while
# NiftiMasker counts them in C order of the mask, z first. An array of all positions in
# Fortran order, indexed with the mask, gives the positions in NiftiMasker's order.
#
# The file is read to its very end, since only there does gzip keep its checksum: a
# damaged file ends in an error, never in an array.

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
    masks : list of str, pathlib.Path or nibabel.Nifti1Image
        3D masks on the grid of the image: non-zero in the region.
    block_size : int, optional
        Volumes in a block; by default as many as `memory_mib` MiB hold the masks' voxels of.
    out : list or callable, optional
        For each mask an array to write into, or the name of a ``.npy`` file (see
        `stream_masks_to_files`); or what gives the array for a number, a shape and a dtype.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask; new ones share one piece of memory. float32 or float64, as the
        image; integers become float32. Voxels are in C order of the mask. Values that are not
        finite are replaced by zero, as NiftiMasker does.

    Raises
    ------
    ValueError
        The image is not 4D, or a mask is empty or on another grid, or `out` does not fit.
    OSError
        A file is missing, incomplete or damaged.
    """

    def read(path, function, *args):
        try:
            return function(*args)
        except FileNotFoundError:
            raise
        except Exception as error:  # nibabel lets a damaged file raise almost anything
            raise OSError(f"{path} is incomplete or damaged ({error}): copy it again.") from error

    fmri_img = read(fmri_path, nib.load, fmri_path)
    shape, proxy = fmri_img.shape, fmri_img.dataobj
    numbers = isinstance(fmri_img, nib.Nifti1Pair) and proxy.dtype.kind in "fiu"
    if not numbers or len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"{fmri_path} is not a 4D NIfTI image of numbers; its shape is {shape}.")
    indices, masks = [], [] if isinstance(masks, (str, Path)) else list(masks)
    if not masks:
        raise ValueError("A list of masks is needed, with one mask at least.")
    for mask in masks:
        mask_img = read(mask, nib.load, mask) if isinstance(mask, (str, Path)) else mask
        name = mask_img.get_filename() or "A mask"
        inside = np.nan_to_num(read(name, np.asarray, mask_img.dataobj), posinf=0, neginf=0) != 0
        on_grid = inside.shape == shape[:3] and np.allclose(mask_img.affine, fmri_img.affine)
        if not on_grid or not inside.any():
            raise ValueError(
                f"{name} has {inside.sum()} voxels that are not zero, on the grid {inside.shape}\n"
                f"{mask_img.affine}\nIt needs some, on that of {fmri_path}: {shape[:3]}\n"
                f"{fmri_img.affine}\nSee nilearn.image.resample_to_img, interpolation='nearest'."
            )
        indices.append(np.arange(inside.size).reshape(shape[:3], order="F")[inside])
    index, ends = np.concatenate(indices), np.cumsum([len(i) for i in indices])[:-1]

    dtype = apply_read_scaling(np.empty(0, proxy.dtype), proxy.slope, proxy.inter).dtype
    dtype = dtype.newbyteorder("=") if dtype.kind == "f" else np.dtype("float32")
    wanted = [((shape[3], len(i)), dtype) for i in indices]
    if out is None:  # one large piece of memory is had sooner than many small ones
        out = np.split(np.empty(shape[3] * len(index), dtype), shape[3] * ends)
        out = [part.reshape(shape[3], -1) for part in out]
    elif callable(out):
        out = [out(number, *one) for number, one in enumerate(wanted)]
    elif any(isinstance(one, (str, Path)) for one in out):
        return stream_masks_to_files(fmri_path, masks, out, block_size, memory_mib=memory_mib)
    if [(np.shape(one), getattr(one, "dtype", None)) for one in out] != wanted:
        raise ValueError(f"out needs an array or the name of a file for each of {wanted}.")
    n_rows = block_size or int(memory_mib * 2**20 / (4 * dtype.itemsize * len(index)))
    block = np.empty((np.clip(n_rows, 1, shape[3]), len(index)), proxy.dtype)
    source = fmri_img.file_map["image"].filename
    with gzip.open(source) if source.endswith(".gz") else ImageOpener(source) as file:
        read(fmri_path, file.seek, proxy.offset)
        for start in tqdm(range(0, shape[3], len(block)), unit="block", delay=2):
            rows = block[: shape[3] - start]
            for row in rows:
                volume = read(fmri_path, file.read, inside.size * proxy.dtype.itemsize)
                volume = read(fmri_path, np.frombuffer, volume, proxy.dtype, inside.size)
                volume.take(index, out=row, mode="clip")
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
# into ``.npy`` files: give their names as ``out``. While a file is written it has
# ``.unfinished`` at the end of its name; when it has its own name, it is complete. What is
# returned are maps of the files, whose parts are read when they are touched, and whose memory
# is the system's to take back. To write to a map on a disk that is full ends the process, so
# the room is looked at first.

import os
import shutil
from numpy.lib.format import open_memmap


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
        One for each file; an array where there was one.

    Raises
    ------
    ValueError, OSError
        As for `stream_masks`; or there is not enough room for the files.
    """
    names = [Path(name).resolve() if isinstance(name, (str, Path)) else name for name in names]
    files = {i: name for i, name in enumerate(names) if isinstance(name, Path)}
    if len(names) != len(masks) or len(set(files.values())) < len(files):
        raise ValueError(f"out needs a name of its own for each of {len(masks)} masks: {names}")
    sizes = []

    def make(number, shape, dtype):
        if number not in files:
            return names[number]
        sizes.append(int(np.prod(shape)) * dtype.itemsize)
        room = shutil.disk_usage(files[number].parent).free
        if sum(sizes) > room:
            needed, room = (f"{size / 2**20:,.1f} MiB" for size in (sum(sizes), room))
            raise OSError(f"There is not enough room for {names[number]}: {needed}, of {room}.")
        return open_memmap(f"{files[number]}.unfinished", "w+", dtype, shape)

    try:
        results = stream_masks(fmri_path, masks, block_size, memory_mib=memory_mib, out=make)
        for number, file in files.items():
            os.replace(f"{file}.unfinished", file)
            results[number] = np.load(file, mmap_mode="r+")
    finally:
        for file in files.values():
            Path(f"{file}.unfinished").unlink(missing_ok=True)
    return results


# %%
# What it costs
# -------------
# The same measurement as for the other methods: a fresh process, looked at from outside, and
# the arrays compared with NiftiMasker's. There are no workers.

if __name__ == "__main__":
    from measured_methods import measure_methods, plot_traces, prepare_all

    fmri_path, mask_paths, reference, image_mib = prepare_all()
    traces = measure_methods(stream_masks)
    plot_traces(traces, image_mib)

# %%
# Above the level before the call, there is the result, and little else:

if __name__ == "__main__":
    trace = traces["Streaming, masks, one pass"]
    output_mib = sum(series.nbytes for series in reference) / 2**20
    print(f"the image in memory would be     {image_mib:8.1f} MiB")
    print(f"peak above the start             {trace.peak_pss_mib - trace.before_mib:8.1f} MiB")
    print(f"of it the result                 {output_mib:8.1f} MiB")

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
# What to conclude
# ----------------
# For the voxels of any number of masks, this is all that is needed, on a small machine as on
# a large one, for an image of any length. How close it comes to the limit, and how it grows, is
# measured in :ref:`sphx_glr_auto_examples_plot_limit.py`. When more is asked for than voxels,
# such as smoothing, filtering or averages, go on with
# :ref:`sphx_glr_auto_examples_plot_stream_masker.py`.
#
# What it does not do: it does not resample a mask that is on another grid, but refuses it. And
# of a file that is changed while it is read it knows nothing.
