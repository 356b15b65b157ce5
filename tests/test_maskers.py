"""stream_masker returns what fit_transform returns, for every masker, or refuses with a reason."""

import gc
import tempfile
import warnings
from functools import partial

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nilearn.maskers import (
    MultiNiftiMasker,
    NiftiLabelsMasker,
    NiftiMapsMasker,
    NiftiMasker,
    NiftiSpheresMasker,
)
from nilearn.signal import clean

from beyond_the_masker.extract import maskers as module
from beyond_the_masker.extract import regions
from beyond_the_masker.extract.maskers import (
    MASKERS,
    NEUTRAL,
    TEMPORAL,
    TREATMENT,
    stream_masker,
    treatment_table,
)
from beyond_the_masker.meter import measure
from made_images import NONE, by_name, open_files, write

N = 37
GRID = (9, 10, 8)
AFFINE = np.array([[3.0, 0, 0, -12], [0, 3, 0, -13], [0, 0, 4, -14], [0, 0, 0, 1]])
COARSE = np.array([[4.0, 0, 0, -10], [0, 4, 0, -10], [0, 0, 4, -10], [0, 0, 0, 1]])
MOVED = nib.affines.from_matvec(AFFINE[:3, :3], [-9, -16, -10])  # by whole voxels
RANDOM = np.random.default_rng(0)
CONFOUNDS = RANDOM.normal(size=(N, 2))
KEPT = np.delete(np.arange(N), [3, 4, 20])

# Warnings of nilearn for each volume or each fit; the tests of warnings compare them.
QUIET = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


# Images, regions and maskers
# ---------------------------


DATA = RANDOM.normal(100, 30, (*GRID, N))
DATA[..., 5] *= 3  # a volume of large values
DATA[0, 0] = DATA[:, :, 7, :12] = 0  # always, or at times
WITH_NAN = DATA.copy()
WITH_NAN.flat[::37] = np.nan
WITH_NAN[1, 1, 1] = np.nan


def save(path, data, dtype="<f4", scaling=NONE, affine=AFFINE):
    """Write an image; return its path."""
    return write(path, np.asarray(data).astype(dtype), affine, scaling)


IMAGES = {
    "float32": ("a.nii.gz", DATA, "<f4"),
    "float32 .nii": ("a.nii", DATA, "<f4"),
    "float64 .nii": ("b.nii", DATA, "<f8"),
    "big-endian float32": ("c.nii.gz", DATA, ">f4"),
    "int16": ("d.nii.gz", DATA, "<i2"),
    "int16 scaled": ("e.nii.gz", DATA, "<i2", (0.37, -5)),
    "big-endian int16 .nii": ("f.nii", DATA, ">i2"),
    "uint8": ("g.nii.gz", DATA.clip(0, 255), "u1"),
    "NaN": ("h.nii.gz", WITH_NAN, "<f4"),
    "NaN big-endian float64 .nii": ("i.nii", WITH_NAN, ">f8"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the path of every image."""
    folder = tmp_path_factory.mktemp("images")
    return {name: save(folder / spec[0], *spec[1:]) for name, spec in IMAGES.items()}


def region(data, dtype, affine=AFFINE):
    """Return an image of regions."""
    return nib.Nifti1Image(data.astype(dtype), affine)


MASK = region(RANDOM.random(GRID) < 0.4, "u1")
COARSE_MASK = region(RANDOM.random((6, 7, 5)) < 0.5, "u1", COARSE)
MOVED_MASK = region(RANDOM.random(GRID) < 0.5, "u1", MOVED)
LABELS = region(RANDOM.integers(0, 6, GRID), "i4")
COARSE_LABELS = region(RANDOM.integers(0, 6, (6, 7, 5)), "i4", COARSE)
MAPS = region(RANDOM.random((*GRID, 4)), "f8")
COARSE_MAPS = region(RANDOM.random((6, 7, 5, 4)), "f8", COARSE)
HALF = region(np.arange(9)[:, None, None] * np.ones(GRID) > 4, "u1")
LEFT_LABELS = region(LABELS.dataobj * (np.arange(9) > 4)[:, None, None] + 6, "i4")
LEFT_LABELS.dataobj[:4] = 1  # outside of HALF
LEFT_MAPS = region(MAPS.dataobj[:], "f8")
LEFT_MAPS.dataobj[5:, ..., 1] = 0
SPHERES = {"seeds": [(0, 0, 0), (6, 5, 5)], "radius": 7, "allow_overlap": True}

SPATIAL = {  # masker, its parameters
    "mask": (NiftiMasker, {"mask_img": MASK}),
    "coarse mask": (NiftiMasker, {"mask_img": COARSE_MASK}),
    "moved mask": (NiftiMasker, {"mask_img": MOVED_MASK}),
    "mask, target grid": (
        NiftiMasker,  # without a report, nilearn 0.14 fails
        {"mask_img": MASK, "target_affine": COARSE, "target_shape": (6, 7, 5), "reports": True},
    ),
    "mask, target 3 x 3": (NiftiMasker, {"mask_img": MASK, "target_affine": np.diag([5.0, 5, 5])}),
    "labels": (NiftiLabelsMasker, {"labels_img": LABELS}),
    "coarse labels to data": (NiftiLabelsMasker, {"labels_img": COARSE_LABELS}),
    "data to coarse labels": (
        NiftiLabelsMasker,
        {"labels_img": COARSE_LABELS, "resampling_target": "labels", "mask_img": MASK},
    ),
    "labels, some masked": (
        NiftiLabelsMasker,
        {"labels_img": LEFT_LABELS, "mask_img": HALF, "strategy": "standard_deviation"},
    ),
    "maps": (NiftiMapsMasker, {"maps_img": MAPS}),
    "coarse maps to data": (NiftiMapsMasker, {"maps_img": COARSE_MAPS}),
    "data to coarse maps": (
        NiftiMapsMasker,
        {"maps_img": COARSE_MAPS, "resampling_target": "maps", "mask_img": MASK},
    ),
    "maps in float32": (NiftiMapsMasker, {"maps_img": region(MAPS.dataobj, "f4")}),
    "maps and data to mask": (
        NiftiMapsMasker,
        {"maps_img": MAPS, "resampling_target": "mask", "mask_img": COARSE_MASK},
    ),
    "maps, masked": (NiftiMapsMasker, {"maps_img": MAPS, "mask_img": MASK}),
    "maps, some masked": (NiftiMapsMasker, {"maps_img": LEFT_MAPS, "mask_img": HALF}),
    "spheres": (NiftiSpheresMasker, SPHERES),
    "spheres, coarse mask": (NiftiSpheresMasker, {**SPHERES, "mask_img": COARSE_MASK}),
}
BAND = {"high_pass": 0.02, "t_r": 2.0}
TABLE = pd.DataFrame(CONFOUNDS).add_prefix("c")
TEMPORAL_PARTS = [  # parameters, arguments
    ({}, {}),
    ({"smoothing_fwhm": 6}, {}),
    ({"standardize_confounds": False, **BAND}, {"confounds": TABLE}),
    ({"low_pass": 0.1, **BAND}, {"sample_mask": np.isin(np.arange(N), KEPT)}),
    (
        {"standardize": "zscore_sample", "detrend": True, "smoothing_fwhm": 4},
        {"confounds": CONFOUNDS, "sample_mask": [KEPT]},
    ),
    (
        {"standardize": "psc", "detrend": True, "clean_args": {"filter": "cosine"}, **BAND},
        {"confounds": [TABLE, CONFOUNDS[:, :1] ** 2]},
    ),
    ({"dtype": ">f4", "detrend": True}, {}),
    ({"dtype": "float64", "standardize": "zscore_sample"}, {"sample_mask": KEPT}),
    ({"dtype": "int32", "smoothing_fwhm": 5, "detrend": True}, {}),
    ({"dtype": "auto", "standardize": "zscore_sample"}, {"confounds": CONFOUNDS}),
    ({"dtype": "auto", "smoothing_fwhm": 5, "detrend": True}, {}),
]


def make_masker(spatial, **parameters):
    """Return a masker of SPATIAL."""
    kind, where = SPATIAL[spatial]
    return kind(**{"standardize": None, "reports": False, **parameters, **where})


def assert_same(series, reference, spatial):
    """Compare shape, type and every value: exactly, but for the least squares of maps."""
    assert type(series) is type(reference)
    assert series.shape == reference.shape
    assert series.dtype.newbyteorder("=") == reference.dtype.newbyteorder("=")
    if "maps" in spatial:
        size = np.nanmax(np.abs(reference), initial=0)
        is_single = reference.dtype == "f4" or spatial == "maps in float32"
        places = 1 if reference.dtype.kind == "i" else 1e-5 if is_single else 1e-12
        np.testing.assert_allclose(series, reference, rtol=0, atol=places * max(size, 1))
    else:
        np.testing.assert_array_equal(series, reference)


# The values of fit_transform
# ---------------------------


@QUIET
@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize(
    "share", [0, *(pytest.param(i, marks=pytest.mark.extensive) for i in (1, 2))]
)
def test_every_masker_returns_what_fit_transform_returns(files, spatial, share):
    """Every masker goes with every temporal part, and with any image and size of blocks."""
    first, images = list(SPATIAL).index(spatial), list(IMAGES)
    for number, (parameters, arguments) in enumerate(TEMPORAL_PARTS, first):
        if number % 3 != share:
            continue
        image, block_size = images[number % 10], (1, 2, 5, 7, 12, N - 1, N, None)[number % 8]
        if parameters.get("dtype") == "auto" and image == "int16 scaled":  # nilearn 0.14 fails
            image = "int16"
        reference = make_masker(spatial, **parameters).fit_transform(files[image], **arguments)
        masker = make_masker(spatial, **parameters)
        series = stream_masker(masker, files[image], block_size=block_size, **arguments)
        assert_same(series, reference, spatial)


def test_template_strategies_need_no_mask(tmp_path):
    """A mask that depends on the grid alone is computed as in fit_transform."""
    affine = nib.affines.from_matvec(np.eye(3) * 10, [-90, -125, -70])
    path = save(tmp_path / "mni.nii.gz", RANDOM.random((19, 22, 18, 5)), affine=affine)
    options = {"mask_strategy": "whole-brain-template", "standardize": None}
    options["mask_args"] = {"opening": 0}
    reference = NiftiMasker(**options).fit_transform(path)
    np.testing.assert_array_equal(stream_masker(NiftiMasker(**options), path), reference)


@QUIET
@pytest.mark.parametrize("spatial", ["mask", "labels", "maps", "spheres"])
def test_confounds_with_high_variance(files, spatial):
    """They are removed together with the given ones, as in fit_transform."""
    options = {"high_variance_confounds": True, "detrend": True}
    reference = make_masker(spatial, **options).fit_transform(files["NaN"], confounds=CONFOUNDS)
    masker, other = make_masker(spatial, **options), make_masker(spatial)
    series, plain = stream_masker([masker, other], files["NaN"], CONFOUNDS)
    np.testing.assert_allclose(series, reference, rtol=0, atol=1e-6 * np.abs(reference).max())
    assert masker.high_variance_confounds is True
    whole = make_masker(spatial).fit_transform(files["NaN"], confounds=CONFOUNDS)
    assert_same(plain, whole, spatial)


def test_runs(files):
    """Runs are cleaned one by one."""
    runs = np.repeat([0, 1], [10, N - 10])
    reference = make_masker("mask", runs=runs, detrend=True).fit_transform(files["float32"])
    masker = make_masker("mask", runs=runs, detrend=True)
    assert_same(stream_masker(masker, files["float32"], block_size=4), reference, "mask")
    assert masker.runs is runs


@QUIET
@pytest.mark.parametrize("spatial", ["coarse mask", "coarse labels to data", "coarse maps to data"])
def test_cached_masker(files, tmp_path, spatial):
    """A masker with a cache gives the same values and keeps its cache."""
    cache = str(tmp_path / "cache")
    masker = make_masker(spatial, memory=cache, memory_level=3)
    series = stream_masker(masker, files["float32"], block_size=5)
    assert_same(series, make_masker(spatial).fit_transform(files["float32"]), spatial)
    assert masker.memory == cache
    assert masker.memory_.location is not None


@pytest.mark.parametrize("spatial", ["mask", "labels, some masked", "maps"])
@QUIET
def test_output_as_data_frame(files, spatial):
    """A data frame has the columns of fit_transform."""
    path, options = files["float32"], {"detrend": True, "dtype": "float32"}
    reference = make_masker(spatial, **options).set_output(transform="pandas").fit_transform(path)
    masker = make_masker(spatial, **options).set_output(transform="pandas")
    frame = stream_masker(masker, path, block_size=4)
    pd.testing.assert_frame_equal(frame, reference, rtol=1e-6 if spatial == "maps" else 0)


def test_image_of_one_volume_in_4d(tmp_path):
    """An image of one volume is extracted alone."""
    path = save(tmp_path / "one.nii.gz", DATA[..., :1])
    for spatial in ("mask", "labels", "maps", "spheres", "spheres, coarse mask"):
        reference = make_masker(spatial).fit_transform(path)
        assert_same(stream_masker(make_masker(spatial), path), reference, spatial)


STRATEGIES = ("mean", "sum", "median", "minimum", "maximum", "variance", "standard_deviation")


@QUIET
@pytest.mark.filterwarnings("ignore::FutureWarning")  # keep_masked_labels
@given(
    dtype=st.sampled_from(["<f4", ">f4", "<f8", "<i2", "u1", "<i4", "<u2"]),
    scaling=st.sampled_from([NONE, (0.37, -5)]),
    labels_dtype=st.sampled_from(["u1", "<i2", ">i4", "<f4", "<f8"]),
    values=st.lists(st.integers(0, 250), min_size=1, max_size=6, unique=True),
    background=st.integers(0, 2),
    strategy=st.sampled_from(STRATEGIES),
    keep=st.booleans(),
    masked=st.booleans(),
    n_volumes=st.integers(1, 5),
    bad=st.sampled_from([None, np.nan, np.inf]),
    seed=st.integers(0, 2**16),
)
def test_region_averages_are_those_of_nilearn(
    dtype, scaling, labels_dtype, values, background, strategy, keep, masked, n_volumes, bad, seed
):
    """Averages and the rest are equal to the last bit, or nilearn refuses the regions, too."""
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(2, 6, 3))
    data = random.normal(100, 30, (*shape, n_volumes)).clip(0, 250)
    if bad is not None and dtype[-2] == "f":
        data.flat[random.integers(0, data.size, 3)] = bad
    labels = region(random.choice([background, *values], shape), labels_dtype)
    mask = region(random.integers(0, 2, shape), "u1") if masked else None
    options = {"strategy": strategy, "background_label": background, "mask_img": mask}
    options |= {"keep_masked_labels": keep, "standardize": None, "reports": False}
    with tempfile.TemporaryDirectory() as folder:
        path = save(f"{folder}/a.nii", data, dtype, scaling)
        try:
            expected = NiftiLabelsMasker(labels, **options).fit_transform(path)
        except ValueError as error:
            with pytest.raises(type(error)):
                stream_masker(NiftiLabelsMasker(labels, **options), path)
        else:
            found = stream_masker(NiftiLabelsMasker(labels, **options), path, block_size=2)
            assert_same(found, expected, "labels")


def test_whole_volumes_are_taken_where_the_short_way_differs(files, monkeypatch):
    """If nilearn's own series of the first volume differs, the masker gets whole volumes."""
    wrong = regions.Regions(np.arange(5), np.dtype("f4"), lambda *columns: np.asarray)
    monkeypatch.setattr(module, "find_regions", lambda masker, img: wrong)
    for spatial in ("mask", "labels"):
        expected = make_masker(spatial).fit_transform(files["float32"])
        assert_same(stream_masker(make_masker(spatial), files["float32"]), expected, spatial)


@pytest.mark.parametrize("spatial", ["maps", "maps in float32"])
def test_series_of_maps_do_not_depend_on_the_blocks(files, spatial):
    """BLAS rounds a product in another way if it has more rows: the bytes are the same anyway."""
    found = [
        stream_masker(make_masker(spatial), files["float64 .nii"], block_size=size).tobytes()
        for size in (1, 2, 5, 8, 11, N)
    ]
    both = [make_masker(spatial), make_masker("labels")]
    together, _ = stream_masker(both, files["float64 .nii"])
    assert {*found} == {together.tobytes()}


# Several maskers, and their state afterwards
# -------------------------------------------


def noted(monkeypatch):
    """Return a list that will have the arguments of each pass over a file."""
    passes, read = [], module.read_voxels
    monkeypatch.setattr(module, "read_voxels", lambda *args: passes.append(args) or read(*args))
    return passes


@QUIET
def test_several_maskers_share_a_pass(files, monkeypatch):
    """Maskers share one pass, and none sees changes that another made to the block."""
    passes = noted(monkeypatch)
    maskers = [make_masker(spatial, detrend=True) for spatial in SPATIAL]
    result = stream_masker(maskers, files["NaN"], block_size=6)
    assert len(passes) == 2  # the range of the image, and the image
    for spatial, series in zip(SPATIAL, result, strict=True):
        reference = make_masker(spatial, detrend=True).fit_transform(files["NaN"])
        assert_same(series, reference, spatial)
    twice = make_masker("mask", detrend=True)
    for series in stream_masker((twice, twice), files["NaN"], block_size=5):
        np.testing.assert_array_equal(series, result[0])
    assert len(passes) == 3
    assert twice.detrend
    assert stream_masker([], files["NaN"]) == []


@QUIET
@pytest.mark.parametrize("spatial", SPATIAL)
def test_masker_is_left_as_by_fit_transform(files, spatial):
    """Parameters are as before, and the fitted masker works as nilearn's does."""
    options = {"detrend": True, "dtype": "float32", "clean_args": {"ensure_finite": True}}
    options |= {"verbose": 0, "standardize": "zscore_sample", "reports": spatial == "mask"}
    own, usual = (make_masker(spatial, **options) for _ in range(2))
    before = own.get_params()
    series = stream_masker(own, files["float32"], block_size=5)
    usual.fit_transform(files["float32"])
    assert own.get_params().keys() == before.keys()
    assert all(value is before[name] for name, value in own.get_params().items())
    assert {k for k in vars(own) if k.endswith("_")} == {k for k in vars(usual) if k.endswith("_")}
    assert own.clean_args_ == usual.clean_args_
    assert own.n_elements_ == usual.n_elements_
    assert list(own.get_feature_names_out()) == list(usual.get_feature_names_out())
    if spatial not in ("spheres", "maps, some masked"):  # without mask; fewer columns
        a, b = own.inverse_transform(series), usual.inverse_transform(series)
        np.testing.assert_array_equal(a.dataobj, b.dataobj)
        np.testing.assert_array_equal(a.affine, b.affine)
    found, reference = own.transform(files["float32"]), usual.transform(files["float32"])
    np.testing.assert_array_equal(found, reference)
    if spatial == "mask":
        assert "NiftiMasker" in str(own.generate_report())


# Warnings
# --------


@pytest.mark.parametrize(
    ("spatial", "image", "text"),
    [
        ("coarse mask", "int16", "imgs are being resampled to the mask_img"),
        ("data to coarse labels", "float32", "Resampling images at transform time"),
        ("labels, some masked", "float32", "labels were removed"),
        ("maps, some masked", "float32", "indices were removed"),
    ],
)
def test_warnings_of_blocks_come_once(files, spatial, image, text):
    """Each warning of nilearn comes once, not for each block, and there are no others."""
    messages = []
    for function in (
        partial(stream_masker, block_size=3),
        type(make_masker(spatial)).fit_transform,
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function(make_masker(spatial), files[image])
        messages.append([str(warning.message) for warning in caught])
    ours, expected = messages
    assert any(text in message for message in ours)
    assert sorted(ours) == sorted({*expected})


def test_warnings_of_cleaning_come_once_for_all_maskers(files):
    """A warning of the cleaning comes once, not for each masker."""
    maskers = [make_masker(name, standardize_confounds=False) for name in ("mask", "labels")]
    with pytest.warns(UserWarning, match="one must perform detrend") as caught:
        stream_masker(maskers, files["float32"], confounds=CONFOUNDS)
    assert len(caught) == 1


@pytest.mark.parametrize("spatial", ["labels", "maps", "spheres"])
def test_values_that_are_not_finite_are_named_once(files, spatial):
    """Regions with values that are not finite give one warning, with the name of the file."""
    with pytest.warns(UserWarning, match=r"Non-finite values detected in .*h.nii.gz") as caught:
        stream_masker(make_masker(spatial), files["NaN"], block_size=3)
    assert len(caught) == 1


# Refusals
# --------


class Own(NiftiMasker):
    """A masker whose steps may need all volumes."""


BAD_MASKERS = {
    "subclass": (Own(MASK), "Own cannot be streamed"),
    "MultiNiftiMasker": (MultiNiftiMasker(), "MultiNiftiMasker cannot be streamed"),
    "class": (NiftiMasker, "cannot be streamed"),
    "None": (None, "NoneType cannot be streamed"),
}


@by_name(("masker", "text"), BAD_MASKERS)
def test_masker_that_needs_the_whole_image_is_refused(files, masker, text):
    """A masker that needs the whole image is refused, with the alternative."""
    for maskers in (masker, [make_masker("mask"), masker]):
        with pytest.raises(ValueError, match=text):
            stream_masker(maskers, files["float32"])


MISTAKES = {
    "no volume": ({}, {"block_size": 0}, "not a positive integer"),
    "half a volume": ({}, {"block_size": 2.5}, "not a positive integer"),
    "no memory": ({}, {"memory_mib": 0}, "not a positive number"),
    "confounds of another length": ({}, {"confounds": CONFOUNDS[1:]}, "length"),
    "no t_r": ({"low_pass": 0.1}, {}, "t_r"),
    "t_r of 0": ({"low_pass": 0.1, "t_r": 0}, {}, "t_r is 0; it is the time between two volumes"),
    "unknown standardize": ({"standardize": "zscores"}, {}, "zscores"),
    "all scrubbed": ({}, {"sample_mask": np.array([], int)}, "keeps none of 37 volumes"),
    "all False": ({}, {"sample_mask": np.zeros(N, bool)}, "keeps none of 37 volumes"),
    "of another image": (
        {},
        {"sample_mask": [KEPT + 2]},
        "has 37, 38, but the volumes are 0 to 36",
    ),
    "before the first": ({}, {"sample_mask": KEPT - 2}, "has -2, -1, but the volumes"),
    "few booleans": ({}, {"sample_mask": np.ones(30, bool)}, "has 30 booleans for 37 volumes"),
    "list of numbers": ({}, {"sample_mask": [0, 1, 2]}, r"for each run. Here it has array\(0\)"),
    "second run scrubbed": (
        {"runs": np.repeat([0, 1], [10, N - 10])},
        {"sample_mask": [np.arange(9), np.arange(N - 10) < 0]},
        "keeps none of 27 volumes",
    ),
    "NaN": ({}, {"confounds": [TABLE, TABLE.add_suffix("d").diff()]}, "confounds c0d, c1d have"),
    "NaN in an array": ({}, {"confounds": CONFOUNDS * [1, np.nan]}, "The confounds 1 have values"),
}


@by_name(("parameters", "arguments", "message"), MISTAKES)
def test_mistakes_show_before_the_file_is_read(files, monkeypatch, parameters, arguments, message):
    """Wrong arguments and parameters are refused before the file is read."""
    monkeypatch.setattr(module, "read_voxels", None)
    with pytest.raises(ValueError, match=message):
        stream_masker(make_masker("mask", **parameters), files["float32"], **arguments)


def test_a_sample_mask_is_left_as_it_is(files):
    """nilearn changes indices of 32 bits in place if it must not extrapolate."""
    options = {"clean_args": {"extrapolate": False}, "low_pass": 0.1, **BAND}
    kept = np.array([2, *range(5, 30)], "i4")
    path, reference = files["float32"], kept.copy()
    expected = make_masker("mask", **options).fit_transform(path, sample_mask=reference)
    assert not np.array_equal(reference, kept)  # if not, nilearn has changed
    for own in (kept.copy(), [kept.copy()]):
        series = stream_masker(make_masker("mask", **options), path, sample_mask=own)
        np.testing.assert_array_equal(series, expected)
        np.testing.assert_array_equal(np.ravel(own), kept)


@pytest.mark.parametrize(("left_out", "spreads"), [([10], False), ([10, N - 11], True)])
def test_what_nilearn_does_with_volumes_that_are_left_out(left_out, spreads):
    """If this fails, nilearn has changed: correct the notes of `stream_masker`."""
    kept = np.delete(np.arange(N), left_out)
    series = RANDOM.normal(100, 1, (N, 1))
    with_spikes = series.copy()
    with_spikes[left_out] += 1000
    options = {"sample_mask": kept, "low_pass": 0.1, "t_r": 2.0, "standardize": None}
    found = [clean(one, detrend=False, **options) for one in (series, with_spikes)]
    assert (np.abs(found[1] - found[0]).max() > 10) == spreads


def test_polars_is_refused(files, monkeypatch):
    """Only arrays and data frames of pandas are supported."""
    masker = make_masker("mask")
    monkeypatch.setattr(masker, "transform", lambda img: [[1.0]])
    with pytest.raises(ValueError, match="set_output"):
        stream_masker(masker, files["float32"])


def test_file_is_closed(tmp_path, monkeypatch):
    """The file is closed and the masker restored after success, a damaged file, and an error."""
    path, masker = save(tmp_path / "image.nii.gz", DATA), make_masker("mask", detrend=True)
    content, before = path.read_bytes(), masker.get_params()
    stream_masker(masker, path, block_size=4)
    assert open_files(tmp_path) == []
    path.write_bytes(content[:-9000])
    with pytest.raises(OSError, match="damaged") as damaged:
        stream_masker(masker, path, block_size=4)
    path.write_bytes(content)
    monkeypatch.setattr(masker, "transform", lambda img: 1 / 0)
    with pytest.raises(ZeroDivisionError) as raised:
        stream_masker(masker, path, block_size=4)
    assert open_files(tmp_path) == []  # while the tracebacks exist
    assert masker.get_params() == before
    assert masker.clean_args_ == {}
    del damaged, raised
    gc.collect()  # a file that is closed only now would warn, and warnings are errors


# Memory
# ------


@pytest.mark.chance
@pytest.mark.parametrize(
    ("step", "n_volumes"), [(1, 200), pytest.param(2, 80, marks=pytest.mark.extensive)]
)
def test_memory_does_not_grow_with_the_image(tmp_path, step, n_volumes):
    """Neither the image nor its extracted volumes stay in memory, on its grid or a coarser one."""
    labels = np.arange(48000).reshape(40, 40, 30)[: 40 // step, : 40 // step, : 30 // step] % 5
    masker = NiftiLabelsMasker(
        region(labels, "i4", AFFINE @ np.diag([step, step, step, 1])),
        **{"resampling_target": "labels", "standardize": None, "reports": False},
    )
    peaks = []
    for n in (20, n_volumes):
        path = save(tmp_path / f"{n}.nii", np.ones((40, 40, 30, n)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trace = measure(stream_masker, masker, path, memory_mib=4)
        assert trace.result().shape == (n, 4)
        peaks.append(trace.above_mib)
    assert peaks[1] < peaks[0] + 6  # the image has 11 or 33 MiB more


def test_block_size_follows_memory_mib(files, monkeypatch):
    """The size of a block depends on the given memory and on the largest grid."""
    passes, volume_mib = noted(monkeypatch), np.prod(GRID) * 24 / 2**20
    for memory_mib in (volume_mib / 9, volume_mib * 1.01, volume_mib * 7.01, 1000):
        masker = make_masker("mask", smoothing_fwhm=5)
        stream_masker(masker, files["float32"], memory_mib=memory_mib)
    half = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    fine = region(np.arange(5760).reshape(18, 20, 16) > 9, "u1", half)
    masker = NiftiMasker(fine, standardize=None, reports=False)
    with pytest.warns(UserWarning, match="resampled"):
        stream_masker(masker, files["float32"], memory_mib=volume_mib * 8 * 5.01)
    sizes = [n_rows for *_, n_rows in passes]
    assert sizes == [1, 1, 7, N, 4, 4]  # one of five is kept for the range of the image


# The table, and the page
# -----------------------


def test_every_parameter_is_in_the_table():
    """Every parameter of nilearn's maskers is treated."""
    parameters = {kind: set(kind().get_params()) for kind in MASKERS}
    assert set.union(*parameters.values()) == set(TREATMENT)
    assert set(NEUTRAL) | set(TEMPORAL) <= set(TREATMENT)
    for name, treatment, maskers in treatment_table().itertuples():
        has = [kind.__name__ for kind in MASKERS if name in parameters[kind]]
        assert maskers == ", ".join(has)
        assert treatment


def test_spheres_without_a_mask_refuse_infinite_values(tmp_path):
    """nilearn replaces them if the sum of the whole image is NaN: a block is not enough."""
    data = DATA[..., :8].copy()
    data[4, 4, 3, 1], data[1, 1, 1, 6] = np.inf, np.nan  # the first in a sphere
    path = save(tmp_path / "fmri.nii", data)
    with pytest.raises(ValueError, match=r"fmri.nii has infinite values.* mask_img"):
        stream_masker(make_masker("spheres"), path)
    masker = NiftiSpheresMasker(**SPHERES, mask_img=MASK, standardize=None, reports=False)
    expected = masker.fit_transform(path)
    np.testing.assert_array_equal(stream_masker(masker, path, block_size=3), expected)
