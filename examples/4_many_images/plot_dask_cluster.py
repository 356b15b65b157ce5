"""
Many images on a Dask cluster
=============================

When one machine takes too long, use several: a `Dask
<https://docs.dask.org/en/stable/deploying.html>`_ scheduler hands the images to its workers,
wherever they run. Your call does not change. On this page you will start a scheduler and workers,
with the memory that they need, extract the series of :ref:`a folder of fMRIPrep
<sphx_glr_auto_examples_4_many_images_plot_fmriprep_study.py>` on them, kill a worker in the middle
of an image, and see another worker repeat that image. Here all processes run on one machine. On a
cluster you start them with the same commands.
"""

# %%
# How much memory a worker needs
# ------------------------------
# A worker does one image at a time: it needs a block of volumes, the series of that image, and its
# imports. The plan that ``--dry-run`` prints predicts this from the headers, and we allow 128 MiB
# more for Dask (measured below). Dask gives no image to a worker whose resident set (:term:`RSS`)
# is above 80% of its limit, so we divide by 0.8. With a lower limit, the workers would wait
# forever, without an error. The images of the folder are links to that of this build, or to a
# made-up one if it has less than 100 volumes.

import tempfile
from pathlib import Path

from beyond_the_masker.studies.fmriprep_plan import plan_study
from beyond_the_masker.experiments.workers import prepare_fmriprep

n_images = 12
folder = tempfile.TemporaryDirectory()
derivatives, atlas = prepare_fmriprep(Path(folder.name, "fmriprep"), n_images)
atlases = {"atlas": atlas}
alone, together = Path(folder.name, "alone"), Path(folder.name, "together")
worker_mib = plan_study(derivatives, atlases, alone).worker_mib
limit_mib = (worker_mib + 128) / 0.8
print(f"a worker              {worker_mib:4.0f} MiB")
print(f"its limit with Dask   {limit_mib:4.0f} MiB")

# %%
# Start the cluster
# -----------------
# Two commands start it: ``dask scheduler`` on one machine, ``dask worker`` on each. We change two
# of Dask's defaults, with environment variables:
#
# * **The scheduler never gives up a task.** By default it does so after four workers that held
#   the task have died, even if it was only waiting, and with joblib 1.6 the call would then never
#   end. A study counts instead, because it knows which image was begun.
# * **Workers keep freed memory for the next volume**, instead of returning it at once:
#   getting it back from the system can take as long as decompressing the volume.

import os
import subprocess
import sys
import time

from distributed import Client

scheduler_file, log = Path(folder.name, "scheduler.json"), Path(folder.name, "log.txt")
environ = os.environ | {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1000000",
    "DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON": "{'MALLOC_TRIM_THRESHOLD_': None}",
    "DASK_TEMPORARY_DIRECTORY": folder.name,
    "PYTHONPATH": os.pathsep.join(sys.path),
}


def start_dask(*arguments):
    """Run ``dask`` with some arguments in the background."""
    command = [sys.executable, "-m", "dask", *arguments, f"--scheduler-file={scheduler_file}"]
    with open(log, "a") as file:
        return subprocess.Popen(command, env=environ, stderr=file)


local = ["--host=127.0.0.1", "--dashboard-address=127.0.0.1:0"]
limits = ["--nworkers=2", "--nthreads=1", f"--memory-limit={limit_mib:.0f}MiB"]
scheduler = start_dask("scheduler", *local, "--port=0", "--idle-timeout=600")
workers = start_dask("worker", *local, *limits, "--death-timeout=60")
deadline = time.monotonic() + 120
while not scheduler_file.exists():  # the client itself would wait forever
    if scheduler.poll() is not None or time.monotonic() > deadline:
        raise RuntimeError(f"Dask did not start: {log.read_text()}")
    time.sleep(0.1)
client = Client(scheduler_file=str(scheduler_file))
client.wait_for_workers(2, timeout=300)
print(f"The dashboard is at {client.dashboard_link}")

# %%
# The same call
# -------------
# We do the work first without the cluster, then on it, with ``backend="dask"``. The number of
# workers is that of the cluster. ``mask_study`` and ``masker_study`` run on it in the same way.

import filecmp

from joblib import parallel_config

from beyond_the_masker import fmriprep_study
from beyond_the_masker.studies.tasks import peak_rss_mib

fmriprep_study(derivatives, atlases, alone)

imports_mib = client.run(peak_rss_mib)  # in each worker
with parallel_config(backend="dask"):
    table = fmriprep_study(derivatives, atlases, together)

names = [str(path.relative_to(alone)) for path in alone.rglob("sub-*_timeseries.*")]
same, *_ = filecmp.cmpfiles(alone, together, names, shallow=False)
print(f"{len(same)} of {len(names)} files are the same, byte for byte")

# %%
# Each row of the table has the worker that did the image, and its largest resident set, which Dask
# compares with the limit:

print(f"imports        {max(imports_mib.values()):4.0f} MiB")
for pid, rows in table.groupby("pid"):
    print(f"worker {pid:<8}{rows.peak_rss_mib.max():4.0f} MiB at most, {len(rows)} images")
print(f"limit          {limit_mib:4.0f} MiB")

# %%
# Neither images nor results travel over the network. A task consists of the paths of files and the
# parameters of the masker. A row of the table comes back.
#
# A worker is lost
# ----------------
# Nodes fail, and jobs reach their time limit. Here we do the study once more, and kill a worker in
# the middle of an image, when a quarter of the images is done.

from concurrent.futures import ThreadPoolExecutor

from beyond_the_masker.experiments.workers import lose_a_worker

series = Path(folder.name, "series")
pid = min(client.run(os.getpid).values())
with ThreadPoolExecutor(1) as pool, parallel_config(backend="dask"):
    future = pool.submit(lose_a_worker, pid, series, n_images // 4)
    table = fmriprep_study(derivatives, atlases, series)
lost = future.result()
same, *_ = filecmp.cmpfiles(alone, series, names, shallow=False)
print(f"{len(same)} of {len(names)} files are the same, byte for byte")
print(f"unfinished files: {len(list(series.rglob('*.unfinished')))}")
print(table.status.value_counts().to_dict())

# %%
# Each bar is an image, with its number. Another worker repeats the image that the lost worker had
# begun. The nanny, a process that supervises workers, starts a new one, which takes part if images
# are left. An image is "skipped" if its file was complete when the worker was lost.

import matplotlib.pyplot as plt

from beyond_the_masker.draw.figures import plot_work

plot_work(table, lost)
plt.show()
client.shutdown()
for process in (scheduler, workers):
    process.wait()
folder.cleanup()

# %%
# An image that takes more memory than the limit also kills its worker. If a second worker dies of
# it, the image's row has the reason, and all other images are done. Run the study again with
# workers that have more memory, and it does only this image.
#
# On your cluster
# ---------------
# :ref:`Install the package <install>`, with the same versions, on all machines. Start the scheduler
# on one machine, here ``node1``, and workers on each, one per core:
#
# .. code-block:: console
#
#     $ export DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=1000000
#     $ dask scheduler --port 8786
#
#     $ export DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON="{'MALLOC_TRIM_THRESHOLD_': None}"
#     $ dask worker tcp://node1:8786 --nworkers 16 --nthreads 1 --memory-limit LIMIT
#
# Then connect to it with ``Client("tcp://node1:8786")``.
#
# * **Images and results** must be on storage that all machines share, under the same paths. Give
#   each worker a ``--local-directory`` of its own machine for temporary files.
# * **Wait for at least two workers**, with ``client.wait_for_workers(2)``: if there is only one
#   when joblib begins, the calling process does all the work. Later workers get their share.
# * **If nothing happens**, check that all can import the package: ``client.run(peak_rss_mib)`` and
#   ``client.run_on_scheduler(peak_rss_mib)`` raise the error that joblib does not report.
# * **Anyone who can reach the scheduler can run code on it**, so let it listen only where you
#   trust all users. Reach the dashboard through a tunnel: ``ssh -L 8787:localhost:8787 node1``.
#
# What to conclude
# ----------------
# The cluster changes only where the work is done: the call, the files and the table are the same.
# Give each worker a memory limit, one thread and a nanny. If a worker is lost, only the image that
# it had begun is repeated.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_slurm.py`: when a queue hands out the machines.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_study_plan.py`: how many workers the storage can
#   supply.
