"""List the ways to average regions that `benchmark` times: nilearn, streaming, other programs.

Other programs are called in a way that they document.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker, NiftiSpheresMasker
from nilearn.masking import apply_mask

from beyond_the_masker.extract.maskers import stream_masker, stream_nifti_maskers
from beyond_the_masker.extract.streaming import stream_masks
from beyond_the_masker.inputs.cache import prepare
from beyond_the_masker.inputs.data import atlas_to_masks, on_grid_of
from beyond_the_masker.inputs.synthetic import (
    N_MAPS,
    random_centres,
    synthetic_atlas,
    synthetic_labels,
)

LABELS, AVERAGES = "NiftiLabelsMasker", "Streaming, region averages"
PLAIN = {"standardize": None, "reports": False}
CLEANED = PLAIN | {"detrend": True, "high_pass": 0.01, "t_r": 2, "standardize": "zscore_sample"}


def averages(paths, sizes):
    """List name, number of regions, function and its arguments, of which the first is the image.

    All work on the first image, with atlases of some `sizes`; on longer ones, only streaming with
    the second atlas does.
    """
    path, *longer = paths
    atlases = {n: on_grid_of(path, synthetic_labels, n) for n in sizes}
    _, masks = atlas_to_masks(atlases[sizes[0]], path, 10)
    several = [NiftiLabelsMasker(labels, **PLAIN) for labels in atlases.values()]
    every = [*several, *(NiftiMasker(mask, **PLAIN) for mask in masks)]
    name = f"Streaming, {len(several)} atlases and {len(masks)} masks"
    ways = [*by_maskers(path, atlases), *by_peers(path, atlases, masks[:2])]
    ways.append((name, sum(sizes) + len(masks), stream, path, every))
    for one in longer:
        name = f"Streaming, averages, {nib.load(one).shape[3]:,} volumes"
        ways.append((name, sizes[1], stream, one, several[1]))
    return ways


def by_maskers(path, atlases):
    """Yield each masker by itself, then streamed; with 12 confounds if it cleans."""
    (n, labels), *_ = atlases.items()
    *grid, n_volumes = nib.load(path).shape
    seeds = random_centres(n, grid, nib.load(path).affine).tolist()
    averaging = [
        (kind, size, NiftiLabelsMasker(atlas, **options))
        for kind, options in (("", PLAIN), (", cleaned", CLEANED))
        for size, atlas in atlases.items()
    ]
    averaging.append((", smoothed", n, NiftiLabelsMasker(labels, smoothing_fwhm=5, **PLAIN)))
    maps = NiftiMapsMasker(on_grid_of(path, synthetic_atlas), **PLAIN)
    spheres = NiftiSpheresMasker(seeds, radius=8, allow_overlap=True, **PLAIN)
    for by_nilearn, streamed, n_regions, masker in (
        *((f"{LABELS}{kind}", f"{AVERAGES}{kind}", *rest) for kind, *rest in averaging),
        ("NiftiMapsMasker", "Streaming, maps", N_MAPS, maps),
        ("NiftiSpheresMasker", "Streaming, spheres", n, spheres),
    ):
        noise = np.random.default_rng(0).normal(size=(n_volumes, 12))
        confounds = noise if masker.detrend else None
        yield by_nilearn, n_regions, fit_transform, path, masker, confounds
        yield streamed, n_regions, stream, path, masker, confounds


def fit_transform(fmri_path, masker, confounds):
    """Extract series with nilearn's masker."""
    return [masker.fit_transform(fmri_path, confounds=confounds)]


def stream(fmri_path, maskers, confounds=None):
    """Extract the series of one or several maskers with `stream_masker`."""
    series = stream_masker(maskers, fmri_path, confounds)
    return series if isinstance(series, list) else [series]


def twenty(path, masks):
    """List two ways to extract the voxels of twenty masks, to compare their times."""
    return [
        ("Streaming, NiftiMaskers", len(masks), stream_nifti_maskers, path, masks),
        ("Streaming, masks", len(masks), stream_masks, path, masks),
    ]


# Other programs


def by_peers(path, atlases, masks):
    """Yield the other programs that are installed, after a check of what each returns."""
    labels = next(iter(atlases.values()))
    (expected,) = stream(path, NiftiLabelsMasker(labels, **PLAIN))
    for name, peer in PEERS.items():
        if peer.installed:
            given = atlases if peer.at_once else {len(masks): masks}
            n, first = next(iter(given.items()))
            check_peer(name, peer.average(path, first), expected[:, :n])
            yield from ((name, n, peer.average, path, regions) for n, regions in given.items())


class Peer(NamedTuple):
    """A program that averages regions: all of an atlas in one call, or one mask in each call."""

    program: str
    average: Callable  # of image and labels, or of image and masks: a list of arrays
    at_once: bool

    @property
    def installed(self):
        """Whether the program can be called; nilearn always can."""
        return not self.program or shutil.which(self.program) is not None

    @property
    def version(self):
        """The version that the program prints, None if there is none."""
        if not self.program or not self.installed:
            return None
        done = subprocess.run([self.program, "-version"], capture_output=True, text=True)
        found = re.search(r"\d+\.\d+[.\d]*", done.stdout)
        return found and found[0]


def check_peer(name, found, expected):
    """Raise a ValueError if a peer's averages are not the expected ones, to five digits."""
    found = np.column_stack(found)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-5, atol=1e-5):
        raise ValueError(
            f"{name} returns other averages than streaming, of shape {found.shape} and "
            f"{expected.shape}: it does other work, so its time cannot be compared. Remove the "
            f"program from the PATH, or correct its function in {Path(__file__).name}."
        )


def apply_masks(fmri_path, mask_paths):
    """Average the voxels that nilearn's function for one mask returns."""
    return [apply_mask(fmri_path, path).mean(axis=1) for path in mask_paths]


def call(command, fmri_path, regions):
    """Call a program for a label image, or for each of some masks; return what it prints."""
    every = regions if isinstance(regions, list) else [regions]
    words = [[word.format(image=fmri_path, regions=path) for word in command] for path in every]
    return [np.loadtxt(run(*own).splitlines()) for own in words]


def workbench_parcellate(fmri_path, labels_path):
    """Turn the image into a CIFTI file with Connectome Workbench, and average its parcels."""
    atlas = workbench_atlas(labels_path)
    with tempfile.TemporaryDirectory() as folder:
        dense, parcels = Path(folder, "a.dtseries.nii"), Path(folder, "a.ptseries.nii")
        create = "wb_command", "-cifti-create-dense-timeseries", dense, "-volume", fmri_path
        run(*create, atlas / "structure.nii.gz")
        run("wb_command", "-cifti-parcellate", dense, atlas / "a.dlabel.nii", "COLUMN", parcels)
        return [nib.load(parcels).get_fdata()]


def workbench_atlas(labels_path):
    """Prepare a label image in Workbench's formats; return the folder of the files."""

    def fill(folder):
        n_regions = int(np.max(nib.load(labels_path).dataobj))
        write_names(folder / "all.txt", map(str, range(1, n_regions + 1)))
        write_names(folder / "one.txt", ["OTHER"])  # of the brain's structures that CIFTI knows
        inside, structure, named = (folder / f"{name}.nii.gz" for name in ("in", "structure", "l"))
        run("wb_command", "-volume-math", "x > 0", inside, "-var", "x", labels_path)
        convert = "wb_command", "-volume-label-import"
        run(*convert, inside, folder / "one.txt", structure)
        run(*convert, labels_path, folder / "all.txt", named)
        create = "wb_command", "-cifti-create-label", folder / "a.dlabel.nii"
        run(*create, "-volume", named, structure)

    return prepare("workbench-atlas", [str(labels_path)], fill)


def write_names(path, names):
    """Write Workbench's list of labels: a name, then number and colour."""
    lines = [f"{name}\n{number} 1 1 1 255\n" for number, name in enumerate(names, start=1)]
    path.write_text("".join(lines))


def run(*command):
    """Run a program; return what it prints."""
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def printing(command, at_once):
    """Return the peer of a command that prints a table of averages."""
    return Peer(command.split()[0], partial(call, command.split()), at_once)


PEERS = {
    "apply_mask, mask by mask": Peer("", apply_masks, at_once=False),
    "Workbench, volume-stats, mask by mask": printing(
        "wb_command -volume-stats {image} -reduce MEAN -roi {regions}", at_once=False
    ),
    "MRtrix3, mrstats, mask by mask": printing(
        "mrstats {image} -quiet -output mean -mask {regions}", at_once=False
    ),
    "Workbench, cifti-parcellate": Peer("wb_command", workbench_parcellate, at_once=True),
    "AFNI, 3dROIstats": printing("3dROIstats -quiet -mask {regions} {image}", at_once=True),
    "FSL, fslmeants": printing("fslmeants -i {image} --label={regions}", at_once=True),
}
