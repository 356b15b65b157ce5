"""A study of fMRIPrep's images: results, errors at once and in rows, confounds, the plan."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds, load_confounds_strategy
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiSpheresMasker
from sklearn import clone

from beyond_the_masker import fmriprep_study
from beyond_the_masker.inputs import synthetic, synthetic_fmriprep
from beyond_the_masker.studies import fmriprep
from beyond_the_masker.studies.confounds import read_confounds, read_strategy
from beyond_the_masker.studies.fmriprep import DEFAULTS, space_of
from beyond_the_masker.studies.fmriprep_plan import describe, in_units, plan_study
from beyond_the_masker.studies.tables import read_table
from small_fmriprep import (
    AFFINE,
    MNI,
    N_VOLUMES,
    NAMES,
    make_confounds,
    make_fmriprep,
    make_image,
    make_labels,
    write_confounds,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small folder of fMRIPrep, to read."""
    return make_fmriprep(tmp_path_factory.mktemp("fmriprep"))


@pytest.fixture
def folder(made, tmp_path):
    """A small folder of fMRIPrep, to change."""
    return shutil.copytree(made, tmp_path / "fmriprep")


@pytest.fixture
def atlas(tmp_path):
    """An atlas of three labels, two of which have names."""
    (tmp_path / "atlas.tsv").write_text("index\tname\n1\tone\n2\ttwo\n")
    return make_labels(tmp_path / "atlas.nii.gz")


def one_image(folder):
    """Return the first image, and what its files' names begin with."""
    image = folder / f"sub-01/ses-1/func/{NAMES[0]}_space-{MNI}_desc-preproc_bold.nii.gz"
    return image, image.parent / NAMES[0]


def about_of(path):
    """Return the record of a table of series."""
    return json.loads(Path(path).with_suffix(".json").read_text())


# -- Results -----------------------------------------------------------------------------------


def test_series_are_those_of_nilearn(folder, atlas, tmp_path):
    """Names keep all entities; values are nilearn's, bit for bit; a second run skips all."""
    out = tmp_path / "out"
    table = fmriprep_study(folder, {"A": str(atlas)}, out)
    assert [*table.status] == ["done"] * 3, table.reason
    assert [path.relative_to(out).as_posix() for path in sorted(out.rglob("*_timeseries.tsv"))] == [
        f"sub-01/ses-1/func/{NAMES[0]}_space-{MNI}_atlas-A_desc-simple_timeseries.tsv",
        f"sub-01/ses-1/func/{NAMES[1]}_space-{MNI}_atlas-A_desc-simple_timeseries.tsv",
        f"sub-02/ses-2/func/{NAMES[2]}_space-{MNI}_atlas-A_desc-simple_timeseries.tsv",
    ]
    assert (out / "atlas-A_dseg.tsv").read_text() == "index\tname\n1\tone\n2\ttwo\n5\tregion_5\n"
    for row in table.itertuples():
        series = read_table(row.file)
        assert [*series] == ["one", "two", "region_5"]
        confounds, kept = load_confounds_strategy(row.image, "simple")
        mask = row.image.replace("desc-preproc_bold", "desc-brain_mask")
        masker = NiftiLabelsMasker(atlas, mask_img=mask, t_r=2.0, reports=False, **DEFAULTS)
        expected = masker.fit_transform(row.image, confounds=confounds, sample_mask=kept)
        np.testing.assert_array_equal(series, expected)
        about = about_of(row.file)
        assert about["RepetitionTime"] == 2.0
        assert row.mean_fd == pytest.approx(0.4 * (N_VOLUMES / 2) / (N_VOLUMES - 1))
    again = fmriprep_study(folder, {"A": str(atlas)}, out)
    assert set(again.status) == {"skipped"}


BAND = {"low_pass": 0.1, "high_pass": 0.01, "smoothing_fwhm": 10}
MOTION = {"six": {"strategy": ["motion"], "motion": "basic"}}
HOW = {
    "simple": ("simple", {}),
    "scrubbing": ({"strict": {"denoise_strategy": "scrubbing", "fd_threshold": 0.3}}, {}),
    "compcor": ("compcor", {"standardize": "psc", "detrend": False}),
    "band": (MOTION, BAND),
    "raw": (None, {"standardize": None, "detrend": False}),
}


@pytest.mark.extensive
@pytest.mark.parametrize(("strategy", "parameters"), HOW.values(), ids=HOW)
def test_every_strategy_is_that_of_nilearn(tmp_path, strategy, parameters):
    """Labels, maps and spheres have the values of nilearn's maskers and confounds, bit for bit.

    Maps are rounded differently, which counts more in the little that confounds leave.
    """
    folder = synthetic_fmriprep.make_fmriprep(tmp_path / "fmriprep", 1)
    labels = synthetic_fmriprep.make_atlas(tmp_path)
    maps = synthetic.synthetic_atlas((23, 28, 23), synthetic_fmriprep.AFFINE)
    maps.to_filename(tmp_path / "maps.nii.gz")
    atlases = {
        "labels": NiftiLabelsMasker(labels),
        "maps": NiftiMapsMasker(tmp_path / "maps.nii.gz"),
    }
    atlases["spheres"] = NiftiSpheresMasker([(0, -20, 20), (20, -60, 10)], radius=15)
    how = {"strategy": strategy, "masker": parameters, "min_coverage": 0}
    table = fmriprep_study(folder, atlases, tmp_path / "out", filters={"space": MNI}, **how)
    assert set(table.status) == {"done"}, table.reason
    arguments = {} if strategy is None else read_strategy(strategy).arguments
    load = load_confounds_strategy if "denoise_strategy" in arguments else load_confounds
    for row in table.itertuples():
        confounds, kept = (None, None) if strategy is None else load(row.image, **arguments)
        mask = row.image.replace("desc-preproc_bold", "desc-brain_mask")
        t_r = about_of(row.file)["RepetitionTime"]
        masker = clone(atlases[row.atlas]).set_params(mask_img=mask, t_r=t_r, reports=False)
        masker.set_params(**DEFAULTS | parameters)
        expected = masker.fit_transform(row.image, confounds=confounds, sample_mask=kept)
        found = read_table(row.file).dropna(axis=1)
        bound = 1e-3 if arguments else 1e-5
        bound *= np.abs(expected).max() if row.atlas == "maps" else 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.extensive
def test_what_changed_is_done_again(folder, atlas, tmp_path):
    """A sidecar, a brain mask, confounds or an option each redo what depends on them."""
    out, (image, start) = tmp_path / "out", one_image(folder)
    fmriprep_study(folder, {"A": atlas}, out)

    def done(**how):
        return [*fmriprep_study(folder, {"A": atlas}, out, **how).status].count("done")

    sidecar = image.with_name(image.name.replace(".nii.gz", ".json"))
    sidecar.write_text('{"RepetitionTime": 2.5}')
    assert done() == 1
    mask = image.with_name(image.name.replace("desc-preproc_bold", "desc-brain_mask"))
    nib.Nifti1Image(np.ones(nib.load(mask).shape, "uint8"), AFFINE).to_filename(mask)
    assert done() == 1
    table = make_confounds(seed=99)
    write_confounds(f"{start}_desc-confounds_timeseries.tsv", table)
    assert done() == 1
    assert done(masker={"detrend": False}) == 3
    assert done(masker={"detrend": False}, strategy=None) == 3
    assert done(masker={"detrend": False}, strategy=None) == 0


# -- Errors at once ----------------------------------------------------------------------------

AT_ONCE = {
    "filter": ({"filters": {"task": "x"}}, r"has task-x\. There is task-nback, task-rest\."),
    "participant": ({"participants": ["03"]}, r"no image of sub-03\. There is sub-01, sub-02\."),
    "atlas_name": ({"atlases": {"a_b": ""}}, "The name of an atlas is 'a_b', but names of BIDS"),
    "no_atlas": ({"atlases": {}}, "Give at least one atlas"),
    "atlases": ({"atlases": "atlas.nii"}, "atlases is 'atlas.nii', which is no dict"),
    "filters": ({"filters": [("task", "rest")]}, "filters is .* which is no dict"),
    "brain_mask": ({"brain_mask": "mask.nii"}, "brain_mask is 'mask.nii', which is no bool"),
    "pattern": ({"atlases": {"A": "desc-x_dseg.nii.gz"}}, "neither a file nor a pattern"),
    "braces": ({"atlases": {"A": "{sub}.nii.gz"}}, "neither a file nor a pattern"),
    "brace": ({"atlases": {"A": "{sub.nii"}}, "The path .*sub.nii cannot be used: expected '}'"),
    "strategy": ({"strategy": "simpel"}, r"no strategy 'simpel'; there are simple, .* None \(on"),
    "kind_of_strategy": ({"strategy": ["motion"]}, "strategy is .*; it needs the name of one"),
    "two_strategies": ({"strategy": {"a": {}, "b": {}}}, "strategy is .*; it needs the name"),
    "no_strategy": ({"strategy": {"a": {"strategy": []}}}, "a is empty. To remove no confounds"),
    "name_of_strategy": ({"strategy": {"a b": {}}}, "The name of the strategy is 'a b'"),
    "argument": ({"strategy": {"a": {"motoin": 1}}}, "a cannot be used.*argument 'motoin'"),
    "component": ({"strategy": {"a": {"strategy": ["x"]}}}, "strategy a cannot be used"),
    "value": ({"strategy": {"a": {"motion": "x"}}}, "strategy a cannot be used"),
    "compcor": ({"strategy": {"a": {"strategy": ["compcor"]}}}, "`high_pass` must be included"),
    "parameter": ({"masker": {"radius": 3}}, r"masker has \['radius'\]; it may have standardize"),
    "standardize": ({"masker": {"standardize": "x"}}, "masker=.* cannot be used"),
    "band": ({"masker": {"low_pass": 0.1, "high_pass": 0.2}}, "masker=.* cannot be used"),
    "smoothing": ({"masker": {"smoothing_fwhm": -3}}, "smoothing_fwhm is -3; it is a size"),
    "part": ({"part": (3, 2)}, r"part is \(3, 2\)"),
    "min_coverage": ({"min_coverage": 2}, "min_coverage is 2"),
}


@pytest.mark.parametrize(("change", "message"), AT_ONCE.values(), ids=AT_ONCE)
def test_errors_at_once(made, atlas, tmp_path, change, message):
    """What is wrong for all images is refused before any is processed."""
    change = {"atlases": {"A": atlas}} | change
    with pytest.raises(ValueError, match=message):
        fmriprep_study(made, change.pop("atlases"), tmp_path / "out", **change)
    assert not [*tmp_path.glob("out/sub-*")]


def test_files_at_once(folder, atlas, tmp_path):
    """An unfit folder of results is refused, and an atlas that is missing or cut off."""
    with pytest.raises(ValueError, match="is the folder of the images"):
        fmriprep_study(folder, {"A": atlas}, folder)
    with pytest.raises(OSError, match=r"no\.nii"):
        fmriprep_study(folder, {"A": tmp_path / "no.nii"}, tmp_path / "out")
    atlas.write_bytes(atlas.read_bytes()[:-9])
    with pytest.raises(OSError, match=r"The atlas A .*atlas\.nii\.gz"):
        fmriprep_study(folder, {"A": atlas}, tmp_path / "out")


def test_two_results_with_one_name_at_once(folder, atlas, tmp_path):
    """Images that differ in nothing that a result keeps are refused, and named."""
    image, _ = one_image(folder)
    shutil.copy(image, image.with_name(image.name.removesuffix(".gz")))
    message = re.escape(f"{image.name} would both become")
    with pytest.raises(ValueError, match=message):
        fmriprep_study(folder, {"A": atlas}, tmp_path / "out")


# -- Errors in rows ----------------------------------------------------------------------------


def reason_of_one(folder, atlas, out, **how):
    """Return why the first image fails; the others must be done."""
    table = fmriprep_study(folder, {"A": atlas}, out, **how)
    assert table.status[0] == "failed"
    assert set(table.status[1:]) <= {"done", "skipped"}, table.reason
    return table.reason[0]


def test_confounds_are_missing_or_twice(folder, atlas, tmp_path):
    """An image fails without confounds, with two tables, or if it or a table is a dead link."""
    image, start = one_image(folder)
    table = start.with_name(f"{start.name}_desc-confounds_timeseries.tsv")
    shutil.copy(table, start.with_name(f"{start.name}_desc-confounds_regressors.tsv"))
    reason = reason_of_one(folder, atlas, tmp_path / "out")
    assert "It has 2 tables of confounds: " in reason
    table.unlink()
    start.with_name(f"{start.name}_desc-confounds_regressors.tsv").unlink()
    reason = reason_of_one(folder, atlas, tmp_path / "out")
    assert "It has no confounds: no desc-confounds_timeseries.tsv" in reason
    table.symlink_to("not_here")
    image.unlink()
    image.symlink_to("../.git/annex/objects/x")
    reason = reason_of_one(folder, atlas, tmp_path / "out")
    assert "It is a link to a file that is not here: get it with datalad get." in reason
    assert f"{table.name} is a link to a file" in reason


def test_confounds_of_a_run_with_more_entities(folder, atlas, tmp_path):
    """Runs with and without acq, of one task, each have their own confounds."""
    image = make_image(folder, "sub-01_ses-1_task-rest")
    table = make_confounds().assign(framewise_displacement=0.25)
    write_confounds(image.parent / "sub-01_ses-1_task-rest_desc-confounds_timeseries.tsv", table)
    with pytest.raises(ValueError, match="more than one confound file"):
        load_confounds_strategy(str(one_image(folder)[0]))
    rows = fmriprep_study(folder, {"A": atlas}, tmp_path / "out", participants="01")
    assert set(rows.status) == {"done"}
    assert [*rows.mean_fd.round(2)] == [0.2, 0.2, 0.25]


def test_columns_are_missing(folder, atlas, tmp_path):
    """A table without columns of the strategy fails, or with values that nobody can replace."""
    _, start = one_image(folder)
    path, whole = f"{start}_desc-confounds_timeseries.tsv", make_confounds(150)
    out = tmp_path / "out"
    write_confounds(path, whole.drop(columns=["csf", "white_matter"]))
    assert "timeseries.tsv lacks what the strategy needs" in reason_of_one(folder, atlas, out)
    write_confounds(path, whole.drop(columns="framewise_displacement"))
    reason = reason_of_one(folder, atlas, out, strategy="scrubbing")
    assert "lacks what the strategy needs. 'framewise_displacement'" in reason
    write_confounds(path, whole.drop(columns=[name for name in whole if "cosine" in name]))
    assert "needs: cosines, to filter drifts" in reason_of_one(folder, atlas, out)
    write_confounds(path, whole.assign(csf="x"))
    assert "timeseries.tsv lacks what the strategy needs" in reason_of_one(folder, atlas, out)
    whole.loc[7, "csf"] = np.nan
    write_confounds(path, whole)
    assert "has n/a after the first row in csf. Choose" in reason_of_one(folder, atlas, out)


def test_all_volumes_are_scrubbed(folder, atlas, tmp_path):
    """An image fails of which nothing is left."""
    path = f"{one_image(folder)[1]}_desc-confounds_timeseries.tsv"
    table = make_confounds().assign(framewise_displacement=5.0)
    write_confounds(path, table)
    reason = reason_of_one(folder, atlas, tmp_path / "out", strategy="scrubbing")
    assert "keeps none of 60 volumes: all are scrubbed" in reason


def test_brain_mask_is_missing(folder, atlas, tmp_path):
    """An image without brain mask fails, unless none is wanted."""
    image, _ = one_image(folder)
    image.with_name(image.name.replace("desc-preproc_bold", "desc-brain_mask")).unlink()
    reason = reason_of_one(folder, atlas, tmp_path / "out")
    assert "It has no brain mask desc-brain_mask.nii.gz" in reason
    table = fmriprep_study(folder, {"A": atlas}, tmp_path / "out", brain_mask=False)
    assert table.status[0] == "done"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "A filter needs RepetitionTime, and .*_bold.json has none"),
        ('{"RepetitionTime": 2000}', "has the RepetitionTime 2000; it has to be in seconds"),
        ('{"RepetitionTime": "2"}', "has the RepetitionTime '2'; it has to be in seconds"),
        ('{"RepetitionTime": true}', "has the RepetitionTime True; it has to be in seconds"),
        ("{", "_bold.json is no JSON file"),
        ("[]", "_bold.json has no names and values, but a list"),
        (None, "A filter needs RepetitionTime, and there is no sidecar"),
    ],
)
def test_repetition_time_is_missing(folder, atlas, tmp_path, text, reason):
    """With a filter an image needs a sidecar with the repetition time; its header is not asked."""
    image, _ = one_image(folder)
    sidecar = image.with_name(image.name.replace(".nii.gz", ".json"))
    sidecar.unlink() if text is None else sidecar.write_text(text)
    how = {"masker": {"high_pass": 0.01}, "strategy": None}
    assert re.search(reason, reason_of_one(folder, atlas, tmp_path / "out", **how))


def test_repetition_time_of_another_sidecar(folder, atlas, tmp_path):
    """The closest sidecar that has the repetition time counts, for all spaces or subjects."""
    image, start = one_image(folder)
    image.with_name(image.name.replace(".nii.gz", ".json")).write_text('{"SkullStripped": false}')
    (folder / "task-nback_bold.json").write_text('{"RepetitionTime": 3}')
    sidecars = folder / "task-rest_bold.json", folder / "sub-01/sub-01_task-rest_bold.json"
    for seconds, sidecar in enumerate((*sidecars, Path(f"{start}_bold.json")), 1):
        sidecar.write_text(f'{{"RepetitionTime": {seconds}}}')
        table = fmriprep_study(folder, {"A": atlas}, tmp_path / "out", filters={"acq": "a"})
        assert about_of(table.file[0])["RepetitionTime"] == seconds


def test_space_of_the_atlas(folder, atlas, tmp_path):
    """An atlas of another space than the image's fails alone; it is known by its name."""
    make_image(folder, NAMES[0], "T1w")
    named = atlas.rename(tmp_path / f"tpl-{MNI}_atlas-A_dseg.nii.gz")
    spheres = NiftiSpheresMasker([(8, 8, 8)], radius=5)
    table = fmriprep_study(folder, {"A": named, "S": spheres}, tmp_path / "out")
    failed = table[table.status == "failed"]
    assert [*failed.atlas] == ["A"]
    assert f"The atlas A is in space {MNI}, but the image in space T1w." in failed.reason.item()
    assert len(table) == 8


# -- Atlases of each subject -------------------------------------------------------------------


def test_parts_are_of_images(folder, atlas, tmp_path, monkeypatch):
    """An image is in one part with all its atlases, and only there its files are found."""
    found, find_run = [], fmriprep.find_run
    spy = lambda study, image: found.append(str(image)) or find_run(study, image)  # noqa: E731
    monkeypatch.setattr(fmriprep, "find_run", spy)
    unfit = atlas.rename(atlas.with_name("space-T1w_dseg.nii.gz"))
    shutil.copy(unfit, atlas)
    atlases, out = {"A": atlas, "B": unfit}, tmp_path / "out"
    first, second = (fmriprep_study(folder, atlases, out, part=(k, 2)) for k in (1, 2))
    assert [*first.atlas] == ["A", "B"] * first.image.nunique()
    assert sorted(found) == sorted([*first.image.unique(), *second.image.unique()])
    assert {*first.status} == {*second.status} == {"done", "failed"}


@pytest.mark.parametrize(
    "pattern", [f"space-{MNI}_desc-aseg_dseg.nii.gz", "parcels/sub-{sub}_dseg.nii.gz"]
)
def test_atlases_of_each_subject(folder, tmp_path, pattern, monkeypatch):
    """Every file has the regions of all subjects, with names from the table above them."""
    monkeypatch.chdir(tmp_path)
    (folder / "desc-aseg_dseg.tsv").write_text("index\tname\n1\tone\n7\tseven\n")
    (tmp_path / "parcels").mkdir()
    for sub, name, labels in (("01", NAMES[0], (1, 2)), ("02", NAMES[2], (2, 7))):
        if "{" in pattern:
            make_labels(tmp_path / f"parcels/sub-{sub}_dseg.nii.gz", labels)
        else:
            func = next(folder.glob(f"sub-{sub}/ses-*/func"))
            make_labels(func / f"{name}_{pattern}", labels)
    table = fmriprep_study(folder, {"own": pattern}, tmp_path / "out")
    expected = (
        ["region_1", "region_2", "region_7"] if "{" in pattern else ["one", "region_2", "seven"]
    )
    by_image = table.set_index(table.image.str.extract(".*/(sub-.*)_space")[0])
    first, last = (read_table(by_image.file[name]) for name in (NAMES[0], NAMES[2]))
    assert [*first] == [*last] == expected
    assert first[expected[2]].isna().all()
    assert last[expected[0]].isna().all()
    if "{" not in pattern:  # of a run that has none
        assert f"It has no atlas {pattern}." in by_image.reason[NAMES[1]]


def test_a_damaged_atlas_of_a_subject(folder, tmp_path):
    """It stops its own subject, not the study."""
    for sub in ("01", "02"):
        path = make_labels(tmp_path / f"sub-{sub}_dseg.nii.gz")
    path.write_bytes(path.read_bytes()[:-9])
    table = fmriprep_study(
        folder, {"own": str(tmp_path / "sub-{sub}_dseg.nii.gz")}, tmp_path / "out"
    )
    assert [*table.status] == ["done", "done", "failed"]
    assert path.name in table.reason[2]


# -- Confounds ---------------------------------------------------------------------------------


def test_strategies():
    """A strategy is one of nilearn's, arguments under a name, or None."""
    assert read_strategy(None)[:3] == ("", None, "preproc")
    assert read_strategy("scrubbing")[:2] == ("scrubbing", {"denoise_strategy": "scrubbing"})
    assert read_strategy("ica_aroma")[::2][:2] == ("icaaroma", "smoothAROMAnonaggr")
    assert read_strategy({"m": {"strategy": ["motion"]}}).image == "preproc"
    parts = {"strategy": ["ica_aroma"], "ica_aroma": "basic"}
    assert read_strategy({"m": parts}).image == "preproc"
    tedana = read_strategy({"m": {"strategy": ["tedana"]}})
    assert (tedana.image, [*tedana.tables]) == ("optcom", ["mixing", "metrics"])


ARGUMENTS = {
    "preset": ({"denoise_strategy": "scrubbing", "fd_threshold": 0.2}, load_confounds_strategy),
    "own": ({"strategy": ["motion", "high_pass"], "motion": "derivatives"}, load_confounds),
}


@pytest.mark.parametrize(("arguments", "function"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_confounds_are_those_of_nilearn(made, arguments, function):
    """Confounds are loaded as by nilearn, also for an image without compression."""
    image, start = one_image(made)
    tables = {"confounds": start.with_name(f"{start.name}_desc-confounds_timeseries.tsv")}
    found = read_confounds(image.with_suffix(""), tables, arguments, 2.0)
    confounds, sample_mask = function(str(image), **arguments)
    pd.testing.assert_frame_equal(found.table, confounds)
    np.testing.assert_array_equal(found.sample_mask, sample_mask)
    fd = make_confounds().framewise_displacement.to_numpy()
    kept = slice(None) if sample_mask is None else sample_mask
    assert found.mean_fd == pytest.approx(np.nanmean(fd[kept]))


def test_components_of_tedana(folder, atlas, tmp_path):
    """For tedana, the optimally combined images are found, and the two tables that go with them."""
    image, start = one_image(folder)
    image.rename(image.with_name(image.name.replace("preproc", "optcom")))
    sidecar = image.with_name(image.name.replace(".nii.gz", ".json"))
    sidecar.rename(image.with_name(sidecar.name.replace("preproc", "optcom")))
    names = [f"ICA_{i:02}" for i in range(4)]
    mixing = pd.DataFrame(np.random.default_rng(0).normal(size=(N_VOLUMES, 4)), columns=names)
    mixing.to_csv(f"{start}_desc-ICA_mixing.tsv", sep="\t", index=False)
    kinds = ["accepted", "rejected", "rejected", "ignored"]
    metrics = pd.DataFrame({"Component": names, "classification": kinds})
    metrics.to_csv(f"{start}_desc-tedana_metrics.tsv", sep="\t", index=False)
    how = {"strategy": {"ica": {"strategy": ["tedana"]}}, "brain_mask": False}
    table = fmriprep_study(folder, {"A": atlas}, tmp_path / "out", **how)
    assert [*table.confounds] == [2], table.reason
    (start.parent / f"{start.name}_desc-ICA_mixing.tsv").unlink()
    table = fmriprep_study(folder, {"A": atlas}, tmp_path / "out", **how)
    assert "It has no confounds: no desc-ICA_mixing.tsv" in table.reason[0]


@pytest.mark.parametrize(
    ("path", "space"),
    [
        ("x/tpl-MNI_atlas-A_dseg.nii.gz", "MNI"),
        ("x/sub-1/func/sub-1_space-T1w_dseg.nii", "T1w"),
        ("x/sub-1/anat/sub-1_desc-aseg_dseg.nii.gz", "T1w"),
        ("x/sub-1/func/sub-1_task-a_desc-aseg_dseg.nii.gz", ""),
        ("x/sub-1_dseg.nii.gz", None),
        ("x/atlas.nii.gz", None),
        ("", None),
    ],
)
def test_space_by_name(path, space):
    """The space of an atlas is known by its name, if that says anything of it."""
    assert space_of(path) == space


def test_without_confounds(folder, tmp_path):
    """Without a strategy nothing is removed; the displacement is known if there is a table."""
    image, start = one_image(folder)
    tables = {"confounds": start.with_name(f"{start.name}_desc-confounds_timeseries.tsv")}
    found = read_confounds(image, tables, None)
    assert found[:2] == (None, None)
    assert found.mean_fd > 0
    assert math.isnan(read_confounds(image, {}, None).mean_fd)
    pd.DataFrame({"csf": [1.0]}).to_csv(tables["confounds"], sep="\t")
    assert math.isnan(read_confounds(image, tables, None).mean_fd)


# -- The plan ----------------------------------------------------------------------------------


def test_plan(folder, atlas, tmp_path):
    """The plan counts what there is, says what is missing, and writes nothing."""
    image, start = one_image(folder)
    start.with_name(f"{start.name}_desc-confounds_timeseries.tsv").unlink()
    plan = plan_study(folder, {"A": atlas}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [*plan.table["sub"]] == ["01", "01", "02"]
    assert set(plan.table.volumes) == {N_VOLUMES}
    assert plan.table.mib[0] == pytest.approx(6 * 5 * 4 * N_VOLUMES * 4 / 2**20)
    assert plan.n_regions == 3
    assert plan.seconds > 0
    assert 100 < plan.worker_mib < 400
    text = describe(plan, "run it", 2)
    assert f"3 images of {folder}" in text
    assert "\n  acq   a: 1, b: 1, none: 1\n" in text
    assert "\n  task  nback: 1, rest: 2\n" in text
    assert "1 image with problems:\n  It has no confounds" in text
    assert f"    {image.relative_to(folder)}\n" in text
    assert "time with 2 workers: at least " in text
    assert "#SBATCH --array=1-1\n" in text


def test_plan_of_images_that_cannot_be_read(folder, atlas, tmp_path):
    """Images that are links or damaged are listed with the others."""
    image, _ = one_image(folder)
    content = image.read_bytes()
    image.write_bytes(content[:500])
    plan = plan_study(folder, {"A": atlas}, tmp_path / "out", masker={"smoothing_fwhm": 5})
    assert "preproc_bold.nii.gz is" in plan.table.missing[0]
    for path in folder.rglob("*_bold.nii.gz"):
        path.unlink()
        path.symlink_to("nowhere")
    plan = plan_study(folder, {"A": atlas}, tmp_path / "out")
    assert plan.table.missing.str.contains("get it with datalad get").all()
    assert plan.seconds == 0
    text = describe(plan, "x")
    assert "3 images with problems" in text
    assert text.endswith("No image can be read.")


def test_memory_of_the_plan(folder, atlas, tmp_path):
    """Memory grows with the series, and with maps on the grid of the image."""
    plan = plan_study(folder, {"A": atlas}, tmp_path / "out")
    maps = np.random.default_rng(0).random((6, 5, 4, 200), "float32")
    nib.Nifti1Image(maps, AFFINE).to_filename(tmp_path / "maps.nii")
    more = plan_study(folder, {"A": atlas, "M": tmp_path / "maps.nii"}, tmp_path / "out")
    assert more.n_regions == plan.n_regions + 200
    expected = 4 * 200 * (7 * N_VOLUMES + 10 * 6 * 5 * 4) / 2**20
    assert more.worker_mib - plan.worker_mib == pytest.approx(expected)


def test_script_of_slurm(folder, atlas, tmp_path):
    """The script is an array of tasks of half an hour, up to a thousand, that bash can read."""
    plan = plan_study(folder, {"A": atlas}, tmp_path / "out")
    script = plan.script("python -m x --atlas 'a b'")
    assert script.startswith("#!/bin/bash\n#SBATCH")
    assert script.endswith(
        "python -m x --atlas 'a b' \\\n"
        '    --jobs 1 --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"\n'
    )
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)

    table = pd.concat([plan.table] * 1000).assign(seconds=7)
    assert "--array=1-12\n" in plan._replace(table=table).script("x")
    assert "--time=93\n" in plan._replace(table=table).script("x")
    assert "--array=1-1000\n" in plan._replace(table=table.assign(seconds=3600)).script("x")


def test_units_of_time():
    """Seconds become minutes and hours where they are many."""
    assert [*map(in_units, (3, 600, 7200))] == ["3.0 s", "10 minutes", "2.0 hours"]


@pytest.mark.extensive
def test_plan_of_many_images(folder, atlas, tmp_path):
    """Two hundred runs are found, and what is unusual is named."""
    source = folder / "sub-01/ses-1/func"
    for number in range(3, 103):
        func = folder / f"sub-{number:03}/ses-1/func"
        func.mkdir(parents=True)
        for path in source.iterdir():
            (func / path.name.replace("sub-01", f"sub-{number:03}")).symlink_to(path)
    plan = plan_study(folder, {"A": atlas}, tmp_path / "out")
    assert len(plan.table) == 203
    assert "\n  sub   102 labels, 2 each, except 02: 1\n" in describe(plan, "x")
    assert "Nothing is missing." in describe(plan, "x")
