"""Extract the time series of a whole study that fMRIPrep preprocessed.

.. code-block:: bash

    beyond-the-masker fmriprep derivatives/fmriprep out participant \\
        --atlas Schaefer400=atlas_dseg.nii.gz --space MNI152NLin2009cAsym --task rest --jobs 8

* **Confounds are nilearn's**, from `nilearn.interfaces.fmriprep`, and every atlas gets the same.
* **The repetition time comes from the sidecar**, because headers have wrong ones.
* **Names keep all entities** of the image, so that no result takes the place of another.
* **What is missing fails alone**: an image without confounds, brain mask or its subject's atlas.

:mod:`beyond_the_masker.studies.masker_runs` does the work.
"""

import os
from functools import lru_cache, partial
from pathlib import Path
from tempfile import gettempdir
from typing import NamedTuple

import numpy as np

from beyond_the_masker.extract.running import ready_parallel
from beyond_the_masker.extract.streaming import progress_bar, remove_left
from beyond_the_masker.studies.atlases import (
    IMAGES,
    for_study,
    images_of,
    read_atlas,
    stored,
    union_of,
)
from beyond_the_masker.studies.bids import (
    Related,
    check_label,
    check_output,
    entities_of,
    find_images,
    name_of,
    read_json,
    write_dataset,
)
from beyond_the_masker.studies.confounds import Strategy, read_confounds, read_strategy
from beyond_the_masker.studies.masker_runs import Run, do_runs
from beyond_the_masker.studies.masks import tables_in
from beyond_the_masker.studies.tasks import absolute, check_apart, one_part
from beyond_the_masker.studies.work import Options

__all__ = ["fmriprep_study"]
DEFAULTS = {
    "standardize": "zscore_sample",
    "detrend": True,
    "smoothing_fwhm": None,
    "low_pass": None,
    "high_pass": None,
}
NOT_HERE = "is a link to a file that is not here: get it with datalad get."
LONGEST_T_R = 60  # seconds; a larger number is in milliseconds


def fmriprep_study(
    fmriprep_dir,
    atlases,
    output_dir,
    n_jobs=None,
    *,
    filters=None,
    participants=None,
    strategy="simple",
    masker=None,
    brain_mask=True,
    min_coverage=0.5,
    relmat=False,
    part=(1, 1),
    verify=False,
):
    """Extract, clean and tabulate the series of atlases from all images that fMRIPrep wrote.

    Parameters
    ----------
    fmriprep_dir : str or pathlib.Path
        The folder that fMRIPrep wrote, with ``sub-01`` and others.
    atlases : dict
        For each name, of letters and digits, one of these:

        * a file: a 3D image of labels or a 4D image of maps; a table such as ``atlas_dseg.tsv``
          beside labels, with the columns ``index`` and ``name``, names the regions;
        * a masker of nilearn that is not fitted, such as spheres, or the voxels of a mask; it keeps
          the parameters that are not the defaults of its class, and gets the others of the study;
        * for an atlas of each subject a name without subject, such as
          ``"space-T1w_desc-aparcaseg_dseg.nii.gz"``: the file beside the image, or in ``anat``,
          with these entities and none that the image lacks. Or a path with the image's entities in
          braces, such as ``"parcels/sub-{sub}_dseg.nii.gz"``.
    output_dir : str or pathlib.Path
        Folder of the results, a dataset of its own.
    n_jobs : int, optional
        Workers, as for `mask_study`.
    filters : dict, optional
        Which images: for entities a label or several, such as ``{"task": "rest", "ses": ["1",
        "2"]}``; None for images without the entity. By default all preprocessed ones.
    participants : list of str, optional
        Labels of the subjects, with or without ``sub-``; by default all.
    strategy : str, dict or None
        Confounds to remove: a strategy of `nilearn.interfaces.fmriprep.load_confounds_strategy`;
        or a name with arguments of `nilearn.interfaces.fmriprep.load_confounds`, such as
        ``{"motion6": {"strategy": ["motion"], "motion": "basic"}}``, or of
        ``load_confounds_strategy``, with ``denoise_strategy`` among them. The name becomes ``desc``
        of the results. None removes nothing, keeps all volumes, and leaves ``desc`` as it is.
    masker : dict, optional
        Parameters of the maskers that differ from these. ``standardize="zscore_sample"``: scanners
        have no unit, and connectivity ignores the scale. ``detrend=True``, as
        `nilearn.signal.clean`: the cosines of a strategy contain no straight line.
        ``smoothing_fwhm=None``: an average over a region is smooth, and a kernel would mix it with
        its neighbours. ``low_pass=None, high_pass=None``: the cosines are a high-pass filter. If
        you set `high_pass`, take a strategy without them.
    brain_mask : bool
        Leave out voxels outside the image's own brain mask.
    min_coverage : float
        A region of whose volume less is inside image and mask is ``n/a`` in that image.
    relmat : bool
        Write the correlations of the regions, too.
    part : tuple of int
        ``(3, 10)`` does the third of ten parts; see `mask_study`.
    verify : bool
        Read finished files, too, and replace those that are damaged.

    Returns
    -------
    pandas.DataFrame
        A row per image and atlas, as from `masker_study`; also written to ``study.tsv``.

    Raises
    ------
    ValueError
        No image is left, or the folder is not one of fMRIPrep; a name has other characters than
        letters and digits; two results would have one name; an argument is wrong.
    OSError
        A folder or an atlas is missing or damaged.

    Notes
    -----
    The mean framewise displacement is that of the volumes that are kept; the first volume has none.
    """
    ready_parallel(n_jobs)
    how = filters, participants, strategy, masker, brain_mask
    study = find_study(fmriprep_dir, atlases, output_dir, *how)
    images, table = one_part(study.images, part)
    runs, atlases = make_runs(study, images)
    write_dataset(study.output_dir, study.folder, lookup_tables(atlases))
    remove_left(Path(gettempdir()))  # temporary folders of workers that were killed
    options = Options(study.output_dir, min_coverage, relmat, verify)
    return do_runs(runs, atlases, study.output_dir / table, n_jobs, options)


# -- What is wanted ----------------------------------------------------------------------------


class Study(NamedTuple):
    """What a study is asked for, and the images that it has."""

    folder: Path
    output_dir: Path
    images: list
    names: list  # of all atlases
    atlases: dict  # name: Atlas, the same for all images
    patterns: dict  # name: pattern of the file of each subject's atlas
    own: dict  # name: for each image the file of the subject's atlas, or None
    strategy: Strategy
    parameters: dict  # of all maskers
    brain_mask: bool
    related: Related


def find_study(
    fmriprep_dir, atlases, output_dir, filters, participants, strategy, masker, brain_mask
):
    """Return a `Study`; what is wrong for all images is an error."""
    folder, output_dir = absolute(fmriprep_dir), absolute(output_dir)
    check_kinds(atlases=(atlases, dict), filters=(filters or {}, dict), masker=(masker or {}, dict))
    check_kinds(brain_mask=(brain_mask, bool))  # another mask is one of a masker
    check_output(output_dir, folder)
    strategy, parameters = read_strategy(strategy), read_parameters(masker)
    images = find_images(folder, {"desc": strategy.image} | (filters or {}), participants)
    of_all, patterns = read_atlases(atlases)
    related = Related()
    own = {name: find_own(related, images, name, patterns[name]) for name in patterns}
    files = folder, output_dir, images, [*atlases], of_all, patterns, own
    study = Study(*files, strategy, parameters, brain_mask, related)
    results = ((image, name_result(study, image, study.names[0])) for image in images)
    check_apart(results, "Choose one by a filter, or keep one.")
    return study


def check_kinds(**given):
    """Raise a ValueError for an argument that is of another kind than it has to be."""
    for name, (value, kind) in given.items():
        if not isinstance(value, kind):
            raise ValueError(f"{name} is {value!r}, which is no {kind.__name__}.")


def read_parameters(masker):
    """Return the parameters of maskers; a ValueError names one that is unknown or impossible."""
    if unknown := {*(masker or {})} - {*DEFAULTS}:
        raise ValueError(f"masker has {sorted(unknown)}; it may have {', '.join(DEFAULTS)}.")
    parameters = DEFAULTS | (masker or {})
    from nilearn.signal import clean

    temporal = {key: value for key, value in parameters.items() if key != "smoothing_fwhm"}
    series = np.random.default_rng(0).normal(size=(300, 1))
    try:
        clean(series, t_r=0.1, **temporal)  # a time so short that any filter is possible
        check_size(parameters["smoothing_fwhm"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"masker={masker} cannot be used. {error}") from error
    return parameters


def check_size(fwhm):
    """Raise a ValueError unless it is a size of a kernel: nilearn does not smooth by a negative."""
    if fwhm is not None and fwhm != "fast" and not np.all(np.greater(fwhm, 0)):
        raise ValueError(f"smoothing_fwhm is {fwhm}; it is a size in mm, or None.")


def read_atlases(atlases):
    """Return the atlases of all images, and the patterns for those of each subject."""
    if not atlases:
        raise ValueError("Give at least one atlas.")
    for name in atlases:
        check_label(name, "The name of an atlas")
    of_all, patterns = {}, {}
    for name, source in atlases.items():
        if is_pattern(source):
            patterns[name] = str(absolute(source) if "{" in str(source) else source)
        else:
            of_all[name] = read_atlas(name, source)
    return of_all, patterns


def is_pattern(source):
    """Return whether a text stands for a file of each subject."""
    if not isinstance(source, str | Path) or os.path.lexists(os.path.expanduser(source)):
        return False
    try:
        return "{" in str(source) or (
            os.path.basename(source) == str(source) and "sub" not in entities_of(source)
        )
    except ValueError:
        return False


def find_own(related, images, name, pattern):
    """Return for each image the file of the subject's own atlas, or None; there must be one."""
    files = {image: find_atlas(related, image, pattern) for image in images}
    if not any(files.values()):
        raise ValueError(
            f"The atlas {name} is neither a file nor a pattern: there is no {pattern}, and no "
            f"image, such as {images[0]}, has a file with these entities."
        )
    return files


def find_atlas(related, image, pattern):
    """Return the file of a subject's own atlas, or None."""
    if "{" not in pattern:
        return related.of_subject(image, pattern)
    try:
        path = Path(pattern.format(**entities_of(image)))
    except (KeyError, IndexError):  # the image has no such entity
        return None
    except ValueError as error:
        raise ValueError(f"The path {pattern} cannot be used: {error}.") from error
    return path if os.path.lexists(path) else None


def name_result(study, image, name):
    """Return the file of an image's series of an atlas."""
    entities = entities_of(image) | {"atlas": name}
    if study.strategy.label:
        entities["desc"] = study.strategy.label
    folder = study.output_dir / image.parent.relative_to(study.folder)
    return folder / name_of(entities, "timeseries", ".tsv")


# -- The files of an image ---------------------------------------------------------------------


def find_run(study, image):
    """Return the `Run` of an image, still without maskers; its problems say what is missing."""
    problems = []
    tables = find_tables(study, image, problems)
    t_r, sidecar = find_repetition_time(study, image, problems)
    brain_mask = study.related.brain_mask(image) if study.brain_mask else None
    if study.brain_mask and not brain_mask:
        problems.append("It has no brain mask desc-brain_mask.nii.gz; or set brain_mask to False.")
    problems += [
        f"{'It' if path == image else path.name} {NOT_HERE}"
        for path in (image, brain_mask, *tables.values())
        if path and not path.exists()
    ]
    sources = {"sidecar": sidecar, "brain_mask": brain_mask, **tables}
    strategy = study.strategy
    about = {"Strategy": strategy.label or None, "StrategyArguments": strategy.arguments}
    of_each = {name: [*problems, *why_unfit(study, image, name)] for name in study.names}
    return Run(
        image,
        files={name: name_result(study, image, name) for name in study.names},
        maskers={},
        confounds=partial(read_confounds, image, tables, strategy.arguments, t_r),
        sources={role: path for role, path in sources.items() if path},
        about={"RepetitionTime": t_r, **about},
        problems={name: sentences for name, sentences in of_each.items() if sentences},
    )


def find_tables(study, image, problems):
    """Return an image's tables of confounds by their roles; add what is missing to the problems.

    Of two tables, that with more of the image's entities belongs to it.
    """
    tables = {}
    for role, (desc, suffixes) in study.strategy.tables.items():
        found = study.related.find(image, suffixes, [".tsv"], desc=desc)
        closest = [path for path in found if len(entities_of(path)) == len(entities_of(found[0]))]
        if len(closest) == 1:
            tables[role] = closest[0]
        elif study.strategy.arguments is not None:
            names = ", ".join(path.name for path in closest)
            wanted = f"desc-{desc}_{suffixes[0]}.tsv"
            problems.append(
                f"It has {len(closest)} tables of confounds: {names}. Keep one."
                if closest
                else f"It has no confounds: no {wanted} with its entities is beside it."
            )
    return tables


def find_repetition_time(study, image, problems):
    """Return an image's repetition time in seconds, and the sidecar that has it, or None."""
    sidecars = study.related.sidecars(image)
    try:
        for sidecar in sidecars:
            t_r = read_json(sidecar).get("RepetitionTime")
            if type(t_r) in (int, float) and 0 < t_r < LONGEST_T_R:
                return t_r, sidecar
            if t_r is not None:
                raise ValueError(
                    f"{sidecar} has the RepetitionTime {t_r!r}; it has to be in seconds"
                )
    except FileNotFoundError:
        problems.append(f"{sidecar.name} {NOT_HERE}")
    except (ValueError, OSError) as error:
        problems.append(f"{str(error).rstrip('.')}.")
    else:
        if study.parameters["low_pass"] or study.parameters["high_pass"]:
            names = ", ".join(path.name for path in sidecars)
            lack = f"{names} has none" if sidecars else "there is no sidecar"
            problems.append(f"A filter needs RepetitionTime, and {lack}.")
    return None, None


def why_unfit(study, image, name):
    """Yield why an atlas does not fit an image, as far as their names tell."""
    pattern, own = study.patterns.get(name), study.own.get(name, {}).get(image)
    image_space = entities_of(image).get("space", "")
    space = space_of(own or pattern or file_of(study.atlases[name]))
    if space not in (None, image_space):
        here, there = map(space_in_words, (space, image_space))
        yield f"The atlas {name} is in {here}, but the image in {there}."
    elif pattern and own is None:
        yield f"It has no atlas {pattern}."


def file_of(atlas):
    """Return the file of an atlas, or an empty text if it has none."""
    images = images_of(atlas.masker.get_params(deep=False)).values()
    return next((image for image in images if isinstance(image, str | Path)), "")


def space_of(path):
    """Return the space of an atlas by its name, as TemplateFlow or fMRIPrep give it, or None.

    In fMRIPrep's folders ``anat`` and ``func``, a name without space is in that of the image.
    """
    try:
        entities = entities_of(path)
    except ValueError:
        return None
    spaces = {"anat": "T1w", "func": ""} if "sub" in entities else {}
    return entities.get("space", entities.get("tpl", spaces.get(Path(path).parent.name)))


def space_in_words(space):
    """Return the name of a space, which is empty for that of the scanner."""
    return f"space {space}" if space else "the space of the scanner"


# -- Runs --------------------------------------------------------------------------------------


def make_runs(study, images):
    """Return a `Run` for each of some images, and the atlases of all."""
    atlases = {name: stored(atlas, study.output_dir) for name, atlas in study.atlases.items()}
    own = {name: read_own(name, files.values()) for name, files in study.own.items()}
    for name, read in own.items():
        atlases[name] = union_of([one for one in read.values() if not isinstance(one, Exception)])
    return [with_maskers(study, find_run(study, image), atlases, own) for image in images], atlases


def read_own(name, files):
    """Return subjects' own atlases by their files; in place of one that cannot be read, its error.

    Every part of a study reads all of them, because their regions together are the columns.
    """
    read, list_once = {}, lru_cache(maxsize=None)(tables_in)
    files = sorted({*files} - {None})
    with progress_bar(len(files), "atlas") as progress:
        for file in files:
            try:
                read[file] = read_atlas(name, file, list_once)
            except (ValueError, OSError) as error:
                read[file] = error
            progress.update()
    if all(isinstance(one, Exception) for one in read.values()):
        raise read[file]
    return read


def with_maskers(study, run, atlases, own):
    """Return a run with the maskers of the atlases that fit, and problems of the others."""
    parameters = {"t_r": run.about["RepetitionTime"], "mask_img": run.sources.get("brain_mask")}
    maskers, sources, problems = {}, {**run.sources}, {**run.problems}
    for name in run.files:
        if name in problems:
            continue
        file = study.own[name][run.image] if name in own else None
        atlas = own[name][file] if file else atlases[name]
        if isinstance(atlas, Exception):
            problems[name] = [str(atlas)]
            continue
        maskers[name] = for_study(atlas.masker, **parameters, **study.parameters)
        if file:
            sources[f"atlas-{name}"] = file
    return run._replace(maskers=maskers, sources=sources, problems=problems)


def lookup_tables(atlases):
    """Return tables of the regions' names, as BIDS has them beside labels and maps, by name."""
    texts = {}
    for name, atlas in atlases.items():
        for key in {"labels_img", "maps_img"} & atlas.masker.get_params().keys():
            pairs = zip(atlas.numbers, atlas.regions, strict=True)
            rows = [f"{number}\t{region}" for number, region in pairs]
            texts[f"atlas-{name}_{IMAGES[key]}.tsv"] = "\n".join(["index\tname", *rows])
    return texts
