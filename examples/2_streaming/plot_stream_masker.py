"""
Streaming: any masker, without the image in memory
==================================================

For ten years people have asked for a masker that does not load the whole image. They wanted it to
`work for 150 subjects on a machine with 4 GB <https://github.com/nilearn/nilearn/issues/715>`_,
to `batch 500 volumes by itself <https://github.com/nilearn/nilearn/issues/1281>`_, and to `load
no more than a small mask needs <https://github.com/nilearn/nilearn/issues/4811>`_. Cutting the
image into chunks by hand is easy, but `one reader who liked its speed could no longer remove
confounds <https://github.com/nilearn/nilearn/issues/1415>`_. (See also `1754
<https://github.com/nilearn/nilearn/issues/1754>`_.)

On this page you will

1. see why the chunks' time series are wrong as soon as they are cleaned,
2. write a function that does what ``fit_transform`` does, :term:`block` of volumes by
   block, and
3. see how each parameter of the maskers is treated.
"""

# %%
# What goes wrong with chunks
# ---------------------------
# A masker works in two parts. The spatial part (resampling, smoothing, extraction) needs one
# volume at a time. The temporal part (detrending, filtering, :term:`confounds`, standardising)
# needs the whole time series. If ``fit_transform`` gets chunks, each chunk has its own trend,
# mean, variance and fit of the confounds: the series has steps where chunks meet, and loses
# oscillations slower than a chunk.


# %%
# A file, block by block
# ----------------------
# In a NIfTI file one volume follows the other, so blocks of volumes can be read in one pass,
# forward only. After the last block the rest of a compressed file is read, because gzip stores
# its checksum at the end. If ``isal`` is installed, it decompresses faster.

import nibabel as nib
import numpy as np

from beyond_the_masker.maskers import stream_masker, stream_nifti_maskers, treatment_table


def chunk_masker(masker, fmri_img, confounds, n_chunks):
    """Clean each chunk of an image by itself: do not copy this."""
    chunks = np.array_split(np.arange(fmri_img.shape[3]), n_chunks)
    return np.concatenate(
        [
            masker.fit_transform(fmri_img.slicer[..., c[0] : c[-1] + 1], confounds=confounds[c])
            for c in chunks
        ]
    )


# %%
# How each parameter is treated
# -----------------------------
# The masker's own code does the spatial part, with the temporal parameters switched off
# meanwhile. ``nilearn.signal.clean``, which ``fit_transform`` calls too, does the rest. Options
# that need the whole image before the first block raise an error that names the alternative.

import pandas as pd
from nilearn.maskers import NiftiMasker

pd.set_option("display.max_colwidth", None)

# sphinx_gallery_capture_repr_block = ("_repr_html_",)
treatment_table()

# %%
# Any masker, streamed
# --------------------
# Three things in the spatial part are not as separate as they look. Resampling clips its
# result to the range of the whole image and may crop it to where the image is not zero: so
# the file is read once before, for the smallest and the largest value of each voxel over time,
# and these volumes are added to every block. A mean over a sphere is summed in another order
# for a single volume: so a block has at least two. And a masker may replace NaN in the array
# that it gets: so each masker gets a copy.


# %%
# Whole, in chunks, streamed
# --------------------------
# One region, cleaned of a trend, slow drifts and three confounds that drift like head motion.
# Compare streaming and four chunks with ``fit_transform`` of the whole image. (An image of fewer
# than 100 volumes is too short to filter chunks.)

import matplotlib.pyplot as plt

from beyond_the_masker.budget import guard
from beyond_the_masker.experiment import prepare_all

fmri_path, mask_paths, reference, image_mib = prepare_all()
n_timepoints = len(reference[0])
_, reason = guard("NiftiMasker, path, single", fmri_path, mask_paths, 1)
if reason:
    print(f"Not compared: fit_transform needs the whole image in memory. {reason}")

if not reason and n_timepoints >= 100:
    confounds = np.random.default_rng(0).normal(size=(n_timepoints, 3)).cumsum(axis=0)
    masker = NiftiMasker(
        mask_img=mask_paths[0],
        standardize="zscore_sample",
        detrend=True,
        high_pass=0.01,
        t_r=2,
        reports=False,
    )
    results = {
        "whole": masker.fit_transform(fmri_path, confounds=confounds),
        "4 chunks": chunk_masker(masker, nib.load(fmri_path), confounds, 4),
        "streamed": stream_masker(masker, fmri_path, confounds=confounds),
    }
    said = {}
    for name in ("4 chunks", "streamed"):
        difference = np.abs(results[name] - results["whole"]).max()
        said[name] = f"differs by up to {difference:.2g} SD" if difference else "the same values"
        print(f"{name:>9}, compared with whole: {said[name]}")

    figure = plt.figure(figsize=(4.2, 4.2), layout="constrained")
    ax = figure.gca()
    styles = {"whole": ("#0072b2", "-", 6), "4 chunks": ("#d55e00", "-", 1.5)}
    for name, series in results.items():
        color, line, width = styles.get(name, ("black", "--", 1.5))
        alpha = 0.4 if name == "whole" else 1
        ax.plot(series.mean(axis=1), line, color=color, lw=width, alpha=alpha, label=name)
    for chunk in np.array_split(np.arange(n_timepoints), 4)[1:]:
        ax.axvline(chunk[0], color="0.5", lw=1, ls=":")
    ax.set(xlabel="volume", ylabel="mean over the region's voxels, in SD")
    figure.suptitle("A cleaned region", fontsize=12)
    figure.legend(loc="outside lower left", frameon=False)
    figure.set_label(
        "A region, cleaned in three ways: the whole series at once, streamed, and in four chunks. "
        "Dotted: where a chunk begins.\n\n"
        f"Line chart of a region's mean over {n_timepoints} volumes. Compared with the whole "
        f"series, voxel by voxel: streamed, {said['streamed']}; four chunks, {said['4 chunks']}."
    )
    plt.show()


# %%
# What it costs
# -------------
# With maskers that only extract, to do the same work as the other methods:

from beyond_the_masker.experiment import measure_methods
from beyond_the_masker.figures import plot_traces

plot_traces(measure_methods(stream_nifti_maskers), image_mib)

# %%
# What to conclude
# ----------------
# A block of volumes is enough for the spatial part, and the extracted series are small enough to
# be cleaned whole. So memory depends on the block and on the result; the length of the image
# counts only through the result. The values are those of ``fit_transform`` bit for bit, with one
# exception: NiftiMapsMasker rounds differently when it solves for fewer volumes at once.
# Extracted series then differ by less than 1e-12 of their largest value, or by 1e-5 if image
# and maps are both float32. If you then remove a large mean or a trend, the difference is larger
# relative to the remaining signal. Maps of float64 keep it negligible.
#
# Streaming can take longer than ``fit_transform``. NiftiSpheresMasker and NiftiMapsMasker prepare
# their regions again whenever they are called, here for every block. With spheres on a fine grid
# that can take seconds each time: give such a masker a ``mask_img``, and blocks as large as your
# memory allows (``memory_mib``).
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_3_cost_plot_limit.py`: the time of one pass compared with the time to
#   decompress the file.
# * :ref:`sphx_glr_auto_examples_1_methods_plot_in_memory.py`: when you need the same image again and again.
