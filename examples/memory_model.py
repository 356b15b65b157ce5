"""
The model: what each method has in memory
=========================================

How much memory does a method need, from what is known before anything is loaded? The model
counts copies. Each method goes through a few **moments**, such as reading the file
or copying the array. At each moment certain things are in memory: so many copies of the
image, of which type, held by the calling process, by each worker, or by all of them
together. The peak is the largest sum.

The table ``METHODS`` below is the whole model, and the one place where a method is named:
:doc:`/auto_examples/whole_experiment` takes the functions from it.
:doc:`/auto_examples/memory_budget` asks it whether a method fits, :ref:`the calculator
<calculator>` evaluates the same table in the browser, and
:ref:`sphx_glr_auto_examples_plot_prediction.py` compares it with measurements in every build.

Two things are not known beforehand:

* **How many workers are at their own peak at the same moment.** The prediction has a likely
  peak, in which the others hold a part of theirs, and the most that is possible. Whether a
  method fits is decided by the most.
* **Which pages of a mapped file are in memory.** :term:`Workers <worker>` that
  :term:`map <memory map>` a file have in memory what they look at, and some pages around
  it, which depends on the kernel and the file system. For that, a region is taken for a
  ball. And they look for some milliseconds only: whether several do so at once is chance.
  So for these methods the prediction is a range, whose lower end is without what is looked
  at.
"""

import json
import math
from typing import NamedTuple

import numpy as np

MIB = 2**20

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
    early: bool = False  # before the workers are started


class Model(NamedTuple):
    """A method: where its function is, how it is called, and what it has in memory.

    Workers begin one after the other, and their number at the peak is a matter of chance. On
    top of one worker at its peak, each other holds the part ``together`` of the same, less what
    is over before the last one begins: ``late``, in millions of voxels, for an image that has to
    be decompressed and for one that has not. These numbers were fitted to measurements, and so
    was how much of a mapped file is in memory around what is looked at (`AROUND`).
    """

    module: str  # the example that has the function
    function: str
    mode: str  # "single": the first mask; "parallel": all masks; "one pass": all, no worker
    moments: tuple
    in_memory: bool = False  # is given images whose data are in memory, instead of paths
    imports: str = ""  # what a worker imports: "numpy", "nibabel" or "nilearn"; "" without workers
    together: float = 1
    late: tuple = (0, 0)


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
    "clean": (
        "nilearn.signal.clean makes a copy of the time series",
        f"{NILEARN}/signal.py, clean",
    ),
    "imports": (
        "the interpreter and what it imports",
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
    early = holder == "caller"
    stored = (
        Part(holder, 1, "stored", "stored", "compressed"),
        Part("file", 1, "stored", "stored", "plain"),
    )
    return (
        Moment("decompressing", (Part(holder, 2, "stored", "inflate"),), "compressed", early),
        Moment("scaling", (*stored, Part(holder, 1, "array", "scale")), "scaled", early),
        Moment("adding the intercept", (Part(holder, 2, "array", "scale"),), "twice", early),
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
        early=True,
    ),
)
ARRAY = Part("caller", 1, "array", "image")
RESULTS = Part("caller", 1, "results", "results")
MASKS = Part("caller", 1, "masks", "masks")
MASKS_SENT = Part("caller", 1, "masks", "joblib", "workers")
INDEX = Part("worker", 2, "output", "index")
COPY = Part("worker", 1, "copy", "masker")
FINITE = Part("worker", 1, "finite", "finite")
TAKEN = Part("worker", 1, "output", "index")
SENT = Part("block", 1, "array", "joblib", "workers")
TOUCHED = Part("file", 1, "touched", "touched")
TOUCHED_FROM_PATH = (  # without workers, one mask's map is given up before the next is made
    Part("file", 1, "touched", "touched", "workers"),
    Part("file", 1, "span", "touched", "alone"),
)

MASKER_FROM_PATH = (
    *reading("worker"),
    Moment("copying", (*image("worker"), COPY, RESULTS)),
    Moment("looking for values that are not finite", (COPY, FINITE, RESULTS)),
    Moment("taking the voxels", (COPY, TAKEN, RESULTS)),
)
MASKER_IN_MEMORY = (
    *INTO_MEMORY,
    Moment("looking for values that are not finite", (ARRAY, SENT, COPY, FINITE, RESULTS)),
    Moment("taking the voxels", (ARRAY, SENT, COPY, TAKEN, RESULTS)),
)
INDEX_FROM_PATH = (
    *reading("worker"),
    Moment(
        "indexing",
        (
            Part("worker", 1, "array", "image", "read"),
            *(part._replace(when=f"mapped {part.when}") for part in TOUCHED_FROM_PATH),
            *(INDEX, RESULTS),
        ),
    ),
)
INDEX_IN_MEMORY = (
    *INTO_MEMORY,
    Moment(
        "indexing",
        (ARRAY, Part("block", 1, "touched in block", "joblib", "workers"), INDEX, RESULTS),
    ),
)
BLOCK = Part("block", 1, "array", "block")
VOLUME = Part("caller", 2, "volume", "volume")
SERIES = Part("caller", 1, "outputs", "results")

METHODS = {
    "NiftiMasker, path, single": Model(
        *("plot_nifti_masker", "nifti_masker_single", "single", MASKER_FROM_PATH)
    ),
    "NiftiMasker, in-memory image, single": Model(
        *("plot_nifti_masker", "nifti_masker_single", "single", MASKER_IN_MEMORY),
        in_memory=True,
    ),
    "NiftiMasker, path, parallel": Model(
        *("plot_nifti_masker", "nifti_masker_parallel", "parallel", MASKER_FROM_PATH),
        imports="nilearn",
        together=0.95,
        late=(13, 27),
    ),
    "NiftiMasker, in-memory image, parallel": Model(
        *("plot_nifti_masker", "nifti_masker_parallel", "parallel", MASKER_IN_MEMORY),
        in_memory=True,
        imports="nilearn",
        late=(22, 22),
    ),
    "NumPy indexing, path, single": Model(
        *("plot_numpy_indexing", "numpy_masker_single_path", "single", INDEX_FROM_PATH)
    ),
    "NumPy indexing, in-memory image, single": Model(
        *("plot_numpy_indexing", "numpy_masker_single_inmemory", "single", INDEX_IN_MEMORY),
        in_memory=True,
    ),
    "NumPy indexing, path, parallel": Model(
        *("plot_numpy_indexing", "numpy_masker_parallel_path", "parallel", INDEX_FROM_PATH),
        imports="nibabel",
        together=0.93,
        late=(9, 9),
    ),
    "NumPy indexing, in-memory image, parallel": Model(
        *("plot_numpy_indexing", "numpy_masker_parallel_inmemory", "parallel", INDEX_IN_MEMORY),
        in_memory=True,
        imports="nibabel",
    ),
    "NumPy indexing, shared memory, parallel": Model(
        *("plot_shared_memory", "numpy_masker_shared_parallel", "parallel"),
        (
            Moment("filling the block", (BLOCK, VOLUME, MASKS), early=True),
            Moment("indexing", (BLOCK, INDEX, RESULTS, MASKS, MASKS_SENT)),
        ),
        imports="nibabel",
    ),
    "NumPy indexing, threads, parallel": Model(
        *("plot_in_memory", "numpy_masker_threads", "parallel"),
        (
            Moment("reading volume by volume", (ARRAY, VOLUME, MASKS)),
            Moment("indexing", (ARRAY, Part("caller", 2, "outputs", "index"), MASKS)),
        ),
    ),
    "NumPy indexing, joblib map, parallel": Model(
        *("plot_in_memory", "numpy_masker_joblib_map", "parallel"),
        (
            Moment("writing the file", (VOLUME, MASKS), early=True),
            Moment("indexing", (TOUCHED, INDEX, RESULTS, MASKS, MASKS_SENT)),
        ),
        imports="numpy",
    ),
    "NumPy indexing, mapped file, parallel": Model(
        *("plot_in_memory", "numpy_masker_mapped", "parallel"),
        (
            Moment("writing the file", (VOLUME, MASKS), "read", early=True),
            Moment("indexing", (*TOUCHED_FROM_PATH, INDEX, RESULTS, MASKS, MASKS_SENT)),
        ),
        imports="numpy",
    ),
    "Streaming, any masker, one pass": Model(
        *("plot_stream_masker", "stream_nifti_maskers", "one pass"),
        (
            Moment("streaming", (SERIES, MASKS, Part("caller", 1, "blocks", "blocks"))),
            Moment("cleaning", (SERIES, MASKS, Part("caller", 1, "output", "clean"))),
        ),
    ),
    "Streaming, masks, one pass": Model(
        *("plot_stream_masks", "stream_masks", "one pass"),
        (Moment("streaming", (SERIES, Part("caller", 1, "streamed", "stream"))),),
    ),
}

# %%
# What goes in
# ------------
# What the header of the image says, and how many voxels each mask has.

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
DTYPES += ("int64", "uint64")


class Image(NamedTuple):
    """What the header of an image says.

    Attributes
    ----------
    shape : tuple of int
        (x, y, z, n_timepoints)
    dtype : str
        Type of the stored values, one of ``DTYPES``.
    compressed : bool
        Whether the file is compressed: a ``.nii.gz``, ``.bz2`` or ``.zst``.
    slope, inter : bool
        Whether the header has a slope other than 1, and an intercept other than 0.
    """

    shape: tuple
    dtype: str = "float32"
    compressed: bool = True
    slope: bool = False
    inter: bool = False


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


def quantities(image, mask_voxels, mode, active=0):
    """Give what parts are made of, in bytes.

    Parameters
    ----------
    image : Image
    mask_voxels : list of int
        Voxels of each mask.
    mode : {"single", "parallel", "one pass"}
        A single run has the first mask only.
    active : int
        Workers that have a task; 0 where the calling process does the work itself.

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

    spans, touched = {}, {}
    for holder, around in AROUND.items():
        found = sorted((span_of(n, x * y, grid, array_size, around) for n in masks), reverse=True)
        untouched = 1 - found[0]
        for span in found[1 : active or None]:
            untouched *= 1 - span
        spans[holder], touched[holder] = found[0], 1 - untouched

    positions = sum(masks)
    at_work = sum(sorted(masks, reverse=True)[: max(active, 1)])  # the others' are done
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
        "output": at_work / max(active, 1) * n_volumes * copy_size,
        "results": (positions - at_work) * n_volumes * copy_size,
        "outputs": positions * n_volumes * copy_size,
        "span": spans["file"] * voxels * array_size,
        "touched": touched["file"] * voxels * array_size,
        "span in block": spans["block"] * voxels * array_size,
        "touched in block": touched["block"] * voxels * array_size,
        "streamed": streamed,
        "blocks": block * grid * (3 * array_size + copy_size + 1),
    }


AROUND = {"file": 256 * 1024, "block": 0}  # bytes in memory around what is looked at


def span_of(n_voxels, slice_voxels, grid, value_size, around):
    """Give the part of a mapped image that is in memory when a region is looked at.

    The region is taken for a ball: the slices that it goes through are next to each other in
    each volume of the file.
    """
    diameter = (6 * n_voxels / np.pi) ** (1 / 3)
    return min(1, (diameter * slice_voxels * value_size + around) / (grid * value_size))


# %%
# The prediction
# --------------


class Held(NamedTuple):
    """What is in memory at a moment, in MiB, by whom and why."""

    holder: str
    pss_mib: float
    least_mib: float
    rss_mib: float
    most_mib: float
    shm_mib: float
    reason: str  # a key of REASONS


class Prediction(NamedTuple):
    """What a method needs, in MiB.

    Attributes
    ----------
    method : str
    n_jobs : int
        Workers that are started; 0 if there are none.
    peak_pss_mib : float
        The likely peak, as PSS summed over all processes.
    least_pss_mib : float
        The same without what is looked at in a mapped file, or in joblib's. How much around it
        is in memory depends on kernel and file system, and whether several workers look at
        once is chance.
    peak_rss_mib : float
        The same as RSS, as mprof shows it by default.
    most_mib : float
        The most that can be needed at once: all workers at their peak at the same moment, and
        files in shared memory in full. Files that are only mapped are left out, since the
        kernel can drop their pages.
    shm_mib : float
        Of it in ``/dev/shm``.
    moment : str
        When the likely peak is.
    parts : list of Held
        What is in memory at that moment.
    """

    method: str
    n_jobs: int
    peak_pss_mib: float
    least_pss_mib: float
    peak_rss_mib: float
    most_mib: float
    shm_mib: float
    moment: str
    parts: list


def predict(method, image, masks, n_jobs, machine, overlap=None):
    """Predict the peak memory of a method, with all its processes.

    Parameters
    ----------
    method : str
        A key of ``METHODS``.
    image : Image
    masks : list of int
        The masks' voxels.
    n_jobs : int
        Workers; methods without workers ignore it.
    machine : dict
        What interpreters and imports take, as `memory_budget.calibrate` gives it.
    overlap : float, optional
        Which part of a worker's peak each other worker holds at the same moment: 0 if one is at
        its peak alone, 1 if all are. What was fitted to the method by default.

    Returns
    -------
    Prediction

    Raises
    ------
    ValueError
        There is no such method; or something cannot be, such as a mask without voxels.
    """
    if method not in METHODS:
        raise ValueError(f"There is no method {method!r}; there are: {'; '.join(METHODS)}.")
    check(image, masks, n_jobs)
    model = METHODS[method]
    workers = n_jobs if model.mode == "parallel" and model.imports and n_jobs > 1 else 0
    active = min(workers, len(masks))
    scaled = image.slope or image.inter
    conditions = {
        "compressed" if image.compressed else "plain",
        "scaled" if scaled else "unscaled",
        "read" if image.compressed or scaled else "mapped",
        "workers" if workers else "alone",
        *(["twice"] if image.slope and image.inter else []),
    }
    if overlap is None:
        late = model.late[0 if image.compressed else 1] * 1e6
        overlap = model.together * max(0, 1 - late / math.prod(image.shape))
    likely = 1 + (active - 1) * overlap if workers else 1
    amounts = quantities(image, masks, model.mode, active)

    caller, *others = imported(model, machine, workers, active)
    moments = []
    for moment in model.moments:
        if set(moment.when.split()) <= conditions:
            parts = [caller, *([] if moment.early else others)]
            for part in moment.parts:
                if set(part.when.split()) <= conditions:
                    parts.append(held(part, amounts, active, likely))
            moments.append((moment.name, parts))
    peaks = [[sum(part[i] for part in parts) for i in range(1, 6)] for _, parts in moments]
    pss, least, rss, most, shm = (max(values) for values in zip(*peaks, strict=True))
    name, parts = moments[[peak[0] for peak in peaks].index(pss)]
    return Prediction(method, workers, pss, least, rss, most, shm, name, parts)


def imported(model, machine, workers, active):
    """Give what interpreters and imports take: of the caller, and of all that it starts."""
    found = [("caller", 1, "caller")]
    if workers:
        found.append(("helpers", 1, "helpers"))
        found.append(("worker", active, model.imports))
    if workers > active:  # these get no task
        found.append(("worker", workers - active, "numpy"))
    parts = []
    for holder, n, what in found:
        pss, rss = (n * mib for mib in machine[what])
        parts.append(Held(holder, pss, pss, rss, pss, 0, "imports"))
    return parts


def held(part, amounts, active, likely):
    """Tell what a part amounts to, if so many workers are likely to be at their peak.

    Parameters
    ----------
    part : Part
    amounts : dict
        As `quantities` gives them.
    active : int
        Workers that have a task; 0 where the calling process does the work itself.
    likely : float
        How many of them are at their peak, on average.

    Returns
    -------
    Held
    """
    mib = part.times * amounts[part.quantity] / MIB
    touched = part.quantity.startswith("touched")
    span = amounts[part.quantity.replace("touched", "span")] / MIB if touched else mib
    array = amounts["array"] / MIB
    holder = part.holder if active or part.holder != "worker" else "caller"
    if part.holder == "worker":
        sizes = likely * mib, likely * mib, likely * mib, max(active, 1) * mib, 0
    elif part.holder == "caller":
        sizes = mib, mib, mib, mib, 0
    elif part.holder == "file":
        sizes = mib, 0 if part.reason == "touched" else mib, likely * span if active else mib, 0, 0
    elif part.reason == "block":  # the caller has filled it; workers look at a part
        looked_at = likely * amounts["span in block"] / MIB if active else 0
        sizes = mib, mib, mib + looked_at, array, array
    else:  # joblib has written it, without a process that maps it
        sizes = mib, 0 if touched else mib, likely * span, array, array
    return Held(holder, *sizes, part.reason)


def as_json(machine):
    """Give the model as JSON, for the calculator.

    Parameters
    ----------
    machine : dict
        As for `predict`.

    Returns
    -------
    str
        An object with ``methods``, ``reasons``, ``machine``, ``dtypes`` (bytes of a value) and
        ``around``.
    """

    def plain(item):
        return item._asdict() | {
            key: [plain(one) if isinstance(one, tuple) else one for one in value]
            for key, value in item._asdict().items()
            if isinstance(value, tuple)
        }

    model = {
        "methods": {name: plain(method) for name, method in METHODS.items()},
        "reasons": {key: list(reason) for key, reason in REASONS.items()},
        "machine": machine,
        "dtypes": {name: np.dtype(name).itemsize for name in DTYPES},
        "around": AROUND,
    }
    return json.dumps(model)


# %%
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_prediction.py`: the model beside measurements.
# * :ref:`sphx_glr_auto_examples_memory_budget.py`: the model asked for your own image.
