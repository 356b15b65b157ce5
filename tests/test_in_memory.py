"""The image in memory or in a mapped file: free space, copies, and files that are removed."""

import functools
import gc
import os
import shutil
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

from beyond_the_masker.experiments.pages import load_page
from beyond_the_masker.extract.running import load_in_memory
from leftovers import eventually
from made_images import STRAIGHT, assert_same, make_image, make_masks, nifti_masker, save_all

numpy_masker_threads = load_page("plot_in_memory").numpy_masker_threads
page = load_page("plot_mapped_file")
FUNCTIONS = (numpy_masker_threads, page.numpy_masker_joblib_map, page.numpy_masker_mapped)
WITH_FILE = FUNCTIONS[1:]


by_function = functools.partial(pytest.mark.parametrize, "function", ids=lambda f: f.__name__)


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


@by_function(FUNCTIONS)
@pytest.mark.parametrize(
    ("image", "suffix", "can_be_mapped"),
    [
        ({"dtype": ">f8"}, ".nii", True),
        ({"dtype": "<i2"}, ".img", True),
        ({"dtype": "<i2", "scaling": (1.5, 0)}, ".nii", False),
        ({"dtype": "<i2", "scaling": (1, 10)}, ".nii", False),
        ({}, ".NII.GZ", False),
    ],
)
def test_a_copy_is_written_if_needed(
    tmp_path, temporary, monkeypatch, function, image, suffix, can_be_mapped
):
    """Threads write none, the joblib map always; the mapped file unless the file can be mapped."""
    img = make_image(**image)
    fmri_path, mask_paths = save_all(tmp_path, img, make_masks(img), suffix)
    content, expected = fmri_path.read_bytes(), numpy_masker_threads(fmri_path, mask_paths, 1)
    copied, write = [], page.write_values
    monkeypatch.setattr(page, "write_values", lambda *args: copied.append(args) or write(*args))
    for load in (str, nib.load, load_in_memory):
        with parallel_config(backend="sequential"):
            assert_same(function(load(fmri_path), mask_paths, 2), expected)
        mapped = can_be_mapped and load is not load_in_memory and function is FUNCTIONS[2]
        assert len(copied) == (function in WITH_FILE and not mapped)
        copied.clear()
    assert fmri_path.read_bytes() == content


def test_array_in_memory_is_not_copied(monkeypatch):
    """Threads use the array of an image that is in memory already."""
    img, masks = make_image(), make_masks(make_image())
    monkeypatch.setattr(np, "empty", lambda *args, **kwargs: pytest.fail("a second array"))
    assert len(numpy_masker_threads(img, masks, 2)) == 4


@by_function(WITH_FILE)
def test_workers_share_one_file(tmp_path, monkeypatch, temporary, function):
    """Workers started elsewhere find a relative path, and joblib makes no second copy of it."""
    img = make_image((40, 40, 40, 8))  # more than 1 MB, from which joblib maps an array
    fmri_path, mask_paths = save_all(tmp_path, img, make_masks(img)[:2], ".nii")
    Parallel(n_jobs=2)(delayed(os.getcwd)() for _ in range(2))  # they start here
    monkeypatch.setattr(_memmapping_reducer, "dump", lambda *args: truediv(1, 0))
    with pytest.raises(PicklingError):
        Parallel(n_jobs=2)(delayed(np.sum)(np.asarray(img.dataobj)) for _ in range(2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", "temporary")
    assert_same(function("fmri.nii", mask_paths, 2), nifti_masker(fmri_path, mask_paths))


@by_function(WITH_FILE)
def test_free_space_is_checked_first(temporary, monkeypatch, function):
    """Too little free space raises an error before anything is written."""
    img = nib.Nifti1Image(np.broadcast_to(np.float32(1), (64, 64, 64, 48)), STRAIGHT)
    masks, needed = [make_masks(img)[2]], 48 * 2**20
    usage = SimpleNamespace(free=needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert function(img, masks, 1)[0].shape == (48, 1)
    usage.free = needed - 1
    with pytest.raises(OSError, match=f"48 MiB of disk, and {temporary}.* 48 MiB left.*TMPDIR"):
        function(img, masks, 1)


@by_function(WITH_FILE)
def test_nothing_is_left_when_writing_fails(files, temporary, monkeypatch, function):
    """A disk that fills up raises the system's error, and leaves nothing."""

    def touch_and_fail(path, *_):
        Path(path).touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "open", touch_and_fail, raising=False)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device"):
        function(files[".nii.gz"], files["masks"], 2)


@by_function(FUNCTIONS)
@pytest.mark.parametrize(("n_jobs", "error"), [(2, ZeroDivisionError), (1, KeyboardInterrupt)])
def test_nothing_is_left_when_a_region_fails(
    files, temporary, monkeypatch, function, n_jobs, error
):
    """The copy of the image is removed when a region fails, or after Ctrl-C."""
    there = []

    class Failing(page.Parallel):
        def __call__(self, tasks):
            there.extend(temporary.rglob("fmri"))
            if error is KeyboardInterrupt:
                raise error
            return super().__call__((truediv, (1, 0), {}) for _ in tasks)

    for one in (page, load_page("plot_in_memory")):
        monkeypatch.setattr(one, "Parallel", Failing)
    with pytest.raises(error):
        function(files[".nii.gz"], files["masks"], n_jobs)
    assert len(there) == (function in WITH_FILE)  # and the fixture sees that it is gone


def test_a_mapped_file_that_changes_is_noticed(files, monkeypatch):
    """A file that is written while it is mapped raises an error, even if its size is the same."""

    class Late(page.Parallel):
        def __call__(self, tasks):
            os.utime(files[".nii"], (0, 0))
            return super().__call__(tasks)

    monkeypatch.setattr(page, "Parallel", Late)
    with pytest.raises(OSError, match=r"fmri.nii was changed while it was read. Run this again"):
        page.numpy_masker_mapped(files[".nii"], files["masks"], 1)


def open_files(process):
    """The files of a process, open or mapped, that are images or copies."""
    maps = process.memory_maps() if hasattr(process, "memory_maps") else []
    paths = [*(f.path for f in process.open_files()), *(m.path for m in maps)]
    return [path for path in paths if "fmri" in Path(path).name]


@by_function(FUNCTIONS)
def test_files_are_closed(files, temporary, function):
    """No process keeps the image or its copy open or mapped, which would keep its disk space."""
    for suffix in (".nii", ".nii.gz"):
        function(files[suffix], files["masks"], 2)
    gc.collect()
    this = psutil.Process()
    assert open_files(this) == []
    for worker in this.children(recursive=True):  # they let go a moment after their results came
        assert eventually(lambda worker=worker: not open_files(worker))


# Heavy work on each region
# --------------------------

bootstrap_first_component = load_page("plot_heavy_work").bootstrap_first_component


def test_one_component_or_many():
    """A region with a single time course has all variance in it; noise has little; none is 0."""
    rng = np.random.default_rng(0)
    one = np.outer(rng.normal(size=50), np.ones(8)).astype("float32")
    np.testing.assert_allclose(bootstrap_first_component(one, 5), 1, rtol=1e-5)
    noise = bootstrap_first_component(rng.normal(size=(2000, 8)), 5)
    assert ((noise > 1 / 8) & (noise < 0.2)).all()
    assert (bootstrap_first_component(np.ones((10, 3), "float32"), 2) == 0).all()
