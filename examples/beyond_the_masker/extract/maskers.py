"""Stream an image through nilearn's maskers, block of volumes by block of volumes."""

import re
import warnings
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from textwrap import shorten

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Memory
from nibabel.volumeutils import apply_read_scaling
from nilearn.image import load_img
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker, NiftiSpheresMasker
from scipy import linalg
from sklearn import get_config

from beyond_the_masker.extract.cleaning import clean
from beyond_the_masker.extract.regions import AT_ONCE, find_regions
from beyond_the_masker.extract.streaming import (
    damaged_file_named,
    list_files,
    open_series,
    read_to_end,
    read_volumes,
    read_voxels,
    scale,
    value_type,
)
from beyond_the_masker.extract.two_passes import (
    high_variance_confounds,
    image_like,
    mean_image,
    needs_mean,
)
from beyond_the_masker.files import file_named

__all__ = ["stream_masker"]
MASKERS = (NiftiMasker, NiftiLabelsMasker, NiftiMapsMasker, NiftiSpheresMasker)
TEMPORAL = ("detrend", "standardize", "standardize_confounds", "low_pass", "high_pass", "t_r")
NEUTRAL = {  # the values of parameters while blocks pass through the masker
    **dict.fromkeys(("standardize", "low_pass", "high_pass", "t_r", "runs", "clean_args")),
    **{"detrend": False, "high_variance_confounds": False, "dtype": None},
    **{"memory": None, "memory_level": 0, "verbose": 0},
}
TREATMENTS = {  # of groups of parameters
    "mask_img mask_strategy mask_args": "fit; the strategies background and epi need the mean "
    "of the image, for which the file is read once more",
    "labels_img labels lut maps_img seeds": "fit",
    "background_label radius strategy allow_overlap": "spatial, for each volume",
    "keep_masked_labels keep_masked_maps": "spatial, the same regions for each volume",
    "smoothing_fwhm": "spatial: blocks of whole volumes pass through the masker",
    "target_affine target_shape resampling_target": "fit; if the image is resampled, its range is "
    "found first, and blocks of whole volumes pass through the masker",
    " ".join(TEMPORAL) + " runs clean_args": "temporal, once at the end, by nilearn.signal.clean",
    "high_variance_confounds": "before the extraction: two more passes over the file",
    "dtype": "once at the end; for NiftiSpheresMasker before the averages, too",
    "memory memory_level": "fit is cached, blocks are not",
    "verbose": "fit; a progress bar shows the blocks",
    "reports cmap": "for the report, which shows the first volume",
}
TREATMENT = {name: text for names, text in TREATMENTS.items() for name in names.split()}


def treatment_table():
    """Return a table of the maskers' parameters, their treatment, and the maskers with each."""
    known = {kind.__name__: kind().get_params() for kind in MASKERS}
    owners = [", ".join(kind for kind in known if name in known[kind]) for name in TREATMENT]
    columns = {"treatment": list(TREATMENT.values()), "maskers that have it": owners}
    return pd.DataFrame(columns, index=list(TREATMENT)).rename_axis(columns="parameter")


def stream_masker(
    masker, fmri_path, confounds=None, sample_mask=None, *, block_size=None, memory_mib=None
):
    """Return what ``masker.fit_transform(fmri_path, ...)`` returns, with one block in memory.

    Parameters
    ----------
    masker : NiftiMasker, NiftiLabelsMasker, NiftiMapsMasker or NiftiSpheresMasker, or a list
        Several maskers share one pass over the file. They are left fitted, as by ``fit_transform``
        (only their reports show the first volume). Meanwhile do not use them elsewhere.
    fmri_path : str or pathlib.Path, or list of them
        4D NIfTI image, compressed or not, or the files of a series, as for
        `stream_masks`.
    confounds, sample_mask : optional
        As for ``fit_transform``, and the same for all maskers.
    block_size : int, optional
        Volumes in memory at a time; by default chosen from `memory_mib`.
    memory_mib : float, optional
        Approximate size of a block with its copies, in MiB; at least one volume. By default 192 if
        the image is resampled, 48 if it is smoothed, 16 for maps, otherwise 2.

    Returns
    -------
    array of shape (n_timepoints, n_voxels or n_regions), or pandas.DataFrame, or a list
        Of the type that ``fit_transform`` returns; a list if `masker` is a list.

    Raises
    ------
    ValueError
        The file is not a 4D NIfTI image, a parameter is wrong, the masker is of another class, or
        `sample_mask` keeps no volume, or one that the image does not have.
    OSError
        The file is missing, incomplete or damaged.

    Notes
    -----
    Values are those of ``fit_transform`` bit for bit. Only NiftiMapsMasker rounds differently: its
    least squares are factorised once. Extracted series differ by less than 1e-12 of their largest
    value, or 1e-5 where nilearn's are in single precision; so do series of 2,048 volumes or more
    from which confounds are removed: see `beyond_the_masker.extract.cleaning`. High variance
    confounds may differ by 1e-6 of theirs: see `beyond_the_masker.extract.two_passes`. If the image
    is resampled, the file is read twice.
    ``dtype="auto"`` gives float32 for an image with scale factors, where nilearn 0.14 fails.

    To remove confounds from fewer than 2,048 volumes, and in cases that are not usual from more,
    `nilearn.signal.clean` makes a square matrix of the kept volumes, 8 bytes for each pair.
    Before a Butterworth filter (`low_pass`, `high_pass`), nilearn 0.14 replaces a volume that
    `sample_mask` leaves out only if the volume as far from the other end is kept. Otherwise its
    values spread into the series. ``clean_args={"filter": "cosine"}`` is not affected.
    """
    maskers = list(masker) if isinstance(masker, (list, tuple)) else [masker]
    for each in maskers:
        refuse(each)
    check_positive(block_size, memory_mib)
    prepare_algebra()
    fmri = open_series(fmri_path)
    if confounds is not None and not isinstance(confounds, list):
        confounds = [confounds]
    if isinstance(sample_mask, np.ndarray):
        sample_mask = [sample_mask]
    parts = fit_all(maskers, fmri) if maskers else []
    for part in parts:
        part.check_cleaning(confounds, sample_mask)
    high_variance = []
    if any(part.parameters["high_variance_confounds"] for part in parts):
        high_variance = [high_variance_confounds(fmri)]
    if parts:
        extract(parts, fmri, block_size, memory_mib)
    results = [part.result(high_variance, confounds, sample_mask) for part in parts]
    return results if isinstance(masker, (list, tuple)) else results[0]


def prepare_algebra():
    """Let OpenBLAS take its memory: if it gets none, it asks for ever, so a MemoryError is better.

    NumPy and SciPy each have their own.
    """
    np.empty(2**26, "u1")
    for algebra in (np.linalg, linalg):
        algebra.cholesky(np.eye(2))


def fit_all(maskers, fmri):
    """Fit maskers to the first volume, or to the mean where the mask depends on it."""
    first = first_volume(fmri)
    mean = mean_image(fmri) if any(map(needs_mean, maskers)) else None
    for path in region_files(maskers):
        with damaged_file_named(path):
            read_to_end(nib.load(path))  # nilearn does not read its checksum
    warned = set()  # a warning for several maskers comes once
    return [StreamedMasker(each, fmri, first, mean, warned) for each in maskers]


def first_volume(fmri):
    """Return the numbers of the first volume, (1, voxels)."""
    with closing(read_volumes(fmri)) as volumes:
        part, volume = next(volumes)
    return (volume if fmri.is_uniform else scale(volume, part, fmri.dtype))[np.newaxis]


def region_files(maskers):
    """Return the files of the maskers' regions."""
    names = ("mask_img", "labels_img", "maps_img")
    given = [getattr(masker, name, None) for masker in maskers for name in names]
    return {file for path in given if isinstance(path, (str, Path)) for file in list_files(path)}


def extract(parts, fmri, block_size, memory_mib):
    """Extract the series of all parts; read the file once, or twice if the image is resampled."""
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part.spatial_only())
        try_short_ways(parts)
        positions = share_voxels(parts, fmri)
        n_rows = block_size or size_of_block(memory_mib, fmri, parts, len(positions))
        envelope = envelope_of(fmri, n_rows) if any(part.resampled for part in parts) else None
        blocks = stack.enter_context(closing(read_voxels(fmri, positions, n_rows)))
        for start, stored in blocks:
            for part in parts:
                part.extract(stored[:, part.shared], start, envelope)


def try_short_ways(parts):
    """Try the short way of each part; of those that differ in their mask alone, of the first."""
    kinds = {}
    for number, part in enumerate(parts):
        if type(part.masker) is NiftiMasker and part.regions:
            others = {name: each for name, each in part.parameters.items() if name != "mask_img"}
            mask_img = part.masker.mask_img_
            number = mask_img.get_data_dtype(), mask_img.affine.tobytes(), str(others)
        kinds.setdefault(number, []).append(part)
    for first, *others in kinds.values():
        first.try_short_way()
        for part in others:
            part.regions = part.regions if first.regions else None


def share_voxels(parts, fmri):
    """Return the positions of the voxels to read, and tell each part where its own will be.

    First those that maskers share, each once: all voxels, if any masker needs whole volumes. Then
    those of each NiftiMasker, which copies its voxels in any case.
    """
    needed = np.full(np.prod(fmri.shape[:3]), any(part.regions is None for part in parts))
    short = [part for part in parts if part.regions]
    alone = [part for part in short if type(part.masker) is NiftiMasker]
    for part in short:
        if part not in alone:
            needed[part.regions.positions] = True
    columns, positions = np.cumsum(needed) - 1, [np.flatnonzero(needed)]
    for part in parts:
        part.shared = slice(0, len(positions[0]))
        if part in alone:
            start, n_own = sum(map(len, positions)), len(part.regions.positions)
            part.shared = slice(start, start + n_own)
            part.place(slice(None), n_own)
            positions.append(part.regions.positions)
        elif part.regions:
            part.place(columns[part.regions.positions], len(positions[0]))
    return np.concatenate(positions)


def refuse(masker):
    """Raise a ValueError for another class of masker, with the alternative."""
    if type(masker) not in MASKERS:
        raise ValueError(
            f"{type(masker).__name__} cannot be streamed, only "
            f"{', '.join(kind.__name__ for kind in MASKERS)}: others may need the whole "
            "image. Call its fit_transform, or give one of these, or a list of them."
        )


def check_positive(block_size, memory_mib):
    """Raise a ValueError unless both numbers are positive, and the first is whole."""
    if block_size is not None and (block_size <= 0 or block_size % 1):
        raise ValueError(f"{block_size} is not a positive integer.")
    if memory_mib is not None and memory_mib <= 0:
        raise ValueError(f"{memory_mib} is not a positive number.")


def check_sample_mask(sample_mask, n_volumes, runs=None):
    """Raise a ValueError unless the sample mask of each run keeps volumes, and only its own.

    nilearn accepts an array of booleans of any length, and fails late in other cases.
    """
    is_list = isinstance(sample_mask, list | tuple)
    for run, mask in enumerate(map(np.asarray, sample_mask if is_list else [sample_mask])):
        n = n_volumes if runs is None else np.count_nonzero(np.asarray(runs) == run)
        is_bool = mask.dtype == bool
        if mask.ndim != 1 or (mask.size and mask.dtype.kind not in "iub"):
            raise ValueError(
                "sample_mask is an array with the numbers of the kept volumes, from 0, or with a "
                f"boolean for each volume; a list has one for each run. Here it has {mask!r}."
            )
        if is_bool and len(mask) != n:
            raise ValueError(f"sample_mask has {len(mask)} booleans for {n} volumes.")
        if not (mask.any() if is_bool else mask.size):
            raise ValueError(f"sample_mask keeps none of {n} volumes: all are scrubbed.")
        if not is_bool and len(wrong := mask[(mask < 0) | (mask >= n)]):
            wrong = shorten(", ".join(map(str, wrong)), 60)
            raise ValueError(f"sample_mask has {wrong}, but the volumes are 0 to {n - 1}.")


def not_finite(confounds):
    """Return the names of columns of tables and arrays that have values that are not finite."""
    tables = [pd.DataFrame(c) for c in confounds or [] if isinstance(c, pd.DataFrame | np.ndarray)]
    columns = (column for table in tables for column in table.astype(float).items())
    return [str(name) for name, values in columns if not np.isfinite(values).all()]


def as_volumes(stored, fmri):
    """Return values of shape (x, y, z, volumes) from stored ones, (volumes, voxels)."""
    stored = stored.T.reshape((*fmri.shape[:3], len(stored)), order="F")
    return apply_read_scaling(stored, fmri.slope, fmri.inter)


def size_of_block(memory_mib, fmri, parts, n_positions):
    """Return the number of volumes that fit into some MiB, on the largest grid."""
    long = [part for part in parts if part.regions is None]
    value = value_type(fmri).itemsize
    n_bytes = [2 * value * n_positions]
    if long:
        grids = [fmri, *(grid for part in long for grid in part.grids)]
        n_bytes += [6 * value * np.prod(grid.shape[:3]) for grid in grids]
    has_maps = any(type(part.masker) is NiftiMapsMasker for part in parts)
    envelope = any(part.resampled for part in long)
    # The next volume is decompressed while a block is averaged: the smaller the blocks, the less
    # of the time is spent waiting. The product with maps gains from several volumes, smoothing from
    # a few; a block that is resampled has the volumes of the envelope, too.
    default = 192 if envelope else 48 if long else 16 if has_maps else 2
    n_volumes = int((memory_mib or default) * 2**20 // max(n_bytes))
    if has_maps and not long and n_volumes > AT_ONCE:
        n_volumes -= n_volumes % AT_ONCE  # else volumes of zeros would fill up the last product
    return min(max(n_volumes - envelope, 1), fmri.shape[3])


def envelope_of(fmri, n_rows):
    """Return volumes with the range of an image, that are zero where all are; NaN if any is.

    One volume is enough, or two if there are values below and above zero.
    """
    functions, reduced = (np.fmin, np.fmax, np.minimum), None
    every_voxel = np.arange(np.prod(fmri.shape[:3]))
    with closing(read_voxels(fmri, every_voxel, n_rows)) as blocks:
        for _, stored in blocks:
            parts = [f.reduce(as_volumes(stored, fmri), axis=3) for f in functions]
            both = zip(functions, reduced or parts, parts, strict=True)
            reduced = [f(one, other) for f, one, other in both]
    low, high, with_nan = reduced
    volumes = [high] if not (low < 0).any() else [low, high]
    return np.stack(volumes + [with_nan] * int(np.isnan(with_nan).any()), axis=3)


class StreamedMasker:
    """One fitted masker: extract blocks, then clean the whole series."""

    def __init__(self, masker, fmri, first, mean, warned):
        self.masker, self.fmri, self.first, self.warned = masker, fmri, first, warned
        self.parameters = masker.get_params(deep=False)
        self.is_spheres = type(masker) is NiftiSpheresMasker
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Generation of a mask.*")  # as fit_transform
            volume = image_like(fmri, as_volumes(first.copy(), fmri))
            with file_named(" or ".join(region_files([masker])) or None):
                masker.fit(mean if needs_mean(masker) else volume)
        self.fitted = masker.clean_args_, masker.memory_
        imgs = (getattr(masker, f"{name}_img_", None) for name in ("mask", "labels", "maps"))
        self.grids = [img for img in imgs if img is not None]
        self.resampled = self.is_resampled()
        is_spatial = self.resampled or self.parameters["smoothing_fwhm"] is not None
        self.regions = None if is_spatial else find_regions(masker, fmri)
        self.series = self.columns = None

    def is_resampled(self):
        """Return whether the image is resampled; for spheres, the mask is."""
        if self.is_spheres:
            return False
        if self.parameters.get("target_affine") is not None:
            return True
        shape, affine = self.fmri.shape[:3], self.fmri.affine
        is_same = np.array_equal  # nilearn resamples to the grid of these regions in any case
        if self.parameters.get("resampling_target", "data") == "data":
            is_same = np.allclose
        return not all(g.shape[:3] == shape and is_same(g.affine, affine) for g in self.grids)

    @contextmanager
    def spatial_only(self):
        """Turn off the temporal parameters and the cache of the masker while blocks pass."""
        neutral = {name: value for name, value in NEUTRAL.items() if name in self.parameters}
        if self.is_spheres and self.parameters["dtype"] != "auto":
            del neutral["dtype"]
        try:
            self.masker.set_params(**neutral)
            self.masker.clean_args_, self.masker.memory_ = {}, Memory(location=None)
            yield
        finally:
            self.masker.set_params(**self.parameters)
            self.masker.clean_args_, self.masker.memory_ = self.fitted

    def try_short_way(self):
        """Leave the short way unless it gives what nilearn makes of the first volume.

        Spheres and maps are not compared: for them, nilearn needs seconds and much memory.
        """
        masker = self.masker
        if self.regions is None:
            return
        makes_frames = hasattr(masker, "_sklearn_output_config")
        makes_frames |= get_config()["transform_output"] != "default"
        is_slow = self.is_spheres
        if type(masker) is NiftiMapsMasker:  # unless nilearn has to warn, or to raise an error
            warns = not self.regions.is_whole or masker.keep_masked_maps
            is_slow = masker.allow_overlap and not (masker.mask_img is not None and warns)
        if is_slow and not makes_frames:
            return
        expected = self.transform(self.block_image(self.first, None))[:1]
        n_voxels = len(self.regions.positions)
        self.place(np.arange(n_voxels), n_voxels)
        found = self.reduce(self.first[:, self.regions.positions])
        is_exact = type(masker) in (NiftiMasker, NiftiLabelsMasker)
        atol = 0 if is_exact else 1e-4 * np.abs(expected).max(initial=0)
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=atol):
            self.regions = None

    def place(self, columns, n_columns):
        """Note in which columns of a block the masker's voxels will be."""
        self.own, self.reduce_values = columns, self.regions.reducer(columns, n_columns)

    def extract(self, stored, start, envelope):
        """Extract the series of a block of stored numbers, which begins at volume `start`."""
        if self.regions:
            series = self.reduce(stored)
        else:
            series = self.transform(self.block_image(stored, envelope))[: len(stored)]
        if self.series is None:
            self.series = np.empty((self.fmri.shape[3], series.shape[1]), series.dtype)
        self.series[start : start + len(series)] = series

    def reduce(self, stored):
        """Return the series of a block, from the stored numbers of the masker's voxels."""
        values = scale(stored, self.fmri, self.regions.dtype)
        finite = np.isfinite(values)
        if not finite.all():
            self.report_not_finite(values[:, self.own])
            values = np.where(finite, values, 0)
        return self.reduce_values(values)

    def report_not_finite(self, values):
        """Warn of values that are not finite, or refuse them, as nilearn does."""
        is_silent = type(self.masker) is NiftiMasker
        if self.is_spheres:
            self.refuse_infinite(values)
            is_silent = self.masker.mask_img is not None
        if not is_silent and not np.isfinite(values).all():
            text = f"Non-finite values detected in {self.fmri.name}: they become zero."
            self.warn(text, UserWarning)

    def block_image(self, stored, envelope):
        """Return a copy of a block as an image, with volumes that make it like the whole image.

        Resampling clips values to the range of the image, and crops where it is zero. A mean over
        a sphere is summed in another order for a single volume.
        """
        block, alone = as_volumes(stored, self.fmri), False
        if self.is_spheres:
            self.refuse_infinite(block)
            alone = block.shape[3] == 1 < self.fmri.shape[3]
        extra = envelope if self.resampled else block[..., : int(alone)]
        data = np.empty((*block.shape[:3], block.shape[3] + extra.shape[3]), block.dtype, order="F")
        data[..., : block.shape[3]], data[..., block.shape[3] :] = block, extra
        block_img = image_like(self.fmri, data)
        as_spheres = self.is_spheres and self.parameters["dtype"] == "auto"
        return load_img(block_img, dtype="auto") if as_spheres else block_img

    def refuse_infinite(self, block):
        """Refuse infinite values where nilearn's result depends on the whole image."""
        masked = self.masker.mask_img is not None or self.masker.smoothing_fwhm is not None
        if not masked and np.isinf(block).any():
            raise ValueError(
                f"{self.fmri.name} has infinite values. The result of "
                "NiftiSpheresMasker without a mask then depends on the whole image: give it a "
                "mask_img."
            )

    def transform(self, block_img):
        """Return the masker's series of a block as an array; pass on each warning once."""
        with self.warnings_once():
            part = self.masker.transform(block_img)
        if isinstance(part, pd.DataFrame):
            self.columns, part = part.columns, part.to_numpy()
        elif not isinstance(part, np.ndarray):
            raise ValueError(
                f"{type(part).__module__} is not supported: use "
                "set_output(transform='default') or 'pandas'."
            )
        return part

    @contextmanager
    def warnings_once(self):
        """Issue a warning of nilearn only once, for all blocks."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for warning in caught:
            text = str(warning.message)
            if not (self.regions and "Non-finite" in text):  # `reduce` looks at the regions alone
                self.warn(text, warning.category)

    def warn(self, text, category):
        """Issue a warning, but each only once."""
        if text not in self.warned:
            self.warned.add(text)
            warnings.warn(text, category, stacklevel=7)

    def clean(self, series, confounds, sample_mask):
        """Do the temporal part."""
        parameters = self.parameters
        options = {name: parameters[name] for name in TEMPORAL} | {"runs": parameters.get("runs")}
        steps = [options[name] for name in ("detrend", "standardize", "low_pass", "high_pass")]
        steps += [options["runs"], parameters["clean_args"], confounds, sample_mask]
        if series.dtype.kind == "f" and all(each is None or each is False for each in steps):
            return series  # there is nothing to do, and `clean` would copy it
        if sample_mask is not None:  # `clean` may change it
            sample_mask = [np.array(mask) for mask in sample_mask]
        options |= {"confounds": confounds, "sample_mask": sample_mask}
        return clean(series, **options, **(parameters["clean_args"] or {}))

    def check_cleaning(self, confounds, sample_mask):
        """Clean a random series, so that a mistake shows before the file is read."""
        n_volumes, t_r = self.fmri.shape[3], self.parameters["t_r"]
        if t_r is not None and not t_r > 0:
            raise ValueError(f"t_r is {t_r}; it is the time between two volumes, in seconds.")
        if sample_mask is not None:
            check_sample_mask(sample_mask, n_volumes, self.parameters.get("runs"))
        series = np.random.default_rng(0).normal(9, 1, (n_volumes, 1))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.clean(series, confounds, sample_mask)
        except ValueError as error:
            names = not_finite(confounds) if re.search("NaN|finite", str(error)) else []
            if not names:
                raise
            raise ValueError(
                f"The confounds {shorten(', '.join(names), 200)} have values that are not finite. "
                "Derivatives have none in the first volume: replace it, leave it out with "
                "sample_mask, or drop these columns."
            ) from error

    def result(self, high_variance, confounds, sample_mask):
        """Return the cleaned series in the type that the masker would return."""
        if self.parameters["high_variance_confounds"]:
            confounds = [*high_variance, *(confounds or [])]
        with self.warnings_once():
            series = self.clean(self.series, confounds, sample_mask)
        self.series = None  # frees what was extracted
        dtype = self.parameters["dtype"]
        if isinstance(dtype, str) and dtype == "auto":
            dtype = "int32" if value_type(self.fmri).kind == "i" else "float32"
        series = series if dtype is None else series.astype(dtype)
        return series if self.columns is None else pd.DataFrame(series, columns=self.columns)


def stream_nifti_maskers(fmri_path, mask_paths):
    """Return the voxel time series of several masks, from `stream_masker` with NiftiMasker."""
    maskers = [NiftiMasker(mask_img=path, standardize=None, reports=False) for path in mask_paths]
    return stream_masker(maskers, fmri_path)
