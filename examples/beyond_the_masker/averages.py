"""List the ways to average regions that `benchmark` times: nilearn, streaming, other programs."""

import nibabel as nib
import numpy as np
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker, NiftiSpheresMasker

from beyond_the_masker.data import atlas_to_masks, on_grid_of
from beyond_the_masker.maskers import stream_masker, stream_nifti_maskers
from beyond_the_masker.peers import PEERS, check_peer
from beyond_the_masker.streaming import stream_masks
from beyond_the_masker.synthetic import N_MAPS, random_centres, synthetic_atlas, synthetic_labels

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
    ways = [one for way in maskers(path, atlases) for one in both(path, *way)]
    ways += peers(path, atlases, masks[:2])
    ways.append((name, sum(sizes) + len(masks), stream, path, every))
    for one in longer:
        name = f"Streaming, averages, {nib.load(one).shape[3]:,} volumes"
        ways.append((name, sizes[1], stream, one, several[1]))
    return ways


def maskers(path, atlases):
    """List nilearn's name, that of streaming, the number of regions, and the masker."""
    (n, labels), *_ = atlases.items()
    img = nib.load(path)
    seeds = random_centres(n, img.shape[:3], img.affine).tolist()
    maps = NiftiMapsMasker(on_grid_of(path, synthetic_atlas), **PLAIN)
    spheres = NiftiSpheresMasker(seeds, radius=8, allow_overlap=True, **PLAIN)
    smoothed = NiftiLabelsMasker(labels, smoothing_fwhm=5, **PLAIN)
    return [
        *(
            (f"{LABELS}{kind}", f"{AVERAGES}{kind}", n, NiftiLabelsMasker(labels, **options))
            for kind, options in (("", PLAIN), (", cleaned", CLEANED))
            for n, labels in atlases.items()
        ),
        (f"{LABELS}, smoothed", f"{AVERAGES}, smoothed", n, smoothed),
        ("NiftiMapsMasker", "Streaming, maps", N_MAPS, maps),
        ("NiftiSpheresMasker", "Streaming, spheres", n, spheres),
    ]


def both(path, by_nilearn, streamed, n_regions, masker):
    """List a masker by itself and streamed; with 12 confounds if it cleans."""
    shape = nib.load(path).shape[3], 12
    confounds = np.random.default_rng(0).normal(size=shape) if masker.detrend else None
    ways = (by_nilearn, fit_transform), (streamed, stream)
    return [(name, n_regions, function, path, masker, confounds) for name, function in ways]


def peers(path, atlases, masks):
    """List the other programs that are installed, after a check of what each returns."""
    labels = next(iter(atlases.values()))
    (expected,) = stream(path, NiftiLabelsMasker(labels, **PLAIN))
    found = []
    for name, peer in PEERS.items():
        if peer.installed:
            given = atlases if peer.at_once else {len(masks): masks}
            n, first = next(iter(given.items()))
            check_peer(name, peer.average(path, first), expected[:, :n])
            found += [(name, n, peer.average, path, regions) for n, regions in given.items()]
    return found


def twenty(path, masks):
    """List two ways to extract the voxels of twenty masks, to compare their times."""
    return [
        ("Streaming, NiftiMaskers", len(masks), stream_nifti_maskers, path, masks),
        ("Streaming, masks", len(masks), stream_masks, path, masks),
    ]


def fit_transform(fmri_path, masker, confounds):
    """Extract series with nilearn's masker."""
    return [masker.fit_transform(fmri_path, confounds=confounds)]


def stream(fmri_path, maskers, confounds=None):
    """Extract the series of one or several maskers with `stream_masker`."""
    series = stream_masker(maskers, fmri_path, confounds)
    return series if isinstance(series, list) else [series]
