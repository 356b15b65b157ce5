"""
The meter: peak memory of a call, workers included
==================================================

How much memory does ``func(*args)`` need, with all the processes that it starts? This file
answers that, and it is all you need: copy it next to your script and write

.. code-block:: python

    from peak_memory import measure

    func, args = bytearray, (2**28,)  # yours
    trace = measure(func, *args)
    print(trace)
    trace.plot()

What it takes care of, because each of these has led to wrong numbers:

* **A fresh process.** The call runs in a Python process of its own, after that process has
  imported what the call needs. Nothing that an earlier call left behind is counted.
* **From outside.** The process that measures is not part of what is measured.
* **The whole tree.** Workers, and the workers' children, are summed at every sample.
* **What the machine cannot take back.** The peak is of :term:`memory in use`: anonymous memory of
  all processes, swapped parts included, and shared memory once. Pages of files on disk that a
  process maps are recorded beside it, because the kernel drops them when anybody else needs memory.
* **Any order.** Processes are read one after the other. What two of them share is counted so
  that it does not matter which one is read first, or what they do in between.

Sums of :term:`RSS`, :term:`PSS` and :term:`USS` are recorded as well, because other tools show
them. The sum of RSS counts a shared page once for each process. The sum of PSS counts a page twice
if a process maps it after the others were read, counts pages that can be dropped, and misses
shared memory that no process maps.

Where each part comes from, on Linux:

anonymous memory
    ``Pss_Anon`` and ``SwapPss`` of ``/proc/PID/smaps_rollup``. After a fork, parent and child
    share pages until one of them writes; each counts its part of them. The processes are
    listed before the first is read, and those that end in the meantime are left out, so no page
    counts more than once. Nor does a child that still runs in its parent's memory (vfork).
shared memory
    The space that a file takes in ``/dev/shm``, mapped or not; the same for files that have been
    removed there, for memfd, and for anything in another tmpfs, as long as a process has it
    open or mapped; shared anonymous maps; and System V segments from ``/proc/sysvipc/shm``. What
    was there before the call does not count, nor does what belongs to other programs: files
    of another user, those that only other processes have open or mapped, and joblib's
    folders with the number of another process.
mapped files
    ``Pss_File`` of ``/proc/PID/smaps_rollup``.

Other systems have no such account. There, the unique set size (:term:`USS`) of all
processes stands in for it, and the trace says so.

A peak of the calling process between two samples is not lost: the kernel keeps its largest
resident set size. (What several processes need at once, only a sample can tell. And a file that is
mapped and given up again between two samples cannot be told from memory of the process.)

Before the machine runs out of memory, the call is stopped, and the trace says so.
"""

import contextlib
import functools
import itertools
import json
import math
import os
import pickle
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
from tqdm import tqdm

PAUSES = 0.002, 0.1  # seconds between samples: twice as long as one takes, within these
MIB = 2**20
MODULE = __spec__.name if __spec__ else Path(__file__).stem  # also as a file of its own
SHM = Path("/dev/shm")  # where Linux keeps the files of shared memory
ROLLUP = Path("/proc/self/smaps_rollup")
HAS_PSS = ROLLUP.exists() and "Pss_Anon" in ROLLUP.read_text()

# %%
# The result of a measurement
# ---------------------------


@dataclass
class Trace:
    """Memory of a call and of all its processes over time.

    Attributes
    ----------
    name : str
        The function's name.
    started : float
        When the call began, as `time.time` has it.
    seconds : float
        How long the call took.
    before_mib : float
        Memory in use in the fresh process after its imports and before the call, in MiB.
    times : array of shape (n_samples,)
        Seconds since the call began. The first sample was taken before the call.
    processes : dict of int to dict of str to array of shape (n_samples,)
        For each process id the arrays ``"anon"`` (anonymous memory), ``"file"`` (mapped files,
        which the kernel may drop), ``"pss"``, ``"rss"`` and ``"uss"`` in MiB; zero where the
        process did not exist. The first process is the one that made the call.
    shm_mib : array of shape (n_samples,) or None
        Shared memory of the call in MiB, counted once, whether or not a process maps it. None
        where the system does not tell.
    metric : {"memory in use", "USS"}
        What `peak_mib` is a peak of: USS on systems that do not tell anonymous memory, where
        the arrays ``"anon"`` and ``"pss"`` hold it as well.
    value : object
        What the call returned.
    exception : BaseException or None
        What the call raised instead.
    high_water_mib : float
        Anonymous memory of the calling process at the peak that the kernel noted.
    """

    name: str
    started: float
    seconds: float
    before_mib: float
    times: np.ndarray
    processes: dict
    shm_mib: np.ndarray | None = None
    metric: str = "memory in use"
    value: object = field(default=None, repr=False)
    exception: BaseException | None = None
    high_water_mib: float = 0

    def total(self, metric="in use"):
        """Sum a metric over all processes.

        Parameters
        ----------
        metric : {"in use", "anon", "file", "pss", "rss", "uss"}
            ``"in use"`` is anonymous memory and, counted once, shared memory.

        Returns
        -------
        array of shape (n_samples,), in MiB
        """
        if metric == "in use":
            return self.total("anon") + (0 if self.shm_mib is None else self.shm_mib)
        return np.sum([process[metric] for process in self.processes.values()], axis=0)

    @property
    def peak_mib(self):
        """The largest amount of memory in use, in MiB."""
        return float(max(self.total().max(), self.high_water_mib))

    @property
    def above_mib(self):
        """The part of the peak that was not there before the call, in MiB."""
        return self.peak_mib - self.before_mib

    @property
    def peak_file_mib(self):
        """The largest sum of pages of mapped files, which the kernel may drop, in MiB."""
        return float(self.total("file").max())

    @property
    def peak_pss_mib(self):
        """The largest sum of PSS over all processes, in MiB."""
        return float(self.total("pss").max())

    @property
    def peak_rss_mib(self):
        """The largest sum of RSS over all processes, in MiB."""
        return float(self.total("rss").max())

    def result(self):
        """Return what the call returned, or raise what it raised."""
        if self.exception is not None:
            raise self.exception
        return self.value

    def __str__(self):
        text = (
            f"{self.name}\n    peak {self.peak_mib:,.0f} MiB {self.metric}, "
            f"{self.before_mib:,.0f} MiB before the call; {in_seconds(self.seconds)}; "
            f"{counted(len(self.processes), 'process')}; summed RSS {self.peak_rss_mib:,.0f} MiB"
        )
        return text if self.exception is None else f"{text}\n    raised {self.exception!r}"

    def save(self, path, metric="in use"):
        """Write the trace in mprof's file format: ``mprof plot path`` draws it.

        Parameters
        ----------
        path : str or pathlib.Path
        metric : str
            As for `total`. Of ``"in use"``, a child process has its anonymous memory.
        """
        path = Path(path)
        caller = next(iter(self.processes))
        stamps = self.started + self.times
        total = self.total(metric)
        begin, end = total[0], total[-1]
        lines = [f"CMDLINE {self.name} ({metric})"]
        label = "_".join(self.name.split())  # mprof separates its fields with spaces
        lines.append(
            f"FUNC {label} {begin:.6f} {self.started:.4f} "
            f"{end:.6f} {self.started + self.seconds:.4f} 0"
        )
        of_child = "anon" if metric == "in use" else metric
        for i, stamp in enumerate(stamps):
            lines.append(f"MEM {total[i]:.6f} {stamp:.4f}")
            for pid, process in self.processes.items():
                if pid != caller and process[of_child][i]:
                    lines.append(f"CHLD {pid} {process[of_child][i]:.6f} {stamp:.4f}")
        unfinished = path.with_name(path.name + ".unfinished")
        unfinished.write_text("\n".join(lines) + "\n")
        unfinished.replace(path)

    def plot(self, ax=None, image_mib=None, title=None):
        """Draw memory over time: caller, workers and shared memory stacked, files above them.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure by default.
        image_mib : float, optional
            Size of the image in memory, drawn as a line to compare with.
        title : str, optional
            The function's name by default.

        Returns
        -------
        matplotlib.axes.Axes
        """
        import matplotlib.pyplot as plt
        from matplotlib import patheffects

        own = ax is None
        if own:
            ax = plt.figure(figsize=(4.2, 4.4), layout="constrained").gca()
        title = title or self.name
        caller, *workers = self.processes.values()
        layers = [("calling process", caller["anon"], "#0072b2", None)]
        if workers:
            of_workers = np.sum([worker["anon"] for worker in workers], axis=0)
            layers.append(("workers", of_workers, "#d55e00", "//"))
        if self.shm_mib is not None and self.shm_mib.max() >= 1:
            layers.append(("shared memory", self.shm_mib, "#009e73", "++"))
        labels, values, colors, hatches = zip(*layers, strict=True)
        style = {"colors": colors, "hatch": hatches, "edgecolor": "white", "lw": 0}
        ax.stackplot(self.times, values, labels=labels, **style)
        halo = [patheffects.withStroke(linewidth=3.5, foreground="white")]
        for level, line, label in (
            (self.total() + self.total("file"), "--", "with mapped files"),
            (np.full(len(self.times), self.before_mib), ":", "before the call"),
        ):
            ax.plot(self.times, level, color="black", ls=line, path_effects=halo, label=label)
        if image_mib:
            ax.axhline(image_mib, color="#cc79a7", path_effects=halo, label="the image")
        right = max(self.times[-1], self.seconds)  # a short call has a sample before it only
        ax.set(xlabel="seconds", ylabel=f"MiB ({self.metric})", xlim=(0, right))
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter("{x:,.0f}")
        ax.set_title(f"{title}:\npeak {self.peak_mib:,.0f} MiB", loc="left", fontsize=11)
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.22), frameon=False)
        if own:
            ax.figure.set_label(
                f"Memory over time of {title}: the calling process, its workers and shared memory "
                "stacked, mapped files above them.\n\n"
                f"Area chart. {self.in_words(title)}"
            )
        return ax

    def in_words(self, title=None):
        """Describe a figure of the trace, with its numbers."""
        total = self.total()
        when = max(self.times[total.argmax()], 0)
        n_children = len(self.processes) - 1
        children = counted(n_children, "child process")
        children += ", joblib's helpers included" if n_children else ""
        return (
            f"{title or self.name}: {self.metric} rises from {self.before_mib:,.0f} MiB before the "
            f"call to a peak of {self.peak_mib:,.0f} MiB, {in_seconds(when)} into the call of "
            f"{in_seconds(self.seconds)}, with {children}; mapped files take "
            f"{self.peak_file_mib:,.0f} MiB at most."
        )


def in_seconds(seconds):
    """Write a time: 0.173 s, 21.3 s, 1,203 s."""
    return f"{seconds:,.0f} s" if seconds >= 99.95 else f"{seconds:#.3g} s"


def counted(number, name):
    """Write a number of things: 1 process, 2 processes, no process."""
    return f"{number or 'no'} {name}{'es' if number > 1 else ''}"


# %%
# How much is left
# ----------------
# What may still be taken is not only a matter of the machine. A container, or a job on a cluster,
# is ended when it takes more than its control group allows.


def available_mib(root="/"):
    """Return how much memory can still be taken, by the machine and by its control groups.

    Parameters
    ----------
    root : str or pathlib.Path
        Where ``proc`` and ``sys`` are.

    Returns
    -------
    float
        MiB. Files that the kernel can drop from its cache count as free.
    """
    left = [psutil.virtual_memory().available]
    for limit, used, statistics in _control_groups(root):
        with contextlib.suppress(OSError, ValueError):
            lines = statistics.read_text().splitlines()
            numbers = {name: int(value) for name, value in map(str.split, lines)}
            cached = numbers.get("total_inactive_file", numbers.get("inactive_file", 0))
            left.append(limit - int(used.read_text()) + cached)
    return max(min(left), 0) / MIB


@functools.cache
def _control_groups(root):
    """List the control groups that limit this process: limit, and files to read."""
    found, root = [], Path(root)
    names = root / "proc/self/cgroup"
    for line in names.read_text().splitlines() if names.exists() else ():
        _, controllers, place = line.split(":", maxsplit=2)
        if controllers == "":  # version 2
            top, limit, used = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = top / place.strip("/")
        for group in (folder, *folder.parents):  # in a container, some are not visible
            with contextlib.suppress(OSError, ValueError):  # "max", where there is no limit
                size = int((group / limit).read_text())
                if size < psutil.virtual_memory().total:
                    found.append((size, group / used, group / "memory.stat"))
            if group == top:
                break
    return found


def reserve_mib():
    """Return how much is kept free, in MiB: 3 % of the memory, and 256 MiB at least."""
    return max(0.03 * psutil.virtual_memory().total / MIB, 256)


# %%
# Reading a tree of processes
# ---------------------------
# A sample is a time, the bytes of each piece of shared memory, and the bytes of each process.

KINDS = ("anon", "file", "pss", "rss", "uss")


class Tree:
    """A process and everything that it starts.

    Parameters
    ----------
    pid : int
        The process.
    """

    def __init__(self, pid):
        self.pid = pid
        self.shared = SharedMemory() if HAS_PSS and SHM.is_dir() else None

    def sample(self):
        """Read all processes.

        Returns
        -------
        stamp : float
            The time.
        shared : dict
            Bytes of each piece of shared memory; see `SharedMemory.sample`.
        processes : dict of int to dict of str to int
            Bytes of the ``KINDS`` for each process, and more that `read_process` finds.
        """
        stamp, read = time.time(), {}
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.pid)
            # They are listed before the first is read: no page is read in a parent, and then again
            # in a child that was born in between.
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error, OSError):  # it has ended
                    read[process.pid] = read_process(process)
        processes = {pid: sizes for pid, sizes in read.items() if counts(pid, read)}
        return stamp, self.shared.sample(processes) if self.shared else {}, processes

    def in_use(self):
        """Return the memory in use now, in MiB."""
        return in_use_mib(self.sample())


def in_use_mib(sample):
    """Return the memory in use of a sample, in MiB."""
    _, shared, processes = sample
    return (sum(shared.values()) + sum(one["anon"] for one in processes.values())) / MIB


def read_process(process):
    """Read the memory of a process.

    Parameters
    ----------
    process : psutil.Process

    Returns
    -------
    dict of str to int
        Bytes of the ``KINDS``. On Linux also ``"shmem"``, shared memory that it maps; ``"other"``,
        resident pages that are not anonymous; and ``"private"``, ``"anonymous"`` and ``"place"``,
        by which `counts` recognises a child in its parent's memory.
    """
    if not HAS_PSS:
        info = process.memory_full_info()
        return {"anon": info.uss, "file": 0, "pss": info.uss, "rss": info.rss, "uss": info.uss}
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    if not text:
        raise ProcessLookupError(process.pid)  # it has ended, and its parent does not know yet
    size = {name: int(kb) * 1024 for name, kb in re.findall(r"(\w+): +(\d+) kB", text)}
    return {
        "anon": size["Pss_Anon"] + size.get("SwapPss", 0),
        "file": size["Pss_File"],
        "pss": size["Pss"],
        "rss": size["Rss"],
        "uss": size["Private_Clean"] + size["Private_Dirty"],
        "shmem": size["Pss_Shmem"],
        "other": size["Rss"] - size["Anonymous"],
        "anonymous": size["Anonymous"],
        "private": size["Private_Dirty"],
        "place": text.split(maxsplit=1)[0],
    }


def counts(pid, read):
    """Tell whether what was read of a process belongs to the sum.

    It does not if the process has ended since: what it shared was then read as another's
    alone. Nor if it still runs in the memory of its parent, as from vfork to exec: both have the
    same private pages then, to the last.
    """
    if not HAS_PSS:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    own, parent = read[pid], read.get(int(status[1]))
    borrowed = parent and own["private"] > own["anonymous"] / 2
    same = borrowed and all(own[k] == parent[k] for k in ("place", "rss", "private", "anonymous"))
    return status[0] not in "ZX" and not same


class SharedMemory:
    """Shared memory that processes take from now on, each piece once.

    A piece is a file in a tmpfs, or something that the kernel treats like one: its device and inode
    tell it from others.
    """

    def __init__(self):
        self.began = time.time()
        self.kernel, self.devices = memory_devices()
        self.before = {key: size_of(status) for key, (_, status) in files_in(SHM).items()}
        self.ours = {}  # pieces that our processes have held: their paths
        self.pids = set()
        self.checked = {}  # others: their size when we looked who holds them, and whether it counts

    def sample(self, processes):
        """Measure each piece.

        Parameters
        ----------
        processes : dict of int to dict of str to int
            What `read_process` gives for each process.

        Returns
        -------
        dict of (int, int) to int
            Bytes by device and inode, without what was there before.
        """
        self.pids |= set(processes)
        found, hidden, named = {}, {}, files_in(SHM)
        for pid, sizes in processes.items():
            held = open_files(pid, self.devices)
            if sizes["shmem"]:
                held = itertools.chain(held, mapped_files(pid, self.devices))
            for key, path, status in held:
                self.ours[key] = path
                if status:
                    found[key] = status
                else:
                    hidden.setdefault(key, []).append(pid)
        for key, (path, status) in named.items():
            if key in self.ours or self._counts(key, path, status):
                found[key] = status
        for key, path in self.ours.items():  # that nobody holds now
            with contextlib.suppress(OSError):
                if key not in found and key_of(status := os.stat(path)) == key:
                    found[key] = status
        sizes = {key: size_of(status) for key, status in found.items()}
        sizes |= {key: mapped_bytes(key, pids) for key, pids in hidden.items() if key not in found}
        for number, owner, size in segments():
            if owner in self.pids or (self.kernel, number) in self.ours:
                sizes[self.kernel, number] = size
        for key, status in found.items():  # in another tmpfs than SHM, and older than the call
            if key not in self.before and key not in named and status.st_ctime < self.began - 0.1:
                self.before[key] = sizes[key]
        return {key: max(size - self.before.get(key, 0), 0) for key, size in sizes.items()}

    def _counts(self, key, path, status):
        """Tell whether a file that our processes were not seen to hold is theirs all the same."""
        if joblib := re.search(r"/joblib_memmapping_folder_(\d+)_", path):
            return int(joblib[1]) in self.pids
        small = size_of(status) < 2**16  # such as a semaphore: not worth asking every process
        if small or key in self.before or status.st_uid != os.geteuid():
            return False
        size, ours = self.checked.get(key, (None, True))
        if size != size_of(status) and ours:
            others = [pid for pid in psutil.pids() if pid not in self.pids]
            ours = not any(key in held_by(pid, {key[0]}) for pid in others)
            self.checked[key] = size_of(status), ours
        return ours


def memory_devices():
    """Return the device of the kernel's own files in memory, and those with every tmpfs."""
    number = os.memfd_create("device")
    kernel = os.fstat(number).st_dev
    os.close(number)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    devices = [line.split()[2].split(":") for line in lines if " - tmpfs " in line]
    return kernel, {kernel, *(os.makedev(int(major), int(minor)) for major, minor in devices)}


def key_of(status):
    """Return what tells a file from all others: device and inode."""
    return status.st_dev, status.st_ino


def size_of(status):
    """Return the bytes that a file takes, whatever its length; swapped ones are included."""
    return status.st_blocks * 512


def files_in(folder):
    """Return path and status of the files in a folder and in those below it, by their keys."""
    found = {}
    with contextlib.suppress(OSError):  # another program removes it
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    found |= files_in(entry.path)
                else:
                    status = entry.stat(follow_symlinks=False)
                    found[key_of(status)] = entry.path, status
    return found


def open_files(pid, devices):
    """Yield key, path and status of each file of some devices that a process has open."""
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                link = f"/proc/{pid}/fd/{number}"
                status = os.stat(link)
                if status.st_dev in devices and stat.S_ISREG(status.st_mode):
                    yield key_of(status), os.readlink(link), status


def mapped_files(pid, devices):
    """Yield key, path and status of each file of some devices that a process maps.

    The status is None for who may not see it: that takes an administrator.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            place, _, _, device, inode, *path = line.split(maxsplit=5)
            if inode != "0" and (key := (device_of(device), int(inode)))[0] in devices:
                status = None
                with contextlib.suppress(OSError):
                    status = os.stat(f"/proc/{pid}/map_files/{place}")
                yield key, path[0] if path else "", status


def device_of(text):
    """Return a device as os.stat has it; text is as in /proc/PID/maps."""
    major, minor = text.split(":")
    return os.makedev(int(major, 16), int(minor, 16))


def held_by(pid, devices):
    """Return the keys of all files of some devices that a process has open or maps."""
    held = {key for key, *_ in open_files(pid, devices)}
    with contextlib.suppress(OSError):
        if re.search(r"RssShmem:\s+[1-9]", Path(f"/proc/{pid}/status").read_text()):
            held |= {key for key, *_ in mapped_files(pid, devices)}
    return held


def mapped_bytes(key, pids):
    """Return the bytes of a piece of which only the maps are seen.

    That is what all processes have of it, each its part, and not more than was mapped.
    """
    shares = extent = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            inside = False
            for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
                words = line.split(maxsplit=5)
                if not words[0].endswith(":"):
                    place, _, offset, device, inode, *_ = words
                    inside = (device_of(device), int(inode)) == key
                    if inside:
                        begin, end = (int(part, 16) for part in place.split("-"))
                        extent = max(extent, int(offset, 16) + end - begin)
                elif inside and words[0] == "Pss:":
                    shares += int(words[1]) * 1024
    return min(shares, extent)


def segments():
    """Yield number, creator and bytes of each System V segment."""
    with contextlib.suppress(OSError):
        header, *lines = Path("/proc/sysvipc/shm").read_text().splitlines()
        for line in lines:
            one = {k: int(v) for k, v in zip(header.split(), line.split(), strict=True)}
            yield one["shmid"], one["cpid"], one["rss"] + one["swap"]


# %%
# Measuring
# ---------


def measure(func, /, *args, **kwargs):
    """Run a call in a fresh process and record the memory of its process tree.

    Parameters
    ----------
    func : callable
        Functions of modules and functions of the running script can be measured.
    *args, **kwargs
        Its arguments. They are pickled into the fresh process before the measurement
        begins, so pass a path if reading the file is a part of what you want to measure.

    Returns
    -------
    Trace
        With the call's return value or its exception, which is not raised here.

    Raises
    ------
    RuntimeError
        The fresh process could not be prepared: an import in it failed, for example.

    Notes
    -----
    An interrupt (Ctrl-C) is passed on to the call, so that it can clean up, and then
    the process and its workers are ended. If the machine is about to run out of memory, the
    same is done, and the trace's exception is a MemoryError.
    """
    return measure_within(math.inf, func, *args, **kwargs)


def measure_within(memory_mib, func, /, *args, **kwargs):
    """Do what `measure` does, and stop the call when it takes more than so much memory.

    Parameters
    ----------
    memory_mib : float
        MiB that may be in use above the level before the call.
    func, *args, **kwargs
        As for `measure`.

    Returns
    -------
    Trace
        Its exception is a MemoryError if the call was stopped.

    Raises
    ------
    RuntimeError
        As for `measure`.
    """
    name = getattr(func, "__name__", type(func).__name__)
    call = cloudpickle.dumps((func, args, kwargs))
    folders = json.dumps([str(folder) for folder in sys.path])
    boot = f"import importlib, sys; sys.path[:] = {folders}; importlib.import_module({MODULE!r})._serve()"
    process = subprocess.Popen(
        [sys.executable, "-c", boot],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches the call once, through _end
    )
    try:
        try:
            pickle.dump(call, process.stdin)
            process.stdin.flush()
            problem = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError):
            problem = "It ended before it was ready; its messages are above."
        if problem:
            raise RuntimeError(f"The new process for {name} could not be prepared.\n{problem}")
        tree = Tree(process.pid)
        samples = [tree.sample()]
        over = threading.Event()
        threading.Thread(target=_wait_for_end, args=(process, over), daemon=True).start()
        with Watchdog(process.pid, memory_mib) as watchdog:
            process.stdin.write(b"go\n")
            process.stdin.flush()
            samples += _watch(tree, over, name)
        outcome = _receive(process, samples)
        if watchdog.reason:
            outcome = *outcome[:2], None, MemoryError(f"{name}: {watchdog.reason}"), (0, 0)
    except BaseException:
        _end(process, patience=0)
        raise
    _end(process, patience=30)
    return _trace(name, samples, *outcome)


class Watchdog:
    """Stop a process and its workers before the machine runs out of memory.

    A thread looks every few milliseconds at what is available on the machine, and, where there is a
    limit, at what the process and its workers have in use. When it is too much, the workers are
    killed, which frees most, and the process is interrupted, so that it can clean up. If that does
    not help, it is killed, too. Trackers of shared memory are spared: they remove what others
    leave behind.

    Parameters
    ----------
    pid : int
        The process.
    memory_mib : float
        MiB that may be in use above the level at the beginning.

    Attributes
    ----------
    reason : str
        Why the process was stopped; empty if it was not.
    """

    def __init__(self, pid, memory_mib=math.inf):
        self.pid, self.memory_mib, self.reason = pid, memory_mib, ""
        self.tree = Tree(pid) if memory_mib < math.inf else None
        self.begin = self.tree.in_use() if self.tree else 0
        self.reserve, left = reserve_mib(), available_mib()
        if left < self.reserve:  # so it was before: half of the rest is kept free
            self.reserve = left / 2
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def _look(self):
        while not self.reason and not self.over.wait(0.005):
            self.reason = self._problem()
        if self.reason:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._stop(psutil.Process(self.pid))

    def _problem(self):
        """Return why the process must be stopped, or nothing."""
        taken = self.tree.in_use() - self.begin if self.tree else 0
        if taken > self.memory_mib:
            return (
                f"stopped with {taken:,.0f} MiB above the start: {self.memory_mib:,.0f} MiB are "
                "allowed."
            )
        if (left := available_mib()) < self.reserve:
            return (
                f"stopped: the machine had {left:,.0f} MiB left, and {self.reserve:,.0f} MiB are "
                "kept free."
            )
        return ""

    def _stop(self, process):
        for worker in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if not any("resource_tracker" in word for word in worker.cmdline()):
                    worker.kill()
        process.send_signal(signal.SIGINT)
        patience = time.monotonic() + 10
        while not self.over.wait(0.005):
            if available_mib() < self.reserve / 2 or time.monotonic() > patience:
                process.kill()
                return


def _serve():
    """Run in the fresh process: receive a call, wait for the start, run it, send the result."""
    reply = os.fdopen(os.dup(1), "wb")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    os.dup2(2, 1)  # what the call prints must not mix with the replies
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=reply.close)  # so that the pipe ends when we end
    try:
        func, args, kwargs = pickle.loads(pickle.load(sys.stdin.buffer))
        problem = None
    except BaseException:
        problem = traceback.format_exc()
    pickle.dump(problem, reply)
    reply.flush()
    if problem or not sys.stdin.buffer.readline():
        return
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a call that reads input finds none
    value = exception = None
    _high_water(reset=True)
    started, clock = time.time(), time.perf_counter()
    try:
        value = func(*args, **kwargs)
    except BaseException as error:
        exception = error
    seconds = time.perf_counter() - clock
    high_water = _high_water()
    reply.write(b"\n")  # the call is over: sampling stops here
    reply.flush()
    try:
        pickle.loads(cloudpickle.dumps(exception))
    except Exception:  # its arguments are not those of its class
        text = traceback.format_exception_only(type(exception), exception)
        exception = RuntimeError("".join(text).strip())
    try:
        answer = cloudpickle.dumps((started, seconds, value, exception, high_water))
    except Exception as error:  # a result that cannot be pickled
        error = RuntimeError(repr(error))
        answer = cloudpickle.dumps((started, seconds, None, error, high_water))
    reply.write(answer)
    reply.flush()


def _high_water(reset=False):
    """Read, or reset, the largest RSS that Linux has noted for this process, in bytes.

    With it comes what is not anonymous of its RSS now: a library may have been loaded in between.
    """
    with contextlib.suppress(OSError, KeyError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        else:
            text = Path("/proc/self/status").read_text()
            size = {name: int(kb) * 1024 for name, kb in re.findall(r"(\w+):\s+(\d+) kB", text)}
            return size["VmHWM"], size["RssFile"] + size["RssShmem"]
    return 0, 0


def _wait_for_end(process, over):
    """Wait, in a thread, for the byte that the fresh process sends when the call is over."""
    process.stdout.read(1)
    over.set()


def _watch(tree, over, name):
    """Sample the tree until the call is over; show progress on a terminal."""
    samples = []
    with tqdm(
        desc=name,
        bar_format="{desc}: {elapsed}{postfix}",
        disable=None,  # where there is no terminal
        leave=False,
        file=sys.__stderr__,
    ) as progress:
        pause, longest = PAUSES
        while not over.wait(pause):
            start = time.perf_counter()
            samples.append(tree.sample())
            pause = min(max(PAUSES[0], 2 * (time.perf_counter() - start)), longest)
            mib, n_processes = in_use_mib(samples[-1]), len(samples[-1][2])
            progress.set_postfix_str(f"{mib:,.0f} MiB in {n_processes} processes")
    return samples


def _receive(process, samples):
    """Start, seconds, value, exception and largest RSS, also if the process was killed."""
    try:
        return pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError):
        code = process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        error = RuntimeError(f"The measured process was ended by {how}.")
        return samples[0][0], samples[-1][0] - samples[0][0], None, error, (0, 0)


def _end(process, patience):
    """See that the process and all below it end: by themselves, interrupted, or killed."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    process.stdout.close()
    left = []  # of the session that the process began, also where the parent is gone
    for other in psutil.process_iter() if hasattr(os, "getsid") else ():
        with contextlib.suppress(OSError):
            if os.getsid(other.pid) == process.pid:
                left.append(other)
    # Trackers of shared memory outlive the workers and the first signal, to clean up.
    for end in (psutil.Process.terminate, psutil.Process.kill):
        deadline = time.monotonic() + 5
        while (left := [child for child in left if _runs(child)]) and time.monotonic() < deadline:
            time.sleep(0.01)
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(child)
    remove_joblib_folders(process.pid)


def _runs(process):
    """Tell whether a process runs; one that has ended may stay listed until init notes it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def remove_joblib_folders(pid):
    """Remove what joblib has left in shared memory for a process whose workers were killed.

    A task that is on its way at that moment may make a folder anew after it was removed.

    Parameters
    ----------
    pid : int
        The process, which must not be using joblib any more.
    """
    for folder in SHM.glob(f"joblib_memmapping_folder_{pid}_*"):
        shutil.rmtree(folder, ignore_errors=True)


def _trace(name, samples, started, seconds, value, exception, high_water):
    """Turn samples into arrays, one row for each process."""
    stamps, shared, trees = zip(*samples, strict=True)
    pids = list(dict.fromkeys(pid for tree in trees for pid in tree))
    absent = dict.fromkeys(KINDS, 0)
    processes = {
        pid: {
            kind: np.array([tree.get(pid, absent)[kind] for tree in trees]) / MIB for kind in KINDS
        }
        for pid in pids
    }
    # Of the largest resident set, all that may not have been anonymous is taken off.
    largest, other = high_water
    others = [tree[pids[0]].get("other", math.inf) for tree in trees if pids[0] in tree]
    return Trace(
        name=name,
        started=started,
        seconds=seconds,
        before_mib=float(sum(process["anon"][0] for process in processes.values())),
        times=np.array(stamps) - started,
        processes=processes,
        shm_mib=np.array([sum(one.values()) for one in shared]) / MIB if HAS_PSS else None,
        metric="memory in use" if HAS_PSS else "USS",
        value=value,
        exception=exception,
        high_water_mib=max(largest - max(other, *others), 0) / MIB,
    )


# %%
# Try it
# ------
# 300 MiB are allocated in the call and freed, then 300 MiB in each of two workers at once: the
# peak is that of the workers, with interpreters and imports.


def allocate(mib):
    """Write to so many MiB and hold them for a moment."""
    block = np.ones(mib * MIB, dtype="uint8")
    time.sleep(0.3)
    return int(block[-1])


def allocate_here_and_in_workers(mib):
    """Allocate in this process, then in two workers at once."""
    from joblib import Parallel, delayed

    allocate(mib)
    return Parallel(n_jobs=2)(delayed(allocate)(mib) for _ in range(2))


if __name__ == "__main__":
    trace = measure(allocate_here_and_in_workers, 300)
    print(trace)
    trace.plot()

    import matplotlib.pyplot as plt

    plt.show()
