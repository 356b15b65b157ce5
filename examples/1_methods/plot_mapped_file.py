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
# name, type, shape and offset instead of its content. joblib's documentation makes one with
# ``joblib.dump``, for which the image must be in memory. Here it is written volume by volume, so no
# array of its size ever exists.

import shutil
import tempfile
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from beyond_the_masker.extract.checks import (
    open_checked,
    read_volumes,
    size_in_bytes,
    take,
    value_type,
)


def numpy_masker_joblib_map(fmri, masks, n_jobs):
    """Extract several masks in workers, which joblib gives a map of a copy."""
    fmri_img, mask_arrays = open_checked(fmri, masks)
    with tempfile.TemporaryDirectory() as folder:
        path = write_values(fmri_img, Path(folder) / "fmri")
        data = np.memmap(path, value_type(fmri_img), "r", shape=fmri_img.shape, order="F")
        return Parallel(n_jobs=n_jobs)(delayed(take)(data, mask) for mask in mask_arrays)


# %%
# The ``with`` block removes the folder even when a region fails or you press Ctrl-C. We check the
# free space first, so that you do not wait minutes for an error.
#
# .. warning::
#
#     On some systems ``/tmp`` is a tmpfs: a file there is in memory, which the kernel cannot take
#     back. Set TMPDIR to a folder on a disk, where the copy is then written.


def write_values(fmri_img, path):
    """Write the values of an image to a file, volume by volume; return its path."""
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
# such a file when you ask for its data as a whole, and joblib lets the workers map it, too. They
# read only the pages that they touch. A compressed file must be decompressed first, and scaled
# integers multiplied. For these, the function writes a copy. If the file changes during extraction,
# an error is raised, because the results could mix two versions.

import nibabel as nib

from beyond_the_masker.extract.streaming import damaged_file_named, unchanged


def numpy_masker_mapped(fmri, masks, n_jobs):
    """Extract several masks in workers that map the image's own file, or a copy if they must."""
    fmri_img, mask_arrays = open_checked(fmri, masks)
    if not can_be_mapped(fmri_img.dataobj):
        return numpy_masker_joblib_map(fmri_img, masks, n_jobs)
    with damaged_file_named(fmri_img.get_filename()):
        data = np.asanyarray(fmri_img.dataobj)
    with unchanged(fmri_img.dataobj.file_like):
        return Parallel(n_jobs=n_jobs)(delayed(take)(data, mask) for mask in mask_arrays)


def can_be_mapped(data):
    """Return whether an image's data are in a file that is neither compressed nor scaled."""
    return (
        type(data) is nib.arrayproxy.ArrayProxy
        and isinstance(data.file_like, str)
        and Path(data.file_like).suffix.lower() not in nib.openers.ImageOpener.compress_ext_map
        and (data.slope, data.inter) == (1, 0)
    )


# %%
# What it costs
# -------------
# The pages of a mapped file on a disk are not part of memory in use. They belong to the kernel's
# cache, and are recorded separately, with those of libraries. What remains is the workers and
# joblib's helpers, each with an interpreter and imports, and the results. Their sum can be close to
# the size of the image, but it does not grow with the image.

from beyond_the_masker.experiments.experiment import measure_methods, prepare_all
from beyond_the_masker.draw.figures import plot_traces

fmri_path, mask_paths, _, image_mib = prepare_all()
plot_traces(measure_methods(numpy_masker_joblib_map, numpy_masker_mapped), image_mib)

# %%
# If the image is compressed, the second function made a copy, too. The same call on an uncompressed
# file, measured in the same way, has nothing to write:

from beyond_the_masker.inputs.data import write_joined
from beyond_the_masker.meter import measure
from beyond_the_masker.extract.running import run_method

fmri_img = nib.load(fmri_path, keep_file_open=True)
with tempfile.TemporaryDirectory() as folder:
    if shutil.disk_usage(folder).free < 2 * size_in_bytes(fmri_img):
        print(f"Not run: {tempfile.gettempdir()} has too little free space for the file.")
    else:
        plain_path = Path(folder) / "fmri.nii"
        write_joined([fmri_img], fmri_img.shape[3], plain_path, value_type(fmri_img))
        how = numpy_masker_mapped, "parallel", False  # from paths
        trace = measure(run_method, *how, plain_path, mask_paths, workers=True)
        print(
            trace.exception
            or f"uncompressed: peak {trace.peak_mib:,.0f} MiB, {trace.seconds:.2f} s"
        )

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
# * :ref:`sphx_glr_auto_examples_1_methods_plot_heavy_work.py`: when worker processes are worth it.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: one pass over the compressed
#   file, without a copy.
