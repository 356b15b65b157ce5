"""
Measuring the methods, and keeping what was measured
====================================================

What the pages about the methods share: each method runs under the meter, its arrays are
compared with those of NiftiMasker, and a row for it goes into the folder ``measured``, from
which the chapter takes its table, its figures and the numbers in its text:

``summary.csv``
    a row for each method: :term:`peaks <peak>` and the level before the call in MiB,
    seconds, and whether the arrays are identical to NiftiMasker's;
``traces/``
    a file for each method, in mprof's format;
``experiment.json``
    the image, the masks, the machine and the versions of what was used.
"""

import argparse
import csv
import datetime
import functools
import json
import math
import os
import platform
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import psutil
from nilearn.maskers import NiftiMasker

from memory_budget import (
    TYPICAL,
    allowed_mib,
    calibrate,
    guard,
    read_header,
    this_machine,
)
from memory_model import Prediction
from options import read_options
from peak_memory import HAS_PSS, MIB, measure, measure_within
from plot_large_image import atlas_to_masks, get_atlas_path, prepare, prepare_fmri
from plot_stream_masker import stream_nifti_maskers
from whole_experiment import METHODS, run, title

# What the measurements depend on, besides Python itself.
PACKAGES = (
    *("nilearn", "nibabel", "numpy", "scipy", "joblib", "memory_profiler", "psutil"),
    "isal",  # there is a fallback, which takes longer
)

COLUMNS = (
    *("method", "function", "mode", "n_jobs", "image_mib", "n_masks"),
    *("before_mib", "peak_pss_mib", "peak_rss_mib", "seconds", "identical", "status", "reason"),
)


def prepare_all():
    """Prepare image and masks, the reference arrays, and the folder for measurements.

    Returns
    -------
    fmri_path : pathlib.Path
    mask_paths : list of pathlib.Path
    reference : list of arrays of shape (n_timepoints, n_voxels)
        What NiftiMasker gives for each mask; where that does not fit into memory, what it gives
        for blocks of volumes.
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
        reason = guard("NiftiMasker, path, single", fmri_path, mask_paths, 1)[1]
        if reason:
            print(f"The reference comes from blocks of volumes: {reason}", file=sys.__stderr__)
        reference = stream_nifti_maskers if reason else reference_series
        for i, series in enumerate(measure(reference, fmri_path, mask_paths).result()):
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
        Functions that are named in `whole_experiment.METHODS`.

    Returns
    -------
    dict of str to peak_memory.Trace or NotRun
        In the order of `METHODS`; also written to the folder ``measured``. A method that may
        not fit into memory is not run, and one that uses it up is stopped.
    """
    fmri_path, mask_paths, reference, image_mib = prepare_all()
    names = {function.__name__ for function in functions}
    traces = {}
    for number, method in enumerate(METHODS, start=1):
        if method.function.__name__ not in names:
            continue
        print(f"[{number} of {len(METHODS)}] {title(method)} ...", file=sys.__stderr__, flush=True)
        n_masks = 1 if method.mode == "single" else len(mask_paths)
        row = {
            "method": method.name,
            "function": method.function.__name__,
            "mode": method.mode,
            "n_jobs": n_masks if method.mode == "parallel" else 1,
            "image_mib": f"{image_mib:.1f}",
            "n_masks": n_masks,
        }
        prediction, reason = guard(title(method), fmri_path, mask_paths, len(mask_paths))
        if reason:
            outcome = traces[title(method)] = NotRun(prediction, reason)
            row |= outcome.row()
        else:
            call = functools.partial(run, method, fmri_path, mask_paths)
            call.__name__ = title(method)
            outcome = traces[title(method)] = measure_within(allowed_mib()[1], call)
            row |= _measured_row(outcome, n_masks, reference)
            name = title(method).lower().replace(", ", "-").replace(" ", "-")
            outcome.save(Path(read_options().measured) / "traces" / f"{name}.dat")
        _keep(row)
        print(outcome)
        if row["identical"]:
            print(f"    identical to NiftiMasker: {row['identical']}")
    return traces


class NotRun(NamedTuple):
    """What stands in place of a trace for a method that may not fit into memory."""

    prediction: Prediction
    reason: str

    def row(self):
        """Give the columns of ``summary.csv`` that a measurement would fill."""
        return {
            "before_mib": f"{self.prediction.parts[0].pss_mib:.1f}",
            "peak_pss_mib": f"{self.prediction.peak_pss_mib:.1f}",
            "peak_rss_mib": f"{self.prediction.peak_rss_mib:.1f}",
            **dict.fromkeys(("seconds", "identical"), ""),
            **{"status": "predicted", "reason": f"Not run. {self.reason}"},
        }

    def __str__(self):
        return (
            f"{self.prediction.method}\n    not run: {self.reason}\n"
            f"    predicted peak {self.prediction.peak_pss_mib:,.0f} MiB PSS, "
            f"{self.prediction.peak_rss_mib:,.0f} MiB RSS"
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
        peak = self.prediction.peak_pss_mib
        ax.barh(peak / 2, 1, peak, color="white", edgecolor="0.4", hatch="xx", lw=0)
        ax.text(
            *(0.5, 0.5, "\n".join(textwrap.wrap(f"Not run. {self.reason}", 34))),
            transform=ax.transAxes,
            bbox={"facecolor": "white", "linewidth": 0},
            ha="center",
            va="center",
        )
        if image_mib:
            ax.axhline(image_mib, color="#009e73", label="the image")
        ax.set(xlim=(0, 1), xticks=[], ylabel="MiB")
        title = title or self.prediction.method
        ax.set_title(f"{title}:\npredicted peak {peak:,.0f} MiB", loc="left", fontsize=11)
        return ax

    def in_words(self, title=None):
        """Say what is drawn, with its numbers."""
        peak = self.prediction.peak_pss_mib
        return f"{title or self.prediction.method}: not run, predicted peak {peak:,.0f} MiB."


def _measured_row(trace, n_masks, reference):
    """The columns of ``summary.csv`` that come from a measurement."""
    stopped = isinstance(trace.exception, MemoryError)
    series = [] if stopped else trace.result()
    same = len(series) == n_masks and identical(series, reference)
    return {
        "before_mib": f"{trace.before_mib:.1f}",
        "peak_pss_mib": f"{trace.peak_pss_mib:.1f}",
        "peak_rss_mib": f"{trace.peak_rss_mib:.1f}",
        "seconds": "" if stopped else f"{trace.seconds:.2f}",
        "identical": "" if stopped else str(same).lower(),
        "status": "stopped" if stopped else "measured",
        "reason": str(trace.exception) if stopped else "",
    }


def complete_summary():
    """Give the rows of all methods; measure those that were not measured yet.

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
    """Read ``summary.csv``: a list with a dict for each row, empty if there is none."""
    path = Path(read_options().measured) / "summary.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def plot_traces(traces, image_mib=None):
    """Draw several traces, one below the other, on the same scale of memory.

    Parameters
    ----------
    traces : dict of str to peak_memory.Trace or NotRun
    image_mib : float, optional
        Size of the image in memory, drawn as a line.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        *(len(traces), 1),
        figsize=(4.2, 2 + 2.5 * len(traces)),
        squeeze=False,
        layout="constrained",
    )
    known = {}
    for ax, (name, trace) in zip(axes.flat, traces.items(), strict=True):
        trace.plot(ax, image_mib, name)
        handles, labels = ax.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
        if ax.get_legend():
            ax.get_legend().remove()
    figure.legend(known.values(), known, loc="outside lower left", frameon=False)
    plt.setp(axes, ylim=(0, max(ax.get_ylim()[1] for ax in axes.flat)))
    figure.suptitle("Memory over time", fontsize=12)
    image = f" The image has {image_mib:,.0f} MiB." if image_mib else ""
    figure.set_label(
        f"Memory over time of {next(iter(traces)) if len(traces) == 1 else 'each method'}: the "
        "calling process and its workers stacked, the sum of RSS above them.\n\n"
        f"Area chart{f', {len(traces)} panels on one scale' if len(traces) > 1 else ''}. "
        f"{' '.join(trace.in_words(name) for name, trace in traces.items())}{image}"
    )
    plt.show()
    return figure


def describe_machine():
    """Give what measurements depend on: the machine, and the versions of what is used."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(psutil.Process().cpu_affinity()) if HAS_PSS else os.cpu_count(),
        "memory_gib": psutil.virtual_memory().total / 2**30,
        "metric": "PSS" if HAS_PSS else "USS",
        "python": platform.python_version(),
        **{package: version_of(package) for package in PACKAGES},
    }


def version_of(package):
    """Give the version of a package that may not be installed."""
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
    """Write experiment.json; empty the folder first if image or machine is another.

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
    path = folder / "experiment.json"
    if path.exists():
        known = json.loads(path.read_text())
        if (known["image"], known["machine"]) == (subject, machine):
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

# %%
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_memory_over_time.py`: the figures that are drawn from what is
#   kept here.
# * :ref:`sphx_glr_auto_examples_peak_memory.py`: the meter itself.
