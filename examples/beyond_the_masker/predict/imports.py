"""Measure, once for each machine, how much memory interpreters and imports take.

The result depends on the machine and on the versions of the libraries. It is kept in the cache
folder; typical numbers stand in until it has been measured.
"""

import importlib
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from beyond_the_masker.extract.running import start_workers
from beyond_the_masker.files import write_bytes
from beyond_the_masker.meter import measure

TYPICAL = {  # MiB in use: two cores, Python 3.11, nilearn 0.14.1, 2026-11-25
    "measured": "",
    "caller nibabel": 29.7,
    "caller nilearn": 137.7,
    "helpers": 27.5,
    "numpy": 22.3,
    "nibabel": 30.0,
    "nilearn": 137.5,
}
IMPORTS = {"numpy": ("numpy",), "nibabel": ("nibabel", "joblib", "tqdm")}
IMPORTS["nilearn"] = (*IMPORTS["nibabel"], "nilearn.image", "nilearn.maskers")
STAY = 0.25  # seconds after each import: a sample or two


def import_in_steps():
    """Import what methods import, step by step, in this process and then in two workers.

    Return, for each step, from when to when all processes had imported it, by `time.time`.
    """
    steps = {}
    for name in ("nibabel", "nilearn"):
        for module in IMPORTS[name]:
            importlib.import_module(module)
        start = time.time()
        time.sleep(STAY)
        steps[f"caller {name}"] = start, time.time()
    for name, modules in IMPORTS.items():
        steps[name] = start_workers(2, modules, STAY)
    return steps


def calibrate():
    """Measure what interpreters and imports take on this machine, keep it, and return it.

    The keys are those of ``TYPICAL``: ``"caller nibabel"`` and ``"caller nilearn"``, a calling
    process with these imports; ``"helpers"``, what joblib starts in addition to the workers; and
    one worker with the imports ``"numpy"``, ``"nibabel"`` or ``"nilearn"``, in MiB in use.
    ``"measured"`` names the versions.
    """
    trace = measure(import_in_steps)
    steps = trace.result()
    caller, *others = (process["anon"] for process in trace.processes.values())
    workers = sum(sorted(others, key=max)[-2:])
    machine = {"measured": versions()}
    for name, step in steps.items():
        machine[name] = level(trace, caller if name.startswith("caller") else workers / 2, step)
    machine["helpers"] = level(trace, trace.total() - caller - workers, steps["numpy"])
    write_bytes(machine_path(), json.dumps(machine).encode())
    return machine


def level(trace, mib, step):
    """Return the median of a curve of a trace during a step, in MiB."""
    start, end = (moment - trace.started for moment in step)
    inside = (trace.times >= start) & (trace.times <= end)
    inside[np.abs(trace.times - start).argmin()] = True
    return round(float(np.median(mib[inside])), 1)


def machine_path():
    """Return where the measurement of this machine is kept: in the folder MASKER_CACHE."""
    cache = os.environ.get("MASKER_CACHE") or "masker_cache"
    return Path(os.path.expanduser(cache)) / "machine.json"


def this_machine():
    """Return what `calibrate` measured with the present versions, or the typical numbers."""
    try:
        machine = json.loads(machine_path().read_text())
    except (OSError, ValueError):
        return TYPICAL
    whole = isinstance(machine, dict) and machine.keys() == TYPICAL.keys()
    return machine if whole and machine["measured"] == versions() else TYPICAL


def versions():
    """Return Python and the packages whose imports take memory, on one line."""
    packages = (f"{name} {version(name)}" for name in ("nilearn", "nibabel", "numpy", "joblib"))
    return f"{sys.platform}, Python {sys.version.split()[0]}, {', '.join(packages)}"
