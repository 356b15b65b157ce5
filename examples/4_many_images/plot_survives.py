"""
What a study survives
=====================

A study runs overnight, and in the morning you believe its results. So we break runs on purpose,
start them again, and compare every file and every array with those of an undisturbed run. On this
page you will see

1. what the functions promise, and what they do not,
2. how a campaign of faults breaks them, and
3. what the last one found.
"""

# %%
# What is promised
# ----------------
# Whatever happens to ``stream_masks``, ``stream_masker``, ``mask_blocks`` or a study:
#
# * A file with its final name is complete, and holds the bytes of an undisturbed run.
# * Results that were complete before stay as they are.
# * An error names the file, and the reason. A study goes on with its other images.
# * No array is ever wrong: you get the values of one version of the image, or an error.
# * When you run it again, it ends in the same files as if nothing had happened.
# * After that, no process, no shared memory and no temporary file is left.
# * Nothing hangs.
#
# A study trusts a finished result if its record is intact. With ``verify=True``, or ``--verify`` on
# the command line, it reads them again, and those that are damaged are computed anew.
#
# What is not promised
# --------------------
# * **Files without a checksum.** A flipped bit in a ``.nii.gz`` file raises an error, because gzip
#   stores a checksum. An uncompressed image has none: its values are what the file holds.
# * **An image with another content, but the same size and time.** As for ``make``, it is unchanged,
#   unless that happens while it is read.
# * **A disk that confirms what it has not written**, and network file systems that keep no order.
# * **A kill of everything at once**, with joblib's helper process, which removes what others leave:
#   semaphores and copies of arguments of joblib's workers stay in ``/dev/shm``.
#
# How a trial breaks a run
# ------------------------
# A trial gets a fresh folder with three small images, and a process of its own. A hook counts the
# calls of this process, and of its workers, that open, read, write, flush, rename or link a file.
# Each trial injects one fault, at one of these calls or before the first; a longer campaign covers
# more of the calls. The list names the kinds of fault. ``memory`` also limits a control group, as
# containers and clusters do: Linux then kills a process.

import pandas as pd

from beyond_the_masker.experiments.pages import recorded_folder

table = pd.read_csv(recorded_folder() / "faults.csv", index_col=0)
for name, text in table["what happens"].items():
    print(f"{name:9} {text}")

# %%
# What the last campaign found
# ----------------------------
# The campaign is recorded by hand, like the benchmark. ``not reached`` counts trials that ended
# before their fault could happen, because results of an earlier run were complete, or because
# workers shared their tasks in another way.

import matplotlib.pyplot as plt

from beyond_the_masker.draw.figures import plot_faults

print(f"Recorded on {table.date.iloc[0]}: {table.machine.iloc[0]}.\n")
counts = table[["trials", "survived", "violations", "not reached", "seconds"]]
print(counts.to_string(float_format="{:,.0f}".format))
print(f"\n{counts.trials.sum():,} trials, {counts.violations.sum():,} broken promises.")

plot_faults(table)
plt.show()

# %%
# To download: :download:`faults.csv </recorded/faults.csv>`.
#
# Break it yourself
# -----------------
# ``make faults`` in the repository runs a thousand trials, always the same ones. A broken promise
# prints the line that repeats its trial:
#
# .. code-block:: bash
#
#    make faults
#    make faults FAULTS="--trials 5000 --seed 7 --jobs 8"
#    python -m tests.faults --class=calls --target=mask_study --trials=100
#
# Does the campaign find anything at all? ``tests/test_faults.py`` puts a fault into the functions
# for each class: a file that is renamed before it is on the disk, an error that is swallowed, a
# lock that is never given back, a result that is believed without being read. The campaign finds
# each of them.
#
# What to conclude
# ----------------
# Run a study again after anything that went wrong, and it completes what is missing. Keep images
# compressed, or compare their checksums yourself. Before you publish, run it once with
# ``verify=True``: reading all results takes far less time than making them.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_dask_cluster.py`: what happens when a worker is
#   lost.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_study_plan.py`: the hours that thousands of
#   images take.
