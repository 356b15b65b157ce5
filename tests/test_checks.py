"""The shared checks: which errors name a damaged file."""

import errno
import os

import nibabel as nib
import pytest

from beyond_the_masker import streaming
from beyond_the_masker.checks import damaged_file_named, read_volumes
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
