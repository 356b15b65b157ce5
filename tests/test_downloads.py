"""What can be downloaded or copied from the site runs, in a folder with nothing else.

The downloads depend on the examples alone, so the site is built without running them. They
run on a small image, and methods that need much memory are left out: their prediction stands
in their place. That the examples measure every method is seen in ``test_site.py``.
"""

import ast
import doctest
import os
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import psutil
import pytest
from bs4 import BeautifulSoup
from downloads import COMMAND_LINE
from nbclient import NotebookClient
from nibabel.testing import data_path

from leftovers import processes_with
from small_site import copy_project, regions_of

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
ADDRESS = "https://site.example/some/where/"
ALL = "beyond_the_masker_examples"
# What the examples say that they leave behind.
DOCUMENTED = {"measured", "masker_cache", "whole_experiment_phases.csv"}
MEMORY = {"plot_shared_memory": "unlimited"}  # with workers; of the others, what is small
# plot_limit and plot_study_plan run these two in full.
COMMANDS = {
    "benchmark": "python benchmark.py --help",
    "task_overhead": "python task_overhead.py --tasks 20",
}


class Site:
    """The prose of the site, at an address; and files for who follows its text."""

    def __init__(self, folder):
        self.folder, self.html = folder, folder / "html"
        copy_project(folder, "doc", "examples", "conf.py")
        self.build()
        self.data = folder / "data"
        (self.data / "masks").mkdir(parents=True)
        image = shutil.copy(Path(data_path, "example4d.nii.gz"), self.data / "image.nii.gz")
        atlas = regions_of(image)
        atlas.to_filename(self.data / "atlas.nii.gz")
        for label in (3, 8):
            inside = (np.asanyarray(atlas.dataobj) == label).astype("uint8")
            mask = nib.Nifti1Image(inside, atlas.affine)
            mask.to_filename(self.data / "masks" / f"region_{label}.nii.gz")
        for number, mask in enumerate(sorted((self.data / "masks").iterdir()), start=1):
            shutil.copy(mask, self.data / f"region_{number}.nii.gz")

    def build(self):
        """Build the prose."""
        command = [sys.executable, "-m", "sphinx", "-c", ".", "-W", "--keep-going", "-q"]
        command += ["-D", "plot_gallery=0", "-D", f"html_baseurl={ADDRESS}", "doc", str(self.html)]
        measured = {"MEASURED": str(self.folder / "doc" / "measured")}
        subprocess.run(command, cwd=self.folder, env=os.environ | measured, check=True)

    def download(self, name):
        """Where the one file of this name lies that the site offers."""
        (path,) = (self.html / "_downloads").glob(f"*/{name}")
        return path

    def follow(self, text):
        """The zip that the first lines of a download name; None if they name none."""
        names = re.findall(r"unpack (\w+\.zip)", text)
        links = re.findall(rf"{re.escape(ADDRESS)}\S+", text)
        assert len(names) == len(links) <= 1, text
        if not links:
            return None
        path = self.html / links[0].removeprefix(ADDRESS)
        assert path.name == names[0]
        return path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built prose."""
    return Site(tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Prepared data, which all runs share, and the measurements of all methods."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run_in(monkeypatch, site, cache, tmp_path_factory):
    """A function that runs something in a folder, and checks what it leaves behind."""
    marker, arrays = uuid.uuid4().hex, tmp_path_factory.mktemp("joblib")
    options = {
        "FMRI": str(site.data / "image.nii.gz"),
        "ATLAS": str(site.data / "atlas.nii.gz"),
        "N_REGIONS": "2",
        "PAUSE": "0",
        "MEMORY": "250M",
        "MASKER_CACHE": str(cache),
        "MARKER": marker,
        "JOBLIB_TEMP_FOLDER": str(arrays),
        "PIP_NO_INDEX": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    monkeypatch.delenv("MEASURED")
    for name, value in options.items():
        monkeypatch.setenv(name, value)

    def run(folder, call, *args):
        before = {path.name for path in folder.iterdir()}
        call(*args)
        _, alive = psutil.wait_procs(processes_with("MARKER", marker), timeout=60)
        assert alive == []
        assert list(arrays.iterdir()) == []
        return {path.name for path in folder.iterdir()} - before

    return run


def shell(folder, command):
    """Run a shell command in a folder; warnings are errors."""
    # Where a display is missing on macOS, matplotlib says that it shows nothing.
    ignored = "ignore:FigureCanvasAgg is non-interactive:UserWarning"
    warnings = {"PYTHONWARNINGS": f"error,{ignored}"}
    command = command.replace("python -m pip", "PYTHONWARNINGS= python -m pip")  # not ours
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=os.environ | warnings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def unpack(path, folder):
    """Unpack a zip."""
    with zipfile.ZipFile(path) as zip_file:
        zip_file.extractall(folder)


def contents(path):
    """What a zip holds: the files' bytes by their names."""
    with zipfile.ZipFile(path) as zip_file:
        return {name: zip_file.read(name) for name in zip_file.namelist()}


def first_lines(script):
    """What a script says before its docstring."""
    return script.split('"""', 1)[0]


# -- Blocks to copy ------------------------------------------------------------------------


class Block:
    """A block of the built site with a button that copies it."""

    def __init__(self, element):
        self.text = element.get_text()
        (name,) = [n for n in element.parent.parent["class"] if n.startswith("highlight-")]
        self.language = name.removeprefix("highlight-")


def blocks_of(site, page):
    """The blocks of a page that are offered for copying, in page order."""
    script = (site.html / "_static" / "copybutton.js").read_text()
    selector = re.search(r"COPYBUTTON_SELECTOR = '(.+)';", script)[1]
    soup = BeautifulSoup((site.html / page).read_text(), "html.parser")
    return [Block(element) for element in soup.select(selector)]


def commands_of(blocks):
    """The shell commands of blocks."""
    return "\n".join(block.text for block in blocks if block.language == "bash")


def code_of(blocks):
    """The Python code of blocks, as one script."""
    texts = [block.text for block in blocks if block.language in ("python", "Python", "default")]
    return "\n".join(
        doctest.script_from_examples(text) if text.startswith(">>>") else text for text in texts
    )


def same_code(text, other):
    """Tell whether two scripts are the same, but for comments and the module's docstring."""
    trees = [ast.parse(text), ast.parse(other)]
    for tree in trees:
        tree.body = tree.body[ast.get_docstring(tree) is not None :]
    return ast.dump(trees[0]) == ast.dump(trees[1])


def prose_pages(site):
    """The pages that are no example's."""
    pages = {str(path.relative_to(site.html)) for path in site.html.rglob("*.html")}
    return sorted(pages - {f"auto_examples/{name}.html" for name in EXAMPLES})


# -- Each download runs --------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_script_runs_beside_the_file_that_it_names(
    name, site, cache, run_in, tmp_path, monkeypatch
):
    """A page's script runs alone, or with the zip that its first lines name, and nothing else.

    It runs in the way that its page shows.
    """
    script = site.download(f"{name}.py")
    beside = site.follow(first_lines(script.read_text()))
    if beside:
        assert beside == site.download(f"{name}.zip")
        unpack(beside, tmp_path)
    shutil.copy(script, tmp_path)
    monkeypatch.setenv("MEMORY", MEMORY.get(name, "250M"))
    measured, kept = tmp_path / "measured", cache / "measured"
    if name == "plot_prediction" and kept.exists():  # of all methods, as plot_memory_over_time does
        shutil.copytree(kept, measured)
    commands = COMMANDS.get(name) or commands_of(blocks_of(site, f"auto_examples/{name}.html"))
    if commands:
        shutil.copytree(site.data, tmp_path, dirs_exist_ok=True)
    if f"{name}.py" not in commands:
        commands += f"\npython {name}.py"
    new = run_in(tmp_path, shell, tmp_path, commands)
    named = {word for word in commands.split() if re.fullmatch(r"\w+", word)}
    assert {one for one in new if not one.startswith("mprofile_")} <= DOCUMENTED | named
    if name == "plot_memory_over_time":
        shutil.copytree(measured, kept)


@pytest.fixture(scope="module")
def everything(site, tmp_path_factory):
    """A folder with what the zip of all examples holds."""
    folder = tmp_path_factory.mktemp("everything")
    unpack(site.download(f"{ALL}.zip"), folder)
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_notebook_is_its_script(name, site, everything):
    """A notebook has its script's code, after a cell for the command line if there is one."""
    content = nbformat.read(site.download(f"{name}.ipynb"), as_version=4)
    if beside := site.follow(content.cells[0].source):
        assert beside == site.download(f"{name}.zip")
        assert content.cells[1:] == nbformat.read(everything / f"{name}.ipynb", 4).cells
    script = (site.folder / "examples" / f"{name}.py").read_text()
    cells = [cell.source for cell in content.cells if cell.cell_type == "code"]
    if "argparse" in script:
        assert cells.pop(0) == COMMAND_LINE.format(name=f"{name}.py")
    code = "\n".join(cells)
    assert same_code(code, script)
    names = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    assert "__file__" not in names  # a notebook has none


# One of each kind: alone; with a command line; with workers; beside Dask's event loop.
NOTEBOOKS = ("peak_memory", "mask_study", "plot_shared_memory", "plot_dask_cluster")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_executes(name, site, everything, run_in, tmp_path, monkeypatch):
    """A notebook executes top to bottom, alone or, if its first lines say so, beside others."""
    content = nbformat.read(site.download(f"{name}.ipynb"), as_version=4)
    folder = tmp_path
    if site.follow(content.cells[0].source):
        content, folder = nbformat.read(everything / f"{name}.ipynb", as_version=4), everything
    monkeypatch.setenv("MEMORY", MEMORY.get(name, "250M"))
    monkeypatch.delenv("MPLBACKEND")  # figures in the notebook
    options = {"timeout": 3600, "startup_timeout": 300, "resources": {"metadata": {"path": folder}}}
    new = run_in(folder, NotebookClient(content, **options).execute)
    assert new <= DOCUMENTED
    cells = [cell for cell in content.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


# -- What the downloads hold -----------------------------------------------------------------


def test_the_zip_of_all_holds_what_the_zips_of_the_pages_hold(site):
    """The same files, byte for byte: so a script that runs in one runs in the other."""
    every = contents(site.download(f"{ALL}.zip"))
    union = {}
    for name in EXAMPLES:
        union |= contents(site.download(f"{name}.zip"))
    readme = every.pop("README.txt").decode()
    assert every == union
    assert {f"{name}{kind}" for name in EXAMPLES for kind in (".py", ".ipynb")} < set(every)
    assert all(f" {name}.py" in readme for name in EXAMPLES)
    assert "requirements.txt" in every


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_zip_of_a_page_holds_its_own_two_and_modules(name, site):
    """No other page's notebook is in it, and the page itself is as it is in examples/."""
    files = contents(site.download(f"{name}.zip"))
    assert [file for file in files if file.endswith(".ipynb")] == [f"{name}.ipynb"]
    for file in files:
        if file.endswith(".py"):
            assert files[file] == (site.folder / "examples" / file).read_bytes()
    assert files["requirements.txt"]


def test_nothing_changes_when_it_is_built_again(site):
    """Neither first lines nor zips depend on when, or how often, the site was built."""
    every = sorted(path for path in (site.html / "_downloads").rglob("*") if path.is_file())
    before = [path.read_bytes() for path in every]
    for path in (site.folder / "examples").iterdir():
        os.utime(path)
    site.build()
    assert [path.read_bytes() for path in every] == before
    assert sorted(path for path in (site.html / "_downloads").rglob("*.*")) == every


# -- What can be copied runs -----------------------------------------------------------------


def test_only_code_is_offered_for_copying(site):
    """A block that is not meant to be pasted, such as output, has no button."""
    pages = [*prose_pages(site), *(f"auto_examples/{name}.html" for name in EXAMPLES)]
    languages = {block.language for page in pages for block in blocks_of(site, page)}
    elsewhere = {"console", "slurm"}  # commands for a cluster: their tests are those of its page
    assert {"Python", "bash"} <= languages <= {"Python", "python", "default", "bash"} | elsewhere


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_blocks_of_a_page_are_its_script(name, site, run_in, tmp_path):
    """Pasted in page order they are the script, which runs; or they run together with a lead."""
    blocks = blocks_of(site, f"auto_examples/{name}.html")
    own = [block for block in blocks if block.language == "Python"]
    assert same_code(code_of(own), (site.folder / "examples" / f"{name}.py").read_text())
    if code_of(blocks) != code_of(own):
        unpack(site.download(f"{name}.zip"), tmp_path)
        (tmp_path / "pasted.py").write_text(code_of(blocks))
        assert run_in(tmp_path, shell, tmp_path, "python pasted.py") <= DOCUMENTED


def test_the_blocks_of_the_prose_run(site, run_in, tmp_path):
    """Beside the examples, and with the files that the text names."""
    seen = 0
    for number, page in enumerate(prose_pages(site)):
        blocks, folder = blocks_of(site, page), tmp_path / f"{number}"
        code, commands = code_of(blocks), commands_of(blocks)
        seen += len(blocks)
        if blocks:
            unpack(site.download(f"{ALL}.zip"), folder)
            shutil.copytree(site.data, folder, dirs_exist_ok=True)
            (folder / "pasted.py").write_text(code)
            run_in(folder, shell, folder, f"{commands}\npython pasted.py")
    assert seen


def test_the_blocks_of_the_readme_run(site, run_in):
    """``make`` knows the targets and options, and the command line runs in a clone."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    made = [line for line in lines if line.startswith("make ")]
    assert len(made) >= 5
    for line in made:
        options = "FMRI= ATLAS= N_REGIONS= PAUSE= MEMORY= MASKER_CACHE="  # not this test's
        shell(ROOT, f"env {options} {line.replace('make', 'make --dry-run')}")
    clone = site.folder
    shutil.copytree(site.data, clone, dirs_exist_ok=True)
    (clone / ".venv").symlink_to(sys.prefix)
    run_in(clone, shell, clone, "\n".join(line for line in lines if line not in made))
