"""streaming."""

import os
import shutil
import uuid
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
