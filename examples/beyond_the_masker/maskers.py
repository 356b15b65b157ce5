"""maskers."""

import warnings
import zlib
from contextlib import closing, contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Memory
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from nilearn.image import load_img
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker, NiftiSpheresMasker
from nilearn.signal import clean
from tqdm import tqdm

try:
    from isal import igzip as gzip
    from isal.isal_zlib import error as gzip_error
except ImportError:
    import gzip
    from zlib import error as gzip_error


def chunk_masker(masker, fmri_img, confounds, n_chunks):
    """Clean each chunk of an image by itself: do not copy this."""
    chunks = np.array_split(np.arange(fmri_img.shape[3]), n_chunks)
    return np.concatenate(
        [
            masker.fit_transform(fmri_img.slicer[..., c[0] : c[-1] + 1], confounds=confounds[c])
            for c in chunks
        ]
    )


@contextmanager
def reading(fmri_path):
    """Turn the errors of a damaged file into an OSError that names the file."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (
        *(EOFError, OSError, ValueError, zlib.error, gzip_error),
        *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
    ) as error:
        raise OSError(
            f"{fmri_path} is incomplete or damaged ({error}). Copy or download it again."
        ) from error


def volume_blocks(fmri_path, block_size):
    """Read a 4D NIfTI file forward, a block of volumes at a time.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
    block_size : int
        Volumes in a block; the last one may be shorter.

    Yields
    ------
    array of shape (x, y, z, up to block_size)
        As nibabel gives it: scale factors applied, otherwise of the file's type.

    Raises
    ------
    OSError
        The file is incomplete or damaged.
    """
    with reading(fmri_path):
        img = nib.load(fmri_path)
        name, proxy = img.file_map["image"].filename, img.dataobj
        spec = (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter)
        with gzip.open(name) if str(name).lower().endswith(".gz") else ImageOpener(name) as file:
            volumes = ArrayProxy(file, spec, mmap=False)
            for start in tqdm(range(0, img.shape[3], block_size), unit="block", delay=2):
                yield np.asanyarray(volumes[..., start : start + block_size])
            while file.read(2**20):
                pass


MASKERS = (NiftiMasker, NiftiLabelsMasker, NiftiMapsMasker, NiftiSpheresMasker)


NEUTRAL = {  # what a parameter is while blocks go through the masker
    **dict.fromkeys(("detrend", "high_variance_confounds"), False),
    **dict.fromkeys(("standardize", "low_pass", "high_pass", "t_r", "runs", "clean_args")),
    **{"dtype": None, "memory": None, "memory_level": 0, "verbose": 0},
}


TEMPORAL = ("detrend", "standardize", "standardize_confounds", "low_pass", "high_pass", "t_r")


TREATMENT = {
    "mask_img": "fit; without it NiftiMasker needs a template strategy",
    "mask_strategy": "fit; 'background' and 'epi' are refused without mask_img",
    "mask_args": "fit, with a template strategy",
    **dict.fromkeys(("labels_img", "labels", "lut", "maps_img", "seeds"), "fit"),
    **dict.fromkeys(("background_label", "radius", "strategy"), "spatial, in each block"),
    **dict.fromkeys(("allow_overlap", "smoothing_fwhm"), "spatial, in each block"),
    **dict.fromkeys(
        ("keep_masked_labels", "keep_masked_maps"),
        "spatial, in each block: the regions that are left are the same in every block",
    ),
    **dict.fromkeys(
        ("target_affine", "target_shape", "resampling_target"),
        "fit, and in each block; if the image is resampled, its range is found first",
    ),
    **dict.fromkeys(
        (*TEMPORAL, "runs", "clean_args"), "temporal, once at the end, by nilearn.signal.clean"
    ),
    "high_variance_confounds": "refused: it needs the whole image",
    "dtype": "once at the end; NiftiSpheresMasker converts each block, too",
    "memory": "fit is cached, blocks are not",
    "memory_level": "as memory",
    "verbose": "fit; a progress bar shows the blocks",
    "reports": "the report shows the first volume",
    "cmap": "for the report",
}


def treatment_table():
    """Return a table of the parameters, their treatment, and the maskers that have them."""
    has = {kind.__name__: kind().get_params() for kind in MASKERS}
    return pd.DataFrame(
        {
            "what becomes of it": list(TREATMENT.values()),
            "maskers that have it": [
                ", ".join(kind for kind in has if name in has[kind]) for name in TREATMENT
            ],
        },
        index=list(TREATMENT),
    ).rename_axis(columns="parameter")


def refuse(masker):
    """Raise a ValueError for a masker that cannot work block by block, with the alternative."""
    if type(masker) not in MASKERS:
        raise ValueError(
            f"{type(masker).__name__} cannot be streamed, only "
            f"{', '.join(kind.__name__ for kind in MASKERS)}: others may look at the whole "
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


def like(img, data):
    """Make an image of some volumes, with the affine and the header of another."""
    header = img.header.copy()
    header.set_data_dtype(data.dtype)
    kind = type(img) if isinstance(img, nib.Nifti1Image) else nib.Nifti1Image  # a pair of files
    return kind(data, img.affine, header)


def envelope_of(blocks):
    """Return volumes with the smallest and the largest value of each voxel, and NaN."""
    low = high = both = None
    for block in blocks:
        parts = (f.reduce(block, axis=3) for f in (np.fmin, np.fmax, np.minimum))
        if low is None:
            low, high, both = parts
        else:
            a, b, c = parts
            low, high, both = np.fmin(low, a), np.fmax(high, b), np.minimum(both, c)
    return np.stack([low, high, both] if np.isnan(both).any() else [low, high], axis=3)


def grids_of(masker):
    """List the images of a fitted masker, whose grid the volumes may be brought to."""
    imgs = (getattr(masker, f"{name}_img_", None) for name in ("mask", "labels", "maps"))
    return [img for img in imgs if img is not None]


def stream_masker(
    masker, fmri_path, confounds=None, sample_mask=None, *, block_size=None, memory_mib=64
):
    """Do what ``masker.fit_transform(fmri_path, ...)`` does, without the image in memory.

    Parameters
    ----------
    masker : NiftiMasker, NiftiLabelsMasker, NiftiMapsMasker or NiftiSpheresMasker, or a list
        Several maskers share one pass over the file. Afterwards a masker is fitted as
        ``fit_transform`` leaves it, with its own parameters (only its report shows the first
        volume). Meanwhile it must not be used elsewhere.
    fmri_path : str or pathlib.Path
        4D NIfTI file, compressed or not.
    confounds, sample_mask : optional
        As for ``fit_transform``, and the same for all maskers.
    block_size : int, optional
        Volumes that are in memory at a time; by default chosen from `memory_mib`.
    memory_mib : float
        Approximate size of a block with its copies, in MiB; at least one volume.

    Returns
    -------
    array of shape (n_timepoints, n_voxels or n_regions), or pandas.DataFrame, or a list
        Of the type that ``fit_transform`` returns; a list if `masker` is a list.

    Raises
    ------
    ValueError
        Something cannot be done block by block, or the file is not a 4D NIfTI image; and
        what the masker and `nilearn.signal.clean` raise for their parameters.
    FileNotFoundError
        There is no such file.
    OSError
        The file is incomplete or damaged.

    Notes
    -----
    The values are bit for bit those of ``fit_transform``, except for NiftiMapsMasker. Its
    least squares are solved by BLAS, which rounds in another way when it gets another number
    of volumes at once. Extracted series differ by less than 1e-12 of their largest value; if
    both image and maps are float32, nilearn solves in single precision, and it is 1e-5.
    Ill-conditioned maps make it more, and cleaning magnifies what is left of a small signal.
    Maps of float64 (``nilearn.image.load_img(maps, dtype="float64")``) keep it small. With
    ``block_size`` not less than the number of volumes there is no difference.

    When the image is resampled (its grid is not that of the mask, or of the regions, or a
    target_affine is given), the file is read twice. ``dtype="auto"`` gives float32 for an image
    with scale factors, where ``fit_transform`` of nilearn 0.14 fails with an AttributeError.
    """
    several = isinstance(masker, (list, tuple))
    maskers = list(masker) if several else [masker]
    for each in maskers:
        refuse(each)
    for number, wanted in ((block_size, "integer"), (memory_mib, "number")):
        if number is not None and (number <= 0 or (wanted == "integer" and number % 1)):
            raise ValueError(f"{number} is not a positive {wanted}.")
    if not isinstance(fmri_path, (str, Path)):
        raise ValueError(
            f"The path of a 4D NIfTI file is needed, not {type(fmri_path).__name__}: an image "
            "in memory needs no streaming. Call fit_transform."
        )
    with reading(fmri_path):
        img = nib.load(fmri_path)
    if not isinstance(img, nib.Nifti1Pair) or img.ndim != 4 or 0 in img.shape:
        raise ValueError(
            f"A 4D NIfTI file with volumes is needed; {fmri_path} is a {type(img).__name__} of "
            f"shape {img.shape}. A single volume needs no streaming: call fit_transform."
        )
    n_timepoints = img.shape[3]
    with reading(fmri_path):
        first = np.asanyarray(img.dataobj[..., :1])
    confounds = list(confounds) if isinstance(confounds, list) else confounds
    if confounds is not None and not isinstance(confounds, list):
        confounds = [confounds]

    def clean_with(parameters, series):
        """Do the temporal part, as the masker would."""
        return clean(
            series,
            runs=parameters.get("runs"),
            confounds=confounds,
            sample_mask=sample_mask,
            **{name: parameters[name] for name in TEMPORAL},
            **(parameters["clean_args"] or {}),
        )

    originals = [each.get_params(deep=False) for each in maskers]
    for each, parameters in zip(maskers, originals, strict=True):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Generation of a mask.*")  # as fit_transform
            each.fit(like(img, first.copy()))
        with warnings.catch_warnings():  # a mistake shows now, not when the file is read
            warnings.simplefilter("ignore")
            clean_with(parameters, np.random.default_rng(0).normal(9, 1, (n_timepoints, 1)))

    grids = [grids_of(each) for each in maskers]
    resampled = [
        type(each) is not NiftiSpheresMasker  # there, the mask is
        and (
            parameters.get("target_affine") is not None
            or any(g.shape[:3] != img.shape[:3] or (g.affine != img.affine).any() for g in grid)
        )
        for each, parameters, grid in zip(maskers, originals, grids, strict=True)
    ]
    if block_size is None:
        n_voxels = max(np.prod(g.shape[:3]) for grid in ([img], *grids) for g in grid)
        block_size = int(memory_mib * 2**20 // (n_voxels * 8 * 6)) - 3 * any(resampled)
        block_size = min(max(block_size, 1), n_timepoints)
    envelope = None
    if any(resampled):
        with closing(volume_blocks(fmri_path, block_size)) as blocks:
            envelope = envelope_of(blocks)

    series, columns, said = [None] * len(maskers), [None] * len(maskers), set()
    fitted = [(each.clean_args_, each.memory_) for each in maskers]
    try:
        for each, parameters in zip(maskers, originals, strict=True):
            neutral = {name: value for name, value in NEUTRAL.items() if name in parameters}
            if type(each) is NiftiSpheresMasker and parameters["dtype"] != "auto":
                del neutral["dtype"]
            each.set_params(**neutral)
            each.clean_args_, each.memory_ = {}, Memory(location=None)
        start = 0
        with closing(volume_blocks(fmri_path, block_size)) as blocks:
            for block in blocks:
                n_volumes = block.shape[3]
                for i, each in enumerate(maskers):
                    alone = type(each) is NiftiSpheresMasker and each.mask_img is None
                    if alone and each.smoothing_fwhm is None and np.isinf(block).any():
                        raise ValueError(
                            f"{fmri_path} has infinite values. What NiftiSpheresMasker makes of "
                            "them without a mask depends on the whole image: give it a mask_img."
                        )
                    extra = (
                        envelope
                        if resampled[i]
                        else block[..., : int(n_volumes == 1 < n_timepoints)]
                    )
                    shape = (*block.shape[:3], n_volumes + extra.shape[3])
                    data = np.empty(shape, block.dtype, order="F")
                    data[..., :n_volumes], data[..., n_volumes:] = block, extra
                    block_img = like(img, data)
                    if type(each) is NiftiSpheresMasker and originals[i]["dtype"] == "auto":
                        block_img = load_img(block_img, dtype="auto")
                    with warnings.catch_warnings(record=True) as caught:
                        warnings.simplefilter("always")
                        part = each.transform(block_img)
                    for warning in caught:  # once, not for each block
                        if (i, text := str(warning.message)) not in said:
                            said.add((i, text))
                            warnings.warn(text, warning.category, stacklevel=2)
                    if isinstance(part, pd.DataFrame):
                        columns[i], part = part.columns, part.to_numpy()
                    elif not isinstance(part, np.ndarray):
                        raise ValueError(
                            f"{type(part).__module__} is not supported: use "
                            "set_output(transform='default') or 'pandas'."
                        )
                    if series[i] is None:
                        series[i] = np.empty((n_timepoints, part.shape[1]), part.dtype)
                    series[i][start : start + n_volumes] = part[:n_volumes]
                start += n_volumes
    finally:
        for each, parameters, (clean_args, memory) in zip(maskers, originals, fitted, strict=True):
            each.set_params(**parameters)
            each.clean_args_, each.memory_ = clean_args, memory

    for i, parameters in enumerate(originals):
        series[i] = clean_with(parameters, series[i])
        dtype = parameters["dtype"]
        if isinstance(dtype, str) and dtype == "auto":
            dtype = "int32" if first.dtype.kind == "i" else "float32"
        if dtype is not None:
            series[i] = series[i].astype(dtype)
        if columns[i] is not None:
            series[i] = pd.DataFrame(series[i], columns=columns[i])
    return series if several else series[0]


def stream_nifti_maskers(fmri_path, mask_paths):
    """Extract the voxel time series of several masks in one pass over the image's file.

    Parameters
    ----------
    fmri_path : str or pathlib.Path
        4D image.
    mask_paths : list of str or pathlib.Path
        3D masks: non-zero in the region. The image is resampled to one of another grid.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask; see `stream_masker`, also for the errors.
    """
    maskers = [NiftiMasker(mask_img=path, standardize=None, reports=False) for path in mask_paths]
    return stream_masker(maskers, fmri_path)
