"""mprof_run."""

import contextlib
import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import mprof
import numpy as np
import psutil
from memory_profiler import memory_usage

DAY = 24 * 60 * 60


def run_under_mprof(script, folder, backend="psutil_pss"):
    """Run the whole experiment under mprof, and sample a second metric of the same run.

    Parameters
    ----------
    script : str or pathlib.Path
        The script to run.
    folder : str or pathlib.Path
        Where three files are written: ``mprof_rss.dat``, ``mprof_pss.dat``, and
        ``phases.csv``, in which the script writes when each method began and ended.
    backend : {"psutil_pss", "psutil_uss"}
        What ``mprof_pss.dat`` holds: PSS or USS.

    Returns
    -------
    bool
        Whether the script came to its end; False if the system killed it.

    Raises
    ------
    RuntimeError
        The script ended with an error.
    """
    rss_path, pss_path, phases_path = (
        Path(folder, name) for name in ("mprof_rss.dat", "mprof_pss.dat", "phases.csv")
    )
    for path in (rss_path, pss_path, phases_path):
        path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "mprof", "run", "--include-children", "--multiprocess"]
    command += ["--exit-code", "--output", str(rss_path)]
    command += [str(script), "--phases", str(phases_path)]
    with subprocess.Popen(command) as recorder:
        pid = child_of(recorder)
        how = {"backend": backend, "include_children": True, "multiprocess": True}
        try:
            with open(pss_path, "w") as file, contextlib.suppress(psutil.NoSuchProcess):
                file.write(f"CMDLINE {script} ({backend})\n")
                memory_usage(pid, timeout=DAY, stream=file, **how)  # until the script has ended
        except BaseException:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).send_signal(signal.SIGINT)  # it clears up, and mprof ends
            raise
    if not 0 <= recorder.returncode <= 128:  # a signal
        print(f"{script} was killed before its end, for want of memory perhaps.")
        return False
    if not phases_path.exists():
        raise RuntimeError(f"{script} did not come to its end; its messages are above.")
    return True


def child_of(process):
    """Wait for the process that mprof starts, and return its id; mprof's own if there is none."""
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children():
                return child.pid
        time.sleep(0.01)
    return process.pid


def read_phases(phases_path, mprof_path):
    """Read mprof's samples and the phases that belong to them.

    Parameters
    ----------
    phases_path, mprof_path : str or pathlib.Path

    Returns
    -------
    times : array of shape (n_samples,)
        Seconds since a moment before the first phase.
    mib : array of shape (n_samples,)
        Memory of all processes.
    phases : list of dict
        ``method``, ``mode``, ``status`` (``measured``; ``predicted`` if it was not run;
        ``stopped``), and as numbers ``began``, ``ended`` (same clock as `times`), ``peak_mib``
        and ``predicted_mib``.
    """
    profile = mprof.read_mprofile_file(str(mprof_path))
    stamps, mib = np.array(profile["timestamp"]), np.array(profile["mem_usage"])
    with open(phases_path, newline="") as file:
        phases = list(csv.DictReader(file))
    start = float(phases[0]["began"]) - 1
    for phase in phases:
        phase["began"], phase["ended"] = (float(phase[key]) - start for key in ("began", "ended"))
        phase["predicted_mib"] = float(phase["predicted_mib"])
    times = stamps - start
    for phase in phases:
        inside = (times >= phase["began"]) & (times <= phase["ended"])
        nearest = np.abs(times - phase["ended"]).argmin()  # a phase shorter than a sample
        phase["peak_mib"] = float(mib[inside].max() if inside.any() else mib[nearest])
    shown = times >= 0
    return times[shown], mib[shown], phases


def read_children(phases, times, mprof_path):
    """Read the RSS of each child process.

    Parameters
    ----------
    phases, times
        As `read_phases` returns them.
    mprof_path : str or pathlib.Path

    Returns
    -------
    list of dict
        ``name``, and ``rss_mib``, an array of shape (n_samples,) that is zero where the process
        was not there.
    """
    profile = mprof.read_mprofile_file(str(mprof_path))
    start = profile["timestamp"][-1] - times[-1]
    children, n_workers, n_trackers = [], [0] * len(phases), 0
    for samples in profile["children"].values():
        rss_mib, stamps = np.array(samples).T
        at = stamps - start
        during = [i for i, p in enumerate(phases) if at[0] <= p["ended"] and at[-1] >= p["began"]]
        if len(during) == 1:
            n_workers[during[0]] += 1
            name = f"worker {n_workers[during[0]]}"
        else:
            n_trackers += 1
            name = "resource tracker" + (f" {n_trackers}" if n_trackers > 1 else "")
        children.append({"name": name, "rss_mib": np.zeros(len(times))})
        children[-1]["rss_mib"][nearest(times, at)] = rss_mib
    return children


def nearest(times, at):
    """Return the index of the sample nearest to each moment."""
    after = np.clip(np.searchsorted(times, at), 1, len(times) - 1)
    return after - (at - times[after - 1] < times[after] - at)
