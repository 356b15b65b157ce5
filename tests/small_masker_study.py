"""A study with maskers to test: small images with confounds, and three atlases.

``python small_masker_study.py FOLDER N_JOBS`` does the study in a folder.
"""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.maskers import NiftiLabelsMasker, NiftiSpheresMasker

from beyond_the_masker.studies.masker_runs import masker_study
from made_images import make_image

SHAPE = (6, 7, 5, 40)
AFFINE = np.diag([3.0, 3, 4, 1])


def make_labels(folder, n_labels=5):
    """Write an atlas of labels with a table of names; return its path."""
    labels = np.random.default_rng(1).integers(0, n_labels + 1, SHAPE[:3])
    nib.save(make_image(data=labels, dtype="u1", affine=AFFINE), folder / "own_dseg.nii.gz")
    names = [f"{number}\tArea {number}\n" for number in range(1, n_labels + 1)]
    (folder / "own_dseg.tsv").write_text("index\tname\n" + "".join(names))
    return folder / "own_dseg.nii.gz"


def make_maps(folder, n_maps=3):
    """Write an atlas of maps; return its path."""
    maps = np.random.default_rng(2).random((*SHAPE[:3], n_maps))
    nib.save(make_image(data=maps, affine=AFFINE), folder / "maps.nii.gz")
    return folder / "maps.nii.gz"


def make_study(folder, n_images=3):
    """Write images, their confounds, and two atlases."""
    folder.mkdir()
    make_labels(folder)
    make_maps(folder)
    for number in range(1, n_images + 1):
        rng = np.random.default_rng(number)
        data = rng.normal(100, 30, SHAPE)
        nib.save(make_image(data=data, affine=AFFINE), folder / f"sub-{number:02d}_bold.nii.gz")
        table = pd.DataFrame(rng.normal(size=(SHAPE[3], 2)), columns=["x", "csf"])
        table.to_csv(folder / f"sub-{number:02d}_confounds.tsv", sep="\t", index=False)


class Study:
    """The images that `make_study` wrote, and three atlases."""

    def __init__(self, folder):
        self.folder, self.output = folder, folder / "out"
        self.images = sorted(folder.glob("*_bold.nii.gz"))
        self.confounds = sorted(folder.glob("*_confounds.tsv"))
        labels = str(folder / "own_dseg.nii.gz")
        self.maskers = {
            "labels": NiftiLabelsMasker(labels, standardize="zscore_sample"),
            "maps": folder / "maps.nii.gz",
            "spheres": NiftiSpheresMasker([(6, 9, 8), (3, 3, 4)], radius=4, standardize=None),
        }

    def run(self, n_jobs=None, **options):
        """Do the study; return its table."""
        options = {"confounds": self.confounds} | options
        return masker_study(self.images, self.maskers, self.output, n_jobs, **options)

    def command(self, n_jobs):
        """Return the command that does the study."""
        return [sys.executable, __file__, self.folder, str(n_jobs)]

    def set(self, name, **parameters):
        """Set parameters of a masker."""
        self.maskers[name].set_params(**parameters)

    def file(self, number, name, ending="timeseries.tsv"):
        """Return a file of results."""
        return self.output / f"sub-{number:02d}_bold_atlas-{name}_{ending}"

    def files(self):
        """Return the content of all files of results."""
        return {path.name: path.read_bytes() for path in sorted(self.output.glob("sub-*"))}

    def times(self):
        """Return when each file of results was written."""
        return {path.name: path.stat().st_mtime_ns for path in sorted(self.output.glob("sub-*"))}


if __name__ == "__main__":
    print(*Study(Path(sys.argv[1])).run(int(sys.argv[2])).status)
