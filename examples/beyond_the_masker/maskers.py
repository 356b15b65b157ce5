"""Stream an image through nilearn's maskers, block of volumes by block of volumes."""

import warnings
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Memory
from nibabel.arrayproxy import ArrayProxy
from nilearn.image import load_img
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker, NiftiSpheresMasker
from nilearn.signal import clean
from tqdm import tqdm

from beyond_the_masker.streaming import damaged_file_named, open_data, open_image

__all__ = ["stream_masker"]
MASKERS = (NiftiMasker, NiftiLabelsMasker, NiftiMapsMasker, NiftiSpheresMasker)
TEMPORAL = ("detrend", "standardize", "standardize_confounds", "low_pass", "high_pass", "t_r")
NEUTRAL = {  # the values of parameters while blocks pass through the masker
    **dict.fromkeys(("standardize", "low_pass", "high_pass", "t_r", "runs", "clean_args")),
    **{"detrend": False, "dtype": None, "memory": None, "memory_level": 0, "verbose": 0},
}
TREATMENTS = {  # of groups of parameters
    "mask_img mask_strategy mask_args": "fit; without mask_img, only template strategies",
    "labels_img labels lut maps_img seeds": "fit",
    "background_label radius strategy allow_overlap smoothing_fwhm": "spatial, in each block",
    "keep_masked_labels keep_masked_maps": "spatial, in each block: the same regions in each",
    "target_affine target_shape resampling_target": "fit, and in each block; if the image is "
    "resampled, its range is found first",
    " ".join(TEMPORAL) + " runs clean_args": "temporal, once at the end, by nilearn.signal.clean",
    "high_variance_confounds": "refused: it needs the whole image",
    "dtype": "once at the end; NiftiSpheresMasker converts each block, too",
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
    masker, fmri_path, confounds=None, sample_mask=None, *, block_size=None, memory_mib=64
):
    """Return what ``masker.fit_transform(fmri_path, ...)`` returns, with one block in memory.

    Parameters
    ----------
    masker : NiftiMasker, NiftiLabelsMasker, NiftiMapsMasker or NiftiSpheresMasker, or a list
        Several maskers share one pass over the file. They are left fitted, as by ``fit_transform``
        (only their reports show the first volume). Meanwhile do not use them elsewhere.
    fmri_path : str or pathlib.Path
        4D NIfTI file, compressed or not.
    confounds, sample_mask : optional
        As for ``fit_transform``, and the same for all maskers.
    block_size : int, optional
        Volumes in memory at a time; by default chosen from `memory_mib`.
    memory_mib : float
        Approximate size of a block with its copies, in MiB; at least one volume.

    Returns
    -------
    array of shape (n_timepoints, n_voxels or n_regions), or pandas.DataFrame, or a list
        Of the type that ``fit_transform`` returns; a list if `masker` is a list.

    Raises
    ------
    ValueError
        The file is not a 4D NIfTI image, or a parameter is wrong or needs the whole image.
    OSError
        The file is missing, incomplete or damaged.

    Notes
    -----
    Values are those of ``fit_transform`` bit for bit. Only NiftiMapsMasker rounds differently with
    fewer volumes at once: extracted series differ by less than 1e-12 of their largest value, or
    by 1e-5 if image and maps are both float32. If the image is resampled, the file is read twice.
    ``dtype="auto"`` gives float32 for an image with scale factors, where nilearn 0.14 fails.
    """
    maskers = list(masker) if isinstance(masker, (list, tuple)) else [masker]
    for each in maskers:
        refuse(each)
    check_positive(block_size, memory_mib)
    img, first = open_4d(fmri_path)
    parts = [StreamedMasker(each, img, first) for each in maskers]
    if confounds is not None:
        confounds = list(confounds) if isinstance(confounds, list) else [confounds]
    cleaning = {"confounds": confounds, "sample_mask": sample_mask}
    for part in parts:
        part.check_cleaning(img.shape[3], cleaning)
    block_size = block_size or size_of_block(memory_mib, img, parts)
    resampled = any(part.resampled for part in parts)
    envelope = envelope_of(fmri_path, block_size) if resampled else None
    with ExitStack() as stack:
        blocks = stack.enter_context(closing(volume_blocks(fmri_path, block_size)))
        for part in parts:
            stack.enter_context(part.spatial_only())
        start = 0
        for block in blocks:
            for part in parts:
                part.extract(block, start, envelope)
            start += block.shape[3]
    results = [part.result(cleaning) for part in parts]
    return results if isinstance(masker, (list, tuple)) else results[0]


def refuse(masker):
    """Raise a ValueError for a masker that cannot work block by block, with the alternative."""
    if type(masker) not in MASKERS:
        raise ValueError(
            f"{type(masker).__name__} cannot be streamed, only "
            f"{', '.join(kind.__name__ for kind in MASKERS)}: others may need the whole "
            "image. Call its fit_transform, or give one of these, or a list of them."
        )
    if masker.high_variance_confounds:
        raise ValueError(
            "high_variance_confounds=True needs the whole image. Compute them once with "
            "nilearn.image.high_variance_confounds and pass them as confounds."
        )
    strategy = getattr(masker, "mask_strategy", None)
    if strategy in ("background", "epi") and masker.mask_img is None:
        raise ValueError(
            f"Without mask_img, mask_strategy={strategy!r} needs the whole image. Compute the "
            f"mask once with nilearn.masking.compute_{strategy}_mask and pass it as mask_img."
        )


def check_positive(block_size, memory_mib):
    """Raise a ValueError unless both numbers are positive, and the first is whole."""
    if block_size is not None and (block_size <= 0 or block_size % 1):
        raise ValueError(f"{block_size} is not a positive integer.")
    if memory_mib is not None and memory_mib <= 0:
        raise ValueError(f"{memory_mib} is not a positive number.")


def open_4d(fmri_path):
    """Return a 4D NIfTI image, its data not read, and its first volume; refuse anything else."""
    if not isinstance(fmri_path, (str, Path)):
        raise ValueError(
            f"The path of a 4D NIfTI file is needed, not {type(fmri_path).__name__}: an image "
            "in memory needs no streaming. Call fit_transform."
        )
    img = open_image(fmri_path)
    with damaged_file_named(fmri_path):
        return img, np.asanyarray(img.dataobj[..., :1])


def volume_blocks(fmri_path, block_size):
    """Yield arrays of shape (x, y, z, up to block_size) from a 4D NIfTI file, values scaled."""
    with damaged_file_named(fmri_path):
        img = nib.load(fmri_path)
        proxy = img.dataobj
        spec = (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter)
        with open_data(img.file_map["image"].filename) as file:
            volumes = ArrayProxy(file, spec, mmap=False)
            for start in tqdm(range(0, img.shape[3], block_size), unit="block", delay=2):
                yield np.asanyarray(volumes[..., start : start + block_size])
            while file.read(2**20):  # gzip stores its checksum at the end
                pass


def size_of_block(memory_mib, img, parts):
    """Return the number of volumes that fit into some MiB, on the largest grid."""
    grids = [img, *(grid for part in parts for grid in part.grids)]
    n_voxels = max(np.prod(grid.shape[:3]) for grid in grids)
    envelope = 3 * any(part.resampled for part in parts)
    n_volumes = int(memory_mib * 2**20 // (n_voxels * 8 * 6)) - envelope
    return min(max(n_volumes, 1), img.shape[3])


def envelope_of(fmri_path, block_size):
    """Return volumes with the smallest and the largest value of each voxel, and NaN if any."""
    functions, reduced = (np.fmin, np.fmax, np.minimum), None
    with closing(volume_blocks(fmri_path, block_size)) as blocks:
        for block in blocks:
            parts = [f.reduce(block, axis=3) for f in functions]
            both = zip(functions, reduced or parts, parts, strict=True)
            reduced = [f(one, other) for f, one, other in both]
    return np.stack(reduced if np.isnan(reduced[2]).any() else reduced[:2], axis=3)


def image_like(img, data):
    """Return an image of some volumes, with the affine and the header of another."""
    header = img.header.copy()
    header.set_data_dtype(data.dtype)
    kind = type(img) if isinstance(img, nib.Nifti1Image) else nib.Nifti1Image  # a pair of files
    return kind(data, img.affine, header)


class StreamedMasker:
    """One masker, fitted to the first volume: extract blocks, then clean the whole series."""

    def __init__(self, masker, img, first):
        self.masker, self.img, self.parameters = masker, img, masker.get_params(deep=False)
        self.is_spheres = type(masker) is NiftiSpheresMasker
        self.is_integer = first.dtype.kind == "i"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Generation of a mask.*")  # as fit_transform
            masker.fit(image_like(img, first.copy()))
        self.fitted = masker.clean_args_, masker.memory_
        self.series = self.columns = None
        self.warned = set()

    @property
    def grids(self):
        """The images whose grid the volumes may be brought to."""
        imgs = (getattr(self.masker, f"{name}_img_", None) for name in ("mask", "labels", "maps"))
        return [img for img in imgs if img is not None]

    @property
    def resampled(self):
        """Whether the image is resampled; for spheres, the mask is."""
        if self.is_spheres:
            return False
        if self.parameters.get("target_affine") is not None:
            return True
        shape, affine = self.img.shape[:3], self.img.affine
        return any(g.shape[:3] != shape or (g.affine != affine).any() for g in self.grids)

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

    def extract(self, block, start, envelope):
        """Extract the series of a block whose first volume has the number `start`."""
        n_volumes, n_timepoints = block.shape[3], self.img.shape[3]
        part = self.transform(self.block_image(block, envelope))
        if isinstance(part, pd.DataFrame):
            self.columns, part = part.columns, part.to_numpy()
        elif not isinstance(part, np.ndarray):
            raise ValueError(
                f"{type(part).__module__} is not supported: use "
                "set_output(transform='default') or 'pandas'."
            )
        if self.series is None:
            self.series = np.empty((n_timepoints, part.shape[1]), part.dtype)
        self.series[start : start + n_volumes] = part[:n_volumes]

    def block_image(self, block, envelope):
        """Return a copy of a block as an image, with volumes that make it like the whole image.

        Resampling clips values to the range of the image, and crops where it is zero. A mean over
        a sphere is summed in another order for a single volume.
        """
        if self.is_spheres:
            self.refuse_infinite(block)
        alone = block.shape[3] == 1 < self.img.shape[3]
        extra = envelope if self.resampled else block[..., : int(alone)]
        data = np.empty((*block.shape[:3], block.shape[3] + extra.shape[3]), block.dtype, order="F")
        data[..., : block.shape[3]], data[..., block.shape[3] :] = block, extra
        block_img = image_like(self.img, data)
        as_spheres = self.is_spheres and self.parameters["dtype"] == "auto"
        return load_img(block_img, dtype="auto") if as_spheres else block_img

    def refuse_infinite(self, block):
        """Refuse infinite values where nilearn's result depends on the whole image."""
        masked = self.masker.mask_img is not None or self.masker.smoothing_fwhm is not None
        if not masked and np.isinf(block).any():
            raise ValueError(
                f"{self.img.get_filename()} has infinite values. The result of "
                "NiftiSpheresMasker without a mask then depends on the whole image: give it a "
                "mask_img."
            )

    def transform(self, block_img):
        """Return the masker's series of a block; pass on each warning once."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            part = self.masker.transform(block_img)
        for warning in caught:
            if (text := str(warning.message)) not in self.warned:
                self.warned.add(text)
                warnings.warn(text, warning.category, stacklevel=4)
        return part

    def clean(self, series, cleaning):
        """Do the temporal part."""
        parameters = self.parameters
        options = {name: parameters[name] for name in TEMPORAL} | {"runs": parameters.get("runs")}
        return clean(series, **cleaning, **options, **(parameters["clean_args"] or {}))

    def check_cleaning(self, n_timepoints, cleaning):
        """Clean a random series, so that a mistake shows before the file is read."""
        series = np.random.default_rng(0).normal(9, 1, (n_timepoints, 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.clean(series, cleaning)

    def result(self, cleaning):
        """Return the cleaned series in the type that the masker would return."""
        series, self.series = self.clean(self.series, cleaning), None  # frees what was extracted
        dtype = self.parameters["dtype"]
        if isinstance(dtype, str) and dtype == "auto":
            dtype = "int32" if self.is_integer else "float32"
        series = series if dtype is None else series.astype(dtype)
        return series if self.columns is None else pd.DataFrame(series, columns=self.columns)


def stream_nifti_maskers(fmri_path, mask_paths):
    """Return the voxel time series of several masks, from `stream_masker` with NiftiMasker."""
    maskers = [NiftiMasker(mask_img=path, standardize=None, reports=False) for path in mask_paths]
    return stream_masker(maskers, fmri_path)
