"""The cache: files are made once, whole or not at all, and again if they are damaged."""

import os
import socket
import subprocess
import sys

import pytest

from beyond_the_masker.inputs.cache import CHECKSUMS, prepare, remove_old
from made_images import flip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the cache."""
    monkeypatch.setenv("MASKER_CACHE", str(tmp_path / "prepared"))
    return tmp_path / "prepared"


def fill(folder):
    """Write two files."""
    (folder / "first").touch()
    (folder / "second").touch()


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=repr)
def test_failed_preparation_leaves_nothing(error, cache):
    """A folder that was not filled is removed, and filled by the next call."""

    def fail(folder):
        (folder / "first").touch()
        raise error

    with pytest.raises(type(error)):
        prepare("thing", [1], fail)
    assert not list(cache.iterdir())
    assert (prepare("thing", [1], fill) / "second").exists()


def test_what_a_killed_process_left_is_removed(cache):
    """The next call removes unfinished folders of processes that are gone, and no others."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f"thing.{socket.gethostname()}-{pid}-0.unfinished" for pid in (gone.pid, os.getpid())]
    for name in names:
        (cache / name).mkdir(parents=True)
        fill(cache / name)
    folder = prepare("thing", [1], fill)
    assert set(cache.iterdir()) == {folder, cache / names[1]}


def test_two_builds_at_once(cache):
    """Two processes can prepare the same files; the slower one uses those of the other."""

    def fill_after_the_other(folder):
        prepare("thing", [1], fill)
        fill(folder)

    folder = prepare("thing", [1], fill_after_the_other)
    assert (folder / "second").exists()
    assert list(cache.iterdir()) == [folder]


def test_what_no_build_has_used_is_removed(cache):
    """A folder stays for a month after a build has used it; what is not prepared stays, too."""
    folders = {name: prepare(name, [1], fill) for name in ("old", "used")}
    (cache / "not ours").mkdir()
    for folder in cache.iterdir():
        os.utime(folder, (0, 0))
    assert prepare("used", [1], fill) == folders["used"]
    remove_old()
    assert {path.name for path in cache.iterdir()} == {folders["used"].name, "not ours"}


DAMAGES = {
    "flipped": lambda folder: flip(folder / "data"),
    "cut off": lambda folder: os.truncate(folder / "data", 999),
    "longer": lambda folder: (folder / "data").write_bytes(bytes(1001)),
    "emptied": lambda folder: (folder / "data").unlink(),
    "one file more": lambda folder: (folder / "more").touch(),
    "link to another file": lambda folder: (folder / "link").rename(folder / "data"),
    "checksums lost": lambda folder: (folder / CHECKSUMS).unlink(),
    "checksums cut off": lambda folder: os.truncate(folder / CHECKSUMS, 5),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_files_of_the_cache_are_made_again(damage, cache):
    """Whatever happened to the files, the next call returns them as they were."""
    made = []

    def fill(folder):
        made.append(folder)
        (folder / "data").write_bytes(bytes(1000))
        (folder / "link").symlink_to("data")

    folder = prepare("thing", [1], fill)
    damage(folder)
    assert prepare("thing", [1], fill) == folder
    assert (folder / "data").read_bytes() == bytes(1000)
    os.utime(folder / "data", (0, 0))
    assert prepare("thing", [1], fill) == folder
    assert len(made) == 2
    assert list(cache.iterdir()) == [folder]
