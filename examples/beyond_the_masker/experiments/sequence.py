"""Run every method in one process, one after the other, for mprof to record.

Before each method the process rests for a moment, which separates the methods in mprof's plot. The
workers of one method are shut down before the next begins: joblib keeps them for five minutes
otherwise, and their memory would add to the next method's peak.
"""

import csv
import os
import time

from joblib.externals.loky import get_reusable_executor

from beyond_the_masker.experiments.experiment import OUT_OF_MEMORY
from beyond_the_masker.experiments.methods import all_methods
from beyond_the_masker.inputs.data import atlas_to_masks, get_atlas_path, prepare_fmri
from beyond_the_masker.meter import Watchdog, remove_joblib_folders
from beyond_the_masker.predict.budget import allowed_mib, guard

PHASE_COLUMNS = ("method", "mode", "began", "ended", "status", "predicted_mib", "reason")


def run_all(n_images, n_regions, pause=1, phases_path="whole_experiment_phases.csv"):
    """Run all methods, with a pause before each, and write a table of when each began and ended.

    Its times are those of `time.time`, as in mprof's file.
    """
    fmri_path = prepare_fmri(n_images)
    _, mask_paths = atlas_to_masks(get_atlas_path(), fmri_path, n_regions)
    methods, phases = all_methods(), []
    for number, method in enumerate(methods, start=1):
        time.sleep(pause)
        print(f"{number} of {len(methods)}: {method.title} ...", flush=True)
        phases.append(run_phase(method, fmri_path, mask_paths, pause))
    time.sleep(pause)
    with open(phases_path, "w", newline="") as file:
        csv.writer(file).writerows([PHASE_COLUMNS, *phases])
    print(f"The times of all methods are in {phases_path}.")


def run_phase(method, fmri_path, mask_paths, pause):
    """Run a method, end its workers, and return its row of the table."""
    began = time.time()
    status, reason, predicted_mib = run_guarded(method, fmri_path, mask_paths)
    if status == "predicted":
        time.sleep(max(pause, 0.5))  # a place in the figure
    ended = time.time()
    get_reusable_executor().shutdown(wait=True)
    if status == "stopped":
        remove_joblib_folders(os.getpid())
    print(f"    {reason or f'done in {ended - began:.1f} s'}", flush=True)
    times = f"{began:.3f}", f"{ended:.3f}"
    return method.name, method.mode, *times, status, f"{predicted_mib:.1f}", reason


def run_guarded(method, fmri_path, mask_paths):
    """Run a method if it fits, and stop it when the machine is about to run out of memory.

    Return ``measured``, ``predicted`` or ``stopped``, the reason, and the predicted peak in MiB.
    """
    prediction, reason = guard(method.title, fmri_path, mask_paths, len(mask_paths))
    if reason:
        return "predicted", f"Not run. {reason}", prediction.peak_mib
    watchdog = Watchdog(os.getpid(), allowed_mib()[1])
    try:
        with watchdog:
            method.call(fmri_path, mask_paths)()
    except BaseException as error:
        if not watchdog.reason and not isinstance(error, OUT_OF_MEMORY):
            raise
        reason = f"It was {watchdog.reason}" if watchdog.reason else f"It was stopped: {error}"
        return "stopped", reason, prediction.peak_mib
    return "measured", "", prediction.peak_mib
