"""
Region averages
===============

Most analyses of many regions begin with one series for each region of a label atlas: the average of
its :term:`voxels <voxel>`, cleaned. nilearn's :class:`~nilearn.maskers.NiftiLabelsMasker` holds the
whole image in memory to compute it, and users have asked for a way `to use several cores
<https://github.com/nilearn/nilearn/issues/6038>`_. But an average needs only one volume at a time,
so one pass over the file is enough. On this page you will

1. write this in fifteen lines, and compare the result with NiftiLabelsMasker's,
2. average and clean all regions of an atlas with one call,
3. draw the matrix of their correlations, and a few of the series, and
4. see what it costs, with up to 1000 regions.
"""

# %%
# The idea in fifteen lines
# -------------------------
# The loop is that of :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: read a volume,
# take the labelled voxels, discard the volume. Each of these voxels also has a code, the number of
# its region. ``bincount`` sums the voxels of each code; the sum divided by the number of voxels is
# the average. As in NiftiLabelsMasker, values that are not finite become zero.
#
# The order of a sum decides how it is rounded. NiftiLabelsMasker calls ``scipy.ndimage.mean``,
# which also sums with ``bincount``, in C order. Here the voxels are in the same order, so the
# averages are equal bit for bit.

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.volumeutils import apply_read_scaling


def average_regions(fmri_path, labels_path):
    """Return an array of shape (n_timepoints, n_regions)."""
    proxy, labels = nib.load(fmri_path).dataobj, np.asarray(nib.load(labels_path).dataobj)
    in_file = np.arange(labels.size).reshape(labels.shape, order="F")
    places, labels = in_file[labels != 0], labels[labels != 0]
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = []
    with ImageOpener(proxy.file_like) as file:
        file.seek(proxy.offset)
        for _ in range(proxy.shape[3]):
            volume = np.frombuffer(file.read(in_file.size * proxy.dtype.itemsize), proxy.dtype)
            voxels = apply_read_scaling(volume[places], proxy.slope, proxy.inter)
            finite = np.where(np.isfinite(voxels), voxels, 0)
            means.append(np.bincount(codes, weights=finite) / counts)
    return np.array(means, "float32" if voxels.dtype == np.float32 else "float64")


# %%
# Call it with the image of this build and a label image, here made of the masks, and compare with
# NiftiLabelsMasker:

from beyond_the_masker.inputs.data import atlas_to_labels
from beyond_the_masker.experiments.experiment import prepare_all, prepare_reference

fmri_path, mask_paths, _, image_mib = prepare_all()
averages = average_regions(fmri_path, atlas_to_labels(mask_paths, fmri_path))
(reference,) = prepare_reference(fmri_path, mask_paths, averages=True)
print(f"{averages.shape[0]} volumes, {averages.shape[1]} regions")
print(f"equal to NiftiLabelsMasker, bit for bit: {np.array_equal(averages, reference)}")

# %%
# The function for real data
# --------------------------
# :func:`~beyond_the_masker.stream_masker` does the same for a NiftiLabelsMasker,
# with all its options: another ``strategy``, a ``mask_img``, labels on another grid, smoothing. It
# adds the voxels in the same order, but with a sparse matrix, which is faster, and decompresses the
# next volume on a second core meanwhile. When it has read all volumes, it cleans the averages with
# the function that ``fit_transform`` itself calls. It comes with :ref:`the package <install>`.
#
# Here it averages all regions of the build's atlas. The :term:`confounds` are random walks, which
# drift like head motion:

from nilearn.maskers import NiftiLabelsMasker
from nilearn.signal import clean

from beyond_the_masker.inputs.data import atlas_to_labels, get_atlas_path
from beyond_the_masker.extract.maskers import stream_masker

labels_path = atlas_to_labels(get_atlas_path(), fmri_path)
n_timepoints = len(reference)
confounds = np.random.default_rng(0).normal(size=(n_timepoints, 12)).cumsum(axis=0)
cleaning = {"detrend": True, "standardize": "zscore_sample"}
masker = NiftiLabelsMasker(labels_path, reports=False, **cleaning)
series = stream_masker(masker, fmri_path, confounds)
print(f"{series.shape[0]} volumes, {series.shape[1]} regions")
cleaned = clean(average_regions(fmri_path, labels_path), confounds=confounds, **cleaning)
print(f"equal to averages that are cleaned afterwards: {np.array_equal(series, cleaned)}")

# %%
# For an image from fMRIPrep, ``load_confounds`` reads the confounds: copy the lines from
# :ref:`Any masker <fmriprep_confounds>`.
#
# How similar are the regions?
# ----------------------------
# With one series for each region, the matrix of their correlations takes one line of NumPy. In the
# figure, regions with similar series are next to each other, so that groups become visible. (A
# region without variance has no correlation and is left out.)

from beyond_the_masker.draw.figures import by_similarity, plot_correlations, plot_lanes

names, varying = np.array([*masker.region_names_.values()]), series.std(axis=0) > 0
names, series = names[varying], series[:, varying]
enough = n_timepoints > 2 * confounds.shape[1] and len(names) > 1
if enough:
    correlations = np.corrcoef(series, rowvar=False)
    plot_correlations(correlations, "Correlations of all regions")
else:
    print(f"{n_timepoints} volumes and {len(names)} regions are too few for correlations.")

# %%
# The series of the first regions in this order rise and fall together:

if enough:
    first = by_similarity(correlations)[:4]
    lanes = {f"region {names[i]}": series[:, i] for i in first}
    plot_lanes(lanes, "Region averages, cleaned", "signal (SD)")

# %%
# What it costs
# -------------
# Measured like the other methods, each in a fresh process, with the masks of this build as one
# label image:

from beyond_the_masker.experiments.experiment import measure_methods
from beyond_the_masker.draw.figures import plot_traces


def nifti_labels_masker(fmri_path, labels_path):
    """Average the voxels of each region with the whole image in memory."""
    masker = NiftiLabelsMasker(labels_path, standardize=None, reports=False)
    return masker.fit_transform(fmri_path)


def stream_labels_masker(fmri_path, labels_path):
    """Average the voxels of each region in one pass over the file."""
    masker = NiftiLabelsMasker(labels_path, standardize=None, reports=False)
    return stream_masker(masker, fmri_path)


plot_traces(measure_methods(nifti_labels_masker, stream_labels_masker), image_mib)

# %%
# More regions
# ------------
# ``make benchmark`` in the repository times each call right after the :term:`decompression` of the
# same file, which no method can avoid, and records the results. In the table, ``ratio`` is the time
# as a multiple of the decompression time: the median of several runs, and from the smallest to the
# largest. ``MiB`` is the peak of :term:`memory in use` during the call, minus what was in use
# before it, such as Python and its imports. "Cleaned" series are detrended, filtered and
# standardised, and their confounds are removed. :func:`apply_mask <nilearn.masking.apply_mask>`
# takes one mask at a time, and reads the image for each. :ref:`How close to the limit
# <sphx_glr_auto_examples_3_cost_plot_limit.py>` also compares other maskers and other programs.

import json

from beyond_the_masker.experiments.benchmark import print_ratios, read_benchmark
from beyond_the_masker.experiments.pages import recorded_folder

WAYS = "NiftiLabelsMasker", "Streaming, region averages", "apply_mask, mask by mask"

recorded = recorded_folder()
times, memory = read_benchmark(recorded) if recorded.exists() else ({}, {})
regions = {key: pairs for key, pairs in times.items() if key[0] == "regions"}
ways = {key: pairs for key, pairs in regions.items() if key[1].removesuffix(", cleaned") in WAYS}
if ways:
    about = json.loads((recorded / "benchmark.json").read_text())["benchmark"]
    print(f"{' x '.join(map(str, about['averaged']))} values, {about['cores']} cores:\n")
    print(f"decompression alone: {np.median([pairs[:, 1] for pairs in ways.values()]):.2f} s")
    print_ratios(ways, memory, "regions")
else:
    print("doc/recorded has no averages over regions: run 'make benchmark'.")

# %%
# What to conclude
# ----------------
# An average needs only the labelled voxels of each volume. So one pass over the file and the memory
# of a few volumes are enough, and ``stream_masker`` returns exactly the numbers of
# NiftiLabelsMasker. The number of regions hardly affects the time to average, since each labelled
# voxel is added once; but more regions take longer to clean.
#
# Regions that overlap, or that have weights, need :class:`~nilearn.maskers.NiftiMapsMasker`, which
# ``stream_masker`` takes too.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masker.py`: spheres, maps, smoothing and
#   resampling, also without the image in memory.
# * :ref:`sphx_glr_auto_examples_4_many_images_plot_one_machine.py`: a study, one image per worker.
