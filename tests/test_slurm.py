"""Jobs on a real Slurm: an array of a script's parts, and a Dask cluster of jobs."""

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from beyond_the_masker import streaming as plot_stream_masks
from beyond_the_masker import study as mask_study
from beyond_the_masker.overhead import time_array
from beyond_the_masker.pages import load_page
from slurm import MEMORY_MB, one_node_slurm
from small_study import Study

plot_slurm = load_page("plot_slurm")
COLLECT = load_page("plot_slurm").COLLECT
job_script = load_page("plot_slurm").job_script
mask_study_on_slurm = load_page("plot_slurm").mask_study_on_slurm
to_ask_for = load_page("plot_slurm").to_ask_for

pytestmark = pytest.mark.chance
PAGE = Path(plot_slurm.__file__).read_text()


def test_array_gives_each_task_its_part(slurm, tmp_path):
    """Each task of an array learns its number and how many tasks there are."""
    part = 'echo "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" > "$SLURM_ARRAY_TASK_ID.txt"'
    job = slurm.submit("--array=1-3", "--mem=100", "--wrap", part, cwd=tmp_path)
    assert slurm.finished(job) == ["COMPLETED"] * 3
    parts = [(tmp_path / f"{task}.txt").read_text() for task in (1, 2, 3)]
    assert parts == ["1/3\n", "2/3\n", "3/3\n"]


def test_memory_is_what_the_node_has(slurm, tmp_path):
    """A job that asks for more memory than the node has is refused."""
    done = slurm.ask("sbatch", f"--mem={MEMORY_MB + 1}", "--wrap", "true", cwd=tmp_path)
    assert done.returncode != 0
    assert "Memory specification can not be satisfied" in done.stderr


def test_jobs_share_the_memory(slurm, tmp_path):
    """Two jobs that together need more memory than the node has run one after the other."""
    ask = f"--mem={MEMORY_MB * 2 // 3}"
    jobs = [slurm.submit(ask, "--wrap", "date +%s%N; sleep 0.2", cwd=tmp_path) for _ in range(2)]
    assert [slurm.finished(job) for job in jobs] == [["COMPLETED"]] * 2
    first, second = sorted(int((tmp_path / f"slurm-{job}.out").read_text()) for job in jobs)
    assert second - first >= 0.2e9


@pytest.fixture
def study(tmp_path):
    """A folder as the page describes it, and the files that a run without Slurm writes."""
    study = Study(tmp_path / "study")
    for folder, paths in (("images", study.images), ("masks", study.masks)):
        (study.folder / folder).mkdir()
        paths[:] = [path.rename(study.folder / folder / path.name) for path in paths]
    for module in (mask_study, plot_stream_masks):
        shutil.copy(module.__file__, study.folder)
    study.run()
    expected = study.files()
    shutil.rmtree(study.output)
    return study, expected


def commands():
    """What the page says to type."""
    blocks = re.findall(r"^# \.\. code-block:: slurm\n#\n((?:#.*\n)+?)#\n# \w", PAGE, re.M)
    (submit,) = [re.sub(r"^# {0,5}", "", block, flags=re.M) for block in blocks]
    return submit, COLLECT.format(mib=500, minutes=5, python=sys.executable)


def test_job_array_of_the_page(slurm, study):
    """The page's commands run, and a job array writes the arrays of a serial run."""
    study, expected = study
    (study.folder / "mask_study.sbatch").write_text(job_script(3, 500, 5, sys.executable))
    submit, collect = commands()
    bash = ["bash", "-euc"]
    done = slurm.ask(*bash, submit, cwd=study.folder)
    assert done.returncode == 0, done.stderr
    done = slurm.ask(*bash, collect, cwd=study.folder)
    assert done.returncode == 0, done.stderr
    slurm.until(lambda: not slurm.queue())
    said = {path.name: path.read_text() for path in study.folder.glob("slurm-*.out")}
    assert study.files() == expected, said
    assert {f"study_{n}_of_3.tsv" for n in (1, 2, 3)} < set(os.listdir(study.output))
    table = pd.read_csv(study.output / "study.tsv", sep="\t")
    assert set(table.status) == {"skipped"}
    assert len(said) == 4


def test_workers_of_dask_jobqueue(slurm, study, tmp_path, monkeypatch):
    """Workers that are jobs write the arrays of a serial run and end with it."""
    study, expected = study
    monkeypatch.setenv("PYTHONPATH", str(study.folder))
    options = {
        "interface": "lo",
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
        "local_directory": str(tmp_path / "local"),
        "log_directory": str(tmp_path / "logs"),
    }
    before = signal.getsignal(signal.SIGINT)
    output = tmp_path / "series"
    table = mask_study_on_slurm(
        *(study.images, study.masks, output, 2), mib=700, minutes=65, options=options
    )
    assert signal.getsignal(signal.SIGINT) == before
    assert set(table.status) == {"done"}
    assert os.getpid() not in set(table.pid)
    assert {path.name: path.read_bytes() for path in output.glob("sub-*.npz")} == expected
    slurm.until(lambda: not slurm.queue())


def test_one_worker_is_refused(tmp_path):
    """One worker is refused: joblib would do all the work on the login node."""
    with pytest.raises(ValueError, match="n_jobs is 1; two workers are needed"):
        mask_study_on_slurm([], [], tmp_path, 1, mib=700, minutes=5)


def test_more_memory_than_a_node_has_is_refused(slurm, tmp_path):
    """Slurm understands how the page's job asks for memory."""
    mib, minutes = to_ask_for(200, 30, 10)
    assert (mib, minutes) == (300, 20)
    job = job_script(2, MEMORY_MB + 1, minutes, sys.executable)
    (tmp_path / "mask_study.sbatch").write_text(job)
    done = slurm.ask("sbatch", "mask_study.sbatch", cwd=tmp_path)
    assert done.returncode != 0


def test_empty_tasks_are_timed(slurm):
    """The overhead of a job array is the time of its own tasks."""
    start = time.monotonic()
    seconds = time_array(5, largest=3)
    assert 0 < seconds <= time.monotonic() - start
    assert slurm.queue() == []


def fail_beside_a_job(slurm, folder):
    """What a failing test does while its job runs."""
    job = slurm.submit("--wrap", "sleep 1000 & sleep 1000", cwd=folder)
    slurm.until(lambda: slurm.states(job) == ["RUNNING"])
    slurm.until(slurm.processes)  # Slurm reports the job a moment before it starts
    raise RuntimeError(job)


def test_nothing_is_left(slurm_programs, tmp_path):
    """A test that fails leaves no daemon, job or file of Slurm behind."""
    with pytest.raises(RuntimeError), one_node_slurm() as slurm:
        fail_beside_a_job(slurm, tmp_path)
    assert all(daemon.returncode is not None for daemon in slurm.daemons.values())
    assert slurm.processes() == []
    assert not slurm.folder.exists()


def test_what_failed_is_told(slurm_programs):
    """A daemon that ends at once fails the test with the daemon's own message."""
    failing = one_node_slurm(SlurmdSpoolDir="/dev/null/spool")
    with pytest.raises(AssertionError, match=r"(?s)slurmd ended.*/dev/null/spool"), failing:
        pass
