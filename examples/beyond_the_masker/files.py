"""Write a file under its name only when it is complete, and name it after an image."""

import errno
import os
import uuid
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path

COMPRESSED = (".gz", ".bz2", ".zst")
MOST_OF_NAME = 200  # bytes; with the ending of an unfinished file, a name has at most 255
CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}  # some file systems of networks


def check_folder(folder):
    """Raise a NotADirectoryError if there is a file in the place of a folder."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file. Give a folder for results.")


def stem(path):
    """Return a file's name without its folder, ``.nii`` and ``.gz``."""
    return Path(path).name.removesuffix(".gz").removesuffix(".nii")


def files_of_image(path):
    """Return the files of an image: one, or the header and the data of a pair."""
    path = Path(path)
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    if name.suffix.lower() not in (".hdr", ".img"):
        return [path]
    from nibabel import Nifti1Pair

    file_map = Nifti1Pair.filespec_to_file_map(path)
    return [Path(file_map[part].filename) for part in ("header", "image")]


@contextmanager
def moved_into_place(file):
    """Yield a path to write to, which gets the file's name if no error occurs.

    The content is on the disk before the name is, so a power cut leaves no incomplete file either.
    """
    with file_named(file), unfinished_version(file) as unfinished:
        yield unfinished
        flush(unfinished, os.O_RDWR)
        unfinished.replace(file)
        with suppress(OSError):  # not every system can open a folder
            flush(file.parent, os.O_RDONLY)


@contextmanager
def unfinished_version(file):
    """Yield a new empty file beside a file; in the end remove it, unless it was moved."""
    file.parent.mkdir(parents=True, exist_ok=True)
    held = create_locked(lambda: f"{shortened(file)}.{uuid.uuid4().hex}.unfinished")
    try:
        with held:
            if os.name == "nt":  # Windows cannot move an open file
                held.close()
            yield Path(held.name)
    finally:
        Path(held.name).unlink(missing_ok=True)


def create_locked(new_name, mode=0o666):
    """Return a new file, open and locked as long as this process has it."""
    while True:
        held = open(new_name(), "x+b", opener=partial(os.open, mode=mode))  # noqa: SIM115
        lock(held)
        if os.fstat(held.fileno()).st_nlink:  # else `remove_abandoned` was faster than the lock
            return held
        held.close()


def shortened(file):
    """Return the path of a file, its name replaced if it leaves no space for another ending."""
    name = os.fsencode(file.name)
    return file if len(name) <= MOST_OF_NAME else file.with_name(sha256(name).hexdigest())


def lock(file, wait=True):
    """Lock an open file until it is closed; return whether that was possible."""
    try:
        import fcntl  # here: Windows has none

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def flush(path, flags):
    """Have what was written into a file or a folder stored on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


@contextmanager
def file_named(file):
    """Add the name of the file that is written to an error of the system without one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise


def write_bytes(file, content):
    """Write a file, unless it has this content: a new version would stop those who read it."""
    if not (file.is_file() and file.read_bytes() == content):
        with moved_into_place(file) as unfinished:
            unfinished.write_bytes(content)


def sha256_of(file):
    """Return the SHA-256 of a file's content."""
    digest = sha256()
    with file_named(file), open(file, "rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def find_unfinished(files):
    """Return the unfinished versions of some files, each with the file that it was to become."""
    becomes = {shortened(file): file for file in files}
    found = [path for folder in {f.parent for f in becomes} for path in folder.glob("*.unfinished")]
    starts = {path: path.with_name(path.name.rsplit(".", 2)[0]) for path in found}
    return {path: becomes[start] for path, start in starts.items() if start in becomes}


def remove_unfinished(files):
    """Remove the unfinished versions of some files; return the files that they were to become."""
    left = find_unfinished(files)
    for path in left:
        path.unlink(missing_ok=True)
    return set(left.values())


def remove_abandoned(folder, *patterns):
    """Remove the files of `create_locked` in a folder whose process has ended."""
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        with suppress(OSError), open(path, "r+b") as file:
            if lock(file, wait=False):
                path.unlink()
