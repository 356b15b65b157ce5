"""Images in memory, and workers that are there before the work begins."""

import os
import pickle
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory

import nibabel as nib
import numpy as np
import psutil
import pytest
from joblib import parallel_config

from beyond_the_masker import blocks, study
from beyond_the_masker.pages import load_page
from beyond_the_masker.running import load_in_memory, results_as_ready, start_workers
from made_images import assert_same, make_image, make_masks, save_all


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "image", [{}, {"dtype": ">i2"}, {"dtype": "<i2", "scaling": (0.37, -5)}], ids=str
)
def test_image_in_memory_holds_an_array(tmp_path, suffix, image):
    """An image in memory no longer needs its file, and is the same when sent or saved."""
    path, _ = save_all(tmp_path, make_image(**image), [], suffix)
    expected = np.asarray(nib.load(path).dataobj).copy()
    img = load_in_memory(path)
    path.unlink()
    assert type(img.dataobj) is np.ndarray
    assert img.dataobj.dtype.newbyteorder("=") == img.get_data_dtype().newbyteorder("=")
    base = img.dataobj
    while base is not None:
        assert not isinstance(base, np.memmap)
        base = getattr(base, "base", None)
    img.to_filename(tmp_path / "saved.nii")
    for same in (img, pickle.loads(pickle.dumps(img)), nib.load(tmp_path / "saved.nii")):
        assert_same([np.asanyarray(same.dataobj)], [expected])
        np.testing.assert_array_equal(same.affine, make_image(**image).affine)


@pytest.mark.parametrize("name", ["fmri.nii.gz", "fmri.nii"])
def test_damaged_image_is_named(name, tmp_path):
    """A file that is not a whole image is named, and so is a missing one."""
    make_image().to_filename(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for damaged in (content[:-1000], b"not an image", b""):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(OSError, match=rf"{name} is incomplete or damaged \("):
            load_in_memory(tmp_path / name)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_in_memory(tmp_path / name)


def test_workers_are_together():
    """There is a time at which all workers are there; without processes there is none."""
    before = time.time()
    start, end = start_workers(3, ("json", "csv"), stay=0.1)
    assert before < start < end < time.time()
    assert len(psutil.Process().children()) >= 3
    with parallel_config(backend="sequential"):
        assert start_workers(3) is None


SCRIPT = """
import time
from multiprocessing.shared_memory import SharedMemory
from joblib import Parallel, delayed
from beyond_the_masker.running import end_with_parent

def work(name):
    block = SharedMemory(name)
    end_with_parent()
    print(name, flush=True)
    time.sleep(600)

block = SharedMemory(create=True, size=1)
Parallel(n_jobs=2)(delayed(work)(block.name) for _ in range(2))
"""


@pytest.mark.chance
@pytest.mark.skipif(not hasattr(os, "getsid"), reason="Windows keeps the number of a parent")
def test_workers_end_with_their_parent():
    """When the calling process is killed, its workers end, and shared memory is removed."""
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as one:
        names = {one.stdout.readline().strip() for _ in range(2)}
        children = psutil.Process(one.pid).children(recursive=True)
        one.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    for left in alive:
        left.kill()
    assert not alive
    with pytest.raises(FileNotFoundError):
        SharedMemory(*names)


def test_tasks_that_end_with_their_parent(tmp_path, monkeypatch):
    """Tasks of a study, of blocks and of shared memory look for their parent."""
    image, masks = save_all(tmp_path, make_image(), make_masks(make_image())[:1], ".nii")
    shared, called = load_page("plot_shared_memory"), []
    for module in (study, blocks, shared):
        monkeypatch.setattr(module, "end_with_parent", lambda m=module: called.append(m))
    study.mask_study([image], masks, tmp_path / "series", n_jobs=1)
    blocks.mask_blocks(image, masks, n_jobs=1)
    shared.numpy_masker_shared_parallel(image, masks, 1)
    assert called == [study, blocks, shared]


def test_a_backend_that_returns_all_results_at_the_end_is_refused():
    """The error names the backends to choose from; another error of joblib passes unchanged."""
    with parallel_config(backend="multiprocessing"):
        with pytest.raises(ValueError, match=r"loky .*threading or dask.*Multiprocessing"):
            results_as_ready([], 2).__enter__()
        with pytest.raises(ValueError, match=r"^n_jobs could not"):
            results_as_ready([], "two").__enter__()
