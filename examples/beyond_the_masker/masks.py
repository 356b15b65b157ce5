"""Read masks once, and hand them to workers as the positions of their voxels.

The positions are written into a file with a checksum in its name. Workers get only its path, and a
mask that changes meanwhile does not change the results.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from beyond_the_masker.checks import (
    check_numbers,
    damaged_file_named,
    is_inside,
    is_same_grid,
    read_3d,
    to_grid,
)
from beyond_the_masker.files import moved_into_place, stem
from beyond_the_masker.results import ABOUT, is_undamaged, write_arrays


@dataclass(frozen=True)
class Masks:
    """Masks on one grid."""

    names: list
    positions: list  # for each mask an array of int32, in C order of the grid
    shape: tuple
    affine: np.ndarray

    def images(self):
        """Yield one image after the other: only one is in memory."""
        for name, positions in zip(self.names, self.positions, strict=True):
            inside = np.zeros(self.shape, "uint8")
            inside.flat[positions] = 1
            mask_img = nib.Nifti1Image(inside, self.affine)
            mask_img.set_filename(f"{name}.nii")  # for messages
            yield mask_img

    def resampled(self, image):
        """Yield the masks on the grid of an image file, one after the other."""
        img = nib.load(image)
        for mask_img in self.images():
            yield to_grid(mask_img, img)

    def checksum(self):
        """Return a checksum of names, voxels and grid."""
        digest = hashlib.sha256(repr((self.names, self.shape)).encode())
        for array in (self.affine, *self.positions):
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
        return digest.hexdigest()


def read_masks(masks):
    """Read the masks that `mask_study` gets; check that each has voxels on the first one's grid."""
    masks = named(masks)
    first, positions = None, []
    for name, mask in masks.items():
        is_path = isinstance(mask, str | Path)
        source = mask if is_path else name
        with damaged_file_named(source):
            img = nib.load(mask) if is_path else mask
        check_numbers(img, source)
        inside = is_inside(read_3d(img, source))
        first = img if first is None else first
        check_mask(name, inside, img, first)
        positions.append(np.flatnonzero(inside).astype("int32"))
    return Masks(list(masks), positions, first.shape[:3], np.asarray(first.affine, float))


def named(masks):
    """Return masks by their names; raise a ValueError if a name cannot be used."""
    if not isinstance(masks, dict):
        paths = [masks] if isinstance(masks, str | Path) else list(masks)
        masks = {stem(path): path for path in paths}
        if len(masks) < len(paths):
            raise ValueError(f"Each mask needs a file name of its own, or give a dict: {paths}")
    if not masks:
        raise ValueError("At least one mask is needed.")
    if wrong := [name for name in masks if name == ABOUT or name.endswith(".npy")]:
        raise ValueError(f"A mask cannot have one of these names: {wrong}. Give it another.")
    return masks


def check_mask(name, inside, img, first):
    """Raise a ValueError unless a mask is 3D, not empty, and on the grid of the first mask."""
    if inside.ndim != 3 or not is_same_grid(img, first) or not inside.any():
        raise ValueError(
            f"The mask {name} has {inside.sum()} voxels that are not zero, on the grid "
            f"{inside.shape}\n{img.affine}\nIt needs at least one, on the 3D grid of the first "
            f"mask: {first.shape[:3]}\n{first.affine}"
        )


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
    with np.load(file) as arrays:
        grid = json.loads(arrays[ABOUT])
        positions = {name: arrays[name] for name in arrays.files if name != ABOUT}
    grid = (tuple(grid["shape"]), np.array(grid["affine"]))
    return Masks(list(positions), list(positions.values()), *grid)
