"""Jobs on a real Slurm: an array of a script's parts, and a Dask cluster of jobs."""

import os
import signal
import sys

import joblib
import pytest

from slurm import MEMORY_MB, one_node_slurm


def test_array_gives_each_task_its_part(slurm, tmp_path):
    """A task of an array does not learn which part of how many is its own."""
    part = 'echo "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" > "$SLURM_ARRAY_TASK_ID.txt"'
    job = slurm.submit("--array=1-3", "--mem=100", "--wrap", part, cwd=tmp_path)
    assert slurm.finished(job) == ["COMPLETED"] * 3
    parts = [(tmp_path / f"{task}.txt").read_text() for task in (1, 2, 3)]
    assert parts == ["1/3\n", "2/3\n", "3/3\n"]


def test_memory_is_what_the_node_has(slurm, tmp_path):
    """A job asks for more memory than there is, and waits for ever."""
    done = slurm.ask("sbatch", f"--mem={MEMORY_MB + 1}", "--wrap", "true", cwd=tmp_path)
    assert done.returncode != 0
    assert "Memory specification can not be satisfied" in done.stderr


def test_jobs_share_the_memory(slurm, tmp_path):
    """Two jobs run beside each other whose memory the node does not have."""
    ask = f"--mem={MEMORY_MB * 2 // 3}"
    jobs = [slurm.submit(ask, "--wrap", "date +%s%N; sleep 0.2", cwd=tmp_path) for _ in range(2)]
    assert [slurm.finished(job) for job in jobs] == [["COMPLETED"]] * 2
    first, second = sorted(int((tmp_path / f"slurm-{job}.out").read_text()) for job in jobs)
    assert second - first >= 0.2e9


@pytest.fixture
def slurm_cluster():
    """dask-jobqueue's class, without what importing it makes of Ctrl-C in the whole process."""
    handler = signal.getsignal(signal.SIGINT)
    from dask_jobqueue import SLURMCluster

    signal.signal(signal.SIGINT, handler)
    return SLURMCluster


def test_dask_cluster_of_jobs(slurm, slurm_cluster, tmp_path):
    """joblib's calls run elsewhere than in the cluster's jobs, or the jobs outlive the cluster."""
    from dask.distributed import Client

    def job_of_worker():  # in here, it travels by value: workers cannot import this module
        return os.environ["SLURM_JOB_ID"]

    options = {
        "cores": 1,
        "memory": "500MB",
        "walltime": "00:05:00",
        "python": sys.executable,
        "interface": "lo",
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
        "local_directory": str(tmp_path / "local"),
        "log_directory": str(tmp_path / "logs"),
    }
    with slurm_cluster(**options) as cluster, Client(cluster) as client:
        cluster.scale(jobs=2)
        client.wait_for_workers(2, timeout=60)
        jobs = slurm.queue()
        with joblib.parallel_config(backend="dask"):
            used = joblib.Parallel(timeout=60)(joblib.delayed(job_of_worker)() for _ in range(20))
    assert len(jobs) == 2
    assert set(used) == set(jobs)
    slurm.until(lambda: not slurm.queue())


def fail_beside_a_job(slurm, folder):
    """What a failing test does while its job runs."""
    job = slurm.submit("--wrap", "sleep 1000 & sleep 1000", cwd=folder)
    slurm.until(lambda: slurm.states(job) == ["RUNNING"])
    assert slurm.processes()
    raise RuntimeError(job)


def test_nothing_is_left(slurm_programs, tmp_path):
    """A test that fails leaves daemons, its job, or Slurm's files behind."""
    with pytest.raises(RuntimeError), one_node_slurm() as slurm:
        fail_beside_a_job(slurm, tmp_path)
    assert all(daemon.returncode is not None for daemon in slurm.daemons.values())
    assert slurm.processes() == []
    assert not slurm.folder.exists()


def test_what_failed_is_told(slurm_programs):
    """A daemon ends at once, and all that one hears is that there is no Slurm."""
    failing = one_node_slurm(SlurmdSpoolDir="/dev/null/spool")
    with pytest.raises(AssertionError, match=r"(?s)slurmd ended.*/dev/null/spool"), failing:
        pass
