"""
The options of a build
======================

Every script here asks this module what to work on. An option is an environment
variable, and a ``make`` variable of the same name: ``make html N_REGIONS=4``.

============= ============================== =========================================
option        default                        what it says
============= ============================== =========================================
N_IMAGES      2                              subjects that are joined into one image
N_REGIONS     6                              masks, and as many parallel workers
DATA          synthetic                      ``synthetic`` or ``development_fmri``
FMRI          (none)                         a 4D image of your own
ATLAS         (none)                         its regions: a 4D probabilistic atlas, a
                                             3D label image, or several binary masks
                                             (names, or a pattern with ``*``)
MEMORY        (what is left)                 memory that a method may take, such as ``16G``;
                                             one that would take more is not run, and shown
                                             as predicted. ``unlimited`` runs all
PAUSE         0.5                            seconds of rest before each method in the
                                             whole experiment
MASKER_CACHE  ``masker_cache``               folder that keeps prepared files
MEASURED      ``measured``                   folder that receives measurements
============= ============================== =========================================

Only the standard library is used, so that a wrong value is refused before anything is
installed, downloaded or run.
"""

import glob
import math
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

# Images that there are, and regions of the atlas that goes with them.
DATA_SETS = {"synthetic": (1000, 64), "development_fmri": (155, 64)}


@dataclass(frozen=True)
class Options:
    """What a build works on; see :func:`read_options`."""

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
        """Give the same options as environment variables, with absolute paths."""
        own = {"FMRI": self.fmri, "ATLAS": shlex.join(self.atlas)} if self.fmri else {}
        scale = {} if self.fmri else {"N_IMAGES": str(self.n_images), "DATA": self.data}
        return (
            own
            | scale
            | {
                "N_REGIONS": str(self.n_regions),
                "MEMORY": self.memory,
                "PAUSE": str(self.pause),
                "MASKER_CACHE": self.cache,
                "MEASURED": self.measured,
            }
        )


def read_options(environ=None):
    """Read and check the options.

    Parameters
    ----------
    environ : mapping of str to str, optional
        The environment; ``os.environ`` by default. An empty value counts as not given.

    Returns
    -------
    Options
        With absolute paths.

    Raises
    ------
    ValueError
        A value is unknown or impossible. The message names every such option, what was
        found, and what is allowed.
    """
    environ = os.environ if environ is None else environ
    given = {k: v.strip() for k, v in environ.items() if v.strip()}
    wrong = []

    data = given.get("DATA", "synthetic")
    if data not in DATA_SETS:
        wrong.append(f"DATA is {data!r}; allowed: {' or '.join(DATA_SETS)}.")
    most_images, most_regions = DATA_SETS.get(data, DATA_SETS["synthetic"])

    def number(name, default, kind, lowest, highest):
        text = given.get(name, str(default))
        try:
            value = kind(text)
            if lowest <= value <= highest:
                return value
        except ValueError:
            pass
        what = "a whole number" if kind is int else "a number"
        top = "" if math.isinf(highest) else f" to {highest:g}"
        more = " or more" if math.isinf(highest) else ""
        wrong.append(f"{name} is {text!r}; allowed: {what}, {lowest:g}{top}{more}.")
        return default

    fmri, atlas = given.get("FMRI", ""), _split_atlas(given.get("ATLAS", ""))
    if fmri or atlas:
        most_regions = math.inf  # what the reader's atlas holds is known when it is read
        for name in ("N_IMAGES", "DATA"):
            if name in given:
                wrong.append(f"{name} chooses prepared data and FMRI an own image; give one.")
        if not (fmri and atlas):
            wrong.append("FMRI and ATLAS go together: give an image and its regions.")
        for path in filter(None, (fmri, *atlas)):
            if not Path(path).is_file():
                name = "FMRI" if path == fmri else "ATLAS"
                wrong.append(f"{name} is {path!r}; there is no such file in {Path.cwd()}.")

    memory = given.get("MEMORY", "")
    if memory not in ("", "unlimited"):
        try:
            parse_memory(memory)
        except ValueError as error:
            wrong.append(f"MEMORY is {memory!r}; allowed: unlimited, or a size. {error}")

    options = Options(
        n_images=number("N_IMAGES", 2, int, 1, most_images),
        n_regions=number("N_REGIONS", 6, int, 1, most_regions),
        data=data,
        fmri=fmri and str(Path(fmri).absolute()),
        atlas=tuple(str(Path(path).absolute()) for path in atlas),
        memory=memory,
        pause=number("PAUSE", 0.5, float, 0, 3600),
        cache=str(Path(given.get("MASKER_CACHE", "masker_cache")).absolute()),
        measured=str(Path(given.get("MEASURED", "measured")).absolute()),
    )
    if wrong:
        raise ValueError("\n".join(wrong))
    return options


def parse_memory(size):
    """Give a size of memory in MiB.

    Parameters
    ----------
    size : str or float
        A number of MiB, or text with a unit: ``"16G"``, ``"1.5 TiB"``, ``"900M"``. A unit is a
        power of 1024 bytes; without one, it is MiB.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        It is not a size, or not a positive one.
    """
    text = f"{size:f}" if isinstance(size, float) else str(size).strip()  # not 1e+20
    found = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+) *(?:([KMGT])(?:i?B)?)?", text, re.I | re.A)
    mib = float(found[1]) * 1024.0 ** ("KMGT".index((found[2] or "M").upper()) - 1) if found else 0
    if not 0 < mib < math.inf:
        raise ValueError(f"{size!r} is not a positive size of memory, such as 16G or 500M.")
    return mib


def _split_atlas(text):
    """File names in ATLAS: one file as it stands, or shell words with patterns."""
    if not text or Path(text).is_file():
        return [text] if text else []
    try:
        words = shlex.split(text)
    except ValueError:  # a quotation mark without its partner
        words = [text]
    found = ([w] if Path(w).is_file() else sorted(glob.glob(w)) or [w] for w in words)
    return [path for paths in found for path in paths]


if __name__ == "__main__":
    try:
        print(read_options())
    except ValueError as error:
        sys.exit(str(error))
