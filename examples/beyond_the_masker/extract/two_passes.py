"""What nilearn computes from the whole image before it extracts: one or two passes over the file.

Masks are computed from `mean_image`. Maskers with ``high_variance_confounds=True`` remove what the
function of that name returns. Both keep a few volumes in memory, the second also the series that it
selects.
"""

import math

import nibabel as nib
import nilearn.signal
import numpy as np
from nibabel.volumeutils import apply_read_scaling
from nilearn.signal import standardize_signal

from beyond_the_masker.extract.streaming import open_series, read_voxels, value_type

__all__ = ["high_variance_confounds", "mean_image"]
AT_ONCE = 2**16  # voxels whose sums are computed at once: they fit into the processor's cache
GROUP = 4  # series that OpenBLAS multiplies at once; it may round the last 1 to 3 in another way
FEW = 500  # voxels of a small image: nilearn does not divide it into parts


def needs_mean(masker):
    """Return whether the masker computes its mask from the mean of the image."""
    strategy = getattr(masker, "mask_strategy", None)
    return strategy in ("background", "epi") and masker.mask_img is None


def mean_image(fmri_path):
    """Return a 4D image of one volume, the mean over time, from which nilearn computes a mask.

    A masker fitted to it gets the mask, bit for bit, that ``masker.fit(fmri_path)`` computes. The
    mean has the type and the values of `numpy.mean`; the header still names the file's type.
    """
    fmri = open_series(fmri_path)
    *grid, n_volumes = fmri.shape
    everywhere = np.arange(math.prod(grid))
    if len(everywhere) == 1:  # NumPy sums a single series in another order
        [(_, series)] = read_values(fmri, everywhere, n_volumes)
        mean = series.mean(axis=0)
    else:
        mean = np.zeros(len(everywhere), np.mean(np.ones(1, value_type(fmri))).dtype)
        for _, (volume,) in read_values(fmri, everywhere, n_rows=1):
            mean += volume
        np.true_divide(mean, np.intp(n_volumes), out=mean, casting="unsafe")
    return image_like(fmri, mean.reshape(*grid, 1, order="F"))


def image_like(fmri, data):
    """Return an image of some volumes, with the affine and the header of a series."""
    kind = nib.Nifti2Image if isinstance(fmri.header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(data, fmri.affine, fmri.header)


def high_variance_confounds(fmri_path, n_confounds=5, percentile=2.0):
    """Return what `nilearn.image.high_variance_confounds` returns, with few series in memory.

    The first pass bounds the variance of each voxel. Further passes, usually one, read the series
    of the voxels that may be among those with the highest variance.

    Parameters
    ----------
    fmri_path : str or pathlib.Path, or list of them
        4D NIfTI image, or the files of a series, as for `stream_masks`.
    n_confounds : int
        Number of confounds.
    percentile : float
        Percentage of voxels whose series are used.

    Returns
    -------
    array of shape (n_timepoints, n_confounds)

    Notes
    -----
    nilearn detrends in ten parts, and BLAS those in one part for each thread. In the last three
    series of each, it may round in another way than here; everything else is the same, bit for bit.
    An image with few voxels or volumes, or with all voxels in one row, is read as a whole.
    """
    fmri = open_series(fmri_path)
    *grid, n_volumes = fmri.shape
    [in_file] = in_nilearns_order(fmri, np.arange(math.prod(grid)))
    in_a_row = sum(n > 1 for n in grid) < 2
    if in_a_row or n_volumes < 3 or len(in_file) < FEW:
        [(_, series)] = read_values(fmri, in_file, n_volumes)
        series = np.asarray(series, order="C" if in_a_row else "F")
        return nilearn.signal.high_variance_confounds(series, n_confounds, percentile)

    low, high = in_nilearns_order(fmri, *variance_bounds(fmri))
    candidates = np.flatnonzero((high >= least_threshold(low, percentile)) & (high > low))
    variance = np.where(np.isnan(low), low, 0)  # the others are below the threshold
    n_parts = math.ceil(len(candidates) / max(1000, len(variance) * percentile / 50)) or 1
    for part in np.array_split(candidates, n_parts):
        series = detrended_series(fmri, in_file[part])
        variance[part] = mean_of_squares(series)[: len(part)]
    kept = np.flatnonzero(variance > np.nanpercentile(variance, 100 - percentile))
    if n_parts > 1:
        series = detrended_series(fmri, in_file[kept])
    else:
        series = series.T[np.append(np.searchsorted(part, kept), -1)].T
    # nilearn uses what is above the lowest variance: all but the series of zeros at the end.
    return nilearn.signal.high_variance_confounds(series, n_confounds, 100.0, detrend=False)


def in_nilearns_order(fmri, *volumes):
    """Return volumes of the file, in which x changes fastest, as nilearn flattens them."""
    return [one.reshape(fmri.shape[:3], order="F").ravel() for one in volumes]


def least_threshold(low, percentile):
    """Return a number that the threshold is not below, from lower bounds of the variances."""
    known = low[~np.isnan(low)]
    rank = max(int((known.size - 1) * (1 - percentile / 100)) - 1, 0)
    return np.partition(known, rank)[rank] if known.size else 0


def variance_bounds(fmri):
    """Return the lowest and the highest variance that nilearn may find in each voxel."""
    everywhere = np.arange(math.prod(fmri.shape[:3]))
    middle = (fmri.shape[3] - 1) / 2
    dtype, shift, sums = float_type(fmri), None, np.zeros((3, len(everywhere)))
    with np.errstate(all="ignore"):
        for time, (volume,) in read_values(fmri, everywhere, n_rows=1):
            volume = volume.astype(dtype)
            shift = volume if shift is None else shift
            shift[~np.isfinite(volume)] = np.nan  # and so the sums
            for part in parts_of(sums.shape[1]):
                add_to_sums(sums[:, part], volume[part], shift[part], time - middle)
        for part in parts_of(sums.shape[1]):
            sums[:2, part] = bounds(sums[:, part], shift[part], fmri.shape[3])
    return sums[:2]


def parts_of(n_voxels):
    """Return slices of so few voxels that their sums stay in the processor's cache."""
    return [slice(start, start + AT_ONCE) for start in range(0, n_voxels, AT_ONCE)]


def add_to_sums(sums, volume, shift, time):
    """Add a volume to the sums of values, squares, and products with time, about a shift."""
    values = np.subtract(volume, shift, dtype=np.float64)
    sums[0] += values
    sums[1] += values**2
    sums[2] += values * time


def bounds(sums, shift, n):
    """Return bounds of the variance after detrending, computed in the type of `shift`.

    Each of nilearn's values is off by at most `steps` of the root mean square of its series, and
    so is the root of their variance; sums here are off by `doubt`. NaN where a value is not finite,
    no bounds where nilearn's numbers may overflow.
    """
    own, double = np.finfo(shift.dtype), np.finfo(np.float64)
    steps = (64 + n) * own.eps
    mean, square = sums[0] / n, sums[1] / n
    size = (shift + mean) ** 2 + square
    variance = square - mean**2 - sums[2] ** 2 * 12 / (n**2 * (n**2 - 1.0))
    doubt = 8 * (64 + n) * double.eps * square
    low = np.sqrt(np.maximum(variance - doubt, 0)) - steps * np.sqrt(size)
    high = np.sqrt(np.maximum(variance + doubt, 0)) + steps * np.sqrt(size)
    low = np.maximum(low, 0) ** 2 * (1 - steps) - own.tiny
    high = high**2 * (1 + steps) + own.tiny
    low[size == 0], high[size == 0] = 0, 0
    overflow = ~(size * n < own.max / 4) & ~np.isnan(shift)
    low[overflow], high[overflow] = -np.inf, np.inf
    return low, high


def detrended_series(fmri, positions):
    """Return the series of some voxels as nilearn detrends them, and at the end some of zeros."""
    n_volumes = fmri.shape[3]
    n_series = GROUP * min(
        max(2048 // n_volumes, 1), 100
    )  # too few for nilearn's parts, or threads
    n_groups = len(positions) // n_series + 1
    series = np.zeros((n_volumes, n_groups * n_series), float_type(fmri), order="F")
    for start, values in read_values(fmri, positions, n_rows=8):
        series[start : start + len(values), : len(positions)] = values
    for group in np.split(series, n_groups, axis=1):
        group[:] = standardize_signal(group, detrend=True, standardize=None)
    return series


def float_type(fmri):
    """Return the type in which nilearn detrends."""
    zeros = np.zeros((3, 1), value_type(fmri))
    return standardize_signal(zeros, detrend=True, standardize=None).dtype


def mean_of_squares(series):
    """Return the mean of squares of each series, with few copies at once."""
    groups = np.split(series, series.shape[1] // GROUP, axis=1)
    return np.concatenate([(group**2).mean(axis=0) for group in groups])


def read_values(fmri, positions, n_rows):
    """Yield the first volume of each block, and the values that nibabel returns."""
    for start, stored in read_voxels(fmri, positions, n_rows):
        yield start, apply_read_scaling(stored, fmri.slope, fmri.inter)
