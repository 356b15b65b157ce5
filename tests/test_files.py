"""Files appear under their names only when they are complete."""

import contextlib
import errno
from pathlib import Path

import numpy as np
import pytest

from beyond_the_masker import files as module
from beyond_the_masker.files import moved_into_place, remove_abandoned, stem
from beyond_the_masker.studies import results
from beyond_the_masker.studies.results import read_arrays, write_arrays


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


def test_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """The content is flushed, then the file is moved, then its folder is flushed."""
    events, file = [], tmp_path / "file.txt"
    flush, replace = module.flush, Path.replace
    seen = lambda path, flags: events.append(path) or flush(path, flags)  # noqa: E731
    moved = lambda path, to: events.append(to) or replace(path, to)  # noqa: E731
    monkeypatch.setattr(module, "flush", seen)
    monkeypatch.setattr(Path, "replace", moved)
    with moved_into_place(file) as unfinished:
        unfinished.write_text("text")
    assert events == [unfinished, file, tmp_path]


def test_the_longest_names(tmp_path):
    """Names of 255 bytes leave space for those of unfinished files, which are found by them."""
    files = [tmp_path / f"{'é' * 125}{letter}.npz" for letter in "ab"]
    for file in files:
        with moved_into_place(file) as unfinished:
            unfinished.write_text(file.name)
            assert module.find_unfinished(files) == {unfinished: file}
    assert [file.read_text() for file in files] == [file.name for file in files]


def write_with_error(file, error):
    """Begin to write a file; raise an error."""
    with moved_into_place(file):
        raise error


def test_a_full_disk_names_the_file(tmp_path):
    """An error of the system names the file, unless it names another one."""
    file = tmp_path / "file.txt"
    with pytest.raises(OSError, match=r"No space.*file\.txt"):
        write_with_error(file, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="other"):
        write_with_error(file, OSError(errno.ENOSPC, "No space left on device", "other.txt"))
    with pytest.raises(OSError, match=r"Input.*file\.txt"):
        write_with_error(file, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OSError, match=r"^incomplete$"):
        write_with_error(file, OSError("incomplete"))
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
    """What the disk reports when all is flushed is an error, and the old file stays."""
    file = tmp_path / "file.txt"
    file.write_text("old")

    def fails(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module.os, "fsync", fails)
    with pytest.raises(OSError, match=r"Input.*file\.txt"), moved_into_place(file) as unfinished:
        unfinished.write_text("new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_an_error_of_the_disk_while_arrays_are_read_is_named(tmp_path, monkeypatch):
    """The message has the file and the reason, which zipfile would hide."""

    def fails(file):
        raise OSError(errno.EIO, "Input/output error")

    write_arrays(tmp_path / "file.npz", ["a"], [np.ones(3)], {})
    monkeypatch.setattr(results, "is_undamaged", lambda file: True)
    monkeypatch.setattr("zipfile._EndRecData", fails)
    with pytest.raises(OSError, match=r"file\.npz cannot be read: .*Input/output error"):
        read_arrays(tmp_path / "file.npz")


def test_abandoned_files_are_removed(tmp_path):
    """Unfinished files of a process that has ended are removed, not those being written."""
    left = tmp_path / "left.txt.0123.unfinished"
    left.touch()
    with moved_into_place(tmp_path / "file.txt") as unfinished:
        unfinished.write_text("text")
        remove_abandoned(tmp_path, "*.unfinished")
        assert [*tmp_path.iterdir()] == [unfinished]
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_file_that_is_removed_before_its_lock_is_created_again(tmp_path, monkeypatch):
    """Another process may take a file that is not yet locked for an abandoned one."""
    lock = module.lock

    def too_late(held, wait=True):
        monkeypatch.setattr(module, "lock", lock)
        Path(held.name).unlink()
        return lock(held, wait)

    monkeypatch.setattr(module, "lock", too_late)
    with moved_into_place(tmp_path / "file.txt") as unfinished:
        unfinished.write_text("text")
    assert (tmp_path / "file.txt").read_text() == "text"
