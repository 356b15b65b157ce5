"""
Measuring blocks and one pass
=============================

Helpers of :ref:`sphx_glr_auto_examples_4_many_images_plot_large_image_in_blocks.py`: they prepare the same image
compressed and uncompressed, time several calls in turns, measure memory above the level at which
workers have done their imports, and start processes that find indexed_gzip, which other processes
do not.
"""

import math
import shutil
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed

from beyond_the_masker.meter import measure
from beyond_the_masker.streaming import gzip

# %%
# The image
# ---------


def prepare_both(fmri_path, most_mib=512):
    """Prepare an image as a ``.nii.gz``, and the same decompressed.

    Parameters
    ----------
    fmri_path : pathlib.Path
    most_mib : float
        If the image is larger in memory, only its first volumes are used, up to so many MiB.

    Returns
    -------
    packed, plain : pathlib.Path
    """
    # Imported here, because measured processes do not need nilearn.
    from beyond_the_masker.data import n_volumes_within, prepare

    img = nib.load(fmri_path)
    length = n_volumes_within(img, most_mib)

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
    """Decompress a ``.nii.gz`` into a ``.nii``, like ``gunzip --keep``."""
    with gzip.open(source) as packed, open(target, "wb") as plain:
        shutil.copyfileobj(packed, plain, 2**20)


def same(every_series, others):
    """Return whether arrays are the same, in number, shape, type and every bit."""
    pairs = zip(every_series, others, strict=True)
    return all((a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes()) for a, b in pairs)


# %%
# Time and memory
# ---------------


def time_in_turns(calls, n_repeats=2):
    """Time some calls, one after the other, again and again.

    Parameters
    ----------
    calls : dict of str to callable
        Each is also called once before, without being timed.
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


def memory_of(call, n_workers, imports):
    """Measure how much memory a call needs above the imports.

    Parameters
    ----------
    call : callable
    n_workers : int
        1 if the calling process does it alone.
    imports : tuple of str
        Modules that all processes import first.

    Returns
    -------
    value : object
        What the call returned.
    above_mib : float
        Peak memory in use of all processes together, above the level before.
    of_worker_mib : float
        Largest increase of a single worker.
    start_seconds : float
        Time to start the workers, imports included.
    """
    trace = measure(_after_imports, call, n_workers, imports)
    value, ready, seconds = trace.result()
    level = max(np.searchsorted(trace.times, ready - trace.started) - 1, 0)
    _, *workers = (process["anon"] for process in trace.processes.values())
    of_worker = max((worker[level:].max() - worker[level] for worker in workers), default=0)
    return value, trace.peak_mib - trace.total()[level], of_worker, seconds


def _after_imports(call, n_workers, imports):
    """Let workers start and import, then call; also return when and how fast they were ready."""
    seconds = 0.0
    if n_workers > 1:
        start = time.time()
        Parallel(n_workers)([delayed(_import)(imports)] * n_workers)
        seconds = time.time() - start - PAUSE
    _import(imports)
    ready = time.time()
    value = call()
    time.sleep(0.05)
    return value, ready, seconds


PAUSE = 0.2  # so long that each worker has one such task


def _import(names):
    """Import modules, and wait until the meter has taken a sample."""
    for name in names:
        import_module(name)
    time.sleep(PAUSE)


# %%
# The folder of indexed_gzip
# --------------------------

APART = Path(sys.prefix) / "apart"


@contextmanager
def with_apart():
    """Let processes that start meanwhile import packages from a separate folder.

    Yields
    ------
    bool
        Whether indexed_gzip is installed at all.
    """
    sys.path.insert(0, str(APART))
    try:
        yield any(Path(folder, "indexed_gzip").is_dir() for folder in sys.path)
    finally:
        sys.path.remove(str(APART))


def read_with_nibabel(fmri_path):
    """Read all volumes with nibabel, then the middle one; return the seconds of both."""
    fmri_img, seconds = nib.load(fmri_path), []
    middle = fmri_img.shape[3] // 2
    for volumes in (slice(None), slice(middle, middle + 1)):
        start = time.perf_counter()
        fmri_img.dataobj[..., volumes]
        seconds.append(time.perf_counter() - start)
    return seconds


def when_it_pays(one_pass, two_workers, make):
    """Compute with how many workers an index pays, if time is inversely proportional to them.

    Parameters
    ----------
    one_pass, two_workers, make : float
        Seconds of one pass, of two workers with the index, and of making the index.

    Returns
    -------
    n_workers : int
        The smallest number of workers that would be faster than one pass.
    n_passes : int
        With twice as many workers, passes that save as much time as the index took.
    """
    n_workers = math.floor(2 * two_workers / one_pass) + 1
    gain = one_pass - two_workers / n_workers
    return n_workers, math.ceil(make / gain)


# %%
# The figure
# ----------
