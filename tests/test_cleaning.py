"""Long series are cleaned as nilearn cleans them, but for the last bits, in less memory."""

import tracemalloc

import numpy as np
import pytest
from nilearn import signal

from beyond_the_masker.extract import cleaning


@pytest.mark.parametrize("n_volumes", [299, 300])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"detrend": True, "standardize": "zscore_sample"},
        {"detrend": True, "low_pass": 0.1, "high_pass": 0.01, "t_r": 2.0},
        {"standardize": "psc"},
        {"standardize_confounds": False, "detrend": True},
    ],
)
@pytest.mark.parametrize("scrubbed", [0, 5])
def test_values_are_nilearns(monkeypatch, n_volumes, dtype, how, scrubbed):
    """Short series are the same bit for bit, long ones within the stated bound."""
    monkeypatch.setattr(cleaning, "LONG", 300)
    rng = np.random.default_rng(0)
    series = (rng.normal(size=(n_volumes, 7)) + 100).astype(dtype)
    confounds = [rng.normal(size=(n_volumes, 3)), rng.normal(size=(n_volumes, 1))]
    how = {"standardize": None, "detrend": False, **how}
    if scrubbed:
        how["sample_mask"] = [np.setdiff1d(np.arange(n_volumes), range(scrubbed))]
    before = series.copy()
    found = cleaning.clean(series, confounds, **how)
    expected = signal.clean(series, confounds=confounds, **how)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(series, before)
    if (
        n_volumes < cleaning.LONG
        or "psc" in how.values()
        or not how.get("standardize_confounds", True)
    ):
        np.testing.assert_array_equal(found, expected)
    else:
        bound = {"f4": 1e-5, "f8": 1e-12}[dtype] * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def test_memory_of_long_series():
    """Cleaning needs a few times the series, not a matrix of all pairs of volumes."""
    rng = np.random.default_rng(0)
    series, confounds = rng.normal(size=(4800, 10)), rng.normal(size=(4800, 5))
    tracemalloc.start()
    cleaning.clean(series, confounds, detrend=True, standardize="zscore_sample")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * (series.nbytes + confounds.nbytes) < 4800**2 * 8 / 10
