"""Jobs on a real Slurm: an array of a study's parts, and a Dask cluster of jobs."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from beyond_the_masker.fmriprep import fmriprep_study
from beyond_the_masker.pages import load_page
from beyond_the_masker.synthetic_fmriprep import MNI, make_atlas, make_fmriprep
from slurm import PATH, PROGRAMS, one_node_slurm
from small_study import EXAMPLES

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


COMMAND = "-m beyond_the_masker fmriprep fmriprep series participant --space MNI152NLin2009cAsym"
COMMAND += " --task rest --atlas Networks=atlas-Networks_dseg.nii.gz"


class Derivatives:
    """A made-up folder of fMRIPrep; `expected` has the results of a run without Slurm."""

    def __init__(self, folder):
        self.folder, self.output = folder, folder / "series"
        make_fmriprep(folder / "fmriprep", n_subjects=3, n_volumes=60, faults=False)
        filters = {"space": MNI, "task": "rest"}
        self.study = folder / "fmriprep", {"Networks": make_atlas(folder)}, self.output
        self.filters = filters
        fmriprep_study(*self.study, filters=filters)
        self.expected = self.results()
        shutil.rmtree(self.output)

    def results(self):
        """Return all results, by their names."""
        return {path.name: path.read_bytes() for path in self.output.rglob("sub-*_*")}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Derivatives in a folder where jobs find Python and the package."""
    python = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", python)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    return Derivatives(tmp_path)


def test_job_array_of_the_page(slurm, study):
    """The printed script runs as an array, and a job that collects; the results are the same."""
    asked = [sys.executable, *COMMAND.split(), "--dry-run"]
    printed = subprocess.check_output(asked, cwd=study.folder, text=True)
    (study.folder / "printed.txt").write_text(printed)
    submit = page.SUBMIT.replace("sbatch series", "sbatch --array=1-3 series", 1)
    done = slurm.ask("bash", "-euc", submit, cwd=study.folder)
    assert done.returncode == 0, done.stderr
    slurm.until(lambda: not slurm.queue())
    logs = {path.name: path.read_text() for path in study.folder.glob("slurm-*.out")}
    assert study.results() == study.expected, logs
    assert {f"study_{n}_of_3.tsv" for n in (1, 2, 3)} < set(os.listdir(study.output))
    table = pd.read_csv(study.output / "study.tsv", sep="\t")
    assert set(table.status) == {"skipped"}
    assert len(logs) == 4


def test_workers_of_dask_jobqueue(slurm, study, tmp_path):
    """Workers that are jobs write the results of a serial run and end with it."""
    options = {
        "interface": "lo",
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
        "local_directory": str(tmp_path / "local"),
        "log_directory": str(tmp_path / "logs"),
    }
    before = signal.getsignal(signal.SIGINT)
    with page.workers_on_slurm(2, mib=700, minutes=65, options=options):
        table = fmriprep_study(*study.study, filters=study.filters)
    assert signal.getsignal(signal.SIGINT) == before
    assert set(table.status) == {"done"}
    assert os.getpid() not in set(table.pid)
    assert study.results() == study.expected
    slurm.until(lambda: not slurm.queue())


def test_one_worker_is_rejected():
    """One worker is rejected: joblib would do all the work on the login node."""
    with pytest.raises(ValueError, match="n_jobs is 1; two workers are needed"):
        page.workers_on_slurm(1, mib=700, minutes=5).__enter__()
