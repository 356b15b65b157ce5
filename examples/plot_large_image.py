"""
A large image and its masks
===========================

Every page of this site works on the same two things: one large 4D fMRI image, and a set of
binary :term:`masks <mask>`, one for each region of interest. On this page you will

1. put several subjects' images together into one large image,
2. turn the regions of an :term:`atlas` into masks on the grid of that image, and
3. see how large the image is on disk, and how large in memory.

Unless you ask for something else, the data are a stand-in that is made on your machine, of
the same shape and type as the development fMRI data set and with as many regions as
the DiFuMo atlas of 64. With ``DATA=development_fmri`` nilearn downloads the real ones;
with ``FMRI=`` and ``ATLAS=`` every page uses files of your own.

.. note::

    The scripts import each other: to run one on your own machine, download the zip at the
    end of its page, or :ref:`all examples <examples>` in one.
"""

# %%
# The functions
# -------------
# A prepared file is written into a folder with a temporary name, which gets its real name
# when it is complete. So whatever stands in the cache folder can be trusted, also after a
# run that was interrupted.

import hashlib
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.datasets import fetch_atlas_difumo, fetch_development_fmri
from nilearn.image import concat_imgs, resample_to_img

import synthetic_data
from one_run import load_in_memory
from options import read_options


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


# %%
# **The image.** Subjects are concatenated along time and written to one compressed file.


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


# %%
# **The atlas.** A probabilistic atlas is a 4D image with one map for each region; a region
# is where its map is not zero, and regions may overlap.


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


# %%
# **The masks.** Each region is resampled to the grid of the image. Nearest-neighbour
# interpolation invents no values between a region and its surroundings.


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


# %%
# The data of this build
# ----------------------
# A ``.nii.gz`` file is compressed. In memory the image needs the product of its dimensions,
# times the bytes of one value, and that is before anybody makes a copy.

if __name__ == "__main__":
    options = read_options()
    fmri_path = prepare_fmri(options.n_images)
    mask_imgs, mask_paths = atlas_to_masks(get_atlas_path(), fmri_path, options.n_regions)

    fmri_img = nib.load(fmri_path, keep_file_open=True)
    dtype = fmri_img.dataobj[..., :0].dtype  # scale factors applied; nothing is read yet
    size = np.prod(fmri_img.shape, dtype=float) * dtype.itemsize
    print(f"image     {fmri_path.name}, {fmri_img.shape}, {dtype}")
    print(f"on disk   {fmri_path.stat().st_size / 2**20:8.1f} MiB")
    print(f"in memory {size / 2**20:8.1f} MiB")
    sizes = [np.count_nonzero(mask.dataobj) for mask in mask_imgs]
    for path, size in zip(mask_paths, sizes, strict=True):
        print(f"{path.name}: {size} voxels")

# %%
# The masks, drawn as contours on the mean of all volumes, in slices through their centres. The
# mean is summed up volume by volume, which does not need the image in memory:

if __name__ == "__main__":
    import matplotlib.pyplot as plt
    from nilearn.plotting import plot_anat

    centres = [np.argwhere(mask.dataobj).mean(axis=0) for mask in mask_imgs]
    heights = np.unique(nib.affines.apply_affine(fmri_img.affine, centres)[:, 2].round())
    shown = heights[np.linspace(0, len(heights) - 1, min(6, len(heights))).astype(int)]
    colors = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7"]

    n_volumes = fmri_img.shape[3]
    mean = sum(np.nan_to_num(fmri_img.dataobj[..., i]) for i in range(n_volumes)) / n_volumes

    rows = np.array_split(shown, 2 if len(shown) > 3 else 1)
    figure = plt.figure(figsize=(4.2, 0.5 + 1.9 * len(rows)), facecolor="black")
    room = 1 - 0.4 / figure.get_figheight()
    for i, heights in enumerate(rows):
        display = plot_anat(
            nib.Nifti1Image(mean.astype("float32"), fmri_img.affine),
            display_mode="z",
            cut_coords=heights.tolist(),
            colorbar=False,
            axes=(0, room * (1 - (i + 1) / len(rows)), 1, room / len(rows)),
            figure=figure,
        )
        for number, mask in enumerate(mask_imgs):
            color = colors[number % len(colors)]
            display.add_contours(mask, levels=[0.5], colors=[color], linewidths=2)
    figure.suptitle(f"{len(mask_imgs)} masks on the mean image", color="white", fontsize=12)
    at = ", ".join(f"{height:g}" for height in shown)
    figure.set_label(
        f"The masks as contours on the mean image of {fmri_path.name}, in axial slices through "
        "their centres.\n\n"
        f"{len(shown)} axial slices of the mean image, at z = {at} mm, with the contours of "
        f"{len(mask_imgs)} masks of {min(sizes)} to {max(sizes)} voxels."
    )
    plt.show()

# %%
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_nifti_masker.py`: the usual way to take these regions out of
#   this image, measured.
