"""Read and check the options of a build: environment variables, or ``make html N_REGIONS=4``.

============= ============================== ===================================================
option        default                        meaning
============= ============================== ===================================================
N_IMAGES      2                              subjects that are joined into one image
N_REGIONS     6                              masks, and as many parallel workers
DATA          synthetic                      ``synthetic`` or ``development_fmri``
FMRI          (none)                         your own 4D image: one file, or either file of a
                                             ``.hdr`` and ``.img`` pair
ATLAS         (none)                         its regions: a 4D probabilistic atlas, a 3D label
                                             image, or several binary masks (names, or a pattern
                                             with ``*``)
MEMORY        (what is free)                 memory that a method may take, such as ``16G``; one
                                             that might take more is predicted instead of run.
                                             ``unlimited`` runs all
PAUSE         0.5                            seconds of rest before each method in the experiment
MASKER_CACHE  ``masker_cache``               folder that keeps prepared files, until no build has
                                             used them for 30 days
MEASURED      ``measured``                   folder that receives measurements; ``make`` takes
                                             ``doc/measured``
============= ============================== ===================================================

In every path ``~`` is your home folder.
"""

import functools
import glob
import math
import os
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

# The most images that there are, and the most regions of the atlas that goes with them.
DATA_SETS = {"synthetic": (1000, 64), "development_fmri": (155, 64)}


@dataclass(frozen=True)
class Options:
    """The options of a build; see `read_options`."""

    n_images: int = 2
    n_regions: int = 6
    data: str = "synthetic"
    fmri: str = ""
    atlas: tuple = ()
    memory: str = ""
    pause: float = 0.5
    cache: str = "masker_cache"
    measured: str = "measured"

    def to_environ(self):
        """Return the same options as environment variables."""
        environ = {name.upper(): str(value) for name, value in asdict(self).items()}
        environ |= {"ATLAS": shlex.join(self.atlas), "MASKER_CACHE": environ.pop("CACHE")}
        return environ | ({"N_IMAGES": "", "DATA": ""} if self.fmri else {})


def read_options(environ=None):
    """Return the options in a mapping, by default ``os.environ``, with absolute paths.

    A ValueError has a line for each impossible value. An empty value counts as not given.
    """
    environ = os.environ if environ is None else environ
    given = {name: value for name, value in environ.items() if value.strip()}
    data = given.get("DATA", "synthetic").strip()
    memory = given.get("MEMORY", "").strip()
    fmri, atlas = given.get("FMRI", ""), split_atlas(given.get("ATLAS", ""))
    cache, measured = (given.get(name) or name.lower() for name in ("MASKER_CACHE", "MEASURED"))
    most_images, most_regions = DATA_SETS.get(data, DATA_SETS["synthetic"])
    if fmri or atlas:
        most_regions = math.inf  # known when the reader's atlas is read
    wrong = [*wrong_data(data, given, fmri, atlas), *wrong_memory(memory), *wrong_cache(cache)]
    number = functools.partial(read_number, given, wrong)
    options = Options(
        n_images=number("N_IMAGES", 2, int, 1, most_images),
        n_regions=number("N_REGIONS", 6, int, 1, most_regions),
        data=data,
        fmri=fmri and absolute(fmri),
        atlas=tuple(map(absolute, atlas)),
        memory=memory,
        pause=number("PAUSE", 0.5, float, 0, 3600),
        cache=absolute(cache),
        measured=absolute(measured),
    )
    if wrong:
        raise ValueError("\n".join(wrong))
    return options


def absolute(path):
    """Return a path that holds in any folder; ``~`` is the home."""
    return str(Path(os.path.expanduser(path)).absolute())


def read_number(given, wrong, name, default, kind, lowest, highest):
    """Return an option that is a number; append what is wrong with it to a list."""
    try:
        value = kind(given.get(name, default))
    except ValueError:
        value = math.nan
    if not lowest <= value <= highest:
        noun = "a whole number" if kind is int else "a number"
        end = " or more" if math.isinf(highest) else f" to {highest:g}"
        wrong.append(f"{name} is {given[name]!r}; allowed: {noun}, {lowest:g}{end}.")
    return value


def wrong_memory(memory):
    """Yield what is wrong with the limit of memory."""
    if memory in ("", "unlimited"):
        return
    try:
        parse_memory(memory)
    except ValueError as error:
        yield f"MEMORY is {memory!r}; allowed: unlimited, or a size. {error}"


def wrong_cache(cache):
    """Yield what is wrong with the folder of the masks, which nilearn reads."""
    if glob.has_magic(absolute(cache)):
        yield (
            f"MASKER_CACHE is {cache!r}; allowed: a folder without *, ? or [ in its path, "
            f"{absolute(cache)}, which nilearn would take for a pattern."
        )


def wrong_data(data, given, fmri, atlas):
    """Yield what is wrong with the options that choose the data."""
    if data not in DATA_SETS:
        yield f"DATA is {data!r}; allowed: {' or '.join(DATA_SETS)}."
    if not (fmri or atlas):
        return
    for name in ("N_IMAGES", "DATA"):
        if name in given:
            yield f"{name} chooses prepared data and FMRI an own image; give one."
    if not (fmri and atlas):
        yield "FMRI and ATLAS go together: give an image and its regions."
    for path in filter(None, (fmri, *atlas)):
        if not is_file(path):
            name = "FMRI" if path == fmri else "ATLAS"
            yield f"{name} is {path!r}; there is no such file in {Path.cwd()}."


def parse_memory(size):
    """Return a size of memory in MiB: a number of MiB, or text such as ``"16G"``, ``"1.5 TiB"``."""
    text = size.strip() if isinstance(size, str) else f"{size:f}M"  # not 1e+20
    found = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+) *([KMGT])(?:i?B)?", text, re.I | re.A)
    mib = float(found[1]) * 1024.0 ** ("KMGT".index(found[2].upper()) - 1) if found else 0
    if not 0 < mib < math.inf:
        words = "is not a positive size of memory with a unit, such as 16G or 500M."
        raise ValueError(f"{size!r} {words}")
    return mib


def is_file(path):
    """Return whether a path, which may begin with ``~``, is that of a file."""
    return Path(absolute(path)).is_file()


def split_atlas(text):
    """Return the file names in ATLAS: one file, or shell words with patterns."""
    if not text or is_file(text):
        return [text] if text else []
    try:
        words = shlex.split(text)
    except ValueError:  # a quotation mark without its partner
        words = [text]
    found = ([w] if is_file(w) else sorted(glob.glob(os.path.expanduser(w))) or [w] for w in words)
    return [path for paths in found for path in paths]
