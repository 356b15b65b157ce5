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

A method that may not fit into memory is not run, and one that is about to use it up is stopped;
both are told, and the script goes on. ``MEMORY=unlimited`` runs all.

When each method began and ended is written to a table, on the same clock as mprof's file.
:ref:`sphx_glr_auto_examples_plot_memory_over_time.py` labels the curve with it.
"""

import argparse
import csv
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from joblib.externals.loky import get_reusable_executor

from memory_budget import allowed_mib, guard
from options import read_options
from peak_memory import Watchdog
from plot_in_memory import numpy_masker_joblib_map, numpy_masker_mapped, numpy_masker_threads
from plot_large_image import atlas_to_masks, get_atlas_path, load_in_memory, prepare_fmri
from plot_nifti_masker import nifti_masker_parallel, nifti_masker_single
from plot_numpy_indexing import (
    numpy_masker_parallel_inmemory,
    numpy_masker_parallel_path,
    numpy_masker_single_inmemory,
    numpy_masker_single_path,
)
from plot_shared_memory import numpy_masker_shared_parallel
from plot_stream_masker import stream_nifti_maskers
from plot_stream_masks import stream_masks


class Method(NamedTuple):
    """One of the ways: a function, how it is called, and its name in figures and tables."""

    name: str
    function: Callable
    mode: str  # "single": the first mask; "parallel": all masks; "one pass": all, no worker
    in_memory: bool = False  # images whose data are in memory, instead of paths


METHODS = [
    Method("NiftiMasker, path", nifti_masker_single, "single"),
    Method("NiftiMasker, in-memory image", nifti_masker_single, "single", in_memory=True),
    Method("NiftiMasker, path", nifti_masker_parallel, "parallel"),
    Method("NiftiMasker, in-memory image", nifti_masker_parallel, "parallel", in_memory=True),
    Method("NumPy indexing, path", numpy_masker_single_path, "single"),
    Method("NumPy indexing, in-memory image", numpy_masker_single_inmemory, "single", True),
    Method("NumPy indexing, path", numpy_masker_parallel_path, "parallel"),
    Method("NumPy indexing, in-memory image", numpy_masker_parallel_inmemory, "parallel", True),
    Method("NumPy indexing, shared memory", numpy_masker_shared_parallel, "parallel"),
    Method("NumPy indexing, threads", numpy_masker_threads, "parallel"),
    Method("NumPy indexing, joblib map", numpy_masker_joblib_map, "parallel"),
    Method("NumPy indexing, mapped file", numpy_masker_mapped, "parallel"),
    Method("Streaming, any masker", stream_nifti_maskers, "one pass"),
    Method("Streaming, masks", stream_masks, "one pass"),
]


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
    load = load_in_memory if method.in_memory else Path
    fmri = load(fmri_path)
    if method.mode == "single":
        return [method.function(fmri, load(mask_paths[0]))]
    masks = [load(mask_path) for mask_path in mask_paths]
    if method.mode == "one pass":
        return method.function(fmri, masks)
    return method.function(fmri, masks, n_jobs or len(masks))


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
        The peak PSS that the model gives.
    """
    prediction, reason = guard(title(method), fmri_path, mask_paths, len(mask_paths))
    if reason:
        return "predicted", f"Not run. {reason}", prediction.peak_pss_mib
    watchdog = Watchdog(os.getpid(), allowed_mib()[1])
    try:
        with watchdog:
            run(method, fmri_path, mask_paths)
    except BaseException:
        if not watchdog.reason:
            raise
        return "stopped", f"It was {watchdog.reason}", prediction.peak_pss_mib
    return "measured", "", prediction.peak_pss_mib


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
