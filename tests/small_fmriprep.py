"""A folder of fMRIPrep that is small enough to process in a moment, and its atlas."""

import json

import nibabel as nib
import numpy as np
import pandas as pd

MNI = "MNI152NLin2009cAsym"
SHAPE = (6, 5, 4)
AFFINE = np.diag([4.0, 4, 4, 1])
N_VOLUMES = 60
NAMES = ("sub-01_ses-1_task-rest_acq-a", "sub-01_ses-1_task-rest_acq-b", "sub-02_ses-2_task-nback")


def make_confounds(n_volumes=N_VOLUMES, seed=0):
    """Return confounds as fMRIPrep names them; the first row of derivatives is missing."""
    rng = np.random.default_rng(seed)
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    table = pd.DataFrame(
        {name: rng.normal(size=n_volumes) for name in (*names, "csf", "white_matter")}
    )
    for name in [*table]:
        change = table[name].diff()
        table[f"{name}_derivative1"] = change
        table[f"{name}_power2"] = table[name] ** 2
        table[f"{name}_derivative1_power2"] = change**2
    table["cosine00"] = np.cos(np.pi * (np.arange(n_volumes) + 0.5) / n_volumes)
    table["framewise_displacement"] = np.linspace(0, 0.4, n_volumes)
    table.loc[0, "framewise_displacement"] = np.nan
    table["std_dvars"] = 1.0
    return table


def make_image(folder, name, space=MNI, confounds=True):
    """Write an image with its sidecar, brain mask and confounds; return its path."""
    entities = dict(pair.split("-") for pair in name.split("_"))
    func = folder.joinpath(
        *(f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities), "func"
    )
    func.mkdir(parents=True, exist_ok=True)
    start = func / (f"{name}_space-{space}" if space else name)
    rng = np.random.default_rng(len(name))
    data = rng.normal(100, 5, (*SHAPE, N_VOLUMES)).astype("float32")
    image = func / f"{start.name}_desc-preproc_bold.nii.gz"
    nib.Nifti1Image(data, AFFINE).to_filename(image)
    (func / f"{start.name}_desc-preproc_bold.json").write_text('{"RepetitionTime": 2.0}')
    brain = np.ones(SHAPE, "uint8")
    brain[0] = 0
    nib.Nifti1Image(brain, AFFINE).to_filename(f"{start}_desc-brain_mask.nii.gz")
    if confounds:
        table = make_confounds(N_VOLUMES, len(name))
        table.to_csv(
            func / f"{name}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a"
        )
    return image


def make_fmriprep(folder, names=NAMES):
    """Write a folder as fMRIPrep does; return it."""
    for name in names:
        make_image(folder, name)
    about = {"Name": "made up", "DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]}
    (folder / "dataset_description.json").write_text(json.dumps(about))
    return folder


def make_labels(path, numbers=(1, 2, 5)):
    """Write an atlas of some labels side by side along the second axis; return its path."""
    data = np.zeros(SHAPE, "int16")
    for place, number in enumerate(numbers):
        data[:, place] = number
    nib.Nifti1Image(data, AFFINE).to_filename(path)
    return path
