"""Let something happen at the n-th call of a process: a call fails, a file changes, a signal comes.

A fault is a dict. ``where`` is caller or worker, ``kinds`` the kinds of calls that count, on files
of the trial only, ``n`` which of them; with 0, it happens before the work begins. ``what`` names
one of `ACTIONS`; the other entries are its own.
"""

import builtins
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import ClassVar

OPEN, FSYNC, ALLOCATE, TIME = io.open, os.fsync, os.posix_fallocate, time.time
AUDITED = {"open": "open", "os.rename": "rename", "os.link": "link", "os.symlink": "link"}
AUDITED |= {"os.mkdir": "mkdir", "os.truncate": "write", "import": "import"}
KINDS = ("open", "read", "write", "flush", "rename", "link", "mkdir", "import")
PACKAGES = ("beyond_the_masker", "joblib", "nibabel", "numpy", "tqdm")
# What a control group uses, and its limit, in versions 1 and 2.
USED = {"memory.usage_in_bytes": "memory.limit_in_bytes", "memory.current": "memory.max"}
MOST = 4096  # bytes of one read or write, so that small files need several, as large ones do


class State:
    """What this process is in for."""

    fault = None
    role = "caller"
    n = 0
    unflushed: ClassVar = set()  # inodes of files that a power cut would lose
    thread = threading.local()
    again = None  # runs the same call once more


def start(fault, role="caller"):
    """Begin to count the calls of this process."""
    State.role, State.n = role, 0
    State.fault = fault
    if fault and not fault["n"] and fault["where"] == role:
        act("", "", None)


def stop():
    """Let this process be as it was."""
    State.fault = None
    for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (hard, hard))


def finish():
    """Let a fault happen that comes after the last call."""
    if State.fault and State.fault["n"] == "end":
        act("", "", None)


def start_from_environ():
    """Begin in a worker of joblib, or in a command; not in their helpers."""
    words = " ".join(sys.orig_argv)
    if "FAULT" in os.environ and "resource_tracker" not in words:
        start(json.loads(os.environ["FAULT"]), "worker" if "popen_loky" in words else "caller")


def is_ours(path):
    """Return whether a path is in the trial's folders or in shared memory."""
    with suppress(TypeError):
        path = os.path.abspath(os.fsdecode(path))
        return path.startswith(tuple(State.fault["folders"]))
    return False


def is_counted(kind, path):
    """Return whether a call may be the one."""
    fault = State.fault
    if not fault or kind not in fault["kinds"] or fault["where"] not in (State.role, "any"):
        return False
    if kind == "import":
        return path.partition(".")[0] in PACKAGES and path.count(".") < 2
    return is_ours(path)


def called(kind, path, partly=None):
    """Count a call, and let the fault happen if it is the one."""
    if getattr(State.thread, "is_busy", False) or not is_counted(kind, path):
        return
    State.thread.is_busy = True
    try:
        State.n += 1
        if State.fault["what"] == "log":
            with OPEN(f"{State.fault['base']}/calls.{State.role}.{os.getpid()}", "a") as file:
                file.write(f"{kind}\n")
        elif State.n == State.fault["n"]:
            act(kind, path, partly)
    finally:
        State.thread.is_busy = False


def act(kind, path, partly):
    """Let the fault happen, in the first process that comes here."""
    fault = State.fault
    with suppress(FileExistsError):
        os.close(os.open(f"{fault['base']}/happened", os.O_CREAT | os.O_EXCL))
        ACTIONS[fault["what"]](fault, kind, path, partly)


def audit(event, arguments):
    """Count what Python reports by itself."""
    if State.fault and event in AUDITED:
        called(AUDITED[event], arguments[0])


class File(io.FileIO):
    """A file whose reads and writes are counted, and are short."""

    def readinto(self, buffer):
        called("read", self.name)
        return super().readinto(memoryview(buffer).cast("B")[:MOST])

    def write(self, content):
        content = memoryview(content).cast("B")[:MOST]
        called("write", self.name, lambda: super(File, self).write(content[: len(content) // 2]))
        State.unflushed.add(os.fstat(self.fileno()).st_ino)
        return super().write(content)


def open_counted(
    file,
    mode="r",
    buffering=-1,
    encoding=None,
    errors=None,
    newline=None,
    closefd=True,
    opener=None,
):
    """Do what ``open`` does, with a `File` below if it is one of the trial."""
    if State.fault is None or isinstance(file, int) or not is_ours(file):
        return OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
    raw = File(file, mode.replace("b", "").replace("t", ""), closefd, opener)
    if buffering == 0:
        return raw
    reads = io.BufferedRandom if "+" in mode else io.BufferedReader
    binary = reads(raw) if "r" in mode or "+" in mode else io.BufferedWriter(raw)
    return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)


def path_of(descriptor):
    """Return the path of an open file."""
    with suppress(OSError):
        return os.readlink(f"/proc/self/fd/{descriptor}")
    return ""


def fsync(descriptor):
    """Flush a file to the disk: what was written is safe from a power cut."""
    called("flush", path_of(descriptor))
    State.unflushed.discard(os.fstat(descriptor).st_ino)
    FSYNC(descriptor)


def allocate(descriptor, offset, size):
    """Take space for a file."""
    called("write", path_of(descriptor))
    ALLOCATE(descriptor, offset, size)


# -- What happens ------------------------------------------------------------------------------


def fail(fault, kind, path, partly):
    """Let the call fail, after a part of what was to be written."""
    if partly:
        partly()
    named = () if kind in ("read", "write", "flush") else (os.fsdecode(path),)
    raise OSError(fault["errno"], os.strerror(fault["errno"]), *named)


def kill(fault, *_):
    """Send a signal to this process, its parent, or the whole group."""
    if fault["who"] == "group":
        os.killpg(0, fault["signal"])
    else:
        os.kill(os.getppid() if fault["who"] == "parent" else os.getpid(), fault["signal"])


def cut(*_):
    """Cut the power: files lose what was not flushed, whatever their names are now."""
    for folder, _, names in os.walk(State.fault["folders"][0]):
        for name in names:
            path = os.path.join(folder, name)
            if os.stat(path).st_ino in State.unflushed:
                os.truncate(path, os.path.getsize(path) // 2)
    os.killpg(0, signal.SIGKILL)


def change(fault, *_):
    """Change a file: truncate, append, touch, replace, or overwrite it and set the time back."""
    path, how, stat = fault["file"], fault["how"], os.stat(fault["file"])
    if how == "truncate":
        os.truncate(path, stat.st_size // 2)
    elif how == "touch":
        os.utime(path)
    elif how == "replace":
        shutil.copy(fault["other"], f"{path}.new")
        os.replace(f"{path}.new", path)
    else:
        with (
            OPEN(path, "ab" if how == "append" else "r+b") as file,
            OPEN(fault["other"], "rb") as f,
        ):
            file.write(f.read(stat.st_size))
        if how == "same":
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def flip(fault, *_):
    """Flip bits of a file, and keep its time."""
    path, stat = fault["file"], os.stat(fault["file"])
    with OPEN(path, "r+b") as file:
        content = bytearray(file.read())
        for share in fault["bits"]:
            bit = int(share * 8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
        file.seek(0)
        file.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def space(fault, *_):
    """Fill a folder, make it small or read-only, or remove it."""
    folder, how = fault["folder"], fault["how"]
    if how == "removed":
        shutil.rmtree(folder, ignore_errors=True)
    elif how == "full":
        with suppress(OSError), OPEN(f"{folder}/filler", "wb", 0) as file:
            while file.write(bytes(MOST)):
                pass
    else:
        disk = os.statvfs(folder)
        size = (disk.f_blocks - disk.f_bfree + fault.get("pages", 0)) * disk.f_bsize
        option = "ro" if how == "read-only" else f"size={size}"
        subprocess.run(["mount", "-o", f"remount,{option}", folder], check=False)


def limit(fault, *_):
    """Limit the memory of this process, to some MiB more than it has, or in all."""
    which = getattr(resource, fault["limit"])
    with OPEN("/proc/self/statm") as file:
        pages = [int(word) for word in file.read().split()]
    used = pages[0 if which == resource.RLIMIT_AS else 5] * resource.getpagesize()
    size = int(fault["mib"] * 2**20) + (0 if fault.get("in_all") else used)
    resource.setrlimit(which, (size, resource.getrlimit(which)[1]))


def limit_group(fault, *_):
    """Limit the memory of a control group to some MiB more than it has: beyond, Linux kills."""
    for usage, limit in USED.items():
        with suppress(OSError), OPEN(f"{fault['group']}/{usage}") as file:
            size = int(file.read()) + int(fault["mib"] * 2**20)
            with OPEN(f"{fault['group']}/{limit}", "w") as file:
                file.write(str(size))


def meanwhile(*_):
    """Let another call like this one run from its beginning to its end."""
    State.again()


def set_clock(fault, *_):
    """Set the clock."""
    time.time = lambda: TIME() + fault["seconds"]


def set_times(fault, *_):
    """Set the times of all images and masks."""
    for path in fault["files"]:
        os.utime(path, (fault["seconds"], fault["seconds"]))


def crowd(fault, *_):
    """Put ten thousand files into a folder."""
    os.makedirs(fault["folder"], exist_ok=True)
    for number in range(10_000):
        os.close(os.open(f"{fault['folder']}/crowd-{number}", os.O_CREAT))


ACTIONS = {action.__name__: action for action in (fail, kill, cut, change, flip, space, limit)}
ACTIONS |= {action.__name__: action for action in (limit_group, meanwhile, set_clock, set_times)}
ACTIONS |= {"crowd": crowd}
builtins.open = io.open = open_counted
os.fsync, os.posix_fallocate = fsync, allocate
sys.addaudithook(audit)
