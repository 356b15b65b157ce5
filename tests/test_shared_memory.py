"""Shared memory: the block is checked for space, filled once, closed and removed."""

import contextlib
import errno
import functools
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from joblib import parallel_config

from beyond_the_masker.experiments.pages import PAGES, load_page
from beyond_the_masker.extract import orphans
from leftovers import eventually
from made_images import STRAIGHT, make_image, make_masks, save_all

page = load_page("plot_shared_memory")
needs_dev_shm = pytest.mark.skipif(
    not Path("/dev/shm").is_dir(), reason="shared memory is looked at in /dev/shm"
)


@pytest.fixture
def blocks(monkeypatch):
    """The blocks that the page makes or attaches to; `track` is what it asked for."""
    recorded = []

    class Recorded(SharedMemory):
        def __init__(self, *args, track=True, **kwargs):
            super().__init__(*args, **kwargs)
            self.track = track
            recorded.append(self)

    monkeypatch.setattr(page, "SharedMemory", Recorded)
    monkeypatch.setattr(orphans, "SharedMemory", Recorded)
    with parallel_config(backend="sequential"):  # what workers attach to is here, too
        yield recorded


@pytest.fixture
def files(tmp_path):
    """Paths of an image of 200 kB and of a mask."""
    img = make_image((20, 20, 20, 6))
    fmri_path, (mask_path,) = save_all(tmp_path, img, make_masks(img)[:1], ".nii")
    return {"whole": fmri_path, "mask": mask_path}


def exists(block_name):
    """Return whether a block exists, without attaching to it."""
    return Path("/dev/shm", block_name).exists()


@needs_dev_shm
@pytest.mark.parametrize("problem", [None, "worker fails", "file is cut"])
def test_block_is_closed_and_removed(blocks, files, monkeypatch, problem):
    """After the call nothing holds the image, in this process or in /dev/shm."""
    expected = contextlib.nullcontext()
    if problem == "worker fails":
        monkeypatch.setattr(page, "numpy_masker_shared_single", lambda *_: 1 / 0)
        expected = pytest.raises(ZeroDivisionError)
    elif problem:
        os.truncate(files["whole"], 9000)
        expected = pytest.raises(OSError, match="incomplete or damaged")
    with expected as raised:  # holds the traceback: nothing is closed by being forgotten
        page.numpy_masker_shared_parallel(files["whole"], [files["mask"]], 2)
    if problem:
        # Where a traceback is shown with its variables, this would crash Python.
        variables = [v for entry in raised.traceback[1:] for v in entry.frame.f_locals.values()]
        below = {type(array.base) for array in variables if isinstance(array, np.ndarray)}
        assert mmap.mmap not in below
    assert blocks
    assert all(block.buf is None for block in blocks)
    assert not any(exists(block.name) for block in blocks)


def test_worker_closes_the_block_when_it_fails(blocks):
    """A worker that fails closes the block."""
    wrong_mask = np.ones((9, 9, 9), bool)
    with orphans.shared_block(2**10) as block, pytest.raises(IndexError) as raised:
        page.numpy_masker_shared_single(block.name, (2, 2, 2, 2), np.dtype("f4"), wrong_mask)
    assert raised  # holds the traceback
    assert [attached.buf for attached in blocks] == [None, None]


def test_only_the_maker_tracks_the_block(blocks, monkeypatch):
    """From Python 3.13 on, a process that attaches does not track the block."""
    monkeypatch.setattr(page, "sys", SimpleNamespace(version_info=(3, 13)))
    page.numpy_masker_shared_parallel(make_image(), make_masks(make_image()), 1)
    assert [block.track for block in blocks] == [True] + [False] * 4


@needs_dev_shm
def test_free_space_is_checked_first(blocks, monkeypatch):
    """Too little free space raises an error before anything is written."""
    img = nib.Nifti1Image(np.broadcast_to(np.float32(1), (64, 64, 64, 48)), STRAIGHT)
    masks, usage = [make_masks(img)[2]], SimpleNamespace(free=48 * 2**20 - 1)
    monkeypatch.setattr(shutil, "disk_usage", {"/dev/shm": usage}.__getitem__)
    message = "48 MiB of shared memory, and /dev/shm has 48 MiB left.*--shm-size.*use a method"
    with pytest.raises(MemoryError, match=message):
        page.numpy_masker_shared_parallel(img, masks, 1)
    assert not blocks
    usage.free += 1
    assert page.numpy_masker_shared_parallel(img, masks, 1)[0].shape == (48, 1)


@needs_dev_shm
def test_space_is_taken_before_it_is_written_to(blocks, monkeypatch):
    """If another program takes the space after the check, an error says so; no block is left."""
    paths = []

    def fail(descriptor, *_):
        paths.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(MemoryError, match=r"/dev/shm has less .*No space left.*--shm-size"):
        page.numpy_masker_shared_parallel(make_image(), make_masks(make_image())[:1], 1)
    assert not blocks
    assert [path.exists() for path in paths] == [False]


@needs_dev_shm
def test_blocks_of_killed_processes_are_removed(blocks):
    """The next call removes what a process left that was killed with all its helpers."""
    left = Path(f"/dev/shm/masker-{os.getpid()}")
    with orphans.shared_block(10) as block:
        left.touch()
        page.numpy_masker_shared_parallel(make_image(), make_masks(make_image())[:1], 1)
        assert exists(block.name)
    assert not left.exists()


def test_systems_without_dev_shm_can_share(blocks, monkeypatch):
    """Where there is no /dev/shm, as on macOS, its free space is not checked."""
    monkeypatch.setattr(orphans, "SHM", Path("/missing"))
    monkeypatch.setattr(shutil, "disk_usage", {}.__getitem__)
    series = page.numpy_masker_shared_parallel(make_image(), make_masks(make_image())[:1], 1)
    assert series[0].shape[0] == 7


SCRIPT = """
import os, signal, sys, time
from pathlib import Path

examples, event, fmri_path, mask_path = sys.argv[1:]
sys.path.insert(0, examples)
from beyond_the_masker.extract import orphans
from beyond_the_masker.experiments.pages import load_page

page = load_page("plot_shared_memory")
whole = page.numpy_masker_shared_single
caller = os.getpid()

def worker(block_name, *arguments):
    note = Path(f"{os.getpid()}.unfinished")
    note.write_text(block_name)
    note.rename(note.with_suffix(".block"))
    if event == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while event == "waits":
        time.sleep(0.01)
        if os.getppid() != caller:  # joblib would keep the worker, and it the block, for minutes
            os._exit(1)
    return whole(block_name, *arguments)

page.numpy_masker_shared_single = worker
page.numpy_masker_shared_parallel(fmri_path, [mask_path] * 2, 2)
"""

# Interrupted after it removed a semaphore and before it noted that, joblib reports a leak.
OF_A_SEMAPHORE = re.compile(
    r"^.*/loky/backend/resource_tracker\.py:\d+: UserWarning: resource_tracker: "
    r"(There appear to be \d+ leaked semlock objects|/loky-\d+-\w+: FileNotFoundError).*\n"
    r"  warnings\.warn\(.*\n",
    re.M,
)


def wait_for_end(process, end, folder):
    """End a process once both workers have their block; return its messages."""
    try:
        if end:
            blocks = functools.partial(folder.glob, "*.block")
            assert eventually(lambda: len([*blocks()]) == 2 or process.poll() is not None)
            (os.killpg if end == signal.SIGINT else os.kill)(process.pid, end)
        # Until all have closed it: also the workers, and the trackers, which come last.
        return process.communicate(timeout=300)[1]
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # which the trackers outlive, to clean up
        raise


@pytest.mark.chance
@needs_dev_shm
@pytest.mark.parametrize(
    ("worker", "end", "status", "message"),
    [
        ("succeeds", None, 0, ""),
        ("is killed", None, 1, "TerminatedWorkerError"),
        ("waits", signal.SIGINT, -signal.SIGINT, "KeyboardInterrupt"),
        ("waits", signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_nothing_is_left_in_shared_memory(tmp_path, files, worker, end, status, message):
    """However the program ends, the block is removed."""
    (tmp_path / "script.py").write_text(SCRIPT)
    before = {path.name for path in Path("/dev/shm").iterdir()}
    process = subprocess.Popen(
        [sys.executable, "script.py", PAGES, worker, files["whole"], files["mask"]],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    stderr = wait_for_end(process, end, tmp_path)
    assert process.returncode == status
    assert not exists(next(tmp_path.glob("*.block")).read_text())
    assert message in stderr
    if status == -signal.SIGINT:
        stderr = OF_A_SEMAPHORE.sub("", stderr)
    if status != -signal.SIGKILL:  # else the tracker removes the block, and reports that
        assert "leaked" not in stderr
        assert "resource_tracker" not in stderr
    new = {path.name for path in Path("/dev/shm").iterdir()} - before
    assert not [name for name in new if re.search(rf"[-_]{process.pid}[-_]", name)]  # joblib's
