"""A folder of fMRIPrep that is small enough to process in a moment, and its atlas."""

import nibabel as nib
import numpy as np

from beyond_the_masker.inputs.synthetic_fmriprep import (
    MNI,
    TISSUES,
    begin,
    confounds_table,
    make_func,
    write_companions,
)

SHAPE = (6, 5, 4)
AFFINE = np.diag([4.0, 4, 4, 1])
N_VOLUMES = 60
T_R = 2.0
NAMES = ("sub-01_ses-1_task-rest_acq-a", "sub-01_ses-1_task-rest_acq-b", "sub-02_ses-2_task-nback")


def make_confounds(n_volumes=N_VOLUMES, seed=0):
    """Return confounds of noise; the framewise displacement grows to 0.4."""
    rng = np.random.default_rng(seed)
    signals = dict(zip(TISSUES, rng.normal(size=(len(TISSUES), n_volumes)), strict=True))
    table = confounds_table(rng, rng.normal(size=(n_volumes, 6)), signals, T_R)
    steps = np.linspace(0, 0.4, n_volumes)
    steps[0] = np.nan
    return table.assign(framewise_displacement=steps, std_dvars=1.0)


def write_confounds(path, table):
    """Write confounds as fMRIPrep does."""
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")


def make_image(folder, name, space=MNI):
    """Write an image with its sidecar, brain mask and confounds; return its path."""
    start, rng = make_func(folder, name) / name, np.random.default_rng(len(name))
    in_space = f"{start}_space-{space}"
    data = rng.normal(100, 5, (*SHAPE, N_VOLUMES)).astype("float32")
    image = start.with_name(f"{name}_space-{space}_desc-preproc_bold.nii.gz")
    nib.Nifti1Image(data, AFFINE).to_filename(image)
    brain = np.ones(SHAPE, bool)
    brain[0] = False
    write_companions(in_space, T_R, brain, AFFINE)
    write_confounds(f"{start}_desc-confounds_timeseries.tsv", make_confounds(seed=len(name)))
    return image


def make_fmriprep(folder, names=NAMES):
    """Write a folder as fMRIPrep does; return it."""
    folder = begin(folder)
    for name in names:
        make_image(folder, name)
    return folder


def make_labels(path, numbers=(1, 2, 5)):
    """Write an atlas of some labels side by side along the second axis; return its path."""
    data = np.zeros(SHAPE, "int16")
    for place, number in enumerate(numbers):
        data[:, place] = number
    nib.Nifti1Image(data, AFFINE).to_filename(path)
    return path
