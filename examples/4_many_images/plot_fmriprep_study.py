"""
A whole fMRIPrep study
======================

`fMRIPrep <https://fmriprep.org>`_ leaves a folder of :term:`derivatives`: an image for each run,
and tables of the :term:`confounds` to remove. Most analyses of regions begin with the same step:
for each image, a table of cleaned series with one column for each region of an atlas. On this page
you will

1. find out what a folder contains, and how much memory and time the work will take,
2. extract every series with one call or one command, and see which runs could not be used,
3. look at one result, at the study as a whole, and at all series together, and
4. compare time, memory and values with nilearn alone.

For images of other programs there is :func:`~beyond_the_masker.masker_study`.
"""

# %%
# A folder to work on
# -------------------
# The folder of this page is made up: several subjects, most of them with two sessions, and small
# images in which seven networks of regions are active. It has what makes real folders difficult:
# images in several spaces, a wrong repetition time in every header, and runs that cannot be used.

import tempfile
from pathlib import Path

from beyond_the_masker.inputs.synthetic_fmriprep import make_atlas, make_fmriprep

folder = tempfile.TemporaryDirectory()
derivatives = make_fmriprep(Path(folder.name, "fmriprep"))
atlas = make_atlas(folder.name)
for path in sorted(derivatives.glob("sub-03/ses-1/func/*")):
    print(path.name)

# %%
# Ask first
# ---------
# The command has the order of arguments that BIDS Apps have: input, output, level. With
# ``--dry-run`` it reads only names and headers, and prints what it found, what is missing, what a
# worker needs, and a job array for Slurm:

import subprocess
import sys

command = [sys.executable, "-m", "beyond_the_masker", "fmriprep", "fmriprep", "series"]
options = f"participant --atlas Networks={atlas.name} --space MNI152NLin2009cAsym --task rest"
command += [*options.split(), "--strategy", "scrubbing", "--dry-run"]
print(subprocess.check_output(command, cwd=folder.name, text=True).replace(f"{folder.name}/", ""))

# %%
# One call
# --------
# Without ``--dry-run`` it does the work. Here is the same from Python, with two workers, each of
# which takes one image at a time. If you give several atlases, they share one pass over each image.

import pandas as pd
from beyond_the_masker import fmriprep_study

output = Path(folder.name, "series")
study = {"filters": {"space": "MNI152NLin2009cAsym", "task": "rest"}, "strategy": "scrubbing"}
table = fmriprep_study(derivatives, {"Networks": atlas}, output, n_jobs=2, **study)
names = [Path(image).name.partition("_run")[0] for image in table.image]
shown = table[["status", "volumes", "kept", "confounds", "mean_fd", "below_coverage"]]
print(shown.set_index([names]).replace(r":.*", "", regex=True).round(2).to_string())

# %%
# The table is also in ``study.tsv``. ``confounds`` counts columns that were removed, ``mean_fd`` is
# the mean :term:`framewise displacement` of what was kept, and ``below_coverage`` counts (``table``
# also names) regions of which less than half is inside. A failed image does not stop the
# others:

reasons = pd.Series([*table.reason], names)
for name, reason in reasons[reasons != ""].items():
    print(f"{name}\n    {reason}".replace(f"{folder.name}/", ""))

# %%
# After a repair or an interruption, run the same again: it does only what is missing or outdated.
#
# One result
# ----------
# A result's name keeps the entities of its image, adds ``atlas``, and has the strategy as ``desc``.
# The table has a row for each volume that was kept, and a column for each region of the atlas, the
# same for every image; what an image lacks is ``n/a``. The ``.json`` beside it records all that the
# result depends on.

import json
from beyond_the_masker.draw.figures import plot_lanes
from beyond_the_masker.studies.tables import read_table

file = Path(table.file[0])
series, record = read_table(file), json.loads(file.with_suffix(".json").read_text())
print(file.relative_to(output))
print(f"{series.shape[0]} rows, {series.shape[1]} columns of {record['DataType']}")
print(f"record: {', '.join(record)}")
first = {name: series[name].to_numpy() for name in series.columns[:28:7]}
plot_lanes(first, "Four regions of one network", "signal (SD)")

# %%
# Numbers have just enough digits to be restored exactly; ``read_table`` restores them as float32.
# ``pandas.read_csv(file, sep="\t", na_values="n/a")`` reads float64, exactly from pandas 3 on;
# before, it needs ``float_precision="round_trip"``.
#
# The study as a whole
# --------------------
# Which regions are covered in every image, and how many volumes remain after scrubbing? The command
# writes this picture, too, as ``study_atlas-Networks.svg``.

from beyond_the_masker.draw.figures import plot_study

plot_study(table, "Networks")

# %%
# All series together
# -------------------
# These lines read them into one table. Its index has the run and the row, its columns are the
# regions, so pandas can select and group:


def read_study(output_dir, atlas):
    """Return the series of all images as one table, with an index of run and row."""
    files = sorted(output_dir.rglob(f"sub-*_atlas-{atlas}_*_timeseries.tsv"))
    files = [file for file in files if file.with_suffix(".json").exists()]  # it is complete
    names = [file.name.partition("_space")[0] for file in files]
    return pd.concat(map(read_table, files), keys=names, names=["run", "row"])


every_series = read_study(output, "Networks")
print(f"{every_series.index.levshape[0]} runs, {every_series.shape[1]} regions")

# %%
# The mean of all runs' correlations shows the seven networks:

from beyond_the_masker.draw.figures import plot_correlations

correlations = every_series.groupby("run").corr().groupby(level=1, sort=False).mean()
plot_correlations(correlations.to_numpy(), "Mean correlations of all runs")
folder.cleanup()

# %%
# What a worker needs
# -------------------
# The images above are too small to measure. So we take the image of this build, or a made-up one
# if it has less than 100 volumes, as two runs, and compare with nilearn, each in a fresh process:

import numpy as np
from nilearn.interfaces.fmriprep import load_confounds_strategy
from nilearn.maskers import NiftiLabelsMasker

from beyond_the_masker.meter import measure
from beyond_the_masker.experiments.workers import prepare_fmriprep


def with_nilearn(images, atlas, **cleaning):
    """Extract and clean the averages of an atlas' regions with nilearn alone."""
    every_series = []
    for image in images:
        confounds, kept = load_confounds_strategy(str(image), "simple")
        brain = str(image).replace("preproc_bold", "brain_mask")
        masker = NiftiLabelsMasker(atlas, mask_img=brain, reports=False, **cleaning)
        every_series += [masker.fit_transform(image, confounds=confounds, sample_mask=kept)]
    return every_series


with tempfile.TemporaryDirectory() as folder:
    derivatives, atlas = prepare_fmriprep(Path(folder, "fmriprep"), n_images=2)
    images = sorted(derivatives.rglob("*_bold.nii.gz"))
    usual = measure(with_nilearn, images, atlas, detrend=True, standardize="zscore_sample")
    ours = measure(fmriprep_study, derivatives, {"atlas": atlas}, Path(folder, "series"))
    tables = map(read_table, ours.result().file)
    print("equal, bit for bit:", [*map(np.array_equal, tables, usual.result())])
for name, trace in {"nilearn": usual, "fmriprep_study": ours}.items():
    above = trace.peak_mib - usual.before_mib
    print(f"{name:15}{trace.seconds:5.1f} s, peak {above:4.0f} MiB above Python and its imports")

# %%
# What happens to the series
# --------------------------
# ``strategy`` and ``masker`` change any of these defaults:
#
# * **Confounds** of the strategy ``simple`` are removed: 24 parameters of head motion, the signals
#   of white matter and CSF, and cosines for slow drifts.
# * **The unit is standard deviations** (``standardize="zscore_sample"``), because the scanner's
#   unit differs between images, and correlations do not depend on it.
# * **Detrending stays on**, because the cosines contain no straight line.
# * **No smoothing**: an average is smooth already, and a kernel would mix neighbouring regions.
# * **No filter**, since the cosines are one. If you set one, the repetition time comes from the
#   :term:`sidecar`, because headers often have a wrong one. In that case, choose a strategy without
#   scrubbing: nilearn 0.14.1 does not replace every scrubbed volume before it filters.
# * **Only the brain counts**: voxels outside the image's brain mask are left out, and a region
#   with less than half of its volume inside is ``n/a``, not an average of what is left.
#
# What to conclude
# ----------------
# One command turns derivatives into tables with nilearn's values, and a worker needs little more
# memory than its imports. Ask with ``--dry-run``, look at the table and the picture, repair what
# failed, and run the same again. Another atlas leaves the results of the first one as they are.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_slurm.py`: the same as a job array.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_dask_cluster.py`: the same on several machines.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_study_plan.py`: hours for thousands of images.
