"""Clean long series with confounds, in little memory.

nilearn removes confounds with a matrix of n_timepoints x n_timepoints: 176 MiB for 4,800 volumes,
where the series of 400 regions need 15. Without it, only the last bits are different.
"""

import numpy as np
from nilearn import signal
from scipy import linalg

LONG = 2048  # volumes; their matrix would need 32 MiB


def clean(series, confounds=None, standardize=None, standardize_confounds=True, **options):
    """Return what `nilearn.signal.clean` returns, in less memory if the series are long."""
    how = {"standardize": standardize, "standardize_confounds": standardize_confounds}
    is_long = confounds is not None and len(series) >= LONG
    if not is_long or not is_usual(**how, **options):
        return signal.clean(series, confounds=confounds, **how, **options)
    confounds = signal.sanitize_confounds(len(series), confounds)
    series = signal.clean(series, standardize=None, **options)
    remove(series, signal.clean(confounds, standardize="zscore_sample", **options))
    if standardize is None:
        return series
    return signal.standardize_signal(series, standardize=standardize, detrend=False)


def is_usual(standardize, standardize_confounds, runs=None, **options):
    """Return whether series and confounds are treated alike, each by itself, until the removal."""
    usual = {"detrend", "low_pass", "high_pass", "t_r", "sample_mask"}
    is_alone = standardize in (None, "zscore_sample") and runs is None and usual >= set(options)
    return is_alone and standardize_confounds is True


def remove(series, confounds):
    """Subtract from series, in place, what confounds explain of them."""
    basis, rest, _ = linalg.qr(confounds, mode="economic", pivoting=True)
    basis = basis[:, np.abs(rest.diagonal()) > 100 * np.finfo(float).eps]
    series -= basis @ (basis.T @ series)
