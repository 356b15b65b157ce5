"""Atlases: regions with names, the same for every image, whatever a masker drops.

Columns of nilearn's series differ between images: a masker drops labels and maps that a mask hides,
and labels that vanish when they are resampled. `complete` puts every series into the columns of its
atlas, and `coverage` returns how much of each region an image has.
"""

import hashlib
import os
from collections import Counter
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, to_matvec
from nibabel.spatialimages import SpatialImage
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker, NiftiSpheresMasker

from beyond_the_masker.extract.checks import are_inside
from beyond_the_masker.extract.maskers import refuse
from beyond_the_masker.extract.regions import finite, finite_values, on_grid, sphere_voxels
from beyond_the_masker.extract.streaming import mask_volumes, open_mask
from beyond_the_masker.files import write_bytes
from beyond_the_masker.studies.masks import (
    check_table,
    name_labels,
    names_of_volumes,
    read_table,
    tables_in,
)

IMAGES = {"labels_img": "dseg", "maps_img": "probseg", "mask_img": "mask"}  # and suffixes of files


class Atlas(NamedTuple):
    """An atlas, the same for all images of a study."""

    name: str
    masker: object  # not fitted, and without the parameters of a study
    regions: list  # the names of all regions: the columns of every result
    numbers: list  # of each region the label; or the number of the map, sphere or voxel, from 1


# What an atlas is
# ----------------


def read_atlas(name, source, tables_in=tables_in):
    """Return an `Atlas`. Its files are read to their ends, so that damage shows at once.

    The source is a 3D image of labels, a 4D image with a map in each volume, or a masker, which is
    copied. Labels are in increasing order. Regions are named by the `lut` or the `labels` of a
    masker, or by a table: see `masks.read_table`, and for maps `masks.names_of_volumes`. Others
    have numbers: ``region_12``, ``map_1``, ``sphere_1``, ``voxel_1``. A ValueError or an OSError
    names the atlas, and says what is wrong.

    If many are read, `tables_in` can remember which tables a folder has.
    """
    with atlas_named(name):
        masker = copy_of(source if hasattr(source, "get_params") else masker_of(source))
        check_mask(masker.mask_img)
        kind, find = {
            NiftiMasker: ("voxel", count_columns),
            NiftiLabelsMasker: ("region", find_labels),
            NiftiMapsMasker: ("map", count_maps),
            NiftiSpheresMasker: ("sphere", count_columns),
        }[type(masker)]
        numbers, names = find(masker, tables_in)
        regions = name_labels(numbers, names, kind)
        check_regions(regions)
        if type(masker) is NiftiLabelsMasker:
            masker = copy_of(masker, lut=None, labels=None)  # their names are in `regions`
        return Atlas(str(name), masker, regions, numbers)


def union_of(atlases):
    """Return an atlas with the regions of several, each of which is the atlas of some images."""
    first = atlases[0]
    kinds = {type(atlas.masker) for atlas in atlases}
    with atlas_named(first.name):
        if kinds != {NiftiLabelsMasker} and any(one.regions != first.regions for one in atlases):
            raise ValueError("It has other regions in some images.")
        pairs = [pair for one in atlases for pair in zip(one.numbers, one.regions, strict=True)]
        names = check_table(pairs, "In the tables of all images together, it")
        numbers = sorted(names)
        regions = [names[number] for number in numbers]
        check_regions(regions)
    return Atlas(first.name, first.masker, regions, numbers)


@contextmanager
def atlas_named(name):
    """Name the atlas in an error."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"The atlas {name} cannot be used. {error}") from error


def copy_of(masker, **changes):
    """Return a masker with the same parameters that is not fitted, and makes no report."""
    refuse(masker)
    parameters = masker.get_params(deep=False) | changes
    if parameters.get("target_shape") is None:  # with it, nilearn 0.14 needs a report
        parameters["reports"] = False
    # `complete` keeps the columns of regions that a mask hides.
    parameters |= {name: False for name in parameters if name.startswith("keep_masked_")}
    parameters |= {name: as_path(image) for name, image in images_of(parameters).items()}
    return type(masker)(**parameters)


def images_of(parameters):
    """Return those parameters of a masker that are images."""
    return {name: parameters[name] for name in IMAGES if parameters.get(name) is not None}


def masker_of(image):
    """Return a masker of an image of labels or maps."""
    shape = open_mask(image)[0].shape
    if shape[3:] in ((), (1,)):
        return NiftiLabelsMasker(image)
    if len(shape) == 4:
        return NiftiMapsMasker(image)
    raise ValueError(f"{image} has the shape {shape}: labels are 3D, maps are 4D.")


def as_path(image):
    """Return the absolute path of a file, or an image as it is."""
    if not isinstance(image, str | Path):
        return image
    path = os.path.abspath(os.path.expanduser(image))
    if has_magic(path):
        raise ValueError(f"{path} has one of *?[ in its name, which nilearn takes for a pattern.")
    return path


def read_volumes(image):
    """Yield the volumes of an image, or of its file, which is read to its end."""
    yield from mask_volumes(*open_mask(image), alone=True)


def check_mask(mask):
    """Raise a ValueError if a mask is empty; it is read to its end."""
    if mask is not None and not any([values.any() for values in read_volumes(mask)]):
        raise ValueError(f"{open_mask(mask)[1]} is an empty mask.")


def check_regions(regions):
    """Raise a ValueError unless there are regions, and all have different names."""
    name, count = Counter(regions).most_common(1)[0] if regions else ("", 0)
    if count != 1:
        raise ValueError(f"{count} regions have the name {name}." if count else "It has no region.")


def find_labels(masker, tables_in):
    """Return the labels of a masker in increasing order, and the names of labels."""
    img, file = open_mask(masker.labels_img)
    if img.shape[3:] not in ((), (1,)):
        raise ValueError(f"{file} has the shape {img.shape}: labels are 3D.")
    [values] = read_volumes(img)
    labels = np.unique(finite_values(values))
    labels = labels[labels != masker.background_label]
    if (labels % 1).any():
        raise ValueError(
            f"{file} has the value {labels[labels % 1 != 0][0]:g}; labels are whole numbers. A map "
            "of weights is a volume of a 4D image."
        )
    has_names = masker.labels or masker.lut is not None
    names = own_table(masker) if has_names else read_table(img.get_filename(), tables_in)
    return [*map(int, labels)], names


def own_table(masker):
    """Return the names of labels from a masker's `lut` or `labels`, as nilearn understands them."""
    try:
        rows = copy_of(masker).fit().lut_[["index", "name"]].to_numpy()
    except (AssertionError, KeyError) as error:
        raise ValueError("Its lookup table needs the columns index and name.") from error
    return check_table([(int(index), str(name)) for index, name in rows], "Its lookup table")


def count_maps(masker, tables_in):
    """Return the numbers and the names of the maps of a masker."""
    n_maps, (img, file) = 0, open_mask(masker.maps_img)
    for n_maps, values in enumerate(read_volumes(img), 1):
        if not finite_values(values).any():
            raise ValueError(f"Volume {n_maps} of {file} is empty.")
    return [*range(1, n_maps + 1)], names_of_volumes(img, tables_in)


def count_columns(masker, _):
    """Return the numbers of spheres, or of the voxels of a mask, which have no names."""
    if type(masker) is NiftiMasker and masker.mask_img is None:
        raise ValueError("NiftiMasker needs mask_img: otherwise each image has voxels of its own.")
    fitted = copy_of(masker).fit()
    if type(masker) is NiftiSpheresMasker:
        masker.seeds = fitted.seeds_  # as lists, also if they were an iterator
        if not np.isfinite(np.array(masker.seeds, float)).all():
            raise ValueError("A seed is not finite.")
    return [*range(1, fitted.n_elements_ + 1)], {}


# Maskers of a study
# ------------------


def for_study(masker, **parameters):
    """Return a copy of a masker with the parameters of a study where its own are the defaults."""
    default, own = type(masker)().get_params(deep=False), masker.get_params(deep=False)
    parameters = {"standardize": None} | parameters  # for nilearn, False is the old word for None
    left_alone = {
        name: value
        for name, value in parameters.items()
        if name in own and type(own[name]) is type(default[name]) and own[name] == default[name]
    }
    return copy_of(masker, **left_alone)


def stored(atlas, folder):
    """Return an atlas whose images are files: those in memory are written into a folder.

    Labels are written if they become smaller: nilearn sorts them several times for each image.
    """
    files = {}
    for name, image in images_of(atlas.masker.get_params(deep=False)).items():
        img = small_labels(atlas) if name == "labels_img" else None
        if img is None and isinstance(image, SpatialImage):
            data = np.asanyarray(image.dataobj)
            img = nib.Nifti1Image(data, image.affine, dtype=data.dtype)
        if img is not None:
            content = img.to_bytes()
            start = f"atlas-{atlas.name}_desc-{hashlib.sha256(content).hexdigest()[:12]}"
            files[name] = Path(folder).absolute() / f"{start}_{IMAGES[name]}.nii"
            write_bytes(files[name], content)
    return atlas._replace(masker=copy_of(atlas.masker, **files))


def small_labels(atlas):
    """Return the labels of an atlas in the smallest type; None if they are, or cannot be."""
    img, _ = open_mask(atlas.masker.labels_img)
    [labels] = read_volumes(img)
    values = [0, *atlas.numbers, atlas.masker.background_label]
    dtype = np.result_type(*(np.min_scalar_type(int(limit(values))) for limit in (min, max)))
    if values[-1] % 1 or dtype.itemsize >= labels.dtype.itemsize:
        return None
    small = nib.Nifti1Image(finite_values(labels).astype(dtype), img.affine, dtype=dtype)
    is_exact = np.array_equal(small.header.get_best_affine(), img.affine)  # in the file: float32
    return small if is_exact else None


def without_empty(masker, img):
    """Return a copy of a masker without empty spheres, which nilearn refuses, unless all are."""
    if type(masker) is not NiftiSpheresMasker:
        return copy_of(masker)
    voxels = sphere_voxels(copy_of(masker).fit(), img)
    seeds = [seed for seed, found in zip(masker.seeds, voxels, strict=True) if len(found)]
    return copy_of(masker, seeds=seeds or masker.seeds)


# The columns of an image
# -----------------------


def complete(atlas, masker, series, img):
    """Return a series with a column for each region of an atlas, NaN where the image has no voxel.

    Return also the `coverage` of the regions. The masker is still fitted to the image. If an image
    has an atlas of its own, `atlas` is the union of all.
    """
    series, columns = np.asarray(series), columns_of(atlas, masker)
    if series.shape[1:] != columns.shape:
        raise ValueError(
            f"A series of the atlas {atlas.name} has the shape {series.shape}; its masker has "
            f"{len(columns)} columns."
        )
    shares = coverage(atlas, masker, img, columns[columns >= 0])
    if np.array_equal(columns, np.arange(len(atlas.regions))):
        return series, shares
    dtype = series.dtype if series.dtype.kind == "f" else float
    every_column = np.full((len(series), len(atlas.regions)), np.nan, dtype)
    every_column[:, columns[columns >= 0]] = series[:, columns >= 0]
    return every_column, shares


def columns_of(atlas, masker):
    """Return for each column of a fitted masker the place of its region; -1 if it has no voxel.

    nilearn keeps no list for all maskers. These are the rules by which it makes the columns.
    """
    if type(masker) is NiftiLabelsMasker:
        labels = finite(masker.labels_img_)
        is_left = (labels != masker.background_label) & inside_mask(masker)
        return places_of(np.unique(labels[is_left]), atlas)
    if type(masker) is NiftiMapsMasker:
        maps, inside = np.moveaxis(finite(masker.maps_img_), 3, 0), inside_mask(masker)
        is_left = np.array([bool(((one != 0) & inside).any()) for one in maps])
        places = np.where(is_left, np.arange(len(maps)), -1)
        return places if masker.mask_img_ is None else places[is_left]
    if type(masker) is NiftiSpheresMasker:
        seeds = iter(enumerate(atlas.masker.seeds))  # a seed may be there twice
        return np.array([next(i for i, seed in seeds if seed == one) for one in masker.seeds_])
    return np.arange(masker.n_elements_)


def inside_mask(masker):
    """Return where the mask of a fitted masker is; without one, True for everywhere."""
    return masker.mask_img_ is None or finite(masker.mask_img_) != 0


def places_of(labels, atlas):
    """Return the places of labels among the regions of an atlas."""
    numbers = np.array(atlas.numbers)
    places = np.searchsorted(numbers, labels).clip(max=len(numbers) - 1)
    if len(wrong := labels[numbers[places] != labels]):
        raise ValueError(f"The atlas {atlas.name} has no label {wrong[0]:g}: was it changed?")
    return places


# The share of a region that an image has
# ---------------------------------------


def coverage(atlas, masker, img, there):
    """Return how much of each region lies in an image, and in the mask of a masker fitted to it.

    It is the share, from 0 to 1, of a label's voxels, of the absolute weights of a map, of the
    points of the image's grid in a sphere: 0 for a region without a column, NaN for single voxels.
    A voxel is inside if the voxel of the image, and of the mask, that is nearest to its centre is.
    The regions that have a column are `there`.
    """
    if type(masker) is NiftiMasker:
        return np.full(len(atlas.regions), np.nan)
    if type(masker) is NiftiSpheresMasker:
        return sphere_shares(atlas, masker, img)
    regions_img, volumes = regions_as_given(masker)
    if type(masker) is NiftiLabelsMasker:
        [labels] = volumes
        in_region = labels != masker.background_label
        inside = centres_inside(in_region, regions_img, masker, img)
        totals, outside = count_outside(atlas, labels, in_region, inside)
    else:
        voxels = np.ones(regions_img.shape[:3], bool, order="F")
        totals, outside = sum_outside(volumes, centres_inside(voxels, regions_img, masker, img))
    shares = np.zeros(len(atlas.regions))
    shares[there] = 1 - outside[there] / totals[there]
    return shares.clip(0, 1)


def regions_as_given(masker):
    """Return an image of regions, not resampled, and its volumes: from memory if they are there."""
    name = "labels_img" if type(masker) is NiftiLabelsMasker else "maps_img"
    (given, _), fitted = open_mask(getattr(masker, name)), getattr(masker, f"{name}_")
    if given.shape[:3] == fitted.shape[:3] and np.array_equal(given.affine, fitted.affine):
        data = finite(fitted)
        return fitted, np.moveaxis(data.reshape(*data.shape[:3], -1), 3, 0)
    return given, map(finite_values, read_volumes(given))


def centres_inside(voxels, regions_img, masker, img):
    """Return which voxels of some have their centres inside an image, and the masker's mask."""
    inside = voxels.copy("K")  # planes stay contiguous
    first_plane = np.indices((*voxels.shape[:2], 1))[..., 0]
    for grid, allowed in ((img, None), (masker.mask_img_, inside_mask(masker))):
        if grid is None:
            continue
        matrix, shift = to_matvec(np.linalg.solve(grid.affine, regions_img.affine))
        places = np.tensordot(matrix, first_plane, 1) + shift[:, np.newaxis, np.newaxis]
        for z, plane in enumerate(np.moveaxis(inside, 2, 0)):  # one by one, in little memory
            there = places[:, plane] + z * matrix[:, 2:]
            plane[plane] = are_inside(there, grid.shape[:3], allowed)
    return inside


def count_outside(atlas, labels, in_region, inside):
    """Return the number of voxels of each label, and how many are outside."""
    totals, outside = np.zeros((2, len(atlas.regions)), int)
    planes = (np.moveaxis(one, 2, 0) for one in (labels, in_region, inside))
    for values, found, is_in in zip(*planes, strict=True):
        places = places_of(values[found], atlas)
        totals += np.bincount(places, minlength=len(totals))
        outside += np.bincount(places[~is_in[found]], minlength=len(totals))
    return totals, outside


def sum_outside(maps, inside):
    """Return the sum of the absolute weights of each map, and of those outside."""
    sums = [(np.abs(one).sum(dtype=float), np.abs(one[~inside]).sum(dtype=float)) for one in maps]
    return np.transpose(sums)


def sphere_shares(atlas, masker, img):
    """Return the share of the points of the grid in each sphere that an image, or a mask, has."""
    allowed = None if masker.mask_img is None else on_grid(masker.mask_img, img)
    to_grid, radius, shares = np.linalg.inv(img.affine), masker.radius or 0, []
    for seed in atlas.masker.seeds:
        centre = apply_affine(to_grid, seed)
        reach = radius * np.abs(to_grid[:3, :3]).sum(axis=1)
        ranges = map(np.arange, np.floor(centre - reach), np.ceil(centre + reach) + 1)
        points = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3)
        distances = np.linalg.norm(apply_affine(img.affine, points) - seed, axis=1)
        in_sphere = (distances <= radius) | (points == np.rint(centre)).all(axis=1)
        shares.append(are_inside(points[in_sphere].T, img.shape[:3], allowed).mean())
    return np.array(shares)
