"""Measure the peak memory of a call, workers included.

This file stands alone. It needs NumPy, psutil, cloudpickle and tqdm, and Matplotlib for figures.
Copy it next to your script and write

.. code-block:: python

    from meter import measure

    trace = measure(func, *args)
    print(trace)
    trace.plot()

The call runs in a fresh Python process, so nothing from earlier calls counts, and another process
samples it and all that it starts. The peak is of :term:`memory in use`, which the machine cannot
take back: the anonymous memory of all processes, swapped parts included, and shared memory once.
For comparison with other tools, a trace also has the sums of :term:`RSS`, which count shared pages
once per process, and of :term:`PSS` and :term:`USS`.

On Linux, the parts come from these files:

anonymous memory
    ``Pss_Anon`` and ``SwapPss`` in ``/proc/PID/smaps_rollup``. All processes are listed before the
    first is read, and those that end meanwhile are left out, so that no page of a fork counts
    twice. So are children that still run in their parent's memory (vfork).
shared memory
    The space of files in ``/dev/shm``, mapped or not; and, while a process has them open or mapped,
    removed files, files in another tmpfs, memfds and shared anonymous maps. System V segments come
    from ``/proc/sysvipc/shm``. What was there before the call does not count, nor do files of other
    users, files that only other programs hold, and other processes' joblib folders.
mapped files
    ``Pss_File`` in ``/proc/PID/smaps_rollup``: no part of the peak, since the kernel drops such
    pages on demand.

Other systems offer no such files: there the trace holds the sum of USS, and its `metric` is "USS".

The kernel records the caller's largest resident set, so a peak of the calling process between two
samples is not missed; one of several processes can be. A file that is mapped and unmapped between
two samples counts as memory. A call is stopped before the machine runs out of memory.
"""

import contextlib
import ctypes
import functools
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cloudpickle
import numpy as np
import psutil
from tqdm import tqdm

__all__ = ["Trace", "Watchdog", "measure", "measure_within"]

PAUSES = 0.002, 0.1  # shortest and longest pause between samples, in seconds
MIB = 2**20
MOST_UNKNOWN = 32 * MIB  # by which resident pages of files may vary; imports bring some
MODULE = __spec__.name if __spec__ else Path(__file__).stem  # as the fresh process imports it
SHM = Path("/dev/shm")
ROLLUP = Path("/proc/self/smaps_rollup")
HAS_PSS = ROLLUP.exists() and "Pss_Anon" in ROLLUP.read_text()
PR_SET_PDEATHSIG = 1  # of Linux's prctl
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has one signal, which ends a process
INTERRUPT = signal.SIGINT if hasattr(signal, "SIGKILL") else KILL
KINDS = ("anon", "file", "pss", "rss", "uss")
GROUPS = {  # by the controller in /proc/self/cgroup: folder, limit and use of control groups
    "": ("sys/fs/cgroup", "memory.max", "memory.current"),  # version 2
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}


# The result of a measurement


@dataclass
class Trace:
    """Memory of a call and of all its processes over time; sizes are in MiB."""

    name: str  #: The function's name.
    started: float  #: `time.time` at the start of the call.
    seconds: float  #: Duration of the call.
    before_mib: float  #: Memory in use after the imports and before the call.
    times: np.ndarray  #: Seconds since the call began, (n_samples,); the first precedes it.
    #: By process id, the arrays ``"anon"`` (anonymous memory), ``"file"`` (mapped files),
    #: ``"pss"``, ``"rss"`` and ``"uss"``, each of shape (n_samples,); zero while the process did
    #: not exist. The first process made the call.
    processes: dict
    #: Shared memory, counted once, (n_samples,); None where the system does not report it.
    shm_mib: np.ndarray | None = None
    #: The quantity of `peak_mib`: ``"memory in use"``, or ``"USS"`` on a system that does not
    #: report anonymous memory. The arrays ``"anon"`` and ``"pss"`` then hold USS as well.
    metric: str = "memory in use"
    value: object = field(default=None, repr=False)  #: What the call returned.
    exception: BaseException | None = None  #: What the call raised.
    high_water_mib: float = 0  #: The caller's largest anonymous memory, recorded by the kernel.

    def total(self, metric="in use"):
        """Return the sum of a metric over all processes in MiB, of shape (n_samples,).

        The metric is ``"in use"``, which is anonymous plus shared memory, or one of `processes`.
        """
        if metric == "in use":
            return self.total("anon") + (0 if self.shm_mib is None else self.shm_mib)
        return np.sum([process[metric] for process in self.processes.values()], axis=0)

    @property
    def peak_mib(self):
        """The peak of memory in use."""
        return float(max(self.total().max(), self.high_water_mib))

    @property
    def above_mib(self):
        """The peak minus the memory in use before the call."""
        return self.peak_mib - self.before_mib

    @property
    def peak_file_mib(self):
        """The peak of mapped files, whose pages the kernel may drop."""
        return float(self.total("file").max())

    @property
    def peak_pss_mib(self):
        """The peak of the sum of PSS over all processes."""
        return float(self.total("pss").max())

    @property
    def peak_rss_mib(self):
        """The peak of the sum of RSS over all processes."""
        return float(self.total("rss").max())

    def result(self):
        """Return the call's value, or raise its exception."""
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

    def save(self, path):
        """Write memory in use, and children's anonymous memory, as ``mprof plot path`` draws it."""
        total, stamps = self.total(), self.started + self.times
        label = "_".join(self.name.split())  # mprof separates its fields with spaces
        lines = [
            f"CMDLINE {self.name} (memory in use)",
            f"FUNC {label} {total[0]:.6f} {self.started:.4f} "
            f"{total[-1]:.6f} {self.started + self.seconds:.4f} 0",
        ]
        _, *children = self.processes.items()
        for i, stamp in enumerate(stamps):
            lines.append(f"MEM {total[i]:.6f} {stamp:.4f}")
            for pid, process in children:
                if process["anon"][i]:
                    lines.append(f"CHLD {pid} {process['anon'][i]:.6f} {stamp:.4f}")
        unfinished = Path(f"{path}.unfinished")
        unfinished.write_text("\n".join(lines) + "\n")
        unfinished.replace(path)

    def plot(self, ax=None, image_mib=None, title=None):
        """Draw memory over time: caller, workers and shared memory stacked, files above them.

        Draw into `ax`, or into a new figure, and return the axes. The size of an image is drawn
        as a line for comparison. The title is the function's name by default.
        """
        import matplotlib.pyplot as plt
        from matplotlib.patheffects import withStroke

        if ax is None:
            ax = plt.figure(figsize=(4.2, 4.4), layout="constrained").gca()
        self._stack_layers(ax)
        halo = [withStroke(linewidth=2.4, foreground="white")]
        black = {"color": "black", "lw": 1.2, "path_effects": halo}
        with_files = self.total() + self.total("file")
        ax.plot(self.times, with_files, ls="--", label="with mapped files", **black)
        ax.axhline(self.before_mib, ls=":", label="before the call", **black)
        if image_mib:
            look = black | {"color": "#cc79a7"}
            ax.axhline(image_mib, label="the image", **look)
        right = max(self.times[-1], self.seconds)  # a short call may have one sample, before it
        ax.set(xlabel="seconds", ylabel=f"MiB ({self.metric})", xlim=(0, right))
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter("{x:,.0f}")
        text = f"{title or self.name}:\npeak {self.peak_mib:,.0f} MiB"
        ax.set_title(text, loc="left", fontsize=11)
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.22), frameon=False)
        return ax

    def _stack_layers(self, ax):
        """Draw the layers of memory in use."""
        caller, *workers = (process["anon"] for process in self.processes.values())
        layers = [("calling process", caller, "#0072b2", None)]
        if workers:
            layers.append(("workers", np.sum(workers, axis=0), "#d55e00", "//"))
        if self.shm_mib is not None and self.shm_mib.max() >= 1:
            layers.append(("shared memory", self.shm_mib, "#009e73", "++"))
        labels, values, colors, hatches = zip(*layers, strict=True)
        style = {"colors": colors, "hatch": hatches, "edgecolor": "white", "lw": 0}
        ax.stackplot(self.times, values, labels=labels, **style)


def in_seconds(seconds):
    """Write a duration: 0.173 s, 21.3 s, 1,203 s."""
    return f"{seconds:,.0f} s" if seconds >= 99.95 else f"{seconds:#.3g} s"


def counted(number, name):
    """Write a number of processes: 1 process, 2 processes, no process."""
    return f"{number or 'no'} {name}{'es' if number > 1 else ''}"


# Measuring


def measure(func, /, *args, **kwargs):
    """Run a call in a fresh process and record the memory of its process tree.

    Parameters
    ----------
    func : callable
        A function of a module or of the running script.
    *args, **kwargs
        Its arguments. They are pickled into the fresh process before the measurement begins: to
        measure reading a file, pass its path.

    Returns
    -------
    Trace
        With the call's value or exception. It is a MemoryError if the call was stopped because
        the machine was about to run out of memory. The call can clean up then, as after Ctrl-C.

    Raises
    ------
    RuntimeError
        The fresh process could not be prepared, for example because an import failed.
    """
    return measure_within(math.inf, func, *args, **kwargs)


def measure_within(memory_mib, func, /, *args, **kwargs):
    """Measure a call as `measure` does, and stop it when it takes more than `memory_mib`.

    The limit counts from the level before the call. The exception of a stopped call is a
    MemoryError.
    """
    name = getattr(func, "__name__", type(func).__name__)
    call = cloudpickle.dumps((func, args, kwargs))
    process = _start_process()
    try:
        _prepare(process, call, name)
        tree = Tree(process.pid)
        samples = [tree.sample()]
        with Watchdog(process.pid, memory_mib) as watchdog:
            process.stdin.write(b"go\n")
            process.stdin.flush()
            samples += _watch(tree, process, name)
        outcome = _receive(process, samples)
        if watchdog.reason:
            error = MemoryError(f"{name}: {watchdog.reason}")
            outcome = Outcome(outcome.started, outcome.seconds, exception=error)
    except BaseException:
        _end(process, patience=0)
        raise
    _end(process, patience=30)
    return _trace(name, samples, outcome)


class Outcome(NamedTuple):
    """How a call ended."""

    started: float
    seconds: float
    value: object = None
    exception: BaseException | None = None
    high_water: tuple = (0, 0)  # as `_high_water` returns it


def _start_process():
    """Start a Python process that waits for a call, with this process's import path."""
    folders = json.dumps([str(folder) for folder in sys.path])
    boot = f"import sys; sys.path[:] = {folders}; from {MODULE} import _serve; _serve()"
    return subprocess.Popen(
        [sys.executable, "-c", boot],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # so that Ctrl-C reaches the call once, from _end
    )


def _prepare(process, call, name):
    """Send a pickled call to the fresh process, and wait until its arguments are there."""
    try:
        pickle.dump(call, process.stdin)
        process.stdin.flush()
        problem = pickle.load(process.stdout)
    except (EOFError, BrokenPipeError):
        problem = "It ended before it was ready; its messages are above."
    if problem:
        raise RuntimeError(f"The new process for {name} could not be prepared.\n{problem}")


def _watch(tree, process, name):
    """Sample the tree until the call is over; show progress on a terminal."""
    samples, pause = [], PAUSES[0]
    # The fresh process sends a byte after the call; a killed one closes the pipe.
    end = threading.Thread(target=process.stdout.read, args=(1,), daemon=True)
    end.start()
    end.join(pause)
    style = {"bar_format": "{desc}: {elapsed}{postfix}", "leave": False, "file": sys.__stderr__}
    with tqdm(desc=name, disable=None, **style) as progress:  # disabled without a terminal
        while end.is_alive():
            start = time.perf_counter()
            sample = tree.sample()
            samples.append(sample)
            pause = np.clip(2 * (time.perf_counter() - start), *PAUSES)
            number = counted(len(sample.processes), "process")
            progress.set_postfix_str(f"{sample.in_use_mib:,.0f} MiB in {number}")
            end.join(pause)
    return samples


def _receive(process, samples):
    """Return the outcome that the fresh process sends, or that it was killed."""
    try:
        return pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError):
        code = process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        error = RuntimeError(f"The measured process was ended by {how}.")
        started = samples[0].stamp
        return Outcome(started, samples[-1].stamp - started, exception=error)


def _trace(name, samples, outcome):
    """Turn samples into arrays, one for each kind and process."""
    trees = [sample.processes for sample in samples]
    pids = list(dict.fromkeys(pid for tree in trees for pid in tree))
    absent = dict.fromkeys(KINDS, 0)
    processes = {
        pid: {k: np.array([tree.get(pid, absent)[k] for tree in trees]) / MIB for k in KINDS}
        for pid in pids
    }
    # From the largest resident set, subtract all pages that may not have been anonymous then. If
    # the call maps a file, there may have been more of them than any sample saw.
    largest, other = outcome.high_water
    others = [tree[pids[0]].get("other", math.inf) for tree in trees if pids[0] in tree]
    others.append(other)
    if max(others) - min(others) > MOST_UNKNOWN:
        largest = 0
    shared = np.array([sum(sample.shared.values()) for sample in samples]) / MIB
    return Trace(
        name=name,
        started=outcome.started,
        seconds=outcome.seconds,
        before_mib=float(sum(process["anon"][0] for process in processes.values())),
        times=np.array([sample.stamp for sample in samples]) - outcome.started,
        processes=processes,
        shm_mib=shared if HAS_PSS else None,
        metric="memory in use" if HAS_PSS else "USS",
        value=outcome.value,
        exception=outcome.exception,
        high_water_mib=max(largest - max(others), 0) / MIB,
    )


# In the fresh process


def _serve():
    """Receive a call, wait for the signal to start, run it, and send the outcome."""
    reply = os.fdopen(os.dup(1), "wb")
    if sys.platform == "linux":  # interrupt the call if the measuring process is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    os.dup2(2, 1)  # keep what the call prints out of the replies
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=reply.close)  # so that the pipe ends with this process
    try:
        func, args, kwargs = pickle.loads(pickle.load(sys.stdin.buffer))
        problem = None
    except BaseException:
        problem = traceback.format_exc()
    pickle.dump(problem, reply)
    reply.flush()
    if problem or not sys.stdin.buffer.readline():
        return
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a call that reads standard input finds none
    value = exception = None
    _high_water(reset=True)
    started, clock = time.time(), time.perf_counter()
    try:
        value = func(*args, **kwargs)
    except BaseException as error:
        exception = error
    seconds = time.perf_counter() - clock
    outcome = Outcome(started, seconds, value, exception, _high_water())
    reply.write(b"\n")  # ends the sampling
    reply.flush()
    reply.write(_pickled(outcome))
    reply.flush()


def _pickled(outcome):
    """Pickle an outcome; a RuntimeError replaces a value or an exception that cannot be pickled."""
    try:
        pickle.loads(cloudpickle.dumps(outcome.exception))
    except Exception:  # such as an exception with other arguments than its class
        text = "".join(traceback.format_exception_only(outcome.exception)).strip()
        outcome = outcome._replace(exception=RuntimeError(text))
    try:
        return cloudpickle.dumps(outcome)
    except Exception as error:
        return cloudpickle.dumps(outcome._replace(value=None, exception=RuntimeError(repr(error))))


def _high_water(reset=False):
    """Return this process's largest RSS since the reset, and how much of RSS is not anonymous."""
    with contextlib.suppress(OSError, KeyError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        else:
            size = bytes_in(Path("/proc/self/status").read_text())
            return size["VmHWM"], size["RssFile"] + size["RssShmem"]
    return 0, 0


# Stopping


class Watchdog:
    """Stop a process and its workers before the machine runs out of memory; a context manager.

    A thread checks the free memory, and whether the processes have taken more than `memory_mib`
    since the beginning. If so, it kills the workers and interrupts the process, which can clean up;
    if this does not help, it kills the process. `reason` is why it was stopped, or empty.
    """

    def __init__(self, pid, memory_mib=math.inf):
        self.pid, self.memory_mib, self.reason = pid, memory_mib, ""
        self.tree = Tree(pid) if memory_mib < math.inf else None
        self.begin = self.tree.sample().in_use_mib if self.tree else 0
        reserve, free = reserve_mib(), available_mib()
        self.reserve = reserve if free >= reserve else free / 2  # already short: half of the rest
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def _watch(self):
        while not self.reason and not self.over.wait(0.005):
            self.reason = self._problem()
        if self.reason:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._stop(psutil.Process(self.pid))

    def _problem(self):
        """Return why the process must be stopped, or nothing."""
        most, reserve = self.memory_mib, self.reserve
        taken = self.tree.sample().in_use_mib - self.begin if self.tree else 0
        if taken > most:
            return f"stopped with {taken:,.0f} MiB above the start: {most:,.0f} MiB are allowed."
        if (free := available_mib()) < reserve:
            left = f"the machine had {free:,.0f} MiB left"
            return f"stopped: {left}, and {reserve:,.0f} MiB are kept free."
        return ""

    def _stop(self, process):
        for worker in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                # Trackers of shared memory remove what the others leave behind.
                if not any("resource_tracker" in word for word in worker.cmdline()):
                    worker.kill()
        process.send_signal(INTERRUPT)
        deadline = time.monotonic() + 10
        while not self.over.wait(0.005):
            if available_mib() < self.reserve / 2 or time.monotonic() > deadline:
                process.kill()
                return


def _end(process, patience):
    """Let the process end, interrupt it or kill it, and end all that it started."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    for seconds, number in ((patience, INTERRUPT), (10, KILL)):
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
    process.wait()
    process.stdout.close()
    # Trackers of shared memory outlive the workers and the first signal, to clean up.
    for end in (psutil.Process.terminate, psutil.Process.kill):
        deadline = time.monotonic() + 5
        while (left := _running(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(one)
    remove_joblib_folders(process.pid)


def _running(session):
    """Return the running processes of a session, also those whose parent is gone."""
    found = []
    for process in psutil.process_iter() if hasattr(os, "getsid") else ():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            # An ended process may stay listed as a zombie.
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def remove_joblib_folders(pid):
    """Remove the folders that the killed workers of a process leave in shared memory."""
    for folder in SHM.glob(f"joblib_memmapping_folder_{pid}_*"):
        shutil.rmtree(folder, ignore_errors=True)


# Sampling a tree of processes


class Sample(NamedTuple):
    """Memory of a tree of processes at one moment."""

    stamp: float  # time.time
    shared: dict  # (device, inode) of each piece of shared memory: bytes
    processes: dict  # process id: bytes by kind, as `read_process` returns them

    @property
    def in_use_mib(self):
        """Memory in use, in MiB."""
        anonymous = sum(process["anon"] for process in self.processes.values())
        return (sum(self.shared.values()) + anonymous) / MIB


class Tree:
    """The process with the id `pid` and everything that it starts."""

    def __init__(self, pid):
        self.pid = pid
        self.shared = SharedMemory() if HAS_PSS and SHM.is_dir() else None

    def sample(self):
        """Read all processes and return a `Sample`."""
        stamp, read = time.time(), {}
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.pid)
            # List all before the first is read: otherwise a page could be read in a parent, and
            # once more in a child that was forked in between.
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error, OSError):  # it has ended
                    read[process.pid] = read_process(process)
        processes = {pid: sizes for pid, sizes in read.items() if counts(pid, read)}
        return Sample(stamp, self.shared.sample(processes) if self.shared else {}, processes)


def read_process(process):
    """Return the bytes of a process by kind, and as its file of /proc names them."""
    if not HAS_PSS:
        info = process.memory_full_info()
        return dict.fromkeys(KINDS, info.uss) | {"file": 0, "rss": info.rss}
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    if not text:
        raise ProcessLookupError(process.pid)  # a zombie
    size = bytes_in(text)
    return size | {
        "anon": size["Pss_Anon"] + size.get("SwapPss", 0),
        "file": size["Pss_File"],
        "pss": size["Pss"],
        "rss": size["Rss"],
        "uss": size["Private_Clean"] + size["Private_Dirty"],
        "other": size["Rss"] - size["Anonymous"],  # resident pages that are not anonymous
        "place": text.partition(" ")[0],  # its range of addresses
    }


def bytes_in(text):
    """Return the sizes in a file of /proc that has lines such as ``Rss: 12 kB``, in bytes."""
    return {name: int(kb) * 1024 for name, kb in re.findall(r"(\w+):\s+(\d+) kB", text)}


def counts(pid, read):
    """Return whether the memory that was read of a process belongs to the sum."""
    if not HAS_PSS:
        return True
    # If it has ended since, the pages that it shared may have been read as another's alone.
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    parent = read.get(int(status[1]))
    return status[0] not in "ZX" and not (parent and borrows(pid, read[pid], parent))


def borrows(pid, own, parent):
    """Return whether a child was read while it ran in its parent's memory, from vfork to exec."""
    if own["place"] != parent["place"] or own["Private_Dirty"] <= own["Anonymous"] / 2:
        return False
    kinds = "Rss", "Private_Dirty", "Anonymous"
    differences = [abs(own[kind] - parent[kind]) for kind in kinds]
    if max(differences) >= 2**16:
        return False
    # It may have written to a page between the two reads. If so, it has left that memory by now.
    return not any(differences) or place_of(pid) != own["place"]


def place_of(pid):
    """Return the range of addresses of a process, or nothing if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/smaps_rollup").read_text().partition(" ")[0]


# Shared memory


class SharedMemory:
    """Pieces of shared memory that processes take from now on: files in a tmpfs and the like."""

    def __init__(self):
        self.began = time.time()
        self.kernel, self.devices = memory_devices()
        self.before = {key: size_of(status) for key, (_, status) in files_in(SHM).items()}
        self.pids = set()  # of the processes so far
        self.ours = set()  # keys of the pieces that these processes have had open or mapped
        self.checked = {}  # other files: size when their holders were last checked, and the answer

    def sample(self, processes):
        """Return the bytes of each piece by its key, without those from before the call."""
        self.pids |= set(processes)
        named, found, hidden = files_in(SHM), {}, {}
        for pid in processes:
            for key, status, *place in held_files(pid, self.devices):
                self.ours.add(key)
                if status:
                    found[key] = status
                else:
                    hidden.setdefault(key, []).append((pid, *place))
        for key in found.keys() - named.keys() - self.before.keys():  # in another tmpfs than SHM
            if found[key].st_ctime < self.began - 0.1:  # and older than the call
                self.before[key] = size_of(found[key])
        for key, (path, status) in named.items():
            if key in self.ours or self._is_ours(key, path, status):
                found[key] = status
        sizes = {key: size_of(status) for key, status in found.items()}
        sizes |= {key: mapped_bytes(maps) for key, maps in hidden.items() if key not in found}
        for number, owner, size in segments():
            if owner in self.pids or (self.kernel, number) in self.ours:
                sizes[self.kernel, number] = size
        return {key: max(size - self.before.get(key, 0), 0) for key, size in sizes.items()}

    def _is_ours(self, key, path, status):
        """Return whether a file that our processes were never seen to hold is theirs."""
        if joblib := re.search(r"/joblib_memmapping_folder_(\d+)_", path):
            return int(joblib[1]) in self.pids
        small = size_of(status) < 2**16  # such as a semaphore: not worth reading every process
        if small or key in self.before or status.st_uid != os.geteuid():
            return False
        size, ours = self.checked.get(key, (None, True))
        if size != size_of(status) and ours:
            others = set(psutil.pids()) - self.pids
            held = (held for pid in others for held, *_ in held_files(pid, {key[0]}))
            ours = key not in held
            self.checked[key] = size_of(status), ours
        return ours


def memory_devices():
    """Return the device of the kernel's own files in memory, and the set of it and every tmpfs."""
    number = os.memfd_create("device")
    kernel = os.fstat(number).st_dev
    os.close(number)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    devices = {device_of(line.split()[2], 10) for line in lines if " - tmpfs " in line}
    return kernel, {kernel, *devices}


def device_of(text, base):
    """Return a device that a file of /proc has as ``major:minor``, as os.stat returns it."""
    return os.makedev(*(int(number, base) for number in text.split(":")))


def size_of(status):
    """Return the bytes that a file occupies, swapped ones included, whatever its length."""
    return status.st_blocks * 512


def files_in(folder):
    """Return path and status of all files in a folder and below, by device and inode."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                path = os.path.join(place, name)
                status = os.lstat(path)
                found[status.st_dev, status.st_ino] = path, status
    return found


def held_files(pid, devices):
    """Yield key and status of each file on these devices that a process has open or maps.

    If only an administrator may see the status, it is None; place and offset of the map follow.
    """
    folder = f"/proc/{pid}"
    with contextlib.suppress(OSError):
        for number in os.listdir(f"{folder}/fd"):
            with contextlib.suppress(OSError):
                status = os.stat(f"{folder}/fd/{number}")
                if status.st_dev in devices:
                    yield (status.st_dev, status.st_ino), status
    with contextlib.suppress(OSError):
        if not re.search(r"RssShmem:\s+[1-9]", Path(folder, "status").read_text()):
            return
        for line in Path(folder, "maps").read_text(errors="replace").splitlines():
            place, _, offset, device, inode, *_ = line.split(maxsplit=5)
            if inode != "0" and (key := (device_of(device, 16), int(inode)))[0] in devices:
                status = None
                with contextlib.suppress(OSError):
                    status = os.stat(f"{folder}/map_files/{place}")
                yield key, status, place, offset


def mapped_bytes(maps):
    """Return the bytes of a piece whose status is hidden: the shares of its maps in its pages."""
    shares = extent = 0
    for pid, place, offset in maps:
        begin, end = (int(address, 16) for address in place.split("-"))
        extent = max(extent, int(offset, 16) + end - begin)
        with contextlib.suppress(psutil.Error):
            every = psutil.Process(pid).memory_maps(grouped=False)
            shares += sum(one.pss for one in every if one.addr == place)
    return min(shares, extent)  # the shares can add up to more than the piece


def segments():
    """Yield number, creator and bytes of each System V segment."""
    with contextlib.suppress(OSError):
        header, *lines = Path("/proc/sysvipc/shm").read_text().splitlines()
        for line in lines:
            one = dict(zip(header.split(), map(int, line.split()), strict=True))
            yield one["shmid"], one["cpid"], one["rss"] + one["swap"]


# Free memory, of the machine and of the control groups of containers and cluster jobs


def available_mib(root="/"):
    """Return the free memory of the machine, or of this process's control groups if less, in MiB.

    Cached files that the kernel can drop count as free. `root` has the folders proc and sys.
    """
    free = [psutil.virtual_memory().available]
    for limit, used, statistics in _control_groups(root):
        with contextlib.suppress(OSError, ValueError):
            numbers = dict(re.findall(r"(\w+) (\d+)", statistics.read_text()))
            cached = numbers.get("total_inactive_file", numbers.get("inactive_file", 0))
            free.append(limit - int(used.read_text()) + int(cached))
    return max(min(free), 0) / MIB


@functools.cache
def _control_groups(root):
    """List the control groups that limit this process: limit, and the files to read."""
    found, names = [], Path(root, "proc/self/cgroup")
    for line in names.read_text().splitlines() if names.exists() else ():
        _, controllers, place = line.split(":", maxsplit=2)
        for controller in GROUPS.keys() & set(controllers.split(",")):
            top, limit, used = GROUPS[controller]
            folder = Path(root, top, place.strip("/"))
            for group in (folder, *folder.parents):  # some are not visible in a container
                with contextlib.suppress(OSError, ValueError):  # no such file, or no limit: "max"
                    size = int((group / limit).read_text())
                    if size < psutil.virtual_memory().total:
                        found.append((size, group / used, group / "memory.stat"))
    return found


def reserve_mib():
    """Return how much memory is kept free, in MiB: 3% of the machine's, at least 256 MiB."""
    return max(0.03 * psutil.virtual_memory().total / MIB, 256)
