"""An image's header and its masks' voxels, read without reading the image."""

import gzip
import math
import struct
from pathlib import Path

import nibabel as nib
import nibabel.testing
import numpy as np
import pytest

from beyond_the_masker.predict.headers import count_all, read_header
from beyond_the_masker.predict.model import quantities
from made_images import SHAPE, bgzip, make_image, make_masks, save_all

NIBABELS = Path(nibabel.testing.data_path)
HEADERS = [  # every type, pair of scale factors, version and suffix
    ("<i2", None, 1, ".nii"),
    ("<i2", (2, 0), 1, ".nii.gz"),
    ("<i2", (1, 3), 2, ".nii.bz2"),
    ("<i2", (np.nan, np.nan), 1, ".nii"),
    (">i2", (0.25, -3), 2, ".nii.gz"),
    ("u1", (1, 0), 1, ".nii"),
    ("<u2", None, 2, ".nii.gz"),
    ("<i8", None, 1, ".nii.gz"),
    ("<f4", (3, 1), 1, ".nii.gz"),
    (">f4", None, 1, ".nii.bz2"),
    (">f8", None, 2, ".nii"),
]


def read_as_nibabel_does(path):
    """Read a header and compare it with the array that nibabel reads."""
    image, img = read_header(path), nib.load(path)
    array = np.asanyarray(img.dataobj)
    assert image.shape == img.shape
    assert np.dtype(image.dtype) == img.get_data_dtype().newbyteorder("=")
    assert image.scaled == (array.dtype == "float64" != img.get_data_dtype())
    found = quantities(image, [1], "single")
    assert found["array"] == array.nbytes
    assert found["stored"] == math.prod(img.shape) * img.get_data_dtype().itemsize
    return image


@pytest.mark.parametrize(("dtype", "scaling", "version", "suffix"), HEADERS)
def test_header_is_what_nibabel_reads(dtype, scaling, version, suffix, tmp_path):
    """Arrays have the predicted size, for any type, byte order and scale factors."""
    data = np.arange(math.prod(SHAPE)).reshape(SHAPE) % 100
    img = make_image(data=data, dtype=dtype, scaling=scaling)
    if version == 2:
        img = nib.Nifti2Image(img.dataobj, img.affine, img.header)
        img.header.set_slope_inter(*scaling or (None, None))
    path = tmp_path / f"fmri{suffix}"
    img.to_filename(path)
    image = read_as_nibabel_does(path)
    assert image.compressed == (suffix != ".nii")
    slope, inter = scaling or (1, 0)
    assert image.slope == (slope not in (1, 0) and not np.isnan(slope))
    assert image.inter == (inter != 0 and not np.isnan(inter))


@pytest.mark.parametrize("name", ["example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"])
def test_images_of_other_programs(name):
    """Images that other programs wrote are read as nibabel reads them."""
    read_as_nibabel_does(NIBABELS / name)


def test_image_in_two_files(tmp_path):
    """Of a header and an image in two files, the image's size counts."""
    nib.Nifti1Pair(make_image().get_fdata(dtype="f4"), np.eye(4)).to_filename(tmp_path / "a.hdr")
    read_as_nibabel_does(tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.img"):
        read_header(tmp_path / "a.hdr")


def test_several_files_are_one_series(tmp_path):
    """A pattern, or a list, has the volumes of all files; each must hold what its header claims."""
    kinds = [("<i2", (0.5, 2), ".nii"), ("<i2", (0.5, 2), ".nii.gz"), (">f4", None, ".nii")]
    for number, (dtype, scaling, suffix) in enumerate(kinds):
        img = make_image((5, 6, 4, number + 1), dtype=dtype, scaling=scaling)
        img.to_filename(tmp_path / f"vol_{number}{suffix}")
    pattern, files = tmp_path / "vol_*", sorted(tmp_path.iterdir())
    assert read_header(files[:2]) == ((5, 6, 4, 3), "int16", True, True, True)
    assert (
        read_header(pattern) == read_header(files) == ((5, 6, 4, 6), "float64", True, False, False)
    )
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-9])
        with pytest.raises(OSError, match=rf"{path.name} is incomplete"):
            read_header(pattern)
        path.write_bytes(content)


def test_image_in_several_gzip_members(tmp_path):
    """A file that bgzip wrote, in many parts with an extra field each, is complete."""
    (tmp_path / "bgzip.nii.gz").write_bytes(bgzip(make_image().to_bytes(), 1000))
    read_as_nibabel_does(tmp_path / "bgzip.nii.gz")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("n_volumes", "part"),
    [(7, 2 / 3), (8, 1), (32000, 1), (-7, 1)],
    ids=["cut", "one volume more", "more than gzip can hold", "negative"],
)
def test_file_that_does_not_hold_what_its_header_claims(n_volumes, part, suffix, tmp_path):
    """A file that is damaged, or smaller than its header claims, is refused."""
    path = tmp_path / f"spoiled{suffix}"
    raw = bytearray(make_image().to_bytes())
    raw[48:50] = struct.pack("<h", n_volumes)
    stored = gzip.compress(raw) if suffix == ".nii.gz" else raw
    path.write_bytes(stored[: int(len(stored) * part)])
    kind = ValueError if n_volumes < 0 and part == 1 else OSError
    with pytest.raises(kind, match=f"spoiled{suffix}") as error:
        read_header(path)
    assert n_volumes < 0 or f"it should hold {352 + 480 * n_volumes} bytes" in str(error.value)


def test_other_files_than_4d_images(tmp_path):
    """Anything but a 4D NIfTI image of numbers is refused."""
    (tmp_path / "text.nii").write_text("not an image")
    (tmp_path / "text.nii.gz").write_text("not compressed")
    (tmp_path / "empty.nii").touch()
    (tmp_path / "empty.nii.gz").write_bytes(gzip.compress(b""))
    make_image((5, 6, 4)).to_filename(tmp_path / "volume.nii")
    colours = np.zeros(SHAPE, dtype=[(c, "u1") for c in "RGB"])
    nib.Nifti1Image(colours, np.eye(4)).to_filename(tmp_path / "colours.nii")
    nib.Nifti1Image(np.zeros(SHAPE, "complex64"), np.eye(4)).to_filename(tmp_path / "complex.nii")
    nib.AnalyzeImage(np.zeros(SHAPE, "f4"), np.eye(4)).to_filename(tmp_path / "analyze.hdr")
    nib.GiftiImage().to_filename(tmp_path / "surface.gii")
    names = [p.name for p in tmp_path.iterdir() if p.suffix != ".img"]
    assert len(names) == 9
    for name in names:
        error = OSError if name.startswith(("text", "empty")) else ValueError
        with pytest.raises(error, match=name):
            read_header(tmp_path / name)


def test_voxels_are_counted(tmp_path):
    """The voxels of a mask are counted as methods read them; numbers stay as they are."""
    fmri_img = make_image()
    _, paths = save_all(tmp_path, fmri_img, make_masks(fmri_img))
    counts = count_all([*paths, 17], SHAPE[:3])
    assert counts == [*(np.count_nonzero(nib.load(path).get_fdata()) for path in paths), 17]
    assert counts[2:4] == [1, 120]
    assert count_all(dict(zip("abcd", paths, strict=True)), SHAPE[:3]) == counts[:4]


def test_a_mask_on_another_grid_is_not_read(tmp_path):
    """No machine has memory for this one."""
    raw = bytearray(make_image(data=np.ones((5, 6, 5)), dtype="u1").to_bytes())
    raw[42:48] = struct.pack("<3h", 32000, 32000, 32000)
    (tmp_path / "huge.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(ValueError, match=r"(?s)huge.nii.gz .*32000.* \(5, 6, 4\)"):
        count_all([tmp_path / "huge.nii.gz"], SHAPE[:3])
