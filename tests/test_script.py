"""The script of the chapter: it runs by itself, all nine ways, on prepared and on own data."""

import ast
import os
import subprocess
import sys
from functools import partial

import nibabel as nib
import pytest

from beyond_the_masker.experiments.script import NINE, write_script
from made_images import make_image, make_masks, save_all

NEEDED = {"joblib", "nibabel", "nilearn", "numpy", "scipy"}  # nilearn needs SciPy, too


def run_alone(folder, *command):
    """Run Python in a folder, without the packages of this project."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def own(tmp_path):
    """A folder with the script, and the arguments for a small image of one's own."""
    fmri_path, mask_paths = save_all(tmp_path, make_image(), make_masks(make_image())[:2])
    write_script(tmp_path / "script.py")
    files = ["--fmri", fmri_path.name, "--atlas", *(path.name for path in mask_paths)]
    return tmp_path, [*files, "--n-regions", "2", "--pause", "0.1"]


def names_of_ways(stdout):
    """The ways that the script has run, in order."""
    return [line.rpartition(":")[0] for line in stdout.splitlines() if line.endswith(" s")]


def test_it_imports_what_the_chapter_names(tmp_path):
    """The script imports the standard library and the packages of the chapter, nothing else."""
    write_script(tmp_path / "script.py")
    tree = ast.parse((tmp_path / "script.py").read_text())
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} - sys.stdlib_module_names == NEEDED


def test_its_messages_name_its_own_arguments(own):
    """A message names an argument of the script, not an option of the build."""
    folder, arguments = own
    command = (sys.executable, "script.py", *arguments)
    run = partial(subprocess.run, cwd=folder, capture_output=True, text=True, timeout=600)
    assert "set --n-regions to 2 or less" in run([*command, "--n-regions", "3"]).stderr
    assert '"--data synthetic, which' in (folder / "script.py").read_text()


def test_it_runs_by_itself(own):
    """In a folder without this project, the nine ways run without a warning."""
    folder, arguments = own
    stdout = run_alone(folder, "-I", "-W", "error", "script.py", *arguments)
    assert names_of_ways(stdout) == list(NINE)
    assert len(NINE) == 9


EXTENSIVE = pytest.param("run[1].nii", marks=pytest.mark.extensive)


@pytest.mark.parametrize("name", ["fmri.img", EXTENSIVE])
def test_it_takes_what_nilearn_cannot_name(own, name):
    """A pair of files is joined, and a name with brackets linked, as for a build."""
    folder, arguments = own
    nib.save(make_image(), folder / name)
    arguments[1] = name
    assert names_of_ways(run_alone(folder, "-I", "script.py", *arguments)) == list(NINE)


@pytest.mark.extensive
def test_it_runs_under_mprof(own):
    """mprof records the script and its workers."""
    folder, arguments = own
    mprof = ("-m", "mprof", "run", "--include-children", "--multiprocess", "script.py")
    assert names_of_ways(run_alone(folder, *mprof, *arguments)) == list(NINE)
    (recorded,) = folder.glob("mprofile_*.dat")
    assert {"MEM", "CHLD"} <= {line.split()[0] for line in recorded.read_text().splitlines()}


@pytest.mark.extensive
def test_it_makes_its_own_data(tmp_path):
    """Without an image, the script makes one, and uses it when it is run again."""
    write_script(tmp_path / "script.py")
    arguments = ("-I", "script.py", "--n-images", "1", "--n-regions", "1", "--pause", "0")
    assert names_of_ways(run_alone(tmp_path, *arguments)) == list(NINE)
    (made,) = tmp_path.glob("*/fmri.nii.gz")
    stamp = made.stat().st_mtime_ns
    run_alone(tmp_path, *arguments)
    assert made.stat().st_mtime_ns == stamp
