"""Make a study of the build's image, and measure the workers that mask it."""

import contextlib
import inspect
import json
import math
import os
import tempfile
import time
from pathlib import Path

import nibabel as nib
import psutil

from beyond_the_masker.cache import prepare, stamp_of
from beyond_the_masker.data import (
    atlas_to_masks,
    cut_to,
    get_atlas_path,
    n_volumes_within,
    prepare_fmri,
)
from beyond_the_masker.files import moved_into_place, stem
from beyond_the_masker.meter import MIB, measure
from beyond_the_masker.options import read_options
from beyond_the_masker.study import mask_study


def prepare_study(n_images=8, most_mib=512):
    """Make a study of links to the build's image; return the paths of its images and masks.

    Of an image that is larger than `most_mib` in memory, only the first volumes are used.
    """
    options = read_options()
    fmri_path = prepare_fmri(options.n_images)
    _, masks = atlas_to_masks(get_atlas_path(), fmri_path, options.n_regions)
    image = cut_to(fmri_path, n_volumes_within(nib.load(fmri_path), most_mib)).absolute()
    ending = image.name.removeprefix(stem(image))

    def fill(folder):
        for number in range(1, n_images + 1):
            (folder / f"sub-{number:02d}_bold{ending}").symlink_to(image)

    return sorted(prepare("study", [str(image), n_images], fill).glob("sub-*")), masks


def time_study(images, masks, n_jobs):
    """Mask a study into a temporary folder; return the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        table = mask_study(images, masks, folder, n_jobs=n_jobs)
        seconds = time.perf_counter() - start
    if set(table.status) != {"done"}:
        raise RuntimeError(f"Not all images are done: {table.reason.tolist()}")
    return seconds


def speed_up(images, masks, n_jobs, n_pairs):
    """Time the calling process and several workers in pairs; return the ratios, sorted."""
    time_study(images[:n_jobs], masks, n_jobs)  # starts the workers
    pairs = [[time_study(images, masks, n) for n in (1, n_jobs)] for _ in range(n_pairs)]
    return sorted(alone / together for alone, together in pairs)


def memory_of(images, masks, n_jobs):
    """Measure a study; return the trace, and the peaks of workers and their helpers in MiB.

    The largest peaks, which come first, are those of the workers.
    """
    with tempfile.TemporaryDirectory() as folder:
        trace = measure(mask_study, images, masks, folder, n_jobs=n_jobs)
    if not isinstance(trace.exception, MemoryError):  # the machine was short of memory
        trace.result()
    _, *others = (process["anon"][process["pss"] > 0] for process in trace.processes.values())
    # The first sample can be of a process that is still a copy of its parent.
    peaks = [float(samples[1:].max()) for samples in others if len(samples) > 1]
    return trace, sorted(peaks, reverse=True)


def measure_workers(images, masks):
    """Measure the speed and memory of workers; a later call reads the numbers from a file.

    Return a dict: ``mib_s``, compressed file read in a second; ``result_share``, size of the
    results, relative to the image's file; and memory in use: ``peaks_mib``, pairs of a number of
    workers and the peak of all processes (1: without workers), ``worker_mib``, one worker,
    ``imports_mib``, one worker that finds no image, ``helpers_mib``, what joblib starts beside the
    workers, and ``caller_mib``, the calling process meanwhile.
    """
    file, n_bytes = Path(read_options().measured) / "workers.json", images[0].stat().st_size
    files = [stamp_of(path.resolve()) for path in (images[0], *masks)]
    stamp = repr([files, len(images), inspect.getsource(measure_workers)])
    if file.exists() and (known := json.loads(file.read_text()))["stamp"] == stamp:
        return known
    with tempfile.TemporaryDirectory() as folder:
        table = mask_study(images, masks, folder, n_jobs=1)
        result_share = Path(table.file[0]).stat().st_size / n_bytes
    missing = [image.with_name(f"missing-{image.name}") for image in images]
    found = {n: memory_of(images, masks, n) for n in (1, 2, 4)}
    (trace, peaks), (_, idle) = found[2], memory_of(missing, masks, 2)
    measured = {
        "stamp": stamp,
        "mib_s": n_bytes / MIB / float(table.seconds.median()),
        "result_share": result_share,
        "peaks_mib": [(n, one.peak_mib) for n, (one, _) in found.items()],
        "worker_mib": max(peaks, default=math.nan),
        "imports_mib": max(idle, default=math.nan),
        "helpers_mib": sum(peaks[2:]),
        "caller_mib": float(next(iter(trace.processes.values()))["anon"].max()),
    }
    with moved_into_place(file) as unfinished:
        unfinished.write_text(json.dumps(measured))
    return measured


def storage_rate(path):
    """Read a file that is not in the system's cache, and discard it; return MiB per second."""
    with open(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while file.read(MIB):
            pass
        return file.tell() / MIB / (time.perf_counter() - start)


def lose_a_worker(pid, folder, n_done, patience=120):
    """Kill a worker in the middle of an image, when `n_done` images are done.

    Images may be too short to see one begun; after `patience` seconds it is killed in any case.
    Return its ``pid``, the ``time``, and when each image without a result was ``begun``.
    """
    deadline, begun = time.time() + patience, {}
    while time.time() < deadline and (not begun or len(list(folder.glob("sub-*.npz"))) < n_done):
        time.sleep(0.005)
        unfinished = list(folder.glob("sub-*.npz.*.unfinished"))
        with contextlib.suppress(FileNotFoundError):  # it is complete
            begun = {path.name.split(".npz.")[0]: path.stat().st_mtime for path in unfinished}
    psutil.Process(pid).kill()
    return {"pid": pid, "time": time.time(), "begun": begun}
