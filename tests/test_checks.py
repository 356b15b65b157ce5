"""The shared checks: which errors name a damaged file."""

import errno
import os

import nibabel as nib
import numpy as np
import pytest

from beyond_the_masker import streaming
from beyond_the_masker.checks import damaged_file_named, read_mask, read_volumes
from made_images import make_image


@pytest.mark.parametrize("error", [EOFError, OSError, nib.filebasedimages.ImageFileError])
def test_errors_of_a_damaged_file_name_it(error):
    """What nibabel raises becomes an OSError with the file and the original message."""
    with (
        pytest.raises(OSError, match=r"^a\.nii is incomplete or damaged \(odd\)\. Copy") as raised,
        damaged_file_named("a.nii"),
    ):
        raise error("odd")
    assert isinstance(raised.value.__cause__, error)


@pytest.mark.parametrize("named", [damaged_file_named, streaming.damaged_file_named])
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EISDIR, errno.EACCES, errno.EMFILE])
def test_limits_of_the_system_are_no_damage(named, number):
    """A file that is missing, a folder, not allowed, or one too many keeps its own error."""
    with pytest.raises(OSError, match=r"^.Errno \d+. odd") as raised, named("a.nii"):
        raise OSError(number, "odd", "b.nii")
    assert raised.value.errno == number


@pytest.mark.parametrize("named", [damaged_file_named, streaming.damaged_file_named])
@pytest.mark.parametrize(
    "content", ["version https://git-lfs.github.com/spec/v1\noid", "../.git/annex/objects/8x/a.nii"]
)
def test_a_pointer_to_the_content_is_no_damage(tmp_path, named, content):
    """A file whose content was not downloaded yet is named as such."""
    path = tmp_path / "a.nii.gz"
    path.write_text(content)
    with pytest.raises(OSError, match=r"a.nii.gz is not here yet: get it"), named(path):
        nib.load(path).get_fdata()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
@pytest.mark.parametrize("named", [damaged_file_named, streaming.damaged_file_named])
def test_a_pipe_is_not_read(tmp_path, named):
    """A pipe is named as such, and not read: without a writer, that would not end."""
    path = tmp_path / "pipe.nii"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    os.write(writer, bytes(500))
    with pytest.raises(OSError, match=r"pipe.nii is a folder or a pipe"), named(path):
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


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_other_errors_pass(error):
    """An error that is not about the file's content passes unchanged."""
    with pytest.raises(error, match=r"^odd$"), damaged_file_named("a.nii"):
        raise error("odd")


@pytest.mark.parametrize("change", ["written", "replaced"])
def test_volumes_are_of_one_version(tmp_path, change):
    """A file that is written or replaced while it is read raises an error at its end."""
    path, other = tmp_path / "fmri.nii.gz", tmp_path / "other.nii.gz"
    make_image().to_filename(path)
    make_image().to_filename(other)
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    volumes = read_volumes(nib.load(path))
    next(volumes)
    if change == "written":
        os.utime(path, (0, 0))
    else:
        other.replace(path)
    with pytest.raises(OSError, match=r"fmri.nii.gz was changed while it was read"):
        list(volumes)
