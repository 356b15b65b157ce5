"""The made-up derivatives folder is what nilearn expects of fMRIPrep, traps included."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds_strategy
from nilearn.maskers import NiftiLabelsMasker

from beyond_the_masker.inputs.synthetic_fmriprep import (
    AFFINE,
    FAULTS,
    MNI,
    WRONG_T_R,
    link_fmriprep,
    make_atlas,
    make_fmriprep,
)

N_VOLUMES = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A made-up folder of six subjects."""
    return make_fmriprep(tmp_path_factory.mktemp("derivatives"), 6, N_VOLUMES)


def images_in(folder, space=f"_space-{MNI}"):
    """Return the images of a space by the entities of their runs."""
    end = f"{space}_desc-preproc_bold.nii.gz"
    return {path.name.removesuffix(end): path for path in sorted(folder.rglob(f"*{end}"))}


def test_every_image_has_what_belongs_to_it(folder):
    """A sidecar with the repetition time, which the header has wrong, and a brain mask."""
    images = images_in(folder)
    assert len(images) == 15
    for name, path in images.items():
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["RepetitionTime"] == (0.8 if "acq-fast" in name else 2)
        if not path.exists():
            continue
        img, brain = nib.load(path), nib.load(str(path).replace("preproc_bold", "brain_mask"))
        assert img.shape == (*brain.shape, N_VOLUMES)
        assert img.header.get_zooms()[3] == WRONG_T_R
        np.testing.assert_array_equal(np.asarray(brain.dataobj), img.dataobj[..., 5] != 0)


@pytest.mark.parametrize(("strategy", "n_more"), [("simple", 2), ("scrubbing", 8), ("compcor", 5)])
def test_nilearn_reads_the_confounds(folder, strategy, n_more):
    """Each run has 24 columns of motion, 4 cosines, and those of the strategy."""
    for name, path in images_in(folder).items():
        if name in FAULTS and "sub-06" not in name:
            continue
        confounds, kept = load_confounds_strategy(str(path), strategy)
        assert confounds.shape == (N_VOLUMES, 24 + (1 if "fast" in name else 4) + n_more), name
        assert np.isfinite(confounds).all(axis=None)
        n_first = 2 if "fast" in name else 0
        n_kept = N_VOLUMES if kept is None else len(kept)
        assert 100 < n_kept <= N_VOLUMES - n_first, name


def test_faults(folder):
    """One run has no confounds, of one nothing is left, and one image is not there."""
    images = images_in(folder)
    none, moved, missing = (images[name] for name in FAULTS)
    with pytest.raises(ValueError, match="Could not find associated confound"):
        load_confounds_strategy(str(none), "simple")
    with pytest.warns(RuntimeWarning, match="All volumes were marked as motion outliers"):
        assert len(load_confounds_strategy(str(moved), "scrubbing")[1]) == 0
    assert missing.is_symlink()
    assert not missing.exists()


def test_two_folders_are_the_same_bytes(tmp_path):
    """The same run has the same bytes each time, and a folder without faults has none."""
    first, second = (make_fmriprep(tmp_path / name, 1, 20) for name in "ab")
    files = [path.relative_to(first) for path in sorted(first.rglob("*")) if path.is_file()]
    assert len(files) == 24
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)
    sound = make_fmriprep(tmp_path / "c", 6, 20, faults=False)
    assert all(path.exists() for path in images_in(sound).values())
    assert len([*sound.rglob("*_desc-confounds_*.tsv")]) == len(images_in(sound))
    assert len([*sound.rglob("*_desc-confounds_regressors.tsv")]) == 1


def test_regions_of_each_subject(folder):
    """Images in T1w have aparcaseg's labels on their grid, and one subject lacks one of them."""
    names = pd.read_csv(folder / "desc-aparcaseg_dseg.tsv", sep="\t", index_col="index")
    found = []
    for path in images_in(folder, "_space-T1w").values():
        labels = nib.load(str(path).replace("preproc_bold.", "aparcaseg_dseg."))
        img = nib.load(path)
        assert labels.shape == img.shape[:3]
        np.testing.assert_array_equal(labels.affine, img.affine)
        assert not np.array_equal(img.affine, AFFINE)
        found.append({*np.unique(np.asarray(labels.dataobj)).tolist()} - {0})
    assert found == [{*names.index}, {*names.index} - {17}]


def test_networks_are_found_once_confounds_are_removed(folder, tmp_path):
    """Regions of a network are more similar than others, and cleaning makes it clearer."""
    atlas, image = make_atlas(tmp_path), images_in(folder)["sub-01_ses-1_task-rest_run-1"]
    names = pd.read_csv(atlas.with_name("atlas-Networks_dseg.tsv"), sep="\t").name
    network = names.str.partition("_")[0].to_numpy()
    same = (network[:, None] == network)[np.triu_indices(64, 1)]

    def difference(confounds):
        masker = NiftiLabelsMasker(atlas, standardize="zscore_sample", reports=False)
        series = masker.fit_transform(image, confounds=confounds)
        pairs = np.corrcoef(series, rowvar=False)[np.triu_indices(64, 1)]
        return pairs[same].mean() - pairs[~same].mean()

    confounds, _ = load_confounds_strategy(str(image), "simple")
    assert difference(confounds) > 0.2
    assert difference(confounds) > difference(None)


def test_links_to_one_image(folder, tmp_path):
    """All images are one file, and nilearn finds confounds for each."""
    image = images_in(folder)["sub-01_ses-1_task-rest_run-1"]
    images = images_in(link_fmriprep(tmp_path, image, 3))
    assert [*images] == [f"sub-0{number}_task-rest_run-1" for number in (1, 2, 3)]
    assert {path.resolve() for path in images.values()} == {image.resolve()}
    for path in images.values():
        confounds, _ = load_confounds_strategy(str(path), "compcor")
        assert len(confounds) == N_VOLUMES
