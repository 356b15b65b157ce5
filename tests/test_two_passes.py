"""What nilearn computes from the whole image is the same, computed in passes over the file."""

import gzip
import math
import warnings

import nibabel as nib
import nilearn.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker, NiftiSpheresMasker
from nilearn.signal import _detrend, _mean_of_squares

from beyond_the_masker import two_passes as module
from beyond_the_masker.meter import measure
from beyond_the_masker.streaming import open_series
from beyond_the_masker.two_passes import high_variance_confounds, mean_image, needs_mean
from made_images import STRAIGHT, make_image

# Types and scale factors of the files.
KINDS = [
    *(("<f4", None), (">f4", None), ("<f8", None), (">f8", None), ("u1", None), ("<i2", None)),
    *((">i2", None), ("<i2", (0.37, -5)), (">i2", (2.0, 0)), ("<i4", None), ("<i8", None)),
    *(("<u2", None), ("<f4", (0.5, 3))),
]
QUIET = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
COARSE = np.diag([5.0, 5, 5, 1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder for the images of this file."""
    return tmp_path_factory.mktemp("two_passes")


def values_of(seed, shape, kind=("<f8", None)):
    """Return values whose variance differs between voxels, some of them constant."""
    random = np.random.default_rng(seed)
    spread = random.gamma(1, 20, (*shape[:3], 1))
    spread[:1] = 0
    spread[:, :1] *= random.random() < 0.5
    trend = np.linspace(0, 1, shape[3]) * random.normal(0, 50, spread.shape)
    data = 100 + spread * random.normal(size=shape) + trend
    return data.clip(0, 250) if np.dtype(kind[0]).kind == "u" else data


def save(path, data, kind=("<f4", None)):
    """Write an image; return its path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NaN becomes an integer
        make_image(data=data, dtype=kind[0], scaling=kind[1]).to_filename(path)
    return path


def assert_equal(found, expected):
    """Compare shape, type and every value."""
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected, strict=True)


grids = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7))


# The mean image, and masks computed from it
# ------------------------------------------


@QUIET
@given(grids, st.integers(1, 40), st.sampled_from(KINDS), st.integers(0, 999), st.booleans())
def test_mean_is_numpys(folder, grid, n_volumes, kind, seed, damaged):
    """The mean has the type and every bit of NumPy's, whatever is in the file."""
    data = values_of(seed, (*grid, n_volumes), kind)
    if damaged and np.dtype(kind[0]).kind == "f":
        data.flat[seed % 7 :: 7] = np.resize(
            [np.nan, 3, np.inf, -np.inf], len(data.flat[seed % 7 :: 7])
        )
    path = save(folder / "mean.nii", data, kind)
    found = np.asanyarray(mean_image(path).dataobj)
    assert_equal(found[..., 0], np.asarray(nib.load(path).dataobj).mean(axis=-1))


def head(shape=(14, 15, 12, 20)):
    """Return values with a bright ball on a dark, noisy background, zero at the border."""
    random = np.random.default_rng(2)
    places = np.moveaxis(np.indices(shape[:3]), 0, -1) - np.array(shape[:3]) / 2
    ball = (places**2).sum(axis=-1) < 25
    data = (ball[..., None] * 900 + 100) * random.gamma(9, 0.1, shape)
    data[[0, 1, -2, -1]] = data[:, [0, 1, -2, -1]] = data[:, :, [0, 1, -2, -1]] = 0
    return data


MASKERS = {
    "background": {},
    "background, connected": {"mask_args": {"connected": True, "opening": 1, "border_size": 1}},
    "background, target": {"target_affine": COARSE, "target_shape": (9, 9, 10)},
    "background, coarse mean": {"mask_args": {"target_affine": COARSE}},
    "epi": {"mask_strategy": "epi"},
    "epi, no opening": {
        "mask_strategy": "epi",
        "mask_args": {"opening": False, "exclude_zeros": True, "lower_cutoff": 0.4},
    },
    "epi, target": {"mask_strategy": "epi", "target_affine": COARSE, "reports": False},
}


@QUIET
@pytest.mark.parametrize("options", MASKERS.values(), ids=MASKERS)
@pytest.mark.parametrize("kind", [("<f4", None), (">f8", None), ("<i2", None), ("<i2", (0.3, -5))])
def test_masker_fitted_to_the_mean(folder, options, kind):
    """The mask is that of a fit to the image: values, grid and header."""
    path = save(folder / "head.nii.gz", head(), kind)
    mean = mean_image(path)
    options = {"standardize": None, **options}
    own, usual = NiftiMasker(**options).fit(mean), NiftiMasker(**options).fit(path)
    assert own.n_elements_ == usual.n_elements_ > 100
    assert_equal(np.asarray(own.mask_img_.dataobj), np.asarray(usual.mask_img_.dataobj))
    assert_equal(np.asarray(own.affine_), np.asarray(usual.affine_))
    assert own.mask_img_.header == usual.mask_img_.header
    assert_equal(own.transform(path), usual.transform(path))


def test_epi_mask_of_values_that_are_not_finite(folder):
    """NaN around a head, and infinite values, give the masks that nilearn computes."""
    data = head()
    data[data == 0], data[7, 7, 5, 3] = np.nan, np.inf
    path = save(folder / "nan.nii", data)
    for strategy in ("background", "epi"):
        own, usual = (NiftiMasker(mask_strategy=strategy).fit(i) for i in (mean_image(path), path))
        assert_equal(np.asarray(own.mask_img_.dataobj), np.asarray(usual.mask_img_.dataobj))


def test_report_of_a_masker_fitted_to_the_mean(folder):
    """The masker can be shown."""
    path = save(folder / "report.nii", head())
    masker = NiftiMasker(standardize=None).fit(mean_image(path))
    assert "NiftiMasker" in str(masker.generate_report())


def test_other_nifti_files(folder):
    """NIfTI-2 and pairs of files have the same mean."""
    data = np.asfortranarray(head(), "f4")
    img = nib.Nifti1Image(data, STRAIGHT)
    nib.Nifti2Image.from_image(img).to_filename(folder / "two.nii.gz")
    nib.Nifti1Pair.from_image(img).to_filename(folder / "pair.img.gz")
    for name, kind in (("two.nii.gz", nib.Nifti2Image), ("pair.hdr.gz", nib.Nifti1Image)):
        mean = mean_image(str(folder / name))
        assert type(mean) is kind
        assert_equal(np.asarray(mean.dataobj)[..., 0], data.mean(axis=-1))


def test_who_needs_the_mean():
    """Masks are computed from the mean by NiftiMasker alone, if none is given."""
    mask = nib.Nifti1Image(np.ones((2, 2, 2), "u1"), np.eye(4))
    assert needs_mean(NiftiMasker())
    assert needs_mean(NiftiMasker(mask_strategy="epi"))
    assert not needs_mean(NiftiMasker(mask, mask_strategy="epi"))
    assert not needs_mean(NiftiMasker(mask_strategy="whole-brain-template"))
    assert not needs_mean(NiftiLabelsMasker(mask))


# Confounds
# ---------


def assert_nilearns_confounds(path, **options):
    """Compare with the confounds that nilearn computes from the whole image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single volume, or where all is NaN
        expected = nilearn.image.high_variance_confounds(path, **options)
        assert_equal(high_variance_confounds(path, **options), expected)


# BLAS multiplies four series at once, and small products in one thread: no others are here.
whole_groups = st.one_of(
    st.tuples(st.integers(1, 8), st.integers(1, 7), st.integers(1, 8)),
    st.sampled_from([(9, 10, 8), (10, 8, 10), (1, 40, 20), (11, 8, 15), (8, 1, 65), (15, 2, 40)]),
    st.tuples(st.just(1), st.just(1), st.integers(1, 99)),
)


@given(
    *(whole_groups, st.integers(1, 30), st.sampled_from(KINDS), st.integers(0, 999)),
    *(st.sampled_from([1, 5]), st.sampled_from([0.5, 2.0, 30.0, 100.0])),
)
def test_confounds_are_nilearns(folder, grid, n_volumes, kind, seed, n_confounds, percentile):
    """The confounds have every bit of nilearn's."""
    path = save(folder / "confounds.nii", values_of(seed, (*grid, n_volumes), kind), kind)
    assert_nilearns_confounds(path, n_confounds=n_confounds, percentile=percentile)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8"])
def test_values_that_are_not_finite(folder, value, kind):
    """Voxels with such a value are left out, in the whole image or in one volume."""
    data = values_of(3, (9, 10, 8, 30))
    data[4:, :3], data[2, 3, 4, 0], data[3, 5, 6, 29] = value, value, value
    assert_nilearns_confounds(save(folder / "value.nii", data, (kind, None)))


def test_images_without_signal(folder):
    """Images that are zero, constant or NaN, in part or everywhere, are treated as by nilearn."""
    for value in (0, 5, 1e6 / 3, np.nan):
        data = np.full((9, 10, 8, 30), value)
        assert_nilearns_confounds(save(folder / "constant.nii", data))
        data[:2, :3, :2] = values_of(4, (2, 3, 2, 30))
        assert_nilearns_confounds(save(folder / "some.nii", data))


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e-19, 1e-3, 1e6, 1e18, 1e36])
def test_confounds_of_small_and_large_values(folder, size):
    """Numbers whose squares single precision cannot hold are treated as by nilearn."""
    data = values_of(5, (9, 10, 8, 30)) * size
    for kind in ("<f4", "<f8"):
        assert_nilearns_confounds(save(folder / "size.nii", data, (kind, None)))


def test_small_variance_about_a_large_mean_takes_more_passes(folder, monkeypatch):
    """Where single precision rounds too much to tell voxels apart, all are read, part by part."""
    shape = (20, 20, 20, 11)
    path = save(folder / "large.nii", 1e6 + 1e-3 * values_of(6, shape))
    sizes, read = [], module.read_voxels
    monkeypatch.setattr(
        module, "read_voxels", lambda *args: sizes.append(len(args[1])) or read(*args)
    )
    assert_nilearns_confounds(path)
    assert len(sizes) > 3
    assert max(sizes[1:]) <= 1000
    sizes.clear()
    assert_nilearns_confounds(save(folder / "usual.nii", values_of(6, shape)))
    assert len(sizes) == 2
    assert sizes[1] == pytest.approx(160, abs=5)


strengths = st.sampled_from([0, 1e-3, 1, 1e3, 1e6])


@given(
    *(st.integers(3, 200), st.sampled_from(KINDS), st.integers(0, 999)),
    *(strengths, strengths, strengths, strengths),
)
def test_bounds_hold(folder, n_volumes, kind, seed, mean, trend, noise, first):
    """nilearn's variances are within the bounds: means, trends, first volumes may be large."""
    random = np.random.default_rng(seed)
    shape = (5, 4, 3, n_volumes)
    data = random.normal(0, noise, shape) + mean * random.normal(size=(5, 4, 3, 1))
    data += trend * np.linspace(-1, 1, n_volumes) * random.normal(size=(5, 4, 3, 1))
    data[..., 0] += first
    limits = (0, 250) if kind[0] == "u1" else (0, 3e4) if "u" in kind[0] else (-3e4, 3e4)
    data = data.clip(*limits) if np.dtype(kind[0]).itemsize <= 2 else data
    path = save(folder / "bounds.nii", data, kind)
    fmri = open_series(path)
    low, high = module.in_nilearns_order(fmri, *module.variance_bounds(fmri))
    series = np.asarray(nib.load(path).dataobj).reshape(-1, n_volumes).T
    variance = _mean_of_squares(_detrend(series))
    assert (low <= variance).all()
    assert (variance <= high).all()


@pytest.mark.parametrize("grid", [(23, 19, 11), (7, 5, 13), (31, 17, 3)])
@pytest.mark.parametrize("n_volumes", [37, pytest.param(400, marks=pytest.mark.extensive)])
@pytest.mark.parametrize("kind", [("<f4", None), ("<i2", None), ("<i2", (0.37, -5))])
def test_confounds_on_any_grid(folder, grid, n_volumes, kind):
    """Where BLAS sums the last series of a part in another way, confounds agree up to rounding."""
    random = np.random.default_rng(7)
    data = 100 + random.normal(0, 3, (*grid, n_volumes))
    shared = random.normal(size=(3, n_volumes)) * [[90], [60], [40]]
    loud = random.random(grid) < 0.05
    data[loud] += random.normal(size=(np.count_nonzero(loud), 3)) @ shared
    path = save(folder / "any.nii", data, kind)
    expected = nilearn.image.high_variance_confounds(path, n_confounds=3)
    found = high_variance_confounds(path, n_confounds=3)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=200 * np.finfo(expected.dtype).eps)


MASK = nib.Nifti1Image((np.arange(720).reshape(9, 10, 8) % 3 > 0).astype("i4"), STRAIGHT)
EVERY_MASKER = [
    NiftiMasker(MASK, smoothing_fwhm=5),
    NiftiLabelsMasker(MASK),
    NiftiMapsMasker(nib.Nifti1Image(np.random.default_rng(1).random((9, 10, 8, 3)), STRAIGHT)),
    NiftiSpheresMasker([(2, 3, 4), (5, 9, 8)], radius=4),
]


@pytest.mark.parametrize("masker", EVERY_MASKER, ids=lambda masker: type(masker).__name__)
def test_maskers_remove_these_confounds(folder, masker):
    """A masker removes the confounds of the whole image, before those that it is given."""
    path = save(folder / "masker.nii", values_of(10, (9, 10, 8, 30)))
    other = np.random.default_rng(2).normal(size=(30, 2))
    masker.set_params(standardize=None, reports=False, high_variance_confounds=True)
    expected = masker.fit_transform(path, confounds=other)
    masker.set_params(high_variance_confounds=False)
    found = masker.fit_transform(path, confounds=[high_variance_confounds(path), other])
    assert_equal(found, expected)


def test_damaged_file_is_named(folder):
    """A file that is cut off is named, in either pass."""
    packed = gzip.compress(save(folder / "whole.nii", values_of(8, (9, 10, 8, 12))).read_bytes())
    path = folder / "cut.nii.gz"
    path.write_bytes(packed[: len(packed) // 2])
    for function in (mean_image, high_variance_confounds):
        with pytest.raises(OSError, match=r"cut.nii.gz is incomplete or damaged"):
            function(path)


@pytest.mark.chance
@pytest.mark.parametrize(
    "shape", [(40, 40, 30, 150), pytest.param((64, 64, 40, 400), marks=pytest.mark.extensive)]
)
def test_memory(folder, shape):
    """A few volumes are in memory, and twice the series that are selected: 2 %."""
    path = folder / "memory.nii"
    save(path, np.random.default_rng(9).normal(100, 30, shape))
    volume_mib = math.prod(shape[:3]) * 4 / 2**20
    assert measure(mean_image, path).above_mib < 10 * volume_mib + 1
    limit_mib = (20 + 0.05 * shape[3]) * volume_mib + 1
    assert measure(high_variance_confounds, path).above_mib < limit_mib
