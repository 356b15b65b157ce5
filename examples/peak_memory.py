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
* **PSS.** Resident set sizes (:term:`RSS`) of several processes cannot be added: each
  counts every page that it shares with the others in full. The proportional set size
  (:term:`PSS`) divides a shared page by the number of processes that have it, so its sum is
  what the machine really spends. RSS is recorded next to it, since that is what most tools
  show, and the unique set size (:term:`USS`), which leaves shared pages out. Linux alone
  tells the PSS; on other systems USS stands in for it, and the trace says so.

Files in ``/dev/shm``, which joblib and shared memory use, take memory also while no process
looks at them, and then no process's PSS contains them: they are recorded separately.

A peak of the calling process between two samples is not lost: the kernel keeps its largest
resident set size. (What several processes need at once, only a sample can tell.)

Before the machine runs out of memory, the call is stopped, and the trace says so.

A difference of less than about 50 MiB is noise. With several workers the noise is larger:
it is chance how many of them are at their own peak at the same moment.
"""

import contextlib
import functools
import json
import math
import os
import pickle
import select
import shutil
import signal
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
SHM = Path("/dev/shm")  # where Linux keeps the files of shared memory
HAS_PSS = "pss" in psutil.Process().memory_full_info()._fields

# %%
# What a measurement gives back
# -----------------------------


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
        PSS of the fresh process after its imports and before the call, in MiB.
    times : array of shape (n_samples,)
        Seconds since the call began. The first sample was taken before the call.
    processes : dict of int to dict of str to array of shape (n_samples,)
        For each process id the arrays ``"pss"``, ``"rss"`` and ``"uss"`` in MiB; zero where
        the process did not exist. The first process is the one that made the call.
    metric : {"PSS", "USS"}
        What the arrays called ``"pss"`` hold: USS on systems that do not tell the PSS.
    value : object
        What the call returned.
    exception : BaseException or None
        What the call raised instead.
    shm_mib : array of shape (n_samples,) or None
        What the files in ``/dev/shm`` took more than before the call, in MiB: shared memory
        takes room there whether or not a process looks at it, and other programs' files
        count too. None where there is no such folder.
    high_water_mib : tuple of float
        PSS and RSS in MiB of the calling process at the peak that the kernel noted; zero where
        shared memory was used, which a process may map, and RSS count, more than once.
    """

    name: str
    started: float
    seconds: float
    before_mib: float
    times: np.ndarray
    processes: dict
    metric: str = "PSS"
    value: object = field(default=None, repr=False)
    exception: BaseException | None = None
    shm_mib: np.ndarray | None = None
    high_water_mib: tuple = (0, 0)

    def total(self, metric="pss"):
        """Sum a metric, ``"pss"``, ``"rss"`` or ``"uss"``, over all processes.

        Returns
        -------
        array of shape (n_samples,), in MiB
        """
        return np.sum([process[metric] for process in self.processes.values()], axis=0)

    @property
    def peak_pss_mib(self):
        """The largest sum of PSS over all processes, in MiB."""
        return float(max(self.total("pss").max(), self.high_water_mib[0]))

    @property
    def peak_rss_mib(self):
        """The largest sum of RSS over all processes, in MiB."""
        return float(max(self.total("rss").max(), self.high_water_mib[1]))

    def result(self):
        """Give what the call returned, or raise what it raised."""
        if self.exception is not None:
            raise self.exception
        return self.value

    def __str__(self):
        text = (
            f"{self.name}\n    peak {self.peak_pss_mib:,.0f} MiB {self.metric}, "
            f"{self.peak_rss_mib:,.0f} MiB RSS; {self.before_mib:,.0f} MiB before the call; "
            f"{self.seconds:.1f} s; {counted(len(self.processes), 'process')}"
        )
        return text if self.exception is None else f"{text}\n    raised {self.exception!r}"

    def save(self, path, metric="pss"):
        """Write the trace in mprof's file format: ``mprof plot path`` draws it.

        Parameters
        ----------
        path : str or pathlib.Path
        metric : {"pss", "rss", "uss"}
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
        for i, stamp in enumerate(stamps):
            lines.append(f"MEM {total[i]:.6f} {stamp:.4f}")
            for pid, process in self.processes.items():
                if pid != caller and process[metric][i]:
                    lines.append(f"CHLD {pid} {process[metric][i]:.6f} {stamp:.4f}")
        unfinished = path.with_name(path.name + ".unfinished")
        unfinished.write_text("\n".join(lines) + "\n")
        unfinished.replace(path)

    def plot(self, ax=None, image_mib=None, title=None):
        """Draw memory over time: caller and workers stacked, RSS above them.

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
        children = np.sum([worker["pss"] for worker in workers], axis=0) if workers else None
        layers = [caller["pss"]] if children is None else [caller["pss"], children]
        labels = ["calling process", "workers"][: len(layers)]
        colors = ["#0072b2", "#d55e00"][: len(layers)]
        hatches = [None, "//"][: len(layers)]
        style = {"colors": colors, "hatch": hatches, "edgecolor": "white", "lw": 0}
        ax.stackplot(self.times, layers, labels=labels, **style)
        halo = [patheffects.withStroke(linewidth=3.5, foreground="white")]
        for level, line, label in (
            (self.total("rss"), "--", "RSS, summed"),
            (np.full(len(self.times), self.before_mib), ":", "before the call"),
        ):
            ax.plot(self.times, level, color="black", ls=line, path_effects=halo, label=label)
        if image_mib:
            ax.axhline(image_mib, color="#009e73", path_effects=halo, label="the image")
        right = max(self.times[-1], self.seconds)  # a short call has a sample before it only
        ax.set(xlabel="seconds", ylabel=f"MiB ({self.metric})", xlim=(0, right))
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter("{x:,.0f}")
        peak = f"peak {self.peak_pss_mib:,.0f} MiB {self.metric}"
        ax.set_title(f"{title}:\n{peak}", loc="left", fontsize=11)
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.22), frameon=False)
        if own:
            ax.figure.set_label(
                f"Memory over time of {title}: the calling process and its workers stacked, the "
                f"sum of RSS above them.\n\nArea chart. {self.in_words(title)}"
            )
        return ax

    def in_words(self, title=None):
        """Say what a figure of the trace shows, with its numbers."""
        total = self.total("pss")
        when = max(self.times[total.argmax()], 0)
        n_children = len(self.processes) - 1
        children = counted(n_children, "child process")
        children += ", joblib's helpers included" if n_children else ""
        when, seconds = (f"{s:.1f} s" if s >= 1 else f"{s:.2g} s" for s in (when, self.seconds))
        return (
            f"{title or self.name}: {self.metric} rises from {self.before_mib:,.0f} MiB before the "
            f"call to a peak of {self.peak_pss_mib:,.0f} MiB, {when} into the call of "
            f"{seconds}, with {children}; summed RSS peaks at {self.peak_rss_mib:,.0f} MiB."
        )


def counted(number, name):
    """Write a number of things: 1 process, 2 processes, no process."""
    return f"{number or 'no'} {name}{'es' if number > 1 else ''}"


# %%
# How much is left
# ----------------
# What may still be taken is not only a matter of the machine. A container, or a job on a cluster,
# is ended when it takes more than its control group allows.


def available_mib(root="/"):
    """Tell how much memory can still be taken, by the machine and by its control groups.

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
    """Tell how much is kept free: 3 % of the memory, and 256 MiB at least."""
    return max(0.03 * psutil.virtual_memory().total / MIB, 256)


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
        MiB by which the machine's available memory may become less during the call.
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
    boot = f"import sys; sys.path[:] = {folders}; import peak_memory as m; m._serve()"
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
            problem = "It ended before it was ready; what it said is above."
        if problem:
            raise RuntimeError(f"The new process for {name} could not be prepared.\n{problem}")
        samples = [_sample(process.pid)]
        process.stdin.write(b"go\n")
        process.stdin.flush()
        with Watchdog(process.pid, memory_mib) as watchdog:
            samples += _watch(process, name)
        outcome = _receive(process, samples)
        if watchdog.reason:
            outcome = *outcome[:2], None, MemoryError(f"{name}: {watchdog.reason}"), 0
    except BaseException:
        _end(process, patience=0)
        raise
    _end(process, patience=30)
    return _trace(name, samples, *outcome)


class Watchdog:
    """Stop a process and its workers before the machine runs out of memory.

    A thread looks every few milliseconds at what is available. When it is too little, the
    workers are killed, which frees most, and the process is interrupted, so that it can
    clean up. If there is still less, it is killed, too. Trackers of shared memory are spared:
    they remove what others leave behind.

    Parameters
    ----------
    pid : int
        The process.
    memory_mib : float
        MiB by which the available memory may become less.

    Attributes
    ----------
    reason : str
        Why the process was stopped; empty if it was not.
    """

    def __init__(self, pid, memory_mib=math.inf):
        self.pid, self.reason = pid, ""
        self.begin = available_mib()
        self.least = max(self.begin - memory_mib, reserve_mib())
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def _look(self):
        left = self.begin
        while not self.over.wait(0.005):
            left = available_mib()
            if left < self.least:
                break
        else:
            return
        self.reason = (
            f"stopped while it ran, with {self.begin - left:,.0f} MiB taken: the machine had "
            f"{left:,.0f} MiB left, and {self.least:,.0f} MiB are kept free."
        )
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            for worker in process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if not any("resource_tracker" in word for word in worker.cmdline()):
                        worker.kill()
            process.send_signal(signal.SIGINT)
            patience = time.monotonic() + 10
            while not self.over.wait(0.005):
                if available_mib() < self.least / 2 or time.monotonic() > patience:
                    process.kill()
                    return


def _serve():
    """Run in the fresh process: get a call, wait for the word, run it, send the result."""
    reply = os.fdopen(os.dup(1), "wb")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    os.dup2(2, 1)  # what the call prints must not mix with the replies
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
    """Read, or reset, the largest RSS in bytes that Linux has noted for this process."""
    with contextlib.suppress(OSError, ValueError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        else:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if "VmHWM" in line)
    return 0


def _watch(process, name):
    """Sample the tree until the call is over; show on a terminal what is going on."""
    samples = []
    with tqdm(
        desc=name,
        bar_format="{desc}: {elapsed}{postfix}",
        disable=None,  # where there is no terminal
        leave=False,
        file=sys.__stderr__,
    ) as progress:
        pause, longest = PAUSES
        while not select.select([process.stdout], [], [], pause)[0]:
            start = time.perf_counter()
            samples.append(_sample(process.pid))
            pause = min(max(PAUSES[0], 2 * (time.perf_counter() - start)), longest)
            tree = samples[-1][2].values()
            pss_mib = sum(pss for pss, _, _ in tree) / MIB
            progress.set_postfix_str(f"{pss_mib:,.0f} MiB in {len(tree)} processes")
    return samples


def _sample(pid):
    """The time, the bytes in /dev/shm, and PSS, RSS and USS of a process and all below it."""
    stamp, shm, tree = time.time(), None, {}
    if SHM.is_dir():
        room = os.statvfs(SHM)
        shm = (room.f_blocks - room.f_bfree) * room.f_frsize
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            # A process may end between two looks.
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                info = process.memory_full_info()
                tree[process.pid] = (info.pss if HAS_PSS else info.uss, info.rss, info.uss)
    return stamp, shm, tree


def _receive(process, samples):
    """Start, seconds, value, exception and largest RSS, also if the process was killed."""
    try:
        process.stdout.read(1)
        return pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError):
        code = process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        error = RuntimeError(f"The measured process was ended by {how}.")
        return samples[0][0], samples[-1][0] - samples[0][0], None, error, 0


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
    for other in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(other.pid) == process.pid:
                left.append(other)
    # Trackers of shared memory outlive the workers and the first signal, to clean up.
    for end in (psutil.Process.terminate, psutil.Process.kill):
        left = psutil.wait_procs(left, timeout=5)[1]
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(child)
    remove_joblib_folders(process.pid)


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
    stamps, shm, trees = zip(*samples, strict=True)
    pids = list(dict.fromkeys(pid for tree in trees for pid in tree))
    absent = (0, 0, 0)
    numbers = np.array([[tree.get(pid, absent) for pid in pids] for tree in trees]) / MIB
    pss, rss, _ = numbers[0, 0]
    shared = shm[0] is not None and max(shm) - shm[0] > MIB  # RSS may count a block twice
    if HAS_PSS and high_water and not shared:  # what the caller took more is its own
        high_water = pss + high_water / MIB - rss, high_water / MIB
    else:
        high_water = 0, 0
    return Trace(
        name=name,
        started=started,
        seconds=seconds,
        before_mib=float(numbers[0, :, 0].sum()),
        times=np.array(stamps) - started,
        processes={
            pid: dict(zip(("pss", "rss", "uss"), numbers[:, i].T, strict=True))
            for i, pid in enumerate(pids)
        },
        metric="PSS" if HAS_PSS else "USS",
        value=value,
        exception=exception,
        high_water_mib=high_water,
        shm_mib=None if shm[0] is None else (np.array(shm) - shm[0]) / MIB,
    )


# %%
# Try it
# ------
# 300 MiB are allocated in the call, then once more in each of two workers.


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

# %%
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_measured_methods.py`: how the methods of this site are measured
#   with it.
# * :ref:`sphx_glr_auto_examples_plot_memory_over_time.py`: the same with mprof, for a whole script.
