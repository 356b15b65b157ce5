"""
Heavy work on each region: when workers are worth it
====================================================

Taking voxels out of an image is quick; starting a worker takes longer. Workers pay off only if each
region needs a lot of computation. On this page you will

1. extract all regions first, in one process, since their :term:`time series` are small,
2. give each region to a :term:`worker`, and receive results as they become ready, and
3. compare the time saved with the time that the workers take to start.
"""

# %%
# The work
# --------
# As an example: how certain is the share of variance that a region's first principal component
# explains? To find out, it is computed repeatedly from volumes that are drawn with replacement.

import numpy as np


def bootstrap_first_component(series, n_draws=20):
    """Return the share of variance of a region's first component, for each of several draws."""
    rng = np.random.default_rng(0)
    shares = np.empty(n_draws)
    for i in range(n_draws):
        drawn = series[rng.integers(len(series), size=len(series))]
        values = np.linalg.svd(drawn - drawn.mean(axis=0), compute_uv=False)
        shares[i] = values[0] ** 2 / max((values**2).sum(), np.finfo(values.dtype).tiny)
    return shares


# %%
# The regions come from one pass over the file. They are cropped here so that the example
# runs quickly.

from beyond_the_masker import stream_masks
from beyond_the_masker.experiments.experiment import prepare_all

fmri_path, mask_paths, *_ = prepare_all()
regions = [np.array(series[:300, :400]) for series in stream_masks(fmri_path, mask_paths[:6])]

# %%
# One after the other
# -------------------
# BLAS, the library that does NumPy's linear algebra, already uses all cores for one region. Several
# workers that each do so slow each other down. So we limit it to one thread, here by
# ``threadpool_limits``, and in the workers below by ``inner_max_num_threads``.

import time

from threadpoolctl import threadpool_limits

start = time.perf_counter()
with threadpool_limits(1):
    serial = [bootstrap_first_component(series) for series in regions]
serial_seconds = time.perf_counter() - start
print(f"one after the other: {serial_seconds:.2f} s")

# %%
# In workers
# ----------
# A first, short task for each worker shows how long the workers take to start. With
# ``return_as="generator"`` you receive a region's result as soon as it and those before it are
# ready, and can release it while the workers continue.

from joblib import Parallel, cpu_count, delayed, parallel_config

n_workers = cpu_count()
with parallel_config("loky", n_jobs=n_workers, inner_max_num_threads=1):
    start = time.perf_counter()
    Parallel()(delayed(bootstrap_first_component)(regions[0], 1) for _ in range(n_workers))
    start_seconds = time.perf_counter() - start
    start = time.perf_counter()
    results = Parallel(return_as="generator")(
        delayed(bootstrap_first_component)(series) for series in regions
    )
    for number, shares in enumerate(results, start=1):
        low, high = np.percentile(shares, [2.5, 97.5])
        seconds = time.perf_counter() - start
        print(f"region {number}: {low:.1%} to {high:.1%} of the variance, after {seconds:.1f} s")
parallel_seconds = time.perf_counter() - start
print(f"{n_workers} workers: {parallel_seconds:.2f} s, and {start_seconds:.2f} s to start them")

# %%
# What they save
# --------------

print(f"once they have started, {serial_seconds / parallel_seconds:.2f} times as fast")
ratio = serial_seconds / (start_seconds + parallel_seconds)
print(f"with their start, {ratio:.2f} times as fast")
if ratio < 1:
    print("So they were not worth it here: the work is too short, or the cores were busy.")

# %%
# What to conclude
# ----------------
# Workers are worth it when they save more time than they take to start, and cores are free.
# Each needs the memory of one more Python process, and receives the time series of its region only.
# If each region's work needs the whole image, share it: in threads, in a mapped file, or in shared
# memory.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_1_methods_plot_in_memory.py`: one image for all workers.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_one_machine.py`: one image for each worker.
