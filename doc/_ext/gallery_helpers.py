"""How the gallery orders and runs the examples; conf.py names these functions as strings."""

import ast
import hashlib
import os
import platform
import re
import sys
import warnings
from functools import partialmethod
from pathlib import Path

from tqdm import tqdm

from beyond_the_masker.experiments.experiment import PACKAGES, version_of
from beyond_the_masker.experiments.pages import definitions
from beyond_the_masker.options import read_options

# Within a section; pages that are not named follow. Sections run in the order of their folders.
ORDER = """
    plot_large_image plot_nifti_masker plot_numpy_indexing plot_shared_memory plot_in_memory
    plot_mapped_file plot_heavy_work
    plot_stream_masks plot_region_averages plot_stream_masker
    plot_memory_over_time plot_prediction plot_limit
    plot_one_machine plot_fmriprep_study plot_dask_cluster plot_slurm
    plot_large_image_in_blocks plot_study_plan
"""


def reading_order(file_name):
    """Return the sort key of a page within its section."""
    name = Path(file_name).stem
    names = ORDER.split()
    return (names.index(name) if name in names else len(names)), name


# -- What runs again ---------------------------------------------------------------------------


def digest(examples, recorded):
    """Return a digest of everything besides its own text that an example's output depends on.

    That is the package, the functions of all pages (they are measured on other pages), the
    options, the reader's files, the recorded measurements, and the versions of the libraries.
    """
    options = read_options()
    parts = [platform.python_version(), *map(version_of, PACKAGES), repr(options)]
    for own in filter(None, (options.fmri, *options.atlas)):
        status = Path(own).stat()
        parts.append(f"{status.st_size} {status.st_mtime_ns}")
    for path in sorted(examples.rglob("*.py")):
        source = path.read_text()
        parts += [ast.unparse(n) for n in definitions(source)] if "plot_" in path.name else [source]
    parts += [path.read_text() for path in sorted(recorded.rglob("*.*"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def forget_outdated(app):
    """Remove sphinx-gallery's checksums if the digest is another one, so that all pages run.

    The digest is kept before they run: an interrupted build goes on where it stopped.
    """
    if str(app.config.plot_gallery).lower() in ("0", "false"):
        return
    source = Path(app.srcdir)
    gallery = source / app.config.sphinx_gallery_conf["gallery_dirs"]
    kept, current = gallery / "digest.txt", digest(source.parent / "examples", source / "recorded")
    measured = Path(os.environ["MEASURED"], "summary.csv").exists()
    if not measured or not kept.exists() or kept.read_text() != current:
        for checksum in gallery.rglob("*.md5"):
            checksum.unlink()
        gallery.mkdir(exist_ok=True)
        kept.write_text(current)


# -- What a page offers --------------------------------------------------------------------------

ZIP = re.compile(r"^ +\.\. container:: .*sphx-glr-download-zip\n\n.*$", re.MULTILINE)


def without_zip(app, docname, source):
    """Remove the download of an archive that holds nothing but the page's script."""
    source[0] = ZIP.sub("", source[0])


# -- While an example runs -----------------------------------------------------------------------

DRAW = tqdm.__init__


def bars_on_the_terminal(gallery_conf, file_name, when):
    """Draw an example's progress bars on the terminal, not on its page."""
    before = when == "before"
    tqdm.__init__ = partialmethod(DRAW, file=sys.__stderr__) if before else DRAW


# Warnings about the machine or the clock, not about the code: they must not stop a build. (In a
# thread of joblib or Dask, an error in place of a warning would end the thread, and the example
# would wait forever.)
ABOUT_THE_MACHINE = (
    "A worker stopped while some jobs were given",  # joblib: slow to start, or short of memory
    "resource_tracker: ",  # joblib: the system ended the tracker, or files are gone already
    "Failed to delete temporary folder",  # joblib
    "Could not find the number of physical cores",  # joblib
    r"Port \d+ is already in use",  # Dask: it takes another one
    r"\s*Could not launch service",  # Dask
    "Creating scratch directories is taking a surprisingly long time",  # Dask
    "Couldn't detect a suitable IP address",  # Dask: no network
    "Attempting to set identical low and high",  # matplotlib: a measured value is zero
)

# Of nilearn and `stream_masker`, about NaN or 64-bit integers in an own image: the page shows it.
ABOUT_THE_IMAGE = "Non-finite values detected|Data array used to create a new image contains 64-bit"


def warnings_are_errors(gallery_conf, file_name, when):
    """Turn warnings into errors while an example runs, except those about machine and image."""
    if when == "before":
        warnings.simplefilter("error")
        for message in ABOUT_THE_MACHINE:
            warnings.filterwarnings("ignore", message)
        warnings.filterwarnings("default", ABOUT_THE_IMAGE)
    else:
        warnings.resetwarnings()


def setup(app):
    """Compare the digests before sphinx-gallery reads its checksums; shorten its pages."""
    app.connect("builder-inited", forget_outdated, priority=100)
    app.connect("source-read", without_zip)
    return {"parallel_read_safe": True}
