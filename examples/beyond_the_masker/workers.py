"""Make a study of the build's image, and measure the workers that mask it."""

import contextlib
import json
import math
import os
import tempfile
import time
from pathlib import Path

import nibabel as nib
import psutil
from joblib import Parallel, delayed

from beyond_the_masker.data import (
    atlas_to_masks,
    cut_to,
    get_atlas_path,
    n_volumes_within,
    prepare,
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

    return sorted(prepare("study", [str(image), n_images], fill).iterdir()), masks


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
    """Measure a study; return the trace, and the peak of each worker in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        trace = measure(mask_study, images, masks, folder, n_jobs=n_jobs)
    if not isinstance(trace.exception, MemoryError):  # the machine was short of memory
        trace.result()
    _, *workers = (process["anon"][process["pss"] > 0] for process in trace.processes.values())
    # The first sample can be of a process that is still a copy of its parent.
    return trace, [samples[1:].max() for samples in workers if len(samples) > 1]


def measure_workers(images, masks):
    """Measure the speed and memory of workers; a later call reads the numbers from a file.

    Return a dict: ``mib_s``, compressed file read in a second; ``result_share``, size of the
    results, relative to the image's file; and memory in use: ``peaks_mib``, pairs of a number of
    workers and the peak of all processes (1: without workers), ``worker_mib``, one worker, and
    ``imports_mib``, one worker that finds no image.
    """
    file, stat = Path(read_options().measured) / "workers.json", images[0].stat()
    paths = [str(path.resolve()) for path in (images[0], *masks)]
    stamp = [*paths, stat.st_size, stat.st_mtime_ns, len(images)]
    if file.exists() and (known := json.loads(file.read_text()))["stamp"] == stamp:
        return known
    with tempfile.TemporaryDirectory() as folder:
        table = mask_study(images, masks, folder, n_jobs=1)
        result_share = Path(table.file[0]).stat().st_size / stat.st_size
    missing = [image.with_name(f"missing-{image.name}") for image in images]
    found = {n: memory_of(images, masks, n) for n in (1, 2, 4)}
    measured = {
        "stamp": stamp,
        "mib_s": stat.st_size / MIB / float(table.seconds.median()),
        "result_share": result_share,
        "peaks_mib": [(n, trace.peak_mib) for n, (trace, _) in found.items()],
        "worker_mib": float(max(found[2][1], default=math.nan)),
        "imports_mib": float(max(memory_of(missing, masks, 2)[1], default=math.nan)),
    }
    with moved_into_place(file) as unfinished:
        unfinished.write_text(json.dumps(measured))
    return measured


def storage_rate(path, n_readers):
    """Read a file that is not in the cache, in parts at the same time; return MiB per second."""
    size = -(-path.stat().st_size // n_readers)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    parts = Parallel(n_readers, backend="threading")(
        delayed(read_part)(path, number * size, size) for number in range(n_readers)
    )
    return sum(parts) / MIB / (time.perf_counter() - start)


def read_part(path, start, size):
    """Read a part of a file and discard it; return how many bytes it has."""
    n_bytes = 0
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while n_read := len(file.read(min(size - n_bytes, MIB))):
            n_bytes += n_read
    return n_bytes


def lose_a_worker(pid, folder, n_done, patience=120):
    """Kill a worker in the middle of an image, when `n_done` images are done.

    Images may be too short to see one begun; after `patience` seconds it is killed in any case.

    Returns
    -------
    dict
        ``pid`` and ``time``; ``begun``: the time when each image without a result was begun.
    """
    deadline, begun = time.time() + patience, {}
    while time.time() < deadline and (not begun or len(list(folder.glob("sub-*.npz"))) < n_done):
        time.sleep(0.005)
        unfinished = list(folder.glob("sub-*.npz.*.unfinished"))
        with contextlib.suppress(FileNotFoundError):  # it is complete
            begun = {path.name.split(".npz.")[0]: path.stat().st_mtime for path in unfinished}
    psutil.Process(pid).kill()
    return {"pid": pid, "time": time.time(), "begun": begun}
