"""
A large study: hours, and what limits them
==========================================

How long does it take to average and clean 400 regions in every resting-state run of a study as
large as the Human Connectome Project: 4,452 runs, each of 91 × 109 × 91 voxels and 1,200 volumes?
More nodes help until something else is the limit. On this page you will

1. compute the hours from measurements of this build, with a short function,
2. see when the storage is the limit, not the processors, and
3. compare the prediction with one run of that full size.

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
    worker_mib_s,  # MiB of compressed file that a worker processes in a second
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
# One process averages 400 regions of the image of this build (or all regions of your own atlas),
# detrends and standardises them and removes 36 confounds. An image of less than 100 volumes is
# replaced by a made-up one. The file was in the system's cache. The rate depends on how well the
# image compresses.

from beyond_the_masker.experiments.workers import measure_runs, prepare_runs

here = measure_runs(*prepare_runs(n_images=3, n_regions=400))
worker_mib_s = here["file"] / here["seconds"]
print(f"{here['n_regions']} regions of {' x '.join(map(str, here['shape']))} values")
print(f"a worker processes {worker_mib_s:6,.0f} MiB of compressed file in a second")
print(f"at its peak it has {here['peak']:6,.0f} MiB in use, {here['before']:,.0f} of them imports")

# %%
# One run of the full size
# ------------------------
# An image of that size was made and processed once, on the machine that recorded it. How far is
# it from what the rate of the small image predicts?

import json

from beyond_the_masker.experiments.pages import recorded_folder

record = recorded_folder() / "full_run.json"
full = json.loads(record.read_text()) if record.exists() else None
if full:
    predicted = full["file"] / worker_mib_s
    print(f"{' x '.join(map(str, full['shape']))} values, {full['file']:,.0f} MiB compressed")
    print(f"it took {full['seconds']:.0f} s on {full['date']}; predicted {predicted:.0f} s")
    if not 1 / 2 < predicted / full["seconds"] < 2:
        print("The machines differ, or one was busy. At the recorded rate, processors would need")
        print(f"{full['seconds'] / predicted:.2f} times the hours of the plan below.")
    print(f"peak {full['peak']:,.0f} MiB in use, {full['before']:,.0f} of them imports")
    print(f"results {full['results']:.1f} MiB")
else:
    print("doc/recorded has no run of the full size; the plan assumes 1 GB for each file.")

# %%
# Memory hardly depends on the length of an image: a worker has one block of volumes, and the series
# of the regions.
#
# Many workers on one machine
# ---------------------------
# Do workers slow each other down? ``fmriprep_study`` was timed on a machine with many cores: two
# images of the full size for each worker, all links to one file in the system's cache. A process
# without workers decompresses on a second core; a worker uses one core and leaves the rest to the
# other workers.

import pandas as pd

record = record.with_name("many_workers.json")
many = json.loads(record.read_text()) if record.exists() else None
if many:
    times = pd.DataFrame(many["rows"]).groupby("workers").min()
    print(f"{many['cores']} cores, seconds for each image:")
    print(times.round(2).to_string())
    all_hours = 4452 * times.seconds.min() / 3600
    print(f"all 4,452 runs: {all_hours:.1f} hours there, if the storage delivers them")

# %%
# The plan
# --------
# Three ways to do it: this machine's kind with two cores, and a cluster, which is an example, not a
# measurement: nodes of 32 cores, each with a network of 10 Gbit/s, and a shared file system that
# delivers 5 GB/s to all of them together. We assume a disk of 200 MB/s for the two cores.

import matplotlib.pyplot as plt

from beyond_the_masker.draw.figures import plot_plan
from beyond_the_masker.meter import MIB

STUDY = {"n_images": 4452, "image_mib": 1e9 / MIB, "result_mib": 10}
TWO_CORES = {"cores": 2, "node_mib_s": 200e6 / MIB, "storage_mib_s": 200e6 / MIB}
CLUSTER = {"cores": 32, "node_mib_s": 10e9 / 8 / MIB, "storage_mib_s": 5e9 / MIB}
MACHINES = {"two cores": (1, TWO_CORES), "10 nodes": (10, CLUSTER), "100 nodes": (100, CLUSTER)}

measured = full or here
if full:
    STUDY |= {"image_mib": full["file"], "result_mib": full["results"]}
rows = {}
for name, (n_nodes, machine) in MACHINES.items():
    hours = plan(n_nodes, **STUDY, **machine, worker_mib_s=worker_mib_s)
    gib = machine["cores"] * measured["peak"] / 1024
    workers = n_nodes * machine["cores"]
    rows[name] = {"workers": workers} | hours | {"hours": max(hours.values()), "GiB": gib}
hours = pd.DataFrame(rows).T.astype({"workers": int})
print(hours.to_string(float_format="{:,.3g}".format))

plot_plan(hours.set_index("workers"))
plt.show()

# %%
# "GiB" is the memory of all workers of one machine or node: rarely a limit. The time of the storage
# includes each node's network. When the storage itself is the limit, more nodes do not help.
# Network and storage can keep this many workers busy:

node_workers, all_workers = (CLUSTER[name] / worker_mib_s for name in list(CLUSTER)[1:])
print(f"one node's network: {node_workers:.1f}, the storage: {all_workers:.1f} workers")

# %%
# What to conclude
# ----------------
# Count bytes before cores. Read each image once, for all atlases, and not once for each atlas. A
# job should not request more cores than the storage can supply, and small jobs start sooner in a
# queue.
#
# The plan leaves out other users of nodes and storage, workers of a node that slow each other down
# because they share its memory's bandwidth, images of different sizes, and tasks that must be
# repeated. It also leaves out the time to hand out a task, which is far shorter than that of an
# image, except where Slurm starts a job: in a job array, give each task enough images for a few
# minutes.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_fmriprep_study.py`: ``--dry-run`` makes this
#   plan for your own folder.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_dask_cluster.py` and
#   :ref:`sphx_glr_auto_examples_4_many_images_plot_slurm.py`: the same on real clusters.
# * :ref:`sphx_glr_auto_examples_3_cost_plot_limit.py`: how close one worker comes to the limit.
