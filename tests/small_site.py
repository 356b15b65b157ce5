"""A site to test: a copy of the project, built for an image that it has never seen.

The copy is built three times here: prose only, interrupted, and to the end. The image is a
real int16 one from nibabel's own tests. Building takes minutes, so the tests of the site and
of its pages share it (see conftest.py).
"""

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from nibabel.testing import data_path

from leftovers import eventually, shared_blocks

ROOT = Path(__file__).parent.parent
N_REGIONS = 2


def copy_project(folder, *names):
    """Copy files and folders of the project, without what is generated."""
    generated = ("_build", "auto_examples", "measured", "__pycache__", "node_modules")
    for name in names:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns(*generated)
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder)


def regions_of(fmri_path):
    """Make a label image, with the regions 3 and 8, on the grid of nibabel's real image."""
    img = nib.load(fmri_path)
    labels = np.zeros(img.shape[:3], "uint8")
    labels[40:60, 40:50, 8:12], labels[70:80, 30:60, 10:12] = 3, 8
    return nib.Nifti1Image(labels, img.affine)


class Site:
    """A copy of the project, with its own options."""

    def __init__(self, folder):
        self.folder = folder
        copy_project(folder, "doc", "examples", "conf.py")
        self.fmri = shutil.copy(Path(data_path, "example4d.nii.gz"), folder / "a real image.nii.gz")
        self.atlas = folder / "labels.nii.gz"
        regions_of(self.fmri).to_filename(self.atlas)
        self.html = folder / "doc" / "_build" / "html"
        self.measured = folder / "doc" / "measured"
        self.options = {
            "FMRI": str(self.fmri),
            "ATLAS": str(self.atlas),
            "N_REGIONS": str(N_REGIONS),
            "PAUSE": "0.1",
            "MASKER_CACHE": str(folder / "cache"),
            "MEASURED": str(self.measured),
        }

    def start(self, *arguments):
        """Start a strict build in the background, its messages in a file."""
        command = [sys.executable, "-m", "sphinx", "-c", ".", "-W", "--keep-going"]
        with open(self.folder / "messages.txt", "w") as messages:
            return subprocess.Popen(
                [*command, *arguments, "doc", str(self.html)],
                cwd=self.folder,
                env=os.environ | self.options,
                stdout=messages,
                stderr=subprocess.STDOUT,
            )

    def messages(self):
        """What the last build said."""
        return (self.folder / "messages.txt").read_text()

    def build(self, *arguments):
        """Build to the end; give the messages."""
        code = self.start(*arguments).wait(timeout=3600)
        assert code == 0, self.messages()
        return self.messages()

    def rows(self):
        """The rows of summary.csv."""
        with open(self.measured / "summary.csv", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def prose(tmp_path_factory):
    """A site of prose only: nothing has been measured."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.build("-D", "plot_gallery=0")
    return site


@pytest.fixture(scope="session")
def placeholders(prose):
    """The chapter as it is before anything was measured."""
    return (prose.html / "masker_memory_usage.html").read_text()


@pytest.fixture(scope="session")
def interrupted(prose, placeholders):
    """What is left when Ctrl-C comes between two measurements."""
    build, summary = prose.start(), prose.measured / "summary.csv"
    assert eventually(lambda: summary.exists() or build.poll() is not None, 1800)
    assert build.poll() is None, prose.messages()
    tree = [psutil.Process(build.pid), *psutil.Process(build.pid).children(recursive=True)]
    blocks = shared_blocks(tree)
    build.send_signal(signal.SIGINT)
    code = build.wait(timeout=300)
    _, alive = psutil.wait_procs(tree, timeout=60)
    files = [path for path in prose.measured.rglob("*") if path.is_file()]
    return {
        "code": code,
        "alive": alive,
        "shared": {block for block in blocks | shared_blocks(tree) if block.exists()},
        "unfinished": [path for path in files if "unfinished" in path.name],
        "prepared": [path.name for path in (prose.folder / "cache").iterdir()],
        "rows": prose.rows(),
        "checksums": {path.name for path in prose.folder.glob("doc/auto_examples/*.md5")},
    }


@pytest.fixture(scope="session")
def site(prose, interrupted):
    """The site, built to its end after the interrupted build."""
    prose.build()
    return prose
