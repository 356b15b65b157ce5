"""Jobs on a real Slurm: an array of a study's parts, and a Dask cluster of jobs.

It has one node: Debian's daemons on this machine's loopback. They run in the foreground as children
of the tests, as the same user, with all files in one folder.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest

from beyond_the_masker.experiments.pages import load_page
from beyond_the_masker.inputs.synthetic_fmriprep import MNI, make_atlas, make_fmriprep
from beyond_the_masker.studies.fmriprep import fmriprep_study
from leftovers import eventually, processes_with
from small_study import EXAMPLES

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "sinfo", "squeue")
OF_ANOTHER_SLURM = ("SLURM", "SBATCH", "SCANCEL", "SCONTROL", "SINFO", "SQUEUE")
PATH = f"{os.environ['PATH']}:/usr/sbin"  # daemons are in a folder that not every user has
CPUS, MEMORY_MB = 2, 4000  # of the node, whatever the machine has

# The scheduler checks for jobs every second, not every half or whole minute.
FAST = "batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1"


def settings(folder):
    """Return the lines of a slurm.conf for one node, which needs no cgroups and no name service."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    controller, node = free_ports(2)
    values = {
        "ClusterName": "tests",
        "SlurmctldHost": "localhost(127.0.0.1)",
        "SlurmctldPort": controller,
        "SlurmdPort": node,
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge.socket",
        "StateSaveLocation": f"{folder}/state",
        "SlurmdSpoolDir": f"{folder}/spool",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid",
        "SlurmdPidFile": f"{folder}/slurmd.pid",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "MailProg": "/bin/true",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "DefMemPerCPU": MEMORY_MB // CPUS,
        "SchedulerParameters": FAST,
        "Epilog": "/bin/true",  # its end is what starts the next job at once
        "SlurmdParameters": "config_overrides",  # CPUS and MEMORY_MB count, not the machine's
        "KillWait": 1,
        "MessageTimeout": 100,  # on a busy machine each answer takes its time
        "BatchStartTimeout": 100,
    }
    return [f"{name}={value}" for name, value in values.items()] + [
        f"NodeName=localhost NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={MEMORY_MB}",
        "PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE",
    ]


def free_ports(number):
    """Return ports of the loopback that are free."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Slurm:
    """The daemons, and commands to them."""

    def __init__(self, folder):
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.daemons = {}
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        (folder / "munge.key").chmod(0o600)
        self.conf.write_text("\n".join([*settings(folder), ""]))

    def start(self):
        """Start the daemons; wait until the node takes jobs."""
        socket_path = self.folder / "munge.socket"
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "seed")]
        socket_at = ["--origin=127.0.0.1", f"--socket={socket_path}"]
        self.daemon("munged", "--foreground", "--force", *socket_at, *files)
        self.until(socket_path.exists)
        self.daemon("slurmctld", "-D")
        self.daemon("slurmd", "-D")
        self.until(self.idle)

    def daemon(self, name, *arguments):
        """Start a daemon; its messages go to a file."""
        with open(self.folder / f"{name}.log", "w") as log:
            self.daemons[name] = subprocess.Popen(
                [shutil.which(name, path=PATH), *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def until(self, true):
        """Wait until a condition is true; fail with the daemons' messages after some time."""

        def ended():
            return [name for name, daemon in self.daemons.items() if daemon.poll() is not None]

        came_true = eventually(lambda: ended() or true())
        assert not ended(), f"{', '.join(ended())} ended\n{self.logs()}"
        assert came_true, self.logs()

    def idle(self):
        """Return whether the node is ready and has nothing to do."""
        return self.ask("sinfo", "--noheader", "--format=%T").stdout.strip() == "idle"

    def logs(self):
        """Return the end of each daemon's messages."""
        ends = {path.name: path.read_text()[-2000:] for path in self.folder.glob("*.log")}
        return "\n".join(f"---- {name}\n{end}" for name, end in ends.items())

    def ask(self, *command, **options):
        """Run one of Slurm's commands; return the completed process."""
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)

    def queue(self):
        """Return the numbers of the jobs that wait or run."""
        done = self.ask("squeue", "--noheader", "--format=%i")
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def cancel(self):
        """Cancel all jobs, and wait until they are gone."""
        self.ask("scancel", "--user", str(os.geteuid()))
        self.until(lambda: not self.queue())

    def stop(self):
        """End the daemons, and processes that jobs left."""
        for daemon in reversed(self.daemons.values()):
            daemon.kill()
            daemon.wait()
        left = self.processes()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=60)

    def processes(self):
        """Return the processes of jobs, which have this Slurm's settings and another parent."""
        ours = psutil.Process().children(recursive=True)
        return [job for job in processes_with("SLURM_CONF", str(self.conf)) if job not in ours]


@contextmanager
def one_node_slurm():
    """Yield a Slurm that takes jobs, which all of Slurm's commands reach meanwhile; end it."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        slurm = Slurm(Path(folder))
        for name in [name for name in os.environ if name.startswith(OF_ANOTHER_SLURM)]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", str(slurm.conf))
        patch.setenv("PATH", PATH)
        stack.callback(slurm.stop)
        slurm.start()
        stack.callback(slurm.cancel)
        yield slurm


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
