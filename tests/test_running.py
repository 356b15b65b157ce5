"""Images in memory, and workers that are there before the work begins."""

import pickle
import time

import nibabel as nib
import numpy as np
import psutil
import pytest
from joblib import parallel_config
from threadpoolctl import threadpool_info

from beyond_the_masker.extract.running import (
    ONE_THREAD,
    load_in_memory,
    results_as_ready,
    start_workers,
)
from made_images import assert_same, make_image, save_all


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


def test_workers_are_together():
    """There is a time at which all workers are there; without processes there is none."""
    before = time.time()
    start, end = start_workers(3, ("json", "csv"), stay=0.1)
    assert before < start < end < time.time()
    assert len(psutil.Process().children()) >= 3
    with parallel_config(backend="sequential"):
        assert start_workers(3) is None


def test_a_backend_that_returns_all_results_at_the_end_is_refused():
    """The error names the backends to choose from; another error of joblib passes unchanged."""
    with parallel_config(backend="multiprocessing"):
        with pytest.raises(ValueError, match=r"loky .*threading or dask.*Multiprocessing"):
            results_as_ready([], 2).__enter__()
        with pytest.raises(ValueError, match=r"^n_jobs could not"):
            results_as_ready([], "two").__enter__()


def blas_threads():
    """Return how many threads the libraries of BLAS in this process use."""
    found = threadpool_info()
    return {library["num_threads"] for library in found if library["user_api"] == "blas"}


def test_one_thread_also_if_threads_share_it():
    """BLAS has one thread until the last user is done, and then as many as before."""
    before = blas_threads()
    with ONE_THREAD:
        with ONE_THREAD:
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == before
