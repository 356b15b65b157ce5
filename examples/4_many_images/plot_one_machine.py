"""
Many images on one machine
==========================

One image needs no worker: its file is decompressed from beginning to end, which cannot be
parallelised. A study has hundreds of images, and they can be decompressed at the same time, one
per :term:`worker`. On this page you will mask a study with one call,
:func:`beyond_the_masker.mask_study`, measure how much faster several workers are and
how much memory they need, and see what limits them.

:ref:`Install the package <install>` to use the function in your own code.
"""

# %%
# Mask a study
# ------------
# Eight images serve as a study. Each is a link to the image of this build, or to its first volumes
# if it is large; the masks are those of the other pages.

import tempfile

from beyond_the_masker import mask_study
from beyond_the_masker.experiments.workers import prepare_study

images, masks = prepare_study()
folder = tempfile.TemporaryDirectory()
table = mask_study(images, masks, folder.name, n_jobs=2)

# %%
# The table has a row per image; it is also written to ``study.tsv`` in the folder of results.
# ``peak_rss_mib`` is the worker's largest resident set (:term:`RSS`), which includes the code of
# libraries, so it is larger where a process imports more, as on the page on Dask. The seconds
# differ between these pages, too: a new process takes longer for its first image, and workers that
# run at the same time can slow each other down. On a terminal, a progress bar counts the images and
# the failures.

print(table[["status", "volumes", "seconds", "peak_rss_mib", "pid"]].round(2).to_string())

# %%
# Each image has a file of results, which appears when it is complete. It has an array for each
# mask, with the voxels in NiftiMasker's order:

import matplotlib.pyplot as plt
import numpy as np

from beyond_the_masker.draw.figures import plot_series

with np.load(table.file[0]) as results:
    *names, _ = results.files
    every_series = {name: results[name] for name in names}
for name, series in every_series.items():
    print(name, series.shape, series.dtype)

means = {name: series.mean(axis=1) for name, series in list(every_series.items())[:3]}
plot_series(means, "Time series of the first image", "mean (arbitrary units)")
plt.show()

# %%
# The last entry records the image and the masks. So the same call only does what is missing, here
# nothing. (It reads only these records; with ``verify=True`` it also reads the arrays, and replaces
# files that are damaged.)

print(mask_study(images, masks, folder.name, n_jobs=2).status.value_counts().to_dict())
folder.cleanup()

# %%
# Your own study may differ from this one:
#
# * **An atlas in one image**: give the path of a label image in place of the list of masks. Its
#   regions take their names from the table beside it, if there is one.
# * **One file per volume, or per run**: an image can be a pattern, such as ``"sub-01/vol_*.nii"``,
#   whose files follow each other in the order of their numbers. If these files have the same names
#   in every folder, set ``relative_to`` to a folder above all.
# * **Images on another grid than the masks**: ``resample=True`` brings the masks to the grid of
#   each image. The column ``incomplete`` then lists regions that are partly outside it.
#
# :func:`~beyond_the_masker.mask_study` describes all of its arguments and columns.

# %%
# The gain and the cost of workers
# --------------------------------
# Time is compared in pairs: the calling process alone, then several workers. The workers are
# started beforehand, since a long study starts them only once. Memory is :term:`memory in use` by
# all processes together.

import os
import statistics

from beyond_the_masker.draw.figures import plot_workers
from beyond_the_masker.experiments.workers import measure_workers, speed_up

n_pairs = int(np.clip(20 / table.seconds.sum(), 1, 2))
speed = {2: speed_up(images, masks, 2, n_pairs), 4: speed_up(images, masks, 4, 1)}
worker = measure_workers(images, masks)
peaks = dict(worker["peaks_mib"])
plot_workers(speed, peaks)
plt.show()

# %%
# "1" is the calling process, which masks the images itself. With workers it only waits for them,
# and joblib starts a few helpers as well. Workers on one core take turns, so with more workers than
# cores a difference is mostly chance. The speed is also lower if the cores have other work, or are
# the two threads of one physical core.

print(f"This machine has {os.cpu_count()} cores.")
for n, ratios in speed.items():
    print(f"{n} workers: {statistics.median(ratios):.2f} times as fast as one process")
print(f"A worker has {worker['worker_mib']:.0f} MiB in use at its peak, ", end="")
print(f"{worker['imports_mib']:.0f} of them imports.")
print(f"joblib's helpers have {worker['helpers_mib']:.0f} MiB together, ", end="")
print(f"and the calling process has {worker['caller_mib']:.0f}.")

# %%
# What limits the workers
# -----------------------
# **The storage.** How much of a compressed file does a worker read in a second, and how much does
# the storage deliver, if the file is not in the system's cache?

from beyond_the_masker.experiments.workers import storage_rate

print(f"a worker reads         {worker['mib_s']:7,.0f} MiB/s of the compressed file")
if hasattr(os, "posix_fadvise"):  # not on macOS
    rate = statistics.median(storage_rate(images[0]) for _ in range(3))
    print(f"the storage delivers   {rate:7,.0f} MiB/s, ", end="")
    print(f"enough for {rate / worker['mib_s']:,.1f} workers")

# %%
# **Threads inside the workers.** NumPy's library for linear algebra (BLAS), which cleaning and
# decompositions use, starts as many threads as there are cores, in each worker, and all these
# threads wait for each other. joblib `gives its workers their share
# <https://joblib.readthedocs.io/en/stable/parallel.html#avoiding-over-subscription-of-cpu-resources>`_
# of the cores, and Dask gives them one thread. In a job array, set the variables before Python
# starts:
#
# .. code-block:: bash
#
#     export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
#
# Averages and confounds
# ----------------------
# ``mask_study`` extracts voxels. For the averages of an atlas' regions, cleaned or not, there are
# two functions with the same workers and the same table:
#
# * :func:`~beyond_the_masker.fmriprep_study` for a folder that fMRIPrep wrote: it finds images and
#   confounds itself (:ref:`its page
#   <sphx_glr_auto_examples_4_many_images_plot_fmriprep_study.py>`).
# * :func:`~beyond_the_masker.masker_study` for all other images: give it a list of them, maskers or
#   atlases, and your own confounds.
#
# What to conclude
# ----------------
# Use at most as many workers as cores, and no more than the storage can supply. Memory is rarely
# the limit: a worker needs its imports, one block of volumes and one image's results. From the
# command line:
#
# .. code-block:: bash
#
#     python -m beyond_the_masker study image*.nii.gz --masks masks/*.nii.gz \
#         --output series --jobs 2
#
# If it was interrupted, or if images failed, run the same command again: it only does what is
# missing.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_fmriprep_study.py`: averages and confounds.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_dask_cluster.py`: several machines.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_slurm.py`: a cluster with a queue.
