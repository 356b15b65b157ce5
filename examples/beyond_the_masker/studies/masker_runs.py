"""Extract, clean and tabulate the series of one or more atlases from every image of a study.

* **One pass over an image for all atlases** whose results are missing, with nilearn's values.
* **Every table has all regions**: one that an image lacks is ``n/a``.
* **Run it again to continue.** A changed image, table of confounds, atlas or option repeats what
  depends on it; everything else is skipped.
* **A failed image does not stop the others.** Its rows of the table have the reason.
"""

import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from beyond_the_masker.extract.running import ready_parallel
from beyond_the_masker.extract.streaming import damaged_file_named
from beyond_the_masker.studies.atlases import for_study, read_atlas, stored
from beyond_the_masker.studies.bids import check_label
from beyond_the_masker.studies.tables import read_exactly
from beyond_the_masker.studies.tasks import (
    Task,
    absolute,
    absolute_paths,
    name_files,
    one_part,
    run_tasks,
)
from beyond_the_masker.studies.work import (
    Confounds,
    Options,
    Run,
    checksum_of,
    columns_of,
    do_run,
    marker_of,
    numbers_in,
    relmat_of,
)

__all__ = ["Confounds", "Run", "masker_study", "run_maskers"]
COLUMNS = ["image", "atlas", "file", "status", "reason", "volumes", "kept", "confounds", "mean_fd"]
COLUMNS += ["below_coverage", "seconds", "peak_rss_mib", "started", "host", "pid"]


def masker_study(
    images,
    maskers,
    output_dir,
    n_jobs=None,
    *,
    confounds=None,
    sample_masks=None,
    relative_to=None,
    part=(1, 1),
    min_coverage=0.5,
    relmat=False,
    verify=False,
):
    """Extract the series of one or more atlases from every image of a study.

    Parameters
    ----------
    images : list of str or pathlib.Path
        4D NIfTI images, as for `mask_study`.
    maskers : dict
        For each name, of letters and digits, an atlas: the file of a 3D image of labels, or of a 4D
        image of maps, or one of nilearn's maskers with its parameters, not fitted.
    output_dir : str or pathlib.Path
        Folder of the results: for each image and atlas a table, such as
        ``sub-01_bold_atlas-Schaefer400_timeseries.tsv``, with a ``.json`` of its origin.
    n_jobs, relative_to, part, verify : optional
        As for `mask_study`.
    confounds : list, optional
        For each image a table with a row for each volume, or None. A table is the path of a
        ``.tsv`` or ``.csv`` file with names of columns, a DataFrame or an array; workers read
        paths, and everything else is sent to them.
    sample_masks : list, optional
        For each image the numbers of the volumes that are kept, from 0, or None for all.
    min_coverage : float
        A region is ``n/a`` if less than this share of it is inside the image and its mask.
    relmat : bool
        Also write the correlations of all regions, as ``..._relmat.tsv``.

    Returns
    -------
    pandas.DataFrame
        A row per image and atlas; see `run_maskers`.

    Raises
    ------
    ValueError
        There is no image, two results would have one file, a list does not fit the images, an atlas
        or an option is wrong, or the backend does not return results as they become ready.
    OSError
        The file of an atlas is missing or damaged, or the output folder cannot be written.
    """
    images, output_dir = absolute_paths(images), absolute(output_dir)
    for name in maskers:
        check_label(name, "The name of an atlas")
    files = name_files(images, output_dir, "", relative_to)
    confounds = one_for_each(images, "confounds", confounds)
    sample_masks = one_for_each(images, "sample_masks", sample_masks)
    ready_parallel(n_jobs)
    atlases = {name: stored(read_atlas(name, maskers[name]), output_dir) for name in maskers}
    of_atlases = {name: for_study(atlas.masker) for name, atlas in atlases.items()}
    runs = []
    for image, table, sample_mask in zip(images, confounds, sample_masks, strict=True):
        start = files[image].name
        of_image = {
            name: files[image].with_name(f"{start}_atlas-{name}_timeseries.tsv") for name in maskers
        }
        runs.append(Run(image, of_image, of_atlases, *given(table, sample_mask)))
    options = {"part": part, "min_coverage": min_coverage, "relmat": relmat, "verify": verify}
    return run_maskers(runs, atlases, output_dir, n_jobs, **options)


def one_for_each(images, name, values):
    """Return a list with a value for each image."""
    if values is None:
        return [None] * len(images)
    if isinstance(values, str | Path) or not hasattr(values, "__len__"):
        raise ValueError(f"{name} is a list with an entry for each image, not {values!r}.")
    if len(values) != len(images):
        raise ValueError(f"{name} has {len(values)} entries; there are {len(images)} images.")
    return list(values)


def given(table, sample_mask):
    """Return what a `Run` needs of the confounds of `masker_study`: function, files, checksums."""
    if table is None and sample_mask is None:
        return None, {}, {}
    sources, about = {}, {}
    if isinstance(table, str | Path):
        table = absolute(table)
        sources["confounds"] = table
    elif table is not None:
        table = table if hasattr(table, "columns") else np.array(table)
        table = table if table.ndim == 2 else table.reshape(len(table), -1)
        about["ConfoundsChecksum"] = checksum_of(numbers_in(table), columns_of(table))
    if sample_mask is not None:
        sample_mask = np.asarray(sample_mask)
        about["SampleMaskChecksum"] = checksum_of(sample_mask)
    return partial(read_given, table, sample_mask), sources, about


def read_given(table, sample_mask):
    """Return the `Confounds` of a table; if it is a file, its values are read exactly."""
    if isinstance(table, Path):
        with damaged_file_named(table):
            table = read_exactly(table, sep="," if table.suffix.lower() == ".csv" else "\t")
    return Confounds(table, sample_mask)


def run_maskers(
    runs,
    atlases,
    output_dir,
    n_jobs=None,
    *,
    part=(1, 1),
    min_coverage=0.5,
    relmat=False,
    verify=False,
):
    """Extract and tabulate the series of runs; the common part of all studies with maskers.

    Parameters
    ----------
    runs : list of Run
        Images, each with its files of results.
    atlases : dict
        For each name in a run's `files` an `Atlas`.
    output_dir : pathlib.Path
        Folder of the table, ``study.tsv``, or of a part ``study_3_of_10.tsv``.
    n_jobs, part, min_coverage, relmat, verify : optional
        As for `masker_study`.

    Returns
    -------
    pandas.DataFrame
        A row per image and atlas, in their order; also written to the table. Columns: ``image``,
        ``atlas``, ``file`` (empty if there are no results), ``status`` (done, skipped, failed;
        after an interruption also not done), ``reason``, ``volumes``, ``kept`` volumes,
        ``confounds`` (number of columns), ``mean_fd`` (mean framewise displacement, if known),
        ``below_coverage`` (number and names of the regions that are ``n/a``); of the image with all
        its atlases ``seconds`` and ``peak_rss_mib`` (of the worker process, on Linux); ``started``
        (seconds since 1970), ``host``, ``pid``.

    Raises
    ------
    ValueError
        Two runs have one file, an option is wrong, or the backend does not return results as they
        become ready.
    OSError
        The output folder cannot be written.

    Notes
    -----
    A table has the atlas's regions as columns and a row for each kept volume;
    `beyond_the_masker.studies.tables.read_table` reads it. The ``.json`` beside it has ``Source``
    (the image), ``Inputs`` (size and time of change of every file), ``Atlas`` and ``Masker``
    (checksums, parameters), ``Regions``, ``Coverage`` (of each region the share inside the image
    and its mask; null if unknown), ``MinCoverage``, ``Volumes``, ``SampleMask`` (kept volumes, from
    0; null for all), ``ConfoundColumns``, ``MeanFramewiseDisplacement``, ``DataType``, ``Versions``
    (of packages), ``Sha256`` and ``Size`` (of the table), ``RecordSha256`` (of all other entries),
    and what the run is `about`. It is written last, so a table without it is not complete.

    Values are those of `stream_masker`, and so nilearn's, with one thread in BLAS: with more, the
    last bits of nilearn's own series depend on their number.

    A result is skipped if its record would be the same, but for the versions of packages. Results
    of another image that still exists are never overwritten.
    """
    ready_parallel(n_jobs)
    output_dir, runs = absolute(output_dir), list(runs)
    files = Counter(file for run in runs for file in run.files.values())
    if not files:
        raise ValueError("Give at least one image, and one atlas.")
    if twice := [str(file) for file, count in files.items() if count > 1]:
        raise ValueError(f"{len(twice)} files would have two results, such as {twice[0]}.")
    images, table = one_part(dict.fromkeys(run.image for run in runs), part)
    of_part = {*images}
    runs = [run for run in runs if run.image in of_part]
    options = Options(output_dir, min_coverage, relmat, verify)
    return do_runs(runs, atlases, output_dir / table, n_jobs, options)


def do_runs(runs, atlases, table, n_jobs, options):
    """Extract and tabulate the series of the runs of a part; see `run_maskers`."""
    if not 0 <= options.min_coverage <= 1:
        raise ValueError(f"min_coverage is {options.min_coverage}; it is a share, from 0 to 1.")
    tasks = [new_task(run, {name: atlases[name] for name in run.files}, options) for run in runs]
    with warnings.catch_warnings():  # threads that catch warnings leave the filters changed
        return run_tasks(tasks, table, COLUMNS, n_jobs)


def new_task(run, atlases, options):
    """Return the task of an image, with a row for each atlas."""
    start = {"image": str(run.image), "kept": 0, "confounds": 0, "below_coverage": ""}
    rows = [start | {"atlas": name, "file": str(file)} for name, file in run.files.items()]
    tables = [*run.files.values(), *map(relmat_of, run.files.values())]
    files = [*tables, *(file.with_suffix(".json") for file in tables)]
    return Task(do_run, (run, atlases, options), rows, marker_of(run), files)
