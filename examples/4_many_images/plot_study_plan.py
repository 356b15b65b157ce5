"""
Ten thousand images: hours, and what limits them
================================================

How long does a study of ten thousand images take, on one node, on ten and on a hundred? More nodes
help until something else is the limit. On this page you will

1. compute the hours from measurements of this build, with a short function, and
2. see when the storage is the limit, not the processors.

Insert the numbers of your own cluster and study.
"""

# %%
# The arithmetic
# --------------
# Two things happen at the same time, and the slower one decides: the workers decompress, and the
# storage delivers images and takes results.

import math


def plan(
    n_nodes,
    *,
    n_images,
    image_mib,  # size of an image's file, compressed as it is
    result_mib,  # size of its results
    cores,  # of a node, each with a worker
    worker_mib_s,  # MiB of compressed file that a worker reads in a second
    node_mib_s,  # MiB that a node's network transfers in a second
    storage_mib_s,  # MiB that the storage transfers in a second, for all nodes together
):
    """Return the hours that processors and storage need, each by itself."""
    rounds = math.ceil(n_images / (n_nodes * cores))  # in the last one, some workers are idle
    mib_s = min(n_nodes * node_mib_s, storage_mib_s)
    return {
        "processors": rounds * image_mib / worker_mib_s / 3600,
        "storage": n_images * (image_mib + result_mib) / mib_s / 3600,
    }


# %%
# What this build measured
# ------------------------
# The rate of a worker and the size of its results come from
# :ref:`sphx_glr_auto_examples_4_many_images_plot_one_machine.py`. There the file was in the
# system's cache, and only one image was processed at a time. The rate depends on how well the
# image compresses.

from beyond_the_masker.workers import measure_workers, prepare_study

worker = measure_workers(*prepare_study())
print(f"a worker reads      {worker['mib_s']:8,.0f} MiB/s of compressed file")
print(f"its results are     {100 * worker['result_share']:8,.1f}% of that")
print(f"at its peak it has  {worker['worker_mib']:8,.0f} MiB in use")

# %%
# The plan
# --------
# The cluster is an example, not a measurement: nodes of 32 cores, each with a network of 10 Gbit/s,
# and a shared file system that delivers 5 GB/s to all of them together. Each image is 1 GB,
# compressed.

import matplotlib.pyplot as plt
import pandas as pd

from beyond_the_masker.figures import plot_plan
from beyond_the_masker.meter import MIB

CLUSTER = {"cores": 32, "node_mib_s": 10e9 / 8 / MIB, "storage_mib_s": 5e9 / MIB}
STUDY = {"n_images": 10_000, "image_mib": 1e9 / MIB}
NODES = (1, 10, 100)

rates = {
    "worker_mib_s": worker["mib_s"],
    "result_mib": STUDY["image_mib"] * worker["result_share"],
}
hours = pd.DataFrame({n: plan(n, **STUDY, **CLUSTER, **rates) for n in NODES}).T
hours["limit"], hours["hours"] = hours.idxmax(axis=1), hours.max(axis=1)
print(hours.to_string(float_format="{:.3g}".format))

plot_plan(hours)
plt.show()

# %%
# The time of the storage includes each node's network, which can be the limit of a few nodes. When
# the storage itself is the limit, more nodes do not help. Network and storage can keep this many
# workers busy:

node_workers, all_workers = (CLUSTER[name] / worker["mib_s"] for name in list(CLUSTER)[1:])
print(f"one node's network: {node_workers:.1f}, the storage: {all_workers:.1f} workers")

# %%
# Memory is rarely a limit. The workers of one node need this much, and the results of 1 GB images
# come on top:

workers_gib = CLUSTER["cores"] * worker["worker_mib"] / 1024
results_gib = CLUSTER["cores"] * rates["result_mib"] / 1024
print(f"{CLUSTER['cores']} workers: {workers_gib:.1f} GiB, results: {results_gib:.1f} GiB")

# %%
# What to conclude
# ----------------
# Count bytes before cores. Read each image once, for all masks, and not once for each mask. A job
# should not request more cores than the storage can supply, and small jobs start sooner in a queue.
#
# The plan leaves out other users of nodes and storage, workers of a node that slow each other down
# because they share its memory's bandwidth, images of different sizes, and tasks that must be
# repeated. It also leaves out the time to hand out a task, which is far shorter than that of an
# image, except where Slurm starts a job: in a job array, give each task enough images for a few
# minutes.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_dask_cluster.py` and
#   :ref:`sphx_glr_auto_examples_4_many_images_plot_slurm.py`: the same on real clusters.
# * :ref:`sphx_glr_auto_examples_3_cost_plot_limit.py`: how close one worker comes to the limit.
