"""
Any masker, without the image in memory
=======================================

Region averages, smoothing, filtering, removing :term:`confounds`: nilearn's maskers do all of it,
with the whole image in memory. Users have long asked for a masker that `takes 500 volumes at a time
<https://github.com/nilearn/nilearn/issues/1281>`_. Cutting the image into chunks by hand is easy,
but `confounds cannot be removed from each chunk alone
<https://github.com/nilearn/nilearn/issues/1415>`_.

A masker works in two parts. The spatial part (resampling, smoothing, extraction) needs one volume
at a time. The temporal part (detrending, filtering, confounds, standardising) needs the whole
series, which is small. On this page you will

1. compare cleaning each chunk on its own with cleaning the whole series once,
2. use :func:`~beyond_the_masker.stream_masker`, which does the latter, and
3. look up how it handles each parameter of a masker.
"""

# %%
# Chunks, and blocks
# ------------------
# If ``fit_transform`` gets one chunk after the other, it removes the trend, mean, variance and
# confounds of each chunk separately. So extract :term:`blocks <block>` without any cleaning, and
# clean the series once, with the function that ``fit_transform`` itself calls:

import nibabel as nib
import numpy as np
from nilearn.signal import clean


def blocks_of(fmri_path, n_blocks):
    """Yield the numbers of a block's volumes, and an image of them."""
    fmri_img = nib.load(fmri_path, keep_file_open=True)
    for volumes in np.array_split(np.arange(fmri_img.shape[3]), n_blocks):
        yield volumes, fmri_img.slicer[..., volumes[0] : volumes[-1] + 1]


def clean_each_chunk(masker, fmri_path, confounds, n_blocks=4):
    """Extract and clean each chunk on its own: do not copy this."""
    blocks = blocks_of(fmri_path, n_blocks)
    return np.concatenate([masker.fit_transform(img, confounds=confounds[v]) for v, img in blocks])


def clean_once(masker, fmri_path, confounds, n_blocks=4, **cleaning):
    """Extract block after block with a masker that cleans nothing, then clean the series."""
    blocks = blocks_of(fmri_path, n_blocks)
    series = np.concatenate([masker.fit_transform(img) for _, img in blocks])
    return clean(series, confounds=confounds, **cleaning)


# %%
# Both extract averages over the regions of a label image, here made of the masks of this build.
# The confounds are random walks, which drift like head motion.

from nilearn.maskers import NiftiLabelsMasker

from beyond_the_masker.predict.budget import guard
from beyond_the_masker.inputs.data import atlas_to_labels
from beyond_the_masker.experiments.experiment import prepare_all
from beyond_the_masker.draw.figures import plot_series
from beyond_the_masker.extract.maskers import stream_masker

fmri_path, mask_paths, reference, image_mib = prepare_all()
labels_img = atlas_to_labels(mask_paths, fmri_path)

n_timepoints = len(reference[0])
confounds = np.random.default_rng(0).normal(size=(n_timepoints, 3)).cumsum(axis=0)
cleaning = {"detrend": True, "standardize": "zscore_sample"}
masker = NiftiLabelsMasker(labels_img, reports=False, **cleaning)

# %%
# .. _fmriprep_confounds:
#
# Any masker, streamed
# --------------------
# Give ``stream_masker`` a masker, configured as for ``fit_transform``, and the arguments of
# ``fit_transform``. A list of maskers shares one pass over the file. With :ref:`the package
# <install>`, a label atlas, and an image from fMRIPrep that has its confounds next to it:
#
# .. code-block:: python
#
#     from beyond_the_masker import stream_masker
#     from nilearn.interfaces.fmriprep import load_confounds
#     from nilearn.maskers import NiftiLabelsMasker
#
#     fmri_path = "sub-01_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
#     confounds, sample_mask = load_confounds(fmri_path)
#     masker = NiftiLabelsMasker("atlas.nii.gz", standardize="zscore_sample")
#     series = stream_masker(masker, fmri_path, confounds, sample_mask)
#
# For the image of this build:

streamed = stream_masker(masker, fmri_path, confounds=confounds)
print(f"{streamed.shape[0]} volumes, {streamed.shape[1]} regions")

# %%
# Compare the three results with ``fit_transform`` of the whole image, if it fits into memory:

reason = guard("NiftiMasker, path, single", fmri_path, mask_paths, 1)[1]
if n_timepoints < 40:
    reason = f"{n_timepoints} volumes are too few to clean chunks."
if reason:
    print(f"Not compared: {reason}")
else:
    extract = NiftiLabelsMasker(labels_img, standardize=None, reports=False)
    whole = masker.fit_transform(fmri_path, confounds=confounds)
    results = {
        "streamed": streamed,
        "blocks, cleaned once": clean_once(extract, fmri_path, confounds, **cleaning),
        "chunks, each cleaned": clean_each_chunk(masker, fmri_path, confounds),
    }
    for name, series in results.items():
        difference = np.abs(series - whole).max()
        print(f"{name:21}", f"differs by up to {difference:.2g} SD" if difference else "identical")

    shown = {"whole": whole, "streamed": streamed, "chunks": results["chunks, each cleaned"]}
    first = {name: series[:, 0] for name, series in shown.items()}
    borders = [volumes[0] for volumes in np.array_split(np.arange(n_timepoints), 4)[1:]]
    plot_series(first, "The average of one region, cleaned", "signal (SD)", borders)

# %%
# What ``stream_masker`` adds
# ---------------------------
# As with masks, extraction needs only the voxels of the regions. ``stream_masker`` takes them from
# each volume and reduces them to the masker's series, in nilearn's order, so that the sums are the
# same to the last bit. Any number of maskers can share this one read of the file.
#
# If a masker smooths, or resamples the image, blocks of whole volumes pass through nilearn's own
# code, with the temporal parameters turned off. Resampling clips its result to the range of the
# whole image, and may crop it to where the image is not zero. So ``stream_masker`` first reads the
# file once to find the range, and adds a volume with this range to every block.
#
# Two options need extra passes over the file: a mask that nilearn computes from the mean of all
# volumes, and ``high_variance_confounds``, which first computes each voxel's variance, then reads
# the most variable voxels.

import pandas as pd

from beyond_the_masker.extract.maskers import treatment_table

pd.set_option("display.max_colwidth", None)

# sphinx_gallery_capture_repr_block = ("_repr_html_",)
treatment_table()

# %%
# What it costs
# -------------
# Measured with NiftiMaskers that only extract, so that the work is that of the other methods:

from beyond_the_masker.experiments.experiment import measure_methods
from beyond_the_masker.draw.figures import plot_traces
from beyond_the_masker.extract.maskers import stream_nifti_maskers

plot_traces(measure_methods(stream_nifti_maskers), image_mib)

# %%
# What to conclude
# ----------------
# The spatial part needs only a few volumes at a time, and the extracted series are small enough to
# be cleaned whole. So memory depends on the regions and on the result, not on the length of the
# image. The values equal those of ``fit_transform`` bit for bit, with one exception: with
# NiftiMapsMasker, ``stream_masker`` factorises the least-squares problem once for all volumes,
# which rounds differently. If you remove a large mean or a trend, use maps of float64 to keep the
# difference negligible.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_one_machine.py`: a study, one image per worker.
# * :ref:`sphx_glr_auto_examples_1_methods_plot_in_memory.py`: an image that you read repeatedly.
