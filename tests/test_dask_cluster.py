"""A study on a Dask cluster: what a scheduler and workers in processes of their own give.

They are started with the commands of the page, each worker with its nanny and its folder.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask.config
import nibabel as nib
import pandas as pd
import psutil
import pytest
from distributed import Client, LocalCluster
from joblib import parallel_config

from beyond_the_masker.blocks import mask_blocks
from beyond_the_masker.pages import load_page
from beyond_the_masker.streaming import stream_masks
from beyond_the_masker.study import peak_rss_mib
from good_figures import is_a_good_figure
from leftovers import eventually, processes_with
from small_study import Study, assert_same, save_masks, write

page = load_page("plot_dask_cluster")

pytestmark = pytest.mark.chance
EXAMPLES = Path(page.__file__).parent
CHANGED = dict(
    shlex.split(line)[0].split("=", 1)
    for line in re.findall(r"\$ export (DASK_.+)", Path(page.__file__).read_text())
)
LIMIT = "256MiB"
PATIENCE = 300  # seconds; only what hangs takes longer

# Stands before the page's module in every worker. In the middle of an image it waits to be
# killed, once; or it dies; or it takes more memory than it may.
SHIM = f"""
import importlib.util, os, signal, time
from pathlib import Path

spec = importlib.util.spec_from_file_location("page", {str(EXAMPLES / "plot_stream_masks.py")!r})
page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page)
folder = Path(__file__).parent

def stream_masks(image, masks):
    if image.name == os.environ.get("WAITS"):
        moment = folder / "pid"
        if not moment.exists():
            (folder / "unfinished").write_text(str(os.getpid()))
            (folder / "unfinished").rename(moment)
            time.sleep(600)
    if image.name == os.environ.get("DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
    if image.name == os.environ.get("FILLS"):
        memory = b"x" * 2**28
        time.sleep(600)
    return page.stream_masks(image, masks)
"""


@pytest.fixture
def study(tmp_path):
    """A study of twelve images, and what one process makes of them."""
    study = Study(tmp_path / "study", 12)
    study.run()
    study.expected, study.output = study.files(), tmp_path / "series"
    return study


def on_dask(study):
    """Mask a study on the cluster that there is a client of."""
    with patient(), parallel_config(backend="dask"):
        return study.run(None)


@contextlib.contextmanager
def patient():
    """Raise an error in a call that hangs."""

    def stop(*_):
        raise TimeoutError(f"It took more than {PATIENCE} seconds.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function that starts a scheduler and two workers, and gives a client; all end with it."""
    marker = uuid.uuid4().hex
    monkeypatch.setenv("MARKER", marker)
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", str(tmp_path))
    for name, value in CHANGED.items():
        monkeypatch.setenv(name, value)
    logs, file, started = tmp_path / "logs.txt", tmp_path / "scheduler.json", []
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [process.wait() for process in started])
        stack.callback(end_all, marker)
        output = stack.enter_context(open(logs, "w"))

        def run(*arguments, **environ):
            command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
            environ = os.environ | environ
            started.append(subprocess.Popen(command, env=environ, stdout=output, stderr=output))

        def start(modules=None, **environ):
            path = f"{modules}{os.pathsep}{EXAMPLES}" if modules else ""
            environ |= {"PYTHONPATH": path}
            options = [f"--scheduler-file={file}", "--host=127.0.0.1"]
            run("scheduler", *options, "--port=0", **environ)
            for number in range(2):
                one = ["--nthreads=1", f"--memory-limit={LIMIT}"]
                one += [f"--local-directory={tmp_path / f'worker_{number}'}"]
                run("worker", *options, *one, **environ)
            address = eventually(lambda: address_in(file))
            assert address, logs.read_text()
            client = Client(address, timeout=PATIENCE)
            stack.enter_context(client)
            client.wait_for_workers(2, timeout=PATIENCE)
            return client

        yield start


def address_in(file):
    """Return the scheduler's address; None while its file is missing or incomplete."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads(file.read_text())["address"]


def end_all(marker):
    """End all processes that were started with a marker in their environment."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        marked = processes_with("MARKER", marker)
        for process in marked:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(process)
        _, alive = psutil.wait_procs(marked, timeout=10 if end == psutil.Process.terminate else 60)
    assert not alive


@pytest.fixture
def modules(tmp_path):
    """A folder whose module stands before that of the page."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "plot_stream_masks.py").write_text(SHIM)
    return folder


def test_the_files_are_those_of_one_process(study, start):
    """The workers do the work, with the files of one process and the page's settings."""
    client = start(EXAMPLES)
    table = on_dask(study)
    assert list(table.status) == ["done"] * 12
    assert study.files() == study.expected
    workers = set(client.run(os.getpid).values())
    assert set(table.pid) == workers
    assert set(client.run(os.environ.get, "MALLOC_TRIM_THRESHOLD_").values()) == {None}
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures) == 10**6


def test_a_worker_is_killed_in_the_midst_of_an_image(study, start, modules, tmp_path):
    """The image of a worker that is killed is done again, and no half of a file stays."""
    client = start(modules, WAITS=study.images[5].name)
    workers = set(client.run(os.getpid).values())

    def kill():
        assert eventually((modules / "pid").exists), (tmp_path / "logs.txt").read_text()
        assert list(study.output.glob("sub-05_bold.npz.*.unfinished"))
        pid = int((modules / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        return pid

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        table = on_dask(study)
    assert killed.result() in workers
    assert table.pid[5] != killed.result()
    assert table.status[5] == "done"
    assert set(table.status) <= {"done", "skipped"}  # skipped: done, and the row was lost
    assert study.files() == study.expected


def test_images_that_kill_their_workers_are_named(study, start, modules, tmp_path):
    """An image that kills its workers or fills their memory fails, and the study goes on."""
    start(modules, DIES=study.images[3].name, FILLS=study.images[7].name)
    table = on_dask(study)
    failed = [number in (3, 7) for number in range(12)]
    assert list(table.status == "failed") == failed
    assert set(table.reason[failed]) == {
        "RuntimeError: The worker died twice while it did this image."
    }
    for number in (3, 7):
        del study.expected[f"sub-{number:02d}_bold.npz"]
    assert study.files() == study.expected
    logs = (tmp_path / "logs.txt").read_text()
    assert logs.count("exceeded 95% memory budget") == 2


def test_modules_can_be_uploaded(study, start):
    """The page's commands find out whether modules are there, and upload them."""
    client = start()
    for ask in (client.run_on_scheduler, client.run):
        with pytest.raises(Exception, match="No module named 'mask_study'"):
            ask(peak_rss_mib)
    for name in ("plot_stream_masks", "mask_study"):
        client.upload_file(str(EXAMPLES / f"{name}.py"))
    client.run_on_scheduler(peak_rss_mib)
    assert list(on_dask(study).status) == ["done"] * 12
    assert study.files() == study.expected


def test_the_dashboard_is_there_and_one_worker_is_none(study, tmp_path):
    """A cluster started as on the page has a dashboard; with one worker the caller works."""
    options = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    environ = os.environ.copy()
    with (
        dask.config.set({"temporary-directory": str(tmp_path)}),
        LocalCluster(n_workers=1, **options) as cluster,
        Client(cluster),
    ):
        with direct.open(cluster.dashboard_link, timeout=PATIENCE) as reply:
            assert reply.status == 200
            assert b"bokeh" in reply.read().lower()
        assert set(on_dask(study).pid) == {os.getpid()}
    os.environ.clear()
    os.environ.update(environ)


def test_one_image_in_blocks(tmp_path, start):
    """Blocks of one image over a cluster's workers give one pass's arrays, bit for bit."""
    image = write(tmp_path, 0, (5, 6, 4, 40), ".nii", dtype=">i2", scaling=(0.37, 11))
    masks = save_masks(tmp_path, nib.load(image))
    start(EXAMPLES)
    with patient(), parallel_config(backend="dask"):
        series = mask_blocks(image, masks, block_mib=0.001)
    assert_same(series, stream_masks(image, masks))


@pytest.mark.parametrize("n_begun", [1, 2])
def test_one_worker_is_killed_and_the_other_goes_on(tmp_path, n_begun):
    """The first worker is killed, and the second one goes on."""
    for number in range(4 - n_begun):
        (tmp_path / f"sub-{number}.npz").touch()
    for number in range(n_begun):
        (tmp_path / f"sub-1{number}.npz.0123.unfinished").touch()
    workers = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) for _ in range(2)]
    try:
        lost = page.lose_a_worker([worker.pid for worker in workers], tmp_path, 6)
        assert lost["pid"] == workers[0].pid
        assert set(lost["begun"]) == {f"sub-1{number}" for number in range(n_begun)}
        assert workers[0].wait(timeout=60) == -signal.SIGKILL
        workers[1].communicate(b"\n", timeout=60)
        assert workers[1].returncode == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_figure_of_a_lost_worker():
    """The figure has a bar for each image and states what each worker did."""
    rows = [
        {"image": f"sub-{n:02d}_bold.nii.gz", "pid": pid, "started": 1e9 + start, "seconds": 0.3}
        for n, (pid, start) in enumerate([(7, 0), (8, 0), (7, 0.3), (8, 0.7), (8, 0.4), (9, 1.2)])
    ]
    begun = {"sub-03_bold": 1e9 + 0.6, "sub-04_bold": 1e9 + 0.4}
    figure = page.plot_work(pd.DataFrame(rows), {"pid": 7, "time": 1e9 + 0.66, "begun": begun})
    said = "worker 1 did 1, 3; worker 2 did 2, 5, 4 for the second time; worker 3 did 6."
    is_a_good_figure(figure, "1.5 seconds", "after 0.7 seconds", said)
    assert len([bar for bar in figure.gca().patches if bar.get_width()]) == 7
