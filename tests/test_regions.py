"""Regions as people have them: label images, 4D images, soft masks, cut off, and their names."""

import contextlib
import tempfile
import tracemalloc
import warnings
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beyond_the_masker.extract.blocks import mask_blocks
from beyond_the_masker.extract.checks import open_checked, to_grid
from beyond_the_masker.extract.streaming import find_voxels, stream_masks
from beyond_the_masker.predict.headers import count_all
from beyond_the_masker.studies.masks import read_masks
from beyond_the_masker.studies.results import read_about, read_arrays
from beyond_the_masker.studies.study import mask_study
from made_images import SHAPE, STRAIGHT, assert_same, changed, make_image, nifti_masker
from made_images import write as write_image

GRID = SHAPE[:3]
CHANCE = np.random.default_rng(3).random(GRID)
LABELS = np.digitize(CHANCE, [0.4, 0.6, 0.8]) * [[[-7, 3, 12, 400]]]  # varies along z


def study_arrays(fmri_path, masks, **options):
    """Return the arrays and names that `mask_study` writes."""
    table = mask_study([fmri_path], masks, tempfile.mkdtemp(dir=fmri_path.parent), **options)
    assert table.status[0] in ("done", "skipped"), table.reason[0]
    return read_arrays(table.file[0])


ENTRANCES = {
    "stream_masks": stream_masks,
    "mask_blocks": mask_blocks,
    "mask_study": lambda *given, **options: [*study_arrays(*given, **options).values()],
}
entrances = pytest.mark.parametrize("entrance", ENTRANCES)


@pytest.fixture
def fmri_path(tmp_path):
    """Write an image."""
    return write(tmp_path / "fmri.nii", np.random.default_rng(0).normal(100, 30, SHAPE), "<f4")


def write(path, data, dtype=None, affine=STRAIGHT):
    """Write an image; return its path."""
    return write_image(path, np.asarray(data).astype(dtype or data.dtype), affine)


def image_of(data, affine=STRAIGHT):
    """Return an image of an array."""
    return nib.Nifti1Image(data.astype("u1"), affine)


def masks_of(labels, affine=STRAIGHT):
    """Return an image of each label's voxels, in increasing order."""
    return [image_of(labels == label, affine) for label in np.unique(labels) if label]


@given(
    seed=st.integers(0, 2**32),
    values=st.lists(st.integers(-120, 120), min_size=2, max_size=6, unique=True),
    dtype=st.sampled_from(["i1", "<i2", ">i4", "<f4", ">f8"]),
    more_axes=st.sampled_from([(), (1,)]),
    suffix=st.sampled_from([".nii", ".nii.gz", ".nii.bz2", None]),
    entrance=st.sampled_from([*ENTRANCES]),
)
def test_each_label_is_a_region(seed, values, dtype, more_axes, suffix, entrance):
    """A label image, in a file or in memory, gives NiftiMasker's arrays in increasing order."""
    labels = np.random.default_rng(seed).choice([0, *values], GRID)
    labels.flat[: len(values)] = values  # none is missing
    with tempfile.TemporaryDirectory() as name:
        fmri_path = write(Path(name) / "fmri.nii", make_image().get_fdata(), "<f4")
        img = make_image(data=labels.reshape(GRID + more_axes), dtype=dtype)
        if suffix:
            img.to_filename(Path(name) / f"atlas{suffix}")
            img = Path(name) / f"atlas{suffix}"
        reference = nifti_masker(fmri_path, masks_of(labels))
        assert_same(ENTRANCES[entrance](fmri_path, img), reference)
        assert count_all(img, GRID) == [series.shape[1] for series in reference]


@entrances
def test_each_volume_is_a_region(fmri_path, tmp_path, entrance):
    """The volumes of a 4D image are masks, or maps that a threshold makes masks."""
    maps = np.stack([CHANCE, CHANCE[::-1], CHANCE**4 * 200], axis=3)
    reference = nifti_masker(fmri_path, [image_of(one > 0.5) for one in np.moveaxis(maps, 3, 0)])
    for data, options in ((maps > 0.5, {}), (maps, {"threshold": 0.5})):
        path = write(tmp_path / f"maps_{len(options)}.nii.gz", data, ">f4")
        for mask in (path, nib.Nifti1Image(data.astype(float), STRAIGHT)):
            assert_same(ENTRANCES[entrance](fmri_path, mask, **options), reference)
            assert count_all(mask, GRID, **options) == [series.shape[1] for series in reference]


@entrances
def test_threshold(fmri_path, entrance):
    """A threshold takes the values above it, in a list and alone, from labels, too."""
    for values, threshold in (
        (CHANCE, 0.5),
        (np.where(CHANCE > 0.5, CHANCE, np.inf), 0),
        (LABELS, 3),
    ):
        img = nib.Nifti1Image(values.astype(float), STRAIGHT)
        expected = nifti_masker(fmri_path, [image_of(np.isfinite(values) & (values > threshold))])
        for masks in ({"one": img}, img):
            assert_same(ENTRANCES[entrance](fmri_path, masks, threshold=threshold), expected)
        assert count_all([img], GRID, threshold) == [expected[0].shape[1]]


SOUND = {
    "255": 255 * (CHANCE > 0.5),
    "a label": 12 * (CHANCE > 0.5),
    "negative": -1 * (CHANCE > 0.5),
    "not whole": 0.9999999 * (CHANCE > 0.5),
    "NaN around": np.where(CHANCE > 0.5, 1, np.nan),
    "no background": np.ones(GRID),
}


@pytest.mark.filterwarnings("ignore:Non-finite")
@pytest.mark.parametrize("name", SOUND)
def test_one_value_is_a_mask(fmri_path, name):
    """A mask with one value is one region, alone and in a list, without a warning."""
    img = nib.Nifti1Image(np.asarray(SOUND[name], float), STRAIGHT)
    for masks in (img, {"one": img}):
        assert_same(stream_masks(fmri_path, masks), nifti_masker(fmri_path, [img]))


SEVERAL = {  # values, and what the warning says
    "labels": (LABELS, "instead of a list"),
    "noise": ((CHANCE > 0.5) + 1e-15, "threshold"),
    "rounded": (np.where(CHANCE > 0.5, 1, 0.9999999) * (CHANCE > 0.2), "threshold"),
    "signs": (np.sign(CHANCE - 0.5) * (CHANCE > 0.2), "instead of a list"),
    "resampled": (np.clip(255 * CHANCE - 99, 0, 99).astype(int), "instead of a list"),
    "probabilities": (CHANCE, "threshold"),
}


@entrances
@pytest.mark.parametrize("name", SEVERAL)
def test_several_values_in_a_list(fmri_path, entrance, name, tmp_path):
    """A mask in a list is what is not zero, as for NiftiMasker; one warning counts other values."""
    values, remedy = SEVERAL[name]
    path = write(tmp_path / "odd.nii.gz", values, "<f8")
    n_others = np.count_nonzero(~np.isin(values, [0, 1]))
    with pytest.warns(UserWarning, match=remedy) as found:
        series = ENTRANCES[entrance](fmri_path, [path])
    assert_same(series, nifti_masker(fmri_path, [path]))
    (message,) = (str(one.message) for one in found)
    assert message.startswith(f"{path} has {n_others} voxels whose values are neither 0 nor 1")
    assert f"All {np.count_nonzero(values)} that are not zero" in message
    assert found[0].filename == __file__ or entrance == "mask_study"


EMPTY = np.stack([CHANCE > 0.5, CHANCE > 2], axis=3)
REFUSED = {  # masks, threshold, what the error says
    "probabilities": (CHANCE, None, "{path} has 120 voxels .*threshold"),
    "noise": (1e-15 + (CHANCE > 0.5), None, "{path} has .* voxels .*threshold"),
    "labels that were scaled": (LABELS * 0.9999, None, "whole numbers"),
    "maps": (np.stack([CHANCE > 0.5, CHANCE], 3), None, "Volume 2 of {path} has 120 .*threshold"),
    "labels in 4D": (np.stack([LABELS] * 2, 3), None, "Volume 1 of {path} .*3D"),
    "empty volume": (EMPTY, None, "Volume 2 of {path} is empty"),
    "nothing above": (CHANCE, 1, "{path} is empty: no voxel is above 1"),
    "empty": (np.zeros(GRID), None, "{path} is empty: no voxel is non-zero"),
    "negative": (CHANCE, -0.5, "threshold is -0.5"),
    "no number": (CHANCE, np.nan, "threshold is nan"),
    "text": (CHANCE, "0.5", "threshold is 0.5; a number"),
    "infinite": (CHANCE, np.inf, "threshold is inf; a number is needed, 0 or more"),
    "5D": (np.ones((*GRID, 2, 2)), None, r"{path} has the shape \(5, 6, 4, 2, 2\)"),
    "another grid": (np.ones((5, 6, 5)), None, r"{path}.* \(5, 6, 5\).* \(5, 6, 4\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_region_is_refused(fmri_path, tmp_path, name):
    """What the rule cannot decide needs the reader's word; the error names the file and volume."""
    values, threshold, message = REFUSED[name]
    path = write(tmp_path / "odd.nii.gz", np.asarray(values), "<f8")
    refused = partial(pytest.raises, ValueError, match=f"(?s){message.format(path=path)}")
    for entrance, function in ENTRANCES.items():
        if (entrance, name) != ("mask_study", "another grid"):  # images are compared with masks
            with refused():
                function(fmri_path, path, threshold=threshold)
    with refused():
        count_all(path, GRID, threshold)


@entrances
def test_what_is_no_mask_in_a_list_is_refused(fmri_path, tmp_path, entrance):
    """Volumes of a 4D image are regions if it is given alone; arrays and the like are no images."""
    path = write(tmp_path / "maps.nii", EMPTY[..., [0, 0]], "u1")
    with pytest.raises(ValueError, match=r"maps.nii .*\(5, 6, 4, 2\); .* instead of a list"):
        ENTRANCES[entrance](fmri_path, [path])
    for masks in ([LABELS], {"a": LABELS}, LABELS, [None], [3]):
        with pytest.raises(ValueError, match="is not an image of numbers on a grid"):
            ENTRANCES[entrance](fmri_path, masks)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii.bz2", ".mgz", ".img.gz"])
def test_damage_to_a_mask_is_never_believed(fmri_path, tmp_path, suffix):
    """Of a compressed mask, every changed byte is found, or has no meaning."""
    path = tmp_path / f"mask{suffix}"
    kind = {".mgz": nib.MGHImage, ".img.gz": nib.Nifti1Pair}.get(suffix, nib.Nifti1Image)
    nib.save(kind((CHANCE > 0.5).astype("i4"), STRAIGHT), path)
    reads = stream_masks, lambda fmri_path, mask: open_checked(fmri_path, [mask])[1]
    content, expected = path.read_bytes(), [read(fmri_path, path)[0] for read in reads]
    for place in range(len(content)):
        path.write_bytes(changed(content, place, 0x10))
        read, wanted = reads[place % 2], expected[place % 2]
        with contextlib.suppress(OSError, ValueError):
            np.testing.assert_array_equal(read(fmri_path, path), [wanted])


def test_a_thousand_labels_take_little_memory():
    """Labels are sorted once: no volume is made for each."""
    labels = np.random.default_rng(0).integers(0, 1001, (91, 109, 91)).astype("i2")
    img = nib.Nifti1Image(labels, STRAIGHT)
    tracemalloc.start()
    found = find_voxels(img, img, "fmri.nii")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1000
    assert peak < 40 * labels.size


# Names of regions, in a study
# ----------------------------


def names_of(fmri_path, masks):
    """Return the names under which a study keeps its regions."""
    return [*study_arrays(fmri_path, masks)]


TABLE = "index\tname\tcolour\n0\tBackground\t\n3\tleft\tred\n-7\tV1/V2 né\tblue\n12\tleft\tred\n"
NAMED = ["V1/V2 né", "left_3", "left_12", "region_400"]
NUMBERS = ["region_-7", "region_3", "region_12", "region_400"]
TABLES = {  # name of the image, of the table, its content, the names of labels
    "beside it": ("atlas.nii.gz", "atlas.tsv", TABLE, NAMED),
    "BIDS": ("tpl-A_res-02_dseg.nii.gz", "tpl-A_res-02_dseg.tsv", TABLE, NAMED),
    "fewer entities": ("tpl-A_res-02_dseg.nii.gz", "tpl-A_dseg.tsv", TABLE, NAMED),
    "spreadsheet": ("atlas.nii", "atlas.tsv", "\ufeff" + TABLE.replace("\n", "\r\n"), NAMED),
    "decimals": ("atlas.nii", "atlas.tsv", TABLE.replace("3\t", "3.0\t"), NAMED),
    "of another image": ("tpl-A_dseg.nii.gz", "tpl-B_dseg.tsv", TABLE, NUMBERS),
    "of another kind": ("tpl-A_probseg_dseg.nii.gz", "tpl-A_probseg.tsv", TABLE, NUMBERS),
    "other columns": ("atlas.nii.gz", "atlas.tsv", "label\tname\n3\tleft\n", NUMBERS),
}


@pytest.mark.parametrize("name", TABLES)
def test_names_come_from_the_lookup_table(fmri_path, tmp_path, name):
    """Labels have the names of the table beside their image, or their numbers."""
    image, table, content, expected = TABLES[name]
    labels = np.resize([0, -7, 3, 12, 400], GRID)
    (tmp_path / table).write_text(content, encoding="utf-8", newline="")
    assert names_of(fmri_path, write(tmp_path / image, labels, "<i2")) == expected


VOLUMES = np.stack([CHANCE > 0.5, CHANCE < 0.5], 3)
VOLUME_TABLES = {
    "from 1": ("index\tname\n1\tleft\n2\tright\n", ["left", "right"]),
    "from 0": ("index\tname\n0\tleft\n1\tright\n", ["left", "right"]),
    "with a background": ("index\tname\n0\t-\n1\tV1\n2\tV1\n", ["V1_1", "V1_2"]),
}


@pytest.mark.parametrize("name", VOLUME_TABLES)
def test_names_of_volumes_come_from_the_lookup_table(fmri_path, tmp_path, name):
    """Volumes have the names of the table if its index is their number."""
    content, expected = VOLUME_TABLES[name]
    (tmp_path / "atlas.tsv").write_text(content)
    assert names_of(fmri_path, write(tmp_path / "atlas.nii", VOLUMES, "u1")) == expected


WARNED = {  # table, atlas, warning, names
    "of other volumes": (
        *(TABLE, VOLUMES, "does not name its volumes, 1 to 2", ["region_1", "region_2"]),
    ),
    "a name twice, one label is missing": (
        *("index\tname\n3\tleft\n12\tleft\n", np.resize([0, 3, 7], GRID)),
        *("no voxels of left", ["left_3", "region_7"]),
    ),
    "a label without voxels": (
        *(TABLE, np.resize([0, 3, 12], GRID), r"atlas.nii.gz has no voxels of V1/V2 né\.$"),
        ["left_3", "left_12"],
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_tables_that_do_not_fit_cause_a_warning(fmri_path, tmp_path, name):
    """A label without voxels is no region, but its name counts; volumes keep their numbers."""
    table, atlas, message, expected = WARNED[name]
    (tmp_path / "atlas.tsv").write_text(table, encoding="utf-8")
    with pytest.warns(UserWarning, match=message):
        names = names_of(fmri_path, write(tmp_path / "atlas.nii.gz", atlas, "<i2"))
    assert names == expected


def test_names_without_a_table(fmri_path, tmp_path):
    """A mask has the name of its file, volumes and labels have their numbers."""
    mask = CHANCE > 0.5
    big = np.where(mask, 100_000_001, 100_000_002).astype("i4")
    for masks, expected in (
        (write(tmp_path / "v1.nii.gz", mask, "u1"), ["v1"]),
        (write(tmp_path / "maps.nii", VOLUMES, "u1"), ["region_1", "region_2"]),
        (image_of(mask), ["region"]),
        ({1: image_of(mask)}, ["1"]),
        (nib.Nifti1Image(big, STRAIGHT), ["region_100000001", "region_100000002"]),
    ):
        assert names_of(fmri_path, masks) == expected


# Regions that are cut off, or vanish
# -----------------------------------


def boxes():
    """Return regions: inside, across the edge, outside, and too small for voxels of 6 mm."""
    labels = np.zeros((12, 12, 12), "u1")
    labels[2:6, 2:6, 2:6], labels[8:12, 2:6, 2:6] = 1, 2
    labels[10:12, 8:10, 8:10], labels[4, 9, 4] = 3, 4
    return labels


@pytest.mark.parametrize("as_list", [False, True])
def test_incomplete_regions_are_named(tmp_path, as_list):
    """The table and a warning count the voxels left; all other regions are NiftiMasker's."""
    fine, coarse = np.diag([3.0, 3, 3, 1]), np.diag([6.0, 6, 6, 1])
    coarse[:3, 3] = 1.5
    labels, shape = boxes(), (5, 6, 6, 3)
    fmri_path = write(tmp_path / "fmri.nii", make_image(shape).get_fdata(), "<f4", coarse)
    whole = write(tmp_path / "whole.nii", make_image((12, 12, 12, 3)).get_fdata(), "<f4", fine)
    masks = nib.Nifti1Image(labels, fine)
    if as_list:
        masks = {f"region_{n}": image_of(labels == n, fine) for n in range(1, 5)}
    output = tmp_path / "series"
    for status in ("done", "skipped"):
        with pytest.warns(UserWarning, match=r"^1 of 2 images .*fmri.nii: region_2 32 of 64; "):
            table = mask_study([fmri_path, whole], masks, output, resample=True)
        assert list(table.status) == [status] * 2
        left = "region_2 32 of 64; region_3 0 of 8; region_4 0 of 1"
        assert list(table.incomplete) == [left, ""]
    assert_same([*read_arrays(table.file[1]).values()], nifti_masker(whole, masks_of(labels, fine)))
    arrays = read_arrays(table.file[0])
    assert arrays["region_3"].shape == arrays["region_4"].shape == (3, 0)
    halves = [labels[1::2, 1::2, 1::2][:5] == n for n in (1, 2)]  # the voxel that is nearest
    reference = nifti_masker(fmri_path, [image_of(half, coarse) for half in halves])
    assert_same([arrays["region_1"], arrays["region_2"]], reference)
    assert read_about(table.file[0])["incomplete"] == {"region_2": 32, "region_3": 0, "region_4": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = mask_study([fmri_path, whole], masks, output)  # without `resample`
    assert list(table.status) == ["failed", "done"]
    assert list(table.incomplete) == ["", ""]
    assert "resample_to_img" in table.reason[0]


@given(
    zooms=st.tuples(*[st.floats(-3, -0.4) | st.floats(0.4, 3)] * 3),
    angle=st.sampled_from([0, 0, 0.3, 2]),
    shift=st.tuples(*[st.integers(-8, 8) | st.floats(-8, 8)] * 3),
    seed=st.integers(0, 2**32),
)
def test_regions_are_resampled_as_masks_are(zooms, angle, shift, seed):
    """The positions of all regions, resampled at once, are those of each mask alone."""
    turn = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    img = nib.Nifti1Image(
        np.zeros((6, 7, 5)), nib.affines.from_matvec(turn * np.array(zooms), shift)
    )
    labels = np.random.default_rng(seed).integers(0, 4, GRID)
    masks = read_masks(nib.Nifti1Image(labels.astype("i2"), np.eye(4)))
    for positions, mask_img in zip(masks.resampled(img), masks_of(labels, np.eye(4)), strict=True):
        alone = np.flatnonzero(to_grid(mask_img, img).dataobj)
        np.testing.assert_array_equal(positions, alone)
    for mask_img, n_inside in zip(masks_of(labels), masks.inside(img), strict=True):
        voxels = np.argwhere(np.asarray(mask_img.dataobj)) @ np.linalg.inv(img.affine)[:3, :3].T
        voxels += np.linalg.inv(img.affine)[:3, 3]
        beyond = np.abs(voxels - (np.array(img.shape) - 1) / 2) - np.array(img.shape) / 2
        least, most = (np.count_nonzero((beyond < rounding).all(axis=1)) for rounding in (0, 0.02))
        assert least <= n_inside <= most


@pytest.mark.parametrize("shift", [4, -40])
def test_an_image_without_any_region_fails(tmp_path, shift):
    """If nothing is left, the image fails, and its reason names the regions."""
    fmri_path = write(tmp_path / "fmri.nii", make_image((5, 6, 6, 3)).get_fdata(), "<f4", np.eye(4))
    far = nib.affines.from_matvec(np.eye(3) * 3, [shift] * 3)
    masks = {"far": image_of(boxes() == 3, far)}
    table = mask_study([fmri_path], masks, tmp_path / "series", resample=True)
    assert list(table.status) == ["failed"]
    assert "No region has a voxel in the image: far" in table.reason[0]
