"""
Many images on Slurm
====================

Most clusters have a queue that hands out the machines, usually Slurm. On this page you will mask
one image to find out how much memory and time to request, and then submit a study in either of two
ways: as a job array, one script that each task runs for a part of the images, or from Python, with
workers that Dask requests. Both write the same files as one machine does. This page submits
nothing; the tests do both on a Slurm cluster of one node, and compare the arrays.
"""

# %%
# Mask one image first
# --------------------
# Slurm kills a job that takes more memory than it requested, and a job that requests too much waits
# longer. So mask your largest image first, on a compute node, and read its row of the table. This
# image is then finished, and the study skips it. :ref:`Install the package <install>` where the
# nodes find it, write two lists, with a path on each line, and run:
#
# .. code-block:: bash
#
#     ls -d "$PWD"/images/*.nii* > images.txt  # or "$PWD"/sub-*/func/*_bold.nii.gz
#     ls -d "$PWD"/masks/*.nii* > masks.txt
#     srun python -m beyond_the_masker study LARGEST_IMAGE --masks @masks.txt --output series
#
# If images in different folders have the same name, add ``--relative-to`` with a folder above them
# to this and all later commands. Here is the same, without ``srun``, for the image of this build:

import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from beyond_the_masker.workers import prepare_study

images, masks = prepare_study()
with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "beyond_the_masker", "study"]
    options = ["--masks", *masks, "--output", folder]
    subprocess.run([*command, images[0], *options], check=True, stdout=subprocess.DEVNULL)
    row = pd.read_csv(Path(folder, "study.tsv"), sep="\t").iloc[0]
print(f"{row.peak_rss_mib:.0f} MiB, {row.seconds:.2f} s")

# %%
# ``peak_rss_mib`` is the largest resident set (:term:`RSS`) while the image is masked, and RSS is
# what most clusters count. We request one and a half times this memory, which leaves room for what
# the command imports at the end, to write the table, and three times this time plus five minutes,
# for a node that starts slowly.
#
# If you cannot run it yet, :mod:`beyond_the_masker.budget` predicts from the image's header the
# memory of a script that calls ``stream_masks``. The command ``study`` imports more, and RSS
# includes the code of libraries, so allow 60 MiB more.

import math


def to_request(row, n_images):
    """Return the memory in MiB and the minutes to request for a job that masks some images."""
    mib = 50 * math.ceil(1.5 * row.peak_rss_mib / 50)
    return mib, 5 + math.ceil(3 * n_images * row.seconds / 60)


n_tasks = 4
mib, minutes = to_request(row, math.ceil(len(images) / n_tasks))
print(f"a job with {math.ceil(len(images) / n_tasks)} images: {mib} MiB, {minutes} minutes")

# %%
# A job array
# -----------
# Each task of the array runs the same lines, with another number: ``--part 2/4`` takes every fourth
# image, from the second on. All tasks write to one folder. Libraries get one thread
# (:ref:`why <sphx_glr_auto_examples_4_many_images_plot_one_machine.py>`).
# :download:`mask_study.sbatch </../examples/4_many_images/mask_study.sbatch>`:
#
# .. literalinclude:: /../examples/4_many_images/mask_study.sbatch
#    :language: slurm
#
# A task that ran out of memory or time, or whose node failed, writes no table and no incomplete
# results. So we submit a second job, which waits for the array: the same command without
# ``--part``. It skips finished images, masks the missing ones (those already begun come last), and
# writes one table. The command exits with status 1 if any image failed. In the folder of the lists,
# run:

SUBMIT = """\
sbatch --array=1-{n_tasks} --mem={mib}M --time={minutes} \\
    mask_study.sbatch
sbatch --dependency=singleton --job-name=mask-study \\
    --mem={mib}M --time={minutes_for_all} --wrap \\
    "OMP_NUM_THREADS=1 python -m beyond_the_masker study \\
    @images.txt --masks @masks.txt --output series"
"""


def submit_commands(row, n_images, n_tasks):
    """Return the commands that submit a study, with requests from the row of its largest image."""
    mib, minutes = to_request(row, math.ceil(n_images / n_tasks))
    _, minutes_for_all = to_request(row, n_images)
    return SUBMIT.format(n_tasks=n_tasks, mib=mib, minutes=minutes, minutes_for_all=minutes_for_all)


print(submit_commands(row, len(images), n_tasks))

# %%
# Dask requests the workers
# -------------------------
# dask-jobqueue submits jobs, each of which is a Dask worker, and ends them when the work is done.
# The scheduler is in the calling process, which must run as long as the study does: in a job of its
# own, or in ``tmux`` on a login node. :ref:`The page on Dask
# <sphx_glr_auto_examples_4_many_images_plot_dask_cluster.py>` explains how a study runs on it, and
# the two settings that we change. On Slurm, three things are different:
#
# * **Jobs may wait for hours**, so we wait for two workers. Those that come later get their share.
# * **A job has two processes**: the worker, and the nanny that supervises it. Both import Dask, for
#   which we allow 128 MiB each.
# * **dask-jobqueue changes Ctrl-C** when it is imported: it would end Python silently, and
#   report success. We restore it.

import signal

from beyond_the_masker import mask_study

DASK_MIB = 128
PROLOGUE = """\
export DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON="{'MALLOC_TRIM_THRESHOLD_': None}"
"""


def import_jobqueue():
    """Import dask-jobqueue, and keep Ctrl-C."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    import dask_jobqueue

    signal.signal(signal.SIGINT, on_interrupt)
    return dask_jobqueue


def worker_options(mib, minutes):
    """Return the options of a job that is a worker, from those of a job without Dask."""
    return {
        "cores": 1,
        "processes": 1,
        "memory": f"{mib + DASK_MIB} MiB",  # the worker's limit
        "job_mem": f"{mib + 2 * DASK_MIB}M",
        "walltime": str(minutes),
        "job_script_prologue": [PROLOGUE.strip()],
    }


def mask_study_on_slurm(images, masks, output_dir, n_jobs, *, mib, minutes, options=None, **study):
    """Mask a study on workers that are jobs of Slurm; return the table of `mask_study`.

    Each of the `n_jobs` jobs is a worker with one core, which requests what `to_request` returns.
    The `options` are those of ``SLURMCluster``: ``queue``, ``account``, ``interface`` and others.
    """
    import dask.config
    from distributed import Client
    from joblib import parallel_config

    if n_jobs < 2:
        raise ValueError(f"n_jobs is {n_jobs}; two workers are needed. One is a job without Dask.")
    with dask.config.set({"distributed.scheduler.allowed-failures": 10**6}):
        cluster = import_jobqueue().SLURMCluster(**worker_options(mib, minutes), **(options or {}))
    with cluster, Client(cluster) as client:
        cluster.scale(jobs=n_jobs)
        client.wait_for_workers(2)
        with parallel_config(backend="dask"):
            return mask_study(images, masks, output_dir, **study)


# %%
# One such job is submitted for each worker:

options = worker_options(mib, minutes) | {"python": "python"}
job = import_jobqueue().slurm.SLURMJob("tcp://scheduler:8786", "mask-study", **options)
print(job.job_script())

# %%
# If a worker is lost or runs out of time, another worker repeats its image. If jobs end before the
# study does, let Dask replace them: use ``cluster.adapt(minimum_jobs=2, maximum_jobs=20)`` in place
# of ``cluster.scale``.
#
# What to conclude
# ----------------
# The job array needs only Slurm, and each task starts as soon as a node is free: use it if you know
# the whole study in advance. With Dask, workers take the next image when they are ready, so that
# none is idle while others have much to do, and you see progress and errors at once. Both write the
# same files, and each can complete what the other began. Both extract voxels: averages and
# confounds need :ref:`a few lines of your own <study_of_averages>` in each task.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_study_plan.py`: how many tasks and nodes to use.
# * :mod:`beyond_the_masker.budget`: how much memory to request, from an image's header.
