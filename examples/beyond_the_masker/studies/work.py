"""Do one image of a study with maskers in a worker: extract, complete, write.

A result has a record of all that it depends on. It is skipped if the record would be the same
again, but for versions of packages.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import numpy as np

from beyond_the_masker.extract.maskers import check_sample_mask, stream_masker
from beyond_the_masker.extract.running import ONE_THREAD
from beyond_the_masker.extract.streaming import damaged_file_named, list_files, open_series
from beyond_the_masker.files import files_of_image, sha256_of, unfinished_version
from beyond_the_masker.studies.atlases import (
    IMAGES,
    complete,
    images_of,
    without_empty,
)
from beyond_the_masker.studies.confounds import Confounds
from beyond_the_masker.studies.tables import (
    is_whole,
    read_record,
    read_table,
    remove_pair,
    write_pair,
)
from beyond_the_masker.studies.tasks import failed, refuse_other, refuse_third_try

# Parameters of a masker: images have checksums, labels are regions, and no series depend on others.
NOT_IN_RECORD = {*IMAGES, "labels", "lut", "memory", "memory_level", "verbose", "reports", "cmap"}
PACKAGES = ("nibabel", "nilearn", "numpy", "pandas", "scikit-learn", "scipy")


class Run(NamedTuple):
    """An image, and all that its results depend on. A worker gets it, so it is small."""

    image: Path
    files: dict  # name of an atlas: path of its ..._timeseries.tsv; the .json will be beside it
    maskers: dict  # name of an atlas: masker, not fitted, with all parameters; regions as a path
    confounds: Callable | None = None  # called by the worker; returns `Confounds`
    # Role: path of a further file, such as "confounds". Only the atlas X depends on "atlas-X".
    sources: Mapping = {}
    about: Mapping = {}  # further entries of the record, such as RepetitionTime
    problems: Mapping = {}  # name of an atlas: sentences on why there can be no series


class Options(NamedTuple):
    """What is the same for all images of a study."""

    output_dir: Path
    min_coverage: float
    relmat: bool
    verify: bool


def marker_of(run):
    """Return the file of which an unfinished version shows that an image was begun."""
    return next(iter(run.files.values())).with_suffix("")


def relmat_of(file):
    """Return the file of the matrix that belongs to a file of series."""
    return file.with_name(f"{file.stem.removesuffix('_timeseries')}_relmat.tsv")


def do_run(run, atlases, options):
    """Do what is missing of an image's results; return the values of its rows."""
    rows = {name: failed(ValueError(" ".join(why))) for name, why in run.problems.items()}
    files, todo = {name: run.files[name] for name in run.files if name not in rows}, {}
    inputs = inputs_of(run, options) if files else {}
    for name, file in files.items():
        with error_as_row(rows, name):
            record, found = describe(run, atlases[name], inputs, options), read_record(file)
            if record.items() <= found.items() and is_whole(file, found, options.verify):
                is_new = options.relmat and complete_relmat(file, found, options.verify)
                rows[name] = summary("done" if is_new else "skipped", found)
            else:
                refuse_those_of_another(file, run, record, found, options)
                todo[name] = record
    if todo:
        refuse_third_try(marker_of(run))
        with unfinished_version(marker_of(run)), ONE_THREAD:
            rows |= extract(run, atlases, todo, options)
    return [rows[name] for name in run.files]


@contextmanager
def error_as_row(rows, name):
    """Turn an error into a row of an atlas."""
    try:
        yield
    except Exception as error:
        rows[name] = failed(error)


# The record
# ----------


def describe(run, atlas, inputs, options):
    """Return the record of everything that a result depends on, as it is read from a file."""
    masker = run.maskers[atlas.name]
    parameters = masker.get_params(deep=False)
    checksums = checksums_of(images_of(parameters), run)
    record = {
        **run.about,
        "Atlas": {"Name": atlas.name, "Files": checksums},
        "Inputs": {
            role: inputs[role]
            for role in inputs  # only the atlas X depends on atlas-X
            if not role.startswith("atlas-") or role == f"atlas-{atlas.name}"
        },
        "Masker": {"Class": type(masker).__name__}
        | {name: parameters[name] for name in parameters if name not in NOT_IN_RECORD},
        "MinCoverage": float(options.min_coverage),
        "Regions": atlas.regions,
    }
    return json.loads(json.dumps(record, default=as_json))


def inputs_of(run, options):
    """Return for each file that an image's results depend on its path, size and time of change."""
    return {
        role: [
            {"file": portable(file, options), **version_of(file)}
            for each in list_files(path)
            for file in files_of_image(each)
        ]
        for role, path in {"image": run.image, **run.sources}.items()
    }


def version_of(file):
    """Return the size and the time of change of a file; say how to get one that is a link."""
    with damaged_file_named(file):
        stat = file.stat()
    return {"size": stat.st_size, "modified_ns": stat.st_mtime_ns}


def portable(path, options, real=os.path.realpath):
    """Return the real path of a file, relative to the output folder if it is in or beside it."""
    path, folder = real(path), real(options.output_dir)
    is_near = Path(path).is_relative_to(os.path.dirname(folder))
    return os.path.relpath(path, folder) if is_near else path


def checksums_of(images, run):
    """Return the checksums of a masker's images, but for sources of the run."""
    sources, checksums = [str(path) for path in run.sources.values()], {}
    for name, image in images.items():
        if not isinstance(image, str | Path):
            checksums[name] = checksum_of(np.asanyarray(image.dataobj), image.affine.tolist())
        elif str(image) not in sources:
            files = files_of_image(image)
            checksums[name] = [sha256_at(file, **version_of(file)) for file in files]
    return checksums


def as_json(value):
    """Return an array as a list, and anything else that JSON does not have as text."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def checksum_of(array, about=()):
    """Return a checksum of an array and what is said about it, such as names of columns."""
    digest = hashlib.sha256(repr((array.shape, array.dtype.str, *about)).encode())
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


@cache
def sha256_at(file, size, modified_ns):
    """Return the SHA-256 of a file, which is read once for each version."""
    return sha256_of(file)


def refuse_those_of_another(file, run, record, found, options):
    """Raise a FileExistsError if a file has results of another image that still exists."""
    if not found:
        return
    here, there = ([one["file"] for one in each["Inputs"]["image"]] for each in (record, found))
    other = os.path.normpath(options.output_dir / found["Source"])
    if here != there and other != os.path.normpath(run.image):
        refuse_other(file, other)


# The work
# --------


def extract(run, atlases, todo, options):
    """Extract the series of some atlases in one pass, and write them; return their rows."""
    fmri, rows = open_series(str(run.image)), {}
    confounds = checked(run.confounds() if run.confounds else Confounds(), fmri.shape[3])
    maskers = {name: without_empty(run.maskers[name], fmri) for name in todo}
    with warnings.catch_warnings():  # of lost regions: `coverage` counts them
        warnings.filterwarnings("ignore", r"\s*After (applying mask|resampling) ", UserWarning)
        every_series = stream_each(maskers, fmri, confounds)
    about, inputs = about_run(run, fmri, confounds, options), inputs_of(run, options)
    for name, record in todo.items():
        with error_as_row(rows, name):
            series, atlas, masker = every_series.pop(name), atlases[name], maskers.pop(name)
            if isinstance(series, Exception):
                raise series
            if describe(run, atlas, inputs, options) != record:
                raise OSError(
                    f"{run.image}, or a file that its results depend on, was changed while it was "
                    "read. Run the study again."
                )
            series, shares = complete(atlas, masker, series, fmri)
            series = without_missing(atlas, series, is_below(shares, options.min_coverage))
            record |= about | about_series(atlas, series, shares)
            rows[name] = write(run.files[name], series, record, options)
    return rows


def checked(confounds, n_volumes):
    """Return confounds with numbers of kept volumes; raise a ValueError if these are too few."""
    table, kept, mean_fd = confounds
    n_columns = 0 if table is None else numbers_in(table).shape[1]
    if kept is not None:
        check_sample_mask(kept := np.asarray(kept), n_volumes)
        kept = np.flatnonzero(kept) if kept.dtype == bool else kept.astype(int)
        if (np.diff(kept) <= 0).any():
            raise ValueError("The volumes of a sample mask are not in increasing order.")
    n_kept = n_volumes if kept is None else len(kept)
    if n_columns and n_kept < n_columns + 2:
        raise ValueError(
            f"Of {n_volumes} volumes {n_kept} are left, too few to remove {n_columns} confounds: "
            f"at least {n_columns + 2} are needed. Use fewer confounds, or scrub less."
        )
    return Confounds(table, kept, float(mean_fd))


def columns_of(table):
    """Return the names of a table's columns; those of an array are numbers."""
    if table is None:
        return []
    return [str(name) for name in getattr(table, "columns", range(table.shape[1]))]


def numbers_in(table):
    """Return a table as an array; raise a ValueError if it has text."""
    try:
        return np.asarray(table, float)
    except (ValueError, TypeError) as error:
        raise ValueError(f"A confound is not a number: {error}.") from error


def stream_each(maskers, fmri, confounds):
    """Return the series of all maskers from one pass; or each alone, to find those that fail."""
    table, kept, _ = confounds
    try:
        every_series = stream_masker([*maskers.values()], fmri, table, kept)
        return dict(zip(maskers, every_series, strict=True))
    except OSError:
        raise
    except Exception as error:
        if len(maskers) == 1:
            return dict.fromkeys(maskers, error)
        alone = [stream_each({name: maskers[name]}, fmri, confounds) for name in maskers]
        return {name: series for one in alone for name, series in one.items()}


def is_below(shares, limit):
    """Return of which regions too little is covered; of single voxels nothing is known."""
    return (shares == 0) | (shares < limit)


def without_missing(atlas, series, is_missing):
    """Return a series that is NaN for the regions that are missing."""
    if is_missing.all():
        raise ValueError(
            f"The image has too little of every region of {atlas.name}: is it in the same space?"
        )
    return np.where(is_missing, np.nan, series) if is_missing.any() else series


def about_run(run, fmri, confounds, options):
    """Return what a record has of an image besides what its results depend on."""
    table, kept, mean_fd = confounds
    return {
        "Source": portable(run.image, options, os.path.abspath),
        "Volumes": fmri.shape[3],
        "SampleMask": None if kept is None else kept.tolist(),
        "ConfoundColumns": columns_of(table),
        "MeanFramewiseDisplacement": None if np.isnan(mean_fd) else mean_fd,
        "Versions": {name: version(name) for name in PACKAGES},
    }


def about_series(atlas, series, shares):
    """Return what a record has of the series of an atlas."""
    shares = [None if np.isnan(share) else float(share) for share in shares]
    coverage = dict(zip(atlas.regions, shares, strict=True))
    return {"Coverage": coverage, "DataType": series.dtype.name}


def write(file, series, record, options):
    """Write series, and the matrix of their correlations; return what the row says of them."""
    record = write_pair(file, record["Regions"], series, record)
    if options.relmat:
        complete_relmat(file, record, series=series)
    elif read_record(relmat_of(file)).get("TimeseriesSha256") != record["Sha256"]:
        remove_pair(relmat_of(file))  # of other series
    return summary("done", record)


def complete_relmat(file, record, verify=False, series=None):
    """Write the correlations of series, unless they are there; return whether they were not."""
    matrix, regions = relmat_of(file), record["Regions"]
    about = {"Measure": "Pearson correlation", "Timeseries": file.name}
    about["TimeseriesSha256"] = record["Sha256"]
    found = read_record(matrix)
    if about.items() <= found.items() and is_whole(matrix, found, verify):
        return False
    series = read_table(file).to_numpy() if series is None else series
    with ONE_THREAD:
        values = correlations(series)
    write_pair(matrix, ["region", *regions], values, about, first=regions)
    return True


def correlations(series):
    """Return the correlations of columns; NaN for those that are missing or constant."""
    series = np.ascontiguousarray(series, float)  # sums depend on the order in memory
    with np.errstate(all="ignore"):
        values = series - series.mean(axis=0)
        values /= np.sqrt((values**2).sum(axis=0))
    matrix = np.clip(values.T @ values, -1, 1)
    np.fill_diagonal(matrix, np.where(np.isnan(matrix.diagonal()), np.nan, 1))
    return matrix


def summary(status, record):
    """Return what the row of a finished result says of it."""
    n_volumes, kept = record["Volumes"], record["SampleMask"]
    mean_fd, regions = record["MeanFramewiseDisplacement"], record["Regions"]
    shares = np.array([record["Coverage"][name] for name in regions], float)  # None becomes NaN
    below = np.array(regions)[is_below(shares, record["MinCoverage"])]
    return {
        "status": status,
        "reason": "",
        "volumes": n_volumes,
        "kept": n_volumes if kept is None else len(kept),
        "confounds": len(record["ConfoundColumns"]),
        "mean_fd": np.nan if mean_fd is None else mean_fd,
        "below_coverage": f"{len(below)}: {shorten(', '.join(below), 200)}" if len(below) else "",
    }
