"""Confounds of a study's images: which ones a strategy removes, and how they are read."""

import os
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir
from textwrap import shorten
from typing import NamedTuple

import numpy as np

from beyond_the_masker.extract.streaming import damaged_file_named, unfinished_beside
from beyond_the_masker.files import file_named
from beyond_the_masker.studies.bids import check_label
from beyond_the_masker.studies.tables import read_exactly

TABLES = {"confounds": ("confounds", ["timeseries", "regressors"])}  # before 20.2 regressors
LONG_RUN = 256  # seconds, twice the period of fMRIPrep's high-pass filter


# Which confounds
# ---------------


class Confounds(NamedTuple):
    """What is removed from an image's series, and the volumes that are kept."""

    table: object = None  # a pandas.DataFrame, or an array, with a row for each volume
    sample_mask: object = None  # the numbers of the kept volumes, from 0, in increasing order
    mean_fd: float = np.nan  # mean framewise displacement in mm


class Strategy(NamedTuple):
    """Which confounds are removed."""

    label: str  # desc of the results; empty: that of the image
    arguments: dict | None  # of a function of nilearn; None: no confounds
    image: str  # desc of the images that have such confounds
    tables: dict  # role: desc of the table, and its suffixes


def read_strategy(strategy):
    """Return a `Strategy`; a ValueError says what nilearn does not know."""
    if strategy is None:
        return Strategy("", None, *needs_of({}))
    if isinstance(strategy, str):
        strategy = {strategy.replace("_", ""): {"denoise_strategy": strategy}}
    if not isinstance(strategy, dict) or [*map(type, strategy.values())] != [dict]:
        raise ValueError(
            f"strategy is {strategy!r}; it needs the name of one of nilearn's, a dict such as "
            "{'motion6': {'strategy': ['motion'], 'motion': 'basic'}}, or None."
        )
    [(label, arguments)] = strategy.items()
    check_label(label, "The name of the strategy")
    if "strategy" in arguments and not arguments["strategy"]:
        raise ValueError(f"The strategy {label} is empty. To remove no confounds, give None.")
    found = Strategy(label, arguments, *needs_of(arguments))
    check_arguments(found)
    return found


def needs_of(arguments):
    """Return which images have what nilearn looks for, by their desc, and which tables it reads."""
    parts = arguments.get("strategy", ())
    if "tedana" in parts:
        return "optcom", {"mixing": ("ICA", ["mixing"]), "metrics": ("tedana", ["metrics"])}
    is_full = "ica_aroma" in parts and arguments.get("ica_aroma", "full") == "full"
    is_full |= arguments.get("denoise_strategy") == "ica_aroma"
    return "smoothAROMAnonaggr" if is_full else "preproc", TABLES


def check_arguments(strategy):
    """Raise a ValueError for arguments that nilearn refuses, before it looks for any file."""
    from nilearn.interfaces.fmriprep.load_confounds_strategy import preset_strategies

    name = strategy.arguments.get("denoise_strategy", "simple")
    if name not in [*preset_strategies]:
        raise ValueError(
            f"There is no strategy {name!r}; there are {', '.join(preset_strategies)} and None (on "
            "the command line none), or a dict (there a .json file) with a name and arguments."
        )
    try:
        load(f"{os.devnull}/sub-none_desc-{strategy.image}_bold.nii.gz", strategy.arguments)
    except (ValueError, TypeError, KeyError) as error:
        if "Could not find associated confound file" not in str(error):
            raise ValueError(f"The strategy {strategy.label} cannot be used. {error}") from error


# Confounds of an image, in a worker
# ----------------------------------


def read_confounds(image, tables, arguments, t_r=None):
    """Return the `Confounds` of an image; a ValueError says what is missing.

    The tables are those of the image by their roles, the arguments those of a function of nilearn.
    """
    table = sample_mask = None
    if arguments is not None:
        named = " and ".join(map(str, tables.values()))
        table, sample_mask = load_alone(image, tables, arguments, named)
        if lacks_cosines(table, arguments, t_r):
            raise ValueError(f"{named} lacks what the strategy needs: cosines, to filter drifts.")
        if table is not None and not table.shape[1]:
            table = None
        check_values(table, sample_mask, named)
    return Confounds(table, sample_mask, mean_displacement(tables.get("confounds"), sample_mask))


def load_alone(image, tables, arguments, named):
    """Return what nilearn loads from a folder that has copies of an image's tables alone.

    nilearn refuses a folder with a table for the run and one for a run with fewer entities.
    """
    folder = unfinished_beside(Path(gettempdir(), "confounds"))
    folder.mkdir(mode=0o700)
    try:
        with file_named(named), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of arguments: once, before; the rest is in rows
            for path in tables.values():
                shutil.copyfile(path, folder / path.name)
                with suppress(FileNotFoundError):
                    shutil.copyfile(path.with_suffix(".json"), folder / f"{path.stem}.json")
            return load(str(folder / image.name), arguments)
    except (ValueError, TypeError, KeyError, IndexError) as error:  # of text: a TypeError
        raise ValueError(f"{named} lacks what the strategy needs. {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lacks_cosines(table, arguments, t_r):
    """Return whether a table lacks the cosines that filter drifts; nilearn does not say so.

    fMRIPrep writes none for runs that are shorter than the period of its filter.
    """
    parts = arguments.get("strategy", ["high_pass"])
    if table is None or "high_pass" not in parts or "tedana" in parts:
        return False
    return (t_r or 0) * len(table) >= LONG_RUN and not any("cosine" in name for name in table)


def check_values(table, sample_mask, named):
    """Raise a ValueError if a value is missing that cannot be replaced.

    Temporal derivatives have no value in the first row. nilearn takes that of the second row, so
    the first volume can be kept.
    """
    if table is None:
        return
    kept = table if sample_mask is None else table.iloc[sample_mask]
    is_missing = ~np.isfinite(kept.to_numpy(float)).all(axis=0)
    if is_missing.any():
        names = shorten(", ".join(table.columns[is_missing]), 200)
        raise ValueError(
            f"{named} has n/a after the first row in {names}. Choose a strategy without them."
        )


def load(image, arguments):
    """Return the confounds of an image and the numbers of the volumes that are kept, by nilearn."""
    from nilearn.interfaces.fmriprep import load_confounds, load_confounds_strategy

    function = load_confounds_strategy if "denoise_strategy" in arguments else load_confounds
    # The image is not opened, only its name is used: nilearn needs one that ends so.
    return function(image.removesuffix(".gz") + ".gz", **arguments)


def mean_displacement(path, sample_mask):
    """Return the mean framewise displacement of the volumes that are kept; NaN if it is unknown."""
    if path is None:
        return np.nan
    with damaged_file_named(path):
        table = read_exactly(path, usecols=lambda name: name == "framewise_displacement")
        values = table.to_numpy(float).ravel()
    if not table.columns.empty and sample_mask is not None:
        values = values[sample_mask]
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan
