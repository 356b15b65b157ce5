"""
Many images on Slurm
====================

On most clusters a queue hands out the machines, and on most of those it is Slurm. There are two
ways to give it a study, and both need no more than one file per image to know what is done. On
this page you will

1. compute how much memory and time to ask for,
2. write a job array: one script, which each of its tasks runs for a part of the images, and
3. let Dask ask for the workers, and call ``mask_study`` as on one machine.

The build submits nothing. The tests do both, on a Slurm of one node, and compare the arrays.
"""

# %%
# How much to ask for
# -------------------
# A job that takes more memory than it asked for is killed, one that asks for much waits long. What
# one image needs is predicted from its header (:doc:`/auto_examples/memory_budget`: at most, and
# with all that these pages import), and measured.

import math
import shlex
import signal
import tempfile
from pathlib import Path

from joblib import parallel_config

from mask_study import mask_study, moved_into_place
from memory_budget import predict_peak
from options import read_options
from peak_memory import measure
from plot_one_machine import prepare_study

METHOD = "Streaming, masks, one pass"

if __name__ == "__main__":
    images, masks = prepare_study()
    with tempfile.TemporaryDirectory() as folder:
        trace = measure(mask_study, images[:1], masks, folder)
        (row,) = trace.result().itertuples()
    predicted_mib = predict_peak(METHOD, images[0], masks).most_mib
    print(f"one image, predicted  {predicted_mib:5.0f} MiB")
    print(f"one image, measured   {trace.peak_pss_mib:5.0f} MiB, {row.seconds:.2f} s")


# %%
# Asked for are one and a half times the larger of the two, and three times the time, with five
# minutes for a node that starts slowly. The largest image of a study counts, not the first.


def to_ask_for(mib, seconds, n_images):
    """Say what a job should ask for.

    Parameters
    ----------
    mib : float
        What the largest image needs.
    seconds : float
        What it takes.
    n_images : int
        Images in a job, one after the other.

    Returns
    -------
    mib, minutes : int
    """
    return 50 * math.ceil(1.5 * mib / 50), 5 + math.ceil(3 * n_images * seconds / 60)


if __name__ == "__main__":
    n_tasks = 4
    most_mib = max(predicted_mib, trace.peak_pss_mib)
    mib, minutes = to_ask_for(most_mib, row.seconds, math.ceil(len(images) / n_tasks))
    print(f"a task with {math.ceil(len(images) / n_tasks)} images: {mib} MiB, {minutes} minutes")

# %%
# A job array
# -----------
# Each task of the array runs the same line, with another number: ``--part 2/4`` takes every fourth
# image, from the second on. All tasks write into one folder, each its images' results. Images and
# masks stand in two lists, a path on each line. Libraries get one thread, since nothing else would
# tell them (:ref:`why <sphx_glr_auto_examples_plot_one_machine.py>`).

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
        Tasks of the array, and what each asks for.
    python : str
        The interpreter on the nodes.

    Returns
    -------
    str
        What to give to ``sbatch``, in a folder that holds ``mask_study.py``,
        ``plot_stream_masks.py``, ``images.txt`` and ``masks.txt``.
    """
    numbers = {"n_tasks": n_tasks, "mib": mib, "minutes": minutes}
    return JOB.format(python=shlex.quote(str(python)), **numbers)


if __name__ == "__main__":
    job = job_script(n_tasks, mib, minutes)
    print(job)
    with moved_into_place(Path(read_options().measured) / "mask_study.sbatch") as unfinished:
        unfinished.write_text(job)

# %%
# .. measured-download:: mask_study.sbatch
#
# Put it beside ``mask_study.py`` and ``plot_stream_masks.py``, write the lists, and submit it:
#
# .. code-block:: slurm
#
#     ls -d "$PWD"/images/*.nii* > images.txt
#     ls -d "$PWD"/masks/*.nii* > masks.txt
#     sbatch mask_study.sbatch
#
# A task that ran out of memory or of time, or whose node was lost, writes no table, and no file of
# results that is not complete. So there is one more job, which waits for the array: the same
# command line without ``--part``. It skips what is complete, does what is missing, first what had
# not been begun, and writes one table of all images. If an image failed, its exit status is 1.

COLLECT = """\
sbatch --dependency=singleton --job-name=mask-study --mem={mib}M --time={minutes} --wrap \\
    "OMP_NUM_THREADS=1 {python} mask_study.py @images.txt --masks @masks.txt --output series"
"""

if __name__ == "__main__":
    _, minutes_for_all = to_ask_for(most_mib, row.seconds, len(images))
    print(COLLECT.format(mib=mib, minutes=minutes_for_all, python="python"))

# %%
# Dask asks for the workers
# -------------------------
# dask-jobqueue submits jobs, each of which is a Dask worker, and ends them when the work is done.
# The scheduler is in the calling process, which has to run as long as the study does: in a job
# of its own, or in ``tmux`` on a login node. What there is to know about Dask stands on
# :ref:`its page <sphx_glr_auto_examples_plot_dask_cluster.py>`, also why two of its defaults are
# changed here. On Slurm there is more:
#
# * **Jobs may wait for hours**, and joblib would wait ten seconds for the first worker. With one
#   worker alone, it would do all the work in the calling process. So the study begins with the
#   second worker. Those that come later get their share.
# * **Workers import** ``mask_study``. Set ``PYTHONPATH`` to the folder of its files before: Slurm
#   hands it on. A worker that cannot import it ends, and the study waits for one that can.
# * **dask-jobqueue changes Ctrl-C**, as soon as it is imported. That is put right here.


def import_jobqueue():
    """Import dask-jobqueue, which would let Ctrl-C end Python in silence, and with success."""
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
        What each of them asks for.
    options : dict, optional
        For ``dask_jobqueue.SLURMCluster``: ``queue``, ``account``, ``interface`` and others.
    **study
        Options of `mask_study`.

    Returns
    -------
    pandas.DataFrame
        As `mask_study` gives it.

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
    asked = {"cores": 1, "processes": 1, "memory": f"{mib} MiB", "walltime": str(minutes)}
    asked |= {"job_script_prologue": PROLOGUE} | (options or {})
    with dask.config.set({"distributed.scheduler.allowed-failures": 10**6}):
        cluster = import_jobqueue().SLURMCluster(**asked)
    with cluster, Client(cluster) as client:
        cluster.scale(jobs=n_jobs)
        client.wait_for_workers(2)
        with parallel_config(backend="dask"):
            return mask_study(images, masks, output_dir, **study)


# %%
# A worker of Dask's takes memory for itself, and a second process that looks after it. This is the
# job that is submitted, once for each worker:

if __name__ == "__main__":
    job = import_jobqueue().slurm.SLURMJob(
        *("tcp://scheduler:8786", "mask-study"),
        **{"cores": 1, "memory": f"{mib + 300} MiB", "walltime": str(minutes), "python": "python"},
        job_script_prologue=PROLOGUE,
    )
    print(job.job_script())

# %%
# A worker that is lost, or whose time is over, loses the image that it was at, and that is done
# again by another. If workers last shorter than the study, ask for new ones as they end with
# ``cluster.adapt(minimum_jobs=2, maximum_jobs=20)`` in place of ``cluster.scale``.
#
# What to conclude
# ----------------
# The job array needs nothing but Slurm, and each of its tasks starts when there is room: take it
# if the whole study is known. Dask's workers take the next image when they are ready for one, so
# that none is idle while others have much to do; and there is one table, one progress bar, and
# an error that is seen at once.
#
# Both write the same files. What one began, the other can end.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_study_plan.py`: how many tasks and nodes are worth while.
# * :doc:`/auto_examples/memory_budget`: what to ask for, from an image's header.
