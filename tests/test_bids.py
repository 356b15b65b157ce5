"""Names of BIDS, the images of a folder, the files that go with them, and the folder of results."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beyond_the_masker.studies.bids import (
    RANK,
    Related,
    check_output,
    entities_of,
    find_images,
    name_of,
    split_name,
    write_dataset,
)

BOLD = "desc-preproc_bold.nii.gz"
MNI = "space-MNI152NLin2009cAsym"
LABELS = st.text("abcXYZ0189", min_size=1, max_size=6)
ENTITIES = st.dictionaries(st.sampled_from([*RANK, "foo", "x"]), LABELS, min_size=1)


def make(folder, *names):
    """Make empty files with names of BIDS, each where it belongs; return the folder."""
    for name in names:
        entities = entities_of(name)
        levels = [f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities]
        kind = "anat" if "task" not in entities else "func"
        path = folder.joinpath(*levels, kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def names(paths):
    """Return the names of files."""
    return [path.name for path in paths]


# -- Names -------------------------------------------------------------------------------------


@given(ENTITIES, LABELS, st.sampled_from([".nii.gz", ".tsv", ""]))
def test_names_keep_every_entity(entities, suffix, ending):
    """A name has all entities in the order of BIDS, and reading it returns them."""
    name = name_of(entities, suffix, ending)
    assert split_name(name) == (entities, suffix, ending)
    found = [*entities_of(name)]
    assert found == sorted(found, key=lambda key: RANK.get(key, 98))
    assert name_of(split_name(name).entities, suffix, ending) == name


def test_order_of_entities():
    """The order is that of BIDS 1.11, where the description comes last."""
    entities = entities_of(f"sub-1_ses-2_task-rest_acq-a_run-1_echo-2_{MNI}_res-2_{BOLD}")
    name = name_of(entities | {"desc": "simple", "atlas": "A"}, "timeseries", ".tsv")
    expected = f"sub-1_ses-2_task-rest_acq-a_run-1_echo-2_{MNI}_atlas-A_res-2_desc-simple"
    assert name == f"{expected}_timeseries.tsv"


OTHERS = "bold.nii.gz sub-1_bold_old.nii sub-1_sub-2_bold.nii sub-1-2_bold.nii sub-_T1w.nii"


@pytest.mark.parametrize("name", OTHERS.split())
def test_other_names_are_refused(name):
    """A name that is not as BIDS has it is named."""
    with pytest.raises(ValueError, match=rf"{name} is no name of BIDS, such as sub-01"):
        entities_of(name)


@pytest.mark.parametrize("label", ["a_b", "a-b", "", "a b", "a/b", 3, None])
def test_other_labels_are_refused(label):
    """A label has letters and digits only."""
    message = f"The label of atlas is {label!r}, but names of BIDS have only letters and digits."
    with pytest.raises(ValueError, match=re.escape(message)):
        name_of({"atlas": label}, "dseg", ".tsv")


# -- Images ------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    """A folder of three subjects, one without sessions, in several spaces."""
    make(
        tmp_path / "[fmriprep]",  # brackets are wildcards elsewhere
        f"sub-01_ses-1_task-rest_run-01_{MNI}_{BOLD}",
        f"sub-01_ses-1_task-rest_run-01_{BOLD}",
        f"sub-01_ses-2_task-nback_acq-fast_{MNI}_{BOLD}",
        f"sub-02_ses-1_task-rest_run-2_space-T1w_{BOLD}",
        f"sub-03_task-rest_{MNI}_desc-preproc_bold.nii",
        f"sub-03_task-rest_{MNI}_desc-smoothAROMAnonaggr_bold.nii.gz",
        f"sub-03_task-rest_{MNI}_boldref.nii.gz",
        "sub-03_task-rest_bold.dtseries.nii",
        "sub-03_desc-preproc_T1w.nii.gz",
    )
    return tmp_path / "[fmriprep]"


def test_all_images_are_found(study):
    """Images are found in sessions and without, and neither references nor surfaces."""
    assert names(find_images(str(study))) == [
        f"sub-01_ses-1_task-rest_run-01_{BOLD}",
        f"sub-01_ses-1_task-rest_run-01_{MNI}_{BOLD}",
        f"sub-01_ses-2_task-nback_acq-fast_{MNI}_{BOLD}",
        f"sub-02_ses-1_task-rest_run-2_space-T1w_{BOLD}",
        f"sub-03_task-rest_{MNI}_desc-preproc_bold.nii",
    ]


@pytest.mark.parametrize(
    ("filters", "participants", "found"),
    [
        ({"task": "rest"}, None, "01 01 02 03"),
        ({"task": ["rest", "nback"], "ses": 1}, None, "01 01 02"),
        ({"run": 1}, None, "01 01"),
        ({"run": "run-1", "ses": "ses-1"}, None, "01 01"),
        ({"run": [1, "02"]}, None, "01 01 02"),
        ({"run": [None, 2]}, None, "01 02 03"),
        ({"space": ""}, None, "01"),
        ({"acq": "fast"}, ["sub-01", "02"], "01"),
        ({}, "03", "03"),
        ({}, ["sub-02", "03"], "02 03"),
        ({"desc": "smoothAROMAnonaggr"}, None, "03"),
        ({"desc": ["preproc", "smoothAROMAnonaggr"], "ses": None}, None, "03 03"),
    ],
)
def test_filters(study, filters, participants, found):
    """Filters take a label or several, a number with or without zeros, or none."""
    images = find_images(study, filters, participants)
    assert [entities_of(image)["sub"] for image in images] == found.split()


@pytest.mark.parametrize(
    ("filters", "participants", "message"),
    [
        ({"task": "rst"}, None, "has task-rst. There is task-nback, task-rest."),
        ({"task": "nback", "run": [1, 2]}, None, "has run-1 or run-2. They have no run, but acq, "),
        ({"ses": 1, "space": "space-MNI"}, None, "has space-MNI. There is no space, space-MNI152"),
        ({"desc": "none"}, None, "has desc-none. There is desc-preproc, desc-smoothAROMAnonaggr."),
        ({}, ["01", "sub-4"], "has no image of sub-4. There is sub-01, sub-02, sub-03."),
    ],
)
def test_what_emptied_the_list(study, filters, participants, message):
    """An error names the filter that no image passes, and the labels that there are instead."""
    with pytest.raises(ValueError, match=re.escape(message)):
        find_images(study, filters, participants)


def test_long_lists_are_shortened(tmp_path):
    """An error shows twenty labels and counts the others."""
    make(tmp_path, *(f"sub-{n:02}_task-rest_{BOLD}" for n in range(23)))
    with pytest.raises(ValueError, match=r"There is sub-00, .*, sub-19 and 3 more\.$"):
        find_images(tmp_path, participants="99")


def test_folders_that_fmriprep_did_not_write(tmp_path):
    """Another folder is refused, and the one that is meant is named."""
    with pytest.raises(FileNotFoundError, match="nothing is not a folder"):
        find_images(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"has no images sub-\*/func.*fMRIPrep wrote is needed\.$"):
        find_images(tmp_path)
    below = make(tmp_path / "raw/derivatives/fmriprep", f"sub-1_task-rest_{BOLD}")
    results = make(tmp_path / "raw/derivatives/series", "sub-1_task-rest_timeseries.tsv")
    (results / "study.tsv").touch()
    for folder in (below.parent, below.parent.parent):
        with pytest.raises(ValueError, match=re.escape(f"Perhaps it is one of these: {below}.")):
            find_images(folder)
    raw = make(tmp_path / "raw", "sub-1_task-rest_bold.nii.gz")
    with pytest.raises(ValueError, match=rf"raw is a raw BIDS folder; .* {below}"):
        find_images(raw)
    (below / "dataset_description.json").write_text('{"DatasetType": "raw"}')
    with pytest.raises(ValueError, match="fmriprep is a raw BIDS folder"):
        find_images(below)
    (below / "dataset_description.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset_description\.json is no JSON file"):
        find_images(below)


def test_a_wrong_name_is_refused(tmp_path):
    """An image whose name has no entities is not passed over."""
    make(tmp_path, f"sub-1_task-rest_{BOLD}")
    (tmp_path / "sub-1/func/sub-1_copy_desc-preproc_bold.nii.gz").touch()
    with pytest.raises(ValueError, match=r"copy_desc-preproc_bold\.nii\.gz is no name of BIDS"):
        find_images(tmp_path)


# -- The files that go with an image -----------------------------------------------------------

RUN = "sub-1_ses-1_task-rest_run-1"


@pytest.fixture
def image(tmp_path):
    """An image with its files, among those of others."""
    make(
        tmp_path,
        f"{RUN}_{MNI}_res-2_{BOLD}",
        f"{RUN}_{MNI}_res-2_desc-preproc_bold.json",
        f"{RUN}_desc-preproc_bold.json",
        f"{RUN}_space-T1w_desc-preproc_bold.json",
        "sub-1_ses-1_task-rest_bold.json",
        f"{RUN}_{MNI}_res-2_desc-brain_mask.nii.gz",
        f"{RUN}_{MNI}_desc-brain_mask.nii.gz",
        f"{RUN}_desc-brain_mask.nii.gz",
        f"{RUN}_desc-confounds_timeseries.tsv",
        "sub-1_ses-1_task-rest_run-2_desc-confounds_timeseries.tsv",
        f"{RUN}_space-T1w_desc-aparcaseg_dseg.nii.gz",
        "sub-1_ses-1_desc-aseg_dseg.nii.gz",
    )
    make(tmp_path, "sub-1_desc-parcels_dseg.nii.gz", "sub-1_desc-aseg_dseg.nii.gz")
    (tmp_path / "sub-1/ses-1/func/notes.txt").touch()
    return tmp_path / f"sub-1/ses-1/func/{RUN}_{MNI}_res-2_{BOLD}"


def confounds_of(related, image):
    """Return the tables of confounds that go with an image."""
    return related.find(image, ["timeseries", "regressors"], [".tsv"], desc="confounds")


def test_files_of_an_image(image):
    """An image has its own sidecar first, the mask of its grid, and the confounds of its run."""
    related = Related()
    assert names(related.sidecars(image)) == [
        f"{RUN}_{MNI}_res-2_desc-preproc_bold.json",
        f"{RUN}_desc-preproc_bold.json",
        "sub-1_ses-1_task-rest_bold.json",
    ]
    assert related.brain_mask(image).name == f"{RUN}_{MNI}_res-2_desc-brain_mask.nii.gz"
    assert names(confounds_of(related, image)) == [f"{RUN}_desc-confounds_timeseries.tsv"]


def test_files_that_are_missing_or_links(image):
    """A mask of another grid is none; a link that leads nowhere and an old name are found."""
    folder = image.parent
    (folder / f"{RUN}_{MNI}_res-2_desc-brain_mask.nii.gz").unlink()
    old = folder / f"{RUN}_desc-confounds_regressors.tsv"
    old.symlink_to("nowhere")
    related = Related()
    assert related.brain_mask(image) is None
    assert len(confounds_of(related, image)) == 2
    old.unlink()
    assert len(confounds_of(related, image)) == 2  # each folder is read once
    assert len(confounds_of(Related(), image)) == 1


def test_files_of_a_subject(image):
    """An atlas of each subject is beside the image, or with the session's or subject's anatomy."""
    related = Related()
    for pattern, folder in (
        ("space-T1w_desc-aparcaseg_dseg.nii.gz", "sub-1/ses-1/func"),
        ("desc-aseg_dseg.nii.gz", "sub-1/ses-1/anat"),
        ("desc-parcels_dseg.nii.gz", "sub-1/anat"),
    ):
        found = related.of_subject(image, pattern)
        assert found.match(f"{folder}/sub-1*{pattern}")
    assert related.of_subject(image, "desc-aparcaseg_dseg.nii.gz") is None  # it is in another space


# -- The folder of results ---------------------------------------------------------------------


def test_dataset(tmp_path):
    """The folder of results describes itself, and a second call changes nothing."""
    out, tables = tmp_path / "out", {"atlas-A_dseg.tsv": "index\tname\n1\tone\n"}
    check_output(out, tmp_path)
    write_dataset(out, tmp_path, tables)
    description = json.loads((out / "dataset_description.json").read_text())
    assert (description["BIDSVersion"], description["DatasetType"]) == ("1.11.0", "derivative")
    assert description["GeneratedBy"][0]["Name"] == "beyond-the-masker"
    assert description["SourceDatasets"] == [{"URL": tmp_path.as_uri()}]
    assert (out / "atlas-A_dseg.tsv").read_text() == tables["atlas-A_dseg.tsv"]
    (out / ".bidsignore").write_text("own.txt\n")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    check_output(out, tmp_path)
    write_dataset(out, tmp_path, tables)
    assert (out / ".bidsignore").read_text().startswith("own.txt\n*_timeseries.*\n")
    changed = [path.name for path in out.iterdir() if path.stat().st_mtime_ns != before[path]]
    assert changed == [".bidsignore"]


def test_results_do_not_mix(tmp_path):
    """Results go neither into the folder of the images nor among those of another program."""
    with pytest.raises(ValueError, match="is the folder of the images"):
        check_output(tmp_path / "x" / "..", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file"):
        check_output(tmp_path / "file", tmp_path)
    (tmp_path / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    with pytest.raises(ValueError, match=r"holds the results of fMRIPrep\. Give a folder"):
        check_output(tmp_path, tmp_path / "other")
