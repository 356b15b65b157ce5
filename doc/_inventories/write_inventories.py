"""Write the inventories that links to other projects' documentation are resolved with.

Sphinx would fetch a full inventory from each project at every build. The build needs no
network, so the few names that this site links to are kept here. To add a name, add it to
its project's table and run this file.
"""

import zlib
from pathlib import Path

# For each project: its documentation, and name -> (role, page).
PROJECTS = {
    "python": {
        "multiprocessing.shared_memory.SharedMemory": (
            "py:class",
            "library/multiprocessing.shared_memory.html#$",
        ),
        "time.time": ("py:function", "library/time.html#$"),
        "time.sleep": ("py:function", "library/time.html#$"),
        "subprocess.run": ("py:function", "library/subprocess.html#$"),
        "pathlib.Path": ("py:class", "library/pathlib.html#$"),
        "csv.DictReader": ("py:class", "library/csv.html#$"),
        "shutil.disk_usage": ("py:function", "library/shutil.html#$"),
        "tempfile.TemporaryDirectory": ("py:class", "library/tempfile.html#$"),
    },
    "numpy": {
        f"numpy.{name}": (role, f"reference/generated/numpy.{name}.html#$")
        for name, role in {
            "allclose": "py:function",
            "array": "py:function",
            "asanyarray": "py:function",
            "asarray": "py:function",
            "ascontiguousarray": "py:function",
            "count_nonzero": "py:function",
            "memmap": "py:class",
            "nan_to_num": "py:function",
            "ndarray": "py:class",
            "take": "py:function",
            "unique": "py:function",
        }.items()
    },
    "nibabel": {
        "nibabel.loadsave.load": ("py:function", "reference/nibabel.loadsave.html#$"),
        "nibabel.load": ("py:function", "reference/nibabel.loadsave.html#nibabel.loadsave.load"),
        "nibabel.nifti1.Nifti1Image": ("py:class", "reference/nibabel.nifti1.html#$"),
        "nibabel.Nifti1Image": (
            "py:class",
            "reference/nibabel.nifti1.html#nibabel.nifti1.Nifti1Image",
        ),
        "nibabel.arrayproxy.ArrayProxy": ("py:class", "reference/nibabel.arrayproxy.html#$"),
        "nibabel.volumeutils.apply_read_scaling": (
            "py:function",
            "reference/nibabel.volumeutils.html#$",
        ),
    },
    "nilearn": {
        f"nilearn.{name}": (role, f"modules/generated/nilearn.{name}.html#$")
        for name, role in {
            "datasets.fetch_atlas_difumo": "py:function",
            "datasets.fetch_development_fmri": "py:function",
            "datasets.load_mni152_template": "py:function",
            "image.concat_imgs": "py:function",
            "image.load_img": "py:function",
            "image.mean_img": "py:function",
            "image.new_img_like": "py:function",
            "image.resample_img": "py:function",
            "image.resample_to_img": "py:function",
            "maskers.NiftiLabelsMasker": "py:class",
            "maskers.NiftiMapsMasker": "py:class",
            "maskers.NiftiMasker": "py:class",
            "maskers.NiftiSpheresMasker": "py:class",
            "masking.apply_mask": "py:function",
            "plotting.plot_anat": "py:function",
            "signal.clean": "py:function",
        }.items()
    },
    "joblib": {
        "joblib.Parallel": ("py:class", "generated/joblib.Parallel.html#$"),
        "joblib.delayed": ("py:function", "generated/joblib.delayed.html#$"),
    },
}


def write_inventory(project, names):
    """Write one inventory in the format of Sphinx, version 2."""
    header = (
        f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    lines = [f"{name} {role} 1 {page} -\n" for name, (role, page) in sorted(names.items())]
    path = Path(__file__).with_name(f"{project}.inv")
    path.write_bytes(header.encode() + zlib.compress("".join(lines).encode(), 9))


if __name__ == "__main__":
    for project, names in PROJECTS.items():
        write_inventory(project, names)
