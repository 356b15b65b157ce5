"""
A stand-in for the development fMRI data set
============================================

The memory that a masking method needs depends on the size and the type of the image, not
on whose brain it shows. So the default build makes its own data, without a network: images
on the grid of the development fMRI data set as nilearn offers it (50 x 59 x 50 voxels of
4 mm, 168 volumes for each subject, float32) and a probabilistic :term:`atlas` of 64 overlapping
maps, as DiFuMo has, on a finer grid.

The brain is the MNI152 template that nilearn ships. Each map is a Gaussian around a centre
in the brain. Each region has a slow time course of its own, and a subject's image is the
template, plus the maps times their time courses, plus noise. The same subject is the same
image each time.

References
----------
* Dadi K. et al. (2020). Fine-grain atlases of functional modes for fMRI analysis.
  NeuroImage 221, 117126. https://doi.org/10.1016/j.neuroimage.2020.117126
* Richardson H. et al. (2018). Development of the social brain from age three to
  twelve years. Nature Communications 9, 1027.
  https://doi.org/10.1038/s41467-018-03399-2
"""

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_template
from nilearn.image import resample_img
from scipy.ndimage import gaussian_filter1d

FMRI_SHAPE = (50, 59, 50, 168)
FMRI_AFFINE = np.array([[4.0, 0, 0, -96], [0, 4, 0, -132], [0, 0, 4, -78], [0, 0, 0, 1]])
ATLAS_SHAPE = (63, 76, 63)
ATLAS_AFFINE = np.array([[3.0, 0, 0, -92], [0, 3, 0, -128], [0, 0, 3, -75], [0, 0, 0, 1]])
N_MAPS = 64
REGION_WIDTH_MM = 12.0


def template_on(shape, affine):
    """Resample the brain of the MNI152 template to a grid.

    Parameters
    ----------
    shape : tuple of three int
        Voxels along each axis.
    affine : array of shape (4, 4)
        Voxel to world coordinates, in mm.

    Returns
    -------
    array of shape `shape`, float32
        Intensity from 0 (outside the brain) to 1.
    """
    template = resample_img(
        load_mni152_template(resolution=2), affine, shape, copy_header=True, force_resample=True
    )
    data = np.asarray(template.dataobj, dtype="float32")
    return np.where(data > 0.2, data, 0).astype("float32")


def region_maps(brain, affine):
    """Evaluate the 64 regions on a grid.

    Parameters
    ----------
    brain : array of shape (x, y, z)
        Non-zero inside the brain.
    affine : array of shape (4, 4)
        Voxel to world coordinates, in mm.

    Returns
    -------
    array of shape (n_brain_voxels, 64), float32
        Weight of each brain voxel in each map: 1 at the centre, 0 far away.
    """
    points = nib.affines.apply_affine(affine, np.argwhere(brain))
    weights = np.exp(
        -0.5 * ((points[:, None, :] - _centres()) ** 2).sum(axis=2) / REGION_WIDTH_MM**2
    )
    return np.where(weights > 0.1, weights, 0).astype("float32")


def _centres():
    """World coordinates of 64 points that lie in the brain, far from each other."""
    brain = template_on(FMRI_SHAPE[:3], FMRI_AFFINE)
    candidates = nib.affines.apply_affine(FMRI_AFFINE, np.argwhere(brain > 0.5))
    centres = [candidates[len(candidates) // 2]]
    distance = np.full(len(candidates), np.inf)
    while len(centres) < N_MAPS:
        distance = np.minimum(distance, ((candidates - centres[-1]) ** 2).sum(axis=1))
        centres.append(candidates[distance.argmax()])
    return np.array(centres)


def synthetic_fmri(subject):
    """Make the image of one subject.

    Parameters
    ----------
    subject : int
        Which subject, from 0.

    Returns
    -------
    nibabel.Nifti1Image
        Shape (50, 59, 50, 168), float32, repetition time 2 s.
    """
    rng = np.random.default_rng(subject)
    brain = template_on(FMRI_SHAPE[:3], FMRI_AFFINE)
    inside = brain > 0
    n_volumes = FMRI_SHAPE[3]
    courses = gaussian_filter1d(rng.standard_normal((N_MAPS, n_volumes)), sigma=3, axis=1)
    noise = rng.standard_normal((int(inside.sum()), n_volumes), dtype="float32")
    series = 1000 * brain[inside][:, None] + noise
    series += 30 * region_maps(brain, FMRI_AFFINE) @ courses.astype("float32")
    data = np.zeros(FMRI_SHAPE, dtype="float32", order="F")
    data[inside] = series
    img = nib.Nifti1Image(data, FMRI_AFFINE)
    img.header.set_zooms((4, 4, 4, 2))
    img.header.set_xyzt_units("mm", "sec")
    return img


def synthetic_atlas():
    """Make the probabilistic atlas.

    Returns
    -------
    nibabel.Nifti1Image
        Shape (63, 76, 63, 64), float32, voxels of 3 mm.
    """
    brain = template_on(ATLAS_SHAPE, ATLAS_AFFINE)
    data = np.zeros((*ATLAS_SHAPE, N_MAPS), dtype="float32", order="F")
    data[brain > 0] = region_maps(brain, ATLAS_AFFINE)
    return nib.Nifti1Image(data, ATLAS_AFFINE)
