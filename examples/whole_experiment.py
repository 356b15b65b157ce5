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

The table ``METHODS`` of :doc:`/auto_examples/memory_model` lists the methods and the pages with
their functions.

The script writes a table of when each method began and ended, on the clock of mprof's file.

**Recommended next:** :ref:`sphx_glr_auto_examples_plot_memory_over_time.py`, which labels the
curve with that table.
"""

import argparse
import csv
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from typing import NamedTuple

from joblib.externals.loky import get_reusable_executor

import memory_model
from memory_budget import allowed_mib, guard
from one_run import run_method
from options import read_options
from peak_memory import Watchdog, remove_joblib_folders
from plot_large_image import atlas_to_masks, get_atlas_path, prepare_fmri


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
    if importlib.util.find_spec(model.module) is None:
        raise ValueError(f"{place}, and there is no example {model.module}.py.")
    function = getattr(importlib.import_module(model.module), model.function, None)
    if function is None:
        raise ValueError(f"{place}, and {model.module}.py has no function {model.function!r}.")
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
