"""A study on a Dask cluster, whose scheduler and workers are processes of their own.

They are started with the page's settings, and each worker has a nanny.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import psutil
import pytest
from distributed import Client
from joblib import parallel_config

from beyond_the_masker.experiments.pages import page_path
from beyond_the_masker.extract.blocks import mask_blocks
from beyond_the_masker.extract.streaming import stream_masks
from beyond_the_masker.studies.masker_runs import masker_study
from leftovers import eventually, kill, processes_with
from made_images import assert_same, make_image
from small_study import EXAMPLES, Study, failing, save_masks, write

pytestmark = pytest.mark.chance
CHANGED = dict(
    shlex.split(line)[0].split("=", 1)
    for line in re.findall(r"\$ export (DASK_.+)", page_path("plot_dask_cluster").read_text())
)
PATIENCE = 300  # seconds; only what hangs takes longer


@pytest.fixture
def study(tmp_path):
    """A study of twelve images, with the files that one process writes."""
    study = Study(tmp_path / "study", 12)
    study.run()
    study.expected, study.output = study.files(), tmp_path / "series"
    return study


@contextlib.contextmanager
def on_dask():
    """Choose Dask as the backend; raise an error in a call that hangs."""

    def stop(*_):
        raise TimeoutError(f"It took more than {PATIENCE} seconds.")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    with parallel_config(backend="dask"):
        yield
    signal.alarm(0)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function that starts a scheduler and workers and returns a client; the test ends all."""
    marker = uuid.uuid4().hex
    environ = CHANGED | {"MARKER": marker, "DASK_TEMPORARY_DIRECTORY": str(tmp_path)}
    logs, file, started = tmp_path / "logs.txt", tmp_path / "scheduler.json", []
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [process.wait() for process in started])
        stack.callback(end_all, marker)
        output = stack.enter_context(open(logs, "w"))

        def run(*arguments, **more):
            options = [f"--scheduler-file={file}", "--host=127.0.0.1", "--no-dashboard"]
            command = [sys.executable, "-m", "dask", *arguments, *options]
            env = os.environ | environ | more
            started.append(subprocess.Popen(command, env=env, stdout=output, stderr=output))

        def start(mib=256, **more):
            run("scheduler", "--port=0", **more)
            run("worker", "--nworkers=2", "--nthreads=1", f"--memory-limit={mib}MiB", **more)
            address = eventually(lambda: address_in(file))
            assert address, logs.read_text()
            client = stack.enter_context(Client(address, timeout=PATIENCE))
            client.wait_for_workers(2, timeout=PATIENCE)
            return client

        yield start


def address_in(file):
    """Return the scheduler's address; None while its file is missing or incomplete."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads(file.read_text())["address"]


def end_all(marker):
    """End all processes that were started with a marker in their environment."""
    while marked := processes_with("MARKER", marker):
        kill(marked)
        psutil.wait_procs(marked, timeout=60)


def test_files_are_those_of_one_process(study, start, tmp_path):
    """The workers write the files of one process, for a study and for one image in blocks."""
    client = start(PYTHONPATH=str(EXAMPLES))
    with on_dask():
        table = study.run(None)
    assert list(table.status) == ["done"] * 12
    assert study.files() == study.expected
    assert set(table.pid) == set(client.run(os.getpid).values())
    assert set(client.run(os.environ.get, "MALLOC_TRIM_THRESHOLD_").values()) == {None}
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures) == 10**6

    image = write(tmp_path, 0, (5, 6, 4, 40), ".nii", dtype=">i2", scaling=(0.37, 11))
    masks = save_masks(tmp_path, nib.load(image))
    with on_dask():
        series = mask_blocks(image, masks, block_mib=0.001)
    assert_same(series, stream_masks(image, masks))


def tables_in(folder):
    """Return the tables of series in a folder by their names."""
    return {path.name: path.read_bytes() for path in folder.glob("sub-*.tsv")}


def test_a_worker_does_one_image_after_the_other(start, tmp_path):
    """It does so for averages, too, although nilearn calls joblib; the tables are the same."""
    start(mib=512, PYTHONPATH=str(EXAMPLES))
    images = [write(tmp_path, number, (5, 6, 4, 60)) for number in range(8)]
    labels = make_image(data=np.arange(120).reshape(5, 6, 4) % 3, dtype="<i2")
    labels.to_filename(tmp_path / "labels.nii.gz")
    inputs = images, {"labels": tmp_path / "labels.nii.gz"}
    masker_study(*inputs, tmp_path / "alone")
    with on_dask():
        table = masker_study(*inputs, tmp_path / "together")
    assert tables_in(tmp_path / "alone") == tables_in(tmp_path / "together") != {}
    for _, rows in table.sort_values("started").groupby("pid"):
        ends = rows.started + rows.seconds
        assert (ends[:-1].to_numpy() <= rows.started[1:].to_numpy()).all()


def test_a_worker_is_killed_in_the_middle_of_an_image(study, start, tmp_path):
    """The image of a killed worker is done by another one, and no incomplete file is left."""
    client = start(**failing(tmp_path / "failing", STOPS=study.images[5].name))
    workers, file = set(client.run(os.getpid).values()), tmp_path / "failing" / "pid"

    def kill():
        assert eventually(file.exists), (tmp_path / "logs.txt").read_text()
        assert list(study.output.glob("sub-05_bold.npz.*.unfinished"))
        os.kill(int(file.read_text()), signal.SIGKILL)
        return int(file.read_text())

    with ThreadPoolExecutor(1) as pool, on_dask():
        killed = pool.submit(kill)
        table = study.run(None)
    assert killed.result() in workers
    assert table.pid[5] != killed.result()
    assert table.status[5] == "done"
    assert set(table.status) <= {"done", "skipped"}  # skipped: done, and the row was lost
    assert study.files() == study.expected


@pytest.mark.extensive
def test_images_that_kill_their_workers_are_named(study, start, tmp_path):
    """An image that kills its workers or fills their memory fails, and all others are done."""
    dies, fills = study.images[3].name, study.images[7].name
    start(**failing(tmp_path / "failing", DIES=dies, FILLS=fills))
    with on_dask():
        table = study.run(None)
    assert [*table.index[table.status == "failed"]] == [3, 7]
    reason = "RuntimeError: The worker died twice while it did this image."
    assert set(table.reason[[3, 7]]) == {reason}
    lost = {"sub-03_bold.npz", "sub-07_bold.npz"}
    assert study.files().keys() == study.expected.keys() - lost
    assert (tmp_path / "logs.txt").read_text().count("exceeded 95% memory budget") == 2
