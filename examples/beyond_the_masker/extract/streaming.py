"""Extract the voxels of any number of masks in one pass over a file. This module works alone."""

import errno
import glob
import math
import numbers
import os
import re
import shutil
import socket
import sys
import uuid
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import pairwise
from multiprocessing import parent_process
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import FileBasedImage
from nibabel.openers import ImageOpener
from nibabel.spatialimages import SpatialImage
from nibabel.volumeutils import apply_read_scaling
from tqdm import tqdm

try:
    from isal import igzip as gzip  # decompresses faster than Python's own gzip
except ImportError:
    import gzip

__all__ = ["stream_masks"]
IMAGES = r"\.(nii|img|hdr|mg[hz]|mnc|gii|par|rec|brik|head)\b"  # in names of files


def stream_masks(fmri_path, masks, block_size=None, *, memory_mib=8, out=None, threshold=None):
    """Extract the voxel time series of several masks in one pass over the image's file.

    Parameters
    ----------
    fmri_path : str or pathlib.Path, or list of them
        4D NIfTI image, compressed or not. Or the files of one series, 3D or 4D: as a list in their
        order, or as a pattern such as ``"vol_*.nii"`` in the order of the numbers in their names.
    masks : str, pathlib.Path or nibabel.Nifti1Image, or a list, another iterable or a dict of them
        On the grid of the image, to a hundredth of a voxel. In a list, each 3D image is a mask:
        non-zero in the region. An image that is not in a list has a region for each volume if it
        is 4D, otherwise for each label, in increasing order: a whole number other than 0.
    block_size : int, optional
        Volumes whose voxels are collected before they are written to the result.
    memory_mib : float
        If `block_size` is not given: MiB for a block. In addition, the function needs one volume,
        or two if the masks have many voxels, and 8 bytes for each voxel of each mask.
    out : list or callable, optional
        For each mask an array to write into, or the name of a ``.npy`` file, which is replaced
        when all results are complete; or a function of number, shape and dtype that returns one.
    threshold : float, optional
        A region is where a mask, or a volume of a 4D image, is above it. Probability maps need it.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        The values of NiftiMasker, for each region, in native byte order. They are parts of one
        large array: if you keep only one region, copy it. With files, the list opens each as a
        read-only `numpy.memmap` when you ask for it, since all might be more than may be open.
        NiftiMasker resamples an image whose affine was rounded in another way, and can lose a
        slice; this does not.
        Several files give the values of ``nilearn.image.concat_imgs(files, dtype=common)``, where
        `common` is the common type of their values. By itself, concat_imgs rounds to float32.

    Raises
    ------
    ValueError
        The image is not 4D, or files are on different grids; a mask is empty, on another grid, or
        needs a threshold; or `out` does not fit.
    OSError
        A file is missing, incomplete or damaged, or there is not enough space for the results.
    """
    fmri = open_series(fmri_path)
    positions = find_voxels(masks, fmri, fmri.name, threshold)
    return stream_voxels(fmri, positions, block_size, memory_mib, out)


def stream_voxels(fmri, positions, block_size=None, memory_mib=8, out=None):
    """Return the arrays of `stream_masks` for regions whose voxels lie at some positions."""
    dtype, n_volumes = result_dtype(fmri), fmri.shape[3]
    ends = np.cumsum([len(one) for one in positions])
    wanted = [((n_volumes, len(one)), dtype) for one in positions]
    positions = np.concatenate(positions, dtype=np.intp)
    n_rows = block_size or memory_mib * 2**20 / (4 * dtype.itemsize * len(positions))
    blocks = read_voxels(fmri, positions, int(min(max(n_rows, 1), n_volumes)))
    with prepare_results(out, wanted) as every_series, closing(blocks):
        for start, stored in blocks:
            parts = np.split(to_values(stored, fmri, dtype), ends[:-1], axis=1)
            for series, part in zip(every_series, parts, strict=True):
                series[start : start + len(part)] = part
    in_files = any(isinstance(one, NpyFile) for one in every_series)
    return Results(every_series) if in_files else every_series


class Part(NamedTuple):
    """Where the volumes of one file lie, and how its numbers become values."""

    path: str
    n_volumes: int
    offset: int
    dtype: np.dtype
    slope: float
    inter: float
    version: tuple

    @classmethod
    def of(cls, img):
        """Return what is in the header of an image."""
        path, data = img.file_map["image"].filename, img.dataobj
        numbers = data.offset, data.dtype, data.slope, data.inter
        return cls(path, math.prod(img.shape[3:]), *numbers, version_of(path))


class Series:
    """The volumes of one file, or of several on the same grid, one after the other; none is read.

    If all numbers have one type and the same scale factors, so has the series. Otherwise it has
    the common type of all values, and those of each file are scaled when they are read.
    """

    def __init__(self, img, parts):
        self.parts, self.affine, self.header = parts, img.affine, img.header
        self.shape = (*img.shape[:3], sum(part.n_volumes for part in parts))
        self.name = parts[0].path + (f" and {len(parts) - 1} more" if len(parts) > 1 else "")
        kinds = {(part.dtype, part.slope, part.inter) for part in parts}
        self.is_uniform = len(kinds) == 1
        if self.is_uniform:
            [(self.dtype, self.slope, self.inter)] = kinds
        else:
            self.dtype = np.result_type(*{value_type(part) for part in parts})
            self.slope, self.inter = 1.0, 0.0


def open_series(fmri_path):
    """Return the volumes of a file, of a list of files, or of those that match a pattern."""
    if isinstance(fmri_path, Series):
        return fmri_path
    files, first, parts = list_files(fmri_path), None, {}
    is_one = isinstance(fmri_path, (str, Path)) and files == [os.path.expanduser(fmri_path)]
    for path in files:
        img = open_image(path, n_axes=(4,) if is_one else (3, 4))
        first, part = first or img, Part.of(img)
        if part.path in parts:
            raise ValueError(f"{part.path} is among the files twice.")
        if not is_one and not is_same_grid(img, first):
            raise ValueError(
                f"{path} is on another grid than the first file: {img.shape[:3]}\n{img.affine}\n"
                f"instead of {first.shape[:3]}\n{first.affine}"
            )
        parts[part.path] = part
    return Series(first, list(parts.values()))


def list_files(fmri_path):
    """Return the files of a list as they are, or of a pattern in the order of their numbers."""
    if isinstance(fmri_path, (list, tuple)):
        files = fmri_path
        warn_of_order(files)
    elif isinstance(fmri_path, (str, Path)):
        path = os.path.expanduser(fmri_path)
        folder, name = os.path.split(path)
        folder = glob.escape(folder) if os.path.isdir(folder) else folder
        found = [path] if os.path.lexists(path) else glob.glob(os.path.join(folder, name))
        files = sorted(found, key=by_numbers)
    else:
        raise ValueError(
            "The path of a NIfTI file is needed, or a list of paths, not a "
            f"{type(fmri_path).__name__}: an image in memory needs no streaming."
        )
    if not files:
        raise FileNotFoundError(f"There is no file {fmri_path}.")
    return files


def by_numbers(path):
    """Return a key that sorts names by the numbers in them: vol_2 before vol_10."""
    return re.sub("[0-9]+", lambda number: number[0].zfill(64), str(path)), str(path)


def warn_of_order(files):
    """Warn if the names of files differ in numbers alone, and these do not ascend."""
    is_numbered = len({re.sub("[0-9]+", "", str(path)) for path in files}) == 1
    for one, other in pairwise(files if is_numbered else []):
        if by_numbers(one) > by_numbers(other):
            warnings.warn(
                f"{one} comes before {other}, and volumes stay in this order. A pattern such as "
                "'vol_*.nii' sorts files by the numbers in their names.",
                stacklevel=5,
            )
            return


def open_image(fmri_path, n_axes=(4,)):
    """Return a NIfTI image of numbers, its data not read; refuse anything else."""
    if not isinstance(fmri_path, (str, Path)):
        raise ValueError(f"The path of an image is needed, not a {type(fmri_path).__name__}.")
    with damaged_file_named(fmri_path):
        img = load(fmri_path)
        read_to_end(img, "header")  # of a pair of files
    shape = getattr(img, "shape", ())  # a surface has none
    has_numbers = isinstance(img, nib.Nifti1Pair) and img.dataobj.dtype.kind in "fiu"
    if not has_numbers or len(shape) not in n_axes or min(shape) < 1:
        hint = "Volumes of a series are given as a list or a pattern." if len(shape) == 3 else ""
        raise ValueError(
            f"{fmri_path} is not a 4D NIfTI image of numbers, but a {type(img).__name__} with the "
            f"shape {shape} and the type {getattr(img, 'get_data_dtype', object)()}. {hint}"
        )
    return img


def find_voxels(masks, fmri_img, fmri_path, threshold=None):
    """Return for each region where its voxels lie in the file, in NiftiMasker's order."""
    alone, found = is_alone(masks), []
    masks = masks.values() if isinstance(masks, dict) else masks
    for mask in [masks] if alone else masks:
        mask_img, name = open_mask(mask)
        if not is_same_grid(mask_img, fmri_img):
            raise ValueError(
                f"{name} is on the grid {mask_img.shape}\n{mask_img.affine}\nIt needs that of "
                f"{fmri_path}: {fmri_img.shape[:3]}\n{fmri_img.affine}\n"
                "See nilearn.image.resample_to_img, interpolation='nearest'."
            )
        for _, positions in regions_in(mask_img, name, threshold, alone):
            found.append(in_file_order(positions, mask_img.shape))
    if not found:
        raise ValueError("A list of masks is needed, with one mask at least.")
    return found


def is_alone(masks):
    """Return whether masks are one image, not a list of images; refuse anything else."""
    if isinstance(masks, (str, Path, FileBasedImage)):
        return True
    if not isinstance(masks, Iterable):
        raise ValueError(f"Images of masks are needed, or their paths, not {masks!r}.")
    return False


def open_mask(mask):
    """Return an image of numbers, its data not read, and its name for messages."""
    is_path = isinstance(mask, (str, Path))
    with damaged_file_named(mask):
        mask_img = load(mask) if is_path else mask
    if not is_image(mask_img):
        name = mask if is_path else f"A {type(mask).__name__}"
        raise ValueError(f"{name} is not an image of numbers on a grid.")
    return mask_img, str(mask) if is_path else mask_img.get_filename() or "A mask"


def is_image(img):
    """Return whether an image has real numbers on a grid of three axes, or more."""
    has_grid = isinstance(img, SpatialImage) and img.affine is not None and len(img.shape) > 2
    return has_grid and img.get_data_dtype().kind in "fiub"


def regions_in(mask_img, name, threshold=None, alone=False):
    """Yield the label of each region of an image, and where its voxels lie in C order of the grid.

    NaN and infinity are outside. A region's values are those above the threshold; without one, all
    that are not zero, if they are equal. If they differ, whole numbers in a 3D image that is given
    alone are labels, anything else that is given alone raises a ValueError, and an image in a list
    remains one region, with a warning. The label of a volume of a 4D image is its number.
    """
    is_number = isinstance(threshold, numbers.Real) and 0 <= threshold < np.inf
    if threshold is not None and not is_number:
        raise ValueError(f"The threshold is {threshold}; a number is needed, 0 or more.")
    is_4d = mask_img.shape[3:] not in ((), (1,))
    for number, values in enumerate(mask_volumes(mask_img, name, alone), 1):
        inside = np.isfinite(values) & (values != 0 if threshold is None else values > threshold)
        positions, values = np.flatnonzero(inside).astype("int32"), values[inside]
        source = f"Volume {number} of {name}" if is_4d else name
        if not len(values):
            kind = "non-zero" if threshold is None else f"above {threshold}"
            raise ValueError(f"{source} is empty: no voxel is {kind}.")
        equal = threshold is not None or (values == values[0]).all()
        if not equal and alone and not is_4d and not (values % 1).any():
            yield from by_label(values, positions)
            continue
        if not equal:
            report_values(source, values, alone)
        yield number if is_4d else values[0], positions


def mask_volumes(mask_img, name, alone):
    """Yield the values of a 3D image, or of each volume of a 4D image that is given alone."""
    shape, proxy = mask_img.shape, mask_img.dataobj
    if len(shape) == 3 or shape[3:] == (1,):
        path = mask_img.get_filename() if nib.is_proxy(proxy) else None
        with unchanged(path), damaged_file_named(name):
            values = np.asanyarray(proxy)
            if path:
                read_to_end(mask_img)
        yield values.reshape(shape[:3])
    elif len(shape) != 4 or not alone:
        raise ValueError(
            f"{name} has the shape {shape}; an image in a list is 3D. Give a 4D image instead of a "
            "list, and each volume is a region."
        )
    elif isinstance(proxy, ArrayProxy) and mask_img.get_filename():
        for part, stored in read_volumes(Series(mask_img, [Part.of(mask_img)])):
            yield scale(stored, part, value_type(part)).reshape(shape[:3], order="F")
    else:
        yield from np.moveaxis(np.asanyarray(proxy), 3, 0)


def by_label(labels, positions):
    """Yield each label, in increasing order, and its positions; all are sorted only once."""
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    yield from zip(found, np.split(positions[order], starts[1:]), strict=True)


def report_values(name, values, alone):
    """Raise a ValueError, or warn of an image in a list, because of a region's different values."""
    other = values[values != 1]
    found = f"{name} has {len(other):,} voxels whose values are neither 0 nor 1 ({other[0]:g})."
    if alone:
        raise ValueError(
            f"{found} A threshold takes those above it as a region. Labels must be whole numbers, "
            "in a 3D image."
        )
    warnings.warn(
        f"{found} All {len(values):,} that are not zero are one region. If they are labels, give "
        "the image instead of a list; if they are probabilities, give a threshold.",
        stacklevel=5,
    )


def in_file_order(positions, shape):
    """Return where voxels lie in a volume of the file, from their places in C order of the grid.

    In the file x changes fastest (Fortran order), in NiftiMasker's arrays z does (C order).
    """
    n_x, n_y, n_z = shape[:3]
    x, in_plane = np.divmod(positions, n_y * n_z)
    y, z = np.divmod(in_plane, n_z)
    return x + n_x * (y + n_y * z)


def in_file(inside):
    """Return where the voxels of a mask lie in a volume of the file, in NiftiMasker's order."""
    return in_file_order(np.flatnonzero(inside), inside.shape)


def read_to_end(img, *parts):
    """Read an image's compressed files, or only some, to their end, where gzip has a checksum."""
    for part in parts or img.file_map:
        holder = img.file_map.get(part)
        if holder and str(holder.filename).lower().endswith((".gz", ".mgz", ".bz2", ".zst")):
            with holder.get_prepare_fileobj("rb") as file:
                while file.read(2**20):
                    pass


def is_same_grid(img, other):
    """Return whether the grids of two images are the same, to a hundredth of a voxel.

    Tools that save headers again round affines, so the corners of the grid are compared.
    """
    if img.shape[:3] != other.shape[:3]:
        return False
    corners = np.ones((4, 8))
    corners[:3] = np.indices((2, 2, 2)).reshape(3, 8) * np.subtract(img.shape[:3], 1)[:, np.newaxis]
    try:
        moved = np.linalg.solve(other.affine, img.affine @ corners)
    except np.linalg.LinAlgError:  # an affine that has no inverse
        return np.array_equal(img.affine, other.affine)
    return bool(np.abs(moved - corners).max() <= 0.01)


def read_voxels(fmri, positions, n_rows):
    """Yield the first volume of each block, and the numbers of a `Series` at some positions."""
    n_voxels, n_volumes = math.prod(fmri.shape[:3]), fmri.shape[3]
    block, in_worker = np.empty((n_rows, len(positions)), fmri.dtype), is_worker()
    with ExitStack() as stack:
        progress = stack.enter_context(progress_bar(n_volumes, "volume"))
        volumes = stack.enter_context(closing(read_volumes(fmri)))
        # With few voxels, extraction takes too little time for a thread to gain any.
        if len(positions) > n_voxels / 8 and not in_worker and n_cores() > 1:
            volumes = stack.enter_context(closing(read_ahead(volumes)))
        for start in range(0, n_volumes, n_rows):
            rows = block[: n_volumes - start]
            for row in rows:
                take(*next(volumes), fmri, positions, row)
                progress.update()
            yield start, rows
        next(volumes, None)  # to the end of the last file


def take(part, volume, fmri, positions, row):
    """Take some voxels of a volume; scale them if the files of the series differ in their scale."""
    if fmri.is_uniform:
        volume.take(positions, out=row, mode="clip")
    else:
        row[:] = scale(volume.take(positions), part, row.dtype)


def progress_bar(total, unit):
    """Return a bar: shown on a terminal and in a notebook, neither in a log nor by a worker."""
    stream = sys.stderr  # that of a notebook is no terminal, either
    is_seen = getattr(stream, "isatty", bool)() or type(stream).__module__.startswith("ipykernel")
    return tqdm(total=total, unit=unit, delay=2, disable=is_worker() or not is_seen)


def is_worker():
    """Return whether this process is another one's worker: then other cores have work, too."""
    return parent_process() is not None


def n_cores():
    """Return how many cores this process may use; a batch system may give it only some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def read_volumes(fmri):
    """Yield for each volume its file's `Part` and its stored numbers, in the order of the file."""
    n_voxels = math.prod(fmri.shape[:3])
    for part in fmri.parts:
        with damaged_file_named(part.path), open_data(part.path) as file:
            file.seek(part.offset)
            for _ in range(part.n_volumes):
                content = file.read(n_voxels * part.dtype.itemsize)
                yield part, np.frombuffer(content, part.dtype, n_voxels)
            while file.read(2**20):  # gzip stores its checksum at the end
                pass
        check_version(part.path, part.version)


def version_of(path):
    """Return what changes when a file is replaced or written."""
    stat = os.stat(path)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def check_version(path, before):
    """Raise an OSError if a file is another one, or was written, since its version was taken."""
    if version_of(path) != before:
        raise OSError(f"{path} was changed while it was read. Run this again.")


@contextmanager
def unchanged(path):
    """Raise an OSError if a file, if there is one, is another one afterwards, or was written."""
    before = path and version_of(path)
    yield
    if path:
        check_version(path, before)


def read_ahead(items):
    """Yield items, and make the next one in a thread meanwhile: isal frees Python's lock."""
    np.empty(2**25, "u1")  # a MemoryError: without memory, Python can wait for a thread for ever
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item


def load(path):
    """Return the image of a path, its data not read; nibabel takes any ``~`` for a home folder."""
    return nib.load(os.path.abspath(os.path.expanduser(path)))


def open_data(path):
    """Open the file of an image's data, decompressed if necessary."""
    return gzip.open(path) if path.lower().endswith(".gz") else ImageOpener(path)


def result_dtype(proxy):
    """Return NiftiMasker's dtype for an image, in native byte order."""
    scaled = value_type(proxy)
    return scaled.newbyteorder("=") if scaled.kind == "f" else np.dtype("float32")


def value_type(proxy):
    """Return the dtype of an image's values, scale factors applied."""
    return apply_read_scaling(np.empty(0, proxy.dtype), proxy.slope, proxy.inter).dtype


def to_values(stored, proxy, dtype):
    """Apply the scale factors, and replace values that are not finite by zero."""
    values = scale(stored, proxy, dtype)
    if not np.isfinite(values).all():
        np.nan_to_num(values, copy=False, nan=0, posinf=0, neginf=0)
    return values


def scale(stored, proxy, dtype):
    """Apply the scale factors."""
    return apply_read_scaling(stored, proxy.slope, proxy.inter).astype(dtype, copy=False)


@contextmanager
def prepare_results(out, wanted):
    """Yield an array or `NpyFile` for each shape and dtype; complete the files, or remove them."""
    results = empty_arrays(wanted) if out is None else given_results(out, wanted)
    files = [one for one in results if isinstance(one, NpyFile)]
    check_space(files)
    for folder in {file.path.parent for file in files}:
        remove_left(folder)
    with ExitStack() as stack:
        for file in files:
            stack.enter_context(file)
        yield results


def empty_arrays(wanted):
    """Return new arrays; one large allocation is faster than many small ones."""
    sizes = [math.prod(shape) for shape, _ in wanted]
    parts = np.split(np.empty(sum(sizes), wanted[0][1]), np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, (shape, _) in zip(parts, wanted, strict=True)]


def given_results(out, wanted):
    """Return the arrays of `out`, and an `NpyFile` for each name; refuse any that do not fit."""
    if callable(out):
        out = [out(number, *each) for number, each in enumerate(wanted)]
    is_list = isinstance(out, Iterable) and not isinstance(out, (str, Path, dict))
    out = list(out) if is_list else []
    results = [
        NpyFile(one, *each) if isinstance(one, (str, Path)) else one
        for one, each in zip(out, wanted, strict=False)
    ]
    found = [(getattr(one, "shape", None), getattr(one, "dtype", None)) for one in results]
    other = [one for one in results if isinstance(one, NpyFile) and one.path.suffix != ".npy"]
    is_shared = len({*map(place_of, results)}) < len(out)
    if len(out) != len(wanted) or found != wanted or other or is_shared:
        raise ValueError(
            f"out needs an array, or the name of a .npy file, of its own for each of {wanted}."
        )
    return results


def place_of(result):
    """Return where a result will be: its file, the address of an array, or what else it is."""
    if isinstance(result, NpyFile):
        return result.path
    return result.ctypes.data if isinstance(result, np.ndarray) else id(result)


def check_space(files):
    """Raise an OSError unless the disk has enough space for the files."""
    needed = 0
    for file in files:
        needed += math.prod(file.shape) * file.dtype.itemsize
        free = shutil.disk_usage(file.path.parent).free
        if needed > free:
            raise OSError(
                f"There is not enough space for {file.path}: {needed / 2**20:,.1f} MiB are needed, "
                f"{free / 2**20:,.1f} MiB are free."
            )


def unfinished_beside(path):
    """Return a name beside a path for what is not complete; it has this machine and process."""
    start = os.fsdecode(os.fsencode(path.name)[:100])  # the name may have 255 bytes itself
    owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"
    return path.with_name(f"{start}.{owner}.unfinished")


def remove_left(folder):
    """Remove what processes of this machine, which are gone, left unfinished in a folder."""
    if os.name != "posix":  # there, a signal of 0 interrupts
        return
    for path in folder.glob(f"*.{glob.escape(socket.gethostname())}-*-*.unfinished"):
        try:
            os.kill(int(path.name.split("-")[-2]), 0)
        except ProcessLookupError:
            with suppress(OSError):  # it is another user's
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except (OSError, ValueError):  # the process is another user's; or the name is not ours
            pass


@contextmanager
def file_named(path):
    """Name the file in an error of the system that names none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


class NpyFile:
    """A ``.npy`` file to which rows are appended; it gets its name when it is complete.

    It is open only while rows are written, so there may be any number of them.
    """

    def __init__(self, path, shape, dtype):
        self.path, self.shape, self.dtype = Path(path).expanduser().resolve(), shape, dtype
        self.unfinished = unfinished_beside(self.path)

    def __enter__(self):
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
        try:
            with file_named(self.path), open(self.unfinished, "xb") as file:
                np.lib.format.write_array_header_1_0(file, header)
        except BaseException:
            self.unfinished.unlink(missing_ok=True)
            raise
        return self

    def __setitem__(self, rows, values):
        """Append values as the next rows."""
        with file_named(self.path), open(self.unfinished, "r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(np.ascontiguousarray(values))

    def __exit__(self, failed, *_):
        try:
            if not failed:
                with file_named(self.path):
                    flush(self.unfinished)
                    os.replace(self.unfinished, self.path)
        finally:
            self.unfinished.unlink(missing_ok=True)


def flush(path):
    """Have a file stored on the disk, so that it is whole under its final name, too."""
    with open(path, "ab") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:  # some file systems of networks cannot do this
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise


class Results(Sequence):
    """Arrays, and files that are mapped when they are asked for: a map keeps its file open."""

    def __init__(self, results):
        self.results = results

    def __len__(self):
        return len(self.results)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        one = self.results[number]
        if not isinstance(one, NpyFile):
            return one
        with file_named(one.path):
            return np.load(one.path, mmap_mode="r")


@contextmanager
def damaged_file_named(path):
    """Turn any error that reading a damaged file raises into one that names the file."""
    try:
        yield
    except Exception as error:  # nibabel lets a damaged file raise almost anything
        if problem := problem_of(path, error):
            raise problem from error
        raise


def problem_of(path, error):
    """Return why a file cannot be read; None if the error names the reason itself."""
    place = os.path.expanduser(path) if isinstance(path, (str, Path)) else ""
    if os.path.islink(place) and not os.path.exists(place):
        link = f"{path} is a link to {os.readlink(place)}, where there is no file"
        return FileNotFoundError(f"{link}: get it, for example with git annex get or datalad get.")
    if getattr(error, "errno", None):  # of the system: missing, not allowed, too many open
        return None if error.filename else OSError(error.errno, error.strerror, str(path))
    if isinstance(error.__context__, FileNotFoundError):  # of nibabel, in words of its own
        return FileNotFoundError(f"There is no file {path}.")
    if isinstance(error, (FileNotFoundError, Warning)):
        return None
    if isinstance(error, MemoryError):
        return MemoryError(f"{path} is too large for memory, or its header is wrong.")
    if isinstance(error, ImportError) or type(error).__name__ == "TripWireError":  # of nibabel
        return OSError(f"{path} cannot be read without another package ({error}).")
    return problem_in(path, place, error)


def problem_in(path, place, error):
    """Return what is wrong with the content of a file: most likely it is damaged."""
    if os.path.exists(place) and not os.path.isfile(place):  # reading a pipe would wait
        kind = IsADirectoryError if os.path.isdir(place) else OSError
        return kind(f"{path} is a folder or a pipe; a file is needed.")
    start = b""
    if os.path.isfile(place):
        try:
            with open(place, "rb") as file:
                start = file.read(200)
        except OSError as problem:  # of the system: nibabel does not pass it on
            return problem
    if start.startswith(b"version https://git-lfs") or b"/annex/objects/" in start:
        return OSError(f"{path} is not here yet: get it with git annex or git lfs.")
    if start.startswith(b"\x1f\x8b") and not place.lower().endswith("gz"):
        return OSError(f"{path} is compressed by gzip: its name has to end in .gz.")
    if "Cannot work out" in str(error) and not re.search(IMAGES, place, re.IGNORECASE):
        return ValueError(f"{path} is not an image: its name ends like that of another file.")
    return OSError(f"{path} is incomplete or damaged ({error}): copy it again.")
