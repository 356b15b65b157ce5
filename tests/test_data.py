"""The prepared data: the image and masks that pages describe, made once, whole or not at all."""

import inspect
import os
import signal
import socket
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.image import concat_imgs, resample_to_img

from beyond_the_masker import data, synthetic
from beyond_the_masker.data import (
    atlas_to_masks,
    first_volumes,
    get_atlas_path,
    prepare,
    prepare_fmri,
    write_joined,
)
from beyond_the_masker.pages import PAGES
from made_images import make_image

GRID = (9, 10, 8)
AFFINE = np.array([[4.0, 0, 0, -10], [0, 4, 0, 5], [0, 0, 4, -3], [0, 0, 0, 1]])
ATLAS_GRID = (30, 32, 28)
TILT = np.deg2rad(7)
ATLAS_AFFINE = np.array(
    [
        [2 * np.cos(TILT), -2 * np.sin(TILT), 0, -13.3],
        [2 * np.sin(TILT), 2 * np.cos(TILT), 0, 0.7],
        [0, 0, 2, -6.1],
        [0, 0, 0, 1],
    ]
)
KINDS = ["maps", "labels", "masks"]
LABELS = (2, 5, 11)
INSIDE = (np.s_[3:12, 4:11, 4:11], np.s_[8:15, 6:14, 5:12], np.s_[5:9, 12:18, 10:16])
OUTSIDE = (INSIDE[0], np.s_[27:, 29:, 25:], INSIDE[2])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Prepare files in a folder of this test."""
    monkeypatch.setenv("MASKER_CACHE", str(tmp_path / "prepared"))
    return tmp_path / "prepared"


def write(path, data, affine=AFFINE):
    """Write an image."""
    nib.Nifti1Image(data, affine).to_filename(path)
    return path


def read(path):
    """Read an image's data."""
    return np.asarray(nib.load(path).dataobj).copy()  # a test may write the file anew


@pytest.fixture
def fmri_path(tmp_path):
    """A tiny 4D image."""
    data = np.random.default_rng(0).standard_normal((*GRID, 3)).astype("float32")
    return write(tmp_path / "own fmri.nii.gz", data)


def write_atlas(kind, folder, boxes=INSIDE):
    """Write boxes as an atlas of some kind; also give the regions that it has."""
    weights = np.zeros((*ATLAS_GRID, len(boxes)), dtype="float32")
    labels = np.zeros(ATLAS_GRID, dtype="int16")
    for i, (box, weight, label) in enumerate(zip(boxes, (0.5, 1e-4, -1), LABELS, strict=False)):
        weights[(*box, i)] = weight
        labels[box] = label
    if kind == "labels":
        return write(folder / "labels.nii", labels, ATLAS_AFFINE), [labels == v for v in LABELS]
    regions = np.moveaxis(weights != 0, 3, 0)
    if kind == "maps":
        return write(folder / "maps.nii.gz", weights, ATLAS_AFFINE), regions
    names = [folder / f"roi {i}.nii.gz" for i in (3, 1, 2)]
    return [
        write(name, region.astype("uint8"), ATLAS_AFFINE)
        for name, region in zip(names, regions, strict=True)
    ], regions


def on_grid(region, fmri_path):
    """Resample a region with nilearn."""
    img = nib.Nifti1Image(region.astype("uint8"), ATLAS_AFFINE)
    fmri_img = nib.load(fmri_path)
    img = resample_to_img(img, fmri_img, "nearest", copy_header=True, force_resample=True)
    return np.asarray(img.dataobj) != 0


# --- The stand-in for the development fMRI data set


def test_two_synthetic_subjects_in_one_image():
    """The default image has two different brains, one after the other, with a signal each."""
    path = prepare_fmri(2)
    img = nib.load(path)
    assert img.shape == (50, 59, 50, 2 * 168)
    assert img.get_data_dtype() == np.float32
    assert img.header.get_zooms() == (4, 4, 4, 2)
    np.testing.assert_array_equal(img.affine, synthetic.FMRI_AFFINE)

    first, second = np.split(np.asarray(img.dataobj), 2, axis=3)
    np.testing.assert_array_equal(second, synthetic.synthetic_fmri(1).dataobj)
    inside = first.any(axis=3)
    assert not np.array_equal(first[inside], second[inside])
    assert np.isfinite(img.dataobj).all()
    assert 0.1 < inside.mean() < 0.5, "not the share of the volume that a brain has"
    borders = [inside[face] for face in (np.s_[[0, -1]], np.s_[:, [0, -1]], np.s_[:, :, -1])]
    assert not any(border.any() for border in borders), "the brain is cut off"
    np.testing.assert_array_equal(inside, second.any(axis=3))
    assert first[inside].std(axis=1).min() > 0.5, "voxels that do not change over time"

    weights = synthetic.region_maps(inside, img.affine)
    courses = np.array([first[inside][w > 0.5].mean(axis=0) for w in weights.T])
    assert courses.std(axis=1).min() > 1, "a region has no signal of its own"
    correlations = np.corrcoef(courses)[np.triu_indices(len(courses), 1)]
    assert np.abs(correlations).max() < 0.9, "two regions have the same signal"


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i2"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_images_are_joined_as_nilearn_joins_them(tmp_path, dtype, suffix):
    """The joined file has the values, the affine and the header of `concat_imgs`."""
    imgs = [make_image(dtype=dtype, scaling=(0.5, 2) if "i" in dtype else None) for _ in range(2)]
    imgs = [nib.Nifti1Image.from_bytes(img.to_bytes()) for img in imgs]
    write_joined(imgs, 2 * imgs[0].shape[3], tmp_path / f"joined{suffix}")
    joined, expected = nib.load(tmp_path / f"joined{suffix}"), concat_imgs(imgs)
    np.testing.assert_array_equal(joined.dataobj, expected.dataobj)
    np.testing.assert_array_equal(joined.affine, expected.affine)
    assert joined.get_data_dtype().newbyteorder("=") == np.float32
    assert joined.header.get_zooms() == expected.header.get_zooms()


@pytest.mark.parametrize(("most_mib", "n_volumes"), [(1, 2), (0.1, 1), (1000, 5)])
def test_first_volumes(tmp_path, most_mib, n_volumes):
    """As many volumes as fit, at least one, are read."""
    path = write(tmp_path / "fmri.nii", np.random.default_rng(0).normal(size=(40, 40, 40, 5)))
    first = first_volumes(path, most_mib)
    np.testing.assert_array_equal(first.dataobj, read(path)[..., :n_volumes])


def test_synthetic_atlas():
    """The default atlas is not the set of overlapping maps that the pages describe."""
    img = nib.load(get_atlas_path())
    maps = np.asarray(img.dataobj)
    assert maps.shape == (63, 76, 63, 64)
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    assert not np.allclose(img.affine, synthetic.FMRI_AFFINE)
    assert np.count_nonzero(maps, axis=(0, 1, 2)).min() > 100, "a map is empty, or nearly so"
    assert (np.count_nonzero(maps, axis=3) > 1).any(), "no two maps overlap"
    corners = maps[np.ix_([0, -1], [0, -1], [0, -1])]
    assert not corners.any(), "regions outside the brain"


@pytest.fixture
def made(monkeypatch):
    """Make tiny data in place of the synthetic ones, and keep a list of what was made."""
    made = []

    def synthetic_fmri(subject):
        made.append(f"subject {subject}")
        return nib.Nifti1Image(np.full((3, 4, 5, 2), subject, dtype="float32"), AFFINE)

    def synthetic_atlas():
        made.append("atlas")
        return nib.Nifti1Image(np.ones((3, 4, 5, 6), dtype="float32"), AFFINE)

    monkeypatch.setattr(data, "synthetic_fmri", synthetic_fmri)
    monkeypatch.setattr(data, "synthetic_atlas", synthetic_atlas)
    monkeypatch.setattr(data, "FMRI_SHAPE", (3, 4, 5, 2))
    return made


def test_prepared_data_are_reused(made, monkeypatch):
    """Data are made once for the same options and code, and anew for others."""
    path, atlas_path = prepare_fmri(2), get_atlas_path()
    assert made == ["subject 0", "subject 1", "atlas"]
    np.testing.assert_array_equal(read(path)[0, 0, 0], [0, 0, 1, 1])
    assert (prepare_fmri(2), get_atlas_path()) == (path, atlas_path)
    assert len(made) == 3

    assert nib.load(prepare_fmri(1)).shape == (3, 4, 5, 2)
    assert made[3:] == ["subject 0"]
    source = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda code: source(code) + "# changed")
    assert prepare_fmri(2) != path
    assert get_atlas_path() != atlas_path
    assert made[4:] == ["subject 0", "subject 1", "atlas"]


# --- Data of one's own


def use_own(monkeypatch, fmri, *atlas):
    """Set the options FMRI and ATLAS."""
    monkeypatch.setenv("FMRI", str(fmri))
    monkeypatch.setenv("ATLAS", " ".join(f"'{path}'" for path in atlas))


def test_own_files_are_used(tmp_path, fmri_path, monkeypatch):
    """The pages use the reader's own image and regions, as they are."""
    masks, _ = write_atlas("masks", tmp_path)
    use_own(monkeypatch, fmri_path, masks[0])
    assert prepare_fmri(2) == fmri_path
    assert get_atlas_path() == masks[0]
    use_own(monkeypatch, fmri_path, *masks)
    assert get_atlas_path() == masks


# --- Masks


@pytest.mark.parametrize("n_regions", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_the_regions_on_the_grid_of_the_image(kind, n_regions, tmp_path, fmri_path):
    """A mask is the atlas' region on the image's grid, binary."""
    atlas_path, regions = write_atlas(kind, tmp_path)
    mask_imgs, mask_paths = atlas_to_masks(atlas_path, str(fmri_path), n_regions)
    assert len(mask_imgs) == len(set(mask_paths)) == n_regions
    for mask_img, mask_path, region in zip(mask_imgs, mask_paths, regions, strict=False):
        stored = nib.load(mask_path)
        for img in (mask_img, stored):
            assert img.get_data_dtype() == np.uint8
            np.testing.assert_array_equal(img.affine, AFFINE)
        assert type(mask_img.dataobj) is np.ndarray
        assert mask_img.dataobj.dtype == np.uint8
        assert set(np.unique(mask_img.dataobj)) == {0, 1}
        np.testing.assert_array_equal(mask_img.dataobj, on_grid(region, fmri_path))
        np.testing.assert_array_equal(np.asarray(stored.dataobj), mask_img.dataobj)


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_numbers_are_outside(kind, tmp_path, fmri_path):
    """NaN, which many atlases have outside the brain, is in no region, and is none."""
    atlas_path, regions = write_atlas(kind, tmp_path)
    for path in atlas_path if kind == "masks" else [atlas_path]:
        data = read(path).astype("float32")
        data[data == 0] = np.nan
        write(path, data, ATLAS_AFFINE)
    for mask_img, region in zip(atlas_to_masks(atlas_path, fmri_path, 3)[0], regions, strict=True):
        np.testing.assert_array_equal(mask_img.dataobj, on_grid(region, fmri_path))
    with pytest.raises(ValueError, match=r"4 regions were asked for.* 3\b"):
        atlas_to_masks(atlas_path, fmri_path, 4)


def test_neighbouring_maps_overlap(tmp_path, fmri_path):
    """A voxel of two maps is in both masks."""
    mask_imgs, _ = atlas_to_masks(write_atlas("maps", tmp_path)[0], fmri_path, 2)
    assert np.logical_and(*(img.dataobj for img in mask_imgs)).any()


BAD = {  # name: kind of atlas, its boxes, number of regions, parts of the message
    **{f"too many {k}": (k, INSIDE, 4, r"4 regions were asked for.* 3\b.*to 3") for k in KINDS},
    "none": ("maps", INSIDE, 0, "^0 regions were asked for; at least 1"),
    "less than none": ("maps", INSIDE, -1, "^-1 regions were asked for; at least 1"),
    "empty map": ("maps", OUTSIDE, 3, "map 2 of .*maps.nii.gz is empty on the grid of .*own fmri"),
    "empty label": ("labels", OUTSIDE, 3, "label 5 of .*labels.nii is empty on the grid of"),
    "empty mask": ("masks", OUTSIDE, 3, "roi 1.* is empty on the grid of"),
}


@pytest.mark.parametrize(("kind", "boxes", "n_regions", "message"), BAD.values(), ids=BAD.keys())
def test_regions_that_cannot_be_had(kind, boxes, n_regions, message, tmp_path, fmri_path, cache):
    """More regions than there are, none, or an empty one: the error names it, nothing is kept."""
    atlas_path, _ = write_atlas(kind, tmp_path, boxes)
    with pytest.raises(ValueError, match=message):
        atlas_to_masks(atlas_path, fmri_path, n_regions)
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize(("shape", "kind"), [((1,), "masks"), ((2,), "masks"), ((2, 2), "maps")])
def test_atlas_of_another_shape(shape, kind, tmp_path, fmri_path):
    """A 4D image among masks, or a 5D atlas, is named."""
    atlas_path, _ = write_atlas(kind, tmp_path)
    wrong = write(tmp_path / "wrong.nii", np.ones((*ATLAS_GRID, *shape), "uint8"), ATLAS_AFFINE)
    files = [atlas_path[0], wrong] if kind == "masks" else wrong
    with pytest.raises(ValueError, match=r"wrong\.nii has shape \(30, 32, 28, .*; an atlas is"):
        atlas_to_masks(files, fmri_path, 1)


def test_image_must_be_4d(tmp_path):
    """A 3D image is rejected."""
    path = write(tmp_path / "one volume.nii", np.ones(GRID, dtype="float32"))
    with pytest.raises(ValueError, match=r"one volume.nii has shape \(9, 10, 8\); a 4D image"):
        atlas_to_masks(write_atlas("maps", tmp_path)[0], path, 1)


@pytest.mark.parametrize("missing", ["fmri", "maps", "masks"])
def test_missing_file_is_named(missing, tmp_path, fmri_path):
    """A missing file is named."""
    atlas_path, _ = write_atlas("masks", tmp_path)
    gone = {"fmri": fmri_path, "maps": tmp_path / "none.nii", "masks": atlas_path[1]}[missing]
    gone.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=gone.name):
        atlas_to_masks(gone if missing == "maps" else atlas_path, fmri_path, 2)


@pytest.mark.parametrize("kind", ["maps", "masks"])
def test_damaged_atlas_is_named(kind, tmp_path, fmri_path):
    """A file that is cut off is named."""
    atlas_path, _ = write_atlas(kind, tmp_path)
    path = atlas_path[1] if kind == "masks" else atlas_path
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(OSError, match=f"{path.name} is incomplete or damaged"):
        atlas_to_masks(atlas_path, fmri_path, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_reused(kind, tmp_path, fmri_path, monkeypatch):
    """The atlas is resampled once."""
    atlas_path, _ = write_atlas(kind, tmp_path)
    first, paths = atlas_to_masks(atlas_path, fmri_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(data, "resample_to_img", None)
        second, same_paths = atlas_to_masks(atlas_path, fmri_path, 2)
    assert same_paths == paths
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.dataobj, b.dataobj)
    assert len(atlas_to_masks(atlas_path, fmri_path, 3)[0]) == 3


@pytest.mark.parametrize("change", ["size", "time", "name", "grid", "place"])
def test_changed_files_are_noticed(change, tmp_path, fmri_path):
    """An atlas of another size, time or name, or an image elsewhere, gets masks of its own."""
    maps, _ = write_atlas("maps", tmp_path)
    atlas_path = write(tmp_path / "maps.nii", read(maps), ATLAS_AFFINE)
    stat = atlas_path.stat()
    _, before = atlas_to_masks(atlas_path, fmri_path, 2)
    if change == "grid":
        write(fmri_path, read(fmri_path)[:, :, :-1])
    elif change == "place":
        moved = AFFINE.copy()
        moved[0, 3] += 8
        write(fmri_path, read(fmri_path), moved)
    else:
        other = read(atlas_path)[..., ::-1][..., : 2 if change == "size" else 3]
        atlas_path = tmp_path / "other.nii" if change == "name" else atlas_path
        write(atlas_path, other, ATLAS_AFFINE)
        later = stat.st_mtime_ns + (change == "time")
        os.utime(atlas_path, ns=(stat.st_atime_ns, later))
        assert (atlas_path.stat().st_size == stat.st_size) == (change != "size")
    mask_imgs, after = atlas_to_masks(atlas_path, fmri_path, 2)
    assert set(before).isdisjoint(after)
    for i, mask_img in enumerate(mask_imgs):
        expected = on_grid(read(atlas_path)[..., i] != 0, fmri_path)
        np.testing.assert_array_equal(mask_img.dataobj, expected)


@pytest.mark.parametrize("function", ["write_masks", "atlas_regions"])
def test_changed_code_is_noticed(function, tmp_path, fmri_path, monkeypatch):
    """Masks that an earlier version of the code made are made anew."""
    atlas_path, _ = write_atlas("maps", tmp_path)
    _, before = atlas_to_masks(atlas_path, fmri_path, 2)
    source, changed = inspect.getsource, getattr(data, function)
    monkeypatch.setattr(inspect, "getsource", lambda code: source(code) + "#" * (code is changed))
    assert set(before).isdisjoint(atlas_to_masks(atlas_path, fmri_path, 2)[1])


# --- Interrupted preparation


def fill(folder):
    """Write two files."""
    (folder / "first").touch()
    (folder / "second").touch()


def names(folder):
    """The names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=repr)
def test_failed_preparation_leaves_nothing(error, cache):
    """A folder that was not filled is removed, and filled by the next call."""

    def fail(folder):
        (folder / "first").touch()
        raise error

    with pytest.raises(type(error)):
        prepare("thing", [1], fail)
    assert not list(cache.iterdir())
    assert names(prepare("thing", [1], fill)) == ["first", "second"]


def test_two_builds_at_once(cache):
    """Two processes can prepare the same files; the slower one uses those of the other."""

    def fill_after_the_other(folder):
        prepare("thing", [1], fill)
        fill(folder)

    folder = prepare("thing", [1], fill_after_the_other)
    assert names(folder) == ["first", "second"]
    assert list(cache.iterdir()) == [folder]


STOP_IN_THE_MIDDLE = """
import sys
from beyond_the_masker import data
from nilearn.image import resample_to_img

def resample(img, *args, calls=[], **kwargs):
    calls.append(img)
    if len(calls) == 2:
        print("in the middle", flush=True)
        sys.stdin.read()
    return resample_to_img(img, *args, **kwargs)

data.resample_to_img = resample
data.atlas_to_masks(sys.argv[1], sys.argv[2], 3)
"""


@pytest.mark.chance
@pytest.mark.parametrize(
    "kill", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.extensive)]
)
def test_killed_preparation_is_not_trusted(kill, tmp_path, fmri_path, cache):
    """After an interrupt the next run prepares all masks again."""
    atlas_path, regions = write_atlas("maps", tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", STOP_IN_THE_MIDDLE, atlas_path, fmri_path],
        env=os.environ | {"PYTHONPATH": str(PAGES)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout.readline() == b"in the middle\n"
        assert list(cache.glob("*/*.nii.gz")), "not in the middle"
        process.send_signal(kill)
        assert process.wait(300) == -kill
    if kill == signal.SIGINT:
        assert not list(cache.iterdir())
    mask_imgs, _ = atlas_to_masks(atlas_path, fmri_path, 3)
    for mask_img, region in zip(mask_imgs, regions, strict=True):
        np.testing.assert_array_equal(mask_img.dataobj, on_grid(region, fmri_path))


# --- nilearn's fetchers, without a network


@pytest.fixture
def nilearn_data(tmp_path, monkeypatch):
    """Choose nilearn's data in an empty folder, and block the network."""

    def refuse(*args, **kwargs):
        raise OSError("this test has no network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("DATA", "development_fmri")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NILEARN_SHARED_DATA", raising=False)
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path / "nilearn_data"))
    return tmp_path / "nilearn_data"


# Columns of fMRIPrep's table that nilearn's fetcher keeps.
CONFOUNDS = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
CONFOUNDS += ["framewise_displacement", *(f"a_comp_cor_{i:02d}" for i in range(6))]
CONFOUNDS += ["csf", "white_matter"]


def test_development_fmri_that_is_there_already(nilearn_data, made, monkeypatch):
    """Data that nilearn has downloaded before are used."""
    with monkeypatch.context() as patch:
        patch.delenv("DATA")
        prepare_fmri(2)  # synthetic data that are prepared already
    folder = nilearn_data / "development_fmri"
    folder.mkdir(parents=True)
    participants = pd.DataFrame(
        {
            "participant_id": ["sub-pixar001", "sub-pixar002", "sub-pixar123"],
            "Age": [4.77, 4.86, 27.06],
            "AgeGroup": ["4yo", "4yo", "Adult"],
            "Child_Adult": ["child", "child", "adult"],
            "Gender": ["M", "F", "F"],
            "Handedness": ["R", "R", "R"],
        }
    )
    participants.to_csv(folder / "participants.tsv", sep="\t", index=False)
    series = {}
    rng = np.random.default_rng(0)
    for subject in ("sub-pixar001", "sub-pixar123"):
        stem = f"{subject}_task-pixar"
        data = rng.standard_normal((*GRID, 3)).astype("float32")
        image = f"{stem}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
        series[subject] = read(write(folder / image, data))
        table = pd.DataFrame(rng.standard_normal((3, len(CONFOUNDS))), columns=CONFOUNDS)
        table.to_csv(folder / f"{stem}_desc-confounds_regressors.tsv", sep="\t", index=False)

    path = prepare_fmri(2)
    expected = np.concatenate([series["sub-pixar123"], series["sub-pixar001"]], axis=3)
    np.testing.assert_array_equal(read(path), expected)
    np.testing.assert_array_equal(nib.load(path).affine, AFFINE)


def test_difumo_that_is_there_already(nilearn_data, fmri_path):
    """An atlas that nilearn has downloaded before is used."""
    folder = nilearn_data / "difumo_atlases"
    (folder / "64" / "2mm").mkdir(parents=True)
    (folder / "README.md").touch()
    labels = pd.DataFrame({"Component": [1, 2, 3], "Difumo_names": ["one", "two", "three"]})
    labels.to_csv(folder / "64" / "labels_64_dictionary.csv", index=False)
    maps, regions = write_atlas("maps", folder / "64" / "2mm")

    assert get_atlas_path() == maps
    (mask_img,), _ = atlas_to_masks(get_atlas_path(), fmri_path, 1)
    np.testing.assert_array_equal(mask_img.dataobj, on_grid(regions[0], fmri_path))


@pytest.mark.parametrize(
    ("get", "fetcher"),
    [(lambda: prepare_fmri(2), "fetch_development_fmri"), (get_atlas_path, "fetch_atlas_difumo")],
    ids=["image", "atlas"],
)
def test_download_without_a_network(get, fetcher, nilearn_data, cache):
    """Without a network, the error says in one sentence what to do."""
    with pytest.raises(ConnectionError) as error:
        get()
    message = str(error.value)
    for part in (f"{fetcher} could not", "osf.io", "NILEARN_DATA", "DATA=synthetic"):
        assert part in message
    assert "\n" not in message
    assert not cache.exists() or not list(cache.iterdir())
