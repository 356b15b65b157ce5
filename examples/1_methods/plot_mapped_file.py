"""
A mapped file: one copy that need not fit in memory
===================================================

Processes share an image if each of them :term:`maps <memory map>` the same file. The
:term:`pages <page>` of a mapped file are in memory once, however many processes access them, and
the kernel drops them when memory runs short. On this page you will

1. write an image's values to a file, and let joblib's workers map it,
2. use the image's own file instead, if it is uncompressed, and
3. see that the image does not count as memory in use.
"""

# %%
# A copy that joblib maps
# -----------------------
# joblib recognises a :class:`numpy.memmap` among the arguments of a task, and sends the file's
# name, type, shape and offset instead of its content. joblib's documentation uses ``joblib.dump``
# and then ``joblib.load`` with ``mmap_mode="r"``. For that the image must be in memory as an array
# first. Here it is written volume by volume and then mapped, so no array of its size ever exists.

import shutil
import tempfile
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from beyond_the_masker.checks import (
    as_nifti_masker,
    open_checked,
    read_volumes,
    size_in_bytes,
    value_type,
)


def take(data, mask):
    """Return the voxels of a mask out of an array, as NiftiMasker does."""
    return as_nifti_masker(data[mask])


def numpy_masker_joblib_map(fmri, masks, n_jobs):
    """Extract several masks in workers, which joblib gives a map of a copy.

    Parameters and results are those of `numpy_masker_threads`.
    """
    fmri_img, mask_arrays = open_checked(fmri, masks)
    with tempfile.TemporaryDirectory() as folder:
        path = write_values(fmri_img, Path(folder) / "fmri")
        data = np.memmap(path, value_type(fmri_img), "r", shape=fmri_img.shape, order="F")
        return Parallel(n_jobs=n_jobs)(delayed(take)(data, mask) for mask in mask_arrays)


# %%
# The ``with`` block removes the folder, also when a region fails or you press Ctrl-C. On Linux a
# file may be removed while it is still mapped. Only a process that is killed outright leaves its
# folder behind. TMPDIR sets where the folder is created. On some systems ``/tmp`` is a tmpfs: then
# the file is memory, which the kernel cannot take back, so choose a folder on a disk.
#
# On a full disk, writing to a file raises an error, while writing to a map ends the process. We
# still check the free space first, before you wait for minutes.


def write_values(fmri_img, path):
    """Write the values of an image to a file, volume by volume; return its path.

    Raises
    ------
    OSError
        There is not enough free space, or the image is incomplete or damaged.
    """
    size, free = size_in_bytes(fmri_img), shutil.disk_usage(path.parent).free
    if size > free:
        raise OSError(
            f"The image needs {size / 2**20:,.0f} MiB of disk, and {path.parent} has "
            f"{free / 2**20:,.0f} MiB left. Set TMPDIR to a folder with more room."
        )
    with open(path, "wb") as file:
        for volume in read_volumes(fmri_img):
            file.write(volume.tobytes("F"))
    return path


# %%
# The image's own file
# --------------------
# An uncompressed NIfTI file without scale factors holds the very bytes of the array. nibabel maps
# such a file when you ask for its data as a whole, and a worker can do the same: it needs only the
# path and where the data begin, and reads only the pages that it touches. A compressed file must be
# decompressed first, and scaled integers multiplied. For these, the function writes a copy.

import nibabel as nib


def take_from_file(path, dtype, offset, shape, mask):
    """Map a file, and return the voxels of a mask out of it."""
    return take(np.memmap(path, dtype, "r", offset, shape, order="F"), mask)


def numpy_masker_mapped(fmri, masks, n_jobs):
    """Extract several masks in workers that map the image's own file, or a copy if they must.

    Parameters and results are those of `numpy_masker_threads`.
    """
    fmri_img, mask_arrays = open_checked(fmri, masks)
    with tempfile.TemporaryDirectory() as folder:
        own = find_values(fmri_img)
        path, offset = own or (write_values(fmri_img, Path(folder).absolute() / "fmri"), 0)
        like = path, value_type(fmri_img), offset, fmri_img.shape
        return Parallel(n_jobs=n_jobs)(delayed(take_from_file)(*like, m) for m in mask_arrays)


def find_values(fmri_img):
    """Return where an image's own file holds its values, path and offset; None if it does not.

    Raises
    ------
    OSError
        The file ends before the values do.
    """
    proxy = fmri_img.dataobj
    if (
        type(proxy) is not nib.arrayproxy.ArrayProxy
        or not isinstance(proxy.file_like, str)
        or Path(proxy.file_like).suffix.lower() in nib.openers.ImageOpener.compress_ext_map
        or (proxy.slope, proxy.inter) != (1, 0)
    ):
        return None
    path = Path(proxy.file_like).absolute()  # workers may have started in another folder
    missing = proxy.offset + size_in_bytes(fmri_img) - path.stat().st_size
    if missing > 0:
        raise OSError(
            f"{fmri_img.get_filename()} is incomplete or damaged ({missing} bytes are missing). "
            "Copy or download it again."
        )
    return path, proxy.offset


# %%
# What it costs
# -------------
# The pages of a mapped file on a disk are not part of memory in use. They belong to the kernel's
# cache, and are recorded separately. An array, in contrast, can only be moved to swap, if there is
# any.

from beyond_the_masker.experiment import measure_methods, prepare_all
from beyond_the_masker.figures import plot_traces

fmri_path, mask_paths, _, image_mib = prepare_all()
traces = measure_methods(numpy_masker_joblib_map, numpy_masker_mapped)
plot_traces(traces, image_mib)

# %%
# If the image is compressed, the second function made a copy, too. The same call on an uncompressed
# file has nothing to write:

from beyond_the_masker.data import write_joined
from beyond_the_masker.meter import measure

fmri_img = nib.load(fmri_path, keep_file_open=True)
with tempfile.TemporaryDirectory() as folder:
    if shutil.disk_usage(folder).free < 2 * size_in_bytes(fmri_img):
        print(f"Not run: {tempfile.gettempdir()} has too little free space for the file.")
    else:
        plain_path = Path(folder) / "fmri.nii"
        write_joined([fmri_img], fmri_img.shape[3], plain_path, value_type(fmri_img))
        trace = measure(numpy_masker_mapped, plain_path, mask_paths, len(mask_paths))
        print(trace.exception or f"peak {trace.peak_mib:,.0f} MiB, {trace.seconds:.2f} s")

# %%
# What to conclude
# ----------------
# With a mapped file no process holds the image: memory in use is that of the workers, and the image
# is in the kernel's cache as long as there is space. The price is the time to write a copy, unless
# the image is stored uncompressed: then there is nothing to write, and workers read only what they
# touch. If you use the same image again and again, keep an uncompressed copy of it.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_1_methods_plot_heavy_work.py`: when worker processes pay.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: one pass over the compressed
#   file, without a copy.
