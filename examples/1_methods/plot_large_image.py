"""
A large image and its masks
===========================

Every page of this site works on the same two things: one large 4D fMRI image, and a set of
binary :term:`masks <mask>`, one for each region of interest. On this page you will

1. put several subjects' images together into one large image,
2. turn the regions of an :term:`atlas` into masks on the grid of that image, and
3. see how large the image is on disk, and how large in memory.

Unless you ask for something else, the data are a stand-in that is made on your machine, of
the same shape and type as the development fMRI data set and with as many regions as
the DiFuMo atlas of 64. With ``DATA=development_fmri`` nilearn downloads the real ones;
with ``FMRI=`` and ``ATLAS=`` every page uses files of your own.

.. note::

    The scripts import each other: to run one on your own machine, download the zip at the
    end of its page, or :ref:`all examples <examples>` in one.
"""

# %%
# The functions
# -------------
# A prepared file is written into a folder with a temporary name, which gets its real name
# when it is complete. So whatever stands in the cache folder can be trusted, also after a
# run that was interrupted.

import nibabel as nib
import numpy as np

from beyond_the_masker.data import atlas_to_masks, get_atlas_path, prepare_fmri
from beyond_the_masker.options import read_options

# %%
# **The image.** Subjects are concatenated along time and written to one compressed file.


# %%
# **The atlas.** A probabilistic atlas is a 4D image with one map for each region; a region
# is where its map is not zero, and regions may overlap.


# %%
# **The masks.** Each region is resampled to the grid of the image. Nearest-neighbour
# interpolation invents no values between a region and its surroundings.


# %%
# The data of this build
# ----------------------
# A ``.nii.gz`` file is compressed. In memory the image needs the product of its dimensions,
# times the bytes of one value, and that is before anybody makes a copy.

options = read_options()
fmri_path = prepare_fmri(options.n_images)
mask_imgs, mask_paths = atlas_to_masks(get_atlas_path(), fmri_path, options.n_regions)

fmri_img = nib.load(fmri_path, keep_file_open=True)
dtype = fmri_img.dataobj[..., :0].dtype  # scale factors applied; nothing is read yet
size = np.prod(fmri_img.shape, dtype=float) * dtype.itemsize
print(f"image     {fmri_path.name}, {fmri_img.shape}, {dtype}")
print(f"on disk   {fmri_path.stat().st_size / 2**20:8.1f} MiB")
print(f"in memory {size / 2**20:8.1f} MiB")
sizes = [np.count_nonzero(mask.dataobj) for mask in mask_imgs]
for path, size in zip(mask_paths, sizes, strict=True):
    print(f"{path.name}: {size} voxels")

# %%
# The masks, drawn as contours on the mean of all volumes, in slices through their centres. The
# mean is summed up volume by volume, which does not need the image in memory:

import matplotlib.pyplot as plt
from nilearn.plotting import plot_anat

centres = [np.argwhere(mask.dataobj).mean(axis=0) for mask in mask_imgs]
heights = np.unique(nib.affines.apply_affine(fmri_img.affine, centres)[:, 2].round())
shown = heights[np.linspace(0, len(heights) - 1, min(6, len(heights))).astype(int)]
colors = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7"]

n_volumes = fmri_img.shape[3]
mean = sum(np.nan_to_num(fmri_img.dataobj[..., i]) for i in range(n_volumes)) / n_volumes

rows = np.array_split(shown, 2 if len(shown) > 3 else 1)
figure = plt.figure(figsize=(4.2, 0.5 + 1.9 * len(rows)), facecolor="black")
room = 1 - 0.4 / figure.get_figheight()
for i, heights in enumerate(rows):
    display = plot_anat(
        nib.Nifti1Image(mean.astype("float32"), fmri_img.affine),
        display_mode="z",
        cut_coords=heights.tolist(),
        colorbar=False,
        axes=(0, room * (1 - (i + 1) / len(rows)), 1, room / len(rows)),
        figure=figure,
    )
    for number, mask in enumerate(mask_imgs):
        color = colors[number % len(colors)]
        display.add_contours(mask, levels=[0.5], colors=[color], linewidths=2)
figure.suptitle(f"{len(mask_imgs)} masks on the mean image", color="white", fontsize=12)
at = ", ".join(f"{height:g}" for height in shown)
figure.set_label(
    f"The masks as contours on the mean image of {fmri_path.name}, in axial slices through "
    "their centres.\n\n"
    f"{len(shown)} axial slices of the mean image, at z = {at} mm, with the contours of "
    f"{len(mask_imgs)} masks of {min(sizes)} to {max(sizes)} voxels."
)
plt.show()

# %%
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_1_methods_plot_nifti_masker.py`: the usual way to take these regions out of
#   this image, measured.
