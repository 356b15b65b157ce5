"""
Will it fit? A model of the memory that each method needs
=========================================================

How much memory will a method take, and how many workers can I afford? This file answers
that from what is known before anything is loaded: the header of the image, the sizes of the
masks, the number of workers.

.. code-block:: bash

    python memory_budget.py image.nii.gz masks/*.nii.gz --jobs 20 --memory 16G

It needs ``peak_memory.py`` and ``options.py`` beside it, and nothing else of this site. From
Python, :func:`budget` prints the same table, and :func:`predict_peak` gives the parts of
one method's peak.

The model counts copies. Each method goes through a few **moments**, such as reading the file
or copying the array. At each moment certain things are in memory: so many copies of the
image, of which type, held by the calling process, by each worker, or by all of them
together. The peak is the largest sum. The table ``METHODS`` below is the whole model: the
calculator on this site evaluates the same table, and
:ref:`sphx_glr_auto_examples_plot_prediction.py` compares it with measurements in every build.

Two things are not known beforehand:

* **How many workers are at their own peak at the same moment.** The prediction has a likely
  peak, in which the others hold a part of theirs, and the most that is possible. Whether a
  method fits is decided by the most.
* **Which pages of a mapped file are touched.** Workers that map a file have in memory what
  they look at, and some pages around it. For that, a region is taken for a ball.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from options import parse_memory
from peak_memory import MIB, available_mib, measure

# %%
# What is in memory, and why
# --------------------------
# A part of a moment is so many times a quantity, held by someone, for a reason. With
# ``when``, it is there under these conditions only:
#
# * ``compressed`` or ``plain``: a ``.nii.gz`` file or a ``.nii`` file,
# * ``scaled`` or ``unscaled``: whether the header has scale factors, and ``twice`` where it has
#   both a slope and an intercept,
# * ``mapped`` or ``read``: plain and unscaled, or not,
# * ``workers`` or ``alone``: two workers or more, or none.
#
# Who holds it matters for what a tool shows. What a process has for itself (``caller``,
# ``worker``) counts once in any sum. A file that several processes map counts once in PSS, and
# for each of them in RSS: a ``file`` on disk, whose pages the kernel may drop again, or a
# ``block`` in shared memory, which takes room whether or not anybody looks at it.


class Part(NamedTuple):
    """So many times a quantity, held by someone, for a reason."""

    holder: str  # "caller", "worker", "file" or "block"
    times: float
    quantity: str  # one of those that `quantities` gives
    reason: str  # a key of REASONS
    when: str = ""  # conditions, separated by spaces


class Moment(NamedTuple):
    """What is in memory at a moment."""

    name: str
    parts: tuple
    when: str = ""


class Model(NamedTuple):
    """What a method has in memory.

    Workers begin one after the other, and their number at the peak is a matter of chance: on
    top of one worker at its peak, each other holds the part ``together`` of the same, less
    the voxels (in millions) that are done before the last one begins. These two numbers, and
    they alone, were fitted to measurements.
    """

    function: str
    mode: str
    imports: str  # what a worker imports: "numpy", "nibabel" or "nilearn"; "" without workers
    moments: tuple
    together: float = 1
    late: float = 0


NIBABEL = "https://github.com/nipy/nibabel/blob/5.4.2/nibabel"
NILEARN = "https://github.com/nilearn/nilearn/blob/0.14.1/nilearn"
JOBLIB = "https://github.com/joblib/joblib/blob/1.6.0/joblib"

REASONS = {
    "inflate": (
        "nibabel makes a buffer for all bytes of the file and lets gzip fill it; gzip "
        "decompresses into bytes of its own first",
        f"{NIBABEL}/volumeutils.py, array_from_file",
    ),
    "image": (
        "the image's data as an array, scale factors applied",
        f"{NIBABEL}/arrayproxy.py, ArrayProxy.__array__",
    ),
    "map": (
        "a file that is neither compressed nor scaled is mapped, not read",
        f"{NIBABEL}/volumeutils.py, array_from_file",
    ),
    "stored": (
        "the stored values, from which the scaled ones are computed",
        f"{NIBABEL}/arrayproxy.py, ArrayProxy._get_scaled",
    ),
    "scale": (
        "scale factors are float64: a product, and then a sum, each a new array",
        f"{NIBABEL}/volumeutils.py, apply_read_scaling",
    ),
    "masker": (
        "NiftiMasker copies the 4D data, in floating point and in C order",
        f"{NILEARN}/masking.py, apply_mask_fmri",
    ),
    "finite": (
        "NiftiMasker looks for values that are not finite: one byte for each value",
        f"{NILEARN}/_utils/niimg.py, has_non_finite",
    ),
    "joblib": (
        "joblib writes an array of more than 1 MB to a file in /dev/shm, which workers map",
        f"{JOBLIB}/_memmapping_reducer.py, ArrayMemmapForwardReducer",
    ),
    "block": (
        "the one copy of the image, in a block of shared memory",
        "https://docs.python.org/3/library/multiprocessing.shared_memory.html",
    ),
    "touched": (
        "of a mapped file those pages are in memory that are looked at, and some around them",
        "https://docs.kernel.org/filesystems/proc.html, smaps",
    ),
    "index": (
        "indexing gives a new array, which is then put into the order of NiftiMasker's",
        "https://numpy.org/doc/stable/user/basics.indexing.html#boolean-array-indexing",
    ),
    "results": (
        "the time series, which the calling process collects",
        f"{JOBLIB}/parallel.py, Parallel",
    ),
    "masks": (
        "the masks as arrays: a byte for each voxel of the grid",
        f"{NIBABEL}/arrayproxy.py, ArrayProxy.__array__",
    ),
    "volume": (
        "one volume, while the array is filled volume by volume",
        f"{NIBABEL}/arrayproxy.py, ArrayProxy.__getitem__",
    ),
    "stream": (
        "streaming holds the positions of all voxels in masks, one volume and a block",
        "stream_masks",
    ),
    "blocks": (
        "a block of volumes, and the copies that the masker makes of it",
        "stream_masker, memory_mib",
    ),
    "imports": (
        "the interpreter and what it imports, as measured on this machine",
        "calibrate",
    ),
}

# %%
# The methods
# -----------
# To read an image is the same everywhere: the bytes of a compressed file are there twice for
# a moment, and scale factors make new arrays.


def reading(holder):
    """Give the moments of ``np.asanyarray(img.dataobj)``, done by the caller or a worker."""
    stored = (
        Part(holder, 1, "stored", "stored", "compressed"),
        Part("file", 1, "stored", "stored", "plain"),
    )
    return (
        Moment("decompressing", (Part(holder, 2, "stored", "inflate"),), "compressed"),
        Moment("scaling", (*stored, Part(holder, 1, "array", "scale")), "scaled"),
        Moment("adding the intercept", (Part(holder, 2, "array", "scale"),), "twice"),
    )


def image(holder):
    """Give the parts that are the image's data: an array, or the file itself."""
    return (
        Part(holder, 1, "array", "image", "read"),
        Part("file", 1, "array", "map", "mapped"),
    )


INTO_MEMORY = (
    *reading("caller"),
    Moment(
        "copying the mapped file",
        (Part("file", 1, "array", "map"), Part("caller", 1, "array", "image")),
        "mapped",
    ),
)
ARRAY = Part("caller", 1, "array", "image")
RESULTS = Part("caller", 1, "outputs", "results")
MASKS = Part("caller", 1, "masks", "masks")
INDEX = Part("worker", 2, "output", "index")
COPY = Part("worker", 1, "copy", "masker")
FINITE = Part("worker", 1, "finite", "finite")
TOUCHED = Part("file", 1, "touched", "touched")

MASKER_FROM_PATH = (
    *reading("worker"),
    Moment("copying", (*image("worker"), COPY, RESULTS)),
    Moment("looking for values that are not finite", (COPY, FINITE, RESULTS)),
)
MASKER_IN_MEMORY = (
    *INTO_MEMORY,
    Moment(
        "looking for values that are not finite",
        (ARRAY, Part("block", 1, "array", "joblib", "workers"), COPY, FINITE, RESULTS),
    ),
)
INDEX_FROM_PATH = (
    *reading("worker"),
    Moment(
        "indexing",
        (
            Part("worker", 1, "array", "image", "read"),
            Part("file", 1, "touched", "touched", "mapped"),
            *(INDEX, RESULTS),
        ),
    ),
)
INDEX_IN_MEMORY = (
    *INTO_MEMORY,
    Moment(
        "indexing",
        (ARRAY, Part("block", 1, "touched", "joblib", "workers"), INDEX, RESULTS),
    ),
)
VOLUME = Part("caller", 2, "volume", "volume")

METHODS = {
    "NiftiMasker, path, single": Model("nifti_masker_single", "single", "", MASKER_FROM_PATH),
    "NiftiMasker, in-memory image, single": Model(
        "nifti_masker_single", "single", "", MASKER_IN_MEMORY
    ),
    "NiftiMasker, path, parallel": Model(
        *("nifti_masker_parallel", "parallel", "nilearn", MASKER_FROM_PATH), 0.93, 15
    ),
    "NiftiMasker, in-memory image, parallel": Model(
        *("nifti_masker_parallel", "parallel", "nilearn", MASKER_IN_MEMORY), 1, 22
    ),
    "NumPy indexing, path, single": Model(
        "numpy_masker_single_path", "single", "", INDEX_FROM_PATH
    ),
    "NumPy indexing, in-memory image, single": Model(
        "numpy_masker_single_inmemory", "single", "", INDEX_IN_MEMORY
    ),
    "NumPy indexing, path, parallel": Model(
        *("numpy_masker_parallel_path", "parallel", "nibabel", INDEX_FROM_PATH), 0.85, 9
    ),
    "NumPy indexing, in-memory image, parallel": Model(
        "numpy_masker_parallel_inmemory", "parallel", "nibabel", INDEX_IN_MEMORY
    ),
    "NumPy indexing, shared memory, parallel": Model(
        *("numpy_masker_shared_parallel", "parallel", "nibabel"),
        (
            Moment("filling the block", (Part("block", 1, "array", "block"), VOLUME, MASKS)),
            Moment("indexing", (Part("block", 1, "array", "block"), INDEX, RESULTS, MASKS)),
        ),
    ),
    "NumPy indexing, threads, parallel": Model(
        *("numpy_masker_threads", "parallel", ""),
        (
            Moment("reading volume by volume", (ARRAY, VOLUME, MASKS)),
            Moment("indexing", (ARRAY, INDEX, RESULTS, MASKS)),
        ),
    ),
    "NumPy indexing, joblib map, parallel": Model(
        *("numpy_masker_joblib_map", "parallel", "numpy"),
        (
            Moment("writing the file", (VOLUME, MASKS)),
            Moment("indexing", (TOUCHED, INDEX, RESULTS, MASKS)),
        ),
    ),
    "NumPy indexing, mapped file, parallel": Model(
        *("numpy_masker_mapped", "parallel", "numpy"),
        (
            Moment("writing the file", (VOLUME, MASKS), "read"),
            Moment("indexing", (TOUCHED, INDEX, RESULTS, MASKS)),
        ),
    ),
    "Streaming, any masker, one pass": Model(
        *("stream_nifti_maskers", "one pass", ""),
        (Moment("streaming", (RESULTS, MASKS, Part("caller", 1, "blocks", "blocks"))),),
    ),
    "Streaming, masks, one pass": Model(
        *("stream_masks", "one pass", ""),
        (Moment("streaming", (RESULTS, Part("caller", 1, "streamed", "stream"))),),
    ),
}

# %%
# What goes in
# ------------
# Only the header of the image is read, and with it the file's size: a header that promises
# more than there can be is found out. Of a mask, the voxels are counted.

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
DTYPES += ("int64", "uint64")
DEFLATE_AT_MOST = 1032  # bytes that come out of one byte of gzip: https://zlib.net/zlib_tech.html


class Image(NamedTuple):
    """What the header of an image says.

    Attributes
    ----------
    shape : tuple of int
        (x, y, z, n_timepoints)
    dtype : str
        Type of the stored values, one of ``DTYPES``.
    compressed : bool
        Whether the file is a ``.nii.gz``.
    slope, inter : bool
        Whether the header has a slope other than 1, and an intercept other than 0.
    """

    shape: tuple
    dtype: str = "float32"
    compressed: bool = True
    slope: bool = False
    inter: bool = False


def read_header(fmri_path):
    """Read the header of an image, and nothing else.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
        4D NIfTI image.

    Returns
    -------
    Image

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is not a 4D NIfTI image of numbers, or does not hold what its header says.
    """
    path = Path(fmri_path)
    try:
        img = nib.load(path)
    except FileNotFoundError:
        raise
    except (
        *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
        *(EOFError, OSError, OverflowError, ValueError, zlib.error),
    ) as error:
        raise ValueError(f"{path} is not a NIfTI image that can be read ({error}).") from error
    proxy = img.dataobj
    shape, dtype = img.shape, proxy.dtype.newbyteorder("=").name
    if not isinstance(img, nib.Nifti1Pair) or len(shape) != 4 or min(shape) < 1:
        raise ValueError(
            f"{path} is a {type(img).__name__} of shape {shape}; a 4D NIfTI image is needed."
        )
    if dtype not in DTYPES:
        raise ValueError(f"{path} holds values of type {dtype}; {', '.join(DTYPES)} are known.")
    source = Path(img.file_map["image"].filename)
    promised = int(proxy.offset) + int(np.prod(shape, dtype=object)) * proxy.dtype.itemsize
    compressed = source.suffix.lower() == ".gz"
    there = source.stat().st_size
    if compressed and there * DEFLATE_AT_MOST >= promised:
        with open(source, "rb") as file:
            several = file.read(4)[3:] not in (b"\0", b"\x08")  # bgzip writes many parts
            file.seek(-4, os.SEEK_END)
            unpacked = int.from_bytes(file.read(), "little")  # gzip keeps it modulo 2 ** 32
        there = promised if several or unpacked == promised % 2**32 else unpacked
        says = "its end says that it unpacks to"
    elif compressed:
        says = f"no {there} bytes of gzip hold more than {DEFLATE_AT_MOST} times as many: it has"
    else:
        says = "it has"
    if (there != promised) if compressed else (there < promised):
        raise ValueError(
            f"{path} is incomplete, or its header is wrong: by its header, {shape} of {dtype}, "
            f"it should hold {promised} bytes, and {says} {there}."
        )
    return Image(
        *(shape, dtype, compressed),
        slope=proxy.slope != 1,
        inter=proxy.inter != 0,
    )


def count_voxels(mask_path, shape):
    """Count the voxels of a mask.

    Parameters
    ----------
    mask_path : str or pathlib.Path
        3D image.
    shape : tuple of int
        The grid that it should have.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        The file is not an image, or on another grid, or no voxel differs from zero.
    """
    try:
        mask = np.asarray(nib.load(mask_path).dataobj)
    except FileNotFoundError:
        raise
    except (
        *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
        *(EOFError, OSError, OverflowError, ValueError, zlib.error),
    ) as error:
        raise ValueError(f"{mask_path} is not an image that can be read ({error}).") from error
    inside = int(np.count_nonzero(np.nan_to_num(mask, posinf=0, neginf=0)))
    if mask.shape != tuple(shape) or not inside:
        raise ValueError(
            f"{mask_path} has {inside} voxels that are not zero, on the grid {mask.shape}; a "
            f"mask has some, on the grid of the image, {tuple(shape)}. To bring one there: "
            "nilearn.image.resample_to_img(mask, image, interpolation='nearest')."
        )
    return inside


def check(image, mask_voxels, n_jobs):
    """Raise a ValueError if a budget cannot be made of these, with what is wrong."""
    whole = (int, np.integer)
    if len(image.shape) != 4 or not all(isinstance(n, whole) and n > 0 for n in image.shape):
        raise ValueError(f"The shape is {image.shape}; four positive whole numbers are needed.")
    if image.dtype not in DTYPES:
        raise ValueError(f"The type is {image.dtype!r}; known are {', '.join(DTYPES)}.")
    grid = int(np.prod(image.shape[:3], dtype=object))
    if not mask_voxels:
        raise ValueError("There is no mask; one at least is needed.")
    for voxels in mask_voxels:
        if not (isinstance(voxels, whole) and 1 <= voxels <= grid):
            raise ValueError(
                f"A mask has {voxels} voxels; from 1 to {grid}, the voxels of a volume, can be."
            )
    if not (isinstance(n_jobs, whole) and n_jobs >= 1):
        raise ValueError(f"The number of workers is {n_jobs}; 1 or more is needed.")


# %%
# What the parts amount to
# ------------------------


def quantities(image, mask_voxels, n_jobs, mode):
    """Give what parts are made of, in bytes.

    Parameters
    ----------
    image : Image
    mask_voxels : list of int
        Voxels of each mask.
    n_jobs : int
    mode : {"single", "parallel", "one pass"}
        A single run has the first mask only.

    Returns
    -------
    dict of str to float
    """
    x, y, z, n_volumes = (int(n) for n in image.shape)
    grid = x * y * z
    voxels = grid * n_volumes
    stored_size = np.dtype(image.dtype).itemsize
    array_size = 8 if image.slope or image.inter else stored_size
    floats = image.dtype.startswith("float") or image.slope or image.inter
    copy_size = array_size if floats else 4
    masks = [int(n) for n in mask_voxels[: 1 if mode == "single" else None]]

    # A ball's slices are next to each other in the file; the kernel reads 64 KiB at least.
    volume = grid * array_size
    spans = [
        min(1, ((6 * n / np.pi) ** (1 / 3) * x * y * array_size + 65536) / volume) for n in masks
    ]
    together = sorted(spans, reverse=True)[: n_jobs if n_jobs > 1 else None]
    untouched = 1.0
    for span in together:
        untouched *= 1 - span

    positions = sum(masks)
    rows = min(max(8 * MIB // (4 * copy_size * positions), 1), n_volumes)
    streamed = (
        rows * positions * (stored_size + 2 * copy_size) + 12 * positions + 2 * grid * stored_size
    )
    block = min(max(64 * MIB // (grid * 48), 1), n_volumes)
    return {
        "stored": voxels * stored_size,
        "array": voxels * array_size,
        "copy": voxels * copy_size,
        "finite": voxels,
        "volume": grid * array_size,
        "masks": len(masks) * grid,
        "output": max(masks) * n_volumes * copy_size,
        "outputs": positions * n_volumes * copy_size,
        "span": max(spans) * voxels * array_size,
        "touched": (1 - untouched) * voxels * array_size,
        "streamed": streamed,
        "blocks": block * grid * (3 * array_size + copy_size + 1),
    }


# %%
# What interpreters and imports take depends on the machine and on the versions of the
# libraries. It is measured once, with workers that do nothing but import, and kept in the cache
# folder. Where that was not done, typical numbers stand in.

PACKAGES = ("nilearn", "nibabel", "numpy", "joblib")
TYPICAL = {  # MiB, PSS and RSS: two cores, Python 3.11, nilearn 0.14.1, 2026-11-22
    "measured": "",
    "caller": [189, 214],
    "helpers": [33, 50],
    "numpy": [23, 38],
    "nibabel": [29, 46],
    "nilearn": [136, 190],
}


def import_in_workers(n_jobs):
    """Import in workers what the methods import, and note when all of them had done so.

    Parameters
    ----------
    n_jobs : list of int
        Numbers of workers, one after the other.

    Returns
    -------
    list of (str, int, float, float)
        What was imported, the number of workers, and from when to when all had it.
    """
    import importlib
    import time

    import nilearn.image
    import nilearn.maskers  # noqa: F401
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    def work(modules, folder, number, n_workers):
        for module in modules:
            importlib.import_module(module)
        Path(folder, str(number)).touch()
        while len(os.listdir(folder)) < n_workers:  # until all are there
            time.sleep(0.01)
        start = time.time()
        time.sleep(0.25)
        return start, time.time()

    marks = [("", 0, time.time(), time.time() + 0.25)]
    time.sleep(0.25)
    modules = {"numpy": ("numpy",), "nibabel": ("nibabel", "joblib", "tqdm")}
    modules["nilearn"] = (*modules["nibabel"], "nilearn.image", "nilearn.maskers")
    for imports, names in modules.items():
        for n_workers in n_jobs:
            with tempfile.TemporaryDirectory() as folder:
                times = Parallel(n_jobs=n_workers, batch_size=1)(
                    delayed(work)(names, folder, i, n_workers) for i in range(n_workers)
                )
            starts, ends = zip(*times, strict=True)
            marks.append((imports, n_workers, max(starts), min(ends)))
            get_reusable_executor().shutdown(wait=True)
    return marks


def machine_path():
    """Where the measurement of this machine is kept: in the folder MASKER_CACHE."""
    return Path(os.environ.get("MASKER_CACHE") or "masker_cache") / "machine.json"


def calibrate():
    """Measure what interpreters and imports take on this machine, and keep it.

    Returns
    -------
    dict
        ``"caller"``, the calling process; ``"helpers"``, what joblib starts beside the workers;
        and one worker with the imports ``"numpy"``, ``"nibabel"`` or ``"nilearn"``: each a
        list of PSS and RSS in MiB. ``"measured"`` names the versions.
    """
    trace = measure(import_in_workers, (2, 4))
    found = {"": {}, "numpy": {}, "nibabel": {}, "nilearn": {}}
    for imports, n_workers, start, end in trace.result():
        inside = (trace.times >= start - trace.started) & (trace.times <= end - trace.started)
        inside |= trace.times == trace.times[np.abs(trace.times - start + trace.started).argmin()]
        levels = [float(np.median(trace.total(metric)[inside])) for metric in ("pss", "rss")]
        found[imports][n_workers] = np.array(levels)
    caller = found.pop("")[0]
    each = {name: (levels[4] - levels[2]) / 2 for name, levels in found.items()}
    rest = [levels[2] - 2 * each[name] - caller for name, levels in found.items()]
    machine = {"measured": _versions(), "caller": caller, "helpers": np.median(rest, axis=0)}
    machine = {
        name: [round(float(mib), 1) for mib in value] if name != "measured" else value
        for name, value in (machine | each).items()
    }
    path = machine_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    unfinished.write_text(json.dumps(machine))
    unfinished.replace(path)
    return machine


def this_machine():
    """Give what `calibrate` found for these versions, or the typical numbers."""
    try:
        machine = json.loads(machine_path().read_text())
        return machine if machine["measured"] == _versions() else TYPICAL
    except (OSError, ValueError, KeyError):
        return TYPICAL


def _versions():
    """Python and the packages whose imports take memory, as one line."""
    found = [f"Python {sys.version.split()[0]}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} missing")
    return f"{sys.platform}, {', '.join(found)}"


# %%
# The prediction
# --------------


class Prediction(NamedTuple):
    """What a method needs, in MiB.

    Attributes
    ----------
    method : str
    n_jobs : int
    peak_pss_mib : float
        The likely peak, as PSS summed over all processes.
    peak_rss_mib : float
        The same as RSS, as mprof shows it by default.
    most_mib : float
        The most that can be needed at once: all workers at their peak at the same moment, and
        files in shared memory in full. Files that are only mapped are left out, since the
        kernel can drop their pages.
    shm_mib : float
        Of it in ``/dev/shm``.
    moment : str
        When the peak is.
    parts : list of (str, float, str, str)
        At the peak: who holds it, MiB in PSS, why, and the source.
    """

    method: str
    n_jobs: int
    peak_pss_mib: float
    peak_rss_mib: float
    most_mib: float
    shm_mib: float
    moment: str
    parts: list


def predict_peak(method, image, masks, n_jobs=1, machine=None):
    """Predict the peak memory of a method, with all its processes.

    Parameters
    ----------
    method : str
        A key of ``METHODS``.
    image : Image, str or pathlib.Path
        What the header says, or the file to read it from.
    masks : list of int, str or pathlib.Path
        The masks' voxels, or the files to count them in.
    n_jobs : int
        Workers; methods without workers ignore it.
    machine : dict, optional
        As `calibrate` gives it; by default what it found on this machine.

    Returns
    -------
    Prediction

    Raises
    ------
    FileNotFoundError, ValueError
        Something cannot be: no worker, a mask without voxels, a header that promises more
        than the file holds, an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"There is no method {method!r}; there are: {'; '.join(METHODS)}.")
    image = image if isinstance(image, Image) else read_header(image)
    masks = [
        count_voxels(mask, image.shape[:3]) if isinstance(mask, (str, Path)) else mask
        for mask in masks
    ]
    check(image, masks, n_jobs)
    model, machine = METHODS[method], machine or this_machine()
    workers = n_jobs if model.mode == "parallel" and model.imports and n_jobs > 1 else 0
    active = min(workers, len(masks))
    amounts = quantities(image, masks, max(active, 1), model.mode)
    scaled = image.slope or image.inter
    conditions = {
        "compressed" if image.compressed else "plain",
        "scaled" if scaled else "unscaled",
        "read" if image.compressed or scaled else "mapped",
        "workers" if workers else "alone",
        *(["twice"] if image.slope and image.inter else []),
    }
    voxels = amounts["finite"]
    together = model.together * max(0, 1 - model.late * 1e6 / voxels)
    likely = 1 + (active - 1) * together if active else 1
    base = [("caller", *machine["caller"])]
    if workers:
        base.append(("helpers", *machine["helpers"]))
        base.append(("workers", *(active * mib for mib in machine[model.imports])))
        base.append(("workers", *((workers - active) * mib for mib in machine["numpy"])))
    base_pss, base_rss = (sum(part[i] for part in base) for i in (1, 2))

    best = peak_rss = most = shm = None
    for moment in model.moments:
        if not set(moment.when.split()) <= conditions:
            continue
        pss, rss, needed, in_shm = base_pss, base_rss, base_pss, 0
        parts = [(holder, mib, *REASONS["imports"]) for holder, mib, _ in base if mib]
        for part in moment.parts:
            if not set(part.when.split()) <= conditions:
                continue
            mib = part.times * amounts[part.quantity] / MIB
            seen = amounts["span"] / MIB if part.quantity == "touched" else mib
            if part.holder == "worker":
                shown, summed, least = likely * mib, likely * mib, max(active, 1) * mib
            elif part.holder == "caller":
                shown, summed, least = mib, mib, mib
            elif part.holder == "file":
                shown, summed, least = mib, likely * seen if workers else mib, 0
            else:
                least = amounts["array"] / MIB
                caller = mib if part.reason == "block" else 0
                span = seen if not caller else amounts["span"] / MIB
                shown, summed = mib, caller + likely * span if workers else mib
                in_shm += least
            pss, rss, needed = pss + shown, rss + summed, needed + least
            parts.append((part.holder, shown, *REASONS[part.reason]))
        if best is None or pss > best[0]:
            best = pss, moment.name, parts
        peak_rss, most = max(peak_rss or 0, rss), max(most or 0, needed)
        shm = max(shm or 0, in_shm)
    return Prediction(method, workers, best[0], peak_rss, most, shm, best[1], best[2])


def as_json(machine=None):
    """Give the model as JSON, for the calculator.

    Parameters
    ----------
    machine : dict, optional
        As `calibrate` gives it.

    Returns
    -------
    str
        An object with ``methods``, ``reasons``, ``machine`` and ``dtypes`` (bytes of a value).
    """

    def plain(item):
        return item._asdict() | {
            key: [plain(one) for one in value]
            for key, value in item._asdict().items()
            if isinstance(value, tuple)
        }

    model = {
        "methods": {name: plain(method) for name, method in METHODS.items()},
        "reasons": {key: list(reason) for key, reason in REASONS.items()},
        "machine": machine or this_machine(),
        "dtypes": {name: np.dtype(name).itemsize for name in DTYPES},
    }
    return json.dumps(model)


# %%
# Does it fit?
# ------------


def why_not(prediction, memory_mib=None, shm_mib=None):
    """Say why a method would not fit, in a sentence; nothing if it fits.

    Parameters
    ----------
    prediction : Prediction
    memory_mib, shm_mib : float, optional
        What is available, of memory and in ``/dev/shm``; by default what there is now.

    Returns
    -------
    str
    """
    memory_mib = available_mib() if memory_mib is None else memory_mib
    shm_mib = available_shm_mib() if shm_mib is None else shm_mib
    if prediction.most_mib > memory_mib:
        return (
            f"It may need {prediction.most_mib:,.0f} MiB, and {memory_mib:,.0f} MiB are available."
        )
    # With less room than this, joblib writes to the folder for temporary files.
    joblib_avoids = shm_mib <= 2e9 / MIB and not uses_block(prediction.method)
    if prediction.shm_mib > shm_mib and not joblib_avoids:
        room = f"{shm_mib:,.0f} MiB"
        return f"It needs {prediction.shm_mib:,.0f} MiB in /dev/shm, which has {room} left."
    return ""


def uses_block(method):
    """Tell whether a method makes a block of shared memory itself."""
    moments = METHODS[method].moments
    return any(part.reason == "block" for moment in moments for part in moment.parts)


def available_shm_mib():
    """Tell the room in ``/dev/shm``, in MiB; where there is no such folder, it is no limit."""
    return shutil.disk_usage("/dev/shm").free / MIB if Path("/dev/shm").is_dir() else float("inf")


def most_workers(method, image, masks, memory_mib, shm_mib=None, machine=None):
    """Find the largest number of workers with which a method fits, up to one for each mask.

    Returns
    -------
    int
        0 if not even one fits, or if the method has no workers and does not fit.
    """
    for n_jobs in range(len(masks), 0, -1):
        prediction = predict_peak(method, image, masks, n_jobs, machine)
        if not why_not(prediction, memory_mib, shm_mib):
            return n_jobs
    return 0


class Row(NamedTuple):
    """A line of the table that `budget` prints: what is predicted, and whether it fits."""

    prediction: Prediction
    reason: str  # why it does not fit; empty if it does
    most_workers: int


def budget(fmri_path, mask_paths, n_jobs=None, memory=None, shm=None, explain=False):
    """Print what each method would need, whether that fits, and with how many workers.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
        4D NIfTI image, of which the header is read.
    mask_paths : list of str, pathlib.Path or int
        The masks' files, or their numbers of voxels.
    n_jobs : int, optional
        Workers of the parallel methods; one for each mask by default.
    memory, shm : str or float, optional
        Memory, and room in ``/dev/shm``, that may be used: MiB, or text such as ``"16G"``. By
        default what the machine, its control group and ``/dev/shm`` have left.
    explain : bool
        Print also what is in memory at the peak of each method, and why.

    Returns
    -------
    list of Row
        One for each method, in the order of ``METHODS``.

    Raises
    ------
    FileNotFoundError, ValueError
        As `predict_peak`; or the memory is not a size.
    """
    image = read_header(fmri_path)
    masks = [
        count_voxels(mask, image.shape[:3]) if isinstance(mask, (str, Path)) else mask
        for mask in mask_paths
    ]
    n_jobs = len(masks) if n_jobs is None else n_jobs
    check(image, masks, n_jobs)
    memory_mib = available_mib() if memory is None else parse_memory(memory)
    shm_mib = available_shm_mib() if shm is None else parse_memory(shm)
    machine = this_machine()
    rows = []
    for method in METHODS:
        prediction = predict_peak(method, image, masks, n_jobs, machine)
        reason = why_not(prediction, memory_mib, shm_mib)
        most = most_workers(method, image, masks, memory_mib, shm_mib, machine)
        rows.append(Row(prediction, reason, most))
    _print_budget(image, masks, n_jobs, memory_mib, shm_mib, machine, rows)
    if explain:
        _print_parts(rows)
    return rows


def _print_budget(image, masks, n_jobs, memory_mib, shm_mib, machine, rows):
    """Print the table of `budget`, and the recommendation."""
    stored, files = (
        f"{quantities(image, masks, 1, 'parallel')[q] / MIB:,.0f}" for q in ("array", "outputs")
    )
    kind = f"{image.dtype}{', scaled' if image.slope or image.inter else ''}"
    kind += ", compressed" if image.compressed else ""
    print(f"image {image.shape}, {kind}: {stored} MiB in memory")
    print(f"{len(masks)} masks, {sum(masks):,} voxels: {files} MiB of time series")
    shm = "no limit" if shm_mib == float("inf") else f"{shm_mib:,.0f} MiB"
    print(f"available {memory_mib:,.0f} MiB; in /dev/shm {shm}")
    origin = "measured here" if machine["measured"] else "typical; --measure does it here"
    print(f"imports: {origin}\n")
    print(f"{'MiB':42}{'workers':>8}{'likely PSS':>12}{'RSS, summed':>13}{'at most':>10}  fits")
    for prediction, reason, most in rows:
        parallel = (
            METHODS[prediction.method].mode == "parallel" and METHODS[prediction.method].imports
        )
        fits = "yes" if not reason else f"with {most} workers" if parallel and most > 1 else "no"
        print(
            f"{prediction.method:42}{prediction.n_jobs or '-':>8}{prediction.peak_pss_mib:12,.0f}"
            f"{prediction.peak_rss_mib:13,.0f}{prediction.most_mib:10,.0f}  {fits}"
        )
    print(f"\n{recommend(rows)}")


def recommend(rows):
    """Recommend a method, in a sentence or two.

    Parameters
    ----------
    rows : list of Row

    Returns
    -------
    str
    """
    fits = {row.prediction.method: not row.reason for row in rows}
    if fits["Streaming, masks, one pass"]:
        text = "Recommended: stream_masks(fmri_path, mask_paths), which needs no worker."
    else:
        text = (
            "Recommended: stream_masks(fmri_path, mask_paths, out=names) with the names of .npy "
            "files: the time series themselves do not fit."
        )
    if fits["NumPy indexing, threads, parallel"]:
        text += "\nTo keep the image in memory: numpy_masker_threads(fmri_path, mask_paths, n)."
    return text


def _print_parts(rows):
    """Print what is in memory at the peak of each method."""
    for prediction, *_ in rows:
        print(f"\n{prediction.method}, while {prediction.moment}:")
        for holder, mib, why, source in prediction.parts:
            print(f"{mib:10,.0f} MiB  {holder}: {why} ({source})")


# %%
# The command line
# ----------------

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Predict the peak memory of every method from an image's header."
    )
    parser.add_argument("image", help="4D NIfTI file; its header is read")
    parser.add_argument("masks", nargs="+", help="3D masks on its grid")
    parser.add_argument("--jobs", type=int, metavar="N", help="workers; one a mask by default")
    parser.add_argument("--memory", metavar="SIZE", help="such as 16G; what is left by default")
    parser.add_argument("--shm", metavar="SIZE", help="room in /dev/shm; what is left by default")
    parser.add_argument("--explain", action="store_true", help="what is in memory, and why")
    parser.add_argument("--measure", action="store_true", help="measure the imports here first")
    arguments = parser.parse_args()
    try:
        if arguments.measure:
            calibrate()
        budget(
            *(arguments.image, arguments.masks, arguments.jobs),
            *(arguments.memory, arguments.shm, arguments.explain),
        )
    except (OSError, ValueError) as error:
        sys.exit(str(error))
