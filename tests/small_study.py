"""A study to test: small images of several types, made anew, and masks on their grid."""

import re

import nibabel as nib
import numpy as np

from beyond_the_masker.study import mask_study
from made_images import make_image, make_masks


def write(folder, number, shape=(5, 6, 4, 7), suffix=".nii.gz", **options):
    """Write an image whose values are its own."""
    data = np.random.default_rng(number).normal(100, 30, shape)
    path = folder / f"sub-{number:02d}_bold{suffix}"
    nib.save(make_image(data=data, **options), path)
    return path


def save_masks(folder, img):
    """Write masks, named by their number."""
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
        """The arrays in an image's file of results."""
        stem = image.name.removesuffix(".gz").removesuffix(".nii")
        with np.load(self.output / f"{stem}.npz") as results:
            return [results[path.name.removesuffix(".nii.gz")] for path in self.masks]

    def files(self):
        """What the folder of results holds, but for tables and masks."""
        files = (path for path in self.output.rglob("*") if path.is_file())
        return {
            str(path.relative_to(self.output)): path.read_bytes()
            for path in files
            if path.suffix != ".tsv" and not re.fullmatch(r"masks-[0-9a-f]{12}\.npz", path.name)
        }

    def run(self, n_jobs=1, **options):
        """Mask the study."""
        return mask_study(self.images, self.masks, self.output, n_jobs, **options)


def assert_same(series, reference):
    """Every bit is the same."""
    assert len(series) == len(reference)
    for a, b in zip(series, reference, strict=True):
        assert (a.shape, a.dtype.newbyteorder("=")) == (b.shape, b.dtype.newbyteorder("="))
        assert a.dtype.isnative
        np.testing.assert_array_equal(a, b)
