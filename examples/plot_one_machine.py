"""
Many images on one machine
==========================

One image needs no worker: its file is decompressed from its beginning to its end, and nothing
can be ahead of that. Many images can be decompressed at the same time. On this page you will

1. mask a study with one call, whose results come as they are complete,
2. see what one, two and four workers bring, in time and in memory, and
3. see why more workers than cores or than the disk can feed do not help, and why each needs
   its numerical libraries held to one thread.

The function is on the page :doc:`/auto_examples/mask_study`.
"""

# %%
# A study
# -------
# Eight images stand for a study: each is a link to the image of this build, or to its first
# part if it is large. The masks are those of the other pages.

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from joblib import Parallel, delayed

from mask_study import mask_study, stem
from options import read_options
from peak_memory import MIB, measure
from plot_large_image import atlas_to_masks, get_atlas_path
from plot_large_image import n_volumes_within, prepare, prepare_fmri


def prepare_study(n_images=8, most_mib=512):
    """Make a study of the build's image: each of its images is a link to it.

    Parameters
    ----------
    n_images : int
    most_mib : float
        Of an image that is larger in memory, the first so many MiB are taken.

    Returns
    -------
    images, masks : list of pathlib.Path
    """
    options = read_options()
    fmri_path = prepare_fmri(options.n_images).absolute()
    _, masks = atlas_to_masks(get_atlas_path(), fmri_path, options.n_regions)
    img = nib.load(fmri_path)
    length = n_volumes_within(img, most_mib)

    def fill(folder):
        image = fmri_path
        if length < img.shape[3]:
            img.slicer[..., :length].to_filename(folder / "first_volumes.nii.gz")
            image = Path("first_volumes.nii.gz")
        ending = image.name.removeprefix(stem(image))
        for number in range(n_images):
            (folder / f"sub-{number + 1:02d}_bold{ending}").symlink_to(image)

    stat = fmri_path.stat()
    stamp = [str(fmri_path), stat.st_size, stat.st_mtime_ns, n_images, length]
    return sorted(prepare("study", stamp, fill).glob("sub-*")), masks


# %%
# One call masks the study. On a terminal a progress bar shows how many images are done, how many
# failed, and the most memory that any worker needed. An image's file of results is there as
# soon as it is complete: what comes next can begin with it.

if __name__ == "__main__":
    images, masks = prepare_study()
    folder = tempfile.TemporaryDirectory()
    table = mask_study(images, masks, folder.name, n_jobs=2)
    print(table[["status", "volumes", "seconds", "peak_rss_mib", "pid"]].round(2).to_string())

# %%
# A file of results has an array for each mask, and says what it was made of:

if __name__ == "__main__":
    with np.load(table.file[0]) as results:
        about = json.loads(results["about.json"])
        for name in about["masks"]:
            print(name, results[name].shape, results[name].dtype)
    print(about["shape"], about["checksum"][:12])

# %%
# Called again, it does what is missing: nothing.

if __name__ == "__main__":
    start = time.perf_counter()
    print(mask_study(images, masks, folder.name, n_jobs=2).status.value_counts().to_dict())
    print(f"{time.perf_counter() - start:.2f} s, after {table.seconds.sum():.2f} s of work")
    folder.cleanup()

# %%
# What workers bring
# ------------------
# Time first, as ratios: one worker and several, in turns, in pairs that follow each other. Workers
# are started before, since that takes a second of a run that takes hours.


def time_study(images, masks, n_jobs):
    """Mask a study into a folder that is thrown away; give the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        table = mask_study(images, masks, folder, n_jobs=n_jobs)
        seconds = time.perf_counter() - start
    if set(table.status) != {"done"}:
        raise RuntimeError(f"Not all images are done: {table.reason.tolist()}")
    return seconds


def speed_up(images, masks, n_jobs, n_pairs):
    """Time one worker and several in pairs; give the ratios, in order."""
    time_study(images, masks, n_jobs)
    pairs = [[time_study(images, masks, n) for n in (1, n_jobs)] for _ in range(n_pairs)]
    return sorted(alone / together for alone, together in pairs)


if __name__ == "__main__":
    seconds = time_study(images, masks, 1)
    n_pairs = int(np.clip(30 / seconds, 1, 5))
    speed = {
        2: speed_up(images, masks, 2, n_pairs),
        4: speed_up(images, masks, 4, 1 + n_pairs // 2),
    }
    print(f"{os.cpu_count()} cores; 8 images, {seconds:.1f} s with one worker")
    for n, ratios in speed.items():
        print(f"{n} workers: {statistics.median(ratios):.2f} times as fast as one; ", end="")
        print("each pair:", *(f"{ratio:.2f}" for ratio in ratios))

# %%
# Then memory, with the same meter as on the other pages. What a worker imports is seen in a study
# of which all images are missing: its workers start, and find nothing to do.


def memory_of(images, masks, n_jobs):
    """Measure a study; give the trace, and the peak PSS of each worker in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        trace = measure(mask_study, images, masks, folder, n_jobs=n_jobs)
    trace.result()
    _, *workers = (process["pss"][process["pss"] > 0] for process in trace.processes.values())
    # The first sample can be of what becomes a worker, and is still a copy of its parent.
    return trace, [samples[1:].max() for samples in workers if len(samples) > 1]


if __name__ == "__main__":
    peaks = {}
    missing = [image.with_name(f"missing-{image.name}") for image in images]
    for n in (1, 2, 4):
        trace, workers = memory_of(images, masks, n)
        peaks[n] = trace.peak_pss_mib
        print(f"workers: {n}. {trace.metric} in all {trace.peak_pss_mib:5,.0f} MiB", end="")
        if workers:  # with one, the calling process does the work
            _, imports = memory_of(missing, masks, n)
            print(f"; of a worker {max(workers):.0f}, its imports {max(imports):.0f}", end="")
        print()

# %%


def plot_workers(speed, peaks):
    """Draw speed and memory by the number of workers.

    Parameters
    ----------
    speed : dict of int to list of float
        For several workers, how many times as fast as one, in each pair.
    peaks : dict of int to float
        Peak memory of all processes, in MiB.
    """
    figure = plt.figure(figsize=(4.2, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    numbers = list(peaks)
    middle = [1.0, *(statistics.median(ratios) for ratios in speed.values())]
    above.plot(numbers, numbers, ":", color="black", label="as many times as workers")
    for n, ratios in speed.items():
        above.plot([n, n], [ratios[0], ratios[-1]], color="#0072b2", lw=4, alpha=0.5)
    above.plot(numbers, middle, "o-", color="#0072b2", label="measured: median, and all pairs")
    above.axvline(os.cpu_count(), color="#d55e00", ls="--", label="cores of this machine")
    above.set(ylabel="times as fast as one", ylim=(0, numbers[-1]))
    above.legend(loc="lower left", bbox_to_anchor=(-0.03, 1), frameon=False)
    below.bar(numbers, peaks.values(), width=0.6, color="#0072b2")
    for n, mib in peaks.items():
        below.text(n, mib, f"{mib:,.0f}", ha="center", va="bottom")
    below.set(xlabel="workers", ylabel="peak memory, MiB", xticks=numbers)
    below.margins(y=0.15)
    for ax in (above, below):
        ax.spines[["top", "right"]].set_visible(False)
    said = ", ".join(
        f"{n} {'worker' if n == 1 else 'workers'} {ratio:.2f} times as fast as one and "
        f"{peaks[n]:,.0f} MiB"
        for n, ratio in zip(numbers, middle, strict=True)
    )
    figure.set_label(
        "What workers bring for a study of eight images: speed, and the memory of all processes "
        f"together.\n\nTwo charts by the number of workers, on {os.cpu_count()} cores: {said}."
    )


if __name__ == "__main__":
    plot_workers(speed, peaks)
    plt.show()

# %%
# Memory hardly counts: each further worker adds its imports and a few MiB. The cores run out first.
# A worker decompresses all the time, and two on one core take twice as long.
#
# The disk comes next. How much of a compressed file does a worker read in a second, and how much
# does the storage give, when the file is not in the system's cache? Here it is dropped from the
# cache first, and read by one, two and four readers at a time.


def read_part(path, start, size):
    """Read a part of a file, and forget it."""
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while size > 0 and (got := len(file.read(min(size, 2**20)))):
            size -= got


def storage_rate(path, n_readers):
    """Read a file that is not in the cache, in parts at the same time; give MiB per second."""
    size = -(-path.stat().st_size // n_readers)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    Parallel(n_readers, backend="threading")(
        delayed(read_part)(path, number * size, size) for number in range(n_readers)
    )
    return path.stat().st_size / MIB / (time.perf_counter() - start)


if __name__ == "__main__":
    read_mib = images[0].stat().st_size / MIB
    print(f"a worker reads {read_mib / table.seconds.median():7,.0f} MiB/s of the compressed file")
    for n in (1, 2, 4) if hasattr(os, "posix_fadvise") else ():
        rates = [storage_rate(images[0], n) for _ in range(3)]
        print(f"readers: {n}      {statistics.median(rates):7,.0f} MiB/s from this storage")

# %%
# Workers that read more than the storage gives wait for it, and a disk with a moving head gives
# less the more of them there are. A network file system is shared with everybody else: :ref:`the
# page on ten thousand images <sphx_glr_auto_examples_plot_study_plan.py>` has the arithmetic.
#
# Threads inside workers
# ----------------------
# To take voxels out of a file needs no linear algebra. To clean or to decompose them does, and
# NumPy's library for it (BLAS) starts as many threads as there are cores, in each worker. The
# threads of all workers together are then far too many, and wait for each other. Here there is one
# worker per core, and each multiplies matrices, with the threads that BLAS likes and with one:

MULTIPLY = """
import time
import numpy as np
a = np.random.default_rng(0).normal(size=(500, 500))
a @ a
start = time.perf_counter()
for _ in range(20):
    a @ a
print(time.perf_counter() - start)
"""


def seconds_with(n_threads, n_workers):
    """Multiply matrices in several processes at once; give the longest time."""
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
    environ = os.environ | dict.fromkeys(names, str(n_threads))
    command = [sys.executable, "-c", MULTIPLY]
    options = {"env": environ, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **options) for _ in range(n_workers)]
    return max(float(process.communicate()[0]) for process in processes)


if __name__ == "__main__":
    n_cores = min(os.cpu_count(), 8)
    pairs = [[seconds_with(n, n_cores) for n in (os.cpu_count(), 1)] for _ in range(3)]
    ratio = statistics.median(many / one for many, one in pairs)
    print(f"{n_cores} workers at once take {ratio:.1f} times as long with {os.cpu_count()} BLAS ")
    print("threads in each as with one thread in each")

# %%
# joblib's own workers get their share of the cores, and Dask's get one thread. Nothing does this
# in a plain script, such as the task of a job array: set these variables before Python starts.
#
# .. code-block:: bash
#
#     export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
#
# What to conclude
# ----------------
# As many workers as cores, if the storage can feed them; memory sets no limit. Start them
# from the command line, and start them again after whatever happens: only what is missing is done.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_dask_cluster.py`: the same call on several machines.
# * :ref:`sphx_glr_auto_examples_plot_slurm.py`: the same on a cluster with a queue.
# * :ref:`sphx_glr_auto_examples_plot_large_image_in_blocks.py`: one image over several workers.
