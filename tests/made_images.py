"""Images and masks for several test files, and what NiftiMasker extracts from them."""

import bz2
import contextlib
import gzip
import json
import math
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from nilearn.maskers import NiftiMasker

from beyond_the_masker.files import write_bytes
from beyond_the_masker.predict.imports import TYPICAL, machine_path, versions

SHAPE = (5, 6, 4, 7)
STRAIGHT = np.array([[3.0, 0, 0, -7], [0, 3, 0, -9], [0, 0, 4, -6], [0, 0, 0, 1]])
FLIPPED = STRAIGHT * [[-1], [1], [-1], [1]]
OBLIQUE = np.array([[2.9, 0.4, 0.1, 3], [-0.4, 2.8, 0.7, 5], [0, -0.7, 3.9, 8], [0, 0, 0, 1]])
HEADERS = {  # of one file, and of a pair of files
    1: (nib.nifti1.Nifti1Header, nib.nifti1.Nifti1PairHeader),
    2: (nib.nifti2.Nifti2Header, nib.nifti2.Nifti2PairHeader),
}
PACK = {"": bytes, ".gz": lambda content: gzip.compress(content, 1, mtime=0), ".bz2": bz2.compress}
NONE = (np.nan, np.nan)  # no scale factors


def by_name(names, cases):
    """Parametrise with the values of a dict; its keys are the names of the tests."""
    return pytest.mark.parametrize(names, cases.values(), ids=cases.keys())


def any_bits(shape, dtype, seed=0):
    """Return numbers of any bits: all integers; NaN, infinite and tiny floats, -0.0.

    float64 is at most 1e300, so that scale factors do not make it overflow, which warns.
    """
    dtype = np.dtype(dtype)
    content = bytearray(np.random.default_rng(seed).bytes(int(np.prod(shape)) * dtype.itemsize))
    data = np.frombuffer(content, dtype).reshape(shape)
    if dtype.kind == "f":
        special = [-0.0, np.inf, -np.inf, np.nan, 1.5, -123.25]
        data.flat[::5] = np.resize(special, len(data.flat[::5]))
        data[np.isnan(data)] = np.nan  # some kinds of NaN make numpy warn where they are scaled
        if dtype.itemsize == 8:
            data[np.isfinite(data) & (np.abs(data) > 1e300)] = 1e300
    return data


def write(path, data, affine=STRAIGHT, scaling=NONE, version=1, offset=0):
    """Write an image in the type and byte order of an array; `offset` is where its data begin."""
    path = Path(path)
    pack = PACK.get(path.suffix.lower(), bytes)
    pair = ".img" in path.suffixes
    order = ">" if data.dtype.byteorder == ">" else "<"
    header = HEADERS[version][pair](endianness=order)
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header["scl_slope"], header["scl_inter"] = scaling
    if not pair:
        offset = offset or header["vox_offset"] or len(header.binaryblock) + 4
        header["vox_offset"] = offset
    head = header.binaryblock + bytes(4)
    values = data.tobytes("F")
    if pair:
        path.write_bytes(pack(values))
        Path(str(path).replace(".img", ".hdr")).write_bytes(pack(head))
    else:
        path.write_bytes(pack(head + bytes(int(offset) - len(head)) + values))
    return path


def regions(shape, n_regions=3, seed=1):
    """Return boolean arrays that overlap; the last two are one voxel and all voxels."""
    rng = np.random.default_rng(seed)
    chance = rng.random((n_regions, *shape[:3])) < rng.random((n_regions, 1, 1, 1))
    one = np.zeros(shape[:3], bool)
    one[tuple(n // 2 for n in shape[:3])] = True
    return [*(region | one for region in chance), one, np.ones_like(one)]


def masks_for(shape, affine=STRAIGHT, n_regions=1):
    """Return images of regions."""
    arrays = regions(shape, n_regions)
    return [nib.Nifti1Image(region.astype("u1"), affine) for region in arrays]


def changed(content, place, bits=0xFF):
    """Return content with some bits of one byte changed."""
    content = bytearray(content)
    content[place] ^= bits
    return bytes(content)


def open_files(folder):
    """Return the names of a folder's files that this process has open, also of removed ones."""
    found = [Path(file.path) for file in psutil.Process().open_files()]
    if Path("/proc/self/fd").exists():  # psutil leaves out those removed since
        found = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the listing itself
                found.append(Path(os.readlink(f"/proc/self/fd/{number}")))
    return sorted(path.name for path in found if folder in path.parents)


def make_image(shape=SHAPE, dtype="<f4", affine=STRAIGHT, scaling=None, data=None):
    """Random values, or `data`, that a file will hold as `dtype` with these scale factors."""
    if data is None:
        data = np.random.default_rng(0).normal(100, 30, shape)
    dtype = np.dtype(dtype)
    header = nib.Nifti1Header(endianness=">" if dtype.byteorder == ">" else "<")
    header.set_data_dtype(dtype)
    img = nib.Nifti1Image(data.astype(dtype), affine, header)
    if scaling:
        img.header.set_slope_inter(*scaling)
    return img


def make_masks(fmri_img):
    """Masks that overlap, one of a single voxel, one of all voxels, and their types differ."""
    shape = fmri_img.shape[:3]
    chance = np.random.default_rng(1).random(shape)
    one_voxel = np.zeros(shape)
    one_voxel[tuple(n // 2 for n in shape)] = 1
    masks = [(chance < 0.5, "u1"), (2.5 * (chance > 0.3), ">f4"), (one_voxel, "i2")]
    masks.append((np.ones(shape), "u1"))
    return [make_image(data=data, dtype=t, affine=fmri_img.affine) for data, t in masks]


def save_all(folder, fmri_img, mask_imgs, suffix=".nii.gz"):
    """Write an image and its masks; return their paths."""
    fmri_path = folder / f"fmri{suffix}"
    nib.save(fmri_img, fmri_path)
    mask_paths = [folder / f"mask_{i}{suffix}" for i in range(len(mask_imgs))]
    for path, img in zip(mask_paths, mask_imgs, strict=True):
        nib.save(img, path)
    return fmri_path, mask_paths


def nifti_masker(fmri_path, mask_paths):
    """Return NiftiMasker's arrays, which every method is compared with."""
    return [
        NiftiMasker(mask_img=mask_path, standardize=None).fit_transform(fmri_path)
        for mask_path in mask_paths
    ]


def regions_of(fmri_path):
    """Make a label image, with the regions 3 and 8, on the grid of nibabel's real image."""
    img = nib.load(fmri_path)
    labels = np.zeros(img.shape[:3], "uint8")
    labels[40:60, 40:50, 8:12], labels[70:80, 30:60, 10:12] = 3, 8
    return nib.Nifti1Image(labels, img.affine)


def assert_same(series, reference, name=""):
    """Compare shapes, types up to the byte order, and every value."""
    assert [a.shape for a in series] == [a.shape for a in reference], name
    kinds = [[a.dtype.newbyteorder("=") for a in arrays] for arrays in (series, reference)]
    assert kinds[0] == kinds[1], name
    for a, b in zip(series, reference, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def use_own(monkeypatch, image, atlas):
    """Choose an image, and two regions of an atlas, in the options of a build."""
    for name, value in {"FMRI": image, "ATLAS": atlas, "N_REGIONS": 2}.items():
        monkeypatch.setenv(name, str(value))


def keep_typical_imports():
    """Let the memory of imports count as measured, which takes a while."""
    machine = TYPICAL | {"measured": versions()}
    write_bytes(machine_path(), json.dumps(machine).encode())


def flip(path):
    """Change one byte of a file, but not its time."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def sparse_image(path, shape=(100, 100, 100, 2500)):
    """Write the header of a large float32 image, and let the file system promise the rest."""
    header = nib.Nifti1Header()
    header.set_data_dtype("f4")
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with open(path, "wb") as file:
        file.write(header.binaryblock + b"\0" * 4)
        file.truncate(352 + 4 * math.prod(shape))


def bgzip(data, part_size=60_000):
    """Compress as bgzip does: in parts, each with an extra field."""
    packed = b""
    for start in range(0, len(data), part_size):
        body = gzip.compress(data[start : start + part_size], mtime=0)[10:]
        extra = b"\6\0BC\2\0" + (len(body) + 17).to_bytes(2, "little")
        packed += b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + extra + body
    return packed
