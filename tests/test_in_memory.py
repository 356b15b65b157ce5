"""The image in memory or in a mapped file: free space, copies, and files that are removed."""

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from operator import truediv
from pathlib import Path
from pickle import PicklingError
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import psutil
import pytest
from joblib import Parallel, _memmapping_reducer, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor

from beyond_the_masker.pages import PAGES, load_page
from beyond_the_masker.running import load_in_memory
from leftovers import eventually
from made_images import SHAPE, STRAIGHT, assert_same, make_image, make_masks, nifti_masker, save_all

numpy_masker_threads = load_page("plot_in_memory").numpy_masker_threads
page = load_page("plot_mapped_file")
FUNCTIONS = (numpy_masker_threads, page.numpy_masker_joblib_map, page.numpy_masker_mapped)
WITH_FILE = FUNCTIONS[1:]


def by_function(functions):
    """Parametrise with functions, their names being those of the tests."""
    return pytest.mark.parametrize("function", functions, ids=lambda f: f.__name__)


@pytest.fixture(scope="module", autouse=True)
def _workers():
    """Leave no worker behind for the tests of other files."""
    yield
    get_reusable_executor().shutdown(wait=True)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder where temporary folders are made; it must be empty after the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def files(tmp_path):
    """Paths of an image, compressed and not, and of masks."""
    img = make_image((20, 20, 20, 6))
    packed, masks = save_all(tmp_path, img, make_masks(img)[:2])
    img.to_filename(tmp_path / "fmri.nii")
    return {".nii.gz": packed, ".nii": tmp_path / "fmri.nii", "masks": masks}


# Which files are copied
# ----------------------


@by_function(FUNCTIONS)
@pytest.mark.parametrize(
    ("image", "suffix", "can_be_mapped"),
    [
        ({}, ".nii", True),
        ({"dtype": ">f8"}, ".nii", True),
        ({"dtype": "<i2"}, ".nii", True),
        ({"dtype": "<i2"}, ".img", True),
        ({"dtype": "<i2", "scaling": (1.5, 0)}, ".nii", False),
        ({"dtype": "<i2", "scaling": (1, 10)}, ".nii", False),
        ({}, ".nii.gz", False),
        ({}, ".NII.GZ", False),
    ],
)
@pytest.mark.parametrize("load", [str, nib.load, load_in_memory], ids=["path", "lazy", "memory"])
def test_a_copy_is_written_if_needed(
    tmp_path, temporary, monkeypatch, function, image, suffix, can_be_mapped, load
):
    """Threads write none, the joblib map always; the mapped file unless the file can be mapped."""
    img = make_image(**image)
    fmri_path, mask_paths = save_all(tmp_path, img, make_masks(img), suffix)
    copied, write = [], page.write_values
    monkeypatch.setattr(page, "write_values", lambda *args: copied.append(args) or write(*args))
    content = fmri_path.read_bytes()
    with parallel_config(backend="sequential"):
        series = function(load(fmri_path), mask_paths, 2)
        assert_same(series, numpy_masker_threads(fmri_path, mask_paths, 1))
    mapped = can_be_mapped and load is not load_in_memory and function is FUNCTIONS[2]
    assert len(copied) == (function in WITH_FILE and not mapped)
    assert fmri_path.read_bytes() == content


def test_array_in_memory_is_not_copied(monkeypatch):
    """Threads use the array of an image that is in memory already."""
    img = make_image()
    masks = make_masks(img)
    monkeypatch.setattr(np, "empty", lambda *args, **kwargs: pytest.fail("a second array"))
    series = numpy_masker_threads(img, masks, 2)
    np.testing.assert_array_equal(series[3], np.asarray(img.dataobj).reshape(-1, 7).T)


@by_function(WITH_FILE)
def test_the_copy_holds_the_final_values(temporary, monkeypatch, function):
    """The copy is the image in its final type, complete before the workers begin."""
    img = make_image(dtype="<i2", scaling=(0.5, 3))
    img = nib.Nifti1Image.from_bytes(img.to_bytes())
    copies = []

    def look(self, tasks):
        copies.extend(path.read_bytes() for path in temporary.rglob("fmri"))
        return []

    monkeypatch.setattr(page.Parallel, "__call__", look)
    function(img, make_masks(img), 2)
    assert copies == [np.asanyarray(img.dataobj).tobytes("F")]
    assert len(copies[0]) == 8 * np.prod(SHAPE)


def test_workers_in_another_folder_find_the_file(tmp_path, monkeypatch, temporary):
    """Workers that were started elsewhere find a file with a relative path."""
    fmri_path, mask_paths = save_all(tmp_path, make_image(), make_masks(make_image()), ".nii")
    reference = nifti_masker(fmri_path, mask_paths)
    Parallel(n_jobs=2)(delayed(os.getcwd)() for _ in range(2))  # they start here
    monkeypatch.chdir(tmp_path)
    for folder in (".", "temporary"):
        monkeypatch.setattr(tempfile, "tempdir", folder)
        for function in WITH_FILE:
            assert_same(function("fmri.nii", mask_paths, 2), reference)


@by_function(WITH_FILE)
def test_joblib_makes_no_copy_of_the_map(tmp_path, temporary, monkeypatch, function):
    """Workers get the file's name, not the array's content or a second file of it."""
    img = make_image((40, 40, 40, 8))  # more than 1 MB
    fmri_path, mask_paths = save_all(tmp_path, img, make_masks(img)[:2])
    monkeypatch.setattr(_memmapping_reducer, "dump", lambda *args: truediv(1, 0))
    with pytest.raises(PicklingError):
        Parallel(n_jobs=2)(delayed(np.sum)(np.asarray(img.dataobj)) for _ in range(2))
    assert_same(function(fmri_path, mask_paths, 2), nifti_masker(fmri_path, mask_paths))


# Free space
# ----------


@by_function(WITH_FILE)
@pytest.mark.parametrize(
    ("shape", "free", "message"),
    [
        pytest.param((8, 8, 8, 2), 4096, None, id="just enough"),
        pytest.param((8, 8, 8, 2), 4095, "TMPDIR", id="one byte too little"),
        pytest.param(
            (64, 64, 64, 48),
            30 * 2**20,
            "48 MiB of disk, and {folder}.* has 30 MiB left.*TMPDIR",
            id="too little",
        ),
    ],
)
def test_free_space_is_checked_first(temporary, monkeypatch, function, shape, free, message):
    """Too little free space raises an error before anything is written."""
    img = nib.Nifti1Image(np.broadcast_to(np.float32(1), shape), STRAIGHT)
    mask_img = make_masks(img)[2]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    if message:
        with pytest.raises(OSError, match=message.format(folder=temporary)):
            function(img, [mask_img], 1)
    else:
        assert function(img, [mask_img], 1)[0].shape == (2, 1)


@by_function(WITH_FILE)
def test_nothing_is_left_when_writing_fails(files, temporary, monkeypatch, function):
    """A disk that fills up raises the system's error, and leaves nothing."""

    def full(content):
        raise OSError(28, "No space left on device")

    def open_full(path, mode):
        Path(path).touch()
        return contextlib.closing(SimpleNamespace(write=full, close=lambda: None))

    monkeypatch.setattr(page, "open", open_full, raising=False)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device"):
        function(files[".nii.gz"], files["masks"], 2)


# What is left behind
# -------------------


@by_function(FUNCTIONS)
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_nothing_is_left_when_a_worker_fails(files, temporary, monkeypatch, function, n_jobs):
    """The copy of the image is removed when a region fails."""
    there = []

    class Failing(page.Parallel):
        def __call__(self, tasks):
            there.extend(temporary.rglob("fmri"))
            return super().__call__((truediv, (1, 0), {}) for _ in tasks)

    for one in (page, load_page("plot_in_memory")):
        monkeypatch.setattr(one, "Parallel", Failing)
    with pytest.raises(ZeroDivisionError):
        function(files[".nii.gz"], files["masks"], n_jobs)
    assert len(there) == (function in WITH_FILE)  # and the fixture sees that it is gone


def open_files(process):
    """The files of a process, open or mapped, that are images or copies."""
    maps = process.memory_maps() if hasattr(process, "memory_maps") else []
    paths = [*(f.path for f in process.open_files()), *(m.path for m in maps)]
    return [path for path in paths if "fmri" in Path(path).name]


@by_function(FUNCTIONS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_files_are_closed(files, temporary, function, suffix):
    """No process keeps the image or its copy open or mapped, which would keep its disk space."""
    function(files[suffix], files["masks"], 2)
    gc.collect()
    this = psutil.Process()
    assert open_files(this) == []
    for worker in this.children(recursive=True):  # they let go a moment after their results came
        assert eventually(lambda worker=worker: not open_files(worker))


SCRIPT = """
import sys, time
from pathlib import Path

examples, name, fmri_path, mask_path = sys.argv[1:]
sys.path.insert(0, examples)
from beyond_the_masker.pages import load_page

page = load_page("plot_mapped_file")

class Waiting(page.Parallel):
    def __call__(self, tasks):
        Path("waits").touch()
        return super().__call__((time.sleep, (600,), {}) for _ in range(2))

page.Parallel = Waiting
getattr(page, name)(fmri_path, [mask_path] * 2, 2)
"""


@pytest.mark.chance
@by_function(WITH_FILE)
def test_nothing_is_left_after_an_interrupt(tmp_path, temporary, files, function):
    """Ctrl-C removes the copy from the disk."""
    (tmp_path / "script.py").write_text(SCRIPT)
    fmri_path, mask_path = files[".nii.gz"], files["masks"][0]
    process = subprocess.Popen(
        [sys.executable, "script.py", PAGES, function.__name__, fmri_path, mask_path],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        waits = tmp_path / "waits"
        assert eventually(lambda: waits.exists() or process.poll() is not None)
        assert list(temporary.rglob("fmri"))
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    assert "KeyboardInterrupt" in stderr
