"""Files appear under their names only when they are complete."""

import contextlib

import pytest

from beyond_the_masker.files import moved_into_place, stem


def test_files_are_complete_or_absent(tmp_path):
    """A file is replaced when all went well; an error leaves the old one, and nothing else."""
    file = tmp_path / "folder" / "file.txt"
    for text in ("old", "new"):
        with moved_into_place(file) as unfinished:
            assert unfinished.parent == file.parent
            unfinished.write_text(text)
        assert file.read_text() == text
    with contextlib.suppress(KeyboardInterrupt), moved_into_place(file) as unfinished:
        unfinished.write_text("part")
        raise KeyboardInterrupt
    assert [path.read_text() for path in file.parent.iterdir()] == ["new"]


@pytest.mark.parametrize("name", ["a.b.nii", "a.b.nii.gz", "a.b"])
def test_stem(name):
    """Only the ending of an image is removed."""
    assert stem(f"folder/{name}") == "a.b"
