"""The project as a whole: layout, imports, one release everywhere, commands, repeated tests."""

import ast
import graphlib
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import beyond_the_masker

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PAGES = sorted(ROOT.glob("examples/*/plot_*.py"))
IN_WORKERS = ("extract.blocks", "extract.running", "studies.study")
MODULES = {path.stem: path for path in ROOT.glob("examples/beyond_the_masker/**/[!_]*.py")}


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
    """Pages import the package; a module to take along imports nothing of either."""
    pages = {path.stem for path in PAGES}
    for path in [*PAGES, *MODULES.values(), *ROOT.glob("tests/**/*.py")]:
        names = {name.split(".")[0] for name in imported(path)}
        assert not pages & names, path.name
        if path in (MODULES["streaming"], MODULES["meter"]):
            assert "beyond_the_masker" not in names


def test_the_package_has_no_import_circle():
    """Its modules can be put into an order in which each imports only earlier ones."""
    graph = {}
    for name, path in MODULES.items():
        names = imported(path, everywhere=False)
        graph[name] = {n.split(".")[-1] for n in names if n.startswith("beyond_the_masker.")}
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_folders_of_the_package_have_no_import_circle():
    """A folder, too, imports only from earlier ones."""
    graph = {}
    for path in MODULES.values():
        names = [name.split(".") for name in imported(path, everywhere=False)]
        used = {n[1] for n in names if n[0] == "beyond_the_masker" and len(n) > 2}
        graph.setdefault(path.parent.name, set()).update(used - {path.parent.name, *MODULES})
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_public_names_are_no_modules():
    """Each leads to its function, also when the module that has it was imported before."""
    for name, home in beyond_the_masker.HOMES.items():
        module = importlib.import_module(f"beyond_the_masker.{home}")
        assert getattr(beyond_the_masker, name) is getattr(module, name)


def test_a_measured_process_imports_only_what_it_needs():
    """The modules that extract series load neither nilearn nor pandas nor matplotlib."""
    modules = ", ".join(f"beyond_the_masker.{name}" for name in IN_WORKERS)
    environ = os.environ | {"PYTHONPATH": str(ROOT / "examples")}
    for names, unwanted in (
        (modules, {"nilearn", "pandas", "matplotlib", "sklearn"}),
        ("beyond_the_masker.extract.checks", {"nibabel", "tqdm"}),
    ):
        code = f"import sys, {names}; print(*sys.modules)"
        loaded = subprocess.check_output([sys.executable, "-c", code], env=environ, text=True)
        assert unwanted.isdisjoint(loaded.split()), names


def test_pages_run_top_to_bottom_and_lead_to_others():
    """They have no `__main__` guard, and their last words link pages that exist."""
    names = {f"{page.parent.name}_{page.name}" for page in PAGES}
    for page in PAGES:
        text = page.read_text()
        assert "__main__" not in text, page.name
        links = re.findall(
            r"sphx_glr_auto_examples_(\w+\.py)", text.rpartition("Recommended next")[2]
        )
        assert links, page.name
        assert set(links) <= names - {f"{page.parent.name}_{page.name}"}, page.name


# -- Releases and commands ---------------------------------------------------------------------


def test_release_is_the_same_everywhere():
    """The citation names the changelog's newest release, if there is one; so does the package."""
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    releases = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", h) for h in headings[1:]]
    assert all(releases), "a heading is not 'version - date'"
    version, date = releases[0].groups() if releases else (None, None)
    citation = (ROOT / "CITATION.cff").read_text()
    for key, value in (("version", version), ("date-released", date)):
        found = re.search(rf"^{key}: \"?([^\s\"]+)", citation, re.MULTILINE)
        assert (found and found[1]) == value
    package = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert package == version or (version is None and "dev" in package)


@pytest.mark.parametrize(
    "path", [*WORKFLOWS, ROOT / ".ci" / "run", ROOT / "README.md"], ids=lambda path: path.name
)
def test_commands_of_make_exist(path):
    """Workflows and README ask make for targets and options that it has."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    options = re.findall(r"^(?:OPTIONS|SETTINGS) := (.*)$", makefile, re.MULTILINE)
    command = r"^ *(?:- )?(?:run: )?make ([a-z-]+)((?: [A-Z_]+=\S+)*)"
    found = re.findall(command, path.read_text(), re.MULTILINE)
    assert found
    for target, given in found:
        assert target in targets
        assert set(re.findall(r"([A-Z_]+)=", given)) <= set(" ".join(options).split())


def test_only_tests_of_chance_are_repeated(request):
    """Failures of tests marked `chance` are repeated twice, no others."""
    assert not request.config.option.reruns
    for item in request.session.items:
        repeated = item.get_closest_marker("flaky")
        assert bool(repeated) == bool(item.get_closest_marker("chance")), item.name
        assert not repeated or repeated.kwargs == {"reruns": 2}
