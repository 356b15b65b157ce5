"""The functions of the pages on methods: NiftiMasker's values, and errors that name the cause."""

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from joblib import parallel_config
from nibabel.testing import data_path
from nilearn.maskers import NiftiLabelsMasker

from beyond_the_masker.experiments.methods import all_methods
from beyond_the_masker.experiments.pages import load_page
from beyond_the_masker.extract.running import load_in_memory
from beyond_the_masker.predict.model import AVERAGES
from made_images import (
    FLIPPED,
    OBLIQUE,
    SHAPE,
    STRAIGHT,
    assert_same,
    by_name,
    make_image,
    make_masks,
    nifti_masker,
    save_all,
)

MASKER, INDEXING, SHARED = (
    load_page(f"plot_{name}") for name in ("nifti_masker", "numpy_indexing", "shared_memory")
)
ONE_ARRAY = (
    load_page("plot_in_memory").numpy_masker_threads,
    load_page("plot_mapped_file").numpy_masker_joblib_map,
    load_page("plot_mapped_file").numpy_masker_mapped,
)


def lazy(path):
    """Open an image without reading its data; return the path of one that is not there."""
    return nib.load(path) if path.exists() else path


# A way is a function, its mode, and how its image and masks are loaded.
WAYS = {
    method.title: (method.function, method.mode, load_in_memory if method.in_memory else Path)
    for method in all_methods()
    if method.mode != AVERAGES
}
WAYS |= {
    "NiftiMasker, lazy image": (MASKER.nifti_masker_single, "single", lazy),
    "indexing, lazy image": (INDEXING.numpy_masker_single_inmemory, "single", lazy),
    "indexing, lazy image, loop": (INDEXING.numpy_masker_loop, "loop", lazy),
    "shared, lazy image": (SHARED.numpy_masker_shared_parallel, "parallel", lazy),
    "shared, in-memory image": (SHARED.numpy_masker_shared_parallel, "parallel", load_in_memory),
}
for function in ONE_ARRAY:
    for load in (lazy, load_in_memory):
        WAYS[f"{function.__name__}, {load.__name__}"] = function, "parallel", load
# This one gives the files to nilearn's masker as they are, which resamples, warns and complains.
STRICT_WAYS = {k: way for k, way in WAYS.items() if way[0].__name__ != "stream_nifti_maskers"}
PAGES = {k: way for k, way in STRICT_WAYS.items() if way[0].__module__.startswith("plot_")}
IN_PROCESSES = {k: w for k, w in PAGES.items() if w[1] == "parallel" and "threads" not in k}


def extract(way, fmri_path, mask_paths):
    """Call a function once for all masks, or for each; return a list of arrays."""
    function, mode, load = way
    if mode == "single":
        fmri = load(fmri_path)
        return [function(fmri, load(mask_path)) for mask_path in mask_paths]
    masks = [load(mask_path) for mask_path in mask_paths]
    return function(load(fmri_path), masks, *([2] if mode == "parallel" else []))


NOT_FINITE = np.random.default_rng(2).normal(size=SHAPE)
NOT_FINITE.flat[::3], NOT_FINITE.flat[1::7], NOT_FINITE.flat[2::7] = np.nan, np.inf, -np.inf
IMAGES = {
    "float32": {},
    "float32 .nii": {"suffix": ".nii"},
    "float64 oblique": {"dtype": "<f8", "affine": OBLIQUE},
    "int16 .nii": {"dtype": "<i2", "suffix": ".nii"},
    "int16 scaled .nii": {"dtype": "<i2", "scaling": (1.5, 0), "suffix": ".nii"},
    "uint8 .nii oblique": {"dtype": "u1", "affine": OBLIQUE, "suffix": ".nii"},
    "big-endian int16 scaled .nii": {"dtype": ">i2", "scaling": (0.1, 3), "suffix": ".nii"},
    "big-endian float32 .nii": {"dtype": ">f4", "suffix": ".nii"},
    "one volume int16 .nii": {"shape": (5, 6, 4, 1), "dtype": "<i2", "suffix": ".nii"},
    "NaN and inf": {"data": NOT_FINITE},
    "NaN and inf big-endian float64 .nii": {"data": NOT_FINITE, "dtype": ">f8", "suffix": ".nii"},
    "more than 1 MB, which joblib maps": {"shape": (30, 31, 29, 10), "suffix": ".nii"},
    **{name: name for name in ("functional.nii", "example_nifti2.nii.gz")},
    "example4d.nii.gz": pytest.param("example4d.nii.gz", marks=pytest.mark.extensive),  # large
}


@pytest.fixture(scope="module", params=IMAGES.values(), ids=IMAGES.keys())
def case(request, tmp_path_factory):
    """An image, its masks, and NiftiMasker's arrays."""
    folder = tmp_path_factory.mktemp("case")
    if isinstance(request.param, str):
        fmri_path = Path(data_path, request.param)
        _, mask_paths = save_all(folder, nib.load(fmri_path), make_masks(nib.load(fmri_path)))
    else:
        options = dict(request.param)
        suffix = options.pop("suffix", ".nii.gz")
        img = make_image(**options)
        fmri_path, mask_paths = save_all(folder, img, make_masks(img), suffix)
    return fmri_path, mask_paths, nifti_masker(fmri_path, mask_paths)


def check_values(case, ways):
    """Compare what each way returns with what NiftiMasker returns."""
    fmri_path, mask_paths, reference = case
    assert reference[0].ndim == 2
    for name, way in ways.items():
        series = extract(way, fmri_path, mask_paths)
        assert_same(series, reference, name)
        assert all(a.flags.c_contiguous and a.flags.writeable for a in series), name
        assert not any(isinstance(a, np.memmap) for a in series), name
        if "nifti_masker" not in way[0].__name__:  # NiftiMasker keeps the file's byte order
            assert all(a.dtype.isnative for a in series), name


def test_values_are_those_of_nifti_masker(case):
    """Every way returns NiftiMasker's values, types and shapes, whatever the image."""
    with parallel_config(backend="sequential"):
        check_values(case, WAYS)


@pytest.mark.filterwarnings("ignore:Non-finite values")
def test_averages_are_those_of_nifti_labels_masker(case, tmp_path):
    """Every way to average regions returns NiftiLabelsMasker's values and types."""
    img = nib.load(case[0])
    labels = np.random.default_rng(3).integers(0, 4, img.shape[:3], "int16")
    labels_path = tmp_path / "labels.nii"
    nib.Nifti1Image(labels, img.affine).to_filename(labels_path)
    masker = NiftiLabelsMasker(labels_path, standardize=None, reports=False)
    reference = masker.fit_transform(case[0])
    functions = [method.function for method in all_methods() if method.mode == AVERAGES]
    functions.append(load_page("plot_region_averages").average_regions)
    for function in functions:
        assert_same([function(case[0], labels_path)], [reference], function.__name__)


@by_name("way", IN_PROCESSES)
def test_workers_return_the_same_values(tmp_path, way):
    """Worker processes return the same values, also of an image that joblib maps."""
    img = make_image((30, 31, 29, 10))
    fmri_path, mask_paths = save_all(tmp_path, img, make_masks(img)[:2], ".nii")
    assert_same(extract(way, fmri_path, mask_paths), nifti_masker(fmri_path, mask_paths))


def test_voxels_of_a_mask_that_are_not_finite_are_outside(tmp_path):
    """A mask with NaN around its region, as SPM writes it, selects NiftiMasker's voxels."""
    region = np.full(SHAPE[:3], np.nan)
    region[1:3], region[3], region[1, 1, 1] = 1, 0, np.inf
    paths = save_all(tmp_path, make_image(), [make_image(data=region)])
    with pytest.warns(UserWarning, match="Non-finite values"):
        reference = nifti_masker(*paths)
    assert reference[0].shape == (7, 47)
    with parallel_config(backend="sequential"):
        check_values((*paths, reference), STRICT_WAYS)


@st.composite
def images_and_masks(draw):
    """Any values of any type in any small shape, scaled or not, and masks on its grid."""
    shape = draw(st.tuples(*[st.integers(1, 4)] * 4))
    kind = draw(st.sampled_from(["u1", "i2", "i4", "f4", "f8"]))
    scaling = st.tuples(st.floats(-100, 100).filter(lambda x: abs(x) > 0.01), st.floats(-99, 99))
    img = make_image(
        data=draw(arrays(kind, shape)),
        dtype=draw(st.sampled_from("<>")) + kind,
        affine=draw(st.sampled_from([STRAIGHT, FLIPPED, OBLIQUE])),
        scaling=draw(st.none() | scaling) if kind in ("u1", "i2", "i4") else None,
    )
    masks = draw(st.lists(arrays("u1", shape[:3]).filter(np.any), min_size=1, max_size=3))
    mask_imgs = [make_image(data=mask, dtype="u1", affine=img.affine) for mask in masks]
    return img, mask_imgs, draw(st.sampled_from([".nii", ".nii.gz"]))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # nilearn's report
@pytest.mark.filterwarnings("ignore:.* whose values are neither 0 nor 1:UserWarning")
@given(images_and_masks())
def test_any_image_gives_the_values_of_nifti_masker(tmp_path_factory, example):
    """Any shape, type, value, scaling and mask gives the values of NiftiMasker."""
    paths = save_all(tmp_path_factory.mktemp("any"), *example)
    with parallel_config(backend="sequential"):
        check_values((*paths, nifti_masker(*paths)), PAGES)


@by_name("way", {k: way for k, way in PAGES.items() if way[2] is load_in_memory and "Nif" not in k})
def test_any_image_of_nibabel_is_taken(way):
    """An image in memory need not be NIfTI, nor have a file."""
    images = [make_image(), *make_masks(make_image())[:2]]
    others = [nib.spatialimages.SpatialImage(img.dataobj, img.affine) for img in images]
    from_bytes = [nib.Nifti1Image.from_bytes(img.to_bytes()) for img in images]
    function, mode, _ = way
    with parallel_config(backend="sequential"):
        plain, other, stored = (
            extract((function, mode, lambda img: img), imgs[0], imgs[1:])
            for imgs in (images, others, from_bytes)
        )
    assert_same(other, plain)
    assert_same(stored, plain)


MOVED = nib.affines.from_matvec(STRAIGHT[:3, :3], [-6, -9, -6])
GRID = ["4D image", "3D mask", "{fmri.shape} and the mask {mask.shape}", "resample_to_img"]
AFFINES = [*GRID, "{fmri.affine}", "{mask.affine}"]
CUT_MASK = ["{mask_path}", "incomplete or damaged", "copy it again"]
DAMAGED = ["{fmri_path}", "incomplete or damaged", "copy it again"]
EMPTY = ["empty", "differs from zero"]
BAD = {  # name: image, mask, exception, parts of its message
    "3D image": ("3d.nii", "mask.nii", ValueError, GRID),
    "4D mask": ("fmri.nii", "mask_4d.nii", ValueError, GRID),
    "mask on another grid": ("fmri.nii", "mask_other_grid.nii", ValueError, GRID),
    "mask with another affine": ("fmri.nii", "mask_moved.nii", ValueError, AFFINES),
    "empty mask": ("fmri.nii", "mask_empty.nii", ValueError, EMPTY),
    "image without volumes": ("no_volume.nii", "mask.nii", ValueError, GRID),
    "mask that is cut off": ("fmri.nii", "mask_cut.nii", OSError, CUT_MASK),
    "compressed mask, damaged": ("fmri.nii", "mask_damaged.nii.gz", OSError, CUT_MASK),
    "missing image": ("none.nii", "mask.nii", FileNotFoundError, ["{fmri_path}"]),
    "missing mask": ("fmri.nii", "none.nii", FileNotFoundError, ["{mask_path}"]),
    "cut in the last volume": ("cut_9.nii", "mask.nii", OSError, DAMAGED),
    "one byte too few": ("cut_byte.nii", "mask.nii", OSError, DAMAGED),
    "compressed, cut in the last volume": ("cut_9.nii.gz", "mask.nii", OSError, DAMAGED),
    "compressed, damaged": ("damaged.nii.gz", "mask.nii", OSError, DAMAGED),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """A good image, a good mask, and a bad one of every kind."""
    folder = tmp_path_factory.mktemp("bad")
    shape = (30, 30, 30, 4)
    mask = make_masks(make_image(shape))[0]
    images = {
        **{"fmri.nii": make_image(shape), "fmri.nii.gz": make_image(shape)},
        "3d.nii": make_image(shape[:3]),
        "no_volume.nii": make_image((*shape[:3], 0)),
        "mask.nii": mask,
        "mask_4d.nii": make_image(data=np.stack([mask.dataobj] * 2, 3), dtype="u1"),
        "mask_other_grid.nii": make_image(data=mask.dataobj[:, :10], dtype="u1"),
        "mask_moved.nii": make_image(data=mask.dataobj, dtype="u1", affine=MOVED),
        "mask_empty.nii": make_image(data=np.zeros(shape[:3]), dtype="u1"),
    }
    for name, img in images.items():
        img.to_filename(folder / name)
    for name, source, share in (
        ("mask_cut.nii", "mask.nii", 0.9),
        ("cut_9.nii", "fmri.nii", 0.9),
        ("cut_9.nii.gz", "fmri.nii.gz", 0.9),
        ("cut_byte.nii", "fmri.nii", 1),
    ):
        content = (folder / source).read_bytes()
        (folder / name).write_bytes(content[: int((len(content) - 1) * share)])
    mask_of_floats = make_image(data=mask.dataobj, dtype="f8")
    for name, img in {"damaged": make_image(shape), "mask_damaged": mask_of_floats}.items():
        content = img.to_bytes()
        deflate = zlib.compressobj(wbits=31)  # as gzip does
        start = deflate.compress(content[: len(content) * 3 // 4])  # more than is read at once
        start += deflate.flush(zlib.Z_FULL_FLUSH)
        (folder / f"{name}.nii.gz").write_bytes(start + b"\xff" * 1000)
    return folder


def check_rejected(files, way, bad):
    """Check that the right exception is raised, and that its message has the right parts."""
    fmri_name, mask_name, exception, texts = bad
    fmri_path, mask_path = files / fmri_name, files / mask_name
    if exception is FileNotFoundError and "nifti_masker" in way[0].__name__:
        exception = ValueError  # nilearn's choice
    with pytest.raises(exception) as raised:
        extract(way, fmri_path, [files / "mask.nii", mask_path])
    assert raised.type is exception
    found = {"fmri_path": fmri_path, "mask_path": mask_path}
    found |= {"fmri": lazy(fmri_path), "mask": lazy(mask_path)}
    for text in texts:
        assert text.format(**found) in str(raised.value)


def rejecting(ways):
    """Every way, with the bad input that can reach it: loading may have failed before."""
    for name, way in ways.items():
        read = [b for b in BAD.values() if b[2] is ValueError or way[2] is not load_in_memory]
        opened = [b for b in read if way[2] is not lazy or b[2] is not FileNotFoundError]
        yield pytest.param(way, opened, id=name)


@pytest.mark.parametrize(("way", "bad"), list(rejecting(PAGES)))
def test_bad_input_is_rejected(bad_files, way, bad):
    """Bad input raises an error that names it and the remedy, in every function of the pages."""
    with parallel_config(backend="sequential"):  # worker processes end at an error
        for one in bad:
            check_rejected(bad_files, way, one)


def test_error_comes_through_worker_processes(bad_files):
    """The error of a worker reaches the caller unchanged."""
    way, bad = WAYS["NumPy indexing, path, parallel"], BAD["compressed, cut in the last volume"]
    check_rejected(bad_files, way, bad)
