"""The methods: NiftiMasker's values, bad input rejected, nothing left in shared memory."""

import ast
import contextlib
import functools
import inspect
import mmap
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor
from nibabel.testing import data_path

from beyond_the_masker.methods import Method, all_methods
from beyond_the_masker.pages import load_page
from beyond_the_masker.running import load_in_memory
from leftovers import eventually
from made_images import (
    FLIPPED,
    OBLIQUE,
    SHAPE,
    STRAIGHT,
    make_image,
    make_masks,
    nifti_masker,
    save_all,
)

plot_shared_memory = load_page("plot_shared_memory")
nifti_masker_loop = load_page("plot_nifti_masker").nifti_masker_loop
nifti_masker_parallel = load_page("plot_nifti_masker").nifti_masker_parallel
nifti_masker_single = load_page("plot_nifti_masker").nifti_masker_single
numpy_masker_loop = load_page("plot_numpy_indexing").numpy_masker_loop
numpy_masker_parallel_inmemory = load_page("plot_numpy_indexing").numpy_masker_parallel_inmemory
numpy_masker_parallel_path = load_page("plot_numpy_indexing").numpy_masker_parallel_path
numpy_masker_single_inmemory = load_page("plot_numpy_indexing").numpy_masker_single_inmemory
numpy_masker_single_path = load_page("plot_numpy_indexing").numpy_masker_single_path
numpy_masker_shared_parallel = load_page("plot_shared_memory").numpy_masker_shared_parallel
numpy_masker_shared_single = load_page("plot_shared_memory").numpy_masker_shared_single


@pytest.fixture(scope="module", autouse=True)
def _workers():
    """Leave no worker behind for the tests of other files."""
    yield
    get_reusable_executor().shutdown(wait=True)


# Images, masks and the ways to extract one from the other
# --------------------------------------------------------


def shared_single(fmri_img, mask_img):
    """Call numpy_masker_shared_single on a block that is made here."""
    data = np.asanyarray(fmri_img.dataobj)
    block = SharedMemory(create=True, size=data.nbytes)
    try:
        np.ndarray(data.shape, data.dtype, block.buf, order="F")[...] = data
        mask = np.asarray(mask_img.dataobj) != 0
        return numpy_masker_shared_single(block.name, data.shape, data.dtype, mask)
    finally:
        block.close()
        block.unlink()


def extract(way, fmri_path, mask_paths):
    """Call a way's function once for all masks, or for each; return a list of arrays."""
    if isinstance(way, Method):
        if way.mode == "single":
            return [way.call(fmri_path, [mask_path])()[0] for mask_path in mask_paths]
        return way.call(fmri_path, mask_paths, 2)()
    function, load = way
    fmri, masks = load(fmri_path), [load(path) for path in mask_paths]
    if "parallel" in function.__name__:
        return function(fmri, masks, 2)
    if "loop" in function.__name__:
        return function(fmri, masks)
    return [function(fmri, mask) for mask in masks]


def assert_same(series, reference):
    """Compare shapes, types up to the byte order, and every value."""
    assert [a.shape for a in series] == [a.shape for a in reference]
    kinds = [[a.dtype.newbyteorder("=") for a in arrays] for arrays in (series, reference)]
    assert kinds[0] == kinds[1]
    for a, b in zip(series, reference, strict=True):
        np.testing.assert_array_equal(a, b)


SINGLE_WAYS = {
    "NiftiMasker, path": (nifti_masker_single, str),
    "NiftiMasker, in-memory": (nifti_masker_single, load_in_memory),
    "indexing, path": (numpy_masker_single_path, Path),
    "indexing, in-memory": (numpy_masker_single_inmemory, load_in_memory),
    "indexing, lazy image": (numpy_masker_single_inmemory, nib.load),
}
SHARED_WAYS = {
    "shared, path": (numpy_masker_shared_parallel, Path),
    "shared, in-memory": (numpy_masker_shared_parallel, load_in_memory),
    "shared, lazy image": (numpy_masker_shared_parallel, nib.load),
}
WAYS = {
    **SINGLE_WAYS,
    "NiftiMasker, path, loop": (nifti_masker_loop, str),
    "indexing, in-memory, loop": (numpy_masker_loop, load_in_memory),
    "indexing, lazy image, loop": (numpy_masker_loop, nib.load),
    "NiftiMasker, path, parallel": (nifti_masker_parallel, Path),
    "NiftiMasker, in-memory, parallel": (nifti_masker_parallel, load_in_memory),
    "indexing, path, parallel": (numpy_masker_parallel_path, str),
    "indexing, in-memory, parallel": (numpy_masker_parallel_inmemory, load_in_memory),
    **SHARED_WAYS,
}


OTHER_WAYS = {  # than the experiment's
    **{name: way for name, way in WAYS.items() if way[1] is nib.load},
    "shared, in-memory": SHARED_WAYS["shared, in-memory"],
    "shared, single": (shared_single, nib.load),
}
EVERY_METHOD = {method.title: method for method in all_methods()}
# This one gives the files to nilearn's masker as they are, which resamples, warns and complains.
STRICT_METHODS = {
    name: method
    for name, method in EVERY_METHOD.items()
    if method.function.__name__ != "stream_nifti_maskers"
}


def by_name(names, ways):
    """Parametrise with the values of a dict, its keys being the names of the tests."""
    return pytest.mark.parametrize(names, ways.values(), ids=ways.keys())


# The same values as NiftiMasker
# ------------------------------

NOT_FINITE = np.random.default_rng(2).normal(size=SHAPE)
NOT_FINITE.flat[::3], NOT_FINITE.flat[1::7], NOT_FINITE.flat[2::7] = np.nan, np.inf, -np.inf

IMAGES = {
    "float32": {},
    "float32 .nii": {"suffix": ".nii"},
    "float64 oblique": {"dtype": "<f8", "affine": OBLIQUE},
    "float64 .nii flipped": {"dtype": "<f8", "affine": FLIPPED, "suffix": ".nii"},
    "int16": {"dtype": "<i2"},
    "int16 scaled": {"dtype": "<i2", "scaling": (0.37, -5)},
    "int16 scaled .nii oblique": {
        "dtype": "<i2",
        "scaling": (1.5, 0),
        "affine": OBLIQUE,
        "suffix": ".nii",
    },
    "uint8 .nii": {"dtype": "u1", "suffix": ".nii"},
    "big-endian int16": {"dtype": ">i2", "affine": FLIPPED},
    "big-endian int16 scaled .nii": {"dtype": ">i2", "scaling": (0.1, 3), "suffix": ".nii"},
    "big-endian float32": {"dtype": ">f4"},
    "big-endian float32 .nii": {"dtype": ">f4", "suffix": ".nii"},
    "one volume": {"shape": (5, 6, 4, 1)},
    "one volume int16 .nii": {"shape": (5, 6, 4, 1), "dtype": "<i2", "suffix": ".nii"},
    "NaN and inf": {"data": NOT_FINITE},
    "NaN and inf big-endian float64 .nii": {
        "data": NOT_FINITE,
        "dtype": ">f8",
        "suffix": ".nii",
    },
    "more than 1 MB, which joblib maps": {"shape": (30, 31, 29, 10), "suffix": ".nii"},
    "functional.nii": Path(data_path) / "functional.nii",
    "example4d.nii.gz": Path(data_path) / "example4d.nii.gz",
    "example_nifti2.nii.gz": Path(data_path) / "example_nifti2.nii.gz",
}


@pytest.fixture(scope="module", params=IMAGES.values(), ids=IMAGES.keys())
def case(request, tmp_path_factory):
    """An image, its masks, and NiftiMasker's arrays."""
    folder = tmp_path_factory.mktemp("case")
    if isinstance(request.param, Path):
        fmri_path = request.param
        _, mask_paths = save_all(folder, nib.load(fmri_path), make_masks(nib.load(fmri_path)))
    else:
        options = dict(request.param)
        suffix = options.pop("suffix", ".nii.gz")
        img = make_image(**options)
        fmri_path, mask_paths = save_all(folder, img, make_masks(img), suffix)
    return fmri_path, mask_paths, nifti_masker(fmri_path, mask_paths)


@by_name("way", {**EVERY_METHOD, **OTHER_WAYS})
def test_values_are_those_of_nifti_masker(case, way):
    """Values, types and shapes are those of NiftiMasker."""
    fmri_path, mask_paths, reference = case
    assert reference[0].ndim == 2
    series = extract(way, fmri_path, mask_paths)
    assert_same(series, reference)
    function = way.function if isinstance(way, Method) else way[0]
    if "nifti_masker" not in function.__name__:  # NiftiMasker keeps the file's byte order
        assert all(a.dtype.isnative for a in series)


@by_name("way", {**STRICT_METHODS, **WAYS})
def test_voxels_of_a_mask_that_are_not_finite_are_outside(tmp_path, way):
    """A mask with NaN around its region, as SPM writes it, selects NiftiMasker's voxels."""
    img = make_image()
    region = np.full(SHAPE[:3], np.nan)
    region[1:3], region[3], region[1, 1, 1] = 1, 0, np.inf
    fmri_path, mask_paths = save_all(tmp_path, img, [make_image(data=region)])
    with pytest.warns(UserWarning, match="Non-finite values"):
        reference = nifti_masker(fmri_path, mask_paths)
    assert reference[0].shape == (7, 47)
    assert_same(extract(way, fmri_path, mask_paths), reference)


@st.composite
def images_and_masks(draw):
    """Any values of any type in any small shape, scaled or not, and masks on its grid."""
    shape = draw(st.tuples(*[st.integers(1, 4)] * 4))
    kind = draw(st.sampled_from(["u1", "i2", "i4", "f4", "f8"]))
    data = draw(arrays(kind, shape))
    scaling = st.tuples(st.floats(-100, 100).filter(lambda x: abs(x) > 0.01), st.floats(-99, 99))
    img = make_image(
        data=data,
        dtype=draw(st.sampled_from("<>")) + kind,
        affine=draw(st.sampled_from([STRAIGHT, FLIPPED, OBLIQUE])),
        scaling=draw(st.none() | scaling) if kind in ("u1", "i2", "i4") else None,
    )
    masks = draw(st.lists(arrays("u1", shape[:3]).filter(np.any), min_size=1, max_size=3))
    mask_imgs = [make_image(data=mask, dtype="u1", affine=img.affine) for mask in masks]
    return img, mask_imgs, draw(st.sampled_from([".nii", ".nii.gz"]))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # nilearn's report
@settings(max_examples=30, deadline=None, derandomize=True)
@given(images_and_masks())
def test_any_image_gives_the_values_of_nifti_masker(example):
    """Any shape, type, value, scaling and mask gives the values of NiftiMasker."""
    with tempfile.TemporaryDirectory() as folder, parallel_config(backend="sequential"):
        paths = save_all(Path(folder), *example)
        reference = nifti_masker(*paths)
        for way in (*SINGLE_WAYS.values(), *SHARED_WAYS.values()):
            assert_same(extract(way, *paths), reference)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("image", ["float32", "big-endian int16", "int16 scaled"])
def test_image_in_memory_holds_an_array(tmp_path, suffix, image):
    """An image in memory needs its file no more, and is the same when sent or saved."""
    path, _ = save_all(tmp_path, make_image(**IMAGES[image]), [], suffix)
    expected = np.asarray(nib.load(path).dataobj).copy()
    img = load_in_memory(path)
    path.unlink()
    assert type(img.dataobj) is np.ndarray
    base = img.dataobj
    while base is not None:
        assert not isinstance(base, np.memmap)
        base = getattr(base, "base", None)
    img.to_filename(tmp_path / "saved.nii")
    for same in (img, pickle.loads(pickle.dumps(img)), nib.load(tmp_path / "saved.nii")):
        assert_same([np.asanyarray(same.dataobj)], [expected])
        np.testing.assert_array_equal(same.affine, make_image(**IMAGES[image]).affine)


# Bad input
# ---------

MOVED = nib.affines.from_matvec(STRAIGHT[:3, :3], [-6, -9, -6])
GRID = ["4D image", "3D mask", "{fmri.shape} and the mask {mask.shape}", "resample_to_img"]
CUT_MASK = ["{mask_path}", "incomplete or damaged", "Copy or download it again"]
DAMAGED = ["{fmri_path}", "incomplete or damaged", "Copy or download it again"]
BAD = {  # name: image, mask, exception, what its message says
    "3D image": ("3d.nii", "mask.nii", ValueError, GRID),
    "4D mask": ("fmri.nii", "mask_4d.nii", ValueError, GRID),
    "mask on another grid": ("fmri.nii", "mask_other_grid.nii", ValueError, GRID),
    "mask with another affine": (
        "fmri.nii",
        "mask_moved.nii",
        ValueError,
        [*GRID, "{fmri.affine}", "{mask.affine}"],
    ),
    "empty mask": ("fmri.nii", "mask_empty.nii", ValueError, ["empty", "differs from zero"]),
    "mask of NaN alone": ("fmri.nii", "mask_nan.nii", ValueError, ["empty", "differs from zero"]),
    "image without volumes": ("no_volume.nii", "mask.nii", ValueError, GRID),
    "mask that is cut off": ("fmri.nii", "mask_cut.nii", OSError, CUT_MASK),
    "compressed mask that is cut off": ("fmri.nii", "mask_cut.nii.gz", OSError, CUT_MASK),
    "compressed mask, damaged": ("fmri.nii", "mask_damaged.nii.gz", OSError, CUT_MASK),
    "missing image": ("none.nii", "mask.nii", FileNotFoundError, ["{fmri_path}"]),
    "missing mask": ("fmri.nii", "none.nii", FileNotFoundError, ["{mask_path}"]),
    "cut in the first volume": ("cut_1.nii", "mask.nii", OSError, DAMAGED),
    "cut in the last volume": ("cut_9.nii", "mask.nii", OSError, DAMAGED),
    "compressed, cut in the first volume": ("cut_1.nii.gz", "mask.nii", OSError, DAMAGED),
    "compressed, cut in the last volume": ("cut_9.nii.gz", "mask.nii", OSError, DAMAGED),
    "compressed, damaged": ("damaged.nii.gz", "mask.nii", OSError, DAMAGED),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """A good image, a good mask, and a bad one of every kind."""
    folder = tmp_path_factory.mktemp("bad")
    shape = (30, 30, 30, 4)
    mask = make_masks(make_image(shape))[0]
    make_image(shape).to_filename(folder / "fmri.nii")
    make_image(shape).to_filename(folder / "fmri.nii.gz")
    make_image(shape[:3]).to_filename(folder / "3d.nii")
    mask.to_filename(folder / "mask.nii")
    for name, options in {
        "4d": {"data": mask.dataobj[..., None]},
        "other_grid": {"data": mask.dataobj[:, :10]},
        "moved": {"data": mask.dataobj, "affine": MOVED},
        "empty": {"data": np.zeros(shape[:3])},
        "nan": {"data": np.full(shape[:3], np.nan), "dtype": "f4"},
    }.items():
        make_image(**{"dtype": "u1", **options}).to_filename(folder / f"mask_{name}.nii")
    make_image((*shape[:3], 0)).to_filename(folder / "no_volume.nii")
    for suffix in (".nii", ".nii.gz"):
        mask.to_filename(folder / f"mask{suffix}")
        content = (folder / f"mask{suffix}").read_bytes()
        (folder / f"mask_cut{suffix}").write_bytes(content[: len(content) * 9 // 10])
        content = (folder / f"fmri{suffix}").read_bytes()
        for tenths in (1, 9):
            (folder / f"cut_{tenths}{suffix}").write_bytes(content[: len(content) * tenths // 10])
    mask_of_floats = make_image(data=mask.dataobj, dtype="f8")
    for name, img in {"damaged": make_image(shape), "mask_damaged": mask_of_floats}.items():
        content = img.to_bytes()
        deflate = zlib.compressobj(wbits=31)  # as gzip does
        start = deflate.compress(content[: len(content) * 3 // 4])  # more than is read at once
        start += deflate.flush(zlib.Z_FULL_FLUSH)
        (folder / f"{name}.nii.gz").write_bytes(start + b"\xff" * 1000)
    return folder


def lazy(path):
    """Open an image without reading its data; give the path of one that is not there."""
    return nib.load(path) if path.exists() else path


def bad_calls():
    """Every way with every bad input that can reach it."""
    ways = {**WAYS, "NiftiMasker, lazy image": (nifti_masker_single, nib.load)}
    for way_name, (function, load) in ways.items():
        loaded_before = load is load_in_memory or any(
            word in function.__name__ for word in ("inmemory", "numpy_masker_loop")
        )
        for bad_name, bad in BAD.items():
            if bad[2] is ValueError or not loaded_before:  # otherwise loading it has failed
                way = (function, lazy if load is nib.load else load)
                yield pytest.param(way, bad, id=f"{bad_name}-{way_name}")


def assert_refused(files, way, bad):
    """See that the right exception is raised, and that it says the right things."""
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


@pytest.mark.parametrize(("way", "bad"), list(bad_calls()))
def test_bad_input_is_refused(bad_files, way, bad):
    """Bad input raises an error that says what was found and what to do."""
    with parallel_config(backend="sequential"):  # worker processes end at an error
        assert_refused(bad_files, way, bad)


@by_name("method", STRICT_METHODS)
@by_name("bad", {name: bad for name, bad in BAD.items() if name != "4D mask"})
def test_no_method_takes_bad_input(bad_files, method, bad):
    """Every method rejects bad input.

    The messages are tested with the functions; a method may accept a 4D mask of one volume.
    """
    paths = bad_files / bad[0], [bad_files / bad[1]]
    with parallel_config(backend="sequential"), pytest.raises((ValueError, OSError)):
        extract(method, *paths)


@pytest.mark.parametrize(
    ("way", "bad"),
    [
        ("NiftiMasker, path, parallel", "missing mask"),
        ("NiftiMasker, path, parallel", "compressed, damaged"),
        ("indexing, path, parallel", "missing mask"),
        ("indexing, path, parallel", "compressed, cut in the last volume"),
        ("indexing, in-memory, parallel", "mask with another affine"),
    ],
)
def test_error_comes_through_worker_processes(bad_files, way, bad):
    """The error of a worker reaches the caller unchanged."""
    assert_refused(bad_files, WAYS[way], BAD[bad])


# Shared memory
# -------------

needs_dev_shm = pytest.mark.skipif(
    not Path("/dev/shm").is_dir(), reason="shared memory is looked at in /dev/shm"
)


def is_there(block_name):
    """Tell whether a block exists, without attaching to it."""
    return Path("/dev/shm", block_name).exists()


@pytest.fixture
def blocks(monkeypatch):
    """The blocks that the module makes or attaches to; `track` is what it asked for."""
    recorded = []

    class Recorded(SharedMemory):
        def __init__(self, *args, track=True, **kwargs):
            super().__init__(*args, **kwargs)
            self.track = track
            recorded.append(self)

    monkeypatch.setattr(plot_shared_memory, "SharedMemory", Recorded)
    with parallel_config(backend="sequential"):  # what workers attach to is here, too
        yield recorded


def test_shared_memory_takes_any_image_of_nibabel():
    """An image in memory need not be NIfTI."""
    images = [make_image(), *make_masks(make_image())]
    others = [nib.spatialimages.SpatialImage(img.dataobj, img.affine) for img in images]
    with parallel_config(backend="sequential"):
        series = numpy_masker_shared_parallel(others[0], others[1:], 1)
        assert_same(series, numpy_masker_shared_parallel(images[0], images[1:], 1))


def fail(*arguments):
    """Stand in for a worker that fails."""
    raise ArithmeticError("a region failed")


@needs_dev_shm
@pytest.mark.parametrize(
    ("fmri_name", "worker", "exception"),
    [
        pytest.param("fmri.nii", numpy_masker_shared_single, None, id="success"),
        pytest.param("fmri.nii", fail, ArithmeticError, id="worker fails"),
        pytest.param("cut_9.nii", numpy_masker_shared_single, OSError, id="file is cut"),
        pytest.param("cut_9.nii.gz", numpy_masker_shared_single, OSError, id="gz is cut"),
    ],
)
def test_block_is_closed_and_removed(blocks, bad_files, monkeypatch, fmri_name, worker, exception):
    """After the call nothing holds the image, in this process or in /dev/shm."""
    monkeypatch.setattr(plot_shared_memory, "numpy_masker_shared_single", worker)
    expected = pytest.raises(exception) if exception else contextlib.nullcontext()
    with expected as raised:  # holds the traceback: nothing is closed by being forgotten
        numpy_masker_shared_parallel(bad_files / fmri_name, [bad_files / "mask.nii"], 2)
    if exception:
        assert raised.type is exception
        # Where a traceback is shown with its variables, this would end the interpreter.
        variables = raised.traceback[1].frame.f_locals.values()
        below = {type(array.base) for array in variables if isinstance(array, np.ndarray)}
        assert mmap.mmap not in below
    assert blocks
    assert all(block.buf is None for block in blocks)
    assert not any(is_there(block.name) for block in blocks)


def test_worker_closes_the_block_when_it_fails(blocks):
    """A worker that fails closes the block."""
    block = SharedMemory(create=True, size=2**10)
    try:
        wrong_mask = np.ones((9, 9, 9), bool)
        with pytest.raises(IndexError) as raised:
            numpy_masker_shared_single(block.name, (2, 2, 2, 2), np.dtype("f4"), wrong_mask)
        assert raised  # holds the traceback
        assert [attached.buf for attached in blocks] == [None]
    finally:
        block.close()
        block.unlink()


def test_worker_names_a_block_that_is_not_there():
    """A wrong name raises the documented error."""
    with pytest.raises(FileNotFoundError, match="no_such_block"):
        numpy_masker_shared_single("no_such_block", (1,) * 4, "f4", np.ones((1,) * 3, bool))


def test_only_the_maker_tracks_the_block(blocks, monkeypatch):
    """From Python 3.13 on, a process that attaches does not track the block."""
    monkeypatch.setattr(plot_shared_memory, "sys", SimpleNamespace(version_info=(3, 13)))
    numpy_masker_shared_parallel(make_image(), make_masks(make_image()), 1)
    assert [block.track for block in blocks] == [True] + [False] * 4


@needs_dev_shm
@pytest.mark.parametrize(
    ("shape", "free", "message"),
    [
        pytest.param((8, 8, 8, 2), 4096, None, id="just enough"),
        pytest.param((8, 8, 8, 2), 4095, "/dev/shm", id="one byte too little"),
        pytest.param(
            (64, 64, 64, 48),
            30 * 2**20,
            "48 MiB of shared memory, and /dev/shm has 30 MiB left.*--shm-size.*use a method",
            id="too little",
        ),
    ],
)
def test_room_is_looked_at_first(blocks, monkeypatch, shape, free, message):
    """Too little free space raises an error before anything is written."""
    img = nib.Nifti1Image(np.broadcast_to(np.float32(1), shape), STRAIGHT)
    mask_img = make_masks(img)[2]
    rooms = {"/dev/shm": SimpleNamespace(free=free)}
    monkeypatch.setattr(shutil, "disk_usage", rooms.__getitem__)
    if message:
        with pytest.raises(MemoryError, match=message):
            numpy_masker_shared_parallel(img, [mask_img], 1)
        assert not blocks
    else:
        assert numpy_masker_shared_parallel(img, [mask_img], 1)[0].shape == (2, 1)


def test_systems_without_dev_shm_can_share(monkeypatch):
    """Where there is no /dev/shm, as on macOS, its free space is not checked."""
    elsewhere = SimpleNamespace(is_dir=lambda: False)
    monkeypatch.setattr(plot_shared_memory, "Path", lambda path: elsewhere)
    monkeypatch.setattr(shutil, "disk_usage", {}.__getitem__)
    img = make_image()
    with parallel_config(backend="sequential"):
        assert numpy_masker_shared_parallel(img, make_masks(img)[:1], 1)[0].shape[0] == 7


SCRIPT = """
import os, signal, sys, time
from pathlib import Path

examples, what, fmri_path, mask_path = sys.argv[1:]
sys.path.insert(0, examples)
import plot_shared_memory

whole = plot_shared_memory.numpy_masker_shared_single
caller = os.getpid()

def worker(block_name, *arguments):
    note = Path(f"{os.getpid()}.unfinished")
    note.write_text(block_name)
    note.rename(note.with_suffix(".block"))
    if what == "fails":
        raise ArithmeticError("a region failed")
    if what == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while what == "waits":
        time.sleep(0.01)
        if os.getppid() != caller:  # joblib would keep the worker, and it the block, for minutes
            os._exit(1)
    return whole(block_name, *arguments)

plot_shared_memory.numpy_masker_shared_single = worker
plot_shared_memory.numpy_masker_shared_parallel(fmri_path, [mask_path] * 2, 2)
"""


# Interrupted after it removed a semaphore and before it noted that, joblib says that it leaked.
OF_A_SEMAPHORE = re.compile(
    r"^.*/loky/backend/resource_tracker\.py:\d+: UserWarning: resource_tracker: "
    r"(There appear to be \d+ leaked semlock objects|/loky-\d+-\w+: FileNotFoundError).*\n"
    r"  warnings\.warn\(.*\n",
    re.M,
)


@pytest.mark.chance
@needs_dev_shm
@pytest.mark.parametrize(
    ("worker", "end", "status", "said"),
    [
        pytest.param("succeeds", None, 0, "", id="success"),
        pytest.param("fails", None, 1, "ArithmeticError: a region failed", id="worker fails"),
        pytest.param("is killed", None, 1, "TerminatedWorkerError", id="worker is killed"),
        pytest.param(
            "waits",
            lambda process: os.killpg(process.pid, signal.SIGINT),
            -signal.SIGINT,
            "KeyboardInterrupt",
            id="Ctrl-C",
        ),
        pytest.param(
            "waits",
            lambda process: process.send_signal(signal.SIGINT),
            -signal.SIGINT,
            "KeyboardInterrupt",
            id="interrupt of the caller",
        ),
        pytest.param("waits", subprocess.Popen.kill, -signal.SIGKILL, "", id="caller is killed"),
    ],
)
def test_nothing_is_left_in_shared_memory(tmp_path, bad_files, worker, end, status, said):
    """However the program ends, the block is removed."""
    examples = str(Path(plot_shared_memory.__file__).parent)
    fmri_path, mask_path = bad_files / "fmri.nii", bad_files / "mask.nii"
    (tmp_path / "script.py").write_text(SCRIPT)
    before = {path.name for path in Path("/dev/shm").iterdir()}
    process = subprocess.Popen(
        [sys.executable, "script.py", examples, worker, fmri_path, mask_path],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        if end:
            blocks = functools.partial(tmp_path.glob, "*.block")
            assert eventually(lambda: len([*blocks()]) == 2 or process.poll() is not None)
            end(process)
        # Until all have closed it: also the workers, and the trackers, which come last.
        _, stderr = process.communicate(timeout=300)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # which the trackers outlive, to clean up
        raise
    assert process.returncode == status
    block_name = next(tmp_path.glob("*.block")).read_text()
    assert not is_there(block_name)
    assert said in stderr
    if status == -signal.SIGINT:
        stderr = OF_A_SEMAPHORE.sub("", stderr)
    if end is not subprocess.Popen.kill:  # then the tracker removes the block, and says so
        assert "leaked" not in stderr
        assert "resource_tracker" not in stderr
    new = {path.name for path in Path("/dev/shm").iterdir()} - before
    assert not [name for name in new if re.search(rf"[-_]{process.pid}[-_]", name)]  # joblib's


# A function that is copied out of its page
# -----------------------------------------

CALL = """

if __name__ == "__main__":
    import pickle as _pickle

    with open("arguments", "rb") as _file:
        _arguments = _pickle.load(_file)
    with open("result", "wb") as _file:
        _pickle.dump({}(*_arguments), _file)
"""
TESTED_ELSEWHERE = ("plot_in_memory", "plot_stream_masks", "plot_stream_masker")
COPIED = {
    method.function.__name__: (
        method.function,
        load_in_memory if method.in_memory else Path,
        method.mode,
    )
    for method in all_methods()
    if method.function.__module__ not in TESTED_ELSEWHERE
}
COPIED["numpy_masker_shared_single"] = (numpy_masker_shared_single, nib.load, "single")


def copy_out(function):
    """Imports of a page, one of its functions, and the functions of the page that it calls."""
    page = Path(inspect.getsourcefile(function)).read_text()
    called = ast.walk(ast.parse(inspect.getsource(function)))
    names = {function.__name__, *(node.id for node in called if isinstance(node, ast.Name))}
    return "\n\n\n".join(
        ast.get_source_segment(page, node)
        for node in ast.parse(page).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.FunctionDef) and node.name in names)
    )


@by_name(("function", "load", "mode"), COPIED)
def test_function_runs_alone(tmp_path, function, load, mode):
    """A function runs with the imports of its page and the functions that it calls."""
    data, alone = tmp_path / "data", tmp_path / "alone"
    data.mkdir()
    alone.mkdir()
    fmri_path, mask_paths = save_all(data, make_image(), make_masks(make_image())[:2])
    script, name = copy_out(function), function.__name__
    fmri, masks = load(fmri_path), [load(path) for path in mask_paths]
    arguments = (fmri, masks[0] if mode == "single" else masks, 2)[: 3 if mode == "parallel" else 2]
    if function is numpy_masker_shared_single:  # this one needs a block to look at
        name = shared_single.__name__
        script += "\n\n\n" + inspect.getsource(shared_single)
    (alone / "script.py").write_text(script + CALL.format(name))
    (alone / "arguments").write_bytes(pickle.dumps(arguments))
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", "script.py"],
        cwd=alone,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    result = pickle.loads((alone / "result").read_bytes())
    reference = nifti_masker(fmri_path, mask_paths)
    if mode == "single":
        assert_same([result], reference[:1])
    else:
        assert_same(result, reference)
