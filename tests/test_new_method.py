"""A new method takes one page and one entry in METHODS, as CONTRIBUTING.md explains.

A copy of the project gets the page and the entry from there.
"""

import json
import os
import re
import subprocess
import sys
import textwrap

import pytest

from beyond_the_masker import imports
from beyond_the_masker.methods import find_method
from beyond_the_masker.model import METHODS
from small_site import ROOT, Site, copy_project

NAME, MODE = "NumPy indexing, union of masks", "one pass"
TITLE = f"{NAME}, {MODE}"


def code_blocks():
    """Return the Python code in CONTRIBUTING.md: a page, and an entry of the table."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```$", text, flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in blocks]


class Project(Site):
    """A copy of the project with one more method."""

    def __init__(self, folder):
        super().__init__(folder)
        copy_project(folder, "tests")
        page, entry = code_blocks()
        self.new_page = folder / "examples" / "1_methods" / "plot_union.py"
        self.new_page.write_text(page)
        model = folder / "examples" / "beyond_the_masker" / "model.py"
        before, after = model.read_text().split("\nMETHODS = {\n")
        table, rest = after.split("\n}\n", maxsplit=1)
        entry = textwrap.indent(entry, "    ")
        model.write_text(f"{before}\nMETHODS = {{\n{table}\n{entry}}}\n{rest}")
        self.options |= {"PAUSE": "0", "MEMORY": "unlimited", "PYTHONDONTWRITEBYTECODE": "1"}
        (folder / "cache").mkdir()  # the memory of imports is measured elsewhere
        machine = imports.TYPICAL | {"measured": imports.versions()}
        (folder / "cache" / "machine.json").write_text(json.dumps(machine))

    def run(self, *arguments):
        """Run Python in the copy, with options of the build."""
        command = [sys.executable, *map(str, arguments)]
        how = {"cwd": self.folder, "env": os.environ | self.options, "timeout": 900}
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, **how)

    def tests(self, *arguments):
        """Run tests of the copy."""
        return self.run("-m", "pytest", "-p", "no:cacheprovider", "-n0", *arguments)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The copy."""
    return Project(tmp_path_factory.mktemp("project"))


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
def test_it_is_measured_and_shown(project):
    """The method is measured, compared with NiftiMasker, and in chart, table and calculator."""
    assert project.run(project.new_page).returncode == 0
    (row,) = project.rows()
    assert (row["method"], row["mode"], row["function"]) == (NAME, MODE, "numpy_masker_union")
    assert (row["status"], row["identical"], row["n_masks"]) == ("measured", "true", "2")
    assert 0 < float(row["before_mib"]) <= float(row["peak_mib"])
    assert len(list((project.measured / "traces").iterdir())) == 1
    shown = json.loads(project.run("-c", SHOW).stdout.splitlines()[-1])
    assert shown["model"] == [*METHODS, TITLE]
    assert sum(text.startswith(f"{NAME}: ") for text in shown["chart"]) == 1
    table = (project.folder / "doc/_report/table.rst").read_text()
    assert NAME in table
    assert f"{float(row['peak_mib']):,.0f}" in table


@pytest.mark.extensive
def test_the_tests_try_it(project):
    """The tests check its model and its values, and notice voxels in another order."""
    done = project.tests("-v", "-k", "union", "tests/test_model.py")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(" PASSED") == 4
    values = ("-k", "values_are and functional", "tests/test_methods.py")
    done = project.tests(*values)
    assert done.returncode == 0, done.stdout
    right = project.new_page.read_text()
    wrong = right.replace("voxels[mask[union]])", "voxels[mask[union]][::-1])")
    assert wrong != right
    try:
        project.new_page.write_text(wrong)
        done = project.tests(*values)
    finally:
        project.new_page.write_text(right)
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
