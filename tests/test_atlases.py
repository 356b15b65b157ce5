"""Every series gets the columns of its atlas, and the coverage says how much of each is there."""

import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nilearn.image import resample_img
from nilearn.maskers import (
    MultiNiftiMasker,
    NiftiLabelsMasker,
    NiftiMapsMasker,
    NiftiMasker,
    NiftiSpheresMasker,
)

from beyond_the_masker.extract.maskers import stream_masker
from beyond_the_masker.extract.regions import sphere_voxels
from beyond_the_masker.extract.streaming import version_of
from beyond_the_masker.studies.atlases import (
    complete,
    coverage,
    for_study,
    read_atlas,
    stored,
    union_of,
    without_empty,
)
from made_images import STRAIGHT, by_name, changed, write

GRID = (6, 7, 5)
pytestmark = pytest.mark.filterwarnings("ignore:\\s*After (applying mask|resampling) ")
RANDOM = np.random.default_rng(0)
DATA = RANDOM.normal(100, 30, (*GRID, 9)).astype("<f4")
HALF = np.broadcast_to(np.arange(6)[:, None, None] > 2, GRID)  # of the grid
LABELS = RANDOM.choice([0, 40, 7, 3, 1000], GRID)
LABELS[LABELS == 3] = 0
LABELS[0, :2, 0] = 3  # outside of HALF
SHIFTED = nib.affines.from_matvec(STRAIGHT[:3, :3], STRAIGHT[:3, 3] + [6, 0, -4])
FINE = nib.affines.rescale_affine(STRAIGHT, GRID, (2.1, 2.1, 2.1), GRID)
COARSE = nib.affines.from_matvec(np.diag([6.0, 6, 8]), STRAIGHT[:3, 3])


@pytest.fixture
def fmri_path(tmp_path):
    """Write an image."""
    return write(tmp_path / "fmri.nii", DATA)


def image_of(data, dtype="u1", affine=STRAIGHT):
    """Return an image of an array."""
    return nib.Nifti1Image(np.asarray(data).astype(dtype), affine, dtype=dtype)


def extract(atlas, image, masked=False, **parameters):
    """Return the completed series of an atlas, and its coverage, as a study makes them."""
    parameters |= {"mask_img": image_of(HALF)} if masked else {}
    masker = without_empty(for_study(atlas.masker, **parameters), nib.load(image))
    return complete(atlas, masker, stream_masker(masker, image), nib.load(image))


def check_labels(found, labels, numbers, background, masked):
    """Compare series and coverage with averages and counts of each label's voxels."""
    series, shares = found
    left = np.where(HALF, labels, background) if masked else labels
    np.testing.assert_allclose(series, averages(left, numbers), rtol=1e-5)
    counts = [np.count_nonzero(left == n) / np.count_nonzero(labels == n) for n in numbers]
    np.testing.assert_allclose(shares, counts, rtol=1e-12)


def averages(labels, numbers):
    """Return the average of each label's voxels in every volume; NaN if there are none."""
    nothing = np.full(DATA.shape[3], np.nan)
    inside = [labels == n for n in numbers]
    return np.transpose([DATA[one].mean(axis=0) if one.any() else nothing for one in inside])


# Columns
# -------


BITS = {"u1": 8, "<i2": 15, ">i4": 31, "<u4": 32, "<f4": 24, "<f8": 40}  # of the largest label


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # labels above 2**31
@given(
    dtype=st.sampled_from([*BITS]),
    values=st.lists(st.integers(-300, 2**41), min_size=1, max_size=5, unique=True),
    background=st.sampled_from([0, 0, 2]),
    keep=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_columns_are_those_of_the_labels(
    tmp_path_factory, dtype, values, background, keep, masked, seed
):
    """Any labels have their columns in increasing order, also those that the mask hides."""
    random, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("labels")
    low, high = 0 if "u" in dtype else -300, 2 ** BITS[dtype] - 1
    values = sorted({min(max(value, low), high) for value in values} - {background}) or [5]
    labels = random.choice([background, *values], GRID, p=[0.5] + [0.5 / len(values)] * len(values))
    labels[0, 0, 0], labels[5, 0, 0], labels[5, 1, 0] = values[0], values[-1], background
    fmri_path = write(folder / "fmri.nii", DATA)
    atlas_path = write(folder / "atlas.nii.gz", labels.astype(dtype))
    options = {"background_label": background, "keep_masked_labels": keep, "reports": True}
    atlas = read_atlas("a", NiftiLabelsMasker(atlas_path, **options))
    present = np.unique(labels[labels != background])
    assert atlas.numbers == present.tolist()
    assert atlas.regions == [f"region_{label}" for label in present]
    check_labels(extract(atlas, fmri_path, masked), labels, present, background, masked)


UNUSUAL = {  # labels, the background, the numbers of the regions
    "one region without background": (np.full(GRID, 5.0), 0, [5]),
    "NaN in the background": (np.where(LABELS == 0, np.nan, LABELS), 0, [3, 7, 40, 1000]),
    "NaN is a region": (np.where(LABELS == 7, np.nan, LABELS), 3, [0, 40, 1000]),
    "negative background": (LABELS - 3.0, -3, [0, 4, 37, 997]),
    "a fourth axis of one": (LABELS[..., None], 0, [3, 7, 40, 1000]),
}


@pytest.mark.filterwarnings("ignore:Non-finite values", "ignore:.*The image either contains no")
@by_name(("labels", "background", "numbers"), UNUSUAL)
@pytest.mark.parametrize("masked", [False, True])
def test_unusual_labels_have_the_columns_of_nilearn(
    fmri_path, tmp_path, labels, background, numbers, masked
):
    """For nilearn, what is not finite is zero, and zero is a region if it is not the background."""
    path = write(tmp_path / "atlas.nii", labels.astype("<f4"))
    atlas = read_atlas("a", NiftiLabelsMasker(path, background_label=background))
    assert atlas.numbers == numbers
    labels = np.nan_to_num(labels).reshape(GRID)
    check_labels(extract(atlas, fmri_path, masked), labels, numbers, background, masked)


ON_OTHER_GRIDS = {  # affine of the atlas, whether the image is resampled to it
    "shifted by whole voxels": (SHIFTED, "data"),
    "image to labels": (SHIFTED, "labels"),
    "finer than the image": (FINE, "data"),
    "coarser than the image": (COARSE, "data"),
}


@pytest.mark.filterwarnings("ignore:.*esampling")
@by_name(("affine", "target"), ON_OTHER_GRIDS)
@pytest.mark.parametrize("masked", [False, True])
def test_labels_that_vanish_keep_their_columns(fmri_path, affine, target, masked):
    """Resampled labels have the columns of the atlas; regions outside are NaN."""
    labels = np.where(LABELS == 7, 0, LABELS)
    labels[5, 6, 4] = 7
    img = image_of(labels, "i4", affine)
    atlas = read_atlas("a", NiftiLabelsMasker(img, resampling_target=target))
    series, shares = extract(atlas, fmri_path, masked)
    if target == "labels":  # the image is resampled: nothing vanishes, but regions lie outside
        there = np.zeros(GRID, bool)
        there[:4, :, 1:] = HALF[2:, :, :4] if masked else True
        expected = [(there & (labels == n)).sum() / (labels == n).sum() for n in atlas.numbers]
        np.testing.assert_allclose(shares, expected)
        return
    options = {"target_affine": STRAIGHT, "target_shape": GRID, "interpolation": "nearest"}
    resampled = resample_img(img, **options).get_fdata()
    resampled = np.where(HALF, resampled, 0) if masked else resampled
    np.testing.assert_allclose(series, averages(resampled, atlas.numbers), rtol=1e-5)
    assert not shares[np.isnan(series).all(axis=0)].any()


def make_maps():
    """Return four maps: one of them only outside of HALF, one only in its first plane."""
    maps = RANDOM.normal(size=(*GRID, 4)) * (RANDOM.random((*GRID, 4)) < 0.6)
    maps[3:, ..., 1] = 0
    maps[1:, ..., 3] = 0
    return maps


MAPS = make_maps()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_maps_that_a_mask_hides_keep_their_columns(fmri_path, tmp_path, keep, masked):
    """Series are the least squares of the maps that are left; the coverage counts weights."""
    path = write(tmp_path / "maps.nii.gz", MAPS.astype("<f8"))
    atlas = read_atlas("a", NiftiMapsMasker(path, keep_masked_maps=keep))
    assert atlas.regions == ["map_1", "map_2", "map_3", "map_4"]
    mask = HALF if masked else np.ones(GRID, bool)
    series, shares = extract(atlas, fmri_path, masked)
    expected = np.full(series.shape, np.nan)
    left = [0, 2] if masked else [0, 1, 2, 3]
    expected[:, left] = np.linalg.lstsq(MAPS[mask][:, left], DATA[mask], rcond=None)[0].T
    np.testing.assert_allclose(series, expected, rtol=1e-4)
    np.testing.assert_allclose(shares, np.abs(MAPS[mask]).sum(0) / np.abs(MAPS).sum((0, 1, 2)))
    if not masked:
        assert set(shares) == {1.0}


def test_maps_outside_of_the_image_are_missing(fmri_path, tmp_path):
    """nilearn gives zeros for a map that has no weights in the image: here it is NaN."""
    maps = MAPS.copy()
    maps[:4, ..., 2] = 0  # the last two planes are outside
    path = write(tmp_path / "maps.nii", maps.astype("<f4"), SHIFTED)
    series, shares = extract(read_atlas("a", path), fmri_path)
    np.testing.assert_array_equal(np.isnan(series).all(axis=0), [False, False, True, False])
    weights = np.abs(maps.astype("<f4"))
    expected = weights[:4, :, 1:].sum(axis=(0, 1, 2)) / weights.sum(axis=(0, 1, 2))
    np.testing.assert_allclose(shares, expected, rtol=1e-6)


def test_spheres_without_voxels_are_missing(fmri_path):
    """nilearn refuses an empty sphere: here its column is NaN, and the others are nilearn's."""
    seeds = [(-60, 0, 0), (2, 1, 2), (-7, -9, -6), (-60, 0, 0), (2, 1, 2)]
    options = {"radius": 5, "allow_overlap": True}
    atlas = read_atlas("a", NiftiSpheresMasker(iter(seeds), **options))
    assert atlas.regions == [f"sphere_{n}" for n in range(1, 6)]
    series, shares = extract(atlas, fmri_path)
    alone = NiftiSpheresMasker(seeds[1:3], standardize=None, reports=False, **options)
    expected = alone.fit_transform(fmri_path)
    np.testing.assert_array_equal(series[:, [1, 2]], expected)
    np.testing.assert_array_equal(series[:, 4], expected[:, 0])
    assert np.isnan(series[:, [0, 3]]).all()
    assert shares[0] == shares[3] == 0
    assert shares[1] == shares[4] == 1
    assert 0 < shares[2] < 1  # at a corner of the image
    only_far = read_atlas("a", NiftiSpheresMasker(seeds[:1], radius=5))
    with pytest.raises(ValueError, match="These spheres are empty"):
        extract(only_far, fmri_path)


@given(
    seed=st.tuples(*[st.floats(-20, 20)] * 3),
    radius=st.sampled_from([None, 0.1, 4, 7.5]),
    masked=st.booleans(),
)
def test_coverage_of_spheres(seed, radius, masked):
    """The share of a sphere counts the same voxels as its average."""
    img = nib.Nifti1Image(DATA, STRAIGHT)
    mask = image_of(HALF) if masked else None
    atlas = read_atlas("a", NiftiSpheresMasker([seed], radius, mask_img=mask))
    masker = atlas.masker.fit()
    [share] = coverage(atlas, masker, img, np.array([0]))
    [voxels] = sphere_voxels(masker, img)
    padded = nib.Nifti1Image(
        np.zeros((36, 37, 35)), STRAIGHT @ nib.affines.from_matvec(np.eye(3), [-15] * 3)
    )
    whole = NiftiSpheresMasker([seed], radius).fit()
    assert share == pytest.approx(len(voxels) / len(sphere_voxels(whole, padded)[0]), abs=0.51)
    if not len(voxels):
        assert share == 0


def test_voxels_of_a_mask(fmri_path):
    """A NiftiMasker has a column for each voxel, and keeps its own mask."""
    atlas = read_atlas("a", NiftiMasker(image_of(HALF)))
    assert atlas.regions[:2] == ["voxel_1", "voxel_2"]
    series, shares = extract(atlas, fmri_path, mask_img=image_of(~HALF))
    np.testing.assert_array_equal(series, DATA[HALF].T)
    assert np.isnan(shares).all()


def test_a_series_of_another_masker_is_refused(fmri_path):
    """Columns must be those of the masker, and its regions those of the atlas."""
    atlas, other = (read_atlas("a", image_of(LABELS * n, "i4")) for n in (1, 2))
    masker = for_study(atlas.masker)
    series, img = stream_masker(masker, fmri_path), nib.load(fmri_path)
    with pytest.raises(ValueError, match="its masker has 4 columns"):
        complete(atlas, masker, series[:, 1:], img)
    with pytest.raises(ValueError, match="has no label 3: was it changed"):
        complete(other, masker, series, img)
    assert complete(atlas, masker, series, img)[0] is series
    integers, _ = complete(union_of([atlas, other]), masker, series.astype(int), img)
    assert integers.dtype == float


# Names
# -----


TABLE = "index\tname\n0\tBackground\n7\tleft V1\n40\tright\n3\tright\n9\tnowhere\n"
NAMED = ["right_3", "left V1", "right_40", "region_1000"]


@pytest.mark.parametrize("place", ["beside", "above", "above the dataset"])
def test_names_come_from_a_lookup_table(tmp_path, place):
    """A table beside the image, or above it in its dataset, names the labels."""
    folder = tmp_path / "data" / "sub-1" / "anat"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "dataset_description.json").touch()
    above = {"beside": folder, "above": tmp_path / "data", "above the dataset": tmp_path}
    (above[place] / "desc-aparcaseg_dseg.tsv").write_text(TABLE)
    path = write(folder / "sub-1_space-T1w_desc-aparcaseg_dseg.nii.gz", LABELS.astype("<i2"))
    expected = [f"region_{n}" for n in (3, 7, 40, 1000)] if place.startswith("above the") else NAMED
    assert read_atlas("a", path).regions == expected


def test_names_of_a_masker_come_first(tmp_path):
    """The lookup table or the labels of a masker name its regions, as nilearn understands them."""
    path = write(tmp_path / "a_dseg.nii", LABELS.astype("<i2"))
    (tmp_path / "a_dseg.tsv").write_text(TABLE)
    lut = pd.DataFrame({"index": [3, 7, 40, 1000], "name": ["a", "b b", "c", "d"]})
    lut.to_csv(tmp_path / "lut.csv", index=False)
    for given_lut in (lut, tmp_path / "lut.csv"):
        atlas = read_atlas("a", NiftiLabelsMasker(path, lut=given_lut))
        assert atlas.regions == list(lut.name)
        assert atlas.masker.lut is None  # workers need no names
    masker = NiftiLabelsMasker(path, labels=["Background", "x", "y", "z", "x"])
    assert read_atlas("a", masker).regions == ["x_3", "y", "z", "x_1000"]
    assert read_atlas("a", NiftiLabelsMasker(path)).regions == NAMED


def test_names_of_maps(tmp_path):
    """The index of a table beside maps is the number of a volume."""
    path = write(tmp_path / "a_probseg.nii", MAPS.astype("<f4"))
    (tmp_path / "a_probseg.tsv").write_text("index\tname\n3\td\n2\tc\n1\tb\n0\ta\n")
    assert read_atlas("a", path).regions == ["a", "b", "c", "d"]


def test_union_has_the_regions_of_all(fmri_path, tmp_path):
    """Atlases of several images have the columns of all labels, and each fills its own."""
    (tmp_path / "dseg.tsv").write_text(TABLE)
    left = write(tmp_path / "sub-1_dseg.nii", np.where(LABELS == 7, 0, LABELS).astype("<i2"))
    right = write(tmp_path / "sub-2_dseg.nii", np.where(LABELS == 3, 0, LABELS).astype("<i2"))
    atlases = [read_atlas("aseg", path) for path in (left, right)]
    union = union_of(atlases)
    assert union.regions == NAMED
    assert union.numbers == [3, 7, 40, 1000]
    for atlas, missing in zip(atlases, (1, 0), strict=True):
        masker = for_study(atlas.masker)
        series = stream_masker(masker, fmri_path)
        series, shares = complete(union, masker, series, nib.load(fmri_path))
        expected = averages(LABELS, union.numbers)
        expected[:, missing] = np.nan
        np.testing.assert_allclose(series, expected, rtol=1e-5)
        np.testing.assert_array_equal(shares, np.arange(4) != missing)


def test_atlases_that_differ_have_no_union(tmp_path):
    """One label has one name, and maps have one number."""
    path = write(tmp_path / "dseg.nii", LABELS.astype("<i2"))
    plain = read_atlas("a", path)
    (tmp_path / "dseg.tsv").write_text(TABLE)
    with pytest.raises(ValueError, match="together, it names 3 twice: region_3 and right_3"):
        union_of([plain, read_atlas("a", path)])
    maps = [read_atlas("a", image_of(MAPS[..., :n], "f4")) for n in (2, 3)]
    with pytest.raises(ValueError, match="It has other regions in some images"):
        union_of(maps)


# Maskers of a study
# ------------------


def test_a_study_sets_what_a_masker_leaves_alone(tmp_path):
    """Parameters that differ from the defaults are kept, and all others are the study's."""
    path = write(tmp_path / "dseg.nii", LABELS.astype("<i2"))
    study = {"mask_img": "brain.nii", "t_r": 2.0, "detrend": True, "smoothing_fwhm": 6}
    study["standardize"] = "zscore_sample"
    own = NiftiLabelsMasker(path, standardize=None, smoothing_fwhm=4, memory=str(tmp_path))
    atlas = read_atlas("a", own)
    masker = for_study(atlas.masker, **study)
    assert masker.mask_img.endswith("brain.nii")
    assert (masker.t_r, masker.detrend) == (2.0, True)
    assert (masker.standardize, masker.smoothing_fwhm) == (None, 4)
    assert not masker.reports
    assert for_study(read_atlas("a", path).masker).standardize is None


STORED = [("i8", 0, "u2"), ("f8", -1, "i4"), ("i2", -1, "i2"), ("f4", 0.5, "f4")]


@pytest.mark.filterwarnings("ignore:.*esampling", "ignore:.*64-bit ints")
@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("dtype", "background", "kind"), STORED)
def test_images_are_stored_for_workers(fmri_path, tmp_path, in_memory, dtype, background, kind):
    """Workers get paths, of labels in the smallest type, and the values are the same."""
    labels = np.where(LABELS, LABELS, background).astype(dtype)
    path = write(tmp_path / "dseg.nii.gz", labels, COARSE)
    options = {"background_label": background, "mask_img": image_of(HALF)}
    source = image_of(labels, dtype, COARSE) if in_memory else path
    atlas = read_atlas("a", NiftiLabelsMasker(source, **options))
    on_disk = stored(atlas, tmp_path / "out")
    assert len(pickle.dumps(on_disk)) < 5000
    assert nib.load(on_disk.masker.labels_img).get_data_dtype() == kind
    assert (on_disk.masker.labels_img == str(path)) == (kind == dtype and not in_memory)
    for found, expected in zip(extract(on_disk, fmri_path), extract(atlas, fmri_path), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_stored_atlas_is_left_alone(tmp_path):
    """Another part of a study may read it, and would take a new version for a change."""
    atlas = read_atlas("a", NiftiLabelsMasker(image_of(LABELS)))
    path = Path(stored(atlas, tmp_path).masker.labels_img)
    before = version_of(path)
    assert stored(atlas, tmp_path).masker.labels_img == str(path)
    assert version_of(path) == before
    content = path.read_bytes()
    path.write_bytes(content[:-1])  # it is damaged
    stored(atlas, tmp_path)
    assert path.read_bytes() == content


# Errors
# ------


def of_labels(**parameters):
    """Return a masker of labels."""
    return NiftiLabelsMasker(image_of(LABELS, "i2"), **parameters)


LUT = pd.DataFrame({"index": [3, 7, 7], "name": ["a", "b", "c"]})
BAD = {
    "nothing": (None, "NoneType is not an image"),
    "no file": ("none.nii", "none.nii"),
    "folder": (".", "is a folder"),
    "text": ("a_dseg.tsv", "not an image"),
    "pattern": ("[a].nii", "takes for a pattern"),
    "link": ("link.nii", "datalad get"),
    "5D": (image_of(np.ones((2, 2, 2, 2, 2))), "labels are 3D, maps are 4D"),
    "no label": (image_of(np.zeros(GRID)), "It has no region"),
    "weights in 3D": (image_of(MAPS[..., 0], "f4"), "labels are whole numbers"),
    "empty map": (image_of(MAPS * [1, 0, 1, 1], "f4"), "Volume 2 of .* is empty"),
    "labels in 4D": (NiftiLabelsMasker(image_of(MAPS, "f4")), "labels are 3D"),
    "no mask": (NiftiMasker(), "NiftiMasker needs mask_img"),
    "empty mask": (NiftiMasker(image_of(np.zeros(GRID))), "is an empty mask"),
    "no seeds": (NiftiSpheresMasker([]), "It has no region"),
    "seed at NaN": (NiftiSpheresMasker([(1, 2, np.nan)]), "not finite"),
    "no labels image": (NiftiLabelsMasker(), "NoneType is not an image"),
    "other masker": (MultiNiftiMasker(), "MultiNiftiMasker cannot be streamed"),
    "lut without names": (of_labels(lut=LUT[["index"]]), "needs the columns index and name"),
    "index twice in a lut": (of_labels(lut=LUT), "names 7 twice: b and c"),
    "label twice": ("a_dseg.nii", "names 7 twice: a and b"),
    "name twice": ("b_dseg.nii", "regions have the name region_40"),
    "no index": ("c_dseg.nii", r"c_dseg.tsv is incomplete or damaged"),
}
ROWS = {"a": "7\ta\n7\tb", "b": "7\tregion_40", "c": "seven\ta"}


@by_name(("source", "message"), BAD)
def test_an_atlas_that_cannot_be_used_is_refused_at_once(tmp_path, monkeypatch, source, message):
    """The message names the atlas, and what is wrong."""
    monkeypatch.chdir(tmp_path)
    Path("link.nii").symlink_to("elsewhere")
    write("[a].nii", LABELS.astype("<i2"))
    for name, rows in ROWS.items():
        Path(f"{name}_dseg.tsv").write_text(f"index\tname\n{rows}\n")
        write(f"{name}_dseg.nii", LABELS.astype("<i2"))
    message = f"(?s)^The atlas Big7 cannot be used. .*{message}"
    with pytest.raises((ValueError, OSError), match=message):
        read_atlas("Big7", source)


@pytest.mark.parametrize("role", ["labels", "maps", "mask"])
def test_a_damaged_atlas_is_refused(tmp_path, role):
    """A changed byte, or a missing end, of a compressed file is found."""
    data = {"labels": LABELS, "maps": MAPS, "mask": HALF}[role]
    path = write(tmp_path / "a.nii.gz", data.astype("<f4"))
    source = NiftiMasker(path) if role == "mask" else path
    read_atlas("a", source)
    content = path.read_bytes()
    for damaged in (changed(content, len(content) // 2), changed(content, -6), content[:-4]):
        path.write_bytes(damaged)
        with pytest.raises(OSError, match=r"^The atlas a cannot be used. .*a.nii.gz"):
            read_atlas("a", source)
