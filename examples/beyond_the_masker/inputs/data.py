"""Prepare the image, its atlas and the masks that all pages work on."""

import functools
import glob
import inspect
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.datasets import fetch_atlas_difumo, fetch_development_fmri

from beyond_the_masker.extract.checks import (
    is_inside,
    open_image,
    read_3d,
    read_volumes,
    to_grid,
    value_type,
)
from beyond_the_masker.extract.running import load_in_memory
from beyond_the_masker.files import COMPRESSED, files_of_image
from beyond_the_masker.inputs import synthetic
from beyond_the_masker.inputs.cache import prepare, prepare_file, stamp_of
from beyond_the_masker.inputs.synthetic import FMRI_SHAPE, synthetic_atlas, synthetic_fmri
from beyond_the_masker.options import read_options

MASK_NAME = "region_{:02d}.nii.gz"
MOST_IN_NIFTI1 = 2**15 - 1  # volumes


def n_volumes_within(img, most_mib):
    """Return how many volumes of an image fit into some MiB of memory, at least one."""
    volume_mib = np.prod(img.shape[:3]) * value_type(img).itemsize / 2**20
    return int(np.clip(most_mib / volume_mib, 1, img.shape[3]))


def first_volumes(fmri_path, most_mib=16):
    """Return an image of the first volumes of a file, as many as fit into some MiB."""
    img = nib.load(fmri_path)
    return img.slicer[..., : n_volumes_within(img, most_mib)]


def cut_to(fmri_path, n_volumes):
    """Return the path of an image of the first volumes, or of the image if it has no more."""
    img = nib.load(fmri_path)
    if n_volumes >= img.shape[3]:
        return fmri_path
    name, stamp = f"{n_volumes}-volumes", [stamp_of(fmri_path), n_volumes]
    return prepare_file(name, stamp, "fmri.nii.gz", write_stored, img, n_volumes)


def packed(fmri_path):
    """Return the path of an image as a ``.nii.gz``: its own, or that of a copy."""
    if fmri_path.name.endswith(".nii.gz"):
        return fmri_path
    img, stamp = nib.load(fmri_path), stamp_of(fmri_path)
    return prepare_file("packed", stamp, "fmri.nii.gz", write_stored, img, None)


def prepare_fmri(n_subjects):
    """Return the path of the reader's own image, or of one of some subjects, joined in time."""
    options = read_options()
    if options.fmri:
        return prepare_own(Path(options.fmri))
    name = f"{options.data}-{n_subjects}-images"
    return prepare_joined(name, write_fmri, options.data, n_subjects)


def prepare_2mm(n_volumes):
    """Return the path of a synthetic image with MNI152's grid of 2 mm."""
    return prepare_joined(f"2mm-{n_volumes}-volumes", write_2mm, n_volumes)


def prepare_joined(name, write, *arguments):
    """Return the path of an image that one of the functions below writes into a folder."""
    code = synthetic, write, write_joined, write_header, write_volumes
    depends_on = [inspect.getsource(each) for each in code]
    return prepare(name, depends_on, functools.partial(write, *arguments)) / "fmri.nii.gz"


def prepare_own(fmri_path):
    """Return the path of an image; of a copy or a link in the cache if nilearn needs one.

    nilearn reads no pair of files, and takes brackets in a name for a pattern.
    """
    name = name_for_nilearn(fmri_path)
    fill = functools.partial(write_for_nilearn, fmri_path)
    return prepare("own-image", stamp_of(fmri_path), fill) / name if name else fmri_path


def name_for_nilearn(fmri_path):
    """Return the name of the copy or the link that nilearn needs of an image, if it needs one."""
    if len(files_of_image(fmri_path)) == 1 and not glob.has_magic(str(fmri_path)):
        return ""
    return "fmri.nii" + "".join(end for end in COMPRESSED if fmri_path.suffix.lower() == end)


def write_for_nilearn(fmri_path, folder):
    """Write a pair of files as one, or a link, into a folder if nilearn needs it; return a path."""
    if not (name := name_for_nilearn(fmri_path)):
        return fmri_path
    if len(files_of_image(fmri_path)) == 1:
        (folder / name).symlink_to(fmri_path.absolute())
    else:
        write_stored(open_image(fmri_path), None, folder / name)
    return folder / name


def subject_starts(n_volumes):
    """Return where another subject begins among the first volumes of the image of a build.

    The reader's own image counts as one subject's.
    """
    length = FMRI_SHAPE[3]  # of each subject's image, in both data sets
    return [] if read_options().fmri else list(range(length, n_volumes, length))


def write_fmri(data, n_subjects, folder):
    """Make or download some subjects' images, and join them in time in one file."""
    if data == "synthetic":
        imgs = (synthetic_fmri(subject) for subject in range(n_subjects))
        n_volumes = n_subjects * FMRI_SHAPE[3]
    else:
        imgs = [nib.load(f) for f in download(fetch_development_fmri, n_subjects=n_subjects).func]
        n_volumes = sum(img.shape[3] for img in imgs)
    write_joined(imgs, n_volumes, folder / "fmri.nii.gz")


def write_2mm(n_volumes, folder, n_at_once=50):
    """Make a synthetic image with MNI152's grid of 2 mm, some volumes at a time."""
    shape, affine = synthetic.MNI_SHAPE, synthetic.MNI_AFFINE
    lengths = [min(n_at_once, n_volumes - start) for start in range(0, n_volumes, n_at_once)]
    imgs = (synthetic_fmri(part, (*shape, n), affine) for part, n in enumerate(lengths))
    write_joined(imgs, n_volumes, folder / "fmri.nii.gz")


def on_grid_of(fmri_path, make, *arguments):
    """Return the path of the atlas that a function of `synthetic` makes on an image's grid."""
    img = nib.load(fmri_path)

    def write(path):
        make(*arguments, img.shape[:3], img.affine).to_filename(path)

    depends_on = [arguments, grid_of(img), inspect.getsource(synthetic)]
    return prepare_file(make.__name__.replace("_", "-"), depends_on, "atlas.nii.gz", write)


def write_joined(imgs, n_volumes, path, dtype="float32"):
    """Write the values of 4D images of one grid, one after the other, with one image in memory."""
    with nib.openers.ImageOpener(path, "wb") as file:
        header = None
        for img in imgs:
            if header is None:
                header = write_header(file, img, n_volumes, dtype)
            if img.shape[:3] != header.get_data_shape()[:3]:
                raise ValueError(f"{img.get_filename()} has another shape than the first image.")
            write_volumes(file, read_volumes(img), header)
            del img  # before the next one is made


def write_stored(img, n_volumes, path):
    """Write the first volumes of an image's file into another one, as they are stored.

    If `n_volumes` is None, all are read, to the end of the file, where gzip has a checksum.
    """
    proxy, volumes = img.dataobj, itertools.islice(read_volumes(img, scaled=False), n_volumes)
    n_volumes = n_volumes or img.shape[3]
    with nib.openers.ImageOpener(path, "wb") as file:
        header = write_header(file, img, n_volumes, proxy.dtype, (proxy.slope, proxy.inter))
        write_volumes(file, volumes, header)


def write_header(file, img, n_volumes, dtype, scaling=(1, 0)):
    """Write the header of an image on the grid of another one, and return it.

    It is one of NIfTI-2 if that image has one, whose scale factors are exact to more digits, or if
    there are more volumes than NIfTI-1 can count.
    """
    is_2 = isinstance(img.header, nib.Nifti2Header) or n_volumes > MOST_IN_NIFTI1
    kind = nib.Nifti2Image if is_2 else nib.Nifti1Image
    empty = np.broadcast_to(np.zeros((), dtype), (*img.shape[:3], n_volumes))
    header = kind(empty, img.affine, img.header, dtype=dtype).header
    header.set_slope_inter(*scaling)  # as NaN, Workbench returns NaN
    header.write_to(file)
    return header


def write_volumes(file, volumes, header):
    """Write volumes in the type of a header."""
    for volume in volumes:
        file.write(np.asarray(volume, header.get_data_dtype()).tobytes("F"))


def download(fetch, **arguments):
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
    """Return the path of a probabilistic atlas or a label image, or the paths of masks."""
    options = read_options()
    if options.atlas:
        paths = [Path(path) for path in options.atlas]
        return paths[0] if len(paths) == 1 else paths
    return synthetic_atlas_path() if options.data == "synthetic" else difumo_path()


def difumo_path():
    """Return the path of DiFuMo's 64 maps, which nilearn downloads."""
    return Path(download(fetch_atlas_difumo, dimension=64, resolution_mm=2).maps)


def synthetic_atlas_path():
    """Return the path of the atlas that belongs to the synthetic data."""
    code = [inspect.getsource(synthetic)]
    return prepare("synthetic-atlas", code, write_synthetic_atlas) / "maps.nii.gz"


def write_synthetic_atlas(folder):
    """Write the atlas that belongs to the synthetic data."""
    synthetic_atlas().to_filename(folder / "maps.nii.gz")


def atlas_to_masks(atlas_path, fmri_path, n_regions):
    """Turn the first regions of an atlas into binary masks on the grid of an image.

    Return the masks (3D, uint8, in memory), and their files. The atlas is a path as from
    `get_atlas_path`, or a list of paths.
    """
    files = [Path(path) for path in np.atleast_1d(atlas_path)]
    fmri_img = open_image(fmri_path)
    if fmri_img.ndim != 4:
        raise ValueError(f"{fmri_path} has shape {fmri_img.shape}; a 4D image is needed.")
    if n_regions < 1:
        raise ValueError(f"{n_regions} regions were asked for; at least 1 is needed.")
    depends_on = [grid_of(fmri_img), *map(stamp_of, files)]
    code = write_masks, atlas_regions, regions_of, to_grid
    depends_on += [inspect.getsource(function) for function in code]
    write = functools.partial(write_masks, files, fmri_path, n_regions)
    folder = prepare(f"{n_regions}-masks", depends_on, write)
    mask_paths = [folder / MASK_NAME.format(number) for number in range(1, n_regions + 1)]
    return [load_in_memory(path) for path in mask_paths], mask_paths


def write_masks(atlas_files, fmri_path, n_regions, folder):
    """Resample the first regions of an atlas to an image's grid; return the files of the masks."""
    fmri_img = open_image(fmri_path)
    paths = []
    for number, (name, region) in enumerate(atlas_regions(atlas_files, n_regions), start=1):
        data = np.asarray(to_grid(region, fmri_img).dataobj)
        if not data.any():
            raise ValueError(
                f"{name} is empty on the grid of {fmri_path}, {fmri_img.shape[:3]}: "
                "the region lies outside the image, or is smaller than a voxel. "
                "Compare the affines of the two files, or leave the region out."
            )
        paths.append(folder / MASK_NAME.format(number))
        nib.Nifti1Image(data, fmri_img.affine).to_filename(paths[-1])
    return paths


def atlas_to_labels(atlas_path, like):
    """Prepare one label image of all regions of an atlas, or of masks, on the grid of an image.

    Return its path. The labels are the numbers of the regions, from 1. Where regions overlap, the
    last one counts.
    """
    files = [Path(path) for path in np.atleast_1d(atlas_path)]
    img = open_image(like)

    def write(path):
        labels = np.zeros(img.shape[:3], "int32")
        for number, (_, region) in enumerate(atlas_regions(files), start=1):
            labels[read_3d(to_grid(region, img)) != 0] = number
        nib.Nifti1Image(labels, img.affine).to_filename(path)

    depends_on = [grid_of(img), inspect.getsource(atlas_regions), *map(stamp_of, files)]
    return prepare_file("atlas-labels", depends_on, "labels.nii.gz", write)


def grid_of(img):
    """Return an image's grid: the shape of a volume, and the affine."""
    return img.shape[:3], img.affine.tolist()


def atlas_regions(files, n_regions=None):
    """Yield the first regions of an atlas: a name, and a 3D image on the atlas' own grid.

    An image of shape (x, y, z, 1) has labels if its values are whole numbers, else it is one map.
    """
    imgs = [open_image(file) for file in files]
    for file, img in zip(files, imgs, strict=True):
        if img.ndim != 3 and (img.ndim != 4 or (len(imgs) > 1 and img.shape[3] > 1)):
            raise ValueError(
                f"{file} has shape {img.shape}; an atlas is one 4D image of maps, one 3D image "
                "of labels, or several 3D masks."
            )
    volumes = map(read_3d, imgs)
    if len(imgs) > 1:
        names = [f"the mask {file}" for file in files]
    else:
        names, volumes = regions_of(files[0], imgs[0])
    if n_regions and n_regions > len(names):
        raise ValueError(
            f"{n_regions} regions were asked for, and {files[0]} "
            f"{'and the others have' if len(files) > 1 else 'has'} {len(names)}: set "
            f"N_REGIONS to {len(names)} or less."
        )
    like = imgs if len(imgs) > 1 else itertools.repeat(imgs[0])
    for name, img, volume in zip(names[:n_regions], like, volumes, strict=False):
        yield name, nib.Nifti1Image(is_inside(volume).astype("uint8"), img.affine)


def regions_of(file, img):
    """Return the names of an atlas' regions, and their values, volume by volume."""
    if img.ndim == 4 and img.shape[3] > 1:
        names = [f"map {number} of {file}" for number in range(1, img.shape[3] + 1)]
        return names, read_volumes(img)
    labels = read_3d(img)
    values = np.unique(labels[is_inside(labels)])
    if img.ndim == 4 and (values % 1).any():
        return [f"map 1 of {file}"], [labels]
    return [f"label {value:g} of {file}" for value in values], (labels == v for v in values)
