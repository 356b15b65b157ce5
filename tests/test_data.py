"""The prepared data: the image and masks that pages describe, made once, whole or not at all."""

import gzip
import inspect
import os
import shlex
import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import nibabel as nib
import numpy as np
import pytest
from nilearn.image import concat_imgs, load_img, resample_to_img

from beyond_the_masker.files import files_of_image
from beyond_the_masker.inputs import data, synthetic
from beyond_the_masker.inputs.data import (
    atlas_to_labels,
    atlas_to_masks,
    cut_to,
    first_volumes,
    get_atlas_path,
    on_grid_of,
    prepare_fmri,
    write_2mm,
    write_joined,
    write_stored,
)
from made_images import OBLIQUE, make_image, save_all

GRID = (9, 10, 8)
AFFINE = np.array([[4.0, 0, 0, -10], [0, 4, 0, 5], [0, 0, 4, -3], [0, 0, 0, 1]])
ATLAS_GRID = (30, 32, 28)
TILTED = [[1.985, -0.244, 0], [0.244, 1.985, 0], [0, 0, 2]]
ATLAS_AFFINE = nib.affines.from_matvec(TILTED, [-13.3, 0.7, -6.1])
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


def test_two_synthetic_subjects_in_one_image():
    """The default image has two different brains, one after the other, with a signal each."""
    img = nib.load(prepare_fmri(2))
    assert img.shape == (50, 59, 50, 2 * 168)
    assert img.get_data_dtype() == np.float32
    assert img.header.get_zooms() == (4, 4, 4, 2)
    np.testing.assert_array_equal(img.affine, synthetic.FMRI_AFFINE)

    first, second = np.split(np.asarray(img.dataobj), 2, axis=3)
    np.testing.assert_array_equal(second, synthetic.synthetic_fmri(1).dataobj)
    inside = first.any(axis=3)
    assert not np.array_equal(first[inside], second[inside])
    assert 0.1 < inside.mean() < 0.5, "not the share of the volume that a brain has"
    weights = synthetic.region_maps(inside, img.affine)
    courses = np.array([first[inside][w > 0.5].mean(axis=0) for w in weights.T])
    assert courses.std(axis=1).min() > 1, "a region has no signal of its own"
    correlations = np.corrcoef(courses)[np.triu_indices(len(courses), 1)]
    assert np.abs(correlations).max() < 0.9, "two regions have the same signal"


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i2"])
def test_images_are_joined_as_nilearn_joins_them(tmp_path, dtype):
    """The joined file has the values, the affine and the header of `concat_imgs`."""
    imgs = [make_image(dtype=dtype, scaling=(0.5, 2) if "i" in dtype else None) for _ in range(2)]
    imgs = [nib.Nifti1Image.from_bytes(img.to_bytes()) for img in imgs]
    write_joined(imgs, 2 * imgs[0].shape[3], tmp_path / "joined.nii.gz")
    joined, expected = nib.load(tmp_path / "joined.nii.gz"), concat_imgs(imgs)
    np.testing.assert_array_equal(joined.dataobj, expected.dataobj)
    np.testing.assert_array_equal(joined.affine, expected.affine)
    assert joined.get_data_dtype().newbyteorder("=") == np.float32
    assert joined.header.get_zooms() == expected.header.get_zooms()
    with gzip.open(tmp_path / "joined.nii.gz") as file:
        assert nib.Nifti1Header.from_fileobj(file).get_slope_inter() == (1, 0)


def test_more_volumes_than_nifti1_can_count(tmp_path):
    """From 32,768 volumes on the file is NIfTI-2, with the same grid, units and values."""
    img = make_image((2, 1, 1, 2**14))
    img.header.set_zooms((*img.header.get_zooms()[:3], 2))
    img.header.set_xyzt_units("mm", "sec")
    for n_images, kind in ((1, nib.Nifti1Image), (2, nib.Nifti2Image)):
        path = tmp_path / f"{n_images}.nii"
        write_joined([img] * n_images, n_images * 2**14, path)
        joined = nib.load(path)
        assert type(joined) is kind
        expected = np.concatenate([img.dataobj] * n_images, axis=3)
        np.testing.assert_array_equal(joined.dataobj, expected)
        np.testing.assert_array_equal(joined.affine, img.affine)
        assert joined.header.get_zooms() == img.header.get_zooms()
        assert joined.header.get_xyzt_units() == ("mm", "sec")
    write_stored(joined, 2**15, tmp_path / "stored.nii")
    assert (tmp_path / "stored.nii").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img", ".hdr.gz"])
@pytest.mark.parametrize("image", [{"dtype": ">f8"}, {"dtype": "<i2", "scaling": (0.5, 2)}])
def test_first_volumes_are_copied_as_they_are_stored(suffix, image, tmp_path):
    """A cut image has the stored values, type and scale factors of its source."""
    path, _ = save_all(tmp_path, make_image(**image), [], suffix)
    whole, cut = nib.load(path).dataobj, nib.load(cut_to(path, 3)).dataobj
    np.testing.assert_array_equal(cut.get_unscaled(), whole.get_unscaled()[..., :3])
    assert cut.dtype.newbyteorder("=") == whole.dtype.newbyteorder("=")
    assert (cut.slope, cut.inter) == (whole.slope, whole.inter)
    assert cut_to(path, 7) == path


def test_scale_factors_of_nifti2_are_exact(tmp_path):
    """Those of NIfTI-2 have more digits, so a copy is NIfTI-2, too."""
    img = nib.Nifti2Pair(np.arange(24, dtype="i2").reshape(2, 3, 2, 2), np.eye(4))
    img.header.set_slope_inter(0.1, 1 / 3)
    nib.save(img, tmp_path / "pair.img")
    copy = nib.load(data.prepare_own(tmp_path / "pair.img"))
    np.testing.assert_array_equal(copy.dataobj, nib.load(tmp_path / "pair.img").dataobj)


def test_images_of_several_shapes_are_not_joined(tmp_path):
    """Their bytes, one after the other, would be another image."""
    imgs = [make_image((5, 6, 4, 2)), make_image((6, 5, 4, 2))]
    with pytest.raises(ValueError, match="another shape"):
        write_joined(imgs, 4, tmp_path / "joined.nii")


@pytest.mark.parametrize("name", ["fmri.hdr", "fmri.img.gz", "run[1].nii", "a*b?.nii.bz2"])
def test_own_image_that_nilearn_cannot_name(name, tmp_path, monkeypatch):
    """A pair is copied, a file with brackets linked: nilearn reads it, until the file changes."""
    img = make_image(dtype="<i2", scaling=(0.5, 2))
    img.set_sform(None)
    img.set_qform(OBLIQUE, "scanner")
    img.header.set_xyzt_units("mm", "sec")
    nib.save(img, tmp_path / name)
    monkeypatch.setenv("FMRI", str(tmp_path / name))
    monkeypatch.setenv("ATLAS", str(tmp_path / name))
    path = prepare_fmri(2)
    own, read_by_nilearn = nib.load(tmp_path / name), load_img(path)
    np.testing.assert_array_equal(read_by_nilearn.dataobj, own.dataobj)
    np.testing.assert_array_equal(read_by_nilearn.affine, own.affine)
    assert read_by_nilearn.header.get_zooms() == own.header.get_zooms()
    assert read_by_nilearn.header.get_xyzt_units() == ("mm", "sec")
    assert prepare_fmri(2) == path
    for file in files_of_image(tmp_path / name)[-1:]:
        os.utime(file, ns=(0, 0))
        assert prepare_fmri(2) != path


def test_image_and_labels_of_the_benchmark(monkeypatch, cache):
    """The image has all volumes, though few are made at once; each label is around its centre."""
    affine = np.array([[-8.0, 0, 0, 92], [0, 8, 0, -128], [0, 0, 8, -76], [0, 0, 0, 1]])
    monkeypatch.setattr(synthetic, "MNI_SHAPE", (24, 29, 24))
    monkeypatch.setattr(synthetic, "MNI_AFFINE", affine)
    cache.mkdir()
    write_2mm(5, cache, n_at_once=2)
    img = nib.load(cache / "fmri.nii.gz")
    assert (img.shape, img.header.get_zooms()) == ((24, 29, 24, 5), (8, 8, 8, 2))
    assert np.ptp(read(cache / "fmri.nii.gz"), axis=3).any(), "all volumes are the same"
    path = on_grid_of(cache / "fmri.nii.gz", synthetic.synthetic_labels, 30)
    labels = nib.load(path)
    np.testing.assert_array_equal(labels.affine, affine)
    centres = synthetic.random_centres(30, (24, 29, 24), affine)
    voxels = nib.affines.apply_affine(np.linalg.inv(affine), centres).round().astype(int)
    assert read(path)[tuple(voxels.T)].tolist() == list(range(1, 31))
    brain = synthetic.template_on((24, 29, 24), affine) > 0
    np.testing.assert_array_equal(read(path) > 0, brain)
    assert on_grid_of(cache / "fmri.nii.gz", synthetic.synthetic_labels, 30) == path
    assert on_grid_of(cache / "fmri.nii.gz", synthetic.synthetic_labels, 31) != path


@pytest.mark.parametrize(("most_mib", "n_volumes"), [(0.1, 1), (1, 2), (1000, 5)])
def test_first_volumes(tmp_path, most_mib, n_volumes):
    """As many volumes as fit, at least one, are read."""
    path = write(tmp_path / "fmri.nii", np.random.default_rng(0).normal(size=(40, 40, 40, 5)))
    first = first_volumes(path, most_mib)
    np.testing.assert_array_equal(first.dataobj, read(path)[..., :n_volumes])


def test_synthetic_atlas():
    """The default atlas has overlapping maps inside the brain, on a grid of its own."""
    img = nib.load(get_atlas_path())
    maps = np.asarray(img.dataobj)
    assert (maps.shape, maps.dtype) == ((63, 76, 63, 64), np.float32)
    assert not np.allclose(img.affine, synthetic.FMRI_AFFINE)
    assert np.count_nonzero(maps, axis=(0, 1, 2)).min() > 100, "a map is empty, or nearly so"
    assert (np.count_nonzero(maps, axis=3) > 1).any(), "no two maps overlap"
    corners = maps[np.ix_([0, -1], [0, -1], [0, -1])]
    assert not corners.any(), "regions outside the brain"


def test_prepared_data_are_reused(monkeypatch):
    """Data are made once for the same options and code, and anew for others."""
    made = []

    def synthetic_fmri(subject):
        made.append(subject)
        return nib.Nifti1Image(np.full((3, 4, 5, 2), subject, dtype="float32"), AFFINE)

    monkeypatch.setattr(data, "synthetic_fmri", synthetic_fmri)
    monkeypatch.setattr(data, "FMRI_SHAPE", (3, 4, 5, 2))
    path = prepare_fmri(2)
    np.testing.assert_array_equal(read(path)[0, 0, 0], [0, 0, 1, 1])
    assert prepare_fmri(2) == path
    assert nib.load(prepare_fmri(1)).shape == (3, 4, 5, 2)
    source = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda code: source(code) + "# changed")
    assert prepare_fmri(2) != path
    assert made == [0, 1, 0, 0, 1]


def test_own_files_are_used(tmp_path, fmri_path, monkeypatch):
    """The pages use the reader's own image and regions, as they are."""
    masks, _ = write_atlas("masks", tmp_path)
    monkeypatch.setenv("FMRI", str(fmri_path))
    for atlas, expected in ((masks[:1], masks[0]), (masks, masks)):
        monkeypatch.setenv("ATLAS", shlex.join(map(str, atlas)))
        assert (prepare_fmri(2), get_atlas_path()) == (fmri_path, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outside", [0, np.nan])
def test_masks_are_the_regions_on_the_grid_of_the_image(kind, outside, tmp_path, fmri_path):
    """A mask is the atlas' region on the image's grid, binary; NaN is in no region."""
    atlas_path, regions = write_atlas(kind, tmp_path)
    for path in (atlas_path if kind == "masks" else [atlas_path]) if outside else []:
        values = read(path).astype("float32")
        write(path, np.where(values, values, outside), ATLAS_AFFINE)
    mask_imgs, mask_paths = atlas_to_masks(atlas_path, str(fmri_path), 3)
    assert len(set(mask_paths)) == 3
    for mask_img, mask_path, region in zip(mask_imgs, mask_paths, regions, strict=True):
        assert type(mask_img.dataobj) is np.ndarray
        for img in (mask_img, nib.load(mask_path)):
            assert img.get_data_dtype() == np.uint8
            np.testing.assert_array_equal(img.affine, AFFINE)
            np.testing.assert_array_equal(img.dataobj, on_grid(region, fmri_path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxes", [INSIDE, OUTSIDE])
def test_labels_are_the_numbers_of_the_regions(kind, boxes, tmp_path, fmri_path):
    """A label image has the number of each region; the last counts; one may lie outside."""
    atlas_path, regions = write_atlas(kind, tmp_path, boxes)
    expected = np.zeros(GRID)
    for number, region in enumerate(regions, start=1):
        expected[on_grid(region, fmri_path) != 0] = number
    labels_img = nib.load(atlas_to_labels(atlas_path, fmri_path))
    np.testing.assert_array_equal(labels_img.affine, AFFINE)
    np.testing.assert_array_equal(labels_img.dataobj, expected)
    if boxes is INSIDE:
        _, mask_paths = atlas_to_masks(atlas_path, fmri_path, 3)
        of_masks = nib.load(atlas_to_labels(mask_paths, mask_paths[0]))
        np.testing.assert_array_equal(of_masks.affine, AFFINE)
        np.testing.assert_array_equal(of_masks.dataobj, expected)


def cut(path):
    """Cut the end of a file off."""
    os.truncate(path, path.stat().st_size - 50)


def move(path):
    """Move an image so far away that its grid overlaps no other."""
    img = nib.load(path)
    data, affine = img.get_fdata().astype(img.get_data_dtype()), img.affine + 1000 * np.eye(4, k=3)
    nib.save(nib.Nifti1Image(data, affine, dtype=data.dtype), path)


def to_ones(*shape, dtype="uint8"):
    """Return a function that writes ones into a file."""
    return lambda path: write(path, np.ones(shape, dtype), ATLAS_AFFINE)


to_text, to_3d = partial(Path.write_text, data="a"), to_ones(*GRID)
to_4d, to_5d = to_ones(*ATLAS_GRID, 2), to_ones(*ATLAS_GRID, 2, 2)
to_complex = to_ones(*ATLAS_GRID, dtype="complex64")
SHAPE = r"has shape \(30, 32, 28, .*; an atlas is"
BAD = {  # name: kind of atlas, boxes, number of regions, what happens to which file, message
    "none": ("maps", INSIDE, 0, None, 0, "^0 regions were asked for; at least 1"),
    "too many": ("masks", INSIDE, 4, None, 0, r"4 regions were asked for.* 3\b.*to 3"),
    "empty map": ("maps", OUTSIDE, 3, None, 0, "map 2 of .*maps.nii.gz is empty on the .* fmri"),
    "empty label": ("labels", OUTSIDE, 3, None, 0, "label 5 of .*labels.nii is empty on the grid"),
    "elsewhere": ("labels", INSIDE, 3, move, 0, "label 2 of .*labels.nii is empty on the grid of"),
    "empty mask": ("masks", OUTSIDE, 3, None, 0, "roi 1.* is empty on the grid of"),
    "4D mask": ("masks", INSIDE, 1, to_4d, 1, SHAPE),
    "5D atlas": ("maps", INSIDE, 1, to_5d, 0, SHAPE),
    "complex": ("maps", INSIDE, 1, to_complex, 0, "maps.* not an image of real"),
    "text": ("labels", INSIDE, 1, to_text, 0, "labels.nii is incomplete"),
    "image is text": ("masks", INSIDE, 1, to_text, -1, "fmri.nii.gz is incomplete"),
    "cut off": ("masks", INSIDE, 3, cut, 1, "roi 1.nii.gz is incomplete or damaged"),
    "missing mask": ("masks", INSIDE, 3, Path.unlink, 1, "roi 1.nii.gz"),
    "missing image": ("masks", INSIDE, 3, Path.unlink, -1, "own fmri.nii.gz"),
    "3D image": ("masks", INSIDE, 1, to_3d, -1, "fmri.* shape .*8.; a 4D image"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_regions_that_cannot_be_had(bad, tmp_path, fmri_path, cache):
    """Whatever is wrong with atlas or image, the error names the file, and nothing is kept."""
    kind, boxes, n_regions, spoil, which, message = bad
    atlas_path, _ = write_atlas(kind, tmp_path, boxes)
    if spoil:
        spoil([*np.atleast_1d(atlas_path), fmri_path][which])
    with pytest.raises((ValueError, OSError), match=message):
        atlas_to_masks(atlas_path, fmri_path, n_regions)
    assert not cache.exists() or not list(cache.iterdir())


def test_masks_are_reused_until_a_file_or_the_code_changes(tmp_path, fmri_path, monkeypatch):
    """The atlas is resampled once; after a change of a file or of the code, masks are made anew."""
    weights = read(write_atlas("maps", tmp_path)[0])
    atlas_path = write(tmp_path / "atlas.nii", weights, ATLAS_AFFINE)
    made = [atlas_to_masks(atlas_path, fmri_path, 2)[1]]
    with monkeypatch.context() as patch:
        patch.setattr(data, "read_volumes", None)
        assert atlas_to_masks(atlas_path, fmri_path, 2)[1] == made[0]

    def changed(path, values, affine, time):
        write(path, values, affine)
        os.utime(path, ns=(time, time))
        mask_imgs, paths = atlas_to_masks(atlas_path, fmri_path, 2)
        made.append(paths)
        for i, mask_img in enumerate(mask_imgs):
            expected = on_grid(read(atlas_path)[..., i] != 0, fmri_path)
            np.testing.assert_array_equal(mask_img.dataobj, expected)

    changed(atlas_path, weights[..., :2], ATLAS_AFFINE, 1)
    changed(atlas_path, weights[..., 1:], ATLAS_AFFINE, 1 + 10**9)  # of the same size
    changed(fmri_path, read(fmri_path), AFFINE @ np.diag([1, 1, 1.1, 1]), 1)
    source = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda code: source(code) + "#")
    made.append(atlas_to_masks(atlas_path, fmri_path, 2)[1])
    assert len({path for paths in made for path in paths}) == 5 * 2


def test_downloaded_data_are_used(tmp_path, fmri_path, monkeypatch):
    """The image is joined from the files that nilearn returns, and the atlas is its file."""
    adult = write(tmp_path / "adult.nii.gz", read(fmri_path)[..., ::-1])
    maps, regions = write_atlas("maps", tmp_path)
    found = {"func": [adult, fmri_path], "maps": str(maps)}
    for name in ("fetch_development_fmri", "fetch_atlas_difumo"):
        fetcher = create_autospec(getattr(data, name), return_value=SimpleNamespace(**found))
        monkeypatch.setattr(data, name, fetcher)
    monkeypatch.setenv("DATA", "development_fmri")
    path = prepare_fmri(2)
    data.fetch_development_fmri.assert_called_once_with(verbose=0, n_subjects=2)
    expected = np.concatenate([read(adult), read(fmri_path)], axis=3)
    np.testing.assert_array_equal(read(path), expected)
    np.testing.assert_array_equal(nib.load(path).affine, AFFINE)
    assert get_atlas_path() == maps
    data.fetch_atlas_difumo.assert_called_once_with(verbose=0, dimension=64, resolution_mm=2)
    (mask_img,), _ = atlas_to_masks(get_atlas_path(), path, 1)
    np.testing.assert_array_equal(mask_img.dataobj, on_grid(regions[0], path))


@pytest.mark.parametrize(
    ("get", "fetcher"),
    [(lambda: prepare_fmri(2), "fetch_development_fmri"), (get_atlas_path, "fetch_atlas_difumo")],
    ids=["image", "atlas"],
)
def test_download_without_a_network(get, fetcher, cache, tmp_path, monkeypatch):
    """Without a network, the error says in one sentence what to do."""

    def refuse(*args, **kwargs):
        raise OSError("this test has no network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("DATA", "development_fmri")
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path / "nilearn_data"))
    monkeypatch.delenv("NILEARN_SHARED_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConnectionError) as error:
        get()
    message = str(error.value)
    for part in (f"{fetcher} could not", "osf.io", "NILEARN_DATA", "DATA=synthetic"):
        assert part in message
    assert "\n" not in message
    assert not cache.exists() or not list(cache.iterdir())
