"""Atlases: regions with names, the same for every image, whatever a masker drops.

Columns of nilearn's series differ between images: a masker drops labels and maps that a mask hides,
and labels that vanish when they are resampled. `complete` puts every series into the columns of its
atlas, and `coverage` returns how much of each region an image has.
"""

import hashlib
import json
import os
import warnings
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

from beyond_the_masker.files import file_named, files_of_image, moved_into_place
from beyond_the_masker.maskers import MASKERS, refuse
from beyond_the_masker.masks import name_labels, names_of_volumes, read_table
from beyond_the_masker.regions import finite, finite_values, on_grid, sphere_voxels
from beyond_the_masker.streaming import mask_volumes, open_mask

__all__ = ["Atlas", "complete", "coverage", "read_atlas", "union_of"]
IMAGES = {"labels_img": "dseg", "maps_img": "probseg", "mask_img": "mask"}  # and suffixes of files
NOT_IN_RESULTS = ("memory", "memory_level", "verbose", "reports", "cmap")


class Atlas(NamedTuple):
    """An atlas, the same for all images of a study."""

    name: str
    masker: object  # not fitted, and without the parameters of a study
    regions: list  # the names of all regions: the columns of every result
    checksum: str  # of all that results take from the atlas: files, names, parameters
    numbers: list  # of each region the label; or the number of the map, sphere or voxel, from 1


# What an atlas is
# ----------------


def read_atlas(name, source):
    """Return an `Atlas`. Its files are read to their ends, so that damage shows at once.

    Parameters
    ----------
    name : str
        Name of the atlas in results and messages.
    source : str, pathlib.Path, nibabel.Nifti1Image or nilearn masker
        A 3D image of labels, whole numbers, or a 4D image with a map in each volume. Or a masker of
        labels, maps, spheres, or of the voxels of a mask. It is copied, and keeps its parameters:
        see `for_study`.

    Returns
    -------
    Atlas
        Labels are in increasing order, maps, spheres and voxels in their own. Regions are named by
        the `lut` or the `labels` of the masker, or by a table beside the image, or above it in its
        BIDS dataset, with the columns ``index`` and ``name``; for maps, ``index`` is the number of
        the volume. Others have numbers: ``region_12``, ``map_1``, ``sphere_1``, ``voxel_1``. A name
        that belongs to no label of the image is left out.

    Raises
    ------
    ValueError
        There is no region, a label is not a whole number, a map is empty, two regions have the same
        name, a NiftiMasker has no `mask_img`, or the masker is of another class.
    OSError
        A file is missing or damaged.
    """
    with atlas_named(name):
        check_link(source)
        masker = copy_of(source) if hasattr(source, "get_params") else masker_of(source)
        check_images(masker)
        count = {
            NiftiMasker: count_voxels,
            NiftiLabelsMasker: find_labels,
            NiftiMapsMasker: count_maps,
            NiftiSpheresMasker: count_spheres,
        }[type(masker)]
        numbers, regions = count(masker)
        check_regions(regions)
        if type(masker) is NiftiLabelsMasker:
            masker = copy_of(masker, lut=None, labels=None)  # their names are in `regions`
        return Atlas(str(name), masker, regions, checksum_of(masker, regions), numbers)


def union_of(atlases):
    """Return an atlas with the regions of several, for images that each have an atlas of their own.

    Its checksum covers numbers and names alone: what an image's results depend on is the atlas of
    this image, and the columns.
    """
    first, names = atlases[0], {}
    for atlas in atlases:
        for number, region in zip(atlas.numbers, atlas.regions, strict=True):
            if names.setdefault(number, region) != region:
                raise ValueError(
                    f"The atlas {first.name} is not the same for all images: {number} is "
                    f"{names[number]} in some, {region} in others. Correct their lookup tables."
                )
    kinds = {type(atlas.masker) for atlas in atlases}
    if kinds != {NiftiLabelsMasker} and any(one.regions != first.regions for one in atlases):
        raise ValueError(f"The atlas {first.name} has other regions in some images.")
    numbers = sorted(names)
    regions = [names[number] for number in numbers]
    with atlas_named(first.name):
        check_regions(regions)
    checksum = hashlib.sha256(json.dumps([numbers, regions]).encode()).hexdigest()
    return Atlas(first.name, first.masker, regions, checksum, numbers)


@contextmanager
def atlas_named(name):
    """Name the atlas in an error."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        kinds = (FileNotFoundError, OSError)
        kind = next((kind for kind in kinds if isinstance(error, kind)), ValueError)
        raise kind(f"The atlas {name} cannot be used. {error}") from error


def copy_of(masker, **changes):
    """Return a masker with the same parameters that is not fitted, and makes no report."""
    refuse(masker)
    parameters = masker.get_params(deep=False) | changes
    if parameters.get("target_shape") is None:  # with it, nilearn 0.14 needs a report
        parameters["reports"] = False
    if hasattr(parameters.get("seeds"), "__next__"):  # else the first fit would use them up
        parameters["seeds"] = [*parameters["seeds"]]
    for name in IMAGES.keys() & parameters:
        parameters[name] = as_path(parameters[name])
    return type(masker)(**parameters)


def masker_of(image):
    """Return a masker of an image of labels or maps."""
    image = as_path(image)
    shape = open_mask(image)[0].shape
    if shape[3:] in ((), (1,)):
        return NiftiLabelsMasker(labels_img=image, reports=False)
    if len(shape) == 4:
        return NiftiMapsMasker(maps_img=image, reports=False)
    raise ValueError(f"{image} has the shape {shape}: labels are 3D, maps are 4D.")


def as_path(image):
    """Return the absolute path of a file; an image, or None, as it is."""
    if not isinstance(image, str | Path):
        return image
    path = os.path.abspath(os.path.expanduser(image))
    if has_magic(path):
        raise ValueError(f"{path} has one of *?[ in its name, which nilearn takes for a pattern.")
    return path


def check_link(image):
    """Raise a FileNotFoundError if a file is a link to nothing, as git-annex leaves."""
    path = os.path.expanduser(image) if isinstance(image, str | Path) else ""
    if os.path.islink(path) and not os.path.exists(path):
        raise FileNotFoundError(f"{path} is a link to a file that is not here: try datalad get.")


def read_volumes(image):
    """Yield the volumes of an image, or of its file, which is read to its end."""
    yield from mask_volumes(*open_mask(image), alone=True)


def check_images(masker):
    """Raise an OSError if an image is missing, a ValueError if the mask of the masker is empty."""
    for name in IMAGES:
        check_link(getattr(masker, name, None))
    if masker.mask_img is not None:
        is_used = [values.any() for values in read_volumes(masker.mask_img)]  # to the file's end
        if not any(is_used):
            raise ValueError(f"{open_mask(masker.mask_img)[1]} is an empty mask.")


def check_regions(regions):
    """Raise a ValueError unless there are regions, and all have different names."""
    name, count = Counter(regions).most_common(1)[0] if regions else ("", 0)
    if count != 1:
        raise ValueError(f"{count} regions have the name {name}." if count else "It has no region.")


def find_labels(masker):
    """Return the labels of a masker in increasing order, and their names."""
    img, file = open_mask(masker.labels_img)
    if img.shape[3:] not in ((), (1,)):
        raise ValueError(f"{file} has the shape {img.shape}: labels are 3D.")
    [values] = read_volumes(masker.labels_img)
    labels = np.unique(finite_values(values))
    labels = labels[labels != masker.background_label]
    if (labels % 1).any():
        raise ValueError(
            f"{file} has the value {labels[labels % 1 != 0][0]:g}; labels are whole numbers. A map "
            "of weights is a volume of a 4D image."
        )
    table = own_table(masker) if masker.labels or masker.lut is not None else None
    table = read_table(img.get_filename()) if table is None else table
    numbers = [int(label) for label in labels]
    return numbers, name_labels(numbers, table)


def own_table(masker):
    """Return the names of labels from a masker's `lut` or `labels`, as nilearn understands them."""
    try:
        table = copy_of(masker).fit().lut_
    except (AssertionError, KeyError) as error:
        raise ValueError("Its lookup table needs the columns index and name.") from error
    if not table["index"].is_unique:
        raise ValueError("Its lookup table has an index twice.")
    return {int(index): str(name) for index, name in table[["index", "name"]].to_numpy()}


def count_maps(masker):
    """Return the numbers and the names of the maps of a masker."""
    n_maps, (img, file) = 0, open_mask(masker.maps_img)
    for n_maps, values in enumerate(read_volumes(masker.maps_img), 1):
        if not finite_values(values).any():
            raise ValueError(f"Volume {n_maps} of {file} is empty.")
    numbers = [*range(1, n_maps + 1)]
    return numbers, name_labels(numbers, names_of_volumes(img), "map")


def count_spheres(masker):
    """Return the numbers and the names of the spheres of a masker."""
    seeds = copy_of(masker).fit().seeds_
    if not np.isfinite(np.asarray(seeds, float)).all():
        raise ValueError("A seed is not finite.")
    numbers = [*range(1, len(seeds) + 1)]
    return numbers, name_labels(numbers, {}, "sphere")


def count_voxels(masker):
    """Return the numbers and the names of the voxels of a mask."""
    if masker.mask_img is None:
        raise ValueError("NiftiMasker needs mask_img: otherwise each image has voxels of its own.")
    numbers = [*range(1, copy_of(masker).fit().n_elements_ + 1)]
    return numbers, name_labels(numbers, {}, "voxel")


def checksum_of(masker, regions):
    """Return a checksum of all that results take from a masker."""
    parameters = masker.get_params(deep=False)
    images = [parameters.pop(name, None) for name in IMAGES]
    parameters = {key: value for key, value in parameters.items() if key not in NOT_IN_RESULTS}
    about = [type(masker).__name__, parameters, regions]
    digest = hashlib.sha256(json.dumps(about, default=plain, sort_keys=True).encode())
    for image in images:
        digest.update(b"image")
        for part in content_of(image):
            digest.update(part)
    return digest.hexdigest()


def plain(value):
    """Return a value that JSON lacks as lists, or as text."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def content_of(image):
    """Yield all bytes of an image: of its files, or of its grid and its values."""
    if isinstance(image, str | Path):
        for path in files_of_image(image):
            with file_named(path), open(path, "rb") as file:
                while part := file.read(2**20):
                    yield part
    elif image is not None:
        yield repr((image.shape, image.get_data_dtype(), image.affine.tolist())).encode()
        yield from (values.tobytes() for values in read_volumes(image))


# Maskers of a study
# ------------------


def for_study(masker, **parameters):
    """Return a copy of a masker with the parameters of a study, except those that it sets itself.

    It sets a parameter itself if its value is not the default of its class. So `mask_img`, `t_r`,
    `smoothing_fwhm` and so on reach an atlas that is a file, and a masker that leaves them alone. A
    masker cannot insist on a default: leave the parameter out, and give it to the other maskers.
    """
    known = {name for kind in MASKERS for name in kind().get_params()}
    if unknown := sorted(parameters.keys() - known):
        raise ValueError(f"No masker has the parameters {unknown}.")
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

    So each worker gets a path instead of an array. Labels are written in any case if they become
    smaller: nilearn sorts them several times for each image.
    """
    files = {}
    for name, suffix in IMAGES.items():
        image = getattr(atlas.masker, name, None)
        img = small_labels(atlas) if name == "labels_img" and image is not None else None
        if img is None and isinstance(image, SpatialImage):
            data = np.asanyarray(image.dataobj)
            img = nib.Nifti1Image(data, image.affine, dtype=data.dtype)
        if img is not None:
            stem = f"atlas-{atlas.name}_desc-{atlas.checksum[:12]}_{suffix}"
            files[name] = Path(folder).absolute() / f"{stem}.nii"
            with moved_into_place(files[name]) as unfinished, open(unfinished, "wb") as file:
                img.to_stream(file)
    return atlas._replace(masker=copy_of(atlas.masker, **files))


def small_labels(atlas):
    """Return the labels of an atlas in the smallest type; None if they are, or cannot be."""
    img, _ = open_mask(atlas.masker.labels_img)
    [labels] = read_volumes(atlas.masker.labels_img)
    values = [0, *atlas.numbers, atlas.masker.background_label]
    dtype = np.result_type(*(np.min_scalar_type(int(limit(values))) for limit in (min, max)))
    if values[-1] % 1 or dtype.itemsize >= labels.dtype.itemsize:
        return None
    small = nib.Nifti1Image(finite_values(labels).astype(dtype), img.affine, dtype=dtype)
    is_exact = np.array_equal(small.header.get_best_affine(), img.affine)  # in the file: float32
    return small if is_exact else None


def without_empty(masker, img):
    """Return a masker without the spheres that have no voxel in an image, which nilearn refuses.

    If all are empty, they stay, and nilearn refuses them. Other maskers are returned as they are.
    """
    if type(masker) is not NiftiSpheresMasker:
        return masker
    fitted = copy_of(masker).fit()
    voxels = sphere_voxels(fitted, img)
    seeds = [seed for seed, found in zip(fitted.seeds_, voxels, strict=True) if len(found)]
    return copy_of(masker, seeds=seeds) if 0 < len(seeds) < len(voxels) else masker


@contextmanager
def lost_regions_expected():
    """Silence nilearn's warnings of regions that it drops: `coverage` counts them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*After (applying mask|resampling) ", UserWarning)
        yield


# The columns of an image
# -----------------------


def complete(atlas, masker, series):
    """Return a series with a column for each region of an atlas, NaN where the image has no voxel.

    Parameters
    ----------
    atlas : Atlas
        The atlas of the study; of an image with an atlas of its own, the union of all.
    masker : nilearn masker
        The masker that made the series, still fitted.
    series : array of shape (n_timepoints, n_columns)
        What `stream_masker` or ``fit_transform`` returned.

    Returns
    -------
    array of shape (n_timepoints, n_regions)
        The series itself if no region is missing. Integers become float64, because they have no
        NaN.

    Raises
    ------
    ValueError
        The columns are not those of the masker, or a region is none of the atlas.
    """
    series = np.asarray(series)
    columns, has_voxels = columns_of(atlas, masker)
    if series.shape[1:] != (len(columns),):
        raise ValueError(
            f"A series of the atlas {atlas.name} has the shape {series.shape}; its masker has "
            f"{len(columns)} columns."
        )
    if len(columns) == len(atlas.regions) and has_voxels.all():
        return series
    dtype = series.dtype if series.dtype.kind == "f" else float
    every_column = np.full((len(series), len(atlas.regions)), np.nan, dtype)
    every_column[:, columns[has_voxels]] = series[:, has_voxels]
    return every_column


def columns_of(atlas, masker):
    """Return which regions the columns of a fitted masker are, and which of these have voxels.

    nilearn keeps no list for all maskers. These are the rules by which it makes the columns.
    """
    if type(masker) is NiftiLabelsMasker:
        return columns_of_labels(atlas, masker)
    if type(masker) is NiftiMapsMasker:
        has_weights = np.array([bool(one.any()) for one in maps_inside(masker)])
        if masker.mask_img_ is None or masker.keep_masked_maps:
            return np.arange(len(has_weights)), has_weights
        columns = np.flatnonzero(has_weights)
    elif type(masker) is NiftiSpheresMasker:
        seeds = iter(enumerate(as_lists(atlas.masker.seeds)))
        wanted = as_lists(masker.seeds_)
        columns = np.array([next(i for i, seed in seeds if seed == one) for one in wanted])
    else:
        columns = np.arange(masker.n_elements_)
    return columns, np.ones(len(columns), bool)


def columns_of_labels(atlas, masker):
    """Return the columns of a masker of labels, in increasing order, as `columns_of` does."""
    labels = finite(masker.labels_img_)
    in_region = labels != masker.background_label
    in_mask = in_region
    if masker.mask_img_ is not None:
        in_mask = in_region & (finite(masker.mask_img_) != 0)
    left = columns = places_of(np.unique(labels[in_mask]), atlas)
    if masker.keep_masked_labels:
        columns = places_of(np.unique(labels[in_region]), atlas)
    return columns, np.isin(columns, left)


def maps_inside(masker):
    """Yield the values of each map of a fitted masker in its mask, if it has one."""
    inside = None if masker.mask_img_ is None else finite(masker.mask_img_) != 0
    for values in np.moveaxis(finite(masker.maps_img_), 3, 0):
        yield values if inside is None else values[inside]


def as_lists(seeds):
    """Return the coordinates of seeds as lists."""
    return np.asarray(seeds, float).reshape(-1, 3).tolist()


def places_of(labels, atlas):
    """Return the places of labels among the regions of an atlas."""
    numbers = np.array(atlas.numbers)
    places = np.searchsorted(numbers, labels).clip(max=len(numbers) - 1)
    if len(wrong := labels[numbers[places] != labels]):
        raise ValueError(f"The atlas {atlas.name} has no label {wrong[0]:g}: was it changed?")
    return places


# The share of a region that an image has
# ---------------------------------------


def coverage(atlas, masker, img):
    """Return how much of each region lies in an image, and in the masker's mask.

    Parameters
    ----------
    atlas : Atlas
        As for `complete`.
    masker : nilearn masker
        Fitted to the image, with the mask of its brain, if there is one, as `mask_img`.
    img : nibabel image, or any object with `shape` and `affine`
        The grid of the image.

    Returns
    -------
    array of shape (n_regions,)
        From 0 to 1: the share of a label's voxels, of the absolute weights of a map, of the points
        of the image's grid in a sphere. 0 for a region without a column; NaN for single voxels.

    Notes
    -----
    The share is exact if atlas and mask are on the grid of the image. Otherwise it counts the
    atlas's own voxels: a voxel is inside if the voxel of the image, and of the mask, that is
    nearest to its centre is.
    """
    if type(masker) is NiftiMasker:
        return np.full(len(atlas.regions), np.nan)
    if type(masker) is NiftiSpheresMasker:
        return sphere_shares(atlas, masker, img)
    regions_img, volumes = regions_as_given(masker)
    grids = [(img, None)]
    if masker.mask_img_ is not None:
        grids.append((masker.mask_img_, finite(masker.mask_img_) != 0))
    if type(masker) is NiftiLabelsMasker:
        [labels] = volumes
        in_region = labels != masker.background_label
        inside = centres_inside(in_region, regions_img.affine, grids)
        totals, outside = count_outside(atlas, labels, in_region, inside)
    else:
        everywhere = np.ones(regions_img.shape[:3], bool, order="F")
        inside = centres_inside(everywhere, regions_img.affine, grids)
        totals, outside = sum_outside(volumes, inside)
    columns, has_voxels = columns_of(atlas, masker)
    shares = np.zeros(len(atlas.regions))
    there = columns[has_voxels]
    shares[there] = 1 - outside[there] / totals[there]
    return shares.clip(0, 1)


def regions_as_given(masker):
    """Return an image of regions, not resampled, and its volumes: from memory if they are there."""
    name = "labels_img" if type(masker) is NiftiLabelsMasker else "maps_img"
    given, _ = open_mask(getattr(masker, name))
    fitted = getattr(masker, f"{name}_")
    if given.shape[:3] == fitted.shape[:3] and np.array_equal(given.affine, fitted.affine):
        data = finite(fitted)
        return fitted, np.moveaxis(data.reshape(*data.shape[:3], -1), 3, 0)
    return given, map(finite_values, read_volumes(getattr(masker, name)))


def centres_inside(voxels, affine, grids):
    """Return which voxels have their centres inside all grids, and where these are allowed."""
    inside = voxels.copy("K")  # planes stay contiguous
    first_plane = np.indices((*voxels.shape[:2], 1))[..., 0]
    for grid, allowed in grids:
        matrix, shift = to_matvec(np.linalg.solve(grid.affine, affine))
        places = np.tensordot(matrix, first_plane, 1) + shift[:, np.newaxis, np.newaxis]
        for z, plane in enumerate(np.moveaxis(inside, 2, 0)):  # one by one, in little memory
            there = places[:, plane] + z * matrix[:, 2:]
            plane[plane] = are_inside(there, grid.shape[:3], allowed)
    return inside


def are_inside(places, shape, allowed=None):
    """Return which places, (3, n), are nearest to a voxel of a grid that is allowed."""
    inside = np.ones(places.shape[1], bool)
    for axis, n_voxels in zip(places, shape, strict=True):  # half a voxel, but for rounding
        inside &= (axis > -0.51) & (axis < n_voxels - 0.49)
    if allowed is not None:
        last = np.subtract(shape, 1)[:, np.newaxis]
        inside[inside] = allowed[tuple(np.rint(places[:, inside]).astype(int).clip(0, last))]
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
    for seed in as_lists(atlas.masker.seeds):
        centre = apply_affine(to_grid, seed)
        reach = radius * np.abs(to_grid[:3, :3]).sum(axis=1)
        ranges = map(np.arange, np.floor(centre - reach), np.ceil(centre + reach) + 1)
        points = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3)
        distances = np.linalg.norm(apply_affine(img.affine, points) - seed, axis=1)
        in_sphere = (distances <= radius) | (points == np.rint(centre)).all(axis=1)
        shares.append(are_inside(points[in_sphere].T, img.shape[:3], allowed).mean())
    return np.array(shares)
