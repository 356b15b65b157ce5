"""Keep prepared files in folders of the cache; make them again if their inputs or they change."""

import functools
import hashlib
import json
import os
import shutil
import time
import zlib
from contextlib import suppress
from pathlib import Path

from beyond_the_masker.extract.streaming import remove_left, unfinished_beside
from beyond_the_masker.files import file_named, files_of_image, flush
from beyond_the_masker.options import read_options

CHECKSUMS = ".checksums.json"
DAYS = 30  # that a folder stays without being used


def prepare(name, depends_on, fill):
    """Return the folder of the cache for a name and all that it depends on.

    A folder that is missing, or whose files are not as they were written, is filled.
    """
    digest = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:12]
    folder = Path(read_options().cache) / f"{name}-{digest}"

    def fill_and_sum(unfinished):
        fill(unfinished)
        (unfinished / CHECKSUMS).write_text(json.dumps(checksums(unfinished)))

    if folder.is_dir() and not is_sound(folder):
        shutil.rmtree(folder)
    filled(folder, fill_and_sum)
    with suppress(OSError):  # a cache that is only read
        os.utime(folder)
    return folder


def prepare_file(name, depends_on, file_name, write, *arguments):
    """Return the path of a file in such a folder; `write` gets the arguments and the path."""
    folder = prepare(name, depends_on, lambda folder: write(*arguments, folder / file_name))
    return folder / file_name


def remove_old():
    """Remove the folders that no build has used for a month."""
    for folder in Path(read_options().cache).glob("*-" + 12 * "[0-9a-f]"):
        with suppress(OSError):  # removed meanwhile
            if time.time() - folder.stat().st_mtime > DAYS * 86_400:
                shutil.rmtree(folder)


def is_sound(folder):
    """Return whether a folder has the files that were written into it, and no byte is changed."""
    try:
        return json.loads((folder / CHECKSUMS).read_text()) == checksums(folder)
    except (OSError, ValueError):
        return False


def checksums(folder):
    """Return the checksum of each file in a folder by its name, and where each link leads."""
    files = [path for path in folder.iterdir() if path.name != CHECKSUMS]
    return {f.name: str(f.readlink()) if f.is_symlink() else checksum_of(f) for f in files}


def checksum_of(path):
    """Return a file's checksum; a file that was not touched since is not read again."""
    stat = path.stat()
    return _checksum(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.cache
def _checksum(path, *_):
    """Read a file for its checksum."""
    total = 0
    with open(path, "rb") as file:
        while content := file.read(2**20):
            total = zlib.crc32(content, total)
    return total


def filled(folder, fill):
    """Return a folder; if it is missing, fill it under another name, then give it its own."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_left(folder.parent)
    unfinished = unfinished_beside(folder)
    try:
        with file_named(folder):
            unfinished.mkdir()
            fill(unfinished)
            for path in unfinished.iterdir():
                if not path.is_symlink():
                    flush(path, os.O_RDONLY)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def stamp_of(path):
    """Return what changes with an image: its name, and the sizes and times of its files."""
    stats = [file.stat() for file in files_of_image(path)]
    return str(path.absolute()), *((stat.st_size, stat.st_mtime_ns) for stat in stats)
