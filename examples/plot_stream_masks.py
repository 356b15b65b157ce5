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

import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.volumeutils import apply_read_scaling
from numpy.lib.format import open_memmap
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
    out : list, optional
        For each mask an array to write into, or the name of a ``.npy`` file to make.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask, or maps of the files. float32 or float64, as the image; integers
        become float32. Voxels are in C order of the mask. What is not finite becomes zero.

    Raises
    ------
    ValueError
        The image is not 4D, or a mask is empty or on another grid, or `out` does not fit.
    OSError
        A file is missing, incomplete or damaged, or there is no room for the results.
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
        if mask_img.shape != shape[:3] or not np.allclose(mask_img.affine, fmri_img.affine):
            raise ValueError(
                f"{name} has shape {mask_img.shape} and affine\n{mask_img.affine}\nTo bring it to "
                f"the grid of {fmri_path}, {shape[:3]},\n{fmri_img.affine}\nthere is "
                "nilearn.image.resample_to_img(mask, image, interpolation='nearest')."
            )
        inside = np.nan_to_num(read(name, np.asarray, mask_img.dataobj), posinf=0, neginf=0) != 0
        indices.append(np.arange(inside.size).reshape(shape[:3], order="F")[inside])
        if not inside.any():
            raise ValueError(f"{name} is empty: none of its voxels differs from zero.")
    index, ends = np.concatenate(indices), np.cumsum([len(i) for i in indices])[:-1]

    dtype = apply_read_scaling(np.empty(0, proxy.dtype), proxy.slope, proxy.inter).dtype
    dtype = dtype.newbyteorder("=") if dtype.kind == "f" else np.dtype("float32")
    wanted = [((shape[3], len(i)), dtype) for i in indices]
    out = [np.empty(*one) for one in wanted] if out is None else list(out)
    files = {i: Path(o).resolve() for i, o in enumerate(out) if isinstance(o, (str, Path))}
    given = [(np.shape(o), getattr(o, "dtype", None)) for o in out]
    fits = [i in files or one == wanted[i] for i, one in enumerate(given[: len(wanted)])]
    if not all(fits) or len(out) != len(wanted) or len(set(files.values())) < len(files):
        raise ValueError(f"out needs, for each mask, a name of its own or an array: {wanted}.")
    n_rows = block_size or int(memory_mib * 2**20 / (4 * dtype.itemsize * len(index)))
    block = np.empty((np.clip(n_rows, 1, shape[3]), len(index)), proxy.dtype)
    needed = sum(len(indices[i]) for i in files) * shape[3] * dtype.itemsize
    try:
        for i, file in files.items():
            if shutil.disk_usage(file.parent).free < needed:
                raise OSError(f"{file} and its like need {needed / 2**20:,.0f} MiB on the disk.")
            out[i] = open_memmap(f"{file}.unfinished", "w+", dtype, wanted[i][0])
        source = fmri_img.file_map["image"].filename
        with gzip.open(source) if source.endswith(".gz") else ImageOpener(source) as stream:
            read(fmri_path, stream.seek, proxy.offset)
            for start in tqdm(range(0, shape[3], len(block)), unit="block", delay=2):
                rows = block[: shape[3] - start]
                for row in rows:
                    volume = read(fmri_path, stream.read, inside.size * proxy.dtype.itemsize)
                    volume = read(fmri_path, np.frombuffer, volume, proxy.dtype, inside.size)
                    volume.take(index, out=row, mode="clip")
                values = apply_read_scaling(rows, proxy.slope, proxy.inter).astype(dtype)
                if not np.isfinite(values).all():
                    np.nan_to_num(values, copy=False, nan=0, posinf=0, neginf=0)
                for series, part in zip(out, np.split(values, ends, axis=1), strict=True):
                    series[start : start + len(rows)] = part
            while read(fmri_path, stream.read, 2**20):  # gzip has its checksum at the end
                pass
        for i, file in files.items():
            os.replace(f"{file}.unfinished", file)
            out[i] = np.load(file, mmap_mode="r+")
    finally:
        for file in files.values():
            Path(f"{file}.unfinished").unlink(missing_ok=True)
    return out


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
# Results that do not fit in memory
# ---------------------------------
# With a mask of the whole brain, the result can be nearly as large as the image. Give the
# name of a ``.npy`` file for it. While the file is written it has ``.unfinished`` at the end of
# its name; when it has its own name, it is complete. What is returned is a map of the file,
# whose parts are read when they are touched, and a map's memory is the system's to take back.

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
