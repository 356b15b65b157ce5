"""The project as a whole: layout, imports, one release everywhere, commands, repeated tests."""

import ast
import graphlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PAGES = sorted(ROOT.glob("examples/*/plot_*.py"))
MODULES = {path.stem: path for path in ROOT.glob("examples/beyond_the_masker/*.py")}


# -- Layout ------------------------------------------------------------------------------------


def imported(path, everywhere=True):
    """Return the modules that a file imports, those inside its functions as well or not."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_nothing_imports_a_page():
    """Pages import the package; neither the package nor a page nor a test imports a page."""
    pages = {path.stem for path in PAGES}
    for path in [*PAGES, *MODULES.values(), *ROOT.glob("tests/**/*.py")]:
        assert not pages & {name.split(".")[0] for name in imported(path)}, path.name


def test_the_package_has_no_import_circle():
    """Its modules can be put into an order in which each imports only earlier ones."""
    graph = {}
    for name, path in MODULES.items():
        parts = (module.split(".") for module in imported(path, everywhere=False))
        graph[name] = {p[1] for p in parts if p[0] == "beyond_the_masker" and len(p) > 1}
    tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", ["streaming", "meter"])
def test_a_module_to_take_along_stands_alone(name):
    """It imports nothing of the package."""
    assert not [m for m in imported(MODULES[name]) if m.startswith("beyond_the_masker")]


LIGHT = ("blocks", "checks", "running", "streaming", "study")


@pytest.mark.parametrize("name", LIGHT)
def test_a_measured_process_imports_only_what_it_needs(name):
    """The modules that extract series load neither nilearn nor pandas nor matplotlib."""
    code = (
        f"import sys, beyond_the_masker.{name};"
        "print({'nilearn', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules) or '')"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT / "examples")}
    done = subprocess.check_output([sys.executable, "-c", code], env=environ, text=True)
    assert done.strip() == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_runs_top_to_bottom_and_leads_to_others(page):
    """It has no `__main__` guard, and its last words link pages that exist."""
    text = page.read_text()
    assert "__main__" not in text
    _, _, ending = text.rpartition("Recommended next")
    links = re.findall(r"sphx_glr_auto_examples_(\w+\.py)", ending)
    assert links
    assert set(links) <= {f"{p.parent.name}_{p.name}" for p in PAGES if p != page}


# -- Releases and commands ---------------------------------------------------------------------


def release_in_changelog():
    """Return version and date of the newest release; None twice if there is none yet."""
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    found = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", text) for text in headings[1:]]
    assert all(found), "a heading is not 'version - date'"
    return found[0].groups() if found else (None, None)


def test_release_is_the_same_everywhere():
    """The citation names the changelog's newest release, and so does the package."""
    citation = (ROOT / "CITATION.cff").read_text()
    keys = ("version", "date-released")
    found = [re.search(rf"^{key}: \"?([^\s\"]+)", citation, re.MULTILINE) for key in keys]
    version, date = release_in_changelog()
    assert tuple(match and match[1] for match in found) == (version, date)
    package = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert package == version or (version is None and "dev" in package)


def made(text):
    """Return the targets and options of all make commands in a text."""
    return [
        (target, set(re.findall(r"([A-Z_]+)=", given)))
        for target, given in re.findall(
            r"^ *(?:- )?(?:run: )?make ([a-z-]+)((?: [A-Z_]+=\S+)*)", text, re.MULTILINE
        )
    ]


@pytest.mark.parametrize(
    "path", [*WORKFLOWS, ROOT / ".ci" / "run", ROOT / "README.md"], ids=lambda path: path.name
)
def test_commands_of_make_exist(path):
    """Workflows and README ask make for targets and options that it has."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    lists = re.findall(r"^(?:OPTIONS|SETTINGS) := (.*)$", makefile, re.MULTILINE)
    commands = made(path.read_text())
    assert commands
    for target, options in commands:
        assert target in targets
        assert options <= set(" ".join(lists).split())


def test_workflows_publish_and_test():
    """One workflow publishes the site; one runs every test and builds on real data each week."""
    texts = {path.stem: path.read_text() for path in WORKFLOWS}
    assert "path: doc/_build/html" in texts["site"]
    assert "macos-latest" in texts["site"]
    assert "cron:" in texts["weekly"]
    assert "make test-all" in texts["weekly"]
    assert "DATA=development_fmri" in texts["weekly"]


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
    importlib.import_module(f"beyond_the_masker.{module}")
"""


def test_the_package_can_be_imported_on_every_system(tmp_path):
    """No module needs, at its import, a module or function that only some systems have."""
    modules = sorted(set(MODULES) - {"__init__", "__main__"})
    command = [sys.executable, "-c", ELSEWHERE, ROOT / "examples", *modules]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
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


@pytest.mark.parametrize(
    "workers", [[], pytest.param(["-n", "2"], marks=pytest.mark.extensive)], ids=["one", "two"]
)
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
    for path in (ROOT / "tests").glob("**/*.py"):
        if path != Path(__file__) and path.name != "conftest.py":
            assert not re.search(r"\bflaky\b|-reruns", path.read_text()), path.name
