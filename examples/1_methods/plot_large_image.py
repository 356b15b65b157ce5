"""
A large image and its masks
===========================

Every page of this site works on the same data: one large 4D fMRI image, and a set of binary
:term:`masks <mask>`, one for each region of interest. On this page you will

1. join several subjects' images into one large image,
2. turn the regions of an :term:`atlas` into masks on the grid of that image, and
3. compare the image's size on disk with its size in memory.

By default the data are made on your machine: a stand-in for the development fMRI data set and the
DiFuMo atlas of 64 regions. Set ``DATA=development_fmri`` to download the real data with nilearn, or
``FMRI=`` and ``ATLAS=`` to run every page on your own files.
"""

# %%
# The image
# ---------
# Subjects are joined along time and written to one compressed file in a cache folder, volume by
# volume. The file gets its name only when it is complete, so that no later run mistakes the rest of
# an interrupted one for a whole file.

import nibabel as nib
import numpy as np

from beyond_the_masker.inputs.data import atlas_to_masks, get_atlas_path, prepare_fmri
from beyond_the_masker.options import read_options

options = read_options()
fmri_path = prepare_fmri(options.n_images)
fmri_img = nib.load(fmri_path, keep_file_open=True)

# %%
# Opening the file reads its header only. In memory, the image takes the product of its dimensions
# times the bytes of one value, before any function makes a copy. (With scale factors, integers
# become float64: the empty slice below has the type after scaling.)

dtype = fmri_img.dataobj[..., :0].dtype
in_memory_mib = np.prod(fmri_img.shape, dtype=float) * dtype.itemsize / 2**20
print(f"{fmri_path.name}: {fmri_img.shape}, {dtype}")
print(f"on disk   {fmri_path.stat().st_size / 2**20:8,.0f} MiB")
print(f"in memory {in_memory_mib:8,.0f} MiB")

# %%
# The masks
# ---------
# A probabilistic atlas is a 4D image with one map for each region. A region is where its map is
# not zero, and regions may overlap. An atlas of labels, or a list of masks, works as well. Each
# region is resampled to the grid of the image with nearest-neighbour interpolation, which invents
# no values. A region that is empty there raises an error that names it.

mask_imgs, mask_paths = atlas_to_masks(get_atlas_path(), fmri_path, options.n_regions)
n_voxels = [np.count_nonzero(mask_img.dataobj) for mask_img in mask_imgs]
for mask_path, n in zip(mask_paths, n_voxels, strict=True):
    print(f"{mask_path.name}: {n} voxels")

# %%
# Here are the masks as contours on the mean of all volumes. The mean is summed up volume by
# volume, which does not need the image in memory:

import matplotlib.pyplot as plt
from nilearn.plotting import plot_anat

n_volumes = fmri_img.shape[3]
mean = sum(np.nan_to_num(fmri_img.dataobj[..., i]) for i in range(n_volumes)) / n_volumes
mean_img = nib.Nifti1Image(mean.astype("float32"), fmri_img.affine)

figure = plt.figure(figsize=(7, 6), facecolor="black")
display = plot_anat(mean_img, display_mode="mosaic", cut_coords=3, colorbar=False, figure=figure)
for number, mask_img in enumerate(mask_imgs):
    display.add_contours(mask_img, levels=[0.5], colors=[f"C{number % 10}"], linewidths=2)
figure.set_label(
    f"The masks as contours on the mean image of {fmri_path.name}.\n\n"
    f"Three slices of the mean image along each axis, with the contours of {len(mask_imgs)} masks "
    f"of {min(n_voxels)} to {max(n_voxels)} voxels."
)
plt.show()

# %%
# What to conclude
# ----------------
# The masks select a small part of the image. A method that holds the whole image needs at least the
# size in memory printed above, and as much again for each copy. The next pages count these copies.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_1_methods_plot_nifti_masker.py`: the usual way to extract these
#   regions, measured.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: all masks in one pass, without
#   the image in memory.
