"""What the processes of one test leave behind, whatever else runs on the machine."""

import os
import re
import time
from contextlib import suppress
from pathlib import Path

import psutil

SHM = Path("/dev/shm")


def eventually(condition, seconds=300):
    """Poll a condition until it is true, or until only a hanging test would still wait.

    Returns
    -------
    object
        The condition's last value.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


def processes_with(variable, value):
    """Return the other processes that were started with this environment variable."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or belongs to another user
            if process.pid != os.getpid() and process.environ().get(variable) == value:
                found.append(process)
    return found


def kill(processes):
    """Kill processes, but not the resource trackers: these end last, and remove what is left."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in process.cmdline()):
                process.kill()


def shared_blocks(processes):
    """Return the files in /dev/shm that these processes map now, or that are named after one."""
    if not SHM.is_dir():  # as on macOS
        return set()
    blocks = set()
    for process in processes:
        with suppress(psutil.Error):
            blocks |= {Path(m.path) for m in process.memory_maps() if m.path.startswith(f"{SHM}/")}
    return blocks | {file for file in SHM.iterdir() if named_after(file, processes)}


def named_after(file, processes):
    """Whether joblib made the file for one of these processes: its name has the number."""
    numbers = {int(number) for number in re.findall(r"(?<=[-_])\d+(?=[-_])", file.name)}
    return not numbers.isdisjoint(process.pid for process in processes)
