"""
Many images on one machine
==========================

One image needs no worker: its file is decompressed from beginning to end, and that cannot be
parallelised. Many images can be decompressed at the same time. On this page you will

1. mask a study with one call, whose results arrive as they are complete,
2. measure one, two and four workers, in time and in memory, and
3. see why more workers than cores, or than the disk can supply with data, cannot help, and why
   the numerical libraries in each should use one thread.

The function is on the page :mod:`beyond_the_masker.study`.
"""

# %%
# A study
# -------
# Eight images serve as a study: each is a link to the image of this build, or to its first
# volumes if it is large. The masks are those of the other pages.

import json
import os
import statistics
import tempfile
import time

import matplotlib.pyplot as plt
import numpy as np

from beyond_the_masker.study import mask_study
from beyond_the_masker.workers import (
    measure_workers,
    prepare_study,
    seconds_with,
    speed_up,
    storage_rate,
)

# %%
# One call masks the study. On a terminal a progress bar shows how many images are done, how many
# failed, and the largest memory of any worker. Each image's file of results appears when it is
# complete, so your next step can begin with it. ``peak_rss_mib`` is the largest resident set
# (:term:`RSS`) of the worker's process: it contains the code of libraries, which workers share.

images, masks = prepare_study()
folder = tempfile.TemporaryDirectory()
table = mask_study(images, masks, folder.name, n_jobs=2)
print(table[["status", "volumes", "seconds", "peak_rss_mib", "pid"]].round(2).to_string())

# %%
# A file of results has an array for each mask, and a record of its origin:

with np.load(table.file[0]) as results:
    about = json.loads(results["about.json"])
    for name in about["masks"]:
        print(name, results[name].shape, results[name].dtype)
print(about["shape"], about["checksum"][:12])

# %%
# Called again, it only does what is missing: here nothing.

start = time.perf_counter()
print(mask_study(images, masks, folder.name, n_jobs=2).status.value_counts().to_dict())
print(f"{time.perf_counter() - start:.2f} s, after {table.seconds.sum():.2f} s of work")
folder.cleanup()

# %%
# What workers bring: time
# ------------------------
# Time is compared in pairs: the calling process alone, then several workers. The workers are
# started before, since a run of hours starts them once.


n_pairs = int(np.clip(20 / table.seconds.sum(), 1, 2))
speed = {
    2: speed_up(images, masks, 2, n_pairs),
    4: speed_up(images, masks, 4, max(n_pairs - 1, 1)),
}
print(f"{os.cpu_count()} cores")
for n, ratios in speed.items():
    print(f"{n} workers: {statistics.median(ratios):.2f} times as fast as one; ", end="")
    print("each pair:", *(f"{ratio:.2f}" for ratio in ratios))

# %%
# A worker decompresses all the time, so workers on one core take turns: with more workers than
# cores, a difference is mostly chance. The ratio is below the number of workers if the cores have
# other work to do, or if they are the two threads of one physical core.
#
# What workers bring: memory
# --------------------------
# The same meter as on the other pages measures memory in use. To see what a worker imports, we
# mask a study of which all images are missing: its workers start, and find nothing to do. The
# rate of a worker is that of the calling process while it works alone, the median of eight images.
# Other pages need these numbers, too, so they are kept in a file.


worker = measure_workers(images, masks)
peaks = dict(worker["peaks_mib"])
for n, peak in peaks.items():
    print(f"workers: {n if n > 1 else 'none'}. All processes {peak:,.0f} MiB")
print(f"one worker {worker['worker_mib']:.0f} MiB, ", end="")
print(f"without images {worker['imports_mib']:.0f} MiB")

# %%


from beyond_the_masker.figures import plot_workers

plot_workers(speed, peaks)
plt.show()

# %%
# "One worker" is the calling process: it masks the images itself.

print(f"Two workers add {peaks[2] - peaks[1]:.0f} MiB: they also bring joblib's helpers.")
print(f"Each further worker then adds about {(peaks[4] - peaks[2]) / 2:.0f} MiB, ", end="")
print(f"{worker['imports_mib']:.0f} of them imports.")

# %%
# With results this small, the number of workers is rarely limited by memory.
#
# The storage
# -----------
# How much of a compressed file does a worker read in a second, and how much does the storage
# deliver if the file is not in the system's cache? Here the file is dropped from the cache first,
# and then read by one, two and four readers at a time.


print(f"a worker reads {worker['mib_s']:7,.0f} MiB/s of the compressed file")
for n in (1, 2, 4) if hasattr(os, "posix_fadvise") else ():
    rates = [storage_rate(images[0], n) for _ in range(3)]
    print(f"readers: {n}      {statistics.median(rates):7,.0f} MiB/s from this storage")

# %%
# Workers that read faster than the storage delivers wait for it, and a disk with a moving head
# delivers less to more readers. A network file system is shared with other users: :ref:`the
# page on ten thousand images <sphx_glr_auto_examples_4_many_images_plot_study_plan.py>` has the arithmetic.
#
# Threads inside workers
# ----------------------
# Extracting voxels needs no linear algebra. Cleaning or decomposing them does, and NumPy's
# library for it (BLAS) starts as many threads as there are cores, in each worker. All workers
# together then have more threads than cores, which wait for each other. Here there is one worker
# per core, and each multiplies matrices, with the default number of BLAS threads and with one:


n_cores = min(os.cpu_count(), 8)
pairs = [[seconds_with(n, n_cores) for n in (os.cpu_count(), 1)] for _ in range(3)]
ratio = statistics.median(many / one for many, one in pairs)
print(f"{n_cores} workers at once, {os.cpu_count()} BLAS threads in each: ", end="")
print(f"{ratio:.1f} times as long as with one thread in each")

# %%
# joblib limits the threads of its own workers to their share of the cores, and Dask to one. In a
# plain script, such as the task of a job array, set these variables before Python starts:
#
# .. code-block:: bash
#
#     export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
#
# What to conclude
# ----------------
# Use at most as many workers as cores, and no more than the storage can supply. Whether they pay
# depends on the machine and on what else it does; on this one, during this build:

for n, ratios in speed.items():
    n_faster = sum(ratio > 1 for ratio in ratios)
    print(f"{n} workers were faster than one in {n_faster} of {len(ratios)} ", end="")
    print("pair" if len(ratios) == 1 else "pairs")

# %%
# Start the study from the command line. Whatever happens, run the same command again: it only does
# what is missing.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_dask_cluster.py`: the same call on several machines.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_slurm.py`: the same on a cluster with a queue.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_large_image_in_blocks.py`: one image over several workers.
