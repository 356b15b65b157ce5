"""Workers end when the process that started them is gone."""

import os
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory

import joblib
import psutil
import pytest
from joblib import Parallel

from beyond_the_masker.experiments.pages import load_page
from beyond_the_masker.extract import blocks
from beyond_the_masker.extract.orphans import end_with_parent
from beyond_the_masker.studies import study
from made_images import make_image, make_masks, save_all

SCRIPT = """
import time
from multiprocessing.shared_memory import SharedMemory
from joblib import Parallel, delayed
from beyond_the_masker.extract.orphans import WORKERS

def work(name):
    block = SharedMemory(name)
    print(name, flush=True)
    time.sleep(600)

block = SharedMemory(create=True, size=1)
Parallel(n_jobs=2, **WORKERS)(delayed(work)(block.name) for _ in range(2))
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


def test_workers_that_end_with_their_parent(tmp_path, monkeypatch):
    """The workers of a study, of blocks and of shared memory look for their parent."""
    image, masks = save_all(tmp_path, make_image(), make_masks(make_image())[:1], ".nii")
    shared, options = load_page("plot_shared_memory"), []

    def parallel(*arguments, original=Parallel, **more):
        options.append(more.get("initializer"))
        return original(*arguments, **more)

    monkeypatch.setattr(joblib, "Parallel", parallel)
    monkeypatch.setattr(shared, "Parallel", parallel)
    study.mask_study([image], masks, tmp_path / "series", n_jobs=1)
    blocks.mask_blocks(image, masks, n_jobs=1)
    shared.numpy_masker_shared_parallel(image, masks, 1)
    assert len(options) >= 3
    assert set(options) == {end_with_parent}
