"""
Many images on one machine
==========================

One image needs no worker: its file is decompressed from beginning to end, and that cannot be
parallelised. Many images can be decompressed at the same time. On this page you will

1. mask a study with one call, whose results arrive as they are complete,
2. measure one, two and four workers, in time and in memory, and
3. see why more workers than cores, or than the disk can supply with data, cannot help, and why
   the numerical libraries in each should use one thread.

The function is on the page :doc:`/auto_examples/mask_study`.
"""

# %%
# A study
# -------
# Eight images serve as a study: each is a link to the image of this build, or to its first
# volumes if it is large. The masks are those of the other pages.

import json
import math
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

from mask_study import mask_study, moved_into_place, stem
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
        If the image is larger in memory, only its first volumes are used, up to so many MiB.

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
# failed, and the largest memory of any worker. Each image's file of results appears when it is
# complete, so your next step can begin with it. ``peak_rss_mib`` is the largest resident set
# (:term:`RSS`) of the worker's process: it contains the code of libraries, which workers share.

if __name__ == "__main__":
    images, masks = prepare_study()
    folder = tempfile.TemporaryDirectory()
    table = mask_study(images, masks, folder.name, n_jobs=2)
    print(table[["status", "volumes", "seconds", "peak_rss_mib", "pid"]].round(2).to_string())

# %%
# A file of results has an array for each mask, and a record of its origin:

if __name__ == "__main__":
    with np.load(table.file[0]) as results:
        about = json.loads(results["about.json"])
        for name in about["masks"]:
            print(name, results[name].shape, results[name].dtype)
    print(about["shape"], about["checksum"][:12])

# %%
# Called again, it only does what is missing: here nothing.

if __name__ == "__main__":
    start = time.perf_counter()
    print(mask_study(images, masks, folder.name, n_jobs=2).status.value_counts().to_dict())
    print(f"{time.perf_counter() - start:.2f} s, after {table.seconds.sum():.2f} s of work")
    folder.cleanup()

# %%
# What workers bring: time
# ------------------------
# Time is compared in pairs: the calling process alone, then several workers. The workers are
# started before, since a run of hours starts them once.


def time_study(images, masks, n_jobs):
    """Mask a study into a temporary folder; return the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        table = mask_study(images, masks, folder, n_jobs=n_jobs)
        seconds = time.perf_counter() - start
    if set(table.status) != {"done"}:
        raise RuntimeError(f"Not all images are done: {table.reason.tolist()}")
    return seconds


def speed_up(images, masks, n_jobs, n_pairs):
    """Time the calling process and several workers in pairs; return the ratios, in order."""
    time_study(images[:n_jobs], masks, n_jobs)
    pairs = [[time_study(images, masks, n) for n in (1, n_jobs)] for _ in range(n_pairs)]
    return sorted(alone / together for alone, together in pairs)


if __name__ == "__main__":
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


def memory_of(images, masks, n_jobs):
    """Measure a study; return the trace, and the peak of each worker in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        trace = measure(mask_study, images, masks, folder, n_jobs=n_jobs)
    if not isinstance(trace.exception, MemoryError):  # the machine was short of memory
        trace.result()
    _, *workers = (process["anon"][process["pss"] > 0] for process in trace.processes.values())
    # The first sample can be of a process that is still a copy of its parent.
    return trace, [samples[1:].max() for samples in workers if len(samples) > 1]


def measure_workers(images, masks):
    """Measure what a worker does and needs, or read it if it was measured before.

    Parameters
    ----------
    images, masks : list of pathlib.Path
        As `prepare_study` returns them.

    Returns
    -------
    dict
        Of an image: ``image_mib`` and ``result_mib`` on disk, ``seconds``, and ``mib_s`` of
        compressed file. Memory in use: ``peaks_mib`` (pairs of a number of workers and the peak
        of all processes; with 1, the calling process has no worker), ``worker_mib`` (of one
        worker), ``imports_mib`` (of one without images).
        ``alone_rss_mib``: the resident set of a process that masks images without workers.
    """
    file, stat = Path(read_options().measured) / "workers.json", images[0].stat()
    paths = [str(path.resolve()) for path in (images[0], *masks)]
    stamp = [*paths, stat.st_size, stat.st_mtime_ns, len(images)]
    if file.exists() and (known := json.loads(file.read_text()))["stamp"] == stamp:
        return known
    with tempfile.TemporaryDirectory() as folder:
        table = mask_study(images, masks, folder, n_jobs=1)
        result_mib = Path(table.file[0]).stat().st_size / MIB
    missing = [image.with_name(f"missing-{image.name}") for image in images]
    found = {n: memory_of(images, masks, n) for n in (1, 2, 4)}
    seconds, image_mib = float(table.seconds.median()), stat.st_size / MIB
    measured = {
        "stamp": stamp,
        "image_mib": image_mib,
        "result_mib": result_mib,
        "seconds": seconds,
        "mib_s": image_mib / seconds,
        "peaks_mib": [(n, trace.peak_mib) for n, (trace, _) in found.items()],
        "alone_rss_mib": found[1][0].peak_rss_mib,
        "worker_mib": float(max(found[2][1], default=math.nan)),
        "imports_mib": float(max(memory_of(missing, masks, 2)[1], default=math.nan)),
    }
    with moved_into_place(file) as unfinished:
        unfinished.write_text(json.dumps(measured))
    return measured


if __name__ == "__main__":
    worker = measure_workers(images, masks)
    peaks = dict(worker["peaks_mib"])
    for n, peak in peaks.items():
        print(f"workers: {n if n > 1 else 'none'}. All processes {peak:,.0f} MiB")
    print(f"one worker {worker['worker_mib']:.0f} MiB, ", end="")
    print(f"without images {worker['imports_mib']:.0f} MiB")

# %%


def plot_workers(speed, peaks):
    """Draw speed and memory by the number of workers.

    Parameters
    ----------
    speed : dict of int to list of float
        For each number of workers, how many times as fast as one, in each pair.
    peaks : dict of int to float
        Peak memory in use of all processes, in MiB.
    """
    figure = plt.figure(figsize=(4.2, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    numbers = list(peaks)
    labels = ["1\n(no worker)" if n == 1 else n for n in numbers]
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
    below.set(xlabel="workers", ylabel="peak memory in use, MiB")
    below.set_xticks(numbers, labels)
    below.margins(y=0.15)
    for ax in (above, below):
        ax.spines[["top", "right"]].set_visible(False)
    said = ", ".join(
        f"{n} workers {ratio:.2f} times as fast as one and {peaks[n]:,.0f} MiB"
        if n > 1
        else f"no worker {peaks[n]:,.0f} MiB"
        for n, ratio in zip(numbers, middle, strict=True)
    )
    figure.set_label(
        "Speed and memory of a study of eight images, by the number of workers; memory is that of "
        f"all processes.\n\nTwo charts by the number of workers, on {os.cpu_count()} cores: {said}."
    )


if __name__ == "__main__":
    plot_workers(speed, peaks)
    plt.show()

# %%
# "One worker" is the calling process: it masks the images itself.

if __name__ == "__main__":
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


def read_part(path, start, size):
    """Read a part of a file and discard it."""
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while size > 0 and (got := len(file.read(min(size, 2**20)))):
            size -= got


def storage_rate(path, n_readers):
    """Read a file that is not in the cache, in parts at the same time; return MiB per second."""
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
    print(f"a worker reads {worker['mib_s']:7,.0f} MiB/s of the compressed file")
    for n in (1, 2, 4) if hasattr(os, "posix_fadvise") else ():
        rates = [storage_rate(images[0], n) for _ in range(3)]
        print(f"readers: {n}      {statistics.median(rates):7,.0f} MiB/s from this storage")

# %%
# Workers that read faster than the storage delivers wait for it, and a disk with a moving head
# delivers less to more readers. A network file system is shared with other users: :ref:`the
# page on ten thousand images <sphx_glr_auto_examples_plot_study_plan.py>` has the arithmetic.
#
# Threads inside workers
# ----------------------
# Extracting voxels needs no linear algebra. Cleaning or decomposing them does, and NumPy's
# library for it (BLAS) starts as many threads as there are cores, in each worker. All workers
# together then have more threads than cores, which wait for each other. Here there is one worker
# per core, and each multiplies matrices, with the default number of BLAS threads and with one:

MULTIPLY = """
import time
import numpy as np
a = np.random.default_rng(0).normal(size=(500, 500))
a @ a
start = time.perf_counter()
for _ in range(4):
    a @ a
print(time.perf_counter() - start)
"""


def seconds_with(n_threads, n_workers):
    """Multiply matrices in several processes at once; return the longest time."""
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

if __name__ == "__main__":
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
# * :ref:`sphx_glr_auto_examples_plot_dask_cluster.py`: the same call on several machines.
# * :ref:`sphx_glr_auto_examples_plot_slurm.py`: the same on a cluster with a queue.
# * :ref:`sphx_glr_auto_examples_plot_large_image_in_blocks.py`: one image over several workers.
