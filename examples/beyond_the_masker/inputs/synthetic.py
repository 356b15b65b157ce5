"""Make a stand-in for the development fMRI data set and the DiFuMo atlas, without a network.

The images have the grid and type of the data set (Richardson et al. 2018,
https://doi.org/10.1038/s41467-018-03399-2), the probabilistic atlas has 64 overlapping maps, as
DiFuMo has (Dadi et al. 2020, https://doi.org/10.1016/j.neuroimage.2020.117126).

The brain is the MNI152 template that nilearn ships. Each map is a Gaussian around a centre in the
brain, with a slow time course: one of its own, plus one that it shares with the other maps of its
network. A subject's image is the template, plus the maps times their time courses, plus noise: the
same for the same subject.
"""

import functools

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_template
from nilearn.image import resample_img
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

FMRI_SHAPE = (50, 59, 50, 168)
FMRI_AFFINE = np.array([[4.0, 0, 0, -96], [0, 4, 0, -132], [0, 0, 4, -78], [0, 0, 0, 1]])
MNI_SHAPE = (91, 109, 91)  # of MNI152 images with voxels of 2 mm
MNI_AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
ATLAS_SHAPE = (63, 76, 63)
ATLAS_AFFINE = np.array([[3.0, 0, 0, -92], [0, 3, 0, -128], [0, 0, 3, -75], [0, 0, 0, 1]])
N_MAPS = 64
N_NETWORKS = 7
REGION_WIDTH_MM = 12.0


def template_on(shape, affine):
    """Resample the brain of the MNI152 template to a grid: 0 outside the brain, at most 1."""
    template = resample_img(
        load_mni152_template(resolution=2), affine, shape, copy_header=True, force_resample=True
    )
    data = np.asarray(template.dataobj, dtype="float32")
    return np.where(data > 0.2, data, 0).astype("float32")


def region_maps(brain, affine):
    """Return the weights of brain voxels in each map, float32 of shape (n_brain_voxels, 64)."""
    points = nib.affines.apply_affine(affine, np.argwhere(brain))
    maps = np.empty((len(points), N_MAPS), dtype="float32")
    for column, centre in zip(maps.T, centres(), strict=True):
        weights = np.exp(-0.5 * ((points - centre) ** 2).sum(axis=1) / REGION_WIDTH_MM**2)
        column[:] = np.where(weights > 0.1, weights, 0)
    return maps


@functools.lru_cache(maxsize=1)
def anatomy(shape, affine):
    """Return the brain on a grid, and the region maps: the same for all subjects.

    `affine` is a tuple of rows, so that the result can be kept.
    """
    brain = template_on(shape, np.array(affine))
    return brain, region_maps(brain, np.array(affine))


@functools.cache
def centres():
    """Return the coordinates of 64 points in the brain that are far from each other, in mm."""
    brain = template_on(FMRI_SHAPE[:3], FMRI_AFFINE)
    candidates = nib.affines.apply_affine(FMRI_AFFINE, np.argwhere(brain > 0.5))
    chosen = [candidates[len(candidates) // 2]]
    distance = np.full(len(candidates), np.inf)
    while len(chosen) < N_MAPS:
        distance = np.minimum(distance, ((candidates - chosen[-1]) ** 2).sum(axis=1))
        chosen.append(candidates[distance.argmax()])
    return np.array(chosen)


def synthetic_fmri(subject, shape=FMRI_SHAPE, affine=FMRI_AFFINE):
    """Make the image of one subject, from 0: float32, repetition time 2 s."""
    rng = np.random.default_rng(subject)
    brain, maps = anatomy(tuple(shape[:3]), tuple(map(tuple, affine)))
    inside, n_volumes = brain > 0, shape[3]
    courses = gaussian_filter1d(rng.standard_normal((N_MAPS, n_volumes)), sigma=3, axis=1)
    series = rng.standard_normal((len(maps), n_volumes), dtype="float32")  # noise
    shared = gaussian_filter1d(rng.standard_normal((N_NETWORKS, n_volumes)), sigma=3, axis=1)
    courses += shared[np.arange(N_MAPS) % N_NETWORKS]
    series += 1000 * brain[inside][:, None]
    series += 30 * maps @ courses.astype("float32")
    data = np.zeros(shape, dtype="float32", order="F")
    data[inside] = series
    img = nib.Nifti1Image(data, affine)
    img.header.set_zooms((*img.header.get_zooms()[:3], 2))
    img.header.set_xyzt_units("mm", "sec")
    return img


def synthetic_atlas(shape=ATLAS_SHAPE, affine=ATLAS_AFFINE):
    """Make the probabilistic atlas: float32, 64 maps, by default with voxels of 3 mm."""
    brain = template_on(shape, affine)
    data = np.zeros((*shape, N_MAPS), dtype="float32", order="F")
    data[brain > 0] = region_maps(brain, affine)
    return nib.Nifti1Image(data, affine)


def random_centres(n_regions, shape, affine):
    """Return the coordinates of some random voxels of the brain, in mm."""
    brain = np.argwhere(template_on(shape, affine))
    chosen = np.random.default_rng(n_regions).choice(len(brain), n_regions, replace=False)
    return nib.affines.apply_affine(affine, brain[chosen])


def synthetic_labels(n_regions, shape, affine):
    """Make an atlas of labels, int32: each voxel of the brain has that of its nearest centre."""
    brain = template_on(shape, affine) > 0
    points = nib.affines.apply_affine(affine, np.argwhere(brain))
    data = np.zeros(shape, dtype="int32")
    data[brain] = 1 + cKDTree(random_centres(n_regions, shape, affine)).query(points)[1]
    return nib.Nifti1Image(data, affine)
