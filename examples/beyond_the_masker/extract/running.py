"""Run the whole work of a method, and workers, with only the imports that these need."""

import tempfile
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock

import nibabel as nib
import numpy as np

from beyond_the_masker.extract.checks import open_image
from beyond_the_masker.extract.orphans import WORKERS
from beyond_the_masker.extract.streaming import damaged_file_named
from beyond_the_masker.files import file_named


def load_in_memory(path):
    """Return an image whose data are an array, scale factors applied, not a proxy to the file."""
    img = open_image(path)
    with damaged_file_named(path):
        data = np.asanyarray(img.dataobj)
    if isinstance(data, np.memmap):  # an uncompressed file: mapped, not read
        data = np.array(data)
    kind = type(img) if isinstance(img, nib.Nifti1Image) else nib.Nifti1Image  # or NIfTI-2
    return kind(data, img.affine, img.header, dtype=data.dtype)


def run_method(function, mode, in_memory, fmri_path, mask_paths, n_jobs=None, workers=False):
    """Return the arrays of a method of `model.METHODS`: of the first mask if it is single.

    With `workers`, worker processes start before the work begins. Otherwise the first ones would
    finish a small image before the last one exists, and chance would decide how many of them take
    memory at the same time.
    """
    n_jobs = n_jobs or len(mask_paths)
    if workers and n_jobs > 1:
        start_workers(n_jobs, **getattr(function, "__globals__", {}).get("WORKERS", {}))
    load = load_in_memory if in_memory else Path
    fmri = load(fmri_path)
    if mode == "single":
        return [function(fmri, load(mask_paths[0]))]
    masks = [load(mask_path) for mask_path in mask_paths]
    return function(fmri, masks, n_jobs) if mode == "parallel" else function(fmri, masks)


def start_workers(n_workers, modules=(), stay=0.0, **options):
    """Start joblib's workers, import modules in each, and let them stay together for some seconds.

    joblib starts others if a later call has other `options`.

    Return when all were there, from and to, by `time.time`; None if joblib works without processes.
    """
    from joblib import Parallel, delayed, effective_n_jobs

    def meet(folder, number):  # as an inner function, it makes workers import nothing else
        import importlib
        import os
        import time

        for module in modules:
            importlib.import_module(module)
        open(os.path.join(folder, str(number)), "w").close()
        deadline = time.monotonic() + 60
        while len(os.listdir(folder)) < n_workers and time.monotonic() < deadline:
            time.sleep(0.005)
        start = time.time()
        time.sleep(stay)
        return start, time.time()

    if effective_n_jobs(n_workers) < n_workers:
        return None
    with tempfile.TemporaryDirectory() as folder:
        tasks = (delayed(meet)(folder, number) for number in range(n_workers))
        starts, ends = zip(*Parallel(n_jobs=n_workers, batch_size=1, **options)(tasks), strict=True)
    return max(starts), min(ends)


def ready_parallel(n_jobs, **options):
    """Return joblib's `Parallel` that returns each result when it is ready.

    Raise a ValueError for a backend that returns results only when all are ready, or no workers.
    """
    from joblib import Parallel

    if n_jobs == 0:
        raise ValueError("n_jobs is 0; give a number of workers, or None for none.")
    try:
        return Parallel(n_jobs, return_as="generator_unordered", **WORKERS, **options)
    except ValueError as error:
        if "return_as" not in str(error):
            raise
        raise ValueError(
            "This backend returns results only when all are ready. Choose another one with "
            f"joblib.parallel_config: loky (joblib's default), threading or dask. {error}"
        ) from error


@contextmanager
def results_as_ready(tasks, n_jobs, **options):
    """Yield an iterator over the results of joblib's tasks, in the order in which they are ready.

    An error or Ctrl-C while they are used ends the workers, even if its traceback is kept. A
    backend that cannot do this is refused, as by `ready_parallel`.
    """
    with file_named("/dev/shm/ (for joblib's workers)"):
        results = ready_parallel(n_jobs, **options)(tasks)
    try:
        yield results
    except BaseException:
        with suppress(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
        raise


@cache
def blas_libraries():
    """Return the controller of the libraries in this process, which takes some time to find."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class OneThread:
    """A context in which BLAS uses one thread in this process, also if threads share it.

    The number of threads changes how sums are divided, and so the last bits of results.
    """

    def __init__(self):
        self.lock, self.users, self.limits = Lock(), 0, None

    def __enter__(self):
        with self.lock:
            self.users += 1
            if self.users == 1:
                self.limits = blas_libraries().limit(limits=1, user_api="blas")

    def __exit__(self, *error):
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.limits.restore_original_limits()


ONE_THREAD = OneThread()
