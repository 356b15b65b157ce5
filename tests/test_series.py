"""Files of a series give the values of their concatenation, file after file, or are refused."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.image import concat_imgs
from nilearn.maskers import NiftiMasker

from beyond_the_masker.__main__ import main
from beyond_the_masker.extract import streaming
from beyond_the_masker.extract.blocks import mask_blocks
from beyond_the_masker.extract.maskers import stream_masker
from beyond_the_masker.extract.streaming import stream_masks
from beyond_the_masker.studies.results import read_arrays
from beyond_the_masker.studies.study import mask_study
from made_images import (
    NONE,
    SHAPE,
    STRAIGHT,
    any_bits,
    by_name,
    masks_for,
    open_files,
    write,
)
from test_maskers import AFFINE, DATA, QUIET, SPATIAL, make_masker
from test_maskers import assert_same as assert_same_series
from test_streaming import MODULES, assert_same, nifti_masker

MASKS = masks_for(SHAPE)
SUFFIXES = (".nii.gz", ".nii", ".img", ".nii.bz2")
FILES = {  # types, scale factors and numbers of volumes; 0 is a 3D image
    "volumes": [("<f4", NONE, 0)] * 12,
    "runs": [("<i2", NONE, 5), ("<i2", NONE, 3)],
    "one volume": [("<f8", NONE, 0)],
    "volumes and runs": [("<f4", NONE, 0), ("<f4", NONE, 4), ("<f4", NONE, 1)],
    "the same scale factors": [("<i2", (0.37, -5.1), 2), ("<i2", (0.37, -5.1), 0)],
    "other slopes": [("<i2", (0.37, 3), 0), ("<i2", (2, 3), 0), ("<i2", (-1, 3), 3)],
    "other intercepts": [("<i2", (0.37, -5.1), 3), ("<i2", (0.37, 0), 2)],
    "scaled in part": [("<i2", NONE, 3), ("<i2", (0.37, 0), 2)],
    "byte orders": [(">f4", NONE, 2), ("<f4", NONE, 2)],
    "integers": [("u1", NONE, 2), (">i2", NONE, 0), ("i1", NONE, 1)],
    "to float32": [("u1", NONE, 2), ("<f4", NONE, 0), (">i2", NONE, 2)],
    "to float64": [(">f4", NONE, 2), ("u1", (0.5, 3), 0), ("<f8", NONE, 2), ("<i4", NONE, 1)],
}


def write_files(folder, files):
    """Write files as `FILES` describes them; return their paths."""
    paths = []
    for number, (dtype, scaling, n) in enumerate(files):
        data = any_bits((*SHAPE[:3], n) if n else SHAPE[:3], dtype, number)
        path = folder / f"vol_{number}{SUFFIXES[number % 4]}"
        paths.append(write(path, data, scaling=scaling))
    return paths


def concatenated(paths):
    """Return nilearn's concatenation of files, in the common type of their values."""
    imgs = []
    for img in map(nib.load, paths):
        values = np.asanyarray(img.dataobj).reshape(*img.shape[:3], -1)
        imgs.append(nib.Nifti1Image(values, img.affine, dtype=values.dtype))
    return concat_imgs(imgs, dtype=np.result_type(*(img.dataobj for img in imgs)))


# The values of NiftiMasker
# -------------------------


@by_name("files", FILES)
def test_values_are_those_of_the_concatenation(tmp_path, files):
    """Volumes, runs, types, scale factors and kinds of files may be mixed."""
    paths = write_files(tmp_path, files)
    reference = nifti_masker(concatenated(paths), MASKS)
    for module in MODULES:
        for block_size in (None, 3):
            assert_same(module.stream_masks(paths, MASKS, block_size), reference)


def test_label_image(tmp_path):
    """Files go with a label image. By itself, concat_imgs rounds them to float32."""
    paths = write_files(tmp_path, [(">f4", NONE, 2), ("u1", (0.37, 3), 2)])
    labels = np.random.default_rng(0).integers(0, 4, SHAPE[:3]).astype("u1")
    atlas = write(tmp_path / "atlas.nii.gz", labels)
    masks = [nib.Nifti1Image((labels == n).astype("u1"), STRAIGHT) for n in (1, 2, 3)]
    series = stream_masks(paths, str(atlas))
    assert_same(series, nifti_masker(concatenated(paths), masks))
    assert series[0].dtype == "f8"
    assert_same([one.astype("f4") for one in series], nifti_masker(concat_imgs(paths), masks))


SPLIT = [np.s_[:3], *range(3, 8), np.s_[8:30], np.s_[30:]]  # of the 37 volumes of DATA
OTHER_MASKERS = {
    "mean": {"mask_strategy": "epi", "mask_args": {"opening": 0}},
    "high variance": {"mask_img": SPATIAL["mask"][1]["mask_img"], "high_variance_confounds": True},
}


@QUIET
@pytest.mark.parametrize("kinds", [["<f4"], [">i2", "<f4", "u1"]], ids=["same", "mixed"])
@pytest.mark.parametrize("spatial", [*SPATIAL, *OTHER_MASKERS])
def test_maskers_return_what_fit_transform_returns(tmp_path, spatial, kinds):
    """Every masker returns what it returns for the concatenated image."""
    paths = []
    for number, volumes in enumerate(SPLIT):
        data = DATA[..., volumes].clip(0, 255).astype(kinds[number % len(kinds)])
        scaling = NONE if len(kinds) == 1 else (number / 4 + 1, 0)
        paths.append(write(tmp_path / f"{number}.nii.gz", data, AFFINE, scaling))
    options = {"standardize": None, "reports": False, "detrend": True}
    own, usual = (
        NiftiMasker(**options, **OTHER_MASKERS[spatial])
        if spatial in OTHER_MASKERS
        else make_masker(spatial, **options)
        for _ in range(2)
    )
    series = stream_masker(own, paths, block_size=5)
    assert_same_series(series, usual.fit_transform(concatenated(paths)), spatial)


# Patterns and lists
# ------------------


@pytest.fixture
def volumes(tmp_path, monkeypatch):
    """Write twelve volumes into the current folder; return their paths."""
    folder = tmp_path / "a [b] folder"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    return [write(folder / f"vol_{n}.nii", any_bits(SHAPE[:3], "<f4", n)) for n in range(12)]


def test_pattern_is_in_the_order_of_numbers(volumes):
    """vol_2 comes before vol_10, wherever the files are, and however the pattern is given."""
    expected, here = stream_masks(volumes, MASKS), volumes[0].parent
    for pattern in ("vol_*.nii", f"{here}/vol_*.nii", here / "vol_*[0-9].nii", "~/a*/vol_*.nii"):
        assert_same(stream_masks(pattern, MASKS), expected)
    assert_same(stream_masks("vol_?.nii", MASKS), [one[:10] for one in expected])
    assert_same(stream_masks(["~/a [b] folder/vol_7.nii"], MASKS), [one[7:8] for one in expected])


def test_file_whose_name_looks_like_a_pattern(volumes):
    """A file that exists is that file."""
    for name in ("vol_[1].nii", "vol_*.nii"):
        path = write(volumes[0].with_name(name), any_bits(SHAPE, "<f4"))
        assert_same(stream_masks(name, MASKS), nifti_masker(nib.load(path), MASKS))


def test_list_in_another_order_than_its_numbers(volumes):
    """A list is taken as it is, with a warning if names differ in numbers that do not ascend."""
    expected = stream_masks("vol_*.nii", MASKS)
    order = [0, 1, 10, 11, *range(2, 10)]
    with pytest.warns(UserWarning, match=r"vol_11.nii comes before .*vol_2.nii") as caught:
        assert_same(stream_masks(sorted(volumes), MASKS), [one[order] for one in expected])
    assert caught[0].filename == __file__
    write(Path("rest.nii"), any_bits(SHAPE[:3], "<f4", 12))
    stream_masks([*volumes, "rest.nii", "vol_3.nii.gz"][10:13], MASKS)  # other names: no warning


# A study of series
# -----------------


def test_study_of_patterns(tmp_path, monkeypatch, capsys):
    """A pattern is one image of a study, also on the command line; changed files are noticed."""
    labels = np.random.default_rng(0).integers(0, 4, SHAPE[:3]).astype("u1")
    write(tmp_path / "atlas.nii.gz", labels)
    monkeypatch.chdir(tmp_path)
    Path("[2]").mkdir()
    for n in range(2, 12):
        write(f"sub-01_vol-{n}.nii", any_bits(SHAPE[:3], "<f4", n))
        write(f"[2]/{n}.nii", any_bits(SHAPE[:3], "<i2", n))
    command = ["study", "sub-01_vol-*.nii", "[2]/*.nii", "--masks", "atlas.nii.gz"]
    for expected in ("2 done", "2 skipped", "1 skipped, 1 done"):
        with pytest.raises(SystemExit, match="0"):
            main(command)
        assert expected in capsys.readouterr().out
        if expected == "2 skipped":
            write("[2]/7.nii", any_bits(SHAPE[:3], "<i2", 77))
    for pattern, name in (("sub-01_vol-*.nii", "sub-01_vol"), ("[2]/*.nii", "[2]")):
        found = read_arrays(f"series/{name}.npz")
        assert list(found) == ["region_1", "region_2", "region_3"]
        assert_same(list(found.values()), stream_masks(pattern, "atlas.nii.gz"))


NO_IMAGES = [  # of a study, and the message
    *(([name], "of several people") for name in ("sub-*/vol.nii", "sub-0?_vol.nii", "sub-*.nii")),
    ([["vol_1.nii"]], "not a list. For the files of one image give a pattern"),
    ([np.zeros(3)], "not a ndarray"),
    (None, "The path of a file is needed, not a NoneType"),
    (MASKS[0], "The path of a file is needed, not a Nifti1Image"),
]


def test_what_is_no_image_of_a_study(tmp_path):
    """A study refuses patterns that may join images of several people, and what is no path."""
    for images, message in NO_IMAGES:
        with pytest.raises(ValueError, match=message):
            mask_study(images, MASKS[0], tmp_path / "out")


# Refusals
# --------

FUNCTIONS = (
    stream_masks,
    lambda files, masks: stream_masker(NiftiMasker(masks[0], standardize=None), files),
)


def damaged(path):
    """Cut off the end of a file."""
    path.write_bytes(path.read_bytes()[:-1])
    return path


def moved(path, voxels):
    """Write a volume on a grid that begins some voxels later."""
    affine = STRAIGHT @ nib.affines.from_matvec(np.eye(3), [0, voxels, 0])
    return write(path, any_bits(SHAPE[:3], "<f4"), affine)


REFUSED = {  # what makes the argument from twelve volumes, the error, a part of its message
    "missing": (lambda v: [v[0], "none.nii", v[2]], FileNotFoundError, "none.nii"),
    "cut off": (lambda v: [v[0], damaged(v[1]), v[2]], OSError, "vol_1.nii is incomplete"),
    "last is cut off": (lambda v: [v[0], damaged(v[1])], OSError, "vol_1.nii is incomplete"),
    "grid": (lambda v: [v[0], moved(v[1], 0.011)], ValueError, "vol_1.nii is on another grid"),
    "no image": (lambda v: [v[0], __file__], ValueError, "test_series.py is not an image"),
    "twice": (lambda v: [v[3], str(v[3])], ValueError, "vol_3.nii is among the files twice"),
    "no match": (lambda v: "~/vol_*.nii", FileNotFoundError, r"no file ~/vol_\*.nii"),
    "no files": (lambda v: [], FileNotFoundError, r"no file \[\]"),
    "one volume without a list": (lambda v: v[0], ValueError, "vol_0.nii is not a 4D"),
    "image": (lambda v: nib.load(v[0]), ValueError, "not a Nifti1Image"),
    "nothing": (lambda v: None, ValueError, "not a NoneType"),
    "list in a list": (lambda v: [v[:2]], ValueError, "not a list"),
}


@by_name(("make", "exception", "message"), REFUSED)
def test_refusals(volumes, make, exception, message):
    """What is no series raises an error with the name of the file; none stays open."""
    files = make(volumes)
    for function in FUNCTIONS:
        with pytest.raises(exception, match=message):
            function(files, MASKS)
        assert open_files(volumes[0].parent) == []


def test_grids_that_differ_by_rounding(volumes):
    """A hundredth of a voxel is the same grid; values are not resampled."""
    moved(volumes[1], 0.009)
    write(volumes[2], any_bits(SHAPE[:3], "<f4"))
    assert_same(stream_masks(volumes[:2], MASKS), stream_masks([volumes[0], volumes[2]], MASKS))


def test_mask_blocks_takes_one_file(volumes):
    """Blocks are parts of one file, so a list is refused by name."""
    with pytest.raises(ValueError, match="not a list"):
        mask_blocks(volumes, MASKS)


# One file at a time
# ------------------


def test_one_file_is_open_at_a_time(volumes, monkeypatch):
    """A file is opened after the last one is closed."""
    seen, read, folder = [], streaming.open_data, volumes[0].parent
    look = lambda path: seen.append(open_files(folder)) or read(path)  # noqa: E731
    monkeypatch.setattr(streaming, "open_data", look)
    stream_masks(volumes, MASKS)
    assert seen == [[]] * 12


@pytest.mark.parametrize("function", FUNCTIONS)
def test_file_that_changes_after_its_header_was_read(volumes, monkeypatch, function):
    """Each file is the one whose header was read, or there is an error."""
    read = streaming.open_data

    def change_another(path):
        os.utime(volumes[3], ns=(1, 1))
        return read(path)

    monkeypatch.setattr(streaming, "open_data", change_another)
    with pytest.raises(OSError, match=r"vol_3.nii was changed while it was read"):
        function(volumes, MASKS)
