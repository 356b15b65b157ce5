"""The meter agrees with what the kernel charges a control group for the same call."""

import mmap
import os
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest

from beyond_the_masker.meter import GROUPS, HAS_PSS, MIB, SHM, measure
from leftovers import eventually

pytestmark = pytest.mark.chance
HOLD = 0.3  # seconds for which known amounts are held


def group_folders():
    """Yield the folders where a control group could be made."""
    for line in Path("/proc/self/cgroup").read_text().splitlines() if HAS_PSS else ():
        _, controllers, place = line.split(":", maxsplit=2)
        for controller in GROUPS.keys() & set(controllers.split(",")):
            top = Path("/", GROUPS[controller][0])
            yield from (top / place.strip("/"), top)


@pytest.fixture
def group():
    """Make a memory control group; skip the test where that is not possible."""
    for parent in group_folders():
        with suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix="meter_", dir=parent))
            if (folder / "memory.stat").exists():
                break
            folder.rmdir()  # the controller is not on for it
    else:
        pytest.skip("no memory control group can be made here: only root can, on Linux")
    yield folder
    eventually(lambda: remove(folder), 60)  # a process in it may still be ending


def remove(folder):
    """Remove an empty group; return whether it is gone."""
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def charged_mib(group):
    """Return what the kernel charges: anonymous and shared memory, swapped parts included."""
    lines = (group / "memory.stat").read_text().splitlines()
    stat = {name: int(value) for name, value in map(str.split, lines)}
    if (group / "memory.swap.current").exists():  # version 2
        stat["swap"] = int((group / "memory.swap.current").read_text())
    kinds = "anon" if "anon" in stat else "rss", "shmem", "swap"
    return sum(stat.get(kind, 0) for kind in kinds) / MIB


def inside(group, function, *args):
    """Make a call in a control group, which is charged for all that it takes from here on."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    return function(*args)


def agree(group, function, *args):
    """Measure a call in the group, and compare the meter's peak with the kernel's."""
    charges, over = [0], threading.Event()

    def watch():
        while not over.wait(0.001):
            charges.append(charged_mib(group))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        trace = measure(inside, group, function, *args)
    finally:
        over.set()
        thread.join()
    trace.result()
    assert trace.above_mib == pytest.approx(max(charges), rel=0.05, abs=15)
    return trace


# --- The calls


def fill(block):
    """Write to every page of a block, without a second one."""
    np.frombuffer(block, "uint8")[::1024] = 1


def fork_and_write(mib):
    """Let a forked child write to half of what it inherited."""
    block = np.ones(mib * MIB, "uint8")
    child = os.fork()
    if not child:
        block[: len(block) // 2] = 2
        time.sleep(HOLD)
        os._exit(0)
    os.waitpid(child, 0)


def fork_often(mib):
    """Fork children in a loop, which end at once."""
    block = np.ones(mib * MIB, "uint8")
    for _ in range(30):
        children = [os.fork() or os._exit(0) for _ in range(4)]
        for child in children:
            os.waitpid(child, 0)
    return int(block[-1])


def start_slowly(mib):
    """Start a program that runs in the caller's memory until a pipe is opened."""
    block = np.ones(mib * MIB, "uint8")
    with tempfile.TemporaryDirectory() as folder:
        pipe = os.path.join(folder, "pipe")
        os.mkfifo(pipe)
        opener = subprocess.Popen(["/bin/sh", "-c", f"sleep {HOLD}; : > {pipe}"])
        actions = [(os.POSIX_SPAWN_OPEN, 0, pipe, os.O_RDONLY, 0)]
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}, file_actions=actions), 0)
        opener.wait()
    return int(block[-1])


def attach_and_leave(name, seconds):
    """Attach to a block, read all of it, and detach, in a loop."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        block = SharedMemory(name=name)
        np.frombuffer(block.buf, "uint8")[::1024].max()
        block.close()


def share_a_block(mib):
    """Let four workers attach to a block and detach, in a loop."""
    from joblib import Parallel, delayed

    block = SharedMemory(create=True, size=mib * MIB)
    try:
        fill(block.buf)
        Parallel(n_jobs=4)(delayed(attach_and_leave)(block.name, 1) for _ in range(4))
    finally:
        block.close()
        block.unlink()


def write_and_hold(mib, file):
    """Write so much into a file, and hold it."""
    for _ in range(mib):
        file.write(b"1" * MIB)
    file.flush()
    time.sleep(HOLD)


def write_closed_file(mib):
    """Hold a file in shared memory that no process has open or maps."""
    path = SHM / f"meter_{os.getpid()}"
    with path.open("wb") as file:
        write_and_hold(mib, file)
    time.sleep(HOLD)
    path.unlink()


def write_removed_file(mib):
    """Hold a file in shared memory that has no name any more."""
    with tempfile.TemporaryFile(dir=SHM) as file:
        write_and_hold(mib, file)


def write_to_memfd(mib):
    """Hold memory that has a file descriptor only."""
    with open(os.memfd_create("meter"), "wb") as file:
        write_and_hold(mib, file)


def map_anonymously(mib):
    """Share memory without a file with a child, which writes half of it."""
    shared = mmap.mmap(-1, mib * MIB)
    child = os.fork()
    half = mib * MIB // 2
    fill(memoryview(shared)[:half] if child else memoryview(shared)[half:])
    time.sleep(HOLD)
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def make_segment(mib):
    """Hold a System V segment that no process has attached, and as much memory again."""
    import ctypes

    library = ctypes.CDLL(None)
    library.shmat.restype = ctypes.c_void_p
    segment = library.shmget(0, mib * MIB, 0o1600)
    address = ctypes.c_void_p(library.shmat(segment, None, 0))
    ctypes.memset(address, 1, mib * MIB)
    library.shmdt(address)
    block = np.ones(mib * MIB, "uint8")
    time.sleep(HOLD)
    library.shmctl(segment, 0, None)
    return int(block[-1])


def map_a_file(path):
    """Map a file on disk, and read all of it."""
    data = np.memmap(path, "uint8", mode="r")
    found = int(data[::1024].max())
    time.sleep(HOLD)
    return found


FAST = [fork_and_write, start_slowly, write_closed_file, map_anonymously]
SLOW = [fork_often, share_a_block, write_removed_file, write_to_memfd, make_segment]
CALLS = [*FAST, *(pytest.param(call, marks=pytest.mark.extensive) for call in SLOW)]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_peak_is_what_the_kernel_charges(call, group):
    """Memory in use is what the kernel charges without page cache."""
    trace = agree(group, call, 120)
    assert trace.above_mib > 100


def test_mapped_file_is_no_part_of_the_peak(tmp_path, group):
    """Pages of a file on disk, which the kernel may drop, are recorded separately."""
    path = tmp_path / "file"
    path.write_bytes(b"1" * (120 * MIB))
    trace = agree(group, map_a_file, path)
    assert trace.above_mib < 15
    assert trace.peak_file_mib > 110


def test_shared_map_without_an_administrator(group, monkeypatch):
    """A shared anonymous map counts once, also where only the maps of processes are seen."""
    look = os.stat

    def refuse(path, *args, **kwargs):
        if "map_files" in str(path):
            raise PermissionError(path)
        return look(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refuse)
    trace = agree(group, map_anonymously, 120)
    assert trace.above_mib > 100
