"""Predict the peak memory of each method, from what is known before anything is loaded.

The model counts copies. A method goes through a few **moments**, such as reading the file or
copying the array. At each of them the calling process, each worker, or all of them together hold
certain things, such as two copies of the image as float32. The peak is the largest sum.

The table ``METHODS`` is the whole model, and the only place that names a method.

The model predicts :term:`memory in use`: what the machine cannot take back. It lists mapped files
on disk separately, since the kernel may drop their pages.

How many workers are at their own peak at the same moment is a matter of chance. A prediction is
therefore a range, from one worker at its peak to all of them, with a likely peak in between.
The upper end decides whether a method fits.
"""

import json
import math
from functools import partial
from typing import NamedTuple

import numpy as np

MIB = 2**20
AVERAGES = "region averages"  # a mode


class Part(NamedTuple):
    """A multiple of a quantity that someone holds, for a reason, under some conditions.

    A ``"block"`` is shared memory, which counts once. A mapped ``"file"`` on disk does not count.
    The conditions are words: ``compressed`` or ``plain`` (``.nii.gz`` or ``.nii``), ``scaled`` or
    ``unscaled``, ``twice`` (scaled by a slope and an intercept), ``mapped`` (plain and unscaled) or
    ``read``, and ``workers`` (two or more) or ``alone``.
    """

    holder: str  # "caller", "worker", "file" or "block"
    times: float
    quantity: str  # a key of what `quantities` returns
    reason: str  # a key of REASONS
    when: str = ""  # conditions, separated by spaces


class Moment(NamedTuple):
    """All that is in memory at one moment."""

    name: str
    parts: tuple
    when: str = ""  # conditions, as of a part
    early: bool = False  # before the workers are started


class Model(NamedTuple):
    """A method: its function, how the function is called, and its moments.

    In addition to one worker at its peak, each of the others is likely to hold the part
    ``together`` of the same. Workers start one after the other, so this part is smaller for small
    images, of which ``late`` million voxels (if compressed, if not) are processed before the last
    worker starts. These numbers were fitted to measurements.
    """

    module: str  # the page or the module of the function
    function: str
    # "single": the first mask; all masks: "loop", "parallel" or "one pass"; or AVERAGES: one label
    # image of all regions, for which the function returns one array
    mode: str
    moments: tuple
    in_memory: bool = False  # takes images whose data are in memory, instead of paths
    caller: str = "nibabel"  # what the calling process imports: "nibabel" or "nilearn"
    imports: str = ""  # what a worker imports: "numpy", "nibabel", "nilearn"; "" without workers
    together: float = 1
    late: tuple = (0, 0)


NIBABEL = "https://github.com/nipy/nibabel/blob/5.4.2/nibabel"
NILEARN = "https://github.com/nilearn/nilearn/blob/0.14.1/nilearn"
JOBLIB = "https://github.com/joblib/joblib/blob/1.6.0/joblib"
NUMPY = "https://numpy.org/doc/stable/user/basics.indexing.html#boolean-array-indexing"
PYTHON = "https://docs.python.org/3/library/multiprocessing.shared_memory.html"

TO_ARRAY = f"{NIBABEL}/arrayproxy.py, ArrayProxy.__array__"
TO_VOLUME = f"{NIBABEL}/arrayproxy.py, ArrayProxy.__getitem__"
TO_SCALED = f"{NIBABEL}/arrayproxy.py, ArrayProxy._get_scaled"
FROM_FILE = f"{NIBABEL}/volumeutils.py, array_from_file"
SCALING = f"{NIBABEL}/volumeutils.py, apply_read_scaling"
MASKING = f"{NILEARN}/masking.py, apply_mask_fmri"
CHECK = f"{NILEARN}/_utils/niimg.py, has_non_finite"
AVERAGE = "https://github.com/scipy/scipy/blob/v1.17.1/scipy/ndimage/_measurements.py, _stats"
CLEAN = f"{NILEARN}/signal.py, clean"
MEMMAP = f"{JOBLIB}/_memmapping_reducer.py, ArrayMemmapForwardReducer"
PARALLEL = f"{JOBLIB}/parallel.py, Parallel"

REASONS = {  # each with its source
    "inflate": ("the file's bytes twice: as gzip returns them, and in nibabel's buffer", FROM_FILE),
    "image": ("the image's data as an array, scale factors applied", TO_ARRAY),
    "map": ("a file that is neither compressed nor scaled is mapped, not read", FROM_FILE),
    "stored": ("the stored values, from which the scaled ones are computed", TO_SCALED),
    "scale": ("scale factors are float64: a product, then a sum, each a new array", SCALING),
    "masker": ("NiftiMasker copies the 4D data, in floating point and in C order", MASKING),
    "finite": ("NiftiMasker checks for values that are not finite: a byte for each", CHECK),
    "joblib": ("joblib writes an array to a file in /dev/shm, which workers map", MEMMAP),
    "block": ("the one copy of the image, in a block of shared memory", PYTHON),
    "index": ("indexing gives a new array, then put into the order of NiftiMasker's", NUMPY),
    "results": ("the time series, which the calling process collects", PARALLEL),
    "bools": ("whether each value is finite, and the opposite: two bytes for each", CHECK),
    "average": ("the volume as float64, and the labels as int64, to be summed", AVERAGE),
    "first": ("maskers are fitted to the first volume, of which they make copies", "stream_masker"),
    "masks": ("the masks as arrays: a byte for each voxel of the grid", TO_ARRAY),
    "volume": ("one volume, while the array is filled volume by volume", TO_VOLUME),
    "stream": ("the positions of all voxels in masks, one volume and a block", "stream_masks"),
    "clean": ("nilearn.signal.clean makes a copy of the time series", CLEAN),
    "imports": ("the interpreter and what it imports", "calibrate"),
}


def reading(holder):
    """Return the moments of ``np.asanyarray(img.dataobj)`` in the caller or in a worker."""
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
    """Return the image's data as parts: an array, or the mapped file."""
    return Part(holder, 1, "array", "image", "read"), Part("file", 1, "array", "map", "mapped")


ARRAY = Part("caller", 1, "array", "image")
RESULTS = Part("caller", 1, "results", "results")
MEANS = Part("caller", 1, "averages", "results")
MASKS = Part("caller", 1, "masks", "masks")
MASKS_SENT = Part("caller", 1, "masks", "joblib", "workers")
INDEX = Part("worker", 2, "output", "index")
COPY = Part("worker", 1, "copy", "masker")
FINITE = Part("worker", 1, "finite", "finite")
TAKEN = Part("worker", 1, "output", "index")
SENT = Part("block", 1, "array", "joblib", "workers")
MAPPED = Part("file", 1, "array", "map")
BLOCK = Part("block", 1, "array", "block")
VOLUME = Part("caller", 2, "volume", "volume")
SERIES = Part("caller", 1, "outputs", "results")
STREAMED = Part("caller", 1, "streamed", "stream")

INTO_MEMORY = (
    *reading("caller"),
    Moment("copying the mapped file", (MAPPED, ARRAY), "mapped", early=True),
)
MASKER_FROM_PATH = (
    *reading("worker"),
    Moment("copying", (*image("worker"), COPY, RESULTS)),
    Moment("checking for values that are not finite", (COPY, FINITE, RESULTS)),
    Moment("taking the voxels", (COPY, TAKEN, RESULTS)),
)
MASKER_IN_MEMORY = (
    *INTO_MEMORY,
    Moment("checking for values that are not finite", (ARRAY, SENT, COPY, FINITE, RESULTS)),
    Moment("taking the voxels", (ARRAY, SENT, COPY, TAKEN, RESULTS)),
)
INDEX_FROM_PATH = (*reading("worker"), Moment("indexing", (*image("worker"), INDEX, RESULTS)))
INDEX_IN_MEMORY = (*INTO_MEMORY, Moment("indexing", (ARRAY, SENT, INDEX, RESULTS)))
INDEX_MAPPED = Moment("indexing", (MAPPED, INDEX, RESULTS, MASKS, MASKS_SENT))

masker = partial(Model, "plot_nifti_masker", caller="nilearn")
masker_path = partial(masker, moments=MASKER_FROM_PATH)
masker_loaded = partial(masker, moments=MASKER_IN_MEMORY, in_memory=True)
indexing = partial(Model, "plot_numpy_indexing")
index_path = partial(indexing, moments=INDEX_FROM_PATH)
index_loaded = partial(indexing, moments=INDEX_IN_MEMORY, in_memory=True)
averages = partial(Model, "plot_region_averages", mode=AVERAGES, caller="nilearn")
mapped_file = partial(Model, "plot_mapped_file", mode="parallel", imports="numpy")

METHODS = {
    "NiftiMasker, path, single": masker_path("nifti_masker_single", "single"),
    "NiftiMasker, in-memory image, single": masker_loaded("nifti_masker_single", "single"),
    "NiftiMasker, path, loop": masker_path("nifti_masker_loop", "loop"),
    "NiftiMasker, path, parallel": masker_path(
        "nifti_masker_parallel", "parallel", imports="nilearn", late=(4, 16)
    ),
    "NiftiMasker, in-memory image, parallel": masker_loaded(
        "nifti_masker_parallel", "parallel", imports="nilearn", together=0.85, late=(8, 8)
    ),
    "NumPy indexing, path, single": index_path("numpy_masker_single_path", "single"),
    "NumPy indexing, in-memory image, single": index_loaded(
        "numpy_masker_single_inmemory", "single"
    ),
    "NumPy indexing, in-memory image, loop": index_loaded("numpy_masker_loop", "loop"),
    "NumPy indexing, path, parallel": index_path(
        "numpy_masker_parallel_path", "parallel", imports="nibabel", late=(5, 9)
    ),
    "NumPy indexing, in-memory image, parallel": index_loaded(
        "numpy_masker_parallel_inmemory", "parallel", imports="nibabel"
    ),
    "NumPy indexing, shared memory, parallel": Model(
        "plot_shared_memory",
        "numpy_masker_shared_parallel",
        "parallel",
        (
            Moment("filling the block", (BLOCK, VOLUME, MASKS), early=True),
            Moment("indexing", (BLOCK, INDEX, RESULTS, MASKS, MASKS_SENT)),
        ),
        imports="numpy",
    ),
    "NumPy indexing, threads, parallel": Model(
        "plot_in_memory",
        "numpy_masker_threads",
        "parallel",
        (
            Moment("reading volume by volume", (ARRAY, VOLUME, MASKS)),
            Moment("indexing", (ARRAY, Part("caller", 2, "outputs", "index"), MASKS)),
        ),
    ),
    "NumPy indexing, joblib map, parallel": mapped_file(
        "numpy_masker_joblib_map",
        moments=(Moment("writing the file", (VOLUME, MASKS), early=True), INDEX_MAPPED),
    ),
    "NumPy indexing, mapped file, parallel": mapped_file(
        "numpy_masker_mapped",
        moments=(Moment("writing the file", (VOLUME, MASKS), "read", early=True), INDEX_MAPPED),
    ),
    "Streaming, any masker, one pass": Model(
        "beyond_the_masker.extract.maskers",
        "stream_nifti_maskers",
        "one pass",
        (
            Moment("fitting", (MASKS, Part("caller", 0.75, "summed", "first"))),
            Moment("streaming", (SERIES, MASKS, STREAMED)),
            Moment("cleaning", (SERIES, MASKS, Part("caller", 1, "output", "clean"))),
        ),
        caller="nilearn",
    ),
    "Streaming, masks, one pass": Model(
        "beyond_the_masker.extract.streaming",
        "stream_masks",
        "one pass",
        (Moment("streaming", (SERIES, STREAMED)),),
    ),
    "NiftiLabelsMasker, region averages": averages(
        "nifti_labels_masker",
        moments=(
            *reading("caller"),
            Moment(
                "checking for values that are not finite",
                (*image("caller"), Part("caller", 2, "finite", "bools")),
            ),
            Moment("averaging", (*image("caller"), MEANS, Part("caller", 1, "summed", "average"))),
        ),
    ),
    "Streaming, region averages": averages(
        "stream_labels_masker",
        moments=(
            Moment("fitting", (Part("caller", 1.5, "summed", "first"),)),
            Moment("streaming", (MEANS, STREAMED)),
        ),
    ),
}


DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
DTYPES += ("int64", "uint64")


class Image(NamedTuple):
    """The part of an image's header that memory depends on."""

    shape: tuple  # (x, y, z, n_timepoints)
    dtype: str = "float32"  # of the stored values, one of DTYPES
    compressed: bool = True
    slope: bool = False  # whether there is a slope other than 1
    inter: bool = False  # whether there is an intercept other than 0

    @property
    def scaled(self):
        """Whether scale factors turn the stored values into float64."""
        return bool(self.slope or self.inter)


def check(image, mask_voxels, n_jobs):
    """Raise a ValueError if the shape, the type, the masks or the workers are impossible."""
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


def quantities(image, mask_voxels, mode, active=0):
    """Return the bytes of each quantity while so many workers, or the caller alone, work."""
    x, y, z, n_volumes = (int(n) for n in image.shape)
    grid = x * y * z
    voxels = grid * n_volumes
    stored_size = np.dtype(image.dtype).itemsize
    array_size = 8 if image.scaled else stored_size
    copy_size = array_size if image.scaled or image.dtype.startswith("float") else 4
    masks = [int(n) for n in (mask_voxels[:1] if mode == "single" else mask_voxels)]
    positions = sum(masks)
    at_work = sum(sorted(masks, reverse=True)[: max(active, 1)])  # the others' are done
    rows = min(max(8 * MIB // (4 * copy_size * positions), 1), n_volumes)
    as_stored = image.dtype.startswith("float") and not image.scaled
    of_value = stored_size + (1 if as_stored else 2 * copy_size)
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
        "averages": len(masks) * n_volumes * (4 if as_stored and array_size == 4 else 8),
        "summed": 28 * grid,
        "streamed": rows * positions * of_value + 12 * positions + 2 * grid * stored_size,
    }


class Held(NamedTuple):
    """MiB that someone holds at a moment, for a reason."""

    holder: str  # "caller", "worker" (all of them), "helpers", "block" or "file"
    mib: float
    reason: str  # a key of REASONS


class Prediction(NamedTuple):
    """The memory in use that a method needs, in MiB."""

    method: str
    n_jobs: int  # workers that are started; 0 if there are none
    peak_mib: float  # the likely peak
    low_mib: float  # the peak if one worker at a time is at its own
    most_mib: float  # the peak if all workers are at theirs at the same moment
    shm_mib: float  # the most in /dev/shm; the peaks include it
    file_mib: float  # the most of files on disk that may be mapped; the peaks do not include it
    moment: str  # the moment of the likely peak
    parts: list  # all that is in memory at that moment, each a `Held`


def predict(method, image, masks, n_jobs, machine):
    """Return a `Prediction` as `budget.predict_peak` does, from an `Image` and the masks' voxels.

    `machine` is the memory of interpreters and imports, as `imports.calibrate` returns it.
    """
    if method not in METHODS:
        raise ValueError(f"There is no method {method!r}; there are: {'; '.join(METHODS)}.")
    check(image, masks, n_jobs)
    model = METHODS[method]
    workers = n_jobs if model.mode == "parallel" and model.imports and n_jobs > 1 else 0
    active = min(workers, len(masks))
    amounts = quantities(image, masks, model.mode, active)
    moments = happening(model, image, workers)
    late = model.late[0 if image.compressed else 1] * 1e6
    overlap = model.together * max(0, 1 - late / math.prod(image.shape))

    def peak(at_peak):
        """Return the largest sum of parts if so many workers are at their peak, and its parts."""
        sums = []
        for moment, parts in moments:
            found = imported(model, machine, 0 if moment.early else workers, active)
            found += [held(part, amounts, workers, at_peak) for part in parts]
            sums.append((sum(part.mib for part in found), moment.name, found))
        return max(sums, key=lambda one: one[0])

    likely, moment, parts = peak(1 + max(active - 1, 0) * overlap)
    low, most = peak(1)[0], peak(max(active, 1))[0]
    shm, file = (most_of(holder, moments, amounts) for holder in ("block", "file"))
    return Prediction(method, workers, likely, low, most, shm, file, moment, parts)


def happening(model, image, workers):
    """List the moments of a method whose conditions an image fulfils, each with its parts."""
    conditions = {
        "compressed" if image.compressed else "plain",
        "scaled" if image.scaled else "unscaled",
        "read" if image.compressed or image.scaled else "mapped",
        "workers" if workers else "alone",
        "twice" if image.slope and image.inter else "once",
    }
    return [
        (moment, [part for part in moment.parts if set(part.when.split()) <= conditions])
        for moment in model.moments
        if set(moment.when.split()) <= conditions
    ]


def imported(model, machine, workers, active):
    """List what the caller, the workers and joblib's helpers take for imports."""
    parts = [Held("caller", machine[f"caller {model.caller}"], "imports")]
    if workers:
        parts.append(Held("helpers", machine["helpers"], "imports"))
        parts.append(Held("worker", active * machine[model.imports], "imports"))
    if workers > active:  # those without a task
        parts.append(Held("worker", (workers - active) * machine["numpy"], "imports"))
    return parts


def held(part, amounts, workers, at_peak):
    """Return a part in MiB if so many workers are at their peak."""
    mib = part.times * amounts[part.quantity] / MIB
    if part.holder == "worker":
        return Held("worker" if workers else "caller", at_peak * mib, part.reason)
    return Held(part.holder, 0 if part.holder == "file" else mib, part.reason)


def most_of(holder, moments, amounts):
    """Return the most that a block or files amount to at any moment, in MiB."""
    sums = (
        sum(part.times * amounts[part.quantity] for part in parts if part.holder == holder)
        for _, parts in moments
    )
    return max(sums) / MIB


def as_json(machine):
    """Return the model as JSON, for the calculator; `machine` is as for `predict`."""

    def plain(item):  # named tuples become dictionaries
        if hasattr(item, "_asdict"):
            return {key: plain(value) for key, value in item._asdict().items()}
        return [plain(one) for one in item] if isinstance(item, tuple) else item

    model = {
        "methods": {name: plain(method) for name, method in METHODS.items()},
        "reasons": REASONS,
        "machine": machine,
        "dtypes": {name: np.dtype(name).itemsize for name in DTYPES},
    }
    return json.dumps(model)
