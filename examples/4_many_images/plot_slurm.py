"""
Many images on Slurm
====================

Most clusters have a queue that hands out the machines, usually Slurm. On this page you will find
out from the headers of your images how much memory and time to request, and then submit a study in
either of two ways: as a job array, one script that each task runs for a part of the images, or from
Python, with workers that Dask requests. Both write the same files as one machine does. This page
submits nothing; the tests do both on a Slurm cluster of one node, and compare the results.
"""

# %%
# Memory and time, from the headers
# ---------------------------------
# Slurm kills a job that takes more memory than it requested, and a job that requests too much waits
# longer. For :ref:`a folder of fMRIPrep
# <sphx_glr_auto_examples_4_many_images_plot_fmriprep_study.py>` the command predicts both. It reads
# all headers, and one image for two seconds, to find out how fast it decompresses. So run it on a
# compute node, where :ref:`the package is installed <install>`:
#
# .. code-block:: bash
#
#     srun python -m beyond_the_masker fmriprep derivatives/fmriprep series participant \
#         --atlas Schaefer400=atlas_dseg.nii.gz --space MNI152NLin2009cAsym --task rest \
#         --dry-run | tee printed.txt
#
# Here is the same, without ``srun``, for a folder of links to the image of this build (or to a
# made-up one, if it has less than 100 volumes):

import subprocess
import sys
import tempfile
from pathlib import Path

from beyond_the_masker.experiments.workers import prepare_fmriprep

folder = tempfile.TemporaryDirectory()
_, atlas = prepare_fmriprep(Path(folder.name, "fmriprep"), n_images=40)
command = "-m beyond_the_masker fmriprep fmriprep series participant --atlas atlas=atlas.nii.gz"
Path(folder.name, "atlas.nii.gz").symlink_to(atlas.absolute())
asked = [sys.executable, *command.split(), "--dry-run"]
printed = subprocess.check_output(asked, cwd=folder.name, text=True)
print(printed.replace(f"{folder.name}/", ""))
folder.cleanup()

# %%
# The memory is one and a half times the predicted peak of a worker, in :term:`RSS`, which most
# clusters count. The time is three times that of decompression, and five minutes more, for a node
# that starts slowly. A task gets enough images for half an hour. Once some images are done, the
# columns ``peak_rss_mib`` and ``seconds`` of the table have what they really took.
#
# A job array
# -----------
# The script is the end of what was printed. Each task runs the same lines, with another number:
# ``--part 2/4`` takes every fourth image, from the second on. All tasks write to one folder.
# Libraries get one thread (:ref:`why
# <sphx_glr_auto_examples_4_many_images_plot_one_machine.py>`). Take it out, add what your cluster
# asks for, such as an account, and submit it:

SUBMIT = """\
sed -n '/^#!/,$p' printed.txt > series.sbatch
sbatch series.sbatch
sbatch --dependency=singleton --array=1 series.sbatch
"""
print(SUBMIT)

# %%
# A task that ran out of memory or time, or whose node failed, writes no table and no incomplete
# results. So the last line submits the script once more, as an array of one task, which waits until
# all jobs of this name have ended. As part 1 of 1 it skips what is finished, does what is missing
# (images that were already begun come last), and writes one table, ``study.tsv``. Its job fails if
# any image failed.
#
# The same script runs ``beyond-the-masker study``, for voxels: replace the command in it.
#
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

import contextlib
import signal

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


@contextlib.contextmanager
def workers_on_slurm(n_jobs, *, mib, minutes, options=None):
    """Let joblib use workers that are jobs of Slurm, with one core each, in a ``with`` block.

    `mib` and `minutes` are those of a job without Dask. The `options` are those of
    ``SLURMCluster``: ``queue``, ``account``, ``interface`` and others.
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
            yield


# %%
# In such a block, any of the functions for studies runs on the cluster:
#
# .. code-block:: python
#
#     with workers_on_slurm(20, mib=mib, minutes=minutes):
#         fmriprep_study("derivatives/fmriprep", {"Schaefer400": "atlas_dseg.nii.gz"}, "series")
#
# Memory and minutes are those of the script above. One such job is submitted for each worker:

import re

mib, minutes = (int(re.search(rf"--{option}=(\d+)", printed)[1]) for option in ("mem", "time"))
options = worker_options(mib, minutes) | {"python": "python"}
job = import_jobqueue().slurm.SLURMJob("tcp://scheduler:8786", "series", **options)
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
# same files, and each can complete what the other began.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_study_plan.py`: how many tasks and nodes to use.
# * :mod:`beyond_the_masker.predict.budget`: how much memory a script of your own needs.
