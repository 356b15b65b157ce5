"""Write the inventories that links to other projects' documentation are resolved with.

Sphinx would fetch each project's whole inventory at every build. A build needs no network, so
the names that this site links to are kept here. To add one, add it below and run this file.
"""

import re
import zlib
from pathlib import Path

# For each project: where a name is documented, and the names. `$` is the name, and `{module}` the
# part before its last dot.
PROJECTS = {
    "python": {
        "library/{module}.html#$": """
            argparse.ArgumentParser collections.defaultdict contextlib.closing
            contextlib.contextmanager contextlib.suppress csv.DictReader csv.DictWriter
            dataclasses.dataclass dataclasses.field functools.cache functools.partial gzip.open
            importlib.import_module json.dumps json.loads math.ceil math.prod
            multiprocessing.shared_memory.SharedMemory os.cpu_count os.replace os.statvfs
            pathlib.Path pickle.dump pickle.load pickle.loads shutil.disk_usage shutil.rmtree
            signal.signal statistics.median subprocess.Popen subprocess.run
            tempfile.TemporaryDirectory tempfile.mkdtemp threading.Event threading.Thread
            time.monotonic time.perf_counter time.sleep time.time typing.NamedTuple uuid.uuid4
            warnings.catch_warnings warnings.filterwarnings warnings.simplefilter
        """
    },
    "numpy": {
        "reference/generated/$.html#$": """
            numpy.allclose numpy.arange numpy.argwhere numpy.array numpy.array_equal
            numpy.array_split numpy.asanyarray numpy.asarray numpy.ascontiguousarray
            numpy.atleast_1d numpy.bincount numpy.clip numpy.concatenate numpy.count_nonzero
            numpy.cumsum numpy.dtype numpy.empty numpy.exp numpy.frombuffer numpy.full
            numpy.geomspace numpy.isfinite numpy.isinf numpy.isnan numpy.linalg.svd numpy.linspace
            numpy.load numpy.median numpy.memmap numpy.nan_to_num numpy.ndarray numpy.ones
            numpy.percentile numpy.prod numpy.quantile numpy.save numpy.split numpy.stack
            numpy.sum numpy.take numpy.unique numpy.where numpy.zeros
        """,
        "reference/generated/numpy.absolute.html#numpy.absolute": "numpy.abs",
        "reference/random/generator.html#$": "numpy.random.default_rng",
    },
    "nilearn": {
        "modules/generated/$.html#$": """
            nilearn.datasets.fetch_atlas_difumo nilearn.datasets.fetch_development_fmri
            nilearn.datasets.load_mni152_template nilearn.image.concat_imgs
            nilearn.image.load_img nilearn.image.mean_img nilearn.image.new_img_like
            nilearn.image.resample_img nilearn.image.resample_to_img
            nilearn.maskers.NiftiLabelsMasker nilearn.maskers.NiftiMapsMasker
            nilearn.maskers.NiftiMasker nilearn.maskers.NiftiSpheresMasker
            nilearn.masking.apply_mask nilearn.plotting.plot_anat nilearn.signal.clean
        """
    },
    "nibabel": {
        "reference/{module}.html#$": """
            nibabel.affines.apply_affine nibabel.arrayproxy.ArrayProxy nibabel.arrayproxy.is_proxy
            nibabel.filebasedimages.ImageFileError nibabel.loadsave.load
            nibabel.nifti1.Nifti1Image nibabel.nifti1.Nifti1Pair nibabel.openers.ImageOpener
            nibabel.spatialimages.HeaderDataError nibabel.spatialimages.SpatialImage
            nibabel.volumeutils.apply_read_scaling
        """,
        "reference/nibabel.loadsave.html#nibabel.loadsave.load": "nibabel.load",
        "reference/nibabel.nifti1.html#nibabel.nifti1.Nifti1Image": "nibabel.Nifti1Image",
        "reference/nibabel.nifti1.html#nibabel.nifti1.Nifti1Pair": "nibabel.Nifti1Pair",
    },
    "joblib": {"generated/$.html#$": "joblib.Parallel joblib.delayed"},
}


def role_of(name):
    """Return what kind of object a name stands for, by the way it is written."""
    if name.endswith("Error"):
        return "py:exception"
    is_class = re.search(r"\.[A-Z]\w+$", name) or name in CLASSES
    return "py:class" if is_class else "py:function"


CLASSES = {"collections.defaultdict", "numpy.dtype", "numpy.memmap", "numpy.ndarray"}


def lines_of(pages):
    """Return the lines of an inventory."""
    for page, names in pages.items():
        for name in names.split():
            place = page.replace("{module}", name.rpartition(".")[0])
            yield f"{name} {role_of(name)} 1 {place.replace('$', name)} -\n"


if __name__ == "__main__":
    for project, pages in PROJECTS.items():
        header = (
            f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
            "# The remainder of this file is compressed using zlib.\n"
        )
        content = zlib.compress("".join(sorted(lines_of(pages))).encode(), 9)
        Path(__file__).with_name(f"{project}.inv").write_bytes(header.encode() + content)
