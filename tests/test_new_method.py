"""A new method takes one example and one entry in METHODS, as CONTRIBUTING.md explains.

A copy of the project gets the example and the entry from there.
"""

import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from beyond_the_masker import imports
from beyond_the_masker import model as memory_model
from beyond_the_masker.methods import find_method
from small_site import copy_project

ROOT = Path(__file__).parent.parent
NAME, MODE = "NumPy indexing, union of masks", "one pass"
TITLE = f"{NAME}, {MODE}"


def code_blocks():
    """The Python code in CONTRIBUTING.md: an example, and an entry of the table."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```$", text, flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in blocks]


def add_to_table(path, entry):
    """Put an entry at the end of METHODS in a copy of memory_model.py."""
    lines = path.read_text().splitlines(keepends=True)
    for node in ast.parse("".join(lines)).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "METHODS":
            lines.insert(node.end_lineno - 1, textwrap.indent(entry, "    "))
    path.write_text("".join(lines))


class Project:
    """A copy of the project with a small image of its own, and a method more."""

    def __init__(self, folder):
        self.folder = folder
        copy_project(folder, "doc", "examples", "tests", "pyproject.toml")
        self.example = folder / "examples" / "plot_union.py"
        example, entry = code_blocks()
        self.example.write_text(example)
        add_to_table(folder / "examples" / "memory_model.py", entry)

        self.measured = folder / "doc" / "measured"
        self.fmri, self.labels = folder / "fmri.nii.gz", folder / "labels.nii.gz"
        values = np.random.default_rng(0).integers(-99, 99, (6, 7, 8, 9), dtype="int16")
        nib.Nifti1Image(values, np.eye(4)).to_filename(self.fmri)
        labels = np.zeros((6, 7, 8), "uint8")
        labels[:3], labels[3:, :3] = 1, 2
        nib.Nifti1Image(labels, np.eye(4)).to_filename(self.labels)
        self.options = {
            "FMRI": str(self.fmri),
            "ATLAS": str(self.labels),
            "N_REGIONS": "2",
            "PAUSE": "0",
            "MEMORY": "unlimited",  # whatever the machine has left
            "MASKER_CACHE": str(folder / "cache"),
            "MEASURED": str(self.measured),
        }
        (folder / "cache").mkdir()  # what imports take is measured elsewhere
        machine = imports.TYPICAL | {"measured": imports.versions()}
        (folder / "cache" / "machine.json").write_text(json.dumps(machine))

    def python(self, *arguments, **options):
        """Run Python in the folder of examples, with options of the build; return its output."""
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=self.folder / "examples",
            env=os.environ | self.options | options,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def tests(self, *arguments):
        """Run tests of the copy."""
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=900,
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The copy."""
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def row(project):
    """The method's row in summary.csv, after its example has run as a page."""
    project.python(project.example, MPLBACKEND="agg")
    with open(project.measured / "summary.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    return row


@pytest.mark.chance
def test_it_is_measured(project, row):
    """The method is measured, and its arrays are compared with NiftiMasker's."""
    assert (row["method"], row["mode"], row["function"]) == (NAME, MODE, "numpy_masker_union")
    assert (row["status"], row["identical"], row["n_masks"]) == ("measured", "true", "2")
    assert 0 < float(row["before_mib"]) <= float(row["peak_mib"])
    assert len(list((project.measured / "traces").iterdir())) == 1


DRAW = """
import json
from matplotlib.text import Text
from measured_methods import read_summary
from plot_memory_over_time import plot_peaks, plot_phases, read_phases, run_under_mprof

run_under_mprof("whole_experiment.py", "..")
figures = [
    plot_phases(*read_phases("../phases.csv", "../mprof_rss.dat"), "RSS", tall=tall)
    for tall in (False, True)
]
figures.append(plot_peaks(read_summary()))
figures[-1].savefig("../doc/measured/peaks.svg")
print()
print(json.dumps([[text.get_text() for text in figure.findobj(Text)] for figure in figures]))
"""


@pytest.mark.chance
def test_it_is_in_the_experiment_and_in_the_figures(project, row):
    """The experiment runs the method, and the figures and the chart show it."""
    out = project.python("-c", DRAW, N_REGIONS="1", MPLBACKEND="agg")
    assert f": {TITLE} ...\n    done in " in out
    wide, tall, chart = json.loads(out.splitlines()[-1])
    for texts in (wide, tall):
        assert texts.count(TITLE) == 1
        assert str(len(memory_model.METHODS) + 1) in texts  # its number
    assert sum(text.startswith(f"{NAME}: ") for text in chart) == 1


PAGE = """
A page
======

.. measured-table::

.. memory-calculator::
"""
CONF = """
import sys
sys.path[:0] = [{extensions!r}, {examples!r}]
extensions = ["calculator", "measured"]
measured_folder = {measured!r}
"""


def test_it_is_in_the_table_and_in_the_calculator(project, row):
    """The table of the chapter and the calculator have the method."""
    source, html = project.folder / "page", project.folder / "html"
    shutil.copytree(project.measured, source / "measured")
    folders = {"extensions": "doc/_ext", "examples": "examples", "measured": "page/measured"}
    folders = {name: str(project.folder / folder) for name, folder in folders.items()}
    (source / "conf.py").write_text(CONF.format(**folders))
    (source / "index.rst").write_text(PAGE)
    project.python("-m", "sphinx", "-q", source, html)
    page = (html / "index.html").read_text()
    (line,) = re.findall(rf"<tr[^>]*>(?:(?!<tr).)*{NAME}.*?</tr>", page, flags=re.DOTALL)
    assert f">{float(row['peak_mib']):,.0f} MiB<" in line
    model = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page)[1])
    assert list(model["methods"]) == [*memory_model.METHODS, TITLE]


def test_it_is_in_the_budget(project):
    """The budget lists the method."""
    out = project.python("memory_budget.py", project.fmri, project.labels, "--jobs", 2)
    assert re.search(rf"^{TITLE} +- +[\d,]+ .* yes$", out, flags=re.MULTILINE)


def test_its_page_comes_before_the_figures_of_all_methods(project):
    """The figures are drawn after the method is measured, and again when its example changes."""
    script = """
import sys
sys.path.insert(0, "../doc/_ext")
from pathlib import Path
from gallery_helpers import ReadingOrder
from rerun import local_imports
print(*sorted((path.name for path in Path().glob("*.py")), key=ReadingOrder("")))
print(*(path.name for path in local_imports(Path("plot_memory_over_time.py"))))
"""
    order, needed = (line.split() for line in project.python("-c", script).splitlines())
    place = order.index("plot_union.py")
    assert order[place - 1 : place + 2 : 2] == ["plot_in_memory.py", "plot_memory_over_time.py"]
    assert "plot_union.py" in needed


def test_the_tests_try_it(project):
    """The tests compare it with NiftiMasker, pass it bad input, and check its model."""
    done = project.tests(
        "-v", "-k", "union", "tests/test_methods.py", "tests/test_memory_budget.py"
    )
    assert done.returncode == 0, done.stdout
    passed = re.findall(r"::(\w+)\[(.*)\] PASSED", done.stdout)
    assert {name for name, what in passed if TITLE in what or what.startswith("numpy_mask")} >= {
        "test_values_are_those_of_nifti_masker",
        "test_voxels_of_a_mask_that_are_not_finite_are_outside",
        "test_no_method_takes_bad_input",
        "test_function_runs_alone",
        "test_numbers_are_possible",
        "test_more_volumes_do_not_need_less",
        "test_more_workers_or_masks_do_not_need_less",
        "test_most_workers_is_the_largest_that_fits",
    }
    assert len(passed) >= 40


def test_the_tests_notice_a_wrong_method(project):
    """A method whose voxels are in another order fails the tests."""
    right = project.example.read_text()
    assert "voxels[mask[union]].T" in right
    try:
        project.example.write_text(right.replace("[union]].T", "[union]].T[:, ::-1]"))
        done = project.tests("-k", "values_are and union and functional", "tests/test_methods.py")
    finally:
        project.example.write_text(right)
    assert done.returncode == 1
    assert "1 failed" in done.stdout


@pytest.mark.parametrize(
    ("title", "change", "message"),
    [
        pytest.param(TITLE, {"module": "plot_lop"}, "there is no module plot_lop", id="no example"),
        pytest.param(
            TITLE,
            {"function": "stream_mask"},
            "streaming has no function 'stream_mask'",
            id="no function",
        ),
        pytest.param(TITLE, {"mode": "two passes"}, "mode 'two passes'; use one of", id="mode"),
        pytest.param(NAME, {}, "must end with its mode: ', one pass'", id="name without mode"),
    ],
)
def test_a_wrong_entry_is_told(title, change, message):
    """A mistake in the table raises an error that says where it is."""
    model = memory_model.METHODS["Streaming, masks, one pass"]._replace(**change)
    with pytest.raises(ValueError, match=message) as raised:
        find_method(title, model)
    assert f"METHODS of model.py has {title!r}" in str(raised.value)
