"""What is broken: the calls, on small images, and what their results are."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.maskers import NiftiLabelsMasker

from beyond_the_masker.experiments.pages import load_page
from beyond_the_masker.extract.blocks import mask_blocks
from beyond_the_masker.extract.maskers import stream_masker
from beyond_the_masker.extract.streaming import open_image, stream_masks
from beyond_the_masker.inputs import cache
from beyond_the_masker.inputs.synthetic_fmriprep import MNI, link_fmriprep
from beyond_the_masker.studies.fmriprep import fmriprep_study
from beyond_the_masker.studies.masker_runs import masker_study
from beyond_the_masker.studies.results import ABOUT, OF_DAMAGE
from beyond_the_masker.studies.study import mask_study

OF_COMMANDS = {
    "traceback": RuntimeError,
    "memory": MemoryError,
    "interrupted": KeyboardInterrupt,
}
VOLATILE = ["status", "reason", "seconds", "peak_rss_mib", "started", "host", "pid"]
PREPROC = f"fmriprep/sub-01/func/sub-01_task-rest_run-1_space-{MNI}_desc-preproc_bold.nii.gz"
LONG = f"sub-02_{'x' * (255 - len('sub-02_.nii.gz'))}"  # with its ending, the longest name
IMAGES = ("sub-00.nii.gz", "sub-01.nii", f"{LONG}.nii.gz")
ATLASES = ("labels.nii.gz", "maps.nii.gz")
MASKS = ("region_a.nii.gz", "region_b.nii.gz")
SHAPE = (8, 9, 7, 11)
OUT = "out"


class Target(NamedTuple):
    """A call of the folder of a trial, of workers and of more options."""

    call: Callable
    workers: int = 1
    is_study: bool = False  # it returns a table
    is_command: bool = False  # its work is in a process that is started anew
    replaces: bool = False  # it replaces files, whatever they hold
    is_whole: bool = False  # its files belong together
    files: tuple = (IMAGES[0], *MASKS)  # compressed files that it reads
    image: str = IMAGES[0]  # the file that is changed while it is read


def arrays(folder, workers):
    """Return arrays of one pass."""
    return stream_masks(folder / IMAGES[0], [folder / name for name in MASKS])


def files(folder, workers):
    """Write the arrays of one pass into files."""
    paths = [folder / OUT / "a.npy", folder / OUT / f"{'b' * 251}.npy"]
    (folder / OUT).mkdir(exist_ok=True)
    return stream_masks(folder / IMAGES[0], [folder / name for name in MASKS], out=paths)


def averages(folder, workers):
    """Return the averages of regions, all voxels of which are read ahead."""
    masker = NiftiLabelsMasker(str(folder / "labels.nii.gz"), standardize=None, reports=False)
    return [stream_masker(masker, folder / IMAGES[0])]


def blocks(folder, workers):
    """Return arrays from blocks of two volumes."""
    masks = [folder / name for name in MASKS]
    return mask_blocks(folder / IMAGES[1], masks, workers, block_mib=0.002)


def shared(folder, workers):
    """Return arrays from an image in shared memory."""
    page = load_page("plot_shared_memory")
    masks = [folder / name for name in MASKS]
    return page.numpy_masker_shared_parallel(folder / IMAGES[0], masks, workers)


def study(folder, workers, **options):
    """Mask three images into files."""
    images, masks = ([folder / name for name in names] for names in (IMAGES, MASKS))
    return mask_study(images, masks, folder / OUT, workers, **options)


def parts(folder, workers, **options):
    """Mask three images in two parts."""
    return pd.concat([study(folder, workers, part=(n, 2), **options) for n in (1, 2)])


def tables(folder, workers, **options):
    """Extract and clean two atlases from two images into tables."""
    maskers = {"labels": folder / "labels.nii.gz", "maps": folder / "maps.nii.gz"}
    images, confounds = [folder / name for name in IMAGES[:2]], [folder / "confounds.tsv"] * 2
    options |= {"confounds": confounds, "relmat": True}
    return masker_study(images, maskers, folder / OUT, workers, **options)


def derivatives(folder, workers, **options):
    """Extract an atlas from two images of fMRIPrep, with a strategy for confounds."""
    atlases = {"labels": folder / "labels.nii.gz"}
    options |= {"strategy": "simple", "brain_mask": False}
    return fmriprep_study(folder / "fmriprep", atlases, folder / OUT, workers, **options)


def command(folder, workers):
    """Mask three images with the command line, started anew."""
    names = ["study", *IMAGES, "--masks", *MASKS, "--output", OUT, "--jobs", str(workers)]
    words = [sys.executable, "-m", "beyond_the_masker", *names]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    if ended.returncode < 0:
        os.kill(os.getpid(), -ended.returncode)
    if "The table is in" in ended.stdout:
        return pd.read_csv(folder / OUT / "study.tsv", sep="\t", keep_default_na=False)
    for words, error in OF_COMMANDS.items():
        if words in ended.stderr.lower():
            raise error(ended.stderr)
    raise OSError(ended.stderr)


def prepared(folder, workers):
    """Return an array from a prepared folder of the cache."""

    def fill(unfinished):
        values = np.asarray(open_image(folder / IMAGES[1]).dataobj)
        (unfinished / "values").write_bytes(values.tobytes())

    os.environ["MASKER_CACHE"] = str(folder / OUT)
    return [np.fromfile(cache.prepare("values", ("first", 1), fill) / "values")]


TARGETS = {
    "stream_masks": Target(arrays),
    "stream_masks to files": Target(files, replaces=True),
    "stream_masker": Target(averages, files=(IMAGES[0], "labels.nii.gz")),
    "mask_blocks": Target(blocks, files=MASKS, image=IMAGES[1]),
    "mask_blocks, 2 workers": Target(blocks, 2, files=MASKS, image=IMAGES[1]),
    "shared memory, 2 workers": Target(shared, 2),
    "mask_study": Target(study, is_study=True),
    "mask_study in two parts": Target(parts, is_study=True),
    "mask_study, 2 workers": Target(study, 2, is_study=True),
    "masker_study": Target(tables, is_study=True, files=(IMAGES[0], *ATLASES)),
    "masker_study, 2 workers": Target(tables, 2, is_study=True, files=(IMAGES[0], *ATLASES)),
    "fmriprep_study": Target(derivatives, is_study=True, files=("labels.nii.gz",), image=PREPROC),
    "command study": Target(command, is_study=True, is_command=True),
    "prepared files": Target(prepared, is_whole=True, files=(), image=""),
}


def make_inputs(folder, seed):
    """Write images, masks and labels; the seed changes their values alone."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    affine = np.diag([3.0, 3, 4, 1])
    for name, dtype in zip(IMAGES, ("f4", "i2", "f8"), strict=True):
        data = rng.normal(1000, 300, SHAPE).astype(dtype)
        nib.save(nib.Nifti1Image(data, affine), folder / name)
    inside = np.random.default_rng(0).random((2, *SHAPE[:3])) < 0.05
    for name, mask in zip(MASKS, inside, strict=True):
        nib.save(nib.Nifti1Image(mask.astype("u1"), affine), folder / name)
    data = rng.normal(1000, 300, (*SHAPE[:3], 60)).astype("f4")
    nib.save(nib.Nifti1Image(data, affine), folder / "long.nii.gz")
    link_fmriprep(folder / "fmriprep", folder / "long.nii.gz", 2)
    maps = np.random.default_rng(1).random((*SHAPE[:3], 3))
    nib.save(nib.Nifti1Image(maps, affine), folder / "maps.nii.gz")
    rng = np.random.default_rng(2)
    confounds = pd.DataFrame(rng.normal(size=(SHAPE[3], 2)), columns=["trans_x", "rot_y"])
    confounds.to_csv(folder / "confounds.tsv", sep="\t", index=False)
    labels = (np.arange(np.prod(SHAPE[:3])) % 4).reshape(SHAPE[:3]).astype("u1")
    nib.save(nib.Nifti1Image(labels, affine), folder / "labels.nii.gz")
    for path in folder.rglob("*"):
        os.utime(path, (10**9 + seed, 10**9 + seed))


def summary(value):
    """Return what can be compared of a result: its arrays, or the rows of its table."""
    if isinstance(value, pd.DataFrame):
        names = [name for name in ("image", "status", "reason") if name in value]
        return [tuple(row) for row in value[names].astype(str).itertuples(index=False)]
    return [(a.shape, a.dtype.str, digest(np.ascontiguousarray(a))) for a in value]


def digest(content):
    """Return a checksum of bytes."""
    return hashlib.sha256(content).hexdigest()


def contents(folder):
    """Return a checksum of each file of results by its name; a table's leaves out what varies."""
    found = {}
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.is_file() and not path.name.startswith(("crowd-", "filler")):
            found[str(path.relative_to(folder))] = table_of(path) or digest(path.read_bytes())
    return found


def table_of(path):
    """Return a checksum of a study's table; of its rows' results, not of their times."""
    if path.suffix != ".tsv" or b"\tpeak_rss_mib" not in path.read_bytes():
        return None
    frame = pd.read_csv(path, sep="\t", keep_default_na=False)
    return digest(frame.drop(columns=VOLATILE, errors="ignore").to_csv().encode())


def values_in(folder):
    """Return a checksum of the arrays in each file of results, whatever its record says."""
    found = {}
    for name, whole in contents(folder).items():
        path = folder / name
        if path.suffix == ".npz":
            found[name] = "damaged"
            with suppress(*OF_DAMAGE), np.load(path) as arrays:
                parts = [arrays[n].tobytes() for n in arrays.files if n != ABOUT]
                found[name] = digest(b"".join(parts))
        elif path.suffix != ".json":
            found[name] = whole
    return found
