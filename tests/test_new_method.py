"""A new method takes one page and one entry in METHODS, as CONTRIBUTING.md explains.

A copy of the project gets the page and the entry from there.
"""

import csv
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from beyond_the_masker import imports
from beyond_the_masker.methods import find_method
from beyond_the_masker.model import METHODS
from small_site import copy_project

ROOT = Path(__file__).parent.parent
NAME, MODE = "NumPy indexing, union of masks", "one pass"
TITLE = f"{NAME}, {MODE}"


def code_blocks():
    """Return the Python code in CONTRIBUTING.md: a page, and an entry of the table."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```$", text, flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in blocks]


class Project:
    """A copy of the project with a small image of its own, and one more method."""

    def __init__(self, folder):
        self.folder = folder
        copy_project(folder, "doc", "examples", "tests", "pyproject.toml")
        page, entry = code_blocks()
        self.page = folder / "examples" / "1_methods" / "plot_union.py"
        self.page.write_text(page)
        model = folder / "examples" / "beyond_the_masker" / "model.py"
        before, after = model.read_text().split("\nMETHODS = {\n")
        table, rest = after.split("\n}\n", maxsplit=1)
        entry = textwrap.indent(entry, "    ")
        model.write_text(f"{before}\nMETHODS = {{\n{table}\n{entry}}}\n{rest}")
        self.measured = folder / "doc" / "measured"
        self.options = {
            "FMRI": str(folder / "fmri.nii.gz"),
            "ATLAS": str(folder / "labels.nii.gz"),
            "N_REGIONS": "2",
            "PAUSE": "0",
            "MEMORY": "unlimited",  # whatever the machine has free
            "MASKER_CACHE": str(folder / "cache"),
            "MEASURED": str(self.measured),
            "PYTHONPATH": str(folder / "examples"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        values = np.random.default_rng(0).integers(-99, 99, (6, 7, 8, 9), dtype="int16")
        nib.Nifti1Image(values, np.eye(4)).to_filename(self.options["FMRI"])
        labels = np.zeros((6, 7, 8), "uint8")
        labels[:3], labels[3:, :3] = 1, 2
        nib.Nifti1Image(labels, np.eye(4)).to_filename(self.options["ATLAS"])
        (folder / "cache").mkdir()  # the memory of imports is measured elsewhere
        machine = imports.TYPICAL | {"measured": imports.versions()}
        (folder / "cache" / "machine.json").write_text(json.dumps(machine))

    def run(self, *arguments, **options):
        """Run Python in the copy, with options of the build."""
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=self.folder,
            env=os.environ | self.options | {"MPLBACKEND": "agg"} | options,
            capture_output=True,
            text=True,
            timeout=900,
        )

    def output_of(self, *arguments, **options):
        """Run Python in the copy, and return its output."""
        done = self.run(*arguments, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def tests(self, *arguments):
        """Run tests of the copy."""
        return self.run("-m", "pytest", "-p", "no:cacheprovider", "-n0", *arguments)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The copy."""
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def row(project):
    """The method's row in summary.csv, after its page has run."""
    project.output_of(project.page)
    with open(project.measured / "summary.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    return row


SHOW = """
import json, sys
from matplotlib.text import Text
from beyond_the_masker.experiment import read_summary
from beyond_the_masker.figures import plot_peaks
from beyond_the_masker.model import as_json
from beyond_the_masker.report import write_report

write_report("doc/measured", "doc/_report")
texts = [text.get_text() for text in plot_peaks(read_summary()).findobj(Text)]
print(json.dumps({"chart": texts, "model": list(json.loads(as_json({}))["methods"])}))
"""


@pytest.mark.chance
@pytest.mark.extensive
def test_it_is_measured_and_shown(project, row):
    """The method is measured, compared with NiftiMasker, and in chart, table and calculator."""
    assert (row["method"], row["mode"], row["function"]) == (NAME, MODE, "numpy_masker_union")
    assert (row["status"], row["identical"], row["n_masks"]) == ("measured", "true", "2")
    assert 0 < float(row["before_mib"]) <= float(row["peak_mib"])
    assert len(list((project.measured / "traces").iterdir())) == 1
    shown = json.loads(project.output_of("-c", SHOW).splitlines()[-1])
    assert shown["model"] == [*METHODS, TITLE]
    assert sum(text.startswith(f"{NAME}: ") for text in shown["chart"]) == 1
    table = (project.folder / "doc/_report/table.rst").read_text()
    assert NAME in table
    assert f"{float(row['peak_mib']):,.0f}" in table


@pytest.mark.chance
@pytest.mark.extensive
def test_it_is_in_the_commands(project):
    """The experiment runs the method, and the budget lists it."""
    command = ("-m", "beyond_the_masker")
    out = project.output_of(*command, "experiment", N_REGIONS="1")
    assert f": {TITLE} ...\n    done in " in out
    fmri, labels = project.options["FMRI"], project.options["ATLAS"]
    out = project.output_of(*command, "budget", fmri, labels, "--memory", "64G")
    assert re.search(rf"^{TITLE} +- +[\d,]+ .* yes$", out, flags=re.MULTILINE)


@pytest.mark.extensive
def test_the_tests_try_it(project):
    """The tests check its model and its values, and notice voxels in another order."""
    done = project.tests("-v", "-k", "union", "tests/test_model.py")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(" PASSED") == 4
    values = ("-k", "values_are and functional", "tests/test_methods.py")
    done = project.tests(*values)
    assert done.returncode == 0, done.stdout
    right = project.page.read_text()
    wrong = right.replace("voxels[mask[union]])", "voxels[mask[union]][::-1])")
    assert wrong != right
    try:
        project.page.write_text(wrong)
        done = project.tests(*values)
    finally:
        project.page.write_text(right)
    assert done.returncode == 1
    assert TITLE in done.stdout


@pytest.mark.parametrize(
    ("title", "change", "message"),
    [
        (TITLE, {"module": "plot_lop"}, "there is no module plot_lop"),
        (TITLE, {"function": "stream_mask"}, "streaming has no function 'stream_mask'"),
        (TITLE, {"mode": "two passes"}, "mode 'two passes'; use one of single, loop"),
        (NAME, {}, "must end with its mode: ', one pass'"),
    ],
    ids=["no page", "no function", "mode", "name without mode"],
)
def test_a_wrong_entry_is_named(title, change, message):
    """A mistake in the table raises an error that names the entry."""
    model = METHODS["Streaming, masks, one pass"]._replace(**change)
    with pytest.raises(ValueError, match=message) as raised:
        find_method(title, model)
    assert f"METHODS of model.py has {title!r}" in str(raised.value)
