"""The shared checks: which errors name a damaged file, and which are no damage."""

import errno
import gzip
import os
import resource

import nibabel as nib
import numpy as np
import pytest
from nibabel.filebasedimages import ImageFileError
from nibabel.tripwire import TripWireError

from beyond_the_masker.checks import damaged_file_named, open_image, read_mask, read_volumes
from made_images import make_image


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
