"""Make a small derivatives folder as fMRIPrep writes it, with what makes real ones difficult.

The images are those of :mod:`beyond_the_masker.inputs.synthetic` on a coarse grid, disturbed by
head motion that the confounds describe. The same run has the same bytes each time.

* Headers have a wrong repetition time; sidecars have the right one.
* The first row of derivatives is ``n/a``, and an older fMRIPrep names its table ``_regressors``.
* One subject has an image in three spaces, another one two acquisitions of one session.
* In one run the top of the brain is cut off, and one subject lacks a region of aparcaseg.
* Faults: no confounds, nothing but motion, and an image that git-annex has not fetched.
"""

import json
import zlib
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter1d

from beyond_the_masker.inputs import synthetic

MNI = "MNI152NLin2009cAsym"
SHAPE = (23, 28, 23)  # voxels of 8 mm
AFFINE = np.array([[-8.0, 0, 0, 87], [0, 8, 0, -123], [0, 0, 8, -69], [0, 0, 0, 1]])
T1W_AFFINE = AFFINE + np.array([[0, 0, 0, 2], [0, 0, 0, -17], [0, 0, 0, 9], [0, 0, 0, 0]])
WRONG_T_R = 1.0  # seconds, in every header
TISSUES = "csf", "white_matter", "global_signal"
HEAD_MM = 50  # radius at which a rotation counts as a displacement (Power et al. 2012)
DESCRIPTION = {
    "Name": "Made-up derivatives",
    "BIDSVersion": "1.4.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.0"}],
}
COMPCOR = {  # first letters of columns: their number and their entry in the table's sidecar
    "a": (5, {"Method": "aCompCor", "Mask": "combined", "Retained": True}),
    "c": (2, {"Method": "aCompCor", "Mask": "CSF", "Retained": True}),
    "w": (2, {"Method": "aCompCor", "Mask": "WM", "Retained": True}),
    "t": (3, {"Method": "tCompCor", "Retained": True}),
}
APARCASEG = {
    **{10: "Left-Thalamus", 11: "Left-Caudate", 12: "Left-Putamen", 17: "Left-Hippocampus"},
    **{49: "Right-Thalamus", 50: "Right-Caudate", 51: "Right-Putamen", 53: "Right-Hippocampus"},
    **{1005: "ctx-lh-cuneus", 1022: "ctx-lh-postcentral"},
    **{2005: "ctx-rh-cuneus", 2022: "ctx-rh-postcentral"},
}


class MadeRun(NamedTuple):
    """What a made-up run is like."""

    name: str  # its entities
    t_r: float = 2.0  # seconds, in the sidecar
    motion: float = 0.1  # mean framewise displacement, in mm
    n_lost: int = 0  # slices at the top that the scanner left out
    lacks: int = 0  # a label of aparcaseg
    spaces: tuple = (MNI,)  # "" is the space of the scanner
    confounds: str = "timeseries"  # suffix of their table; "regressors" before fMRIPrep 20.2
    is_there: bool = True  # otherwise the image is a link of git-annex that leads nowhere


SPECIAL = {
    "sub-01_ses-1_task-rest_run-1": {"spaces": (MNI, "T1w", "")},
    "sub-01_ses-2_task-nback_run-1": {},
    "sub-02_ses-1_task-rest_run-1": {"spaces": (MNI, "T1w"), "lacks": 17},
    "sub-02_ses-3_task-rest_acq-fast_run-1": {"t_r": 0.8},
    "sub-02_ses-3_task-rest_acq-slow_run-1": {},
    "sub-03_ses-1_task-rest_run-1": {"confounds": "regressors"},
    "sub-03_ses-2_task-rest_run-1": {"n_lost": 8},
}
FAULTS = {
    "sub-04_ses-2_task-rest_run-1": {"confounds": ""},
    "sub-05_ses-2_task-rest_run-1": {"motion": 5.0},
    "sub-06_ses-2_task-rest_run-1": {"is_there": False},
}


def make_fmriprep(folder, n_subjects=8, n_volumes=150, *, faults=True):
    """Write a made-up derivatives folder of fMRIPrep; return its path.

    Parameters
    ----------
    folder : str or pathlib.Path
    n_subjects : int
        Each has two sessions with a run at rest; some of them, and a few more, are `SPECIAL`.
    n_volumes : int
        Of each run. Below 100 the confounds leave little of the signal.
    faults : bool
        Make the runs `FAULTS`, which cannot be processed, faulty.
    """
    folder = begin(folder)
    for run in made_runs(n_subjects, faults):
        write_run(folder, run, n_volumes)
    return folder


def link_fmriprep(folder, image, n_images):
    """Write a derivatives folder in which all images are links to one; return its path.

    The image, a ``.nii.gz``, is in one of fMRIPrep's spaces. Its confounds are random.
    """
    folder, img = begin(folder), nib.load(image)
    brain, t_r = np.asarray(img.dataobj[..., 0]) != 0, float(img.header.get_zooms()[3]) or 2.0
    for number in range(1, n_images + 1):
        run = MadeRun(f"sub-{number:02d}_task-rest_run-1", t_r)
        func, rng = make_func(folder, run.name), np.random.default_rng(number)
        start = func / f"{run.name}_space-{MNI}"
        Path(f"{start}_desc-preproc_bold.nii.gz").symlink_to(Path(image).absolute())
        write_companions(start, run.t_r, brain, img.affine)
        motion = head_motion(rng, img.shape[3], run.motion)
        signals = dict(zip(TISSUES, rng.normal(size=(3, len(motion))), strict=True))
        write_confounds(func, run, confounds_table(rng, motion, signals, run.t_r))
    return folder


def begin(folder):
    """Make a folder with what derivatives have at the top; return its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "dataset_description.json", DESCRIPTION)
    write_names(folder / "desc-aparcaseg_dseg.tsv", APARCASEG)
    return folder


def made_runs(n_subjects, faults):
    """Return the runs of some subjects, who move more and more from the first to the last."""
    special = SPECIAL | FAULTS if faults else SPECIAL
    subjects = [f"sub-{number:02d}" for number in range(1, n_subjects + 1)]
    names = {f"{sub}_ses-{ses}_task-rest_run-1" for sub in subjects for ses in (1, 2)}
    names |= {name for name in SPECIAL if name[:6] in subjects}
    motion = dict(zip(subjects, np.linspace(0.08, 0.25, n_subjects), strict=True))
    return [
        MadeRun(name, **{"motion": motion[name[:6]]} | special.get(name, {}))
        for name in sorted(names)
    ]


def write_run(folder, run, n_volumes):
    """Write the files of a run."""
    func, rng = make_func(folder, run.name), np.random.default_rng(zlib.crc32(run.name.encode()))
    motion = head_motion(rng, n_volumes, run.motion)
    data = moving_brain(rng, motion, run.n_lost)
    for space in run.spaces:
        write_space(func, run, space, data)
    if run.confounds:
        write_confounds(func, run, confounds_table(rng, motion, signals_of(data), run.t_r))


def make_func(folder, name):
    """Make the folder ``func`` of a run's subject and session, if there is one; return it."""
    above = [entity for entity in name.split("_") if entity[:4] in ("sub-", "ses-")]
    func = folder.joinpath(*above, "func")
    func.mkdir(parents=True, exist_ok=True)
    return func


def head_motion(rng, n_volumes, mean_fd):
    """Return three translations in mm and three rotations in radians for each volume.

    A random walk, with jumps, more of them the more the head moves. Steps in six directions add up
    to the framewise displacement, hence the factors.
    """
    steps = rng.normal(size=(n_volumes, 6))
    steps[rng.random(n_volumes) < mean_fd / 3] *= 5
    steps *= mean_fd / np.abs(steps).sum(axis=1).mean()
    return np.cumsum(steps, axis=0) / [1, 1, 1, HEAD_MM, HEAD_MM, HEAD_MM]


def moving_brain(rng, motion, n_lost):
    """Return the values of an image whose brightness follows head motion, 0 outside the brain."""
    shape = (*SHAPE, len(motion))
    data = np.asanyarray(synthetic.synthetic_fmri(rng.integers(2**32), shape, AFFINE).dataobj)
    data[:, :, SHAPE[2] - n_lost :] = 0
    weights = rng.normal(scale=0.01, size=6) * [1, 1, 1, HEAD_MM, HEAD_MM, HEAD_MM]
    data *= (1 + (motion - motion.mean(axis=0)) @ weights).astype("float32")
    return data


def write_space(func, run, space, data):
    """Write a run's image in a space, and what belongs to it; in T1w also its regions."""
    start = func / (f"{run.name}_space-{space}" if space else run.name)
    affine = AFFINE if space == MNI else T1W_AFFINE
    path = Path(f"{start}_desc-preproc_bold.nii.gz")
    if run.is_there:
        img = nib.Nifti1Image(data, affine)
        img.header.set_xyzt_units("mm", "sec")
        img.header.set_zooms((*img.header.get_zooms()[:3], WRONG_T_R))
        img.to_filename(path)
    else:
        path.symlink_to("../../../.git/annex/objects/not-fetched.nii.gz")
    write_companions(start, run.t_r, data[..., 0] != 0, affine)
    if space == "T1w":
        regions = np.array([0, *APARCASEG], "int16")
        regions[regions == run.lacks] = 0
        nearest = synthetic.synthetic_labels(len(APARCASEG), SHAPE, AFFINE)
        regions = nib.Nifti1Image(regions[np.asarray(nearest.dataobj)], affine)
        regions.to_filename(f"{start}_desc-aparcaseg_dseg.nii.gz")


def write_companions(start, t_r, brain, affine):
    """Write the sidecar and the brain mask of an image; `start` is what their names begin with."""
    write_json(Path(f"{start}_desc-preproc_bold.json"), {"RepetitionTime": t_r})
    brain = nib.Nifti1Image(brain.astype("uint8"), affine)
    brain.to_filename(f"{start}_desc-brain_mask.nii.gz")


def write_confounds(func, run, table):
    """Write a table of confounds, and its sidecar."""
    path = func / f"{run.name}_desc-confounds_{run.confounds}.tsv"
    table.to_csv(path, sep="\t", na_rep="n/a", index=False)
    about = {
        f"{prefix}_comp_cor_{i:02d}": entry
        for prefix, (number, entry) in COMPCOR.items()
        for i in range(number)
    }
    write_json(path.with_suffix(".json"), about)


def signals_of(data):
    """Return the mean signals of an image: of dark and of bright voxels, and of the brain."""
    series = data[data[..., 0] != 0]
    dark, bright = np.quantile(series[:, 0], [0.1, 0.7])
    parts = series[series[:, 0] < dark], series[series[:, 0] > bright], series
    return {name: part.mean(axis=0) for name, part in zip(TISSUES, parts, strict=True)}


def confounds_table(rng, motion, signals, t_r):
    """Return the confounds of an image in the columns of fMRIPrep; some are noise."""
    directions = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    table = with_derivatives(signals | dict(zip(directions, motion.T, strict=True)))
    steps = np.abs(np.diff(motion, axis=0, prepend=np.nan)) * np.repeat([1, HEAD_MM], 3)
    table["framewise_displacement"] = steps.sum(axis=1)
    table["std_dvars"] = 1 + np.diff(signals["global_signal"], prepend=np.nan) / 20
    for prefix, (number, _) in COMPCOR.items():
        noise = gaussian_filter1d(rng.normal(size=(number, len(motion))), 2)
        table |= {f"{prefix}_comp_cor_{i:02d}": values for i, values in enumerate(noise)}
    table |= slow_cosines(len(motion), t_r)
    for i in range(2 if t_r < 1 else 0):  # the shorter, the longer it takes to a steady state
        table[f"non_steady_state_outlier{i:02d}"] = (np.arange(len(motion)) == i).astype(int)
    return pd.DataFrame(table)


def with_derivatives(signals):
    """Return signals, their derivatives, and the squares of both."""
    table = {}
    for name, values in signals.items():
        change = np.diff(values, prepend=np.nan)
        table |= {name: values, f"{name}_derivative1": change}
        table |= {f"{name}_power2": values**2, f"{name}_derivative1_power2": change**2}
    return table


def slow_cosines(n_volumes, t_r):
    """Return the cosines of periods down to 128 s."""
    phase = np.pi * (np.arange(n_volumes) + 0.5) / n_volumes
    n_cosines = int(2 * n_volumes * t_r / 128)
    return {f"cosine{i:02d}": np.cos((i + 1) * phase) for i in range(n_cosines)}


def make_atlas(folder):
    """Write a label atlas of 64 regions in seven networks, and its lookup table; return its path.

    A voxel belongs to the map of :mod:`beyond_the_masker.inputs.synthetic` with the largest weight.
    Its grid is finer than that of the images.
    """
    shape, affine = synthetic.FMRI_SHAPE[:3], synthetic.FMRI_AFFINE
    brain = synthetic.template_on(shape, affine)
    maps = synthetic.region_maps(brain, affine)
    labels = np.zeros(shape, "int16")
    labels[brain > 0] = np.where(maps.any(axis=1), maps.argmax(axis=1) + 1, 0)
    path = Path(folder, "atlas-Networks_dseg.nii.gz")
    nib.Nifti1Image(labels, affine).to_filename(path)
    numbers = [divmod(i, synthetic.N_NETWORKS) for i in range(synthetic.N_MAPS)]
    names = [f"network{network + 1}_area{area + 1}" for area, network in numbers]
    write_names(path.with_name("atlas-Networks_dseg.tsv"), dict(enumerate(names, start=1)))
    return path


def write_names(path, names):
    """Write the lookup table of a label image."""
    pd.DataFrame(names.items(), columns=["index", "name"]).to_csv(path, sep="\t", index=False)


def write_json(path, content):
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=1))
