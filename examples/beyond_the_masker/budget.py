"""
Will it fit? A budget of memory
===============================

How much memory will a method take, and how many :term:`workers <worker>` can I afford? This
file answers that before anything is loaded, from the header of the image, the sizes of the
masks and the number of workers:

.. code-block:: bash

    python memory_budget.py image.nii.gz masks/*.nii.gz --jobs 20 --memory 16G

From Python, ``print_budget`` prints the same table, and ``predict_peak`` gives the parts of one
method's peak. How it is computed: :mod:`beyond_the_masker.model`. To use it elsewhere, put
``memory_model.py``, ``peak_memory.py`` and ``options.py`` beside it.
"""

import bisect
import gzip
import importlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple
from xml.parsers.expat import ExpatError

import nibabel as nib
import numpy as np

from beyond_the_masker.meter import MIB, available_mib, measure, reserve_mib
from beyond_the_masker.model import (
    DTYPES,
    METHODS,
    REASONS,
    Image,
    Prediction,
    check,
    predict,
    quantities,
)
from beyond_the_masker.options import parse_memory, read_options

# %%
# What goes in
# ------------
# Only the header of the image is read, with the size of the file, and the size that gzip stores at
# its end: so a header that claims more data than the file holds is detected. If the two disagree,
# the file is decompressed to its end. The voxels of each mask are counted.

DEFLATE_AT_MOST = 1032  # bytes that come out of one byte of gzip: https://zlib.net/zlib_tech.html
UNREADABLE = (  # what nibabel raises when it is given something else than an image
    *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
    *(EOFError, OSError, OverflowError, ValueError, zlib.error, ExpatError),
)


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
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a NIfTI image that can be read ({error}).") from error
    shape = getattr(img, "shape", ())  # a surface has none
    if not isinstance(img, nib.Nifti1Pair) or len(shape) != 4 or min(shape) < 1:
        raise ValueError(
            f"{path} is a {type(img).__name__} of shape {shape}; a 4D NIfTI image is needed."
        )
    proxy = img.dataobj
    dtype = proxy.dtype.newbyteorder("=").name
    if dtype not in DTYPES:
        raise ValueError(f"{path} holds values of type {dtype}; {', '.join(DTYPES)} are known.")
    source = Path(img.file_map["image"].filename)
    promised = int(proxy.offset) + int(np.prod(shape, dtype=object)) * proxy.dtype.itemsize
    compressed = source.suffix.lower() in (".gz", ".bz2", ".zst")
    there, says = source.stat().st_size, "it has {}"
    if source.suffix.lower() == ".gz":
        there, says = _unpacked_size(source, promised)
    elif compressed:
        there = promised  # their files do not tell
    if there < promised:
        raise ValueError(
            f"{path} is incomplete, or its header is wrong: by its header, {shape} of {dtype}, "
            f"it should hold {promised} bytes, and {says.format(there)}."
        )
    return Image(
        *(shape, dtype, compressed),
        slope=proxy.slope != 1,
        inter=proxy.inter != 0,
    )


def _unpacked_size(path, promised):
    """Tell how many bytes a gzip file holds, if it can be without unpacking it."""
    size = path.stat().st_size
    if size * DEFLATE_AT_MOST < promised:
        return size, f"no gzip file holds more than {DEFLATE_AT_MOST} times its size, which is {{}}"
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        if int.from_bytes(file.read(), "little") == promised % 2**32:  # kept modulo 2 ** 32
            return promised, ""
    # Cut off, or a header that is wrong; or of several parts, or with zeros at its end, which
    # is allowed: only unpacking tells.
    size = 0
    try:
        with gzip.open(path) as file:
            while block := file.read(2**20):
                size += len(block)
    except (EOFError, OSError, zlib.error):
        return 0, "it is damaged, or cut off"
    return size, "it unpacks to {}"


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
        mask_img = nib.load(mask_path)
        grid = getattr(mask_img, "shape", ())  # a surface has none
        fits = grid == tuple(shape)
        mask = np.asarray(mask_img.dataobj) if fits else None  # another may be large
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{mask_path} is not an image that can be read ({error}).") from error
    if not fits:
        raise ValueError(
            f"{mask_path} is on the grid {grid}; the image is on {tuple(shape)}. To "
            "bring a mask there: "
            "nilearn.image.resample_to_img(mask, image, interpolation='nearest')."
        )
    inside = int(np.count_nonzero(np.nan_to_num(mask, posinf=0, neginf=0)))
    if not inside:
        raise ValueError(f"{mask_path} has 0 voxels that are not zero; a mask has some.")
    return inside


def count_all(masks, shape):
    """Count the voxels of the masks that are files; leave numbers as they are."""
    masks = [masks] if isinstance(masks, (str, Path)) else masks
    return [count_voxels(m, shape) if isinstance(m, (str, Path)) else m for m in masks]


# %%
# What interpreters and imports take depends on the machine and on the versions of the
# libraries. It is measured once, with workers that do nothing but import, and kept in the cache
# folder. Where that was not done, typical numbers stand in.

PACKAGES = ("nilearn", "nibabel", "numpy", "joblib")
TYPICAL = {  # MiB in use: two cores, Python 3.11, nilearn 0.14.1, 2026-11-25
    "measured": "",
    "caller nibabel": 29.7,
    "caller nilearn": 137.7,
    "helpers": 27.5,
    "numpy": 22.3,
    "nibabel": 30.0,
    "nilearn": 137.5,
}


IMPORTS = {"numpy": ("numpy",), "nibabel": ("nibabel", "joblib", "tqdm")}
IMPORTS["nilearn"] = (*IMPORTS["nibabel"], "nilearn.image", "nilearn.maskers")


def import_and_wait(name):
    """Import what some methods import, and wait for a sample or two."""
    for module in IMPORTS[name]:
        importlib.import_module(module)
    time.sleep(0.25)


def import_in_workers(name, n_workers):
    """Import in workers what some methods import, and wait until all have done so.

    Parameters
    ----------
    name : {"numpy", "nibabel", "nilearn"}
    n_workers : int

    Returns
    -------
    start, end : float
        From when to when all had it, as `time.time` has them.
    """
    from joblib import Parallel, delayed

    def work(folder, number):
        for module in IMPORTS[name]:
            importlib.import_module(module)
        Path(folder, str(number)).touch()
        deadline = time.monotonic() + 60
        while len(os.listdir(folder)) < n_workers and time.monotonic() < deadline:
            time.sleep(0.01)
        start = time.time()
        time.sleep(0.25)
        return start, time.time()

    with tempfile.TemporaryDirectory() as folder:
        times = Parallel(n_jobs=n_workers, batch_size=1)(
            delayed(work)(folder, i) for i in range(n_workers)
        )
    starts, ends = zip(*times, strict=True)
    return max(starts), min(ends)


def machine_path():
    """Where the measurement of this machine is kept: in the folder MASKER_CACHE."""
    return Path(os.environ.get("MASKER_CACHE") or "masker_cache") / "machine.json"


def calibrate():
    """Measure what interpreters and imports take on this machine, and keep it.

    Returns
    -------
    dict
        MiB in use of ``"caller nibabel"`` and ``"caller nilearn"``, a calling process with these
        imports; ``"helpers"``, what joblib starts beside the workers; and one worker with the
        imports ``"numpy"``, ``"nibabel"`` or ``"nilearn"``. ``"measured"`` names the versions.
    """
    above = {}
    for name, n_workers in (("numpy", 2), ("numpy", 4), ("nibabel", 2), ("nilearn", 2)):
        trace = measure(import_in_workers, name, n_workers)
        start, end = (moment - trace.started for moment in trace.result())
        inside = (trace.times >= start) & (trace.times <= end)
        inside |= trace.times == trace.times[np.abs(trace.times - start).argmin()]
        caller = next(iter(trace.processes.values()))["anon"]  # it imports joblib meanwhile
        above[name, n_workers] = float(np.median((trace.total() - caller)[inside]))
    worker = (above["numpy", 4] - above["numpy", 2]) / 2
    helpers = above["numpy", 2] - 2 * worker
    machine = {f"caller {name}": level_after(name) for name in ("nibabel", "nilearn")}
    machine |= {"helpers": helpers, "numpy": worker}
    machine |= {name: (above[name, 2] - helpers) / 2 for name in ("nibabel", "nilearn")}
    machine = {name: round(mib, 1) for name, mib in machine.items()} | {"measured": _versions()}
    path = machine_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    unfinished.write_text(json.dumps(machine))
    unfinished.replace(path)
    return machine


def level_after(name):
    """Return the memory in use of a process that has imported what some methods import."""
    trace = measure(import_and_wait, name)
    trace.result()
    return float(trace.total()[-1])


def this_machine():
    """Give what `calibrate` found for these versions, or the typical numbers."""
    try:
        machine = json.loads(machine_path().read_text())
    except (OSError, ValueError):
        return TYPICAL
    whole = isinstance(machine, dict) and machine.keys() == TYPICAL.keys()
    return machine if whole and machine["measured"] == _versions() else TYPICAL


def _versions():
    """Python and the packages whose imports take memory, as one line."""
    found = [f"Python {sys.version.split()[0]}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} missing")
    return f"{sys.platform}, {', '.join(found)}"


def predict_peak(method, image, masks, n_jobs=1, machine=None):
    """Predict the peak memory of a method, with all its processes.

    Parameters
    ----------
    method : str
        A key of `memory_model.METHODS`: its name and its mode, as in the table of `print_budget`.
    image : memory_model.Image, str or pathlib.Path
        What the header says, or the file to read it from.
    masks : list of int, str or pathlib.Path
        The masks' voxels, or the files to count them in.
    n_jobs : int
        Workers; methods without workers ignore it.
    machine : dict, optional
        As `calibrate` gives it; by default what it found on this machine.

    Returns
    -------
    memory_model.Prediction

    Raises
    ------
    FileNotFoundError, ValueError
        Something cannot be: no worker, a mask without voxels, a header that promises more
        than the file holds, an unknown method.
    """
    image = image if isinstance(image, Image) else read_header(image)
    masks = count_all(masks, image.shape[:3])
    return predict(method, image, masks, n_jobs, machine or this_machine())


# %%
# Does it fit?
# ------------
# The experiment and every page ask ``guard`` before they run a method. One that may not fit is
# not run, but shown as predicted.


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


def most_workers(method, image, masks, memory_mib, shm_mib, machine):
    """Find the largest number of workers with which a method fits, up to one for each mask.

    Returns
    -------
    int
        0 if not even one fits, or if the method has no workers and does not fit.
    """

    def does_not_fit(n_jobs):
        return bool(why_not(predict(method, image, masks, n_jobs, machine), memory_mib, shm_mib))

    return bisect.bisect_left(range(1, len(masks) + 1), True, key=does_not_fit)


def allowed_mib():
    """Tell how much a method may take in a build, by the option MEMORY.

    Returns
    -------
    allowed : float
        MiB that the prediction is held against; by default what is available now.
    stop : float
        MiB with which a running method is stopped, if the machine has that much.
    """
    memory = read_options().memory
    if memory in ("", "unlimited"):
        left = max(available_mib() - reserve_mib(), 0)
        return float("inf") if memory else left, float("inf")
    return parse_memory(memory), parse_memory(memory)


def guard(method, fmri_path, mask_paths, n_jobs):
    """Ask the model whether a method may be run in a build.

    Parameters
    ----------
    method, fmri_path, mask_paths, n_jobs
        As for `predict_peak`.

    Returns
    -------
    prediction : memory_model.Prediction
    reason : str
        Why it must not be run; empty if it may.
    """
    prediction = predict_peak(method, fmri_path, mask_paths, n_jobs)
    allowed, _ = allowed_mib()
    shm_mib = available_shm_mib() if allowed < float("inf") else allowed
    return prediction, why_not(prediction, allowed, shm_mib)


class Row(NamedTuple):
    """A line of the table that `print_budget` prints: what is predicted, and whether it fits."""

    prediction: Prediction
    reason: str  # why it does not fit; empty if it does
    most_workers: int


def print_budget(fmri_path, mask_paths, n_jobs=None, memory=None, shm=None, explain=False):
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
    masks = count_all(mask_paths, image.shape[:3])
    n_jobs = len(masks) if n_jobs is None else n_jobs
    check(image, masks, n_jobs)
    memory_mib = available_mib() if memory is None else parse_memory(memory)
    shm_mib = available_shm_mib() if shm is None else parse_memory(shm)
    machine = this_machine()
    rows = []
    for method in METHODS:
        prediction = predict(method, image, masks, n_jobs, machine)
        reason = why_not(prediction, memory_mib, shm_mib)
        most = most_workers(method, image, masks, memory_mib, shm_mib, machine)
        rows.append(Row(prediction, reason, most))
    _print_table(image, masks, n_jobs, memory_mib, shm_mib, machine, rows)
    if explain:
        _print_parts(rows)
    return rows


def _print_table(image, masks, n_jobs, memory_mib, shm_mib, machine, rows):
    """Print the table of `print_budget`, and the recommendation."""
    stored, files = (
        f"{quantities(image, masks, 'parallel')[q] / MIB:,.0f}" for q in ("array", "outputs")
    )
    kind = f"{image.dtype}{', scaled' if image.slope or image.inter else ''}"
    kind += ", compressed" if image.compressed else ""
    print(f"image {image.shape}, {kind}: {stored} MiB in memory")
    print(f"{len(masks)} masks, {sum(masks):,} voxels: {files} MiB of time series")
    shm = "no limit" if shm_mib == float("inf") else f"{shm_mib:,.0f} MiB"
    print(f"available {memory_mib:,.0f} MiB; in /dev/shm {shm}")
    origin = "measured here" if machine["measured"] else "typical; --measure does it here"
    print(f"imports: {origin}\n")
    print(f"{'MiB':42}{'workers':>8}{'likely':>10}{'at most':>10}{'mapped':>10}  fits")
    for prediction, reason, most in rows:
        parallel = METHODS[prediction.method].imports
        fits = "yes" if not reason else f"with {most} at most" if parallel and most else "no"
        print(
            f"{prediction.method:42}{prediction.n_jobs or '-':>8}{prediction.peak_mib:10,.0f}"
            f"{prediction.most_mib:10,.0f}{prediction.file_mib:10,.0f}  {fits}"
        )
    if any(row.prediction.file_mib for row in rows):
        print("Mapped: up to this much of a file may be in memory as well. The kernel can drop it.")
    print(f"\n{recommend(rows, memory_mib)}")
    streaming = next(row for row in rows if row.prediction.method == "Streaming, masks, one pass")
    print(
        f"\nA Slurm job that streams one such image:\n{sbatch_lines(image, streaming.prediction)}"
    )


def recommend(rows, memory_mib):
    """Recommend a method, in a sentence or two.

    Parameters
    ----------
    rows : list of Row
    memory_mib : float
        What is available.

    Returns
    -------
    str
    """
    found = {row.prediction.method: row for row in rows}
    streaming, reason, _ = found["Streaming, masks, one pass"]
    least = sum(part.mib for part in streaming.parts if part.reason != "results")
    if not reason:
        text = "Recommended: stream_masks(fmri_path, mask_paths), which needs no worker."
    elif least <= memory_mib:
        text = (
            "Recommended: stream_masks(fmri_path, mask_paths, out=names) with the names of .npy "
            "files: the time series themselves do not fit."
        )
    else:
        text = f"Nothing fits: even without the time series, streaming takes {least:,.0f} MiB."
    if not found["NumPy indexing, threads, parallel"].reason:
        text += "\nTo keep the image in memory: numpy_masker_threads(fmri_path, mask_paths, n)."
    return text


def sbatch_lines(image, prediction):
    """Return what a Slurm job should request to stream one image, as lines of its script.

    One and a half times the predicted memory, three times the time that 100 MB/s would take, and
    five minutes for a node that starts slowly.
    """
    mib = 50 * math.ceil(1.5 * prediction.most_mib / 50)
    seconds = math.prod(image.shape) * np.dtype(image.dtype).itemsize / 100e6
    minutes = 5 + math.ceil(3 * seconds / 60)
    return f"#SBATCH --cpus-per-task=1\n#SBATCH --mem={mib}M\n#SBATCH --time={minutes}"


def _print_parts(rows):
    """Print what is in memory at the peak of each method."""
    for prediction, *_ in rows:
        print(f"\n{prediction.method}, while {prediction.moment}:")
        for part in prediction.parts:
            why, source = REASONS[part.reason]
            mib = "not counted" if part.holder == "file" else f"{part.mib:,.0f} MiB"
            print(f"{mib:>14}  {part.holder}: {why} ({source})")
