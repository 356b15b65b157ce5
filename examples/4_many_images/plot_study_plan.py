"""
Ten thousand images: hours, and what limits them
================================================

A study of ten thousand images is too large for this machine, but its plan is not. On this page
you will

1. compute how long it takes on one node, on ten and on a hundred, from measurements of this build,
2. see when the storage is the limit, and not the processors, and
3. see how long each backend takes to hand out ten thousand tasks.

Insert your own numbers: the function is short, and each of its lines is one step of the
arithmetic.
"""

# %%
# What was measured here
# ----------------------
# How many MiB of compressed file a worker reads in a second, how large its results are, and how
# much memory it needs, were measured on :ref:`sphx_glr_auto_examples_4_many_images_plot_one_machine.py`. The
# file was in the system's cache, and only one image was processed at a time. The rate depends on
# how well the image compresses.

import math
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from beyond_the_masker.meter import MIB
from beyond_the_masker.options import read_options
from beyond_the_masker.workers import measure_workers, prepare_study

worker = measure_workers(*prepare_study())
result_share = worker["result_mib"] / worker["image_mib"]
print(f"a worker reads      {worker['mib_s']:8,.0f} MiB/s of compressed file")
print(f"its results are     {100 * result_share:8,.1f} % of that")
print(f"with imports it has {worker['worker_mib']:8,.0f} MiB of memory in use")

# %%
# The cost of handing out a task was measured with empty tasks on each backend, each a batch of its
# own (:mod:`beyond_the_masker.overhead`). A measurement with ten thousand tasks, and with Slurm,
# was recorded earlier. That Slurm has one node, and was set to start a task as soon as another
# ends. With usual settings it schedules only every half minute or so: make the tasks of a job array
# longer than that.

measured = Path(read_options().measured)
command = [sys.executable, "task_overhead.py", "--tasks", "500", str(measured)]
subprocess.run(command, check=True)
overhead = pd.read_csv(measured / "task_overhead.csv")
recorded = measured.parent / "recorded" / "task_overhead.csv"
tables = {"this build": overhead}
if recorded.exists():
    tables["recorded"] = pd.read_csv(recorded)
else:
    print("Nothing was recorded in doc/recorded: run 'make overhead'.")
for name, rows in tables.items():
    print(f"{name}: {rows.n_tasks[0]:,} tasks on each, {rows.date[0]}, {rows.cores[0]} cores")
    for row in rows.itertuples():
        print(f"    {row.engine:10} {1000 * row.seconds_per_task:8.2f} ms a task", end="")
        print(f"{10_000 * row.seconds_per_task:8.1f} s for ten thousand")

# %%
# To download: |download task_overhead.csv|.
#
# .. include:: /_report/numbers.rst
#
# To download: :download:`task_overhead.csv </recorded/task_overhead.csv>`.
#
# The arithmetic
# --------------
# Three things happen at the same time, and the slowest of them decides: the workers decompress,
# the storage delivers images and takes results, and the backend hands out tasks.


def plan(
    n_nodes,
    *,
    n_images,
    image_mib,
    result_mib,
    cores,
    worker_mib_s,
    node_mib_s,
    storage_mib_s,
    task_s,
):
    """Compute how long a study takes on a cluster.

    Parameters
    ----------
    n_nodes : int
    n_images : int
    image_mib : float
        Size of an image's file, compressed as it is.
    result_mib : float
        Size of its results.
    cores : int
        Cores of a node, each with a worker.
    worker_mib_s : float
        MiB of compressed file that a worker reads in a second.
    node_mib_s : float
        MiB that a node's network transfers in a second.
    storage_mib_s : float
        MiB that the shared storage delivers or takes in a second, for all nodes together.
    task_s : float
        Seconds in which the backend hands out a task and takes its result.

    Returns
    -------
    dict of str to float
        Hours that ``processors``, ``storage`` and ``backend`` need, each by itself.
    """
    rounds = math.ceil(n_images / (n_nodes * cores))  # in the last one, some workers are idle
    mib_s = min(n_nodes * node_mib_s, storage_mib_s)
    return {
        "processors": rounds * image_mib / worker_mib_s / 3600,
        "storage": n_images * (image_mib + result_mib) / mib_s / 3600,
        "backend": n_images * task_s / 3600,
    }


# %%
# The cluster is an example, not a measurement: nodes of 32 cores, each with a network of 10 Gbit/s,
# and a shared file system that delivers 5 GB/s to all of them together. Ask for the numbers of
# your cluster. The backend is a running Dask cluster, as measured by this build.

CLUSTER = {"cores": 32, "node_mib_s": 10e9 / 8 / MIB, "storage_mib_s": 5e9 / MIB}
STUDY = {"n_images": 10_000, "image_mib": 1e9 / MIB}
NODES = (1, 10, 100)

task_s = overhead.set_index("engine").seconds_per_task["Dask"]
written_mib = STUDY["image_mib"] * result_share
rates = {"worker_mib_s": worker["mib_s"], "task_s": task_s, "result_mib": written_mib}
hours = pd.DataFrame({n: plan(n, **STUDY, **CLUSTER, **rates) for n in NODES}).T
hours["limit"], hours["hours"] = hours.idxmax(axis=1), hours.max(axis=1)
print(f"{STUDY['n_images']:,} images of {STUDY['image_mib'] * MIB / 1e9:.0f} GB: ", end="")
print(f"{STUDY['n_images'] * STUDY['image_mib'] * MIB / 1e12:.0f} TB to read, ", end="")
print(f"{STUDY['n_images'] * written_mib * MIB / 1e9:,.0f} GB to write\n")
print("nodes  processors   storage   backend     the study")
for n, row in hours.iterrows():
    print(f"{n:5}{row.processors:10.3g} h{row.storage:8.3g} h{row.backend:8.3g} h", end="")
    print(f"{row.hours:8.3g} h, limited by: {row.limit}")

# %%


from beyond_the_masker.figures import plot_plan

plot_plan(hours)
plt.show()

# %%
# How many workers the storage can supply
# ---------------------------------------
# More workers than these bring nothing:

for name, mib_s in (
    ("a node with 10 Gbit/s", CLUSTER["node_mib_s"]),
    ("all nodes together", CLUSTER["storage_mib_s"]),
):
    print(f"{name:22} {mib_s:6,.0f} MiB/s for {mib_s / worker['mib_s']:5.1f} workers")

# %%
# That is why each image should be read once, for all masks, and not once for each mask. If you need
# results for other masks later, the files must be read again: think of all masks first, or use one
# mask of all regions that anybody may want.
#
# And a job should not ask for more cores than the storage can supply: on a cluster with a queue,
# small jobs start sooner.
#
# Memory
# ------
# Memory in use by the workers of a node, and what the larger results of 1 GB images add to it:

workers_gib = CLUSTER["cores"] * worker["worker_mib"] / 1024
results_gib = CLUSTER["cores"] * written_mib / 1024
print(f"{CLUSTER['cores']} workers, as measured: {workers_gib:5.1f} GiB")
print(f"results of 1 GB images: {results_gib:6.1f} GiB")

# %%
# What to conclude
# ----------------
# Count bytes before cores. Handing out a task takes little time:

every = [1000 * spent for rows in tables.values() for spent in rows.seconds_per_task]
print(f"handing out a task took {min(every):.2f} to {max(every):.2f} ms")

# %%
# So it does not matter as long as a task is an image; it would if tasks were much shorter, such as
# one for each mask and image. In a job array, give each task many images.
#
# The plan leaves out other users of nodes and storage, workers of a node that slow each other down
# because they share its memory's bandwidth, images of different sizes, and tasks that must be
# repeated.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_dask_cluster.py` and
#   :ref:`sphx_glr_auto_examples_4_many_images_plot_slurm.py`: the same on real clusters.
# * :ref:`sphx_glr_auto_examples_3_cost_plot_limit.py`: how close one worker comes to the limit.
