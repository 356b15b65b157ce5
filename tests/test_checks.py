"""Files as other tools save them: rounded affines, one more axis, damaged or no images at all."""

import errno
import gzip
import itertools
import os
import resource
import tempfile
from functools import partial
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nibabel.filebasedimages import ImageFileError
from nibabel.tripwire import TripWireError
from nilearn.maskers import NiftiLabelsMasker, NiftiMasker

from beyond_the_masker.experiments.methods import all_methods
from beyond_the_masker.extract import checks, streaming
from beyond_the_masker.extract.blocks import mask_blocks
from beyond_the_masker.extract.checks import (
    open_image,
    read_mask,
    read_volumes,
    size_in_bytes,
    to_grid,
)
from beyond_the_masker.extract.maskers import stream_masker
from beyond_the_masker.extract.streaming import damaged_file_named, is_same_grid, stream_masks
from beyond_the_masker.inputs.data import atlas_to_labels, atlas_to_masks
from beyond_the_masker.predict.headers import count_all
from beyond_the_masker.studies.study import mask_study
from made_images import changed, make_image, write

GRID = (40, 40, 12)
# Of the same scan, as two tools saved them: https://github.com/nilearn/nilearn/issues/3898
OF_IMAGE = np.array(
    [
        [-0.584032, -0.045876, 0.095196, 75.921539],
        [-0.043881, 0.578534, 0.698280, -78.563744],
        [0.017422, -0.080728, 4.950085, 44.482220],
        [0, 0, 0, 1],
    ]
)
OF_MASK = OF_IMAGE.copy()
OF_MASK[0, 1:3], OF_MASK[2, 0] = [-0.045875, 0.095183], 0.017420
INSIDE = np.zeros(GRID, "uint8")
INSIDE[15:25, 15:25] = 1
VALUES = np.random.default_rng(0).normal(100, 30, (*GRID, 3)).astype("float32")
EXPECTED = VALUES[INSIDE != 0].T


def shifted(affine, *voxels):
    """Return an affine whose grid begins some voxels later."""
    return affine @ nib.affines.from_matvec(np.eye(3), voxels)


def test_an_error_of_the_disk_names_the_image(fmri_path, monkeypatch):
    """Also while only the type of its values is found."""

    def fails(*arguments, **options):
        raise OSError(errno.EIO, "Input/output error")

    img = nib.load(fmri_path)
    monkeypatch.setattr("nibabel.arrayproxy.fileslice", fails)
    with pytest.raises(OSError, match=rf"Input/output error: '{fmri_path}'"):
        size_in_bytes(img)


@pytest.fixture
def fmri_path(tmp_path):
    """Write an image that is not compressed."""
    return write(tmp_path / "fmri.nii", VALUES, OF_IMAGE)


def series_of_study(fmri_path, mask, **options):
    """Return the series that `mask_study` writes."""
    folder = tempfile.mkdtemp(dir=fmri_path.parent)
    table = mask_study([fmri_path], {"one": mask}, folder, **options)
    assert list(table.status) == ["done"], table.reason[0]
    return [np.load(table.file[0])["one"]]


def with_methods(fmri_path, mask):
    """Yield the name and the series of every method of this site that indexes the image."""
    for method in all_methods():
        if method.name.startswith("NumPy") and method.mode != "single":
            yield method.title, method.call(fmri_path, [mask], 1)()


ENTRANCES = {
    "stream_masks": lambda fmri_path, mask: stream_masks(fmri_path, [mask]),
    "mask_blocks": lambda fmri_path, mask: mask_blocks(fmri_path, [mask]),
    "mask_study": series_of_study,
    "mask_study, resampled": lambda *files: series_of_study(*files, resample=True),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_grids_that_differ_by_rounding_are_the_same(fmri_path, tmp_path, entrance):
    """A mask on the image's grid, to a hundredth of a voxel, keeps all of its voxels."""
    for affine in (OF_MASK, shifted(OF_IMAGE, 0.009, -0.009, 0), OF_IMAGE.astype("float32")):
        mask = write(tmp_path / "mask.nii.gz", INSIDE, affine)
        (series,) = ENTRANCES[entrance](fmri_path, mask)
        np.testing.assert_array_equal(series, EXPECTED)


def test_methods_take_masks_as_other_tools_save_them(fmri_path, tmp_path):
    """Every method takes a mask with a rounded affine, and another axis."""
    mask = write(tmp_path / "mask.nii.gz", INSIDE[..., np.newaxis], OF_MASK)
    for name, (series,) in with_methods(fmri_path, mask):
        np.testing.assert_array_equal(series, EXPECTED, err_msg=name)


def test_atlas_with_a_rounded_affine(fmri_path, tmp_path):
    """No slice of a region is lost where nilearn's own resampling loses one."""
    for kind, data in (("labels", INSIDE), ("maps", INSIDE[..., np.newaxis] * [0.5, 0.2])):
        atlas = write(tmp_path / f"{kind}.nii.gz", data.astype("float32"), OF_MASK)
        (mask_img, *_), _ = atlas_to_masks(atlas, fmri_path, 1)
        np.testing.assert_array_equal(mask_img.dataobj, INSIDE)
    labels = nib.load(atlas_to_labels(atlas, fmri_path))
    np.testing.assert_array_equal(labels.dataobj, INSIDE * 2)


@pytest.mark.parametrize("shift", [0.02, -0.02, 0.4, -0.4])
def test_resampling_keeps_the_edge(shift):
    """A voxel at the edge of a region's grid counts for up to half a voxel, and no further."""
    img = nib.Nifti1Image(VALUES, OF_IMAGE)
    everywhere = nib.Nifti1Image(np.ones(GRID, "uint8"), shifted(OF_IMAGE, shift, shift, shift))
    assert not is_same_grid(everywhere, img)
    assert np.asarray(to_grid(everywhere, img).dataobj).all()
    beyond = nib.Nifti1Image(np.ones(GRID, "uint8"), shifted(OF_IMAGE, 0.6, 0, 0))
    expected = np.ones(GRID, "uint8")
    expected[0] = 0
    np.testing.assert_array_equal(to_grid(beyond, img).dataobj, expected)


def test_what_is_the_same_grid():
    """Corners are compared in voxels, so a small rotation of a large grid is another grid."""
    turned = OF_IMAGE @ nib.affines.from_matvec([[1, 4e-4, 0], [-4e-4, 1, 0], [0, 0, 1]])
    for shape, affine, other_shape, other_affine, expected in (
        (GRID, OF_IMAGE, GRID, OF_MASK, True),
        (GRID, OF_IMAGE, GRID, shifted(OF_IMAGE, 0, 0, 0.011), False),
        (GRID, OF_IMAGE, GRID, turned, False),  # though entries differ by less than 3e-4
        ((2, 2, 2), OF_IMAGE, (2, 2, 2), turned, True),
        (GRID, OF_IMAGE, (40, 40, 11), OF_IMAGE, False),
        (GRID, OF_IMAGE, GRID, np.zeros((4, 4)), False),
    ):
        one = SimpleNamespace(shape=shape, affine=affine)
        other = SimpleNamespace(shape=other_shape, affine=other_affine)
        assert is_same_grid(one, other) is is_same_grid(other, one) is expected


def test_labels_with_another_axis(fmri_path, tmp_path):
    """Whole numbers of shape (x, y, z, 1) are labels; other values are one map."""
    data = np.zeros((*GRID, 1), "float32")
    data[1:5, 1:4, 1:4], data[6:8, 5:8, 3:9] = 2, 7
    labels = write(tmp_path / "labels.nii.gz", data, OF_IMAGE)
    soft = write(tmp_path / "map.nii.gz", data / 4, OF_IMAGE)
    several = [write(tmp_path / f"{n}.nii", INSIDE[..., np.newaxis], OF_IMAGE) for n in "ab"]
    for atlas, expected in ((labels, [36, 36]), (soft, [72]), (several, [1200, 1200])):
        masks, _ = atlas_to_masks(atlas, fmri_path, len(expected))
        assert [np.sum(mask.dataobj) for mask in masks] == expected


COUNTED = ENTRANCES | {"count_all": lambda fmri_path, mask: count_all([mask], GRID)}
DAMAGED = COUNTED | {
    "stream_masker": lambda fmri_path, mask: stream_masker(NiftiMasker(mask), fmri_path),
    "stream_masker, labels": lambda *files: stream_masker(NiftiLabelsMasker(files[1]), files[0]),
    "atlas_to_masks": lambda fmri_path, mask: atlas_to_masks(mask, fmri_path, 1),
    "methods": lambda *files: list(with_methods(*files)),
}


@pytest.mark.parametrize("entrance", COUNTED)
def test_mask_that_changes_while_it_is_read(fmri_path, tmp_path, entrance, monkeypatch):
    """A mask is of one version, or there is an error."""
    mask = write(tmp_path / "mask.nii.gz", INSIDE, OF_IMAGE)
    read, times = streaming.read_to_end, itertools.count()

    def read_and_change(img, *parts):
        read(img, *parts)
        os.utime(mask, ns=(0, next(times)))

    monkeypatch.setattr(streaming, "read_to_end", read_and_change)
    with pytest.raises(OSError, match=r"mask.nii.gz was changed while it was read"):
        COUNTED[entrance](fmri_path, mask)


@pytest.mark.parametrize("part", ["image", "mask"])
def test_damaged_header_of_a_pair_is_found(tmp_path, part):
    """A header in a file of its own is read to gzip's checksum, however long it is."""
    fmri_path = write(tmp_path / "image.img.gz", VALUES, OF_IMAGE)
    mask = write(tmp_path / "mask.img.gz", INSIDE, OF_IMAGE)
    header = tmp_path / f"{part}.hdr.gz"
    content = gzip.decompress(header.read_bytes()) + bytes(100_000)  # nibabel reads the beginning
    packed = gzip.compress(content, compresslevel=0)
    header.write_bytes(changed(packed, 15 + 148, 1))  # of the description; else all is as before
    for entrance in ("stream_masks", "methods"):
        with pytest.raises(OSError, match=rf"{part}.img.gz is incomplete or damaged"):
            DAMAGED[entrance](fmri_path, mask)


@pytest.mark.parametrize("entrance", COUNTED)
def test_freesurfers_labels(fmri_path, tmp_path, entrance):
    """A mask in .mgz, whose shape nibabel has in integers of another kind, is as any other."""
    nib.save(nib.MGHImage(INSIDE.astype("int32") * 17, OF_IMAGE), tmp_path / "mask.mgz")
    result = COUNTED[entrance](fmri_path, tmp_path / "mask.mgz")
    np.testing.assert_array_equal(result, [1200] if entrance == "count_all" else [EXPECTED])


@pytest.mark.parametrize("entry", [0, np.nan])
def test_affine_without_an_inverse(fmri_path, tmp_path, entry):
    """Nothing can be resampled to a grid without a place, and the message says so."""
    no_place = write(tmp_path / "no_place.nii", VALUES, OF_IMAGE)
    content = bytearray(no_place.read_bytes())
    content[280:328] = np.full(12, entry, "<f4").tobytes()  # three rows of the affine
    no_place.write_bytes(content)
    mask = write(tmp_path / "mask.nii", INSIDE, OF_MASK)
    with pytest.raises(ValueError, match="The affine of the image has no inverse"):
        atlas_to_masks(mask, no_place, 1)
    table = mask_study([no_place], [mask], tmp_path / "series", resample=True)
    assert "The affine of the image has no inverse" in table.reason[0]


def test_mask_in_memory_whose_file_is_gone(fmri_path, tmp_path):
    """Only a mask whose values are still in its file needs the file."""
    mask_img = nib.Nifti1Image(INSIDE, OF_IMAGE)
    mask_img.to_filename(tmp_path / "mask.nii.gz")
    (tmp_path / "mask.nii.gz").write_bytes(b"damaged")
    np.testing.assert_array_equal(stream_masks(fmri_path, [mask_img]), [EXPECTED])
    np.testing.assert_array_equal(checks.open_checked(fmri_path, [mask_img])[1], [INSIDE != 0])


def packed_with_an_error(path):
    """Compress a file and change a byte, which only the checksum shows; return its path."""
    packed = gzip.compress(path.read_bytes(), compresslevel=0)  # stored as it is
    packed_path = path.with_suffix(".nii.gz")
    packed_path.write_bytes(changed(packed, -40, 1))
    nib.load(packed_path).get_fdata()  # nibabel does not see it
    return packed_path


@pytest.mark.filterwarnings("ignore:boolean values:FutureWarning")  # nilearn's own default
@pytest.mark.parametrize("entrance", DAMAGED)
def test_damaged_mask_is_found(fmri_path, tmp_path, entrance):
    """A mask is read to gzip's checksum, and an error names its file."""
    mask = packed_with_an_error(write(tmp_path / "mask.nii", INSIDE, OF_IMAGE))
    with pytest.raises((OSError, ValueError), match=r"mask.nii.gz"):
        DAMAGED[entrance](fmri_path, mask)


@pytest.mark.parametrize("way", ["shared memory", "threads", "joblib map", "mapped file"])
def test_damaged_image_is_found(fmri_path, tmp_path, way):
    """A method that reads an image volume by volume reads it to gzip's checksum."""
    mask = write(tmp_path / "mask.nii", INSIDE, OF_IMAGE)
    (method,) = [method for method in all_methods() if way in method.name]
    with pytest.raises(OSError, match=r"fmri.nii.gz is incomplete or damaged"):
        method.call(packed_with_an_error(fmri_path), [mask], 1)()


def other_kinds(folder):
    """Yield files that nibabel reads, but that are no 3D or 4D images of numbers."""
    colours = np.zeros(VALUES.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    voxels = nib.cifti2.BrainModelAxis.from_mask(INSIDE[:3, :3] == 0, affine=OF_IMAGE)
    axes = nib.cifti2.SeriesAxis(0, 1, 3), voxels
    for name, img in {
        "complex.nii": nib.Nifti1Image((VALUES + 1j).astype("c8"), OF_IMAGE),
        "colours.nii": nib.Nifti1Image(colours, OF_IMAGE),
        "slice.nii": nib.Nifti1Image(INSIDE[..., 0], OF_IMAGE),  # on no grid of three axes
        "surface.gii": nib.GiftiImage(darrays=[nib.gifti.GiftiDataArray(np.zeros(9, "f4"))]),
        "cifti.dtseries.nii": nib.Cifti2Image(np.zeros((3, len(voxels)), "f4"), axes),
    }.items():
        img.to_filename(folder / name)
        yield folder / name
    (folder / "folder.nii").mkdir()
    yield folder / "folder.nii"


@pytest.mark.parametrize("entrance", [*COUNTED, "methods"])
def test_other_kinds_of_files_are_refused(fmri_path, tmp_path, entrance):
    """What is no image of numbers is refused, as an image and as a mask, with its name."""
    mask = write(tmp_path / "mask.nii.gz", INSIDE, OF_IMAGE)
    refused = partial(pytest.raises, (ValueError, IsADirectoryError))
    for path in other_kinds(tmp_path):
        with refused(match=path.name):
            DAMAGED[entrance](fmri_path, path)
        if entrance in ("stream_masks", "mask_blocks", "methods"):
            with refused(match=path.name):
                DAMAGED[entrance](path, mask)


@pytest.mark.extensive
def test_more_masks_than_files_may_be_open(fmri_path, tmp_path):
    """No function keeps the file of a mask open."""
    masks = [write(tmp_path / f"{n}.nii.gz", INSIDE, OF_IMAGE) for n in range(300)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        for method in all_methods():
            if method.name.startswith(("NumPy", "Streaming, masks")) and method.mode != "single":
                series = method.call(fmri_path, masks, 1)()
                np.testing.assert_array_equal(series[-1], EXPECTED)
        assert len(atlas_to_masks(masks, fmri_path, 300)[0]) == 300
        assert list(mask_study([fmri_path], masks, tmp_path / "out").status) == ["done"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Which errors name a damaged file, and which are no damage
# ---------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (EOFError("odd"), r"^a\.nii is incomplete or damaged \(odd\): copy"),
        (ImageFileError("odd"), r"^a\.nii is incomplete or damaged \(odd\): copy"),
        (OSError("odd"), r"^a\.nii is incomplete or damaged \(odd\): copy"),
        (TripWireError("odd"), r"^a\.nii cannot be read without another package \(odd\)"),
        (ImportError("odd"), r"^a\.nii cannot be read without another package \(odd\)"),
    ],
)
def test_errors_of_a_damaged_file_name_it(error, match):
    """What nibabel raises becomes an OSError with the file and the original message."""
    with pytest.raises(OSError, match=match) as raised, damaged_file_named("a.nii"):
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EISDIR, errno.EACCES, errno.EMFILE])
def test_limits_of_the_system_are_no_damage(number):
    """A file that is missing, a folder, not allowed, or one too many keeps its own error."""
    with pytest.raises(OSError, match=r"^.Errno \d+. odd") as raised, damaged_file_named("a.nii"):
        raise OSError(number, "odd", "b.nii")
    assert raised.value.errno == number


def test_a_limit_that_nibabel_hides_is_no_damage(tmp_path):
    """nibabel drops the error of a file that it cannot open, so it is opened once more."""
    make_image().to_filename(tmp_path / "a.nii.gz")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 9, limits[1]))
    try:
        while len(taken) < 10:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        with pytest.raises(OSError, match=r"Too many open files: .*a.nii.gz") as raised:
            open_image(tmp_path / "a.nii.gz")
        assert raised.value.errno == errno.EMFILE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for number in taken:
            os.close(number)


NO_IMAGES = {  # name, content, part of the message
    "text": ("vol.json", b"{}", "is not an image: its name"),
    "no ending": ("vol", b"DICM", "is not an image: its name"),
    "compressed": ("vol.nii", gzip.compress(b""), "is compressed by gzip: its name has to end"),
    "not compressed": ("vol.nii.gz", b"n+1", "not a gzip file"),
    "git lfs": ("a.nii", b"version https://git-lfs.github.com/spec/v1", "not here yet: get it"),
    "git annex": ("a.nii.gz", b"../.git/annex/objects/8x/a.nii", "is not here yet: get it"),
}


@pytest.mark.parametrize(("name", "content", "message"), NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_image(tmp_path, name, content, message):
    """A file whose name or content is not that of an image is named as such."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=rf"{name} .*{message}"):
        open_image(tmp_path / name)


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_a_link_to_content_that_is_elsewhere(tmp_path):
    """A link of git-annex or DataLad whose content was not downloaded is named as such."""
    (tmp_path / "a.nii.gz").symlink_to(".git/annex/objects/8x/a.nii.gz")
    match = r"a.nii.gz is a link to .git/annex/objects/8x/a.nii.gz, where there is no file: get it"
    with pytest.raises(FileNotFoundError, match=match):
        open_image(tmp_path / "a.nii.gz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_a_pipe_is_not_read(tmp_path):
    """A pipe is named as such, and not read: without a writer, that would not end."""
    path = tmp_path / "pipe.nii"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    os.write(writer, bytes(500))
    with pytest.raises(OSError, match=r"pipe.nii is a folder or a pipe"), damaged_file_named(path):
        raise EOFError
    os.close(writer)


def test_values_other_than_0_and_1_are_counted():
    """A mask of the methods in memory is what is not zero, and a warning counts other values."""
    values = np.array([0, 1, 1e-15, -1, np.nan, np.inf]).reshape(1, 2, 3)
    with pytest.warns(
        UserWarning, match=r"A mask has 2 voxels .* 0 nor 1. All 3 that are not zero"
    ):
        inside = read_mask(nib.Nifti1Image(values, np.eye(4)))
    assert inside.ravel().tolist() == [False, True, True, True, False, False]
    assert read_mask(nib.Nifti1Image(np.array([[[0.0, 255]]]), np.eye(4))).sum() == 1


@pytest.mark.parametrize("error", [UserWarning("odd"), KeyboardInterrupt("odd")])
def test_other_errors_pass(error):
    """An error that is not about the file's content passes unchanged."""
    with pytest.raises(type(error)) as raised, damaged_file_named("a.nii"):
        raise error
    assert raised.value is error


def test_a_file_that_is_too_large_for_memory_is_named():
    """The type of the error stays, so that callers can tell it from damage."""
    match = r"^a.nii is too large for memory, or its header is wrong"
    with pytest.raises(MemoryError, match=match), damaged_file_named("a.nii"):
        raise MemoryError("odd")


@pytest.mark.parametrize("change", ["touched", "overwritten", "replaced"])
def test_volumes_are_of_one_version(tmp_path, change):
    """A file that is written or replaced while it is read raises an error at its end."""
    path, other = tmp_path / "fmri.nii.gz", tmp_path / "other.nii.gz"
    make_image().to_filename(path)
    make_image().to_filename(other)
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    volumes = read_volumes(nib.load(path))
    next(volumes)
    if change == "touched":
        os.utime(path, (0, 0))
    elif change == "overwritten":  # and its time set back
        stat = path.stat()
        path.write_bytes(path.read_bytes())
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        other.replace(path)
    with pytest.raises(OSError, match=r"fmri.nii.gz was changed while it was read"):
        list(volumes)
