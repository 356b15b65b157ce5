"""
The whole experiment, in one script
===================================

All ways to extract the time series of regions, one after the other in one process. Run it
under mprof, which draws the memory of the process and of its workers over time:

.. code-block:: bash

    mprof run --include-children --multiprocess whole_experiment.py
    mprof plot

Before each method the script rests for a moment, so that one can be told from the next.
With ``--pause 30`` mprof's own plot is easy to read. The workers of one method are shut
down before the next begins: joblib keeps them for five minutes otherwise, and they would
lie under the next method's peak.

A method that might not fit into memory is not run, and one that is about to use it up is stopped.
The script says so and goes on with the next method. ``MEMORY=unlimited`` runs all.

The table ``METHODS`` of :mod:`beyond_the_masker.model` lists the methods and the pages with
their functions.

The script writes a table of when each method began and ended, on the clock of mprof's file.

**Recommended next:** :ref:`sphx_glr_auto_examples_3_cost_plot_memory_over_time.py`, which labels the
curve with that table.
"""

import argparse
import csv
import datetime
import functools
import importlib
import json
import math
import os
import platform
import statistics
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import psutil
from joblib.externals.loky import get_reusable_executor
from nilearn.maskers import NiftiMasker

from beyond_the_masker import model as memory_model
from beyond_the_masker.budget import (
    TYPICAL,
    allowed_mib,
    calibrate,
    guard,
    read_header,
    this_machine,
)
from beyond_the_masker.data import atlas_to_masks, get_atlas_path, prepare, prepare_fmri
from beyond_the_masker.maskers import stream_nifti_maskers
from beyond_the_masker.meter import (
    HAS_PSS,
    MIB,
    Watchdog,
    in_seconds,
    measure,
    measure_within,
    remove_joblib_folders,
)
from beyond_the_masker.model import Prediction
from beyond_the_masker.options import read_options
from beyond_the_masker.pages import load_page
from beyond_the_masker.running import run_method


class Method(NamedTuple):
    """One of the ways: a function, how it is called, and its name in figures and tables."""

    name: str
    function: Callable
    mode: str  # "single": the first mask; "parallel": all masks; "loop", "one pass": all, no worker
    in_memory: bool = False  # images whose data are in memory, instead of paths
    workers: bool = False  # whether they are processes


def find_method(name, model):
    """Take the function of a method out of its example.

    Parameters
    ----------
    name : str
        A key of `memory_model.METHODS`: the method's name, a comma, and its mode.
    model : memory_model.Model

    Returns
    -------
    Method

    Raises
    ------
    ValueError
        The name does not end with the mode; there is no such example; or it does not have
        the function.
    """
    place = f"METHODS of memory_model.py has {name!r}"
    if model.mode not in ("single", "loop", "parallel", "one pass"):
        raise ValueError(f"{place} with the mode {model.mode!r}, which is none.")
    if not name.endswith(f", {model.mode}"):
        raise ValueError(f"{place}, whose name must end with its mode: ', {model.mode}'.")
    load = load_page if model.module.startswith("plot_") else importlib.import_module
    try:
        module = load(model.module)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{place}, and there is no module {model.module}.") from error
    function = getattr(module, model.function, None)
    if function is None:
        raise ValueError(f"{place}, and {model.module} has no function {model.function!r}.")
    name = name.removesuffix(f", {model.mode}")
    return Method(name, function, model.mode, model.in_memory, bool(model.imports))


# What a method raises on a machine without room for it: no memory, a full disk, a killed worker.
OUT_OF_ROOM = (MemoryError, OSError, BrokenExecutor)

METHODS = [find_method(name, model) for name, model in memory_model.METHODS.items()]


def title(method):
    """Give the name by which the model of memory knows a method."""
    return f"{method.name}, {method.mode}"


def run(method, fmri_path, mask_paths, n_jobs=None):
    """Do the whole work of one method, from the files to the arrays.

    Parameters
    ----------
    method : Method
    fmri_path : path
        4D image.
    mask_paths : list of paths
        3D masks on its grid.
    n_jobs : int, optional
        Workers of a parallel method; one for each mask by default.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for the first mask if the mode is single, else one for each mask.
    """
    how = method.function, method.mode, method.in_memory
    return run_method(*how, fmri_path, mask_paths, n_jobs, method.workers)


def main(n_images, n_regions, pause=1, phases_path="whole_experiment_phases.csv"):
    """Run all methods in sequence.

    Parameters
    ----------
    n_images : int
        Subjects in the image.
    n_regions : int
        Masks, and workers of the parallel methods.
    pause : float
        Seconds to rest before each method.
    phases_path : str or pathlib.Path
        Where to write when each method began and ended, in seconds as `time.time` has them.
    """
    fmri_path = prepare_fmri(n_images)
    _, mask_paths = atlas_to_masks(get_atlas_path(), fmri_path, n_regions)
    phases = []
    for number, method in enumerate(METHODS, start=1):
        time.sleep(pause)
        print(f"{number} of {len(METHODS)}: {title(method)} ...", flush=True)
        began = time.time()
        status, reason, predicted_mib = run_guarded(method, fmri_path, mask_paths)
        if status == "predicted":
            time.sleep(max(pause, 0.5))  # a place in the figure
        ended = time.time()
        get_reusable_executor().shutdown(wait=True)
        if status == "stopped":
            remove_joblib_folders(os.getpid())
        phase = (method.name, method.mode, f"{began:.3f}", f"{ended:.3f}")
        phases.append((*phase, status, f"{predicted_mib:.1f}", reason))
        print(f"    {reason or f'done in {ended - began:.1f} s'}", flush=True)
    time.sleep(pause)
    with open(phases_path, "w", newline="") as file:
        csv.writer(file).writerows([PHASE_COLUMNS, *phases])
    print(f"The times of all methods are in {phases_path}.")


PHASE_COLUMNS = ("method", "mode", "began", "ended", "status", "predicted_mib", "reason")


def run_guarded(method, fmri_path, mask_paths):
    """Run a method if it fits, and stop it when the machine is about to run out of memory.

    Parameters
    ----------
    method : Method
    fmri_path : path
    mask_paths : list of paths

    Returns
    -------
    status : {"measured", "predicted", "stopped"}
        Whether it was run to its end, not run, or stopped.
    reason : str
        Why it was not run, or was stopped.
    predicted_mib : float
        The likely peak of memory in use, as the model predicts it.
    """
    prediction, reason = guard(title(method), fmri_path, mask_paths, len(mask_paths))
    if reason:
        return "predicted", f"Not run. {reason}", prediction.peak_mib
    watchdog = Watchdog(os.getpid(), allowed_mib()[1])
    try:
        with watchdog:
            run(method, fmri_path, mask_paths)
    except BaseException as error:
        if not watchdog.reason and not isinstance(error, OUT_OF_ROOM):
            raise
        reason = f"It was {watchdog.reason}" if watchdog.reason else f"It was stopped: {error}"
        return "stopped", reason, prediction.peak_mib
    return "measured", "", prediction.peak_mib


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Run all ways to extract regions, one after the other.",
        epilog="What is not given here is read from the environment; see options.py.",
    )
    parser.add_argument("--n-images", metavar="N", help="subjects in the image")
    parser.add_argument("--n-regions", metavar="N", help="masks, and workers")
    parser.add_argument("--pause", metavar="SECONDS", help="rest before each method")
    parser.add_argument("--phases", default="whole_experiment_phases.csv", help="output file")
    arguments = parser.parse_args()
    given = {"N_IMAGES": arguments.n_images, "N_REGIONS": arguments.n_regions}
    given = {name: value for name, value in (given | {"PAUSE": arguments.pause}).items() if value}
    try:
        options = read_options({**os.environ, **given})
        main(options.n_images, options.n_regions, options.pause, arguments.phases)
    except (ValueError, ConnectionError) as error:
        sys.exit(str(error))


# What the measurements depend on, besides Python itself.
PACKAGES = (
    *("nilearn", "nibabel", "numpy", "scipy", "joblib", "memory_profiler", "psutil"),
    "isal",  # there is a fallback, which takes longer
)

COLUMNS = (
    *("method", "function", "mode", "n_jobs", "image_mib", "n_masks"),
    *("n_runs", "before_mib", "peak_mib", "peak_mib_min", "peak_mib_max"),
    *("peak_file_mib", "peak_pss_mib", "peak_rss_mib"),
    *("seconds", "seconds_min", "seconds_max", "identical", "status", "reason"),
)
N_RUNS = 3  # of a method with workers


def prepare_all():
    """Prepare image and masks, the reference arrays, and the folder for measurements.

    Returns
    -------
    fmri_path : pathlib.Path
    mask_paths : list of pathlib.Path
    reference : list of arrays of shape (n_timepoints, n_voxels)
        NiftiMasker's array for each mask. If the image does not fit into memory, NiftiMasker
        gets blocks of volumes.
    image_mib : float
        Size of the image's data in memory.
    """
    options = read_options()
    fmri_path = prepare_fmri(options.n_images)
    read_header(fmri_path)  # refuses what is not a complete 4D image
    mask_imgs, mask_paths = atlas_to_masks(get_atlas_path(), fmri_path, options.n_regions)
    if this_machine() is TYPICAL:
        calibrate()
    image_mib = _describe(options, fmri_path, mask_imgs)

    def fill(folder):
        reason = guard("NiftiMasker, path, loop", fmri_path, mask_paths, 1)[1]
        if not reason:
            trace = measure(reference_series, fmri_path, mask_paths)
            reason = why_stopped(trace)
        if reason:
            print(f"The reference comes from blocks of volumes: {reason}", file=sys.__stderr__)
            trace = measure(stream_nifti_maskers, fmri_path, mask_paths)
        for i, series in enumerate(trace.result()):
            np.save(folder / f"{i:03d}.npy", series)

    stamp = [str(fmri_path), fmri_path.stat().st_size, fmri_path.stat().st_mtime_ns]
    used = [version(package) for package in ("nilearn", "nibabel", "numpy")]
    folder = prepare("reference", [stamp, [str(path) for path in mask_paths], used], fill)
    return fmri_path, mask_paths, [np.load(path) for path in sorted(folder.iterdir())], image_mib


def reference_series(fmri_path, mask_paths):
    """Extract each mask with NiftiMasker itself, one after the other.

    Parameters
    ----------
    fmri_path : path
    mask_paths : list of paths

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
    """
    return [
        NiftiMasker(mask_img=mask_path, standardize=None).fit_transform(fmri_path)
        for mask_path in mask_paths
    ]


def identical(series, reference):
    """Tell whether all arrays are the same, in shape, type and every value.

    Parameters
    ----------
    series, reference : lists of arrays
        `series` may be shorter: a single run has one mask.

    Returns
    -------
    bool
    """
    return len(series) > 0 and all(
        a.dtype == b.dtype.newbyteorder("=") and np.array_equal(a, b, equal_nan=True)
        for a, b in zip(series, reference, strict=False)
    )


def measure_methods(*functions):
    """Measure every method of the experiment that uses one of some functions.

    Parameters
    ----------
    *functions : callable
        Functions that `whole_experiment.METHODS` names.

    Returns
    -------
    dict of str to peak_memory.Trace or NotRun
        In the order of `METHODS`: the run with the median peak. Its row is in the folder
        ``measured``. A method that might not fit into memory is not run, and one that uses it up
        is stopped.
    """
    fmri_path, mask_paths, reference, image_mib = prepare_all()
    names = {function.__name__ for function in functions}
    outcomes = {}
    for number, method in enumerate(METHODS, start=1):
        if method.function.__name__ not in names:
            continue
        name = title(method)
        n_masks = 1 if method.mode == "single" else len(mask_paths)
        row = {
            "method": method.name,
            "function": method.function.__name__,
            "mode": method.mode,
            "n_jobs": n_masks if method.mode == "parallel" else 1,
            "image_mib": f"{image_mib:.3f}",
            "n_masks": n_masks,
        }
        prediction, reason = guard(name, fmri_path, mask_paths, len(mask_paths))
        if reason:
            outcome = NotRun(prediction, reason)
            row |= outcome.row()
            print(outcome)
        else:
            how = method.function, method.mode, method.in_memory
            call = functools.partial(
                run_method, *how, fmri_path, mask_paths, workers=method.workers
            )
            call.__name__ = name
            progress = f"[{number} of {len(METHODS)}] {name}"
            outcome, runs = repeat(call, N_RUNS if prediction.n_jobs else 1, progress)
            row |= _measured_row(outcome, runs, n_masks, reference)
            file_name = name.lower().replace(", ", "-").replace(" ", "-")
            outcome.save(Path(read_options().measured) / "traces" / f"{file_name}.dat")
            print(f"{name}\n    {in_a_line(row)}")
        _keep(row)
        outcomes[name] = outcome
    return outcomes


def repeat(call, n_runs, progress):
    """Measure a call several times, each time in a fresh process.

    Parameters
    ----------
    call : callable
    n_runs : int
    progress : str
        What to print on standard error before each run.

    Returns
    -------
    outcome : peak_memory.Trace
        The run with the median peak; if a run was stopped, that one.
    runs : list of peak_memory.Trace
        All runs; if a run was stopped, that one alone.
    """
    runs = []
    for number in range(1, n_runs + 1):
        which = f", run {number} of {n_runs}" if n_runs > 1 else ""
        print(f"{progress}{which} ...", file=sys.__stderr__, flush=True)
        trace = measure_within(allowed_mib()[1], call)
        if why_stopped(trace):
            return trace, [trace]
        trace.result()  # raises what the method has raised
        runs.append(trace)
    return sorted(runs, key=lambda trace: trace.peak_mib)[n_runs // 2], runs


def why_stopped(trace):
    """Return why the machine had no room for a call; an empty string if there is no such reason.

    Parameters
    ----------
    trace : peak_memory.Trace

    Returns
    -------
    str
    """
    error = trace.exception
    killed = isinstance(error, RuntimeError) and any(s in str(error) for s in ("SIGKILL", "SIGBUS"))
    return (str(error) or repr(error)) if killed or isinstance(error, OUT_OF_ROOM) else ""


def in_a_line(row):
    """Return the numbers of a method that was run, as its page prints them.

    Parameters
    ----------
    row : dict of str to str
        Of ``summary.csv``.

    Returns
    -------
    str
    """
    several = int(row["n_runs"]) > 1
    mib = {key: f"{float(value):,.0f}" for key, value in row.items() if key.endswith("_mib")}
    low, high = (float(row[f"peak_mib_{end}"]) for end in ("min", "max"))
    peaks = f" ({low:,.0f} to {high:,.0f} in {row['n_runs']} runs)" if several else ""
    line = f"peak {mib['peak_mib']} MiB{peaks}, {mib['before_mib']} MiB before the call"
    if row["status"] == "stopped":
        return f"{line}; {row['reason']}"
    low, high = (in_seconds(float(row[f"seconds_{end}"])) for end in ("min", "max"))
    seconds = f" ({low} to {high})" if several else ""
    return (
        f"{line}; {in_seconds(float(row['seconds']))}{seconds}\n"
        f"    identical to NiftiMasker: {row['identical']}"
    )


class NotRun(NamedTuple):
    """What stands in place of a trace for a method that may not fit into memory."""

    prediction: Prediction
    reason: str

    def row(self):
        """Return the columns of ``summary.csv`` that a measurement would fill."""
        not_measured = ("peak_file_mib", "peak_pss_mib", "peak_rss_mib", "identical")
        return {
            "n_runs": 0,
            "before_mib": f"{self.prediction.parts[0].mib:.3f}",
            "peak_mib": f"{self.prediction.peak_mib:.3f}",
            "peak_mib_min": f"{self.prediction.low_mib:.3f}",
            "peak_mib_max": f"{self.prediction.most_mib:.3f}",
            **dict.fromkeys((*not_measured, "seconds", "seconds_min", "seconds_max"), ""),
            **{"status": "predicted", "reason": f"Not run. {self.reason}"},
        }

    def __str__(self):
        row = self.row()
        low, peak, high = (float(row[f"peak_mib{end}"]) for end in ("_min", "", "_max"))
        between = f" ({low:,.0f} to {high:,.0f})" if low < high else ""
        return (
            f"{self.prediction.method}\n    not run: {self.reason}\n"
            f"    predicted peak {peak:,.0f} MiB{between}"
        )

    def plot(self, ax, image_mib=None, title=None):
        """Draw the predicted peak, hatched, where a trace would be.

        Parameters
        ----------
        ax : matplotlib.axes.Axes
        image_mib : float, optional
            Size of the image in memory, drawn as a line.
        title : str, optional
            The method's name by default.

        Returns
        -------
        matplotlib.axes.Axes
        """
        peak = float(self.row()["peak_mib"])
        ax.barh(peak / 2, 1, peak, color="white", edgecolor="0.4", hatch="xx", lw=0)
        ax.text(
            *(0.5, 0.5, "\n".join(textwrap.wrap(f"Not run. {self.reason}", 34))),
            transform=ax.transAxes,
            bbox={"facecolor": "white", "linewidth": 0},
            ha="center",
            va="center",
        )
        if image_mib:
            ax.axhline(image_mib, color="#cc79a7", label="the image")
        ax.set(xlim=(0, 1), xticks=[], ylabel="MiB")
        title = title or self.prediction.method
        ax.set_title(f"{title}:\npredicted peak {peak:,.0f} MiB", loc="left", fontsize=11)
        return ax

    def in_words(self, title=None):
        """Describe what is drawn, with its numbers."""
        peak = float(self.row()["peak_mib"])
        return f"{title or self.prediction.method}: not run, predicted peak {peak:,.0f} MiB."


def _measured_row(outcome, runs, n_masks, reference):
    """Return the columns of ``summary.csv`` that come from measurements.

    The memory before the call, file pages, PSS and RSS are those of the run with the median peak,
    which is drawn.
    """
    reason = why_stopped(outcome)
    peaks, seconds = ([getattr(run, key) for run in runs] for key in ("peak_mib", "seconds"))
    other = ("peak_file_mib", "peak_pss_mib", "peak_rss_mib")
    same = not reason and all(
        len(series) == n_masks and identical(series, reference)
        for series in (run.result() for run in runs)
    )
    times = {
        "seconds": f"{statistics.median(seconds):.4f}",
        "seconds_min": f"{min(seconds):.4f}",
        "seconds_max": f"{max(seconds):.4f}",
        "identical": str(same).lower(),
    }
    return {
        "n_runs": len(runs),
        "before_mib": f"{outcome.before_mib:.3f}",
        "peak_mib": f"{outcome.peak_mib:.3f}",
        "peak_mib_min": f"{min(peaks):.3f}",
        "peak_mib_max": f"{max(peaks):.3f}",
        **{key: f"{getattr(outcome, key):.3f}" for key in other},
        **(dict.fromkeys(times, "") if reason else times),
        "status": "stopped" if reason else "measured",
        "reason": reason,
    }


def complete_summary():
    """Return the rows of all methods, after measuring those that are missing.

    Returns
    -------
    list of dict of str to str
        The rows of ``summary.csv``.
    """
    prepare_all()
    there = {(row["method"], row["mode"]) for row in read_summary()}
    missing = [m.function for m in METHODS if (m.name, m.mode) not in there]
    if missing:
        measure_methods(*missing)
    return read_summary()


def read_summary():
    """Read ``summary.csv``: a list with a dict for each row.

    It is empty if there is no such file, or one with other columns, from another version.
    """
    path = Path(read_options().measured) / "summary.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        return list(reader) if tuple(reader.fieldnames or ()) == COLUMNS else []


def describe_machine():
    """Return what measurements depend on: the machine, and the versions of packages."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": usable_cores(),
        "memory_gib": psutil.virtual_memory().total / 2**30,
        "metric": "memory in use" if HAS_PSS else "USS",
        "python": platform.python_version(),
        **{package: version_of(package) for package in PACKAGES},
    }


def usable_cores():
    """Count the cores that this process may use, or all where the system does not say."""
    if hasattr(psutil.Process, "cpu_affinity"):  # not on macOS
        return len(psutil.Process().cpu_affinity())
    return os.cpu_count()


def version_of(package):
    """Return the version of a package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _keep(row):
    """Put a method's row, in the order of METHODS, into the folder."""
    folder = Path(read_options().measured)
    rows = {(r["method"], r["mode"]): r for r in read_summary()}
    rows[row["method"], row["mode"]] = row
    ordered = [rows[m.name, m.mode] for m in METHODS if (m.name, m.mode) in rows]
    unfinished = folder / "summary.csv.unfinished"
    with open(unfinished, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(ordered)
    unfinished.replace(folder / "summary.csv")


def _describe(options, fmri_path, mask_imgs):
    """Write experiment.json; empty the folder first if image, machine or columns are others.

    Returns
    -------
    float
        Size of the image's data in memory, in MiB.
    """
    folder = Path(options.measured)
    fmri_img = nib.load(fmri_path)
    dtype = fmri_img.dataobj[..., :0].dtype  # scale factors applied; nothing is read
    image_mib = math.prod(fmri_img.shape) * dtype.itemsize / MIB
    subject = {
        "name": fmri_path.name,
        "source": "own" if options.fmri else options.data,
        "path": os.path.relpath(fmri_path, options.cache) if not options.fmri else options.fmri,
        "changed": fmri_path.stat().st_mtime,
        "shape": list(fmri_img.shape),
        "dtype": str(dtype),
        "stored_dtype": str(fmri_img.get_data_dtype()),
        "on_disk_mib": fmri_path.stat().st_size / MIB,
        "in_memory_mib": image_mib,
        "n_images": None if options.fmri else options.n_images,
        "n_masks": len(mask_imgs),
        "mask_voxels": [int(np.count_nonzero(img.dataobj)) for img in mask_imgs],
    }
    machine = describe_machine()
    path, summary = folder / "experiment.json", folder / "summary.csv"
    if path.exists() and (read_summary() or not summary.exists()):
        known = json.loads(path.read_text())
        if (known.get("image"), known.get("machine")) == (subject, machine):
            return image_mib
    for pattern in ("*.csv", "*.dat", "*.svg", "*.json", "traces/*.dat"):
        for stale in folder.glob(pattern):
            stale.unlink()
    (folder / "traces").mkdir(parents=True, exist_ok=True)
    today = datetime.date.today().isoformat()
    unfinished = folder / "experiment.json.unfinished"
    unfinished.write_text(json.dumps({"image": subject, "machine": machine, "date": today}))
    unfinished.replace(path)
    return image_mib


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Prepare image, masks and reference; with --measure, measure what is missing."
    )
    parser.add_argument("--measure", action="store_true", help="measure every method")
    prepare_or_measure = complete_summary if parser.parse_args().measure else prepare_all
    try:
        prepare_or_measure()
    except (ValueError, OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        sys.exit(str(error))
