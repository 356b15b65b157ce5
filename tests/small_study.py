"""A study to test: small images of several types, masks on their grid, and processes that fail."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

import beyond_the_masker
from beyond_the_masker.files import stem
from beyond_the_masker.studies.results import read_arrays
from beyond_the_masker.studies.study import mask_study
from leftovers import eventually
from made_images import make_image, make_masks

EXAMPLES = Path(beyond_the_masker.__file__).parent.parent


def write(folder, number, shape=(5, 6, 4, 7), suffix=".nii.gz", **options):
    """Write an image of random values; return its path."""
    data = np.random.default_rng(number).normal(100, 30, shape)
    path = folder / f"sub-{number:02d}_bold{suffix}"
    nib.save(make_image(data=data, **options), path)
    return path


def save_masks(folder, img):
    """Write masks, named by their number; return their paths."""
    paths = [folder / f"region_{i}.nii.gz" for i in range(4)]
    for path, mask_img in zip(paths, make_masks(img), strict=True):
        nib.save(mask_img, path)
    return paths


class Study:
    """Images of several types, and masks on their grid."""

    def __init__(self, folder, n_images=6):
        folder.mkdir(exist_ok=True)
        self.folder, self.output = folder, folder / "series"
        kinds = [
            {},
            {"dtype": "<i2", "scaling": (0.37, 11), "suffix": ".nii"},
            {"dtype": ">i2", "shape": (5, 6, 4, 1)},
            {"dtype": ">f8"},
            {"dtype": "u1", "suffix": ".nii"},
        ]
        self.images = [write(folder, i, **kinds[i % len(kinds)]) for i in range(n_images)]
        self.masks = save_masks(folder, nib.load(self.images[0]))

    def results(self, image):
        """Return the arrays in an image's file of results."""
        return [*read_arrays(self.output / f"{stem(image)}.npz").values()]

    def files(self):
        """Return the files in the folder of results, but for tables and masks."""
        files = (path for path in self.output.rglob("*") if path.is_file())
        return {
            str(path.relative_to(self.output)): path.read_bytes()
            for path in files
            if path.suffix != ".tsv" and not re.fullmatch(r"masks-[0-9a-f]{12}\.npz", path.name)
        }

    def run(self, n_jobs=1, **options):
        """Mask the study; return the table."""
        return mask_study(self.images, self.masks, self.output, n_jobs, **options)

    def command(self, n_jobs):
        """Return the command that masks the study in its folder."""
        (self.folder / "images.txt").write_text("\n".join(map(str, self.images)) + "\n")
        command = [sys.executable, "-m", "beyond_the_masker", "study", "@images.txt", "--masks"]
        return [*command, *(path.name for path in self.masks), f"--jobs={n_jobs}"]


# Python runs this file first in every process. At one image, the process stops, dies, or takes
# more memory than it may.
FAILING = """
import os, signal, sys, time
from pathlib import Path

folder = Path(__file__).parent

def is_chosen(variable, path):
    return os.environ.get(variable, "").split(".")[0] == path.name.split(".")[0]

def stop(point, path):
    if os.environ.get("POINT", "being read") == point and is_chosen("STOPS", path):
        if not (folder / "pid").exists():
            (folder / "unfinished").write_text(str(os.getpid()))
            os.rename(folder / "unfinished", folder / "pid")
            time.sleep(600)

def replace(path, to, original=Path.replace):
    stop("not yet moved", path)
    original(path, to)

if "resource_tracker" not in " ".join(sys.orig_argv):
    from beyond_the_masker.extract import streaming

    def read_voxels(fmri, positions, n_rows, original=streaming.read_voxels):
        image = Path(fmri.name)
        stop("being read", image)
        if is_chosen("DIES", image):
            os.kill(os.getpid(), signal.SIGKILL)
        if is_chosen("FILLS", image):
            memory = b"x" * 2**28
            time.sleep(600)
        return original(fmri, positions, n_rows)

    streaming.read_voxels = read_voxels
    Path.replace = replace
"""


def failing(folder, **environ):
    """Write `FAILING` into a folder; return the environment in which Python runs it.

    STOPS, DIES or FILLS name an image, and POINT where the process stops. It writes its number
    into the file ``pid`` of the folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FAILING)
    return environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(EXAMPLES)])}


def start(study, n_jobs, **environ):
    """Start a study in a process that fails at one image, see `failing`; return the process."""
    return subprocess.Popen(
        study.command(n_jobs),
        cwd=study.folder,
        env=os.environ | failing(study.folder / "failing", **environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(study, process):
    """Wait until the study is in the middle of an image; return the number of that process."""
    pid = study.folder / "failing" / "pid"
    assert eventually(lambda: pid.exists() or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    return int(pid.read_text())
