"""data."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.datasets import fetch_atlas_difumo, fetch_development_fmri
from nilearn.image import concat_imgs, resample_to_img

from beyond_the_masker import synthetic as synthetic_data
from beyond_the_masker.options import read_options
from beyond_the_masker.running import load_in_memory


def prepare(name, depends_on, fill):
    """Give a folder of the cache, and fill it first if it is not there.

    Parameters
    ----------
    name : str
        A readable part of the folder's name.
    depends_on : list
        Everything that the folder's content depends on.
    fill : callable
        Called with the folder (`pathlib.Path`) to write the files into.

    Returns
    -------
    pathlib.Path
    """
    digest = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:12]
    folder = Path(read_options().cache) / f"{name}-{digest}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent))
        try:
            fill(unfinished)
            try:
                unfinished.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def n_volumes_within(img, most_mib):
    """Count how many volumes of an image fit into so many MiB of memory: one at least."""
    volume_mib = np.prod(img.shape[:3]) * img.dataobj[0, 0, 0, :1].itemsize / 2**20
    return int(np.clip(most_mib // volume_mib, 1, img.shape[3]))


def prepare_fmri(n_subjects):
    """Prepare the file of the large image, without reading it.

    Parameters
    ----------
    n_subjects : int
        Subjects to concatenate. Not used for an image of your own.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ConnectionError
        A download was needed and failed.
    """
    options = read_options()
    if options.fmri:
        return Path(options.fmri)

    def fill(folder):
        if options.data == "synthetic":
            subjects = [synthetic_data.synthetic_fmri(i) for i in range(n_subjects)]
        else:
            subjects = _download(fetch_development_fmri, n_subjects=n_subjects).func
        concat_imgs(subjects).to_filename(folder / "fmri.nii.gz")

    name = f"{options.data}-{n_subjects}-images"
    folder = prepare(name, [Path(synthetic_data.__file__).read_text()], fill)
    return folder / "fmri.nii.gz"


def get_fmri_path(n_subjects):
    """Prepare the large image, and load it.

    Parameters
    ----------
    n_subjects : int
        Subjects to concatenate. Not used for an image of your own.

    Returns
    -------
    fmri_img : nibabel.Nifti1Image
        The 4D image, its data in memory.
    fmri_path : pathlib.Path
        Its file.

    Raises
    ------
    ConnectionError
        A download was needed and failed.
    ValueError
        The file is incomplete, or not an image.
    """
    fmri_path = prepare_fmri(n_subjects)
    return load_in_memory(fmri_path), fmri_path


def _download(fetch, **arguments):
    """Call one of nilearn's fetchers, which reuse what is there already."""
    try:
        return fetch(verbose=0, **arguments)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConnectionError(
            f"nilearn's {fetch.__name__} could not reach its data ({error}): connect to the "
            "network once, or point NILEARN_DATA to a folder that has them, or use "
            "DATA=synthetic, which needs no network."
        ) from error


def get_atlas_path():
    """Prepare the atlas.

    Returns
    -------
    pathlib.Path or list of pathlib.Path
        A 4D probabilistic atlas or a 3D label image, or a list of binary masks.

    Raises
    ------
    ConnectionError
        A download was needed and failed.
    """
    options = read_options()
    if options.atlas:
        paths = [Path(path) for path in options.atlas]
        return paths[0] if len(paths) == 1 else paths
    if options.data == "development_fmri":
        return Path(_download(fetch_atlas_difumo, dimension=64, resolution_mm=2).maps)
    return synthetic_atlas_path()


def synthetic_atlas_path():
    """Prepare the atlas that goes with the synthetic data."""

    def fill(folder):
        synthetic_data.synthetic_atlas().to_filename(folder / "maps.nii.gz")

    folder = prepare("synthetic-atlas", [Path(synthetic_data.__file__).read_text()], fill)
    return folder / "maps.nii.gz"


def atlas_to_masks(atlas_path, fmri_path, n_regions):
    """Turn the first regions of an atlas into binary masks on the grid of an image.

    Parameters
    ----------
    atlas_path : path, or list of paths
        A 4D probabilistic atlas, a 3D label image, or a list of 3D masks.
    fmri_path : str or pathlib.Path
        The image whose grid the masks get.
    n_regions : int
        How many.

    Returns
    -------
    mask_imgs : list of nibabel.Nifti1Image
        3D, uint8, in memory: 1 in the region, 0 elsewhere.
    mask_paths : list of pathlib.Path
        Their files.

    Raises
    ------
    ValueError
        The atlas has fewer regions; a region is empty on the image's grid; the image is
        not 4D.
    """
    fmri_img = nib.load(fmri_path)
    if fmri_img.ndim != 4:
        raise ValueError(f"{fmri_path} has shape {fmri_img.shape}; a 4D image is needed.")
    if n_regions < 1:
        raise ValueError(f"{n_regions} regions were asked for; at least 1 is needed.")
    files = [Path(path) for path in np.atleast_1d(atlas_path)]
    names = [f"region_{number:02d}.nii.gz" for number in range(1, n_regions + 1)]

    def fill(folder):
        regions = _regions(files, n_regions)
        for file_name, (region, img) in zip(names, regions, strict=True):
            on_grid = resample_to_img(
                img, fmri_img, "nearest", copy_header=True, force_resample=True
            )
            data = np.asarray(on_grid.dataobj)
            if not data.any():
                raise ValueError(
                    f"{region} is empty on the grid of {fmri_path}, {fmri_img.shape[:3]}: "
                    "the region lies outside the image, or is smaller than a voxel. "
                    "Compare the affines of the two files, or leave the region out."
                )
            nib.Nifti1Image(data, fmri_img.affine).to_filename(folder / file_name)

    stamps = [
        (str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files
    ]
    grid = (fmri_img.shape[:3], fmri_img.affine.tolist())
    code = [_code_of(function) for function in (fill, _regions)]
    folder = prepare(f"{n_regions}-masks", [stamps, grid, code], fill)
    mask_paths = [folder / name for name in names]
    return [load_in_memory(path) for path in mask_paths], mask_paths


def _regions(files, n_regions):
    """Give the first regions one by one: a name, and a 3D image on the atlas' own grid."""
    imgs = [load_in_memory(file) for file in files]
    for file, img in zip(files, imgs, strict=True):
        if img.ndim != 3 and (len(imgs) > 1 or img.ndim != 4):
            raise ValueError(
                f"{file} has shape {img.shape}; an atlas is one 4D image of maps, one 3D image "
                "of labels, or several 3D masks."
            )
    if len(imgs) > 1:
        regions = [(f"the mask {file}", i) for i, file in enumerate(files)]
    elif imgs[0].ndim == 4:
        regions = [(f"map {i + 1} of {files[0]}", i) for i in range(imgs[0].shape[3])]
    else:
        labels = np.asarray(imgs[0].dataobj)
        values = np.unique(labels[np.isfinite(labels) & (labels != 0)])
        regions = [(f"label {value:g} of {files[0]}", value) for value in values]
    if n_regions > len(regions):
        raise ValueError(
            f"{n_regions} regions were asked for, and {files[0]} "
            f"{'and the others have' if len(files) > 1 else 'has'} {len(regions)}: set "
            f"N_REGIONS to {len(regions)} or less."
        )
    for name, key in regions[:n_regions]:
        if len(imgs) > 1:
            inside = np.nan_to_num(imgs[key].dataobj) != 0
            affine = imgs[key].affine
        elif imgs[0].ndim == 4:
            inside = np.nan_to_num(imgs[0].dataobj[..., key]) != 0
            affine = imgs[0].affine
        else:
            inside, affine = labels == key, imgs[0].affine
        yield name, nib.Nifti1Image(inside.astype("uint8"), affine)


def _code_of(function):
    """What a function does, as text: when it changes, prepared files are made anew."""
    code = function.__code__
    constants = [value for value in code.co_consts if not hasattr(value, "co_code")]
    return code.co_code.hex(), code.co_names, constants
