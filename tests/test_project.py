"""The project as a whole: one release everywhere, commands that exist, and how tests repeat."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def release_in_changelog():
    """Version and date of the newest release; nothing if there is none yet."""
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    found = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", text) for text in headings[1:]]
    assert all(found), "a heading is not 'version - date'"
    return found[0].groups() if found else (None, None)


def test_release_is_the_same_everywhere():
    """The citation names the changelog's newest release."""
    citation = (ROOT / "CITATION.cff").read_text()
    keys = ("version", "date-released")
    found = [re.search(rf"^{key}: \"?([^\s\"]+)", citation, re.MULTILINE) for key in keys]
    assert tuple(match and match[1] for match in found) == release_in_changelog()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_there_is(path):
    """Workflows ask make for targets and options that it has."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    lists = re.findall(r"^(?:OPTIONS|SETTINGS) := (.*)$", makefile, re.MULTILINE)
    options = set(" ".join(lists).split())
    commands = re.findall(r"\bmake ([a-z-]+)((?: [A-Z_]+=\S+)*)", path.read_text())
    assert commands
    for target, given in commands:
        assert target in targets
        assert set(re.findall(r"([A-Z_]+)=", given)) <= options


def test_workflows_are_there():
    """One workflow publishes the site, and one tries the real data."""
    texts = {path.stem: path.read_text() for path in WORKFLOWS}
    assert "path: doc/_build/html" in texts["site"]
    assert "macos-latest" in texts["site"]
    assert "cron:" in texts["real_data"]
    assert "DATA=development_fmri" in texts["real_data"]


# -- Every system ------------------------------------------------------------------------------

ELSEWHERE = """
import builtins, importlib, os, sys

import psutil

folder, *modules = sys.argv[1:]
# Windows has none of these, and macOS not all.
missing = {"fcntl", "grp", "posix", "pwd", "resource", "termios"}
for where, name in (
    *((os, "getsid"), (os, "posix_fadvise"), (os, "sched_getaffinity")),
    *((psutil.Process, "cpu_affinity"), (psutil.Process, "memory_maps")),
):
    if hasattr(where, name):
        delattr(where, name)
psutil.Process.memory_full_info = psutil.Process.memory_info  # no PSS
original = builtins.__import__


def import_elsewhere(name, caller=None, *others):
    if name in missing and (caller or {}).get("__file__", "").startswith(folder):
        raise ImportError(f"{caller['__name__']} imports {name}")
    return original(name, caller, *others)


builtins.__import__ = import_elsewhere
sys.path.insert(0, folder)
for module in modules:
    importlib.import_module(module)
"""


def test_examples_can_be_imported_on_every_system(tmp_path):
    """No example needs a module or function at its import that only some systems have."""
    folder = ROOT / "examples"
    modules = sorted(path.stem for path in folder.glob("*.py"))
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, folder, *modules],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# -- What is repeated --------------------------------------------------------------------------

FAILING = """
import pytest

calls = []


def fail_at_first(times, name):
    calls.append(name)
    assert calls.count(name) > times, f"{name} failed"


@pytest.mark.chance
def test_once(tmp_path):
    (tmp_path / "a file").mkdir()  # each repeat has a folder of its own
    fail_at_first(1, "once")


@pytest.fixture(scope="module")
def prepared():
    fail_at_first(2, "prepared")


@pytest.mark.chance
def test_twice(prepared):
    pass


@pytest.mark.chance
def test_three_times():
    fail_at_first(3, "three times")


def test_unmarked():
    fail_at_first(1, "unmarked")
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "workers"])
def test_only_marked_failures_are_repeated(tmp_path, workers):
    """A failure of a test marked `chance` is repeated twice and reported, no other failure is."""
    (tmp_path / "test_failing.py").write_text(FAILING)
    own = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT / "examples")))}
    options = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-p", "conftest"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", *workers, tmp_path],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | own,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 2 passed, 5 rerun" in done.stdout
    _, report = done.stdout.split("failures that were repeated")
    report, summary = report.split("short test summary info")
    repeated = re.findall(r"^test_failing.py::(.+)\n    AssertionError: (.+)$", report, re.M)
    assert sorted(repeated) == [
        ("test_once, call", "once failed"),
        *[("test_three_times, call", "three times failed")] * 2,
        *[("test_twice, setup", "prepared failed")] * 2,
    ]
    failed = re.findall(r"^FAILED test_failing.py::(\w+)", summary, re.M)
    assert sorted(failed) == ["test_three_times", "test_unmarked"]


def test_no_test_is_repeated_otherwise():
    """The marker `chance` is the only way to have a test repeated."""
    for path in (ROOT / "tests").glob("*.py"):
        if path != Path(__file__) and path.name != "conftest.py":
            assert not re.search(r"\bflaky\b|-reruns", path.read_text()), path.name
