"""Keep arrays in one ``.npz`` file, with a record of their origin, and without a date."""

import json
import os
import struct
import zipfile
import zlib

import numpy as np

from beyond_the_masker.extract.streaming import damaged_file_named, list_files
from beyond_the_masker.files import file_named, files_of_image

ABOUT = "about.json"
OF_DAMAGE = (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
OF_DAMAGE += (struct.error,)


def write_arrays(path, names, arrays, about):
    """Write arrays under their names, and under ``about.json`` the record of their origin."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in zip(names, arrays, strict=True):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        archive.writestr(zipfile.ZipInfo(ABOUT), json.dumps(about, indent=1))


def read_about(file):
    """Return the record of a file's origin: empty if the file is missing or damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            return json.loads(archive.read(ABOUT))
    except OF_DAMAGE:
        return {}


def is_undamaged(file):
    """Return whether a file has its record, and all arrays agree with their checksums."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None and ABOUT in archive.namelist()
    except OF_DAMAGE:
        return False


def read_arrays(file):
    """Return the arrays in a file by their names; an OSError names a file that is damaged."""
    with file_named(file), open(file, "rb") as content:  # an error of the system is no damage
        if not is_undamaged(file):
            raise OSError(f"{file} is damaged: run its study again, with verify=True.")
        try:
            with np.load(content) as arrays:
                return {name: arrays[name] for name in arrays.files if name != ABOUT}
        except zipfile.BadZipFile as error:  # zipfile's word for an error of the disk, too
            raise OSError(f"{file} cannot be read: {error.__context__ or error}") from error


def describe(image, masks, options):
    """Return the record of everything that an image's results depend on."""
    with damaged_file_named(image):
        stats = [file.stat() for path in list_files(image) for file in files_of_image(path)]
    return {
        "image": str(image),
        "file": os.path.realpath(image),
        "size": [stat.st_size for stat in stats],
        "modified_ns": [stat.st_mtime_ns for stat in stats],
        "masks": dict(zip(masks.names, map(len, masks.positions), strict=True)),
        "options": options,
        "checksum": masks.checksum,
    }
