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
from functools import cached_property, lru_cache
from pathlib import Path
from textwrap import shorten

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from beyond_the_masker.extract.checks import are_inside, to_grid
from beyond_the_masker.extract.streaming import (
    damaged_file_named,
    is_alone,
    is_same_grid,
    open_mask,
    regions_in,
)
from beyond_the_masker.files import moved_into_place, stem
from beyond_the_masker.studies.results import (
    ABOUT,
    is_undamaged,
    read_about,
    read_arrays,
    write_arrays,
)


@dataclass(frozen=True)
class Masks:
    """Regions on one grid."""

    names: list
    positions: list  # for each region an array of int32, in C order of the grid
    shape: tuple
    affine: np.ndarray

    def resampled(self, img):
        """Return the positions on the grid of an image, by nearest neighbour."""
        from scipy import sparse  # here: few studies need it

        numbers = np.arange(1, math.prod(self.shape) + 1, dtype="int32").reshape(self.shape)
        nearest = to_grid(nib.Nifti1Image(numbers, self.affine), img)
        nearest = np.asarray(nearest.dataobj).ravel()  # for each voxel of the image; 0 is outside
        voxels = np.arange(len(nearest))
        where = sparse.csr_array((np.ones(len(voxels), "i1"), (nearest, voxels)))
        where.resize(numbers.size + 1, len(voxels))
        return [np.sort(where[positions + 1].indices) for positions in self.positions]

    def inside(self, img):
        """Return how many voxels of each region have their centres in an image."""
        to_img = np.linalg.solve(img.affine, self.affine)
        counts = []
        for positions in self.positions:
            voxels = apply_affine(to_img, np.transpose(np.unravel_index(positions, self.shape)))
            counts.append(int(are_inside(voxels.T, img.shape[:3]).sum()))
        return counts

    @cached_property
    def checksum(self):
        """A checksum of names, voxels and grid."""
        digest = hashlib.sha256(repr((self.names, self.shape)).encode())
        for array in (self.affine, *self.positions):
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
        return digest.hexdigest()


def read_masks(masks, threshold=None):
    """Read the masks that `mask_study` gets; check that all are on the first one's grid."""
    alone, first, regions = is_alone(masks), None, []
    for name, mask in named(masks):
        img, source = open_mask(mask)
        source = f"The mask {name}" if source == "A mask" else source
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
    shape = tuple(map(int, first.shape[:3]))  # some images have NumPy's integers
    return Masks(check_names(names), list(positions), shape, affine)


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
    """Return names for the regions of an image, those of its lookup table if it has one.

    Warn of names that belong to no region.
    """
    labels = [int(label) for label in labels]
    is_4d = img.shape[3:] not in ((), (1,))
    table = names_of_volumes(img) if is_4d else read_table(img.get_filename())
    if missing := [name for label, name in table.items() if label and label not in labels]:
        missing = shorten(", ".join(missing), 500)  # FreeSurfer's table has hundreds
        warnings.warn(f"{img.get_filename()} has no voxels of {missing}.", stacklevel=4)
    return name_labels(labels, table)


def name_labels(labels, table, kind="region"):
    """Return the name of each label in a table.

    If the table has the name twice, the label is added; if it has none, it is ``region_12``.
    """
    table = {label: " ".join(name.split()) for label, name in table.items()}  # on one line
    counts, names = Counter(table.values()), []
    for label in labels:
        name = table.get(label, "")
        names.append(name if counts[name] == 1 else f"{name or kind}_{label}")
    return names


def tables_in(folder):
    """Return the tables in a folder."""
    return [*folder.glob("*.tsv")]


def names_of_volumes(img, tables_in=tables_in):
    """Return the names of the volumes of a 4D image, from the table beside it, by number from 1.

    Its ``index`` must be the number of the volume, for all volumes: from 1, or from 0.
    """
    table, (*_, n_volumes) = read_table(img.get_filename(), tables_in), img.shape
    if {*table} == {*range(n_volumes)}:
        return {index + 1: name for index, name in table.items()}
    if {*table} - {0} == {*range(1, n_volumes + 1)}:
        return {index: name for index, name in table.items() if index}
    if table:
        warnings.warn(
            f"The table beside {img.get_filename()} does not name its volumes, 1 to {n_volumes}: "
            "they are named by their numbers.",
            stacklevel=5,
        )
    return {}


def read_table(image, tables_in=tables_in):
    """Return the names of labels, from the table that BIDS keeps beside a label image.

    It has the columns ``index`` and ``name``, and the image's file name with the ending ``.tsv``,
    or with fewer of the entities that underscores separate. In a BIDS dataset it may also lie in a
    folder above. Labels without a name are left out.
    """
    for path in possible_tables(image, tables_in):
        with damaged_file_named(path), open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            if not {"index", "name"} <= {*(rows.fieldnames or [])}:
                continue
            named = [(int(float(row["index"])), row["name"] or "") for row in rows]
        return check_table(named, path)
    return {}


def possible_tables(image, tables_in):
    """Return the tables that may belong to an image, the closest and most specific first."""
    if not image:
        return []
    image = Path(image).absolute()
    entities = stem(image).split("_")
    folders = [*image.parents]
    tops = [n for n, folder in enumerate(folders) if (folder / "dataset_description.json").exists()]
    tables = []
    for folder in folders[: tops[0] + 1 if tops else 1]:
        found = [
            path
            for path in tables_in(folder)
            if {*path.stem.split("_")} <= {*entities} and path.stem.split("_")[-1] == entities[-1]
        ]
        tables += sorted(found, key=lambda path: (-len(path.stem), path.name))
    return tables


def check_table(named, path):
    """Return a dict of the names in a table; raise a ValueError if a label has two."""
    table = {}
    for label, name in named:
        if table.setdefault(label, name) != name:
            raise ValueError(f"{path} names {label} twice: {table[label]} and {name}.")
    return {label: name for label, name in table.items() if name.strip() not in ("", "n/a")}


def save_masks(masks, folder):
    """Write masks into a folder, unless they are there undamaged; return the file."""
    file = folder / f"masks-{masks.checksum[:12]}.npz"
    if not is_undamaged(file):
        grid = {"shape": masks.shape, "affine": masks.affine.tolist()}
        with moved_into_place(file) as unfinished:
            write_arrays(unfinished, masks.names, masks.positions, grid)
    return file


@lru_cache(maxsize=1)
def load_masks(file):
    """Read the masks that `save_masks` wrote, once in each worker."""
    positions, grid = read_arrays(file), read_about(file)
    if not grid:
        raise OSError(f"{file} cannot be read to its end. Run the study again.")
    grid = (tuple(grid["shape"]), np.array(grid["affine"]))
    return Masks(list(positions), list(positions.values()), *grid)
