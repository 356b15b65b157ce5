"""
Many images on Slurm
====================

Most clusters have a queue that hands out the machines, usually Slurm. There are two ways to
submit a study, and both only need one file per image to know what is done. On this page you will

1. compute how much memory and time to request,
2. write a job array: one script, which each of its tasks runs for a part of the images, and
3. let Dask request the workers, and call ``mask_study`` as on one machine.

The build submits nothing. The tests do both on a Slurm cluster of one node and compare the arrays.
"""

# %%
# How much to request
# -------------------
# A job that takes more memory than it requested is killed; one that requests too much waits longer
# in the queue. Memory in use is predicted from an image's header
# (:mod:`beyond_the_masker.budget`: at most). The prediction is for ``stream_masks``, without
# the imports of ``mask_study``. :ref:`sphx_glr_auto_examples_4_many_images_plot_one_machine.py` measured one
# process that does all the work: its memory in use, its resident set (:term:`RSS`), which some
# clusters count and which contains the code of libraries, and the seconds of one image.

import math
import shlex
import signal
from pathlib import Path

from joblib import parallel_config

from beyond_the_masker.budget import predict_peak
from beyond_the_masker.options import read_options
from beyond_the_masker.pages import load_page
from beyond_the_masker.files import moved_into_place
from beyond_the_masker.study import mask_study

IMPORTS_MIB = load_page("plot_dask_cluster").IMPORTS_MIB
from beyond_the_masker.workers import measure_workers, prepare_study

METHOD = "Streaming, masks, one pass"

images, masks = prepare_study()
worker = measure_workers(images, masks)
seconds = worker["seconds"]
all_mib = {
    "memory in use, predicted": predict_peak(METHOD, images[0], masks).most_mib,
    "memory in use, measured": dict(worker["peaks_mib"])[1],
    "resident set, measured": worker["alone_rss_mib"],
}
for what, found_mib in all_mib.items():
    print(f"{what:25}{found_mib:5.0f} MiB")
print(f"{'time of an image':25}{seconds:5.2f} s")


# %%
# We request one and a half times the largest of the three, and three times the time, plus five
# minutes for a node that starts slowly. In your study, use the largest image, not the first.


def to_ask_for(mib, seconds, n_images):
    """Compute what a job should request.

    Parameters
    ----------
    mib : float
        Memory of the largest image.
    seconds : float
        Its time.
    n_images : int
        Images in a job, one after the other.

    Returns
    -------
    mib, minutes : int
    """
    return 50 * math.ceil(1.5 * mib / 50), 5 + math.ceil(3 * n_images * seconds / 60)


n_tasks = 4
most_mib = max(all_mib.values())
mib, minutes = to_ask_for(most_mib, seconds, math.ceil(len(images) / n_tasks))
print(f"a task with {math.ceil(len(images) / n_tasks)} images: {mib} MiB, {minutes} minutes")

# %%
# A job array
# -----------
# Each task of the array runs the same line, with another number: ``--part 2/4`` takes every fourth
# image, from the second on. All tasks write their images' results into one folder. Images and
# masks are in two lists, with a path on each line. Libraries get one thread
# (:ref:`why <sphx_glr_auto_examples_4_many_images_plot_one_machine.py>`).

JOB = """\
#!/bin/bash
#SBATCH --job-name=mask-study
#SBATCH --array=1-{n_tasks}
#SBATCH --cpus-per-task=1
#SBATCH --mem={mib}M
#SBATCH --time={minutes}
#SBATCH --requeue

export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
{python} mask_study.py @images.txt --masks @masks.txt --output series \\
    --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
"""


def job_script(n_tasks, mib, minutes, python="python"):
    """Write a job array for a study.

    Parameters
    ----------
    n_tasks, mib, minutes : int
        Tasks of the array, and what each requests.
    python : str
        The interpreter on the nodes.

    Returns
    -------
    str
        A script for ``sbatch``, to submit in a folder with ``mask_study.py``,
        ``plot_stream_masks.py``, ``images.txt`` and ``masks.txt``.
    """
    numbers = {"n_tasks": n_tasks, "mib": mib, "minutes": minutes}
    return JOB.format(python=shlex.quote(str(python)), **numbers)


job = job_script(n_tasks, mib, minutes)
print(job)
with moved_into_place(Path(read_options().measured) / "mask_study.sbatch") as unfinished:
    unfinished.write_text(job)

# %%
# To download: |download mask_study.sbatch|.
#
# .. include:: /_report/numbers.rst
#
# Save it in the folder of ``mask_study.py`` and ``plot_stream_masks.py``, write the lists, and
# submit it:
#
# .. code-block:: slurm
#
#     ls -d "$PWD"/images/*.nii* > images.txt
#     ls -d "$PWD"/masks/*.nii* > masks.txt
#     sbatch mask_study.sbatch
#
# A task that ran out of memory or time, or whose node was lost, writes no table and no incomplete
# file of results. So there is one more job, which waits for the array: the same command line
# without ``--part``. It skips finished images, does the missing ones, last those that had been
# begun, and writes one table of all images. If an image failed, its exit status is 1.

COLLECT = """\
sbatch --dependency=singleton --job-name=mask-study --mem={mib}M --time={minutes} --wrap \\
    "OMP_NUM_THREADS=1 {python} mask_study.py @images.txt --masks @masks.txt --output series"
"""

_, minutes_for_all = to_ask_for(most_mib, seconds, len(images))
print(COLLECT.format(mib=mib, minutes=minutes_for_all, python="python"))

# %%
# Dask requests the workers
# -------------------------
# dask-jobqueue submits jobs, each of which is a Dask worker, and ends them when the work is done.
# The scheduler is in the calling process, which has to run as long as the study does: in a job
# of its own, or in ``tmux`` on a login node. :ref:`The page on Dask
# <sphx_glr_auto_examples_4_many_images_plot_dask_cluster.py>` explains the rest, including the two changed
# defaults. On Slurm, three things are different:
#
# * **Jobs may wait for hours**, but joblib waits only ten seconds for the first worker. With a
#   single worker, it does all the work in the calling process. So the study waits until two
#   workers are there. Workers that come later get their share.
# * **Workers import** ``mask_study``. Set ``PYTHONPATH`` to the folder of its files before: Slurm
#   passes it on. A worker that cannot import it ends, and the study waits for one that can.
# * **dask-jobqueue changes Ctrl-C** when it is imported. The function below restores it.


def import_jobqueue():
    """Import dask-jobqueue, but keep Ctrl-C: it would end Python silently, and with success."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    import dask_jobqueue

    signal.signal(signal.SIGINT, on_interrupt)
    return dask_jobqueue


LEAVE_MEMORY = "DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON"
PROLOGUE = [f"export {LEAVE_MEMORY}=\"{{'MALLOC_TRIM_THRESHOLD_': None}}\""]


def mask_study_on_slurm(images, masks, output_dir, n_jobs, *, mib, minutes, options=None, **study):
    """Do what `mask_study` does, on workers that are jobs of Slurm.

    Parameters
    ----------
    images, masks, output_dir
        As for `mask_study`.
    n_jobs : int
        Jobs, each of which is a worker with one core: two at least.
    mib, minutes : int
        As for a job without Dask, from `to_ask_for`. The worker's memory limit is `IMPORTS_MIB`
        more, and the job requests twice `IMPORTS_MIB` more.
    options : dict, optional
        For ``dask_jobqueue.SLURMCluster``: ``queue``, ``account``, ``interface`` and others.
    **study
        Options of `mask_study`.

    Returns
    -------
    pandas.DataFrame
        As `mask_study` returns it.

    Raises
    ------
    ValueError, OSError
        As for `mask_study`; or less than two workers are asked for.
    RuntimeError
        ``sbatch`` refused the jobs.
    """
    import dask.config
    from distributed import Client

    if n_jobs < 2:
        raise ValueError(f"n_jobs is {n_jobs}; two workers are needed. One is a job without Dask.")
    asked = {"cores": 1, "processes": 1, "memory": f"{mib + IMPORTS_MIB} MiB"}
    asked |= {"job_mem": f"{mib + 2 * IMPORTS_MIB}M", "walltime": str(minutes)}
    asked |= {"job_script_prologue": PROLOGUE} | (options or {})
    with dask.config.set({"distributed.scheduler.allowed-failures": 10**6}):
        cluster = import_jobqueue().SLURMCluster(**asked)
    with cluster, Client(cluster) as client:
        cluster.scale(jobs=n_jobs)
        client.wait_for_workers(2)
        with parallel_config(backend="dask"):
            return mask_study(images, masks, output_dir, **study)


# %%
# A job holds two processes: the worker, and the nanny that supervises it. Both import Dask, for
# which we allow 128 MiB each, as on the page on Dask. So the worker's memory limit is that much
# above the request computed above, and the job requests that much more than the limit. One such
# job is submitted for each worker:

job = import_jobqueue().slurm.SLURMJob(
    *("tcp://scheduler:8786", "mask-study"),
    **{
        "cores": 1,
        "memory": f"{mib + IMPORTS_MIB} MiB",
        "job_mem": f"{mib + 2 * IMPORTS_MIB}M",
    },
    **{"walltime": str(minutes), "python": "python"},
    job_script_prologue=PROLOGUE,
)
print(job.job_script())

# %%
# If a worker is lost or runs out of time, another worker repeats the image that it was processing.
# If jobs end before the study does, let Dask replace them: use
# ``cluster.adapt(minimum_jobs=2, maximum_jobs=20)`` in place of ``cluster.scale``.
#
# What to conclude
# ----------------
# The job array needs only Slurm, and each of its tasks starts as soon as a node is free: use it if
# you know the whole study in advance. Dask's workers take the next image when they are ready, so
# none is idle while others have much to do; you get one table and one progress bar, and see errors
# at once.
#
# Both write the same files, and each can complete what the other began.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_study_plan.py`: how many tasks and nodes to use.
# * :mod:`beyond_the_masker.budget`: how much memory to request, from an image's header.
