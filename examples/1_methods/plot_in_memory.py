"""
When the image must be in memory
================================

Sometimes you need the whole image as an array: you use its voxels again and again, you choose
masks while you look at the results, or the work on each region is heavy. On this page you will

1. share one array with :term:`threads <thread>`, which need next to no memory
   beyond the array,
2. share one :term:`memory-mapped <memory map>` file with worker processes, either a copy
   written for this purpose or the image's own file, and
3. see where parallel workers can pay: heavy work on each region.
"""

# %%
# Threads
# -------
# Threads of one process see the same memory, so one array serves all of them. The image is read
# volume by volume into that array. ``np.asanyarray`` on a compressed file would hold the
# decompressed bytes and the array at the same time.

import zlib

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed


def numpy_masker_threads(fmri, masks, n_regions):
    """Extract the voxel time series of several masks from one array, in threads.

    Parameters
    ----------
    fmri : path or nibabel.Nifti1Image
        4D image. If its data are in memory already, they are used as they are.
    masks : list of paths or of nibabel.Nifti1Image
        3D masks on the grid of the image: non-zero in the region.
    n_regions : int
        Number of threads.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask: float32 or float64, as the image; integers become float32. Voxels
        are in C order of the mask. Values that are not finite are replaced by zero, as
        NiftiMasker does.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        The image is not 4D, or has no volume, or a mask is not 3D; their grids or affines
        differ; a mask is empty.
    OSError
        A file is incomplete, or so damaged that it cannot be read.
    MemoryError
        The image does not fit in memory.
    """
    fmri_img, *mask_imgs = (
        item
        if isinstance(item, nib.spatialimages.SpatialImage)
        else nib.load(item, keep_file_open=True)
        for item in (fmri, *masks)
    )
    mask_arrays = []
    for mask_img in mask_imgs:
        if (
            fmri_img.ndim != 4
            or 0 in fmri_img.shape
            or mask_img.shape != fmri_img.shape[:3]
            or not np.allclose(mask_img.affine, fmri_img.affine)
        ):
            raise ValueError(
                "A 4D image and a 3D mask on its grid are needed; the image has shape "
                f"{fmri_img.shape} and the mask {mask_img.shape}, and their affines are\n"
                f"{fmri_img.affine}\nand\n{mask_img.affine}\nTo bring a mask to the grid: "
                "nilearn.image.resample_to_img(mask, image, interpolation='nearest')."
            )
        try:
            mask = np.asarray(mask_img.dataobj)
        except (EOFError, OSError, ValueError, zlib.error) as error:
            raise OSError(
                f"{mask_img.get_filename()} is incomplete or damaged ({error}). "
                "Copy or download it again."
            ) from error
        mask_arrays.append(np.isfinite(mask) & (mask != 0))
        if not mask_arrays[-1].any():
            raise ValueError("A mask is empty: none of its voxels differs from zero.")

    def take(data, mask):
        series = data[mask].T
        dtype = series.dtype.newbyteorder("=") if series.dtype.kind == "f" else "float32"
        series = np.ascontiguousarray(series, dtype=dtype)
        return np.nan_to_num(series, copy=False, nan=0, posinf=0, neginf=0)

    data = fmri_img.dataobj
    if nib.is_proxy(data):  # on disk, so far
        volumes, shape = data, fmri_img.shape
        dtype = volumes[..., :0].dtype  # scale factors applied; nothing is read yet
        data = np.empty(shape, dtype, order="F")
        try:
            for i in range(shape[3]):
                data[..., i] = volumes[..., i]
        except (EOFError, ValueError, zlib.error) as error:
            raise OSError(
                f"{fmri_img.get_filename()} is incomplete or damaged ({error}). "
                "Copy or download it again."
            ) from error
    return Parallel(n_jobs=n_regions, prefer="threads")(
        delayed(take)(data, mask) for mask in mask_arrays
    )


# %%
# Do threads wait for each other?
# -------------------------------
# Python runs one thread at a time: the one that holds the global interpreter lock (GIL). A
# library in C may release the lock while it works, and NumPy does so when it indexes with a
# mask. Here one thread indexes, and another counts its own turns meanwhile. If NumPy kept the
# lock, the other thread would get one or two turns.

import threading
import time

array = np.ones((50, 50, 50, 200), "float32", order="F")
everywhere = np.ones(array.shape[:3], dtype=bool)
at_work = threading.Thread(target=array.__getitem__, args=(everywhere,))
turns = 0
at_work.start()
while at_work.is_alive():
    turns += 1
    time.sleep(0.001)
print(f"While one thread indexed, the other had {turns} turns.")
del array

# %%
# Many turns mean that the threads work side by side. For the regions of an atlas this hardly
# matters, because taking a few hundred voxels out of an array takes milliseconds. Most of the
# time goes into reading the file, which happens once.

# %%
# Worker processes and a file
# ---------------------------
# Python code keeps the lock, so it needs processes to run in parallel. Processes share an array
# if each of them maps the same file: the :term:`pages <page>` of a mapped file are in memory
# once, however many processes access them. joblib recognises a :class:`numpy.memmap` among the
# arguments of a task and sends the file's name, type, shape and offset instead of its content,
# also for a part of a map. (An array of more than 1 MB that is not mapped is first written to a
# file, in ``/dev/shm`` where there is space, which is memory: the second copy of
# :ref:`sphx_glr_auto_examples_1_methods_plot_shared_memory.py`.)
#
# joblib's documentation uses ``joblib.dump`` and then ``joblib.load`` with ``mmap_mode="r"``.
# For that the image must be in memory as an array first. Here it is written volume by volume
# instead, and then mapped, so no array of its size ever exists. It is written with ``write``:
# on a full disk that is an ordinary error, while writing to a map ends the process. The free
# space is checked first all the same, before you wait for minutes.
#
# The function for the workers is defined inside the other. joblib then sends its code, and a
# worker imports only NumPy, not nibabel.

import shutil
import tempfile
from pathlib import Path


def numpy_masker_joblib_map(fmri, masks, n_regions):
    """Extract the voxel time series of several masks from a map that joblib hands on.

    Parameters
    ----------
    fmri : path or nibabel.Nifti1Image
        4D image.
    masks : list of paths or of nibabel.Nifti1Image
        3D masks on the grid of the image: non-zero in the region.
    n_regions : int
        Number of workers.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask; see `numpy_masker_threads`.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `numpy_masker_threads`.
    OSError
        A file is incomplete, or so damaged that it cannot be read; or there is not enough
        room in the temporary folder.
    """
    fmri_img, *mask_imgs = (
        item
        if isinstance(item, nib.spatialimages.SpatialImage)
        else nib.load(item, keep_file_open=True)
        for item in (fmri, *masks)
    )
    mask_arrays = []
    for mask_img in mask_imgs:
        if (
            fmri_img.ndim != 4
            or 0 in fmri_img.shape
            or mask_img.shape != fmri_img.shape[:3]
            or not np.allclose(mask_img.affine, fmri_img.affine)
        ):
            raise ValueError(
                "A 4D image and a 3D mask on its grid are needed; the image has shape "
                f"{fmri_img.shape} and the mask {mask_img.shape}, and their affines are\n"
                f"{fmri_img.affine}\nand\n{mask_img.affine}\nTo bring a mask to the grid: "
                "nilearn.image.resample_to_img(mask, image, interpolation='nearest')."
            )
        try:
            mask = np.asarray(mask_img.dataobj)
        except (EOFError, OSError, ValueError, zlib.error) as error:
            raise OSError(
                f"{mask_img.get_filename()} is incomplete or damaged ({error}). "
                "Copy or download it again."
            ) from error
        mask_arrays.append(np.isfinite(mask) & (mask != 0))
        if not mask_arrays[-1].any():
            raise ValueError("A mask is empty: none of its voxels differs from zero.")

    def take(data, mask):
        series = data[mask].T
        dtype = series.dtype.newbyteorder("=") if series.dtype.kind == "f" else "float32"
        series = np.ascontiguousarray(series, dtype=dtype)
        return np.nan_to_num(series, copy=False, nan=0, posinf=0, neginf=0)

    shape, volumes = fmri_img.shape, fmri_img.dataobj
    dtype = volumes[..., :0].dtype  # scale factors applied; nothing is read yet
    size = dtype.itemsize * int(np.prod(shape))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fmri"
        room = shutil.disk_usage(folder).free
        if size > room:
            raise OSError(
                f"The image needs {size / 2**20:,.0f} MiB of disk, and {folder} has "
                f"{room / 2**20:,.0f} MiB left. Set TMPDIR to a folder with more room."
            )
        try:
            with open(path, "wb") as file:
                for i in range(shape[3]):
                    file.write(np.asarray(volumes[..., i], dtype).tobytes("F"))
        except (EOFError, ValueError, zlib.error) as error:
            raise OSError(
                f"{fmri_img.get_filename()} is incomplete or damaged ({error}). "
                "Copy or download it again."
            ) from error
        data = np.memmap(path, dtype, mode="r", shape=shape, order="F")
        return Parallel(n_jobs=n_regions)(delayed(take)(data, mask) for mask in mask_arrays)


# %%
# The ``with`` block removes the folder, also when a region fails or the user presses Ctrl-C. On
# Linux a file may be removed while it is still mapped. Only a process that is killed outright
# leaves its folder behind. The environment variable ``TMPDIR`` sets where the folder is created.
# On some systems ``/tmp`` is a tmpfs: then the file is memory, which the kernel cannot take
# back, and a folder on a disk is the better choice.

# %%
# The image's own file
# --------------------
# An uncompressed NIfTI file without scale factors in its header holds the very bytes of the
# array. nibabel maps such a file when you ask for its data as a whole, and a worker can do the
# same: it needs only the path and where the data begin, and reads only the pages that it
# touches. A compressed file must be decompressed first, and scaled integers must be multiplied
# first. For these, the function writes a copy that holds the final values. (nibabel does not map
# a part of the data, such as ``dataobj[..., 0]``; it reads it.)


def numpy_masker_mapped(fmri, masks, n_regions):
    """Extract the voxel time series of several masks from a file that each worker maps.

    Parameters
    ----------
    fmri : path or nibabel.Nifti1Image
        4D image. A file that can be mapped is not copied.
    masks : list of paths or of nibabel.Nifti1Image
        3D masks on the grid of the image: non-zero in the region.
    n_regions : int
        Number of workers.

    Returns
    -------
    list of arrays of shape (n_timepoints, n_voxels)
        One for each mask; see `numpy_masker_threads`.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `numpy_masker_threads`.
    OSError
        A file is incomplete, or so damaged that it cannot be read; or there is not enough
        room in the temporary folder.
    """
    fmri_img, *mask_imgs = (
        item
        if isinstance(item, nib.spatialimages.SpatialImage)
        else nib.load(item, keep_file_open=True)
        for item in (fmri, *masks)
    )
    mask_arrays = []
    for mask_img in mask_imgs:
        if (
            fmri_img.ndim != 4
            or 0 in fmri_img.shape
            or mask_img.shape != fmri_img.shape[:3]
            or not np.allclose(mask_img.affine, fmri_img.affine)
        ):
            raise ValueError(
                "A 4D image and a 3D mask on its grid are needed; the image has shape "
                f"{fmri_img.shape} and the mask {mask_img.shape}, and their affines are\n"
                f"{fmri_img.affine}\nand\n{mask_img.affine}\nTo bring a mask to the grid: "
                "nilearn.image.resample_to_img(mask, image, interpolation='nearest')."
            )
        try:
            mask = np.asarray(mask_img.dataobj)
        except (EOFError, OSError, ValueError, zlib.error) as error:
            raise OSError(
                f"{mask_img.get_filename()} is incomplete or damaged ({error}). "
                "Copy or download it again."
            ) from error
        mask_arrays.append(np.isfinite(mask) & (mask != 0))
        if not mask_arrays[-1].any():
            raise ValueError("A mask is empty: none of its voxels differs from zero.")

    def take(path, dtype, offset, shape, mask):
        data = np.memmap(path, dtype, mode="r", offset=offset, shape=shape, order="F")
        series = data[mask].T
        dtype = series.dtype.newbyteorder("=") if series.dtype.kind == "f" else "float32"
        series = np.ascontiguousarray(series, dtype=dtype)
        return np.nan_to_num(series, copy=False, nan=0, posinf=0, neginf=0)

    shape, volumes = fmri_img.shape, fmri_img.dataobj
    dtype = volumes[..., :0].dtype  # scale factors applied; nothing is read yet
    size = dtype.itemsize * int(np.prod(shape))
    with tempfile.TemporaryDirectory() as folder:
        if (
            type(volumes) is nib.arrayproxy.ArrayProxy
            and isinstance(volumes.file_like, str)
            and Path(volumes.file_like).suffix.lower()
            not in nib.openers.ImageOpener.compress_ext_map
            and (volumes.slope, volumes.inter) == (1, 0)
        ):
            # Workers may have started in another folder.
            path, offset = Path(volumes.file_like).absolute(), volumes.offset
            missing = offset + size - path.stat().st_size
            if missing > 0:
                raise OSError(
                    f"{fmri_img.get_filename()} is incomplete or damaged ({missing} bytes are "
                    "missing). Copy or download it again."
                )
        else:
            path, offset = Path(folder).absolute() / "fmri", 0
            room = shutil.disk_usage(folder).free
            if size > room:
                raise OSError(
                    f"The image needs {size / 2**20:,.0f} MiB of disk, and {folder} has "
                    f"{room / 2**20:,.0f} MiB left. Set TMPDIR to a folder with more room."
                )
            try:
                with open(path, "wb") as file:
                    for i in range(shape[3]):
                        file.write(np.asarray(volumes[..., i], dtype).tobytes("F"))
            except (EOFError, ValueError, zlib.error) as error:
                raise OSError(
                    f"{fmri_img.get_filename()} is incomplete or damaged ({error}). "
                    "Copy or download it again."
                ) from error
        return Parallel(n_jobs=n_regions)(
            delayed(take)(path, dtype, offset, shape, mask) for mask in mask_arrays
        )


# %%
# What it costs
# -------------
# The pages of a mapped file on a disk are no part of memory in use. They belong to the kernel's
# cache: when memory runs short, the kernel drops them and reads them again later, so the image
# need not fit in memory. They are recorded separately. An array can only be moved to swap, if
# there is any.

from beyond_the_masker.experiment import measure_methods, prepare_all
from beyond_the_masker.figures import plot_traces

fmri_path, mask_paths, reference, image_mib = prepare_all()
traces = measure_methods(numpy_masker_threads, numpy_masker_joblib_map, numpy_masker_mapped)
plot_traces(traces, image_mib)

# %%
# If the image is compressed, the last of these functions made a copy. The same call on an
# uncompressed file, with the image's values as they are in memory:

from functools import partial
from statistics import median

from beyond_the_masker.budget import guard
from beyond_the_masker.experiment import N_RUNS, repeat, why_stopped
from beyond_the_masker.meter import in_seconds
from beyond_the_masker.running import load_in_memory, run_method

_, reason = guard("NumPy indexing, in-memory image, single", fmri_path, mask_paths, 1)
if reason:
    print(f"Not run: to write the file, the image is loaded. {reason}")
elif shutil.disk_usage(tempfile.gettempdir()).free / 2**20 < 2 * image_mib:
    print(f"Not run: {tempfile.gettempdir()} has too little free space for the file.")
else:
    with tempfile.TemporaryDirectory() as folder:
        plain_path = Path(folder) / "fmri.nii"
        load_in_memory(fmri_path).to_filename(plain_path)
        how = numpy_masker_mapped, "parallel", False
        call = partial(run_method, *how, plain_path, mask_paths, workers=True)
        call.__name__ = "uncompressed file"
        plain, runs = repeat(call, N_RUNS, call.__name__)
    print(f"{call.__name__}: ", end="")
    if why_stopped(plain):  # the machine was short of memory
        print(why_stopped(plain))
    else:
        peaks = [trace.peak_mib for trace in runs]
        print(f"peak {plain.peak_mib:,.0f} MiB, image not included ", end="")
        print(f"({min(peaks):,.0f} to {max(peaks):,.0f} in {N_RUNS} runs), ", end="")
        print(f"{plain.before_mib:,.0f} MiB before the call; ", end="")
        print(in_seconds(median(trace.seconds for trace in runs)))

# %%
# When workers pay
# ----------------
# Taking voxels out is quick; starting a worker takes longer. This changes when each region needs
# much computation. As an example, how certain is the share of variance that a region's first
# component explains? To find out, it is computed again and again from volumes that are drawn
# with replacement.


def bootstrap_first_component(series, n_draws=20):
    """Draw volumes with replacement and compute how much the first component explains.

    Parameters
    ----------
    series : array of shape (n_timepoints, n_voxels)
    n_draws : int

    Returns
    -------
    array of shape (n_draws,)
        Between 0 and 1: the largest squared singular value over the sum of all.
    """
    rng = np.random.default_rng(0)
    shares = np.empty(n_draws)
    for i in range(n_draws):
        drawn = series[rng.integers(len(series), size=len(series))]
        values = np.linalg.svd(drawn - drawn.mean(axis=0), compute_uv=False)
        shares[i] = values[0] ** 2 / max((values**2).sum(), np.finfo(values.dtype).tiny)
    return shares


# %%
# Linear algebra has threads of its own: BLAS uses all cores for one region already. Several
# workers that each do so slow each other down. So BLAS gets one thread: in a worker by
# ``inner_max_num_threads``, in this process by ``threadpool_limits``. With
# ``return_as="generator"`` you receive a region's result as soon as it and those before it are
# ready, and can use and release it while the workers continue, so the results are never in
# memory all at once. (``"generator_unordered"`` returns whichever is ready first.) The regions
# are cut to a size that takes a moment. A first, short task for each worker shows how long the
# workers take to start.

from joblib import cpu_count, parallel_config
from threadpoolctl import threadpool_limits

regions = [series[:300, :400] for series in reference[:6]]
start = time.perf_counter()
with threadpool_limits(1):
    serial = [bootstrap_first_component(series) for series in regions]
serial_seconds = time.perf_counter() - start

n_workers = cpu_count()
start = time.perf_counter()
with parallel_config("loky", n_jobs=n_workers, inner_max_num_threads=1):
    Parallel()(delayed(bootstrap_first_component)(regions[0], 1) for _ in range(n_workers))
    start_seconds = time.perf_counter() - start
    start = time.perf_counter()
    results = Parallel(return_as="generator")(
        delayed(bootstrap_first_component)(series) for series in regions
    )
    for i, shares in enumerate(results):
        low, high = np.percentile(shares, [2.5, 97.5])
        seconds = time.perf_counter() - start
        print(f"region {i}: {low:.1%} to {high:.1%} of the variance, after {seconds:.1f} s")
parallel_seconds = time.perf_counter() - start
print(f"one after the other: {serial_seconds:.1f} s")
print(f"{n_workers} workers: {parallel_seconds:.1f} s, and {start_seconds:.1f} s to start them")
print(f"once they have started, {serial_seconds / parallel_seconds:.1f} times as fast")
paid = start_seconds + parallel_seconds < serial_seconds
print(f"with their start, they {'pay' if paid else 'do not pay'} here")

# %%
# What to conclude
# ----------------
# For taking voxels from an image in memory, threads are the simplest way: one array, one process,
# no file. With a mapped file no process holds the image: memory in use is that of the workers,
# and the image is in the kernel's cache as long as there is space. The price is the time to
# write a copy, unless the image is stored uncompressed: then there is nothing to write, and
# workers read only what they touch.
#
# Workers pay when the work on all regions takes far longer than their start. They can be at most
# as many times as fast as there are cores, each needs the memory of one more Python process, and
# there is no gain if the cores are busy with something else. If you only take voxels, the image
# need not be in memory at all.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_3_cost_plot_memory_over_time.py`: all methods in one figure.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: when the image need not be in memory.
