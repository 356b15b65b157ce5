"""The fault campaign: nothing breaks a promise, and it finds faults that are put in on purpose."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from beyond_the_masker.draw.figures import plot_faults
from good_figures import is_a_good_figure, nothing_overlaps

ROOT = Path(__file__).parent.parent
needs_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the campaign reads /proc"
)
START = "import sys; from tests.faults.__main__ import main"
# Each replaces a function wherever the package has it.
PLANT = """
def plant(name, function):
    for module in [m for n, m in sys.modules.items() if n.startswith("beyond_the_masker")]:
        if hasattr(module, name):
            setattr(module, name, function)
"""
PLANTED = {
    "kill": """
# A lock is not given back by a process that is killed.
import os
from contextlib import contextmanager
from beyond_the_masker.files import moved_into_place

@contextmanager
def with_lock(file, *more):
    lock = file.with_name(file.name[:200] + ".lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
    with moved_into_place(file, *more) as unfinished:
        yield unfinished
    lock.unlink()

plant("moved_into_place", with_lock)
""",
    "power": """
# A file is renamed before its data are on the disk.
import os
os.fsync = lambda descriptor: None
""",
    "calls": """
# An error of a full disk is swallowed.
from contextlib import suppress
from beyond_the_masker.extract.streaming import NpyFile

def write_or_not(self, rows, values, original=NpyFile.__setitem__):
    with suppress(OSError):
        original(self, rows, values)

NpyFile.__setitem__ = write_or_not
""",
    "space": """
# An error of a full disk is swallowed, in files of another kind.
from contextlib import suppress
from beyond_the_masker.studies import results

def write_or_not(*arguments, original=results.write_arrays):
    with suppress(OSError):
        original(*arguments)

plant("write_arrays", write_or_not)
""",
    "memory": """
# A lack of memory ends in another error, without a reason.
from beyond_the_masker.extract import streaming

def problem_of(path, error, original=streaming.problem_of):
    return RuntimeError() if isinstance(error, MemoryError) else original(path, error)

plant("problem_of", problem_of)
""",
    "image": """
# An image that changes while it is read is not noticed.
plant("check_version", lambda *arguments: None)
""",
    "bits": """
# A result is believed without being read.
plant("is_undamaged", lambda file: file.exists())
""",
    "together": """
# Two calls write into one unfinished file.
import builtins
from beyond_the_masker.extract import streaming

plant("unfinished_beside", lambda path: path.with_name(path.name[:200] + ".unfinished"))
streaming.open = lambda path, mode="r": builtins.open(path, mode.replace("x", "w"))
""",
    "odd": """
# Files from the future are refused.
import time
from beyond_the_masker.extract import streaming

def version_of(path, original=streaming.version_of):
    found = original(path)
    if found[2] > time.time_ns():
        raise ValueError(f"{path} is from the future.")
    return found

plant("version_of", version_of)
""",
}
TARGET = dict.fromkeys(("kill", "bits", "power", "space"), "mask_study") | {"image": "mask_blocks"}


def test_the_figure():
    """No word is cut off or overlaps another, with and without broken promises."""
    for broken in (0, 123):
        rows = {"trials": 1234, "survived": 1234 - broken, "violations": broken}
        table = pd.DataFrame([rows] * 3, index=["kill", "power", "together"])
        figure = plot_faults(table)
        is_a_good_figure(figure, f"power: {1234 - broken:,} of 1,234")
        nothing_overlaps([*figure.axes[0].texts, figure.axes[0].xaxis.label])


def run(code, *arguments):
    """Run the campaign after some code; return the finished process."""
    code = f"{START}\n{PLANT}{code}\nsys.exit(main(sys.argv[1:]))"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")])}
    words = [sys.executable, "-c", code, *arguments]
    return subprocess.run(words, env=environ, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.extensive
@pytest.mark.chance
@needs_linux
def test_nothing_breaks_a_promise():
    """Trials of all classes end as promised."""
    ended = run("", "--trials=200")
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.chance
@needs_linux
def test_a_few_trials():
    """A few trials of each class end as promised, two at a time."""
    ended = run("", "--trials=18", "--jobs=2", "--target=stream_masks to files")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"all +18 +18 +0 ", ended.stdout)


@pytest.mark.extensive
@pytest.mark.chance
@needs_linux
@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fault_is_found(kind):
    """A fault that is put in on purpose is found, and repeated by the line that is printed."""
    target = f"--target={TARGET.get(kind, 'stream_masks to files')}"
    ended = run(PLANTED[kind], f"--class={kind}", target, "--trials=60", "--stop")
    if "skipped" in ended.stdout:
        pytest.skip(ended.stdout)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    line = re.search(r"python -m tests.faults (.*)", ended.stderr)[1]
    again = run(PLANTED[kind], *shlex.split(line))
    assert again.returncode == 1, again.stdout + again.stderr
