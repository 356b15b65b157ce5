"""What nilearn computes from the whole image is the same, computed in passes over the file."""

import warnings
from functools import partial

import nibabel as nib
import nilearn.image
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nilearn.maskers import NiftiLabelsMasker, NiftiMasker
from nilearn.signal import _detrend, _mean_of_squares

from beyond_the_masker.extract import two_passes as module
from beyond_the_masker.extract.streaming import open_series
from beyond_the_masker.extract.two_passes import high_variance_confounds, mean_image, needs_mean
from beyond_the_masker.meter import MIB, measure
from made_images import NONE, STRAIGHT, by_name, write

# Types and scale factors of the files.
KINDS = [
    *(("<f4", NONE), (">f4", NONE), ("<f8", NONE), (">f8", NONE), ("u1", NONE), ("<i2", NONE)),
    *((">i2", NONE), ("<i2", (0.37, -5)), (">i2", (2.0, 0)), ("<i4", NONE), ("<i8", NONE)),
    *(("<u2", NONE), ("<f4", (0.5, 3))),
]
QUIET = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
COARSE = np.diag([5.0, 5, 5, 1])
assert_equal = partial(np.testing.assert_array_equal, strict=True)  # shapes and types, too


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder for the images of this file."""
    return tmp_path_factory.mktemp("two_passes")


def values_of(seed, shape, kind=("<f8", NONE)):
    """Return values whose variance differs between voxels, some of them constant."""
    random = np.random.default_rng(seed)
    spread = random.gamma(1, 20, (*shape[:3], 1))
    spread[:1] = 0
    spread[:, :1] *= random.random() < 0.5
    trend = np.linspace(0, 1, shape[3]) * random.normal(0, 50, spread.shape)
    data = 100 + spread * random.normal(size=shape) + trend
    return data.clip(0, 250) if np.dtype(kind[0]).kind == "u" else data


def save(path, data, kind=("<f4", NONE)):
    """Write an image; return its path."""
    dtype, scaling = kind
    with np.errstate(invalid="ignore", over="ignore"):  # NaN becomes an integer
        return write(path, (data / 1).astype(dtype), scaling=scaling)


grids = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7))


# The mean image, and masks computed from it
# ------------------------------------------


@QUIET
@given(grids, st.integers(1, 40), st.sampled_from(KINDS), st.integers(0, 999), st.booleans())
@example((1, 1, 1), 40, ("<f4", NONE), 0, False)
def test_mean_is_numpys(folder, grid, n_volumes, kind, seed, damaged):
    """The mean has the type and every bit of NumPy's, whatever is in the file."""
    data = values_of(seed, (*grid, n_volumes), kind)
    if damaged and np.dtype(kind[0]).kind == "f":
        every = data.flat[seed % 7 :: 7]
        data.flat[seed % 7 :: 7] = np.resize([np.nan, 3, np.inf, -np.inf], len(every))
    path = save(folder / "mean.nii", data, kind)
    found = np.asanyarray(mean_image(path).dataobj)
    assert_equal(found[..., 0], np.asarray(nib.load(path).dataobj).mean(axis=-1))


def head(kind=("<f4", NONE)):
    """Return values with a bright ball on a dark, noisy background; at the border zero, or NaN."""
    shape, random = (14, 15, 12, 20), np.random.default_rng(2)
    places = np.moveaxis(np.indices(shape[:3]), 0, -1) - np.array(shape[:3]) / 2
    ball = (places**2).sum(axis=-1) < 25
    data = (ball[..., None] * 900 + 100) * random.gamma(9, 0.1, shape)
    border = np.pad(np.zeros((10, 11, 8), bool), 2, constant_values=True)
    data[border] = np.nan if kind[0] == ">f4" else 0
    data[7, 7, 5, 3] = np.inf if kind[0] == ">f4" else 900
    return data


MASKERS = {
    "background": {},
    "background, connected": {"mask_args": {"connected": True, "opening": 1, "border_size": 1}},
    "background, coarse mean": {"mask_args": {"target_affine": COARSE}},
    "epi, target": {"mask_strategy": "epi", "target_affine": COARSE, "reports": False},
    "epi, no opening": {
        "mask_strategy": "epi",
        "mask_args": {"opening": False, "exclude_zeros": True, "lower_cutoff": 0.4},
    },
}
HEADS = [("<f4", NONE), (">f4", NONE), (">f8", NONE), ("<i2", NONE), ("<i2", (0.3, -5))]


@QUIET
@by_name(
    ("options", "kind"), {k: (MASKERS[k], kind) for k, kind in zip(MASKERS, HEADS, strict=True)}
)
def test_masker_fitted_to_the_mean(folder, options, kind):
    """The mask is that of a fit to the image: values, grid and header."""
    path = save(folder / "head.nii.gz", head(kind), kind)
    options = {"standardize": None, **options}
    own, usual = NiftiMasker(**options).fit(mean_image(path)), NiftiMasker(**options).fit(path)
    assert own.n_elements_ == usual.n_elements_ > 100
    assert_equal(np.asarray(own.mask_img_.dataobj), np.asarray(usual.mask_img_.dataobj))
    assert_equal(np.asarray(own.affine_), np.asarray(usual.affine_))
    assert own.mask_img_.header == usual.mask_img_.header
    assert_equal(own.transform(path), usual.transform(path))


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
    assert all(map(needs_mean, [NiftiMasker(), NiftiMasker(mask_strategy="epi")]))
    others = [NiftiMasker(mask, mask_strategy="epi"), NiftiLabelsMasker(mask)]
    assert not any(map(needs_mean, [*others, NiftiMasker(mask_strategy="whole-brain-template")]))


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


def with_value(value):
    """Return data in which some voxels have such a value, everywhere or in one volume."""
    data = values_of(3, BOX)
    data[4:, :3], data[2, 3, 4, 0], data[3, 5, 6, 29] = value, value, value
    return data


def partly(value):
    """Return data that are constant but for some voxels."""
    data = np.full(BOX, value)
    data[:2, :3, :2] = values_of(4, (2, 3, 2, 30))
    return data


BOX = (9, 10, 8, 30)
UNUSUAL = {
    **{f"some {value}": with_value(value) for value in (np.nan, np.inf, -np.inf)},
    **{f"all {value}": np.full(BOX, value) for value in (0, 5, 1e6 / 3, np.nan)},
    **{f"most {value}": partly(value) for value in (0, 5, 1e6 / 3, np.nan)},
    **{  # numbers whose squares single precision cannot hold
        f"times {size}": values_of(5, BOX) * size
        for size in (1e-30, 1e-22, 1e-19, 1e-3, 1e6, 1e18, 1e36)
    },
}


@by_name("data", UNUSUAL)
def test_confounds_of_unusual_values(folder, data):
    """Values that are not finite, constant, tiny or huge are treated as by nilearn."""
    for kind in ("<f4", ">f4", "<f8"):
        assert_nilearns_confounds(save(folder / "unusual.nii", data, (kind, NONE)))


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


@given(
    *(st.integers(3, 200), st.sampled_from(KINDS), st.integers(0, 999)),
    st.tuples(*[st.sampled_from([0, 1e-3, 1, 1e3, 1e6])] * 4),
)
def test_bounds_hold(folder, n_volumes, kind, seed, strengths):
    """nilearn's variances are within the bounds: means, trends, first volumes may be large."""
    random, (mean, trend, noise, first) = np.random.default_rng(seed), strengths
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
@pytest.mark.parametrize("kind", [("<f4", NONE), ("<i2", (0.37, -5))])
def test_confounds_on_any_grid(folder, grid, kind):
    """Where BLAS sums the last series of a part in another way, confounds agree up to rounding."""
    random = np.random.default_rng(7)
    data = 100 + random.normal(0, 3, (*grid, 37))
    shared = random.normal(size=(3, 37)) * [[90], [60], [40]]
    loud = random.random(grid) < 0.05
    data[loud] += random.normal(size=(np.count_nonzero(loud), 3)) @ shared
    path = save(folder / "any.nii", data, kind)
    expected = nilearn.image.high_variance_confounds(path, n_confounds=3)
    found = high_variance_confounds(path, n_confounds=3)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=200 * np.finfo(expected.dtype).eps)


@pytest.mark.chance
def test_memory(folder):
    """A few volumes are in memory, and twice the series that are selected: 2 %."""
    path, n_volumes = folder / "memory.nii", 150
    save(path, np.random.default_rng(9).normal(100, 30, (40, 40, 30, n_volumes)))
    volume_mib = 40 * 40 * 30 * 4 / MIB
    assert measure(mean_image, path).above_mib < 10 * volume_mib + 1
    limit_mib = (20 + 0.05 * n_volumes) * volume_mib + 1
    assert measure(high_variance_confounds, path).above_mib < limit_mib
