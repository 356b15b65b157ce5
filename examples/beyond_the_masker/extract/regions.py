"""Find the voxels that a fitted masker needs, and reduce their values to its series.

This is the short way of `stream_masker`, for an image on its own grid and without smoothing. The
sums are nilearn's, in nilearn's order.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from nilearn.image import get_data, resample_img
from nilearn.image.resampling import coord_transform
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker, NiftiSpheresMasker
from nilearn.masking import load_mask_img
from scipy import linalg, ndimage, sparse
from sklearn.neighbors import NearestNeighbors

from beyond_the_masker.extract.streaming import in_file, result_dtype, value_type

AT_ONCE = 8  # volumes whose products with maps are computed at once


class Regions(NamedTuple):
    """The voxels of a masker, and what it makes of them.

    Several maskers share a block of values, of shape (n_volumes, n_columns). `reducer` gets the
    columns of the masker's voxels, and their number, and returns a function from block to series.
    """

    positions: np.ndarray  # of the voxels in a volume of the file
    dtype: np.dtype  # of the values in the block
    reducer: Callable
    is_whole: bool = True  # whether all maps have voxels


def find_regions(masker, img):
    """Return the `Regions` of a fitted masker; None if nilearn has to decide, or to complain."""
    find = {
        NiftiMasker: find_mask,
        NiftiLabelsMasker: find_labels,
        NiftiMapsMasker: find_maps,
        NiftiSpheresMasker: find_spheres,
    }[type(masker)]
    return find(masker, img, value_type(img))


def find_mask(masker, img, data_dtype):
    """Return the voxels of a mask; its series are their values."""
    inside = finite(masker.mask_img_) != 0
    dtype = result_dtype(img)
    return Regions(in_file(inside), dtype, lambda columns, n: lambda block: block[:, columns])


def find_labels(masker, img, data_dtype):
    """Return the voxels of all labels, those of a label together, for the masker's `strategy`."""
    labels_data = finite(masker.labels_img_)
    if not np.isfinite(get_data(masker.labels_img_)).all():  # nilearn warns of labels, not of maps
        warnings.warn("Non-finite values detected in labels_img: they become zero.", stacklevel=5)
    inside = labels_data != masker.background_label
    before = labels_data[inside]
    if masker.mask_img_ is not None:
        inside &= finite(masker.mask_img_) != 0
    labels = labels_data[inside]
    names = np.unique(before if masker.keep_masked_labels else labels)
    codes = np.searchsorted(names, labels).astype(np.min_scalar_type(len(names)))
    order = np.argsort(codes, kind="stable")  # a radix sort, if of 16 bits
    codes = codes[order]
    dtype = np.float32 if data_dtype == np.float32 else np.float64  # of nilearn's result

    def reducer(*where):
        reduce_volume = reduce_by(masker.strategy, codes, len(names), *where)
        return lambda block: np.array([*map(reduce_volume, block)], dtype)

    return Regions(in_file(inside)[order], data_dtype, reducer)


def reduce_by(strategy, codes, n, columns, n_columns):
    """Return a function of a row of a block, for the strategy of NiftiLabelsMasker.

    The product with a sparse matrix adds the voxels of a region one after the other, as
    `numpy.bincount` does for `scipy.ndimage.mean`, in two thirds of the time.
    """
    counts = np.bincount(codes, minlength=n)
    if strategy not in ("mean", "sum"):
        function = getattr(ndimage, strategy)
        return lambda row: np.where(counts, function(row[columns], codes, np.arange(n)), 0)
    ends = np.concatenate([[0], counts.cumsum()])
    add = sparse.csr_array((np.ones(len(codes)), columns, ends), (n, n_columns))
    divisor = np.maximum(counts, 1) if strategy == "mean" else 1
    return lambda row: add @ row.astype(float) / divisor


def find_maps(masker, img, data_dtype):
    """Return the voxels where a map is not zero, for the least squares of all maps."""
    maps = finite(masker.maps_img_)
    if masker.mask_img_ is not None:
        maps = maps * (finite(masker.mask_img_) != 0)[..., None]
    inside = maps.any(axis=3)
    maps = maps[inside]
    if masker.mask_img_ is not None and not masker.keep_masked_maps:
        maps = maps[:, maps.any(axis=0)]
    _, dtype, _ = linalg.find_best_blas_type((maps, np.empty(0, data_dtype)))
    # nilearn calls scipy.linalg.lstsq, which drops singular values that are as small as this
    basis, rest = factorise(maps.astype(float))
    inverse = basis @ linalg.pinv(rest, atol=0, rtol=np.finfo(dtype).eps).T

    def reducer(columns, n):
        return lambda block: multiply(block, columns, inverse).astype(dtype)

    is_whole = maps.shape[1] == masker.maps_img_.shape[3]
    return Regions(in_file(inside), data_dtype, reducer, is_whole)


def multiply(block, columns, inverse):
    """Return the product of some columns of a block and a matrix.

    BLAS rounds a row in another way if there are more or fewer of them, so it always gets as many.
    """
    result = np.empty((len(block), inverse.shape[1]))
    values = np.zeros((AT_ONCE, len(columns)))
    for start in range(0, len(block), AT_ONCE):
        rows = block[start : start + AT_ONCE]
        values[: len(rows)] = rows.take(columns, axis=1)
        result[start : start + AT_ONCE] = (values @ inverse)[: len(rows)]
    return result


def factorise(maps):
    """Return the factors Q and R of maps of shape (n_voxels, n_maps).

    Two Cholesky factorisations of small products are as exact as a QR factorisation, and much
    faster for many voxels: Yamamoto and others (2015), ETNA 44, 306-326. They fail if maps are
    nearly dependent.
    """
    basis, rest = maps, np.eye(maps.shape[1])
    try:
        for _ in range(2):
            factor = linalg.cholesky(basis.T @ basis)
            basis, rest = basis @ linalg.inv(factor), factor @ rest
    except linalg.LinAlgError:
        return linalg.qr(maps, mode="economic")
    return basis, rest


def find_spheres(masker, img, data_dtype):
    """Return the voxels of all spheres, each to be averaged; None if nilearn would refuse them."""
    if masker.dtype == "auto":
        data_dtype = np.dtype("int32" if data_dtype.kind == "i" else "float32")
    elif masker.dtype is not None:
        data_dtype = np.dtype(masker.dtype)
    dtype = data_dtype
    if masker.mask_img is not None and data_dtype.kind != "f":
        dtype = np.dtype("float32")
    spheres = sphere_voxels(masker, img)
    found, counts = np.unique(np.concatenate(spheres), return_counts=True)
    if min(map(len, spheres)) == 0 or (counts.max() > 1 and not masker.allow_overlap):
        return None
    inside = np.zeros(img.shape[:3], bool)
    inside.flat[found] = True
    members = [np.searchsorted(found, sphere) for sphere in spheres]

    def reduce(block, columns):
        if len(block) == 1 < img.shape[3]:  # NumPy adds in another order for a single volume
            block = np.repeat(block, 2, axis=0)
        values = np.asfortranarray(block.take(columns, axis=1))
        return np.stack([values[:, each].mean(axis=1) for each in members], 1).astype(data_dtype)

    def reducer(columns, n):
        return lambda block: reduce(block, columns)[: len(block)]

    return Regions(in_file(inside), dtype, reducer)


def sphere_voxels(masker, img):
    """Return for each sphere the sorted numbers, in C order of the grid, of its voxels."""
    shape, affine = img.shape[:3], img.affine
    seeds = np.asarray(masker.seeds_, float)
    centres = np.transpose(coord_transform(*seeds.T, np.linalg.inv(affine)))
    reach = max(masker.radius or 0, 2) * np.abs(np.linalg.inv(affine[:3, :3])).sum(axis=1) + 1
    near = np.zeros(shape, bool)
    for centre in centres:
        low, high = (np.maximum(centre + side * reach + 1, 0).astype(int) for side in (-1, 1))
        near[tuple(map(slice, low, high + 1))] = True
    if masker.mask_img is not None:
        near &= on_grid(masker.mask_img, img)
    voxels, grid = np.flatnonzero(near), np.transpose(np.nonzero(near))
    if not len(voxels):
        return [[] for _ in seeds]
    places = np.transpose(coord_transform(*grid.T, affine))
    tree = NearestNeighbors(radius=masker.radius, algorithm="kd_tree").fit(places)
    graph = tree.radius_neighbors_graph(seeds)
    nearest, whole = np.round(centres).astype(int), places.astype(int)
    spheres = []
    for number, seed in enumerate(seeds):
        own = graph[number].indices
        at_seed = np.flatnonzero((grid == nearest[number]).all(axis=1))
        as_integers = np.flatnonzero((whole == seed.astype(int)).all(axis=1))[:1]
        spheres.append(voxels[np.unique(np.concatenate([own, at_seed, as_integers]))])
    return spheres


def on_grid(mask_img, img):
    """Return a mask as booleans on the grid of an image."""
    mask_img = resample_img(
        mask_img,
        target_affine=img.affine,
        target_shape=img.shape[:3],
        interpolation="nearest",
    )
    return load_mask_img(mask_img)[0]


def finite(img):
    """Return the values of an image; those that are not finite are zero."""
    return finite_values(get_data(img))


def finite_values(data):
    """Return values; those that are not finite are zero."""
    return data if np.isfinite(data).all() else np.where(np.isfinite(data), data, 0)
