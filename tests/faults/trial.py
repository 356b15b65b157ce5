"""One trial: a fresh folder, a run that is disturbed, and one that is not, each in its process."""

import atexit
import ctypes
import faulthandler
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from .inject import KINDS, USED, State, finish, limit_group, start, stop
from .targets import OUT, TARGETS, contents, digest, make_inputs, summary, values_in

SHM, SECONDS, OLD = Path("/dev/shm"), 60, b"an earlier result"
PATHS = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "examples")]


class Trial(NamedTuple):
    """A target, what happens to it, and whether results of an earlier run are there."""

    target: str
    fault: dict
    earlier: str = "none"  # or some, or all

    def __str__(self):
        words = [f"{key}={value}" for key, value in self.fault.items() if key != "kinds"]
        return f"{self.target}, {self.earlier} earlier: {' '.join(words)}"


class Outcome(NamedTuple):
    """How a run ended: returned, raised, ended (by a signal or without a word) or hung."""

    how: str
    value: object = None  # what `summary` says, or the error's type and message
    details: str = ""


class Reference(NamedTuple):
    """An undisturbed run: its result and files, for the image and for its other version."""

    results: tuple  # for both versions
    files: dict  # checksums of all files, by their names
    values: tuple  # for both versions, checksums of the arrays in them
    calls: dict  # kinds of calls, in their order, of the caller and of a worker


class Place:
    """The folders of all trials; each trial has them fresh."""

    def __init__(self, base, is_private):
        self.base, self.is_private, self.mounted = Path(base), is_private, []
        self.group = control_group() if is_private else None
        self.references = {}
        self.work, self.tmp = self.base / "work", self.base / "tmp"
        self.out = self.work / OUT
        for seed in (0, 1):
            make_inputs(self.base / f"inputs-{seed}", seed)

    def fresh(self, version=0):
        """Make the folders anew, with the images."""
        self.unmount()
        for folder in (self.work, self.tmp, *(SHM.iterdir() if self.is_private else ())):
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink(missing_ok=True)
        for file in [*self.base.glob("calls.*"), *self.base.glob("happened")]:
            file.unlink()
        self.tmp.mkdir()
        shutil.copytree(self.base / f"inputs-{version}", self.work)

    def restore_inputs(self):
        """Bring images and masks back to what they were."""
        shutil.copytree(self.base / "inputs-0", self.work, dirs_exist_ok=True)

    def mount(self, folder):
        """Put a file system of 1 MiB in the place of a folder."""
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "faults", folder], check=True)
        self.mounted.append(folder)

    def make_sound(self):
        """Give folders space again, and remove what filled them."""
        self.tmp.mkdir(exist_ok=True)
        for folder in self.mounted:
            subprocess.run(["mount", "-o", "remount,rw,size=64m", folder], check=True)
            (folder / "filler").unlink(missing_ok=True)

    def unmount(self):
        """Remove mounted folders."""
        while self.mounted:
            subprocess.run(["umount", "--lazy", self.mounted.pop()], check=True)

    def close(self):
        """Remove what is outside the folders."""
        self.unmount()
        if self.group:
            self.group.rmdir()

    def reference(self, name):
        """Return the undisturbed run of a target, made when it is first needed."""
        if name not in self.references:
            runs, log = [], {"what": "log", "where": "any", "kinds": KINDS, "n": -1}
            for version, fault in ((1, None), (0, log)):
                self.fresh(version)
                outcome, left = self.run(TARGETS[name], fault)
                if outcome.how != "returned" or left or "failed" in str(outcome.value):
                    raise RuntimeError(f"{name} fails undisturbed: {outcome} {left}")
                runs.insert(0, (outcome.value, values_in(self.out)))
            self.out.mkdir(exist_ok=True)
            shutil.copytree(self.out, self.earlier(name))
            calls = {role: self.logged(role) for role in ("caller", "worker")}
            results, values = zip(*runs, strict=True)
            self.references[name] = Reference(results, contents(self.out), values, calls)
        return self.references[name]

    def earlier(self, name):
        """Return the folder that keeps the results of a target's undisturbed run."""
        return self.base / "earlier" / name.replace(" ", "_")

    def logged(self, role):
        """Return the kinds of calls of the process with the most calls."""
        found = [path.read_text().split() for path in self.base.glob(f"calls.{role}.*")]
        return max(found, key=len, default=[])

    def place_earlier(self, trial):
        """Put results of an earlier run into place; return the contents that each may have."""
        reference, target = self.reference(trial.target), TARGETS[trial.target]
        starts = sorted({name.split("_")[0] for name in reference.files})  # a result's files agree
        starts = starts[:: 2 if trial.earlier == "some" else 1]
        allowed = {}
        for name in reference.files if trial.earlier != "none" else ():
            if name.split("_")[0] not in starts:
                continue
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            if target.replaces:
                (self.out / name).write_bytes(OLD)
            else:
                shutil.copy2(self.earlier(trial.target) / name, self.out / name)
            allowed[name] = {reference.files[name], digest((self.out / name).read_bytes())}
        return allowed

    def run(self, target, fault=None, **options):
        """Run a target in a process and a session of its own; return its outcome, and what stays.

        That is: processes that do not end.
        """
        spec = fault and fault | {
            "base": str(self.base),
            "folders": [str(self.work), str(self.tmp), str(SHM)],
            "group": str(self.group),
        }
        workers = target.workers if fault else 1
        note = self.base / "outcome"
        note.unlink(missing_ok=True)
        call = lambda: target.call(self.work, workers, **options)  # noqa: E731
        pid = os.fork()
        if not pid:
            self.in_child(call, spec, note, target.is_command)
        return self.wait(pid, note)

    def in_child(self, call, spec, note, is_command):
        """Make a call as a program of its own would, note its outcome, and end."""
        try:
            os.setsid()
            log = os.open(self.base / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1), os.dup2(log, 2)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            faulthandler.register(signal.SIGUSR1, file=2)  # to see where it hangs
            sys.modules["__main__"] = types.ModuleType("__main__")  # workers import no harness
            os.chdir(self.work)
            os.environ.pop("OPENBLAS_NUM_THREADS", None)  # what is started anew has its own threads
            os.environ |= {"TMPDIR": str(self.tmp), "PYTHONPATH": os.pathsep.join(PATHS)}
            if spec:
                os.environ["FAULT"] = json.dumps(spec)
                self.enter_group(spec)
            tempfile.tempdir = None
            State.again = lambda: self.again(call)
            outcome = outcome_of(call, None if is_command else spec)
            note.with_suffix(".new").write_bytes(pickle.dumps(outcome))
            os.replace(note.with_suffix(".new"), note)
            threading._shutdown()
            atexit._run_exitfuncs()
        finally:
            os._exit(0)

    def enter_group(self, spec):
        """Put this process into the control group, if its memory will be limited."""
        if spec["what"] == "limit_group":
            limit_group({"group": self.group, "mib": 2**30})
            (self.group / "cgroup.procs").write_text("0")

    def again(self, call):
        """Make the same call in another process, and wait for its end."""
        pid = os.fork()
        if not pid:
            tempfile.tempdir = str(self.tmp)  # to look for it takes a lock, which may be held now
            try:
                outcome = outcome_of(call, None)
                (self.base / "other").write_bytes(pickle.dumps(outcome))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    def wait(self, pid, note):
        """Wait for a process, and for all that it started; return its outcome, and what is left."""
        deadline, status = time.monotonic() + SECONDS, None
        while status is None and time.monotonic() < deadline:
            found, code = os.waitpid(pid, os.WNOHANG)
            status = code if found else time.sleep(0.002)
        if status is None:
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.5)
            kill_session(pid)
            os.waitpid(pid, 0)
            return Outcome("hung", details=(self.base / "log").read_text()), []
        deadline = time.monotonic() + SECONDS / 3
        while (left := session(pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        kill_session(pid)
        messages = (self.base / "log").read_text(errors="replace")
        if note.exists():
            return pickle.loads(note.read_bytes())._replace(details=messages), left
        return Outcome("ended", os.waitstatus_to_exitcode(status), messages), left


def outcome_of(call, spec):
    """Make a call; return its outcome."""
    try:
        start(spec)
        value = call()
        finish()
        return Outcome("returned", summary(value))
    except BaseException as error:
        where = "".join(traceback.format_exception(error))[-2000:]
        return Outcome("raised", (type(error).__name__, str(error), where))
    finally:
        stop()


def session(leader):
    """Return the command lines of the processes of a session, by their numbers."""
    found = {}
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):
            if os.getsid(pid) == leader and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found[pid] = " ".join(psutil.Process(pid).cmdline())
    return found


def kill_session(leader):
    """Kill the processes of a session."""
    for pid in session(leader):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def private_place():
    """Yield the folders of trials; with mounts and a /dev/shm of their own, if root allows it."""
    base = Path(tempfile.mkdtemp(prefix="faults-")).resolve()
    is_private, place = has_mounts(), None
    try:
        if is_private:
            for folder in (base, SHM):
                subprocess.run(["mount", "-t", "tmpfs", "faults", folder], check=True)
        place = Place(base, is_private)
        yield place
    finally:
        if place:
            place.close()
        if is_private:
            subprocess.run(["umount", "--lazy", base], check=False)
        shutil.rmtree(base, ignore_errors=True)


def has_mounts():
    """Give this process mounts of its own; return whether that was allowed."""
    if os.geteuid() or not sys.platform.startswith("linux"):
        return False
    if ctypes.CDLL(None).unshare(0x20000):  # CLONE_NEWNS
        return False
    return not subprocess.run(["mount", "--make-rprivate", "/"], check=False).returncode


def control_group():
    """Make a control group for memory, of version 1 or 2; return its folder, or None."""
    for top in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        with suppress(OSError):
            group = Path(tempfile.mkdtemp(prefix="faults-", dir=top))
            if any((group / name).exists() for name in USED):
                return group
            group.rmdir()
    return None
