"""Plan a study of fMRIPrep's images before it runs: what there is, memory, time, a Slurm script.

Only headers are read, and one of the images for two seconds, to find out how fast it decompresses.
"""

import math
import time
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.image import smooth_img

from beyond_the_masker.extract.streaming import open_series, read_volumes
from beyond_the_masker.predict.budget import request
from beyond_the_masker.predict.headers import read_header
from beyond_the_masker.predict.imports import this_machine
from beyond_the_masker.predict.model import MIB
from beyond_the_masker.studies.atlases import read_atlas
from beyond_the_masker.studies.bids import RANK, entities_of
from beyond_the_masker.studies.fmriprep import find_run, find_study

__all__ = ["Plan", "plan_study"]
CODE_MIB = 60  # of libraries, which RSS counts and memory in use does not
WORK_MIB = 64  # at most, for a block of volumes and its copies; or some volumes, if they are large
N_VOLUMES = 10  # that fitting a masker needs at most
N_COPIES = 7  # of the series, while they are cleaned, completed and written
N_MAPS = 10  # copies of an atlas of maps on the image's grid, for their least squares
TRIAL = 2  # seconds
TASK = 1800  # seconds that a task of an array takes, if there are enough images
MOST_TASKS = 1000  # of an array, by Slurm's default
COLUMNS = ["image", "volumes", "mib", "worker_mib", "missing"]
SHOWN = 12  # labels and problems that are listed; of more, most are counted
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=time-series
#SBATCH --array=1-{n_tasks}
{request}
#SBATCH --requeue
# Add what your cluster asks for, such as a partition, an account, or the lines that activate an
# environment. When the array has ended, run the command without --part: it does what is missing,
# and writes one table.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
{command} \\
    --jobs 1 --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
"""


class Plan(NamedTuple):
    """What a study needs."""

    folder: Path
    table: pd.DataFrame  # a row per image: entities, COLUMNS and seconds
    n_regions: int  # of all atlases

    @property
    def worker_mib(self):
        """The resident set size of a worker at most."""
        return float(self.table.worker_mib.max())

    @property
    def seconds(self):
        """How long one worker takes for all images."""
        return float(self.table.seconds.sum())

    def script(self, command):
        """Return a script of Slurm: an array that does the study, from the command for all."""
        n_images = len(self.table)
        n_tasks = min(n_images, MOST_TASKS, max(math.ceil(self.seconds / TASK), 1))
        seconds = math.ceil(n_images / n_tasks) * self.table.seconds.max()
        lines = request(self.worker_mib, seconds)
        return SCRIPT.format(n_tasks=n_tasks, request=lines, command=command)


def plan_study(
    fmriprep_dir,
    atlases,
    output_dir,
    *,
    filters=None,
    participants=None,
    strategy="simple",
    masker=None,
    brain_mask=True,
):
    """Plan what `fmriprep_study` would do with the same arguments; write nothing.

    Returns
    -------
    Plan
        Its ``table`` has a row per image, also for one that will fail: ``missing`` says why. The
        time is that of decompression, and of smoothing: a lower bound.
    """
    how = filters, participants, strategy, masker, brain_mask
    study = find_study(fmriprep_dir, atlases, output_dir, *how)
    found = [find_run(study, image) for image in study.images]
    counts = count_regions(study)
    imports_mib = this_machine()["nilearn"] + CODE_MIB
    table = pd.DataFrame([row_of(run, counts, imports_mib) for run in found])
    keys = {key for image in study.images for key in entities_of(image)}
    table = table[[*sorted(keys, key=lambda key: RANK.get(key, 98)), *COLUMNS]]
    images = table.image[table.mib > 0]
    table["seconds"] = table.mib * time_of_a_mib(images, study.parameters["smoothing_fwhm"])
    return Plan(study.folder, table, counts[0])


def row_of(run, counts, imports_mib):
    """Return a row of the plan's table, from the header of an image."""
    problems, volumes, mib, worker_mib = [*dict.fromkeys(chain(*run.problems.values()))], 0, 0, 0
    try:
        header = read_header(run.image)
        volumes = header.shape[3]
        mib = math.prod(header.shape) * np.dtype(header.dtype).itemsize / MIB
        worker_mib = imports_mib + memory_of(header, mib, *counts)
    except (OSError, ValueError) as error:
        if run.image.exists():  # else it is among the problems
            problems.append(str(error))
    values = str(run.image), volumes, mib, worker_mib, " ".join(problems)
    return entities_of(run.image) | dict(zip(COLUMNS, values, strict=True))


def memory_of(header, mib, n_regions, n_maps):
    """Return the MiB that an image takes at most in a worker, in addition to the imports."""
    *grid, n_volumes = header.shape
    series_mib = n_volumes * n_regions * (4 if header.dtype == "float32" else 8) / MIB
    maps_mib = math.prod(grid) * n_maps * 4 / MIB
    work_mib = max(N_VOLUMES * mib / n_volumes, WORK_MIB)
    return work_mib + N_COPIES * series_mib + N_MAPS * maps_mib


def time_of_a_mib(images, smoothing_fwhm):
    """Return the seconds that a MiB of an image in memory takes, by the first that can be read."""
    for image in images:
        with suppress(OSError, ValueError):
            return MIB * time_of_a_byte(open_series(image), smoothing_fwhm)
    return 0.0


def time_of_a_byte(fmri, smoothing_fwhm):
    """Return the seconds that a byte of an image in memory takes; read two seconds at most."""
    n_bytes, start = 0, time.perf_counter()
    with closing(read_volumes(fmri)) as volumes:
        for _, volume in volumes:
            n_bytes += volume.nbytes
            if time.perf_counter() > start + TRIAL:
                break
    seconds = (time.perf_counter() - start) / n_bytes
    if smoothing_fwhm is not None:
        data = volume.astype("float32").reshape(fmri.shape[:3], order="F")
        start = time.perf_counter()
        smooth_img(nib.Nifti1Image(data, fmri.affine), smoothing_fwhm)
        seconds += (time.perf_counter() - start) / volume.nbytes
    return seconds


def count_regions(study):
    """Return the number of regions of all atlases, and of those that are maps.

    Of an atlas of each subject, the first one counts.
    """
    atlases = [*study.atlases.values()]
    for name, files in study.own.items():
        path = next(path for path in files.values() if path)
        atlases.append(read_atlas(name, path))
    maps = [atlas for atlas in atlases if hasattr(atlas.masker, "maps_img")]
    return tuple(sum(len(atlas.regions) for atlas in each) for each in (atlases, maps))


# -- In words ----------------------------------------------------------------------------------


def describe(plan, command, n_jobs=None):
    """Return in words what a study consists of and needs, and a script for Slurm."""
    table, n_jobs = plan.table, n_jobs or 1
    keys = [key for key in table.columns[: table.columns.get_loc("image")] if key != "desc"]
    lines = [f"{count(len(table), 'image')} of {plan.folder}"]
    lines += [f"  {key:6}{counts_of(table[key].fillna('none'))}" for key in keys]
    lines += ["", *describe_missing(table[table.missing != ""], plan.folder), ""]
    if not table.volumes.any():
        return "\n".join([*lines, "No image can be read."])
    lines += [
        f"{plan.n_regions:,} regions; up to {table.volumes.max():,} volumes and "
        f"{table.mib.max():,.1f} MiB in memory for an image",
        f"memory of a worker: {plan.worker_mib:,.0f} MiB",
        f"time with {count(n_jobs, 'worker')}: at least {in_units(plan.seconds / n_jobs)}",
        "",
        "A job array of Slurm that does it:",
        "",
        plan.script(command),
    ]
    return "\n".join(lines)


def count(number, what):
    """Return a number with a noun."""
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def counts_of(labels):
    """Return in words how many images have each label; of many labels, which are not as usual."""
    counts = labels.value_counts(sort=False).sort_index()
    if len(counts) > SHOWN:
        usual = counts.mode()[0]
        text, counts = f"{len(counts):,} labels, {usual} each", counts[counts != usual]
        if len(counts) == 0:
            return text
        more = f", {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
        return f"{text}, except {list_counts(counts[:SHOWN])}{more}"
    return list_counts(counts)


def list_counts(counts):
    """Return labels with their counts."""
    return ", ".join(f"{label}: {number}" for label, number in counts.items())


def describe_missing(table, folder):
    """Return in lines what images lack; the study goes on without them."""
    if not len(table):
        return ["Nothing is missing."]
    lines = [f"{count(len(table), 'image')} with problems:"]
    problems = table.groupby("missing", sort=False).image
    for problem, images in list(problems)[:SHOWN]:
        first = Path(images.iloc[0]).relative_to(folder)
        more = f" and {len(images) - 1:,} more" if len(images) > 1 else ""
        lines += [f"  {problem}", f"    {first}{more}"]
    return lines + (["  and others"] if len(problems) > SHOWN else [])


def in_units(seconds):
    """Return seconds as a text, in hours or minutes if they are many."""
    if seconds > 5400:
        return f"{seconds / 3600:,.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.1f} s"
