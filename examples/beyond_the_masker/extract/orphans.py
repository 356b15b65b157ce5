"""End joblib's workers when the process that started them is gone, and free what it shared.

A worker that only takes voxels loads this, and NumPy: no other package.
"""

import multiprocessing
import os
import shutil
import threading
import time
import uuid
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from beyond_the_masker.files import create_locked, file_named, remove_abandoned

SHM = Path("/dev/shm")


def end_with_parent():
    """Let this process end soon after the one that started it, if it is a worker of joblib's loky.

    Otherwise it stays for five minutes or more, together with the shared memory that it uses.
    """
    is_worker = multiprocessing.current_process().name.startswith("LokyProcess")
    if is_worker and "parent" not in [thread.name for thread in threading.enumerate()]:
        parent = multiprocessing.parent_process().pid  # it may be gone: getppid() is another one
        watch = threading.Thread(target=wait_and_end, args=[parent], name="parent")
        watch.daemon = True
        watch.start()


WORKERS = {"initializer": end_with_parent}  # options of joblib.Parallel


def wait_and_end(parent):
    """End this process when its parent is another one than that which started it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@contextmanager
def shared_block(size):
    """Yield a block of shared memory of some bytes; remove it in the end.

    Linux ends a process that writes to ``/dev/shm`` when it is full. So all the space is taken
    first, and a MemoryError is raised if there is too little.
    """
    if not SHM.is_dir():  # as on macOS
        with closed_and_removed(SharedMemory(create=True, size=size)) as block:
            yield block
        return
    remove_abandoned(SHM, "masker-*")  # of processes killed with the helper that removes blocks
    if size > (free := shutil.disk_usage("/dev/shm").free):
        raise no_space(size, f"has {free / 2**20:,.0f} MiB left")
    with create_locked(lambda: SHM / f"masker-{uuid.uuid4().hex[:12]}", mode=0o600) as file:
        try:
            take_space(file, size)
            block = SharedMemory(Path(file.name).name)
        except BaseException:
            os.unlink(file.name)
            raise
        with closed_and_removed(block), file_named(f"{file.name} (or joblib's workers)"):
            yield block


@contextmanager
def closed_and_removed(block):
    """Close and remove a block in the end."""
    try:
        yield block
    finally:
        block.close()
        block.unlink()


def take_space(file, size):
    """Take the space of a block, or raise a MemoryError: another program may have been faster."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise no_space(size, f"has less ({error})") from error


def no_space(size, found):
    """Return a MemoryError for a block of some bytes."""
    return MemoryError(
        f"The image needs {size / 2**20:,.0f} MiB of shared memory, and /dev/shm {found}. Make "
        "room there (docker: --shm-size), or use a method that needs no shared memory."
    )
