"""The meter counts what a call takes, returns its result, and leaves nothing running."""

import math
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from beyond_the_masker import meter
from beyond_the_masker.meter import HAS_PSS, MIB, Trace, available_mib, measure, measure_within
from leftovers import eventually

pytestmark = pytest.mark.chance
needs_linux = pytest.mark.skipif(not HAS_PSS, reason="needs Linux")
HOLD = 0.4  # seconds for which known amounts are held: many samples


def near(mib):
    """About so many MiB."""
    return pytest.approx(mib, abs=15)


# --- Known amounts


def hold(mib):
    """Allocate, and hold what was allocated."""
    block = np.ones(mib * MIB, dtype="uint8")
    time.sleep(HOLD)
    return int(block[-1])


def test_allocation_in_the_caller():
    """The peak of a single process is what the call took, and nothing else."""
    mine = np.ones(200 * MIB, dtype="uint8")  # in the calling process, not in the call
    trace = measure(hold, 150)
    assert trace.value == mine[-1]
    assert trace.before_mib < 60, "the fresh process is not fresh"
    assert trace.above_mib == near(150)
    assert trace.seconds >= HOLD
    assert len(trace.processes) == 1
    assert trace.metric == ("memory in use" if HAS_PSS else "USS")
    assert trace.times[0] < 0 < trace.times[-1]
    assert np.all(np.diff(trace.times) > 0)
    assert len(trace.times) > 5, "short peaks are missed"
    assert trace.total()[0] == trace.before_mib


def hold_together(folder, worker, mib, block_name):
    """Allocate and touch a shared block in one of three workers, and hold it with the others."""
    shared = SharedMemory(block_name)
    np.frombuffer(shared.buf, dtype="uint8").max()
    block = np.ones(mib * MIB, dtype="uint8")
    (folder / str(worker)).touch()
    together = eventually(lambda: len(list(folder.iterdir())) == 3)
    time.sleep(HOLD)
    shared.close()
    return together, block.size


def in_workers(folder, mib):
    """Allocate in each of three workers, and let all three touch one shared block."""
    from joblib import Parallel, delayed

    shared = SharedMemory(create=True, size=mib * MIB + 1)
    try:
        shared.buf[:] = b"\1" * shared.size
        calls = (delayed(hold_together)(folder, i, mib, shared.name) for i in range(3))
        return Parallel(n_jobs=3)(calls)
    finally:
        shared.close()
        shared.unlink()


def test_allocation_in_three_workers(tmp_path_factory):
    """Workers count at the same time, shared memory once; the sum of RSS has it in each process."""
    idle, trace = (measure(in_workers, tmp_path_factory.mktemp("in"), mib) for mib in (0, 150))
    assert trace.value == [(True, 150 * MIB)] * 3
    caller, *others = (process["anon"].max() for process in trace.processes.values())
    assert sum(worker > 150 for worker in others) == 3
    assert caller < 250, "the first process is not the caller"  # it had bytes to fill the block
    if HAS_PSS:
        assert trace.shm_mib.max() == near(150)
        assert trace.peak_mib - idle.peak_mib == near(3 * 150 + 150)
        assert trace.peak_rss_mib - idle.peak_rss_mib > 3 * (150 + 150)


def in_a_grandchild(mib):
    """Let a process that this one starts start another, which allocates."""
    hold = f"import time; block = b'1' * ({mib} << 20); time.sleep({HOLD})"
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    return subprocess.run([sys.executable, "-c", start, hold]).returncode


def test_allocation_in_a_grandchild():
    """Programs that a worker starts are counted."""
    trace = measure(in_a_grandchild, 150)
    assert trace.value == 0
    assert len(trace.processes) == 3
    assert [process["anon"].max() > 150 for process in trace.processes.values()].count(True) == 1
    assert trace.above_mib > 150


def overwrite(path):
    """Write to all of a file, and close it at last."""
    with open(path, "r+b", buffering=0) as file:
        for _ in range(os.path.getsize(path) // MIB):
            file.write(b"1" * MIB)
        time.sleep(HOLD)


@needs_linux
def test_file_in_shared_memory():
    """Pages count for the call that writes them, though no process maps them."""
    with tempfile.NamedTemporaryFile(dir=meter.SHM) as file:
        file.truncate(100 * MIB)
        trace = measure(overwrite, file.name)
        assert trace.shm_mib[0] == 0
        assert trace.shm_mib.max() == near(100)
        assert trace.above_mib == near(100)
        assert trace.peak_pss_mib - trace.before_mib < 100
        assert measure(overwrite, file.name).shm_mib.max() == near(0)  # they were there before


def take_and_wait(folder):
    """Take shared memory in three ways when it is time to begin; hold it until this can end."""
    eventually((folder / "begun").exists)
    block = SharedMemory(create=True, size=20 * MIB)
    joblib = meter.SHM / f"joblib_memmapping_folder_{os.getpid()}_test_x"
    joblib.mkdir()
    try:
        with tempfile.TemporaryFile(dir=meter.SHM) as file:
            for i in range(20):
                block.buf[i * MIB : (i + 1) * MIB] = b"1" * MIB
                file.write(b"1" * MIB)
                (joblib / str(i)).write_bytes(b"1" * MIB)
                time.sleep(0.02)
            (folder / "full").touch()
            eventually((folder / "end").exists)
    finally:
        block.close()
        block.unlink()
        shutil.rmtree(joblib)


def begin_and_wait(folder):
    """Let the other program begin, and wait until it has taken all."""
    (folder / "begun").touch()
    taken = eventually((folder / "full").exists)
    time.sleep(HOLD)
    return taken


@needs_linux
def test_shared_memory_of_other_programs(tmp_path):
    """Blocks, open files and joblib's files of another program do not count."""
    other = multiprocessing.get_context("spawn").Process(target=take_and_wait, args=(tmp_path,))
    other.start()
    try:
        trace = measure(begin_and_wait, tmp_path)
    finally:
        (tmp_path / "end").touch()
        other.join()
    assert trace.result(), "the other program did not take anything"
    assert trace.shm_mib.max() < 15
    assert trace.above_mib < 15


def test_system_without_an_account(monkeypatch, tmp_path):
    """Where a system does not report anonymous memory, USS stands in for it, and is named."""
    monkeypatch.setattr(meter, "SHM", tmp_path / "none")
    assert measure(give).peak_mib > 0
    monkeypatch.setattr(meter, "HAS_PSS", False)
    trace = measure(hold, 50)
    assert trace.metric == "USS"
    assert trace.shm_mib is None
    assert trace.above_mib == near(50)
    assert "MiB USS" in str(trace)
    assert trace.peak_file_mib == 0


def allocate_for_a_moment(mib):
    """Allocate, and free at once."""
    np.ones(mib * MIB, dtype="uint8")


class MadeThere:
    """An argument that the other process makes with a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@needs_linux
def test_peak_between_two_samples(monkeypatch):
    """A peak that is over before the next sample counts; one before the call does not."""
    monkeypatch.setattr(meter, "PAUSES", (600, 600))  # no sample but the first
    trace = measure(allocate_for_a_moment, 300)
    assert len(trace.times) == 1
    assert trace.above_mib == near(300)
    assert trace.peak_mib == trace.high_water_mib
    assert measure(give, MadeThere(allocate_for_a_moment, 300)).above_mib == near(0)


@pytest.mark.parametrize(("files_mib", "expected"), [((10, 20), 390), ((10, 60), 0)])
def test_pages_of_files_are_no_peak(files_mib, expected):
    """The kernel's largest resident set is not used if it may hold pages of a mapped file."""
    samples = [
        meter.Sample(1.0 + i, {}, {7: dict.fromkeys(meter.KINDS, 0) | {"other": mib * MIB}})
        for i, mib in enumerate(files_mib)
    ]
    outcome = meter.Outcome(1.0, 0.5, high_water=(410 * MIB, 15 * MIB))
    assert meter._trace("name", samples, outcome).high_water_mib == expected


# --- Free memory


@pytest.fixture
def machine(monkeypatch):
    """A machine with 16,000 MiB, of which 9,000 are available."""
    memory = SimpleNamespace(total=16_000 * MIB, available=9_000 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    return memory


V2, V1 = ["0::/jobs/one"], ["5:cpu,cpuacct:/", "4:memory:/jobs/one", "0::/else"]
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def write_groups(root, lines, groups, version):
    """Write the files of control groups: limit, use and cache in MiB for each folder."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("\n".join(lines) + "\n")
    limit, used, cache = FILES[version]
    for place, (most, taken, cached) in groups.items():
        folder = root / "sys/fs/cgroup" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(f"{most if most == 'max' else most * MIB}\n")
        (folder / used).write_text(f"{taken * MIB}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{cache} {cached * MIB}\nfile 7\n")


@pytest.mark.parametrize(
    ("version", "lines", "groups", "free"),
    [
        (2, V2, {}, 9000),
        (2, V2, {"jobs/one": (2000, 500, 200)}, 1700),
        (2, V2, {"jobs/one": (2000, 2500, 0)}, 0),
        (2, V2, {"jobs/one": ("max", 500, 0), "jobs": (3000, 1000, 0)}, 2000),
        (2, V2, {"jobs/one": (2000, 100, 0), "jobs": (8000, 100, 0)}, 1900),
        (2, V2, {"jobs/one": (12_000, 100, 0)}, 9000),
        (2, V2, {"jobs/other": (100, 100, 0)}, 9000),
        (2, ["0::/not/visible/here"], {"": (2000, 500, 0)}, 1500),
        (1, V1, {"memory/jobs/one": (2000, 500, 300)}, 1800),
        (1, V1, {"memory/jobs/one": (2000, 500, 0), "memory/jobs": (600, 500, 0)}, 100),
        (1, V1, {"memory/jobs/one": (2**43, 500, 0)}, 9000),
        (1, V1, {"memory": (2000, 500, 0)}, 1500),
    ],
)
def test_memory_of_a_control_group(version, lines, groups, free, tmp_path, machine):
    """A container or a cluster's job has no more than its control groups allow."""
    write_groups(tmp_path, lines, groups, version)
    assert available_mib(tmp_path) == free


def test_free_memory_is_read_each_time(tmp_path, machine):
    """Free memory is that of the moment; a control group that is gone does not limit it."""
    write_groups(tmp_path, V2, {"jobs/one": (2000, 500, 0)}, 2)
    assert available_mib(tmp_path) == 1500
    (tmp_path / "sys/fs/cgroup/jobs/one/memory.current").write_text(str(800 * MIB))
    assert available_mib(tmp_path) == 1200
    machine.available = 100 * MIB
    assert available_mib(tmp_path) == 100
    machine.available = 9_000 * MIB
    (tmp_path / "sys/fs/cgroup/jobs/one/memory.stat").unlink()
    assert available_mib(tmp_path) == available_mib(tmp_path / "no groups") == 9000


def test_some_memory_is_kept_free(machine):
    """3 % of the machine's memory, or 256 MiB, are kept free."""
    assert meter.reserve_mib() == 480
    machine.total = 1000 * MIB
    assert meter.reserve_mib() == 256


# --- Stopped before the machine runs out of memory


@pytest.fixture
def own_machine(monkeypatch):
    """A machine with 16,000 MiB on which nothing runs but what a test starts."""
    before = psutil.Process().children(recursive=True)  # other tests' workers, which may end

    def free():
        used = 0
        for process in set(psutil.Process().children(recursive=True)).difference(before):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                used += process.memory_full_info().uss
        return 16_000 - used / MIB

    monkeypatch.setattr(meter, "available_mib", free)
    monkeypatch.setattr(meter, "reserve_mib", lambda: 500)


def take_step_by_step(folder, number, mib):
    """Take so much, a little at a time, and hold it until this process is stopped."""
    (folder / f"{number}.pid").write_text(str(os.getpid()))
    taken = [np.ones(5 * MIB, dtype="uint8") for _ in range(mib // 5)]
    time.sleep(600)
    return len(taken)


def take_in_workers(folder, mib):
    """Make a shared block, a temporary folder and what joblib leaves; take memory in workers."""
    from joblib import Parallel, delayed

    left = meter.SHM / f"joblib_memmapping_folder_{os.getpid()}_left"
    left.mkdir()
    shared = SharedMemory(create=True, size=20 * MIB)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            (folder / "names").write_text(f"{meter.SHM / shared.name}\n{temporary}\n{left}")
            shared.buf[:] = b"\1" * shared.size
            return Parallel(n_jobs=2)(delayed(take_step_by_step)(folder, i, mib) for i in range(2))
    finally:
        shared.close()
        shared.unlink()


@pytest.mark.skipif(not meter.SHM.is_dir(), reason="this system has no /dev/shm")
def test_call_that_takes_too_much_is_stopped(tmp_path, own_machine):
    """Workers end, and the call removes its files and its shared memory."""
    trace = measure_within(250, take_in_workers, tmp_path, 200)
    with pytest.raises(MemoryError, match=r"take_in_workers: stopped with \d.*250 MiB are allowed"):
        trace.result()
    taken = str(trace.exception).split(" with ")[1].split()[0]
    assert 250 <= int(taken.replace(",", "")) < 500
    assert trace.seconds < 400, "it ended by itself"
    assert trace.above_mib > 50
    pids = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    assert pids
    assert eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), 60)
    names = (tmp_path / "names").read_text().splitlines()
    assert [Path(name).exists() for name in names] == [False] * 3


def take_here(folder, mib, stubborn=False):
    """Take memory in the calling process, and note if it was interrupted."""
    try:
        return take_step_by_step(folder, "call", mib)
    except KeyboardInterrupt:
        (folder / "interrupted").touch()
        if stubborn:
            take_step_by_step(folder, "call", mib)
        raise


@pytest.mark.parametrize("stubborn", [False, pytest.param(True, marks=pytest.mark.extensive)])
def test_reserve_is_kept_free(stubborn, tmp_path, own_machine, monkeypatch):
    """A call is interrupted when it takes what the machine needs, and killed if it goes on."""
    assert measure_within(400, hold, 100).result() == 1
    monkeypatch.setattr(meter, "reserve_mib", lambda: 15_800)
    trace = measure(take_here, tmp_path, 300, stubborn)
    with pytest.raises(MemoryError, match="15,800 MiB are kept free"):
        trace.result()
    assert (tmp_path / "interrupted").exists()
    assert not psutil.pid_exists(int((tmp_path / "call.pid").read_text()))
    assert trace.seconds < 400


def run_two_methods(folder):
    """Run a method that takes too much, and the next one, in this process; return their ends."""
    from joblib import Parallel, delayed

    from beyond_the_masker.experiments import sequence

    tasks = (delayed(take_step_by_step)(folder, i, 150) for i in range(2))
    calls = {
        "workers": lambda: Parallel(n_jobs=2)(tasks),
        "after": lambda: Parallel(n_jobs=2)(delayed(abs)(i) for i in range(2)),
    }
    sequence.allowed_mib = lambda: (math.inf, 200)
    sequence.guard = lambda *_: (SimpleNamespace(peak_mib=0), "")
    methods = (SimpleNamespace(title=name, call=lambda *_, c=c: c) for name, c in calls.items())
    return [sequence.run_guarded(method, "image", ["mask"])[:2] for method in methods]


@pytest.mark.extensive
def test_stopped_inside_a_process_that_goes_on(tmp_path):
    """The sequence of methods goes on after a method that takes too much, with new workers."""
    (stopped, reason), after = measure(run_two_methods, tmp_path).result()
    assert stopped == "stopped"
    assert reason.startswith("It was stopped with")
    assert after == ("measured", "")


# --- Values, exceptions, and ends of all kinds


def give(*args, **kwargs):
    """Return the arguments."""
    print("printed in a call")
    print("printed as an error", file=sys.stderr)
    os.write(1, b"written to standard output\n")
    return args, kwargs


def test_value_is_returned_whatever_is_printed(capfd):
    """Arguments and values arrive, and a call that prints does not disturb the measurement."""
    big = np.arange(1_000_000)
    trace = pickle.loads(pickle.dumps(measure(give, big, key="value")))  # it can be kept
    (array,), keywords = trace.result()
    np.testing.assert_array_equal(array, big)
    assert keywords == {"key": "value"}
    out, err = capfd.readouterr()
    assert out == ""
    for text in ("printed in a call", "printed as an error", "written to standard output"):
        assert text in err


def fail(error, *args):
    """Raise."""
    raise error(*args)


class TwoArguments(Exception):
    """An exception that pickles, and cannot be made again from its message alone."""

    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")


def make_generator():
    """Return what cannot be pickled."""
    return (i for i in range(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ((fail, ValueError, "no such region"), ValueError, "^no such region$"),
        ((fail, SystemExit, 3), SystemExit, "^3$"),
        ((fail, KeyboardInterrupt), KeyboardInterrupt, "^$"),
        ((fail, OSError, 2, "No such file", "a.nii"), FileNotFoundError, "file: 'a.nii'$"),
        ((os._exit, 3), RuntimeError, "exit status 3"),
        ((make_generator,), RuntimeError, "generator"),
        ((fail, TwoArguments, "a hole", "x = 3"), RuntimeError, "a hole at x = 3|TwoArguments"),
    ],
)
def test_exception_is_returned(call, error, message):
    """The trace of a failed call has its exception, or a RuntimeError that states why not."""
    trace = measure(*call)
    assert trace.value is None
    assert str(trace).endswith(f"raised {trace.exception!r}")
    assert trace.before_mib > 0
    with pytest.raises(error, match=message):
        trace.result()


def kill_this_and_leave_a_child(folder):
    """End the process as the system does when memory runs out, while a child works on."""
    if child := os.fork():
        (folder / "pid").write_text(str(child))
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_call_that_has_children(tmp_path):
    """When a call is killed, its children are ended, and nothing waits for them."""
    trace = measure(kill_this_and_leave_a_child, tmp_path)
    with pytest.raises(RuntimeError, match="signal SIGKILL"):
        trace.result()
    assert trace.seconds < 400
    pid = int((tmp_path / "pid").read_text())
    assert eventually(lambda: not psutil.pid_exists(pid), 60), "a child runs on"


WITHOUT_SIGNALS = """
import signal, sys, time
del signal.SIGKILL
from beyond_the_masker import meter
assert meter.KILL == meter.INTERRUPT == signal.SIGTERM
assert meter.measure(int, 3).result() == 3
trace = meter.measure_within(1, bytearray, 2**30)
assert isinstance(trace.exception, MemoryError), trace
"""


def test_system_with_one_signal():
    """Windows has no SIGKILL and cannot interrupt another process: there, SIGTERM ends it."""
    subprocess.run([sys.executable, "-c", WITHOUT_SIGNALS], check=True, timeout=600)


def test_argument_that_cannot_be_prepared():
    """The error explains why the fresh process could not take the call."""
    with pytest.raises(RuntimeError) as error:
        measure(give, MadeThere(fail, ImportError, "not installed over there"))
    for part in ("give could not be prepared", "Traceback", "not installed over there"):
        assert part in str(error.value)


# 66,000 bytes are a little more than a pipe takes: the rest waits to be written.
@pytest.mark.parametrize("size", [1, 66_000])
def test_meter_that_cannot_be_imported(size, monkeypatch, capfd):
    """Without the meter on sys.path, an error refers to the message of the import."""
    monkeypatch.setattr(meter, "MODULE", "nowhere.meter")
    with pytest.raises(RuntimeError, match="could not be prepared"):
        measure(len, b"x" * size)
    assert "No module named 'nowhere'" in capfd.readouterr().err


@pytest.fixture
def run_script(tmp_path):
    """A function that starts a script next to a copy of the meter, and kills it at last."""
    processes = []

    def start(text):
        shutil.copy(meter.__file__, tmp_path / "meter.py")
        (tmp_path / "script.py").write_text(textwrap.dedent(text))
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "script.py"]
        processes.append(subprocess.Popen(command, cwd=tmp_path, text=True, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_script_with_a_copy_of_the_meter(run_script):
    """Functions of a script can be measured, and a call that reads standard input finds none."""
    process = run_script("""
        from meter import measure

        class Special(ValueError):
            pass

        def helper(x):
            return 2 * x

        def function(x):
            if x > 2:
                raise Special(x)
            return helper(x), (lambda y: y + 1)(x)

        assert measure(function, 2).result() == (4, 3)
        try:
            measure(function, 3).result()
        except Special as error:
            print("refused", error)
        print(repr(measure(input).exception))
    """)
    out, err = process.communicate("typed by somebody\n", timeout=200)
    assert err == ""
    assert out.startswith("refused 3\nEOFError(")


EXTENSIVE = [pytest.param(how, marks=pytest.mark.extensive) for how in ("SIGTERM", "SIGKILL")]


@pytest.mark.parametrize("how", ["SIGINT", *EXTENSIVE])
def test_signal_ends_the_call_and_its_workers(how, tmp_path, run_script):
    """After Ctrl-C the call cleans up, and its workers end; on Linux also if the script is killed.

    A shell lets what it starts in the background ignore Ctrl-C; another signal ends it then.
    """
    if how == "SIGKILL" and sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent has ended")
    on_interrupt = "default_int_handler" if how == "SIGINT" else "SIG_IGN"
    process = run_script(f"""
        import os, signal, time
        from pathlib import Path
        from joblib import Parallel, delayed
        from meter import measure

        def work(number):
            Path(f"{{number}}.tmp").write_text(str(os.getpid()))
            Path(f"{{number}}.tmp").rename(f"{{number}}.pid")
            time.sleep(100)

        def call():
            try:
                Parallel(n_jobs=2)(delayed(work)(i) for i in range(2))
            finally:
                Path("cleaned up").touch()

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGINT, signal.{on_interrupt})
        try:
            measure(call)
        except KeyboardInterrupt:
            print("interrupted")
    """)
    assert eventually(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    processes = psutil.Process(process.pid).children(recursive=True)
    assert {int(path.read_text()) for path in tmp_path.glob("*.pid")} < {p.pid for p in processes}
    process.send_signal(getattr(signal, how))
    out, _ = process.communicate(timeout=200)
    assert out == ("" if how == "SIGKILL" else "interrupted\n")
    assert eventually((tmp_path / "cleaned up").exists, 60)
    _, alive = psutil.wait_procs(processes, timeout=60)
    for left in alive:
        left.kill()
    assert not alive


# --- Numbers, figures and files of a trace


def trace_of(**changes):
    """A trace with known numbers: 100 MiB in the caller, 30 in each of two workers for a while."""
    busy = np.array([0.0, 1, 1, 0])
    caller = {"anon": 100, "file": 5, "pss": 105, "rss": 120, "uss": 90}
    worker = {"anon": 30, "file": 3, "pss": 33, "rss": 50, "uss": 20}
    values = {
        "name": "function",
        "started": 1.7e9,
        "seconds": 0.65,
        "before_mib": 100.0,
        "times": np.array([-0.01, 0.2, 0.4, 0.6]),
        "processes": {7: {metric: mib * np.ones(4) for metric, mib in caller.items()}}
        | {pid: {metric: mib * busy for metric, mib in worker.items()} for pid in (8, 9)},
        "shm_mib": 40 * busy,
    }
    return Trace(**values | changes)


def test_numbers_of_a_trace():
    """Memory in use is anonymous and shared memory, without files and other sums."""
    trace = trace_of()
    assert trace.peak_mib == 200
    assert trace.above_mib == 100
    assert (trace.peak_file_mib, trace.peak_pss_mib, trace.peak_rss_mib) == (11, 171, 220)
    assert trace.total("uss").tolist() == [90, 130, 130, 90]
    assert trace_of(high_water_mib=300.0).peak_mib == 300
    assert trace_of(shm_mib=None).peak_mib == 160
    assert str(trace) == (
        "function\n    peak 200 MiB memory in use, 100 MiB before the call; 0.650 s; 3 processes; "
        "summed RSS 220 MiB"
    )


def test_plot():
    """A figure shows the amounts that were measured, also of a call that was over at once."""
    axes = trace_of().plot(image_mib=70)
    assert axes.get_title("left") == "function:\npeak 200 MiB"
    tops = [layer.get_paths()[0].vertices[:, 1].max() for layer in axes.collections]
    assert tops == [100, 160, 200]
    labels = axes.get_legend_handles_labels()[1]
    assert set(labels) > {"calling process", "workers", "shared memory"}
    lines = {line.get_label(): np.max(line.get_ydata()) for line in axes.lines}
    assert lines == {"with mapped files": 211, "before the call": 100, "the image": 70}
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylabel() == "MiB (memory in use)"
    one = {metric: np.array([30.0]) for metric in meter.KINDS}
    short = {"times": np.array([-0.01]), "processes": {7: one}, "shm_mib": np.zeros(1)}
    axes.clear()
    assert trace_of(seconds=0.001, **short).plot(axes, title="A title") is axes
    assert axes.get_title("left") == "A title:\npeak 30 MiB"
    assert "the image" not in axes.get_legend_handles_labels()[1]
    left, right = axes.get_xlim()
    assert left < right


def test_saved_trace_is_what_mprof_reads(tmp_path):
    """mprof reads the same numbers from a saved trace, and plots it."""
    import mprof

    trace = trace_of(name="NumPy indexing, path, parallel")
    trace.save(tmp_path / "trace.dat")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.dat"]
    content = mprof.read_mprofile_file(tmp_path / "trace.dat")
    stamps = trace.started + trace.times
    np.testing.assert_allclose(content["mem_usage"], trace.total())
    np.testing.assert_allclose(content["timestamp"], stamps, atol=1e-3, rtol=0)
    assert set(content["children"]) == {"8", "9"}
    for pid, samples in content["children"].items():
        values = trace.processes[int(pid)]["anon"]
        expected = np.c_[values, stamps][values > 0]
        np.testing.assert_allclose(samples, expected, atol=1e-3, rtol=0)
    ((bracket,),) = content["func_timestamp"].values()
    assert bracket == pytest.approx([1.7e9, 1.7e9 + 0.65, trace.total()[0], bracket[3], 0])
    assert trace.name in content["cmd_line"]
    command = [sys.executable, "-m", "mprof", "plot", "--output", "trace.png", "trace.dat"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=200)
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    """A trace replaces an older one only when it is complete."""
    trace_of().save(tmp_path / "trace.dat")
    before = (tmp_path / "trace.dat").read_text()
    monkeypatch.setattr(Path, "replace", lambda *_: fail(OSError, "no space"))
    with pytest.raises(OSError, match="no space"):
        trace_of(seconds=9).save(tmp_path / "trace.dat")
    assert (tmp_path / "trace.dat").read_text() == before
