"""Write a file under its name only when it is complete, and name it after an image."""

import uuid
from contextlib import contextmanager
from pathlib import Path

COMPRESSED = (".gz", ".bz2", ".zst")


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
    """Yield a path to write to, which gets the file's name if no error occurs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{uuid.uuid4().hex}.unfinished")
    try:
        unfinished.touch()
        yield unfinished
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def find_unfinished(files):
    """Return the unfinished versions of some files, each with the file that it was to become."""
    found = [path for folder in {f.parent for f in files} for path in folder.glob("*.unfinished")]
    becomes = {path: path.with_name(path.name.rsplit(".", 2)[0]) for path in found}
    return {path: file for path, file in becomes.items() if file in files}


def remove_unfinished(files):
    """Remove the unfinished versions of some files; return the files that they were to become."""
    left = find_unfinished(files)
    for path in left:
        path.unlink(missing_ok=True)
    return set(left.values())
