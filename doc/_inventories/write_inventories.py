"""Write the inventories that links to other projects' documentation are resolved with.

Sphinx would fetch a full inventory from each project at every build. The build needs no
network, so the few names that this site links to are kept here. To add a name, add it to
its project's table and run this file. In the pages, `$` stands for the name.
"""

import zlib
from pathlib import Path

# The standard library: for each module its functions and its classes that are named here.
PYTHON = {
    "argparse": ("", "ArgumentParser"),
    "collections": ("", "defaultdict"),
    "contextlib": ("closing contextmanager suppress", ""),
    "csv": ("", "DictReader DictWriter"),
    "dataclasses": ("dataclass field", ""),
    "functools": ("cache partial", ""),
    "gzip": ("open", ""),
    "importlib": ("import_module", ""),
    "json": ("dumps loads", ""),
    "math": ("ceil prod", ""),
    "multiprocessing.shared_memory": ("", "SharedMemory"),
    "os": ("cpu_count replace statvfs", ""),
    "pathlib": ("", "Path"),
    "pickle": ("dump load loads", ""),
    "shutil": ("disk_usage rmtree", ""),
    "signal": ("signal", ""),
    "statistics": ("median", ""),
    "subprocess": ("run", "Popen"),
    "tempfile": ("mkdtemp", "TemporaryDirectory"),
    "threading": ("", "Event Thread"),
    "time": ("monotonic perf_counter sleep time", ""),
    "typing": ("", "NamedTuple"),
    "uuid": ("uuid4", ""),
    "warnings": ("catch_warnings filterwarnings simplefilter", ""),
}
NUMPY = """
    allclose arange argwhere array array_equal array_split asanyarray asarray
    ascontiguousarray atleast_1d clip concatenate count_nonzero cumsum empty exp frombuffer full
    geomspace isfinite isinf isnan linspace load median nan_to_num ones percentile prod quantile
    save split stack sum take unique where zeros
"""
NILEARN = {
    "py:function": """
        datasets.fetch_atlas_difumo datasets.fetch_development_fmri
        datasets.load_mni152_template image.concat_imgs image.load_img image.mean_img
        image.new_img_like image.resample_img image.resample_to_img masking.apply_mask
        plotting.plot_anat signal.clean
    """,
    "py:class": """
        maskers.NiftiLabelsMasker maskers.NiftiMapsMasker maskers.NiftiMasker
        maskers.NiftiSpheresMasker
    """,
}
NIBABEL = {  # where it is documented, and a shorter name under which it is used
    "affines.apply_affine": ("py:function", None),
    "arrayproxy.ArrayProxy": ("py:class", None),
    "arrayproxy.is_proxy": ("py:function", None),
    "filebasedimages.ImageFileError": ("py:exception", None),
    "loadsave.load": ("py:function", "load"),
    "nifti1.Nifti1Image": ("py:class", "Nifti1Image"),
    "nifti1.Nifti1Pair": ("py:class", "Nifti1Pair"),
    "openers.ImageOpener": ("py:class", None),
    "spatialimages.HeaderDataError": ("py:exception", None),
    "spatialimages.SpatialImage": ("py:class", None),
    "volumeutils.apply_read_scaling": ("py:function", None),
}
JOBLIB = {"Parallel": "py:class", "delayed": "py:function"}

# For each project: name -> (role, page).
PROJECTS = {
    "python": {
        f"{module}.{name}": (role, f"library/{module}.html#$")
        for module, (functions, classes) in PYTHON.items()
        for role, names in (("py:function", functions), ("py:class", classes))
        for name in names.split()
    },
    "numpy": {
        f"numpy.{name}": (role, f"reference/generated/numpy.{name}.html#$")
        for role, names in (("py:function", NUMPY), ("py:class", "dtype memmap ndarray"))
        for name in names.split()
    }
    | {
        "numpy.abs": ("py:function", "reference/generated/numpy.absolute.html#numpy.absolute"),
        "numpy.random.default_rng": ("py:function", "reference/random/generator.html#$"),
        "numpy.linalg.svd": ("py:function", "reference/generated/numpy.linalg.svd.html#$"),
    },
    "nilearn": {
        f"nilearn.{name}": (role, f"modules/generated/nilearn.{name}.html#$")
        for role, names in NILEARN.items()
        for name in names.split()
    },
    "nibabel": {
        f"nibabel.{name}": (role, f"reference/nibabel.{path.split('.')[0]}.html#nibabel.{path}")
        for path, (role, shorter) in NIBABEL.items()
        for name in filter(None, (path, shorter))
    },
    "joblib": {
        f"joblib.{name}": (role, f"generated/joblib.{name}.html#$") for name, role in JOBLIB.items()
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
