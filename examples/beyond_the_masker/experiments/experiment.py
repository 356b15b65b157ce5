"""Measure every method, and keep a row of ``summary.csv`` and a trace of each.

All measurements are in the folder of the option MEASURED, with ``experiment.json``, which describes
the image and the machine. A method that might not fit into memory is predicted instead of run.
"""

import csv
import datetime
import itertools
import json
import os
import platform
import statistics
import sys
import warnings
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import psutil
from nilearn.maskers import NiftiLabelsMasker, NiftiMasker

from beyond_the_masker.experiments.methods import all_methods
from beyond_the_masker.extract.checks import read_volumes, size_in_bytes, value_type
from beyond_the_masker.files import write_bytes
from beyond_the_masker.inputs.cache import prepare, remove_old, stamp_of
from beyond_the_masker.inputs.data import (
    atlas_to_labels,
    atlas_to_masks,
    get_atlas_path,
    n_volumes_within,
    prepare_fmri,
)
from beyond_the_masker.meter import HAS_PSS, MIB, in_seconds, measure_within
from beyond_the_masker.options import read_options
from beyond_the_masker.predict.budget import allowed_mib, guard
from beyond_the_masker.predict.headers import read_header
from beyond_the_masker.predict.imports import TYPICAL, calibrate, this_machine
from beyond_the_masker.predict.model import AVERAGES, Prediction

# Raised on a machine without enough memory or disk: also when the kernel kills a worker.
OUT_OF_MEMORY = (MemoryError, OSError, BrokenExecutor)

# What the measurements depend on, besides Python itself.
PACKAGES = ("nilearn", "nibabel", "numpy", "scipy", "joblib", "memory_profiler", "psutil", "isal")

COLUMNS = (
    *("method", "function", "mode", "n_jobs", "image_mib", "n_masks"),
    *("n_runs", "before_mib", "peak_mib", "peak_mib_min", "peak_mib_max"),
    *("peak_file_mib", "peak_pss_mib", "peak_rss_mib"),
    *("seconds", "seconds_min", "seconds_max", "identical", "status", "reason"),
)
N_RUNS = 3  # of a method with workers


def prepare_all():
    """Prepare the image, the masks, the reference arrays and the folder of measurements.

    Returns
    -------
    fmri_path, mask_paths : pathlib.Path, list of pathlib.Path
    reference : list of arrays of shape (n_timepoints, n_voxels)
        NiftiMasker's array for each mask.
    image_mib : float
        Size of the image's data in memory.
    """
    options = read_options()
    fmri_path = prepare_fmri(options.n_images)
    read_header(fmri_path)  # raises unless it is a complete 4D image
    mask_imgs, mask_paths = atlas_to_masks(get_atlas_path(), fmri_path, options.n_regions)
    if this_machine() is TYPICAL:
        calibrate()
    image = describe_image(options, fmri_path, mask_imgs)
    start_folder(Path(options.measured), image)
    remove_old()
    return fmri_path, mask_paths, prepare_reference(fmri_path, mask_paths), image["in_memory_mib"]


def prepare_reference(fmri_path, mask_paths, averages=False):
    """Return NiftiMasker's array for each mask, from the cache if it has them.

    With `averages`, it is a list of NiftiLabelsMasker's array for all regions.
    """
    plain = {"standardize": None, "reports": False}
    maskers = [NiftiMasker(path, **plain) for path in mask_paths]
    if averages:
        maskers = [NiftiLabelsMasker(atlas_to_labels(mask_paths, fmri_path), **plain)]

    def fill(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the methods' own calls are not silenced
            for number, series in enumerate(in_blocks(maskers, fmri_path)):
                np.save(folder / f"{number}.npy", series)

    used = [version(package) for package in ("nilearn", "nibabel", "numpy")]
    depends_on = [stamp_of(fmri_path), [str(path) for path in mask_paths], used]
    folder = prepare("averages" if averages else "reference", depends_on, fill)
    return [np.load(folder / f"{number}.npy") for number in range(len(maskers))]


def in_blocks(maskers, fmri_path, block_mib=16):
    """Yield each masker's array of an image that is read in blocks of volumes, once."""
    img = nib.load(fmri_path)
    volumes, n_volumes = read_volumes(img), n_volumes_within(img, block_mib)
    parts = []
    for masker in maskers:
        masker.fit()
    while block := list(itertools.islice(volumes, n_volumes)):
        data = np.stack(block, axis=3)
        block_img = nib.Nifti1Image(data, img.affine, dtype=data.dtype)
        parts.append([masker.transform(block_img) for masker in maskers])
    yield from map(np.concatenate, zip(*parts, strict=True))


def show_progress(text):
    """Print on the real standard error, which sphinx-gallery does not capture."""
    print(text, file=sys.__stderr__, flush=True)


def measure_methods(*functions):
    """Measure every method that uses one of some functions, and keep its row and its trace.

    Return a dict by the method's title, in the order of METHODS: the trace of the run with the
    median peak, or `NotRun`.
    """
    fmri_path, mask_paths, _, image_mib = prepare_all()
    names = {function.__name__ for function in functions}
    methods, outcomes = all_methods(), {}
    for number, method in enumerate(methods, start=1):
        if method.function.__name__ in names:
            progress = f"[{number} of {len(methods)}] {method.title}"
            outcome, row = measure_method(method, fmri_path, mask_paths, progress)
            keep_row({"image_mib": f"{image_mib:.3f}"} | row)
            outcomes[method.title] = outcome
    return outcomes


def measure_method(method, fmri_path, mask_paths, progress):
    """Measure one method, or predict it if it might not fit; return the outcome and its row."""
    n_masks = 1 if method.mode == "single" else len(mask_paths)
    row = {
        "method": method.name,
        "function": method.function.__name__,
        "mode": method.mode,
        "n_jobs": n_masks if method.mode == "parallel" else 1,
        "n_masks": n_masks,
    }
    prediction, reason = guard(method.title, fmri_path, mask_paths, len(mask_paths))
    if reason:
        outcome = NotRun(prediction, reason)
        print(outcome)
        return outcome, row | outcome.row()
    n_runs = N_RUNS if prediction.n_jobs else 1
    outcome, runs = repeat(method.call(fmri_path, mask_paths), n_runs, progress)
    reference = prepare_reference(fmri_path, mask_paths, method.mode == AVERAGES)
    row |= measured_row(outcome, runs, reference[:n_masks])
    file_name = method.title.lower().replace(", ", "-").replace(" ", "-")
    outcome.save(Path(read_options().measured) / "traces" / f"{file_name}.dat")
    print(f"{method.title}\n    {in_a_line(row)}")
    return outcome, row


def repeat(call, n_runs, progress):
    """Measure a call several times, each time in a fresh process.

    Return the run with the median peak, and a list of all runs; or a run that was stopped, alone.
    """
    runs = []
    for number in range(1, n_runs + 1):
        which = f", run {number} of {n_runs}" if n_runs > 1 else ""
        show_progress(f"{progress}{which} ...")
        trace = measure_within(allowed_mib()[1], call)
        if why_stopped(trace):
            return trace, [trace]
        trace.result()  # raises the method's own error
        runs.append(trace)
    return sorted(runs, key=lambda trace: trace.peak_mib)[n_runs // 2], runs


def why_stopped(trace):
    """Return why the machine had no room for a call, or an empty string."""
    error = trace.exception
    killed = isinstance(error, RuntimeError) and any(s in str(error) for s in ("SIGKILL", "SIGBUS"))
    return (str(error) or repr(error)) if killed or isinstance(error, OUT_OF_MEMORY) else ""


def measured_row(outcome, runs, reference):
    """Return the columns of ``summary.csv`` that come from measurements.

    The columns without a range are those of `outcome`: the run with the median peak.
    """
    reason = why_stopped(outcome)
    row = {"n_runs": len(runs), "status": "stopped" if reason else "measured", "reason": reason}
    for key in ("before_mib", "peak_file_mib", "peak_pss_mib", "peak_rss_mib"):
        row[key] = f"{getattr(outcome, key):.3f}"
    row |= median_and_range("peak_mib", [run.peak_mib for run in runs], 3)
    if reason:
        return row
    same = all(identical(run.result(), reference) for run in runs)
    row |= median_and_range("seconds", [run.seconds for run in runs], 6)
    return row | {"identical": str(same).lower()}


def median_and_range(column, values, digits):
    """Return three columns: the median, the smallest and the largest of some values."""
    numbers = {"": statistics.median(values), "_min": min(values), "_max": max(values)}
    return {f"{column}{end}": f"{number:.{digits}f}" for end, number in numbers.items()}


def identical(series, reference):
    """Return whether two lists of arrays agree: in length, and in shape, type and every bit.

    The order of bytes in the reference does not matter. Without a reference nothing is identical.
    """
    return 0 < len(series) == len(reference) and all(map(same_bits, series, reference))


def same_bits(array, reference):
    """Return whether two arrays agree in shape, type and every bit."""
    reference = reference.astype(reference.dtype.newbyteorder("="), copy=False)
    if (array.shape, array.dtype) != (reference.shape, reference.dtype):
        return False
    as_bits = f"u{array.itemsize}"
    return np.array_equal(array.view(as_bits), reference.view(as_bits))


def in_a_line(row):
    """Return the numbers of a measured or stopped method's row as text."""

    def span(key, text):
        return " to ".join(text(float(row[f"{key}_{end}"])) for end in ("min", "max"))

    several = int(row["n_runs"]) > 1
    before, peak = (f"{float(row[key]):,.0f} MiB" for key in ("before_mib", "peak_mib"))
    peaks = f" ({span('peak_mib', '{:,.0f}'.format)} in {row['n_runs']} runs)" if several else ""
    line = f"peak {peak}{peaks},\n    {before} before the call; "
    if row["status"] == "stopped":
        return line + row["reason"]
    line += in_seconds(float(row["seconds"])) + f" ({span('seconds', in_seconds)})" * several
    masker = "NiftiLabelsMasker" if row["mode"] == AVERAGES else "NiftiMasker"
    return f"{line}\n    identical to {masker}: {row['identical']}"


class NotRun(NamedTuple):
    """The outcome of a method that might not fit into memory, in place of a trace."""

    prediction: Prediction
    reason: str

    def row(self):
        """Return the columns of ``summary.csv`` that a measurement would fill."""
        return {
            "n_runs": 0,
            "before_mib": f"{self.prediction.parts[0].mib:.3f}",
            "peak_mib": f"{self.prediction.peak_mib:.3f}",
            "peak_mib_min": f"{self.prediction.low_mib:.3f}",
            "peak_mib_max": f"{self.prediction.most_mib:.3f}",
            "status": "predicted",
            "reason": f"Not run. {self.reason}",
        }

    def __str__(self):
        return (
            f"{self.prediction.method}\n    not run: {self.reason}\n"
            f"    predicted peak {self.prediction.peak_mib:,.0f} MiB"
        )


def complete_summary():
    """Return all rows of ``summary.csv``, after measuring the methods that have none."""
    prepare_all()
    known = {(row["method"], row["mode"]) for row in read_summary()}
    missing = [m.function for m in all_methods() if (m.name, m.mode) not in known]
    if missing:
        measure_methods(*missing)
    return read_summary()


def read_summary():
    """Return the rows of ``summary.csv``, each a dict of str to str.

    The list is empty if there is no such file, one of another version with other columns, or one
    that is no text. A row that was cut off is left out.
    """
    path = Path(read_options().measured) / "summary.csv"
    with suppress(FileNotFoundError, UnicodeDecodeError, csv.Error), open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = reader if tuple(reader.fieldnames or ()) == COLUMNS else ()
        return [row for row in rows if None not in row.values()]
    return []


def keep_row(row):
    """Write a method's row into ``summary.csv``, in the order of METHODS."""
    rows = {(r["method"], r["mode"]): r for r in (*read_summary(), row)}
    keys = [(method.name, method.mode) for method in all_methods()]
    table = pd.DataFrame([rows[key] for key in keys if key in rows], columns=COLUMNS)
    path = Path(read_options().measured) / "summary.csv"
    write_bytes(path, table.to_csv(index=False).encode())


def describe_image(options, fmri_path, mask_imgs):
    """Return the description of the image and the masks for ``experiment.json``."""
    fmri_img = nib.load(fmri_path)
    return {
        "name": Path(options.fmri or fmri_path).name,
        "source": "own" if options.fmri else options.data,
        "path": options.fmri or os.path.relpath(fmri_path, options.cache),
        "changed": fmri_path.stat().st_mtime,
        "shape": list(fmri_img.shape),
        "dtype": str(value_type(fmri_img)),
        "stored_dtype": str(fmri_img.get_data_dtype()),
        "on_disk_mib": fmri_path.stat().st_size / MIB,
        "in_memory_mib": size_in_bytes(fmri_img) / MIB,
        "n_images": None if options.fmri else options.n_images,
        "n_masks": len(mask_imgs),
        "mask_voxels": [int(np.count_nonzero(img.dataobj)) for img in mask_imgs],
    }


def start_folder(folder, image):
    """Empty the folder of measurements and write ``experiment.json``, unless both still apply.

    They apply if the image, the machine and the columns of ``summary.csv`` are the same.
    """
    machine = describe_machine()
    path, summary = folder / "experiment.json", folder / "summary.csv"
    with suppress(OSError, ValueError, LookupError, TypeError):  # missing or damaged
        known = json.loads(path.read_text())
        same = (known["image"], known["machine"]) == (image, machine)
        if same and (read_summary() or not summary.exists()):
            return
    patterns = ("*.csv", "*.dat", "*.svg", "*.json", "*.html", "traces/*.dat")
    for pattern in (*patterns, "*.unfinished", "traces/*.unfinished"):
        for stale in folder.glob(pattern):
            stale.unlink()
    (folder / "traces").mkdir(parents=True, exist_ok=True)
    date = datetime.date.today().isoformat()
    content = {"image": image, "machine": machine, "date": date}
    write_bytes(path, json.dumps(content).encode())


def describe_machine():
    """Return what measurements depend on: the machine, and the versions of packages."""
    known = hasattr(psutil.Process, "cpu_affinity")  # not on macOS
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(psutil.Process().cpu_affinity()) if known else os.cpu_count(),
        "memory_gib": psutil.virtual_memory().total / 2**30,
        "metric": "memory in use" if HAS_PSS else "USS",
        "python": platform.python_version(),
        **{package: version_of(package) for package in PACKAGES},
    }


def version_of(package):
    """Return the version of a package, or ``"not installed"``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
