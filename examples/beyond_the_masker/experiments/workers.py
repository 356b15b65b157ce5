"""Make a study of the build's image, and measure the workers that mask it."""

import contextlib
import datetime
import inspect
import json
import math
import os
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
from nilearn.maskers import NiftiLabelsMasker

from beyond_the_masker.files import stem, write_bytes
from beyond_the_masker.inputs.cache import prepare, stamp_of
from beyond_the_masker.inputs.data import (
    atlas_to_labels,
    atlas_to_masks,
    cut_to,
    get_atlas_path,
    n_volumes_within,
    on_grid_of,
    packed,
    prepare_2mm,
    prepare_fmri,
    prepare_joined,
    synthetic_atlas_path,
    write_fmri,
)
from beyond_the_masker.inputs.synthetic import synthetic_labels
from beyond_the_masker.inputs.synthetic_fmriprep import link_fmriprep
from beyond_the_masker.meter import MIB, measure
from beyond_the_masker.options import read_options
from beyond_the_masker.studies.fmriprep import fmriprep_study
from beyond_the_masker.studies.masker_runs import masker_study
from beyond_the_masker.studies.study import mask_study

LEAST_VOLUMES = 100  # of an image from which a few dozen confounds are removed


def prepare_study(n_images=8, most_mib=512):
    """Make a study of links to the build's image; return the paths of its images and masks.

    Of an image that is larger than `most_mib` in memory, only the first volumes are used.
    """
    image = image_of_build(most_mib)
    _, masks = atlas_to_masks(get_atlas_path(), image, read_options().n_regions)
    return link_images(image, n_images), masks


def prepare_runs(n_images=3, n_regions=400):
    """Make a study of links to an image that can be cleaned; return its images and an atlas."""
    image, atlas = image_to_clean(n_regions)
    return link_images(image, n_images), atlas


def prepare_fmriprep(folder, n_images=8):
    """Make derivatives of links to an image that can be cleaned; return their folder and an atlas.

    The atlas is a label image of all regions of the build's atlas.
    """
    image, atlas = image_to_clean()
    return link_fmriprep(folder, packed(image), n_images), atlas  # as nilearn expects it


def image_of_build(most_mib=512):
    """Return the path of the build's image, cut to its first volumes if it is too large."""
    fmri_path = prepare_fmri(read_options().n_images)
    return cut_to(fmri_path, n_volumes_within(nib.load(fmri_path), most_mib)).absolute()


def image_to_clean(n_regions=None):
    """Return the build's image, or a made-up one if it has too few volumes, and a label image.

    The label image has all regions of the atlas; or `n_regions`, unless the image is the reader's.
    """
    image, atlas = image_of_build(), get_atlas_path()
    is_long = nib.load(image).shape[3] >= LEAST_VOLUMES
    if not is_long:
        image = prepare_joined("synthetic-1-images", write_fmri, "synthetic", 1)
        atlas = synthetic_atlas_path()
    if n_regions is None or (is_long and read_options().fmri):
        return image, atlas_to_labels(atlas, image)
    return image, on_grid_of(image, synthetic_labels, n_regions)


def link_images(image, n_images):
    """Return the paths of links to an image, each for one subject."""
    ending = image.name.removeprefix(stem(image))

    def fill(folder):
        for number in range(1, n_images + 1):
            (folder / f"sub-{number:02d}_bold{ending}").symlink_to(image.absolute())

    return sorted(prepare("study", [str(image), n_images], fill).glob("sub-*"))


def check_done(table):
    """Raise a RuntimeError unless all images of a study are done."""
    if set(table.status) != {"done"}:
        raise RuntimeError(f"Not all images are done: {table.reason.tolist()}")


def time_study(images, masks, n_jobs):
    """Mask a study into a temporary folder; return the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        table = mask_study(images, masks, folder, n_jobs=n_jobs)
        seconds = time.perf_counter() - start
    check_done(table)
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
    write_bytes(file, json.dumps(measured).encode())
    return measured


def measure_runs(images, atlas, n_confounds=36):
    """Measure the process that averages and cleans the regions of some images.

    Return a dict, per image: ``shape``, ``n_regions``, ``n_confounds``, ``seconds``, and in MiB
    the ``file``, its ``results``, the ``peak`` of memory in use, and what was there ``before``.
    """
    shape = nib.load(images[0]).shape
    confounds = np.random.default_rng(0).normal(size=(shape[3], n_confounds)).cumsum(axis=0)
    masker = NiftiLabelsMasker(atlas, detrend=True, standardize="zscore_sample", reports=False)
    with tempfile.TemporaryDirectory() as folder:
        inputs = images, {"regions": masker}, folder
        trace = measure(masker_study, *inputs, confounds=[confounds] * len(images))
        table = trace.result()
        check_done(table)
        sizes = [path.stat().st_size for path in Path(folder).rglob("*_timeseries.*")]
        with open(table.file[0]) as file:
            n_regions = len(file.readline().split("\t"))
    return {
        **{"shape": shape, "n_regions": n_regions, "n_confounds": n_confounds},
        "seconds": float(table.seconds.median()),  # the first one's has the imports
        "file": images[0].stat().st_size / MIB,
        "results": sum(sizes) / len(images) / MIB,
        **{"peak": trace.peak_mib, "before": trace.before_mib},
    }


def record_full_run(folder, n_volumes=1200):
    """Measure one image of the size of the Human Connectome Project's; write ``full_run.json``."""
    image = prepare_2mm(n_volumes)
    measured = measure_runs([image], on_grid_of(image, synthetic_labels, 400))
    record(Path(folder, "full_run.json"), measured)


def record_many_workers(folder, numbers=(1, 4, 8, 16), n_volumes=1200, n_repeats=2):
    """Time `fmriprep_study` with more and more workers; write ``many_workers.json``.

    Each worker gets two images, all links to one file of the size of `record_full_run`'s.
    """
    image, rows = prepare_2mm(n_volumes), []
    atlas = {"regions": on_grid_of(image, synthetic_labels, 400)}
    with tempfile.TemporaryDirectory() as place:
        derivatives = link_fmriprep(Path(place, "fmriprep"), image, 2 * max(numbers))
        for number in [n for n in numbers for _ in range(n_repeats)]:
            subjects = [f"{i:02d}" for i in range(1, 2 * number + 1)]
            output = Path(place, f"series-{len(rows)}")
            start = time.perf_counter()
            table = fmriprep_study(derivatives, atlas, output, number, participants=subjects)
            seconds = time.perf_counter() - start
            check_done(table)
            peak = float(table.peak_rss_mib.max())
            rows.append({"workers": number, "seconds": seconds / len(table), "peak_rss_mib": peak})
    about = {"shape": nib.load(image).shape, "file": image.stat().st_size / MIB, "rows": rows}
    record(Path(folder, "many_workers.json"), about)


def record(file, measured):
    """Write measurements with the number of cores and the date."""
    about = {"cores": os.cpu_count(), "date": datetime.date.today().isoformat()}
    write_bytes(file, json.dumps(measured | about, indent=1).encode())


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
    Return its ``pid``, the ``time``, and when the image of each subject without a result was
    ``begun``.
    """
    deadline, begun, n_finished = time.time() + patience, {}, 0
    while time.time() < deadline and (not begun or n_finished < n_done):
        time.sleep(0.005)
        n_finished = len(list(folder.rglob("sub-*_timeseries.json")))
        with contextlib.suppress(FileNotFoundError):  # it is complete
            found = [(path.stat().st_mtime, path.name) for path in folder.rglob("*.unfinished")]
            begun = {name.partition("_")[0]: start for start, name in sorted(found, reverse=True)}
    psutil.Process(pid).kill()
    return {"pid": pid, "time": time.time(), "begun": begun}
