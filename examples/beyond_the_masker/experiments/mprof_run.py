"""Record all methods with mprof, and read its files.

mprof samples the resident set size (RSS). Meanwhile ``memory_usage``, which mprof itself calls,
samples the proportional set size (PSS) of the same processes, or the unique one (USS) without PSS.
"""

import contextlib
import csv
import json
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import mprof
import numpy as np
import psutil
from memory_profiler import memory_usage

from beyond_the_masker.meter import HAS_PSS
from beyond_the_masker.options import read_options

DAY = 24 * 60 * 60
METRIC = "PSS" if HAS_PSS else "USS"  # in the file of PSS
RSS_FILE, PSS_FILE, PHASES_FILE = "mprof_rss.dat", "mprof_pss.dat", "phases.csv"


def run_under_mprof(folder):
    """Run ``beyond-the-masker experiment`` under mprof, and sample a second metric of the same run.

    The folder receives ``mprof_rss.dat``, ``mprof_pss.dat``, ``phases.csv``, which lists when each
    method began and ended, and ``mprof.json`` with the pause. Drawings of earlier runs are removed.
    Return whether the run came to its end: not if the system killed it. RuntimeError if it failed.
    """
    folder = Path(folder)
    rss_path, pss_path, phases_path = (folder / n for n in (RSS_FILE, PSS_FILE, PHASES_FILE))
    drawings = *folder.glob("memory_over_time_*.svg"), folder / "timeline.html"
    for path in (rss_path, pss_path, phases_path, *drawings):
        path.unlink(missing_ok=True)
    (folder / "mprof.json").write_text(json.dumps({"mprof": {"pause": read_options().pause}}))
    command = [sys.executable, "-m", "mprof", "run", "--include-children", "--multiprocess"]
    command += ["--exit-code", "--output", str(rss_path)]
    command += [sys.executable, "-m", "beyond_the_masker", "experiment"]
    command += ["--phases", str(phases_path)]
    with subprocess.Popen(command) as recorder:
        sample_child(recorder, pss_path)
    if not 0 <= recorder.returncode <= 128:  # a signal
        print("The run was killed before its end, perhaps for lack of memory.")
        return False
    if not phases_path.exists():
        raise RuntimeError("The run did not come to its end; its messages are above.")
    return True


def sample_child(recorder, path):
    """Write samples of the process that mprof starts into a file, until the process ends."""
    pid, backend = child_of(recorder), f"psutil_{METRIC.lower()}"
    how = {"backend": backend, "include_children": True, "multiprocess": True}
    try:
        with open(path, "w") as file, contextlib.suppress(psutil.NoSuchProcess):
            file.write(f"CMDLINE beyond-the-masker experiment ({backend})\n")
            memory_usage(pid, timeout=DAY, stream=file, **how)
    except BaseException:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).send_signal(signal.SIGINT)  # it removes its files, and mprof ends
        raise


def child_of(process):
    """Wait for the process that mprof starts, and return its id; mprof's own if mprof ends."""
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children():
                return child.pid
        time.sleep(0.01)
    return process.pid


def read_run(folder):
    """Read what `run_under_mprof` wrote: what `read_phases` returns, by metric."""
    files = {METRIC: PSS_FILE, "RSS": RSS_FILE}
    phases_path = Path(folder, PHASES_FILE)
    return {metric: read_phases(phases_path, Path(folder, files[metric])) for metric in files}


def read_phases(phases_path, mprof_path):
    """Read mprof's samples and the phases of the same run.

    Returns
    -------
    times, mib : arrays of shape (n_samples,)
        Seconds since a moment before the first phase; memory of all processes.
    phases : list of dict
        ``method``, ``mode``, ``status`` (``measured``, ``predicted`` if it did not run, or
        ``stopped``), and as numbers ``began``, ``ended`` (on the clock of `times`), ``peak_mib``
        and ``predicted_mib``.
    children : dict of arrays of shape (n_samples,)
        RSS in MiB by the name of the child process. A child that outlives a method is not a worker,
        but a resource tracker.
    """
    profile = mprof.read_mprofile_file(str(mprof_path))
    stamps, mib = np.array(profile["timestamp"]), np.array(profile["mem_usage"])
    with open(phases_path, newline="") as file:
        phases = list(csv.DictReader(file))
    start = float(phases[0]["began"]) - 1
    times = stamps - start
    for phase in phases:
        began, ended = (float(phase[key]) - start for key in ("began", "ended"))
        inside = (times >= began) & (times <= ended)
        inside[np.abs(times - ended).argmin()] |= not inside.any()  # shorter than a sample
        phase |= {"began": began, "ended": ended, "peak_mib": float(mib[inside].max())}
        phase["predicted_mib"] = float(phase["predicted_mib"])
    shown = times >= 0
    samples = [np.array(one) - [0, start] for one in profile["children"].values()]
    return times[shown], mib[shown], phases, name_children(samples, phases, times[shown])


def name_children(children_samples, phases, times):
    """Return the RSS of each child at some times, by its name, from its samples and their times."""
    children, n_workers = defaultdict(lambda: np.zeros(len(times))), Counter()
    for rss_mib, at in (samples.T for samples in children_samples):
        during = [i for i, p in enumerate(phases) if at[0] <= p["ended"] and at[-1] >= p["began"]]
        name = "resource trackers"
        if len(during) == 1:
            n_workers[during[0]] += 1
            name = f"worker {n_workers[during[0]]}"
        children[name][nearest(times, at)] += rss_mib
    return dict(children)


def nearest(times, at):
    """Return the index of the sample nearest to each moment."""
    after = np.clip(np.searchsorted(times, at), 1, len(times) - 1)
    return after - (at - times[after - 1] < times[after] - at)
