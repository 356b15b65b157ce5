"""Jobs on a real Slurm: an array of a study's parts, and a Dask cluster of jobs."""

import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from beyond_the_masker.pages import load_page
from slurm import PATH, PROGRAMS, one_node_slurm
from small_study import EXAMPLES, Study

page = load_page("plot_slurm")
pytestmark = pytest.mark.chance


@pytest.fixture(scope="session")
def slurm_programs():
    """Skip a test if Slurm's programs are missing."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if missing:
        reason = f"no job can be submitted: {', '.join(missing)} not found"
        assert not os.environ.get("REQUIRE_SLURM"), f"REQUIRE_SLURM is set; {reason}"
        pytest.skip(reason)


@pytest.fixture(scope="module")
def running_slurm(slurm_programs):
    """A Slurm that takes jobs."""
    with one_node_slurm() as slurm:
        yield slurm


@pytest.fixture
def slurm(running_slurm):
    """A Slurm without the jobs of a test that failed."""
    yield running_slurm
    running_slurm.cancel()


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder as the page describes it; `expected` has the files of a run without Slurm."""
    python = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", python)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    study = Study(tmp_path / "study")
    study.run()
    study.expected = study.files()
    shutil.rmtree(study.output)
    for name, paths in (("images", study.images), ("masks", study.masks)):
        (study.folder / f"{name}.txt").write_text("\n".join(map(str, paths)))
    return study


def test_job_array_of_the_page(slurm, study):
    """The page's commands submit an array and a job that collects; the arrays are the same."""
    shutil.copy(EXAMPLES / "4_many_images" / "mask_study.sbatch", study.folder)
    row = SimpleNamespace(peak_rss_mib=330, seconds=10)
    done = slurm.ask("bash", "-euc", page.submit_commands(row, 6, 3), cwd=study.folder)
    assert done.returncode == 0, done.stderr
    slurm.until(lambda: not slurm.queue())
    printed = {path.name: path.read_text() for path in study.folder.glob("slurm-*.out")}
    assert study.files() == study.expected, printed
    assert {f"study_{n}_of_3.tsv" for n in (1, 2, 3)} < set(os.listdir(study.output))
    table = pd.read_csv(study.output / "study.tsv", sep="\t")
    assert set(table.status) == {"skipped"}
    assert len(printed) == 4


def test_requests_of_the_page():
    """Requests leave room for memory and time, and Slurm reads them in MiB and minutes."""
    row = SimpleNamespace(peak_rss_mib=200, seconds=30)
    assert page.to_request(row, 10) == (300, 20)
    lines = page.submit_commands(row, 40, 4).replace("\\\n", "").splitlines()
    commands = [" ".join(line.split()) for line in lines]
    assert commands[0] == "sbatch --array=1-4 --mem=300M --time=20 mask_study.sbatch"
    assert " --mem=300M --time=65 " in commands[1]


def test_workers_of_dask_jobqueue(slurm, study, tmp_path):
    """Workers that are jobs write the arrays of a serial run and end with it."""
    options = {
        "interface": "lo",
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
        "local_directory": str(tmp_path / "local"),
        "log_directory": str(tmp_path / "logs"),
    }
    before = signal.getsignal(signal.SIGINT)
    inputs = study.images, study.masks, study.output
    table = page.mask_study_on_slurm(*inputs, 2, mib=700, minutes=65, options=options)
    assert signal.getsignal(signal.SIGINT) == before
    assert set(table.status) == {"done"}
    assert os.getpid() not in set(table.pid)
    assert study.files() == study.expected
    slurm.until(lambda: not slurm.queue())


def test_one_worker_is_rejected(tmp_path):
    """One worker is rejected: joblib would do all the work on the login node."""
    with pytest.raises(ValueError, match="n_jobs is 1; two workers are needed"):
        page.mask_study_on_slurm([], [], tmp_path, 1, mib=700, minutes=5)
