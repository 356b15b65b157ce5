"""
Many images on one machine
==========================
"""

from pathlib import Path

import nibabel as nib
import numpy as np

from mask_study import mask_study, stem
from options import read_options
from plot_large_image import atlas_to_masks, get_atlas_path, prepare, prepare_fmri


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
    fmri_path = prepare_fmri(options.n_images)
    _, masks = atlas_to_masks(get_atlas_path(), fmri_path, options.n_regions)
    img = nib.load(fmri_path)
    volume_mib = np.prod(img.shape[:3]) * img.dataobj[0, 0, 0, :1].itemsize / 2**20
    length = int(np.clip(most_mib // volume_mib, 1, img.shape[3]))

    def fill(folder):
        image = fmri_path.absolute()
        if length < img.shape[3]:
            img.slicer[..., :length].to_filename(folder / "first_volumes.nii.gz")
            image = Path("first_volumes.nii.gz")
        suffix = image.name.removeprefix(stem(image))
        for number in range(n_images):
            (folder / f"sub-{number + 1:02d}_bold{suffix}").symlink_to(image)

    stat = fmri_path.stat()
    stamp = [str(fmri_path), stat.st_size, stat.st_mtime_ns, n_images, length]
    return sorted(prepare("study", stamp, fill).glob("sub-*")), masks


if __name__ == "__main__":
    import tempfile

    images, masks = prepare_study()
    with tempfile.TemporaryDirectory() as folder:
        table = mask_study(images, masks, folder, n_jobs=2)
    print(table[["status", "volumes", "seconds"]])
