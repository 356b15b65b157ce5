"""Read masks once, and hand them to workers as the positions of their voxels.

The positions are written into a file with a checksum in its name. Workers get only its path, and a
mask that changes meanwhile does not change the results.
"""

import csv
import hashlib
import math
import os
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from beyond_the_masker.checks import damaged_file_named, is_same_grid, to_grid
from beyond_the_masker.files import moved_into_place, stem
from beyond_the_masker.results import (
    ABOUT,
    is_undamaged,
    read_about,
    read_arrays,
    write_arrays,
)
from beyond_the_masker.streaming import is_alone, open_mask, regions_in


@dataclass(frozen=True)
class Masks:
    """Regions on one grid."""

    names: list
    positions: list  # for each region an array of int32, in C order of the grid
    shape: tuple
    affine: np.ndarray

    def resampled(self, img):
        """Return the positions on the grid of an image, by nearest neighbour."""
        from nilearn.image.resampling import BoundingBoxError  # here: few studies need them
        from scipy import sparse

        numbers = np.arange(1, math.prod(self.shape) + 1, dtype="int32").reshape(self.shape)
        try:
            nearest = to_grid(nib.Nifti1Image(numbers, self.affine), img)
        except BoundingBoxError:  # the grids do not overlap
            return [positions[:0] for positions in self.positions]
        nearest = np.asarray(nearest.dataobj).ravel()  # for each voxel of the image; 0 is outside
        voxels = np.arange(len(nearest))
        where = sparse.csr_array((np.ones(len(voxels), "i1"), (nearest, voxels)))
        where.resize(numbers.size + 1, len(voxels))
        return [np.sort(where[positions + 1].indices) for positions in self.positions]

    def inside(self, img):
        """Return how many voxels of each region have their centres in an image."""
        to_img = np.linalg.solve(img.affine, self.affine)
        last = np.subtract(img.shape[:3], 0.5)
        counts = []
        for positions in self.positions:
            voxels = apply_affine(to_img, np.transpose(np.unravel_index(positions, self.shape)))
            is_in = (voxels > -0.51) & (voxels < last + 0.01)  # half a voxel, but for rounding
            counts.append(int(is_in.all(axis=1).sum()))
        return counts

    def checksum(self):
        """Return a checksum of names, voxels and grid."""
        digest = hashlib.sha256(repr((self.names, self.shape)).encode())
        for array in (self.affine, *self.positions):
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
        return digest.hexdigest()


def read_masks(masks, threshold=None):
    """Read the masks that `mask_study` gets; check that all are on the first one's grid."""
    alone, first, regions = is_alone(masks), None, []
    for name, mask in named(masks):
        img, _ = open_mask(mask)
        source = img.get_filename() or f"The mask {name}"
        first = img if first is None else first
        if not is_same_grid(img, first):
            raise ValueError(
                f"{source} is on the grid {img.shape}\n{img.affine}\nThe first mask is on "
                f"{first.shape}\n{first.affine}"
            )
        labels, found = zip(*regions_in(img, source, threshold, alone), strict=True)
        names = [name] if len(found) == 1 else name_regions(img, labels)
        regions += zip(names, found, strict=True)
    if not regions:
        raise ValueError("At least one mask is needed.")
    names, positions = zip(*regions, strict=True)
    affine = np.asarray(first.affine, float)
    return Masks(check_names(names), list(positions), first.shape[:3], affine)


def named(masks):
    """Return pairs of a name and a mask; without a dict, a file's name, without its ending."""
    if isinstance(masks, dict):
        return masks.items()
    masks = [masks] if is_alone(masks) else list(masks)
    pairs = []
    for mask in masks:
        path = mask if isinstance(mask, str | Path) else getattr(mask, "get_filename", str)()
        pairs.append((stem(path or "region"), mask))
    return pairs


def check_names(names):
    """Return names as text of arrays in an ``.npz`` file; raise a ValueError if that cannot be."""
    names = [os.fsencode(str(name)).decode(errors="replace") for name in names]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"Each mask needs a file name of its own, or give a dict: {twice}")
    if wrong := [name for name in names if name == ABOUT or name.endswith(".npy")]:
        raise ValueError(f"A mask cannot have one of these names: {wrong}. Give it another.")
    return names


def name_regions(img, labels):
    """Return a name for each region of an image, from the lookup table of its labels if it has one.

    Regions without a name get their number, and so do those whose name is not unique.
    """
    table = {} if img.shape[3:] not in ((), (1,)) else read_table(img.get_filename())
    names = {int(label): table.pop(int(label), "") for label in labels}
    counts = Counter(names.values())
    if missing := [name for label, name in table.items() if label]:
        warnings.warn(f"{img.get_filename()} has no voxels of {', '.join(missing)}.", stacklevel=4)
    return [
        name if name and counts[name] == 1 else f"{name or 'region'}_{label}"
        for label, name in names.items()
    ]


def read_table(image):
    """Return the names of labels, from the table that BIDS keeps beside a label image.

    It has the columns ``index`` and ``name``, and the image's file name with the ending ``.tsv``,
    or with fewer of the entities that underscores separate.
    """
    image = Path(image or "")
    entities = stem(image).split("_")
    tables = [
        path
        for path in image.parent.glob("*.tsv")
        if {*path.stem.split("_")} <= {*entities} and path.stem.split("_")[-1] == entities[-1]
    ]
    for path in sorted(tables, key=lambda path: -len(path.stem)):
        with damaged_file_named(path), open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            if {"index", "name"} <= {*(rows.fieldnames or [])}:
                return {int(float(row["index"])): row["name"] for row in rows}
    return {}


def save_masks(masks, folder):
    """Write masks into a folder, unless they are there undamaged; return the file."""
    file = folder / f"masks-{masks.checksum()[:12]}.npz"
    if not is_undamaged(file):
        grid = {"shape": masks.shape, "affine": masks.affine.tolist()}
        with moved_into_place(file) as unfinished:
            write_arrays(unfinished, masks.names, masks.positions, grid)
    return file


def load_masks(file):
    """Read the masks that `save_masks` wrote."""
    grid, positions = read_about(file), read_arrays(file)
    grid = (tuple(grid["shape"]), np.array(grid["affine"]))
    return Masks(list(positions), list(positions.values()), *grid)
