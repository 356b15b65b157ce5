"""
Ten subjects, twenty regions: published and measured
====================================================

A figure in a draft chapter for nilearn's user guide shows a peak of about 110 GB, for ten subjects
in one image, twenty regions and twenty workers. On this page you will compare the published numbers
with measurements on a machine of known size, with the model's predictions, and with what
:term:`streaming` needs for the same result.
"""

# %%
# What was published
# ------------------
# The numbers were read off that figure, which is from 2025 and shows the memory of a script over
# time. (`#5113 <https://github.com/nilearn/nilearn/pull/5113>`_, the source of nilearn's example,
# also has a figure for ten images and twenty regions.) They are approximate sums of :term:`RSS`.
# The script uses the methods of this site, with three important differences: the calling process
# holds the image in memory all the time, even while workers read it from a path; the workers of one
# method are still alive while the next one runs; and the array over shared memory is passed to
# joblib, which copies it. The figure does not show how much of a peak each of these explains. It is
# labelled in GB (110 GB are 102 GiB); from here on, all peaks are in GiB.

# %%
# Predicted and measured
# ----------------------
# ``make record`` in the repository runs the experiment at this scale. A method that might not fit
# into the machine's memory does not run, so a machine with 64 GiB or more is best. Memory in use is
# both predicted and measured. Sums of RSS are only measured: compare them with the published
# numbers, not with the prediction, because they count shared memory once for each process.

import matplotlib.pyplot as plt

from beyond_the_masker.experiments.comparison import read_scale, table_of_scale
from beyond_the_masker.experiments.pages import recorded_folder
from beyond_the_masker.experiments.prediction_figures import plot_scale

recorded = recorded_folder() / "published_scale"
table, about = read_scale(recorded) if (recorded / "summary.csv").exists() else ([], {})
if table:
    print(table_of_scale(table, about))
    plot_scale(table)
    plt.show()
else:
    print("Nothing was recorded in doc/recorded: run 'make record'.")

# %%
# To download: :download:`summary.csv </recorded/published_scale/summary.csv>`,
# :download:`experiment.json </recorded/published_scale/experiment.json>`.
#
# What to conclude
# ----------------
# A worker of NiftiMasker that reads from a path holds two copies of the image at its peak, so
# twenty workers can hold forty. How many of them reach their peak at the same moment is chance, so
# the prediction for workers with copies of their own is a likely peak, not a certain one. The
# published peaks cannot be compared more closely with those of this site, because they are sums of
# RSS and include what earlier methods left behind. But you do not need a larger machine: shared
# memory holds one copy of the image for all workers, and one pass over the file needs no copy at
# all.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: one pass, as a function to copy.
# * :mod:`beyond_the_masker.predict.budget`: whether your own image fits, before anything is loaded.
