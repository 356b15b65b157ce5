"""
Many images on a Dask cluster
=============================

When one machine takes too long, use several: a `Dask
<https://docs.dask.org/en/stable/deploying.html>`_ scheduler hands the images to its workers,
wherever these run. The function stays the same. On this page you will

1. mask a study on a cluster, with the call that works without one,
2. give each :term:`worker` the memory that it needs, and see how much it used,
3. kill a worker in the middle of an image, and see another worker repeat the image, and
4. see how to start workers on other machines.

Here scheduler and workers are processes of one machine; nothing else is different.
"""

# %%
# The memory of a worker
# ----------------------
# A worker masks one image at a time, in one thread. So it needs its imports, the result of one
# image, and a block of volumes: the last two are predicted from the header, as in
# :mod:`beyond_the_masker.budget`, and we allow 128 MiB for the imports, including Dask's: below
# they are measured.
#
# Dask gives no image to a worker whose resident set (:term:`RSS`) is above 80 % of its limit. The
# limit is therefore what the worker needs, divided by 0.8. If the imports alone are above these
# 80 %, no worker ever begins: the workers' logs have a warning, but there is no error.

IMPORTS_MIB = 128

from beyond_the_masker.budget import predict_peak
from beyond_the_masker.workers import prepare_study

images, masks = prepare_study(n_images=12)
prediction = predict_peak("Streaming, masks, one pass", images[0], masks)
image_mib = sum(part.mib for part in prediction.parts if part.reason != "imports")
limit_mib = (IMPORTS_MIB + image_mib) / 0.8
print(f"result and block of an image {image_mib:4.0f} MiB")
print(f"the limit of a worker        {limit_mib:4.0f} MiB")

# %%
# A cluster
# ---------
# ``LocalCluster`` starts a scheduler, and workers as processes. Each worker has a nanny: a
# process that replaces a worker that has died. (In a ``LocalCluster``, the calling process is the
# nanny of all.) Two of Dask's defaults are changed:
#
# * **The scheduler never gives up a task.** By default it does so after four workers have died that
#   held the task, even if it was only waiting behind the one that killed them. With joblib 1.6
#   there is then no error, and the call never ends. ``mask_study`` counts instead: it knows which
#   image was begun.
# * **The nanny leaves memory alone.** By default it makes workers return freed memory at once, with
#   an environment variable. Then each volume needs fresh pages from the system, which can
#   take as long as decompressing it.

import os
import tempfile
import threading
from pathlib import Path

import dask.config
from distributed import Client, LocalCluster
from tqdm import tqdm

folder, environ = tempfile.TemporaryDirectory(), os.environ.copy()
changed = {
    "distributed.scheduler.allowed-failures": 10**6,
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
    "temporary-directory": folder.name,  # all that Dask writes is removed with it
}
with dask.config.set(changed):
    cluster = LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        memory_limit=f"{limit_mib:.0f}MiB",
        dashboard_address="127.0.0.1:0",  # any free port
    )
client = Client(cluster)
client.wait_for_workers(2)
# Otherwise tqdm makes a semaphore in each worker, and the one killed below would leave it.
client.run(lambda: tqdm.set_lock(threading.RLock()))
print(f"The dashboard is at {cluster.dashboard_link}")

# %%
# The same call
# -------------
# First without a cluster, then with it: choose the backend with ``backend="dask"``. The number of
# workers is that of the cluster.

import filecmp

from joblib import parallel_config

from beyond_the_masker.files import stem
from beyond_the_masker.study import mask_study, peak_rss_mib

alone, together = Path(folder.name, "alone"), Path(folder.name, "together")
mask_study(images, masks, alone)

imports_mib = client.run(peak_rss_mib)  # in each worker
with parallel_config(backend="dask"):
    table = mask_study(images, masks, together)

names = [f"{stem(image)}.npz" for image in images]
same, *_ = filecmp.cmpfiles(alone, together, names, shallow=False)
print(f"{len(same)} of {len(names)} files are the same, byte for byte")

# %%
# Every image has a row in the table, with the worker that masked it and that worker's largest
# resident set meanwhile. (This is what Dask compares with the limit. It contains the code of
# libraries, which memory in use on the other pages does not.) The largest of each worker, over all
# its images:

print(f"imports        {max(imports_mib.values()):4.0f} MiB")
for pid, rows in table.groupby("pid"):
    print(f"worker {pid:<8}{rows.peak_rss_mib.max():4.0f} MiB at most, {len(rows)} images")
print(f"limit          {limit_mib:4.0f} MiB")

# %%
# What travels
# ------------
# A task goes from here to the scheduler, and from there to a worker. It holds three paths: of an
# image, of its result, and of the masks, which ``mask_study`` has written to the folder of results
# as the positions of their voxels. A row of the table comes back. So neither the image nor the
# masks nor the result travel: a worker opens the first two, and writes the third.

import pickle

(masks_file,) = together.glob("masks-*.npz")
task = images[0], together / names[0], masks_file, {"resample": False}
row = table.iloc[0].to_dict()
for what, size in (
    ("a task goes to the worker", len(pickle.dumps(task))),
    ("a row comes back", len(pickle.dumps(row))),
    ("the image stays", images[0].stat().st_size),
    ("the masks stay", masks_file.stat().st_size),
    ("the result stays", (together / names[0]).stat().st_size),
):
    print(f"{what:25}{size / 1024:12,.1f} KiB")

# %%
# A worker is lost
# ----------------
# Nodes fail, and jobs reach their time limit. To see the effect, we kill a worker as the system
# would do it, without a warning. A thread watches the folder of results. When a quarter of the
# images is done, and each worker is in the middle of another image, it kills one worker. It pauses
# the workers for each check, so that the result of the check still holds when it acts.


def lose_a_worker(pids, series, n_images):
    """Kill the first of several workers, in the middle of an image.

    Parameters
    ----------
    pids : list of int
        The workers' processes.
    series : pathlib.Path
        Folder of their results.
    n_images : int
        Images of the study.

    Returns
    -------
    dict
        ``pid`` and ``time``; ``begun``: when each image without a result was begun.
    """
    import time

    import psutil  # here: workers do not need it

    workers, over = [psutil.Process(pid) for pid in pids], False
    deadline = time.time() + 120
    while not over and all(worker.is_running() for worker in workers):
        for worker in workers:
            worker.suspend()
        begun = {
            path.name.split(".npz.")[0]: path.stat().st_mtime
            for path in series.glob("sub-*.npz.*.unfinished")
        }
        in_the_midst = [begin for begin in begun.values() if begin < time.time() - 0.05]
        n_done = len(list(series.glob("sub-*.npz")))
        over = n_done >= n_images // 4 and len(in_the_midst) == len(workers)
        over |= n_done >= n_images // 2  # images that are too short for this
        over |= time.time() > deadline  # or that fail
        if over:
            workers[0].kill()
        for worker in workers[over:]:
            worker.resume()
        time.sleep(0.01)
    return {"pid": workers[0].pid, "time": time.time(), "begun": begun}


from concurrent.futures import ThreadPoolExecutor

series = Path(folder.name, "series")
series.mkdir()
pids = [worker.pid for worker in cluster.workers.values()]
with ThreadPoolExecutor(1) as pool, parallel_config(backend="dask"):
    thread = pool.submit(lose_a_worker, pids, series, len(images))
    table = mask_study(images, masks, series)
lost = thread.result()
same, *_ = filecmp.cmpfiles(alone, series, names, shallow=False)
print(f"{len(same)} of {len(names)} files are the same, byte for byte")
print(f"left unfinished: {len(list(series.glob('*.unfinished')))} files")
print(table.status.value_counts().to_dict())

# %%
# Lines with a date come from Dask. If a row has the status ``skipped``, the image was done, but the
# worker died before it returned the row: another worker found the file. In the figure each bar is
# an image, with its number. Another worker repeats the image that the lost worker had begun:


import matplotlib.pyplot as plt

from beyond_the_masker.figures import plot_work

plot_work(table, lost)
plt.show()

# %%
# The nanny starts a new worker, which takes part when its imports are done, if images are left. At
# the end, everything is closed and removed.

client.close()
cluster.close()
folder.cleanup()
os.environ.clear()
os.environ.update(environ)  # nannies also set OMP_NUM_THREADS in this process

# %%
# An image that kills its workers
# -------------------------------
# The nanny kills a worker at 95 % of its limit and starts a new one. On a real cluster the system
# may be faster: it kills a process that takes more than its job requested. Either way a worker is
# lost, and the image that was too large goes to another worker. When that one dies, too,
# ``mask_study`` does not try the image again: its row has the reason, and all other images are
# done. Run it again with workers that have more memory, and it masks this one image.
#
# A worker without a nanny (``dask worker --no-nanny``) is not replaced. When all workers are gone,
# the study waits until there are new ones.
#
# The dashboard
# -------------
# While the scheduler runs, it serves pages that show what each worker does, and its memory. They
# need the package bokeh. ``client.dashboard_link`` has their address; from elsewhere, reach them
# through a tunnel, such as ``ssh -L 8787:localhost:8787 node1``. Everybody who can reach the
# scheduler can run code on it, so let it listen only where you trust all users.
#
# Workers on other machines
# -------------------------
# Start the scheduler on one machine, here ``node1``, and workers on each. All import
# ``mask_study.py`` and ``plot_stream_masks.py``, so set ``PYTHONPATH`` to their folder, and change
# the same two defaults:
#
# .. code-block:: console
#
#     $ export PYTHONPATH=/shared/code
#     $ export DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=1000000
#     $ dask scheduler --port 8786
#
# .. code-block:: console
#
#     $ export PYTHONPATH=/shared/code
#     $ export DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON="{'MALLOC_TRIM_THRESHOLD_': None}"
#
# The limit of each worker is the one computed above:

print("dask worker tcp://node1:8786 --nworkers 16 --nthreads 1 ", end="")
print(f"--memory-limit {limit_mib:.0f}MiB")

# %%
# In the script, ``client = Client("tcp://node1:8786")`` takes the place of the ``LocalCluster``.
# Three things to know:
#
# * **Wait for workers**, with ``client.wait_for_workers(2)`` at least. Workers that come later get
#   their share. But joblib counts the workers when it begins, and uses none if there is only one:
#   the calling process then does all the work.
# * **If nothing happens**, check that all can import the modules. joblib does not report this
#   error; ``client.run_on_scheduler(peak_rss_mib)`` and ``client.run(peak_rss_mib)`` raise it.
# * **Without a shared folder for code**, ``client.upload_file("plot_stream_masks.py")`` and then
#   ``client.upload_file("mask_study.py")`` copy the modules to the scheduler and to all workers,
#   also to those that come later.
#
# What must be on shared storage
# ------------------------------
# * **The images**, under the same path on every machine. The speed of this storage limits many
#   workers.
# * **The folder of results.** It also holds the masks for the workers and the unfinished files,
#   from which ``mask_study`` learns which image killed a worker.
# * **The Python environment**, or one with the same versions on each machine. Dask needs the same
#   version of itself everywhere.
#
# The masks' own files need not be there: only the calling process reads them. Each worker also has
# its own folder for temporary files, ``--local-directory``, which should not be shared.
#
# What to conclude
# ----------------
# The cluster changes only where the work is done: the call, the files and the table are the same. A
# worker needs memory for its imports and one image, so give it a limit, one thread, and a nanny. If
# a worker is lost, the images that it had begun are repeated.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_slurm.py`: when a batch system hands out
#   the machines.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_study_plan.py`: how many workers the storage can supply.
