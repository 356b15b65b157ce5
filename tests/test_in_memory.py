"""The image in memory: NiftiMasker's values, bad input refused, temporary files removed."""

import ast
import contextlib
import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from pickle import PicklingError
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import psutil
import pytest
from joblib import Parallel, _memmapping_reducer, cpu_count, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor
from nibabel.testing import data_path

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

plot_in_memory = load_page("plot_in_memory")
bootstrap_first_component = load_page("plot_in_memory").bootstrap_first_component
numpy_masker_joblib_map = load_page("plot_in_memory").numpy_masker_joblib_map
numpy_masker_mapped = load_page("plot_in_memory").numpy_masker_mapped
numpy_masker_threads = load_page("plot_in_memory").numpy_masker_threads

FUNCTIONS = (numpy_masker_threads, numpy_masker_joblib_map, numpy_masker_mapped)
WITH_FILE = (numpy_masker_joblib_map, numpy_masker_mapped)


def by_function(functions):
    """Parametrise with functions, their names being those of the tests."""
    return pytest.mark.parametrize("function", functions, ids=lambda f: f.__name__)


@pytest.fixture(scope="module", autouse=True)
def _workers():
    """Leave no worker behind for the tests of other files."""
    yield
    get_reusable_executor().shutdown(wait=True)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder where temporary folders are made; it must be empty after the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def rooms(monkeypatch):
    """The folders whose room was looked at: a call does so before it writes a copy."""
    looked_at, look = [], shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: looked_at.append(path) or look(path))
    return looked_at


def assert_same(series, reference):
    """Compare shapes, types up to the byte order, and every value."""
    assert [a.shape for a in series] == [a.shape for a in reference]
    assert [a.dtype for a in series] == [a.dtype.newbyteorder("=") for a in reference]
    for a, b in zip(series, reference, strict=True):
        np.testing.assert_array_equal(a, b)


# The same values as NiftiMasker
# ------------------------------

NOT_FINITE = np.random.default_rng(2).normal(size=SHAPE)
NOT_FINITE.flat[::3], NOT_FINITE.flat[1::7], NOT_FINITE.flat[2::7] = np.nan, np.inf, -np.inf

IMAGES = {  # and whether numpy_masker_mapped needs a copy of it
    "float32": ({}, ".nii.gz", True),
    "float32 .nii": ({}, ".nii", False),
    "float32 .NII.GZ": ({}, ".NII.GZ", True),
    "float64 oblique": ({"dtype": "<f8", "affine": OBLIQUE}, ".nii.gz", True),
    "float64 .nii flipped": ({"dtype": "<f8", "affine": FLIPPED}, ".nii", False),
    "int16": ({"dtype": "<i2"}, ".nii.gz", True),
    "int16 .nii": ({"dtype": "<i2"}, ".nii", False),
    "int16 scaled": ({"dtype": "<i2", "scaling": (0.37, -5)}, ".nii.gz", True),
    "int16 scaled .nii": ({"dtype": "<i2", "scaling": (1.5, 0)}, ".nii", True),
    "int16 shifted .nii": ({"dtype": "<i2", "scaling": (1, 10)}, ".nii", True),
    "big-endian int16 scaled .nii": ({"dtype": ">i2", "scaling": (0.1, 3)}, ".nii", True),
    "big-endian int16": ({"dtype": ">i2", "affine": FLIPPED}, ".nii.gz", True),
    "big-endian float32": ({"dtype": ">f4"}, ".nii.gz", True),
    "big-endian float32 .nii": ({"dtype": ">f4"}, ".nii", False),
    "uint8 .nii oblique": ({"dtype": "u1", "affine": OBLIQUE}, ".nii", False),
    "one volume": ({"shape": (5, 6, 4, 1)}, ".nii.gz", True),
    "one volume int16 .nii": ({"shape": (5, 6, 4, 1), "dtype": "<i2"}, ".nii", False),
    "NaN and inf": ({"data": NOT_FINITE}, ".nii.gz", True),
    "NaN and inf .nii": ({"data": NOT_FINITE, "dtype": ">f8"}, ".nii", False),
    "more than 1 MB": ({"shape": (30, 31, 29, 10)}, ".nii.gz", True),
    "functional.nii": (Path(data_path) / "functional.nii", None, True),
    "example4d.nii.gz": (Path(data_path) / "example4d.nii.gz", None, True),
    "example_nifti2.nii.gz": (Path(data_path) / "example_nifti2.nii.gz", None, True),
}


@pytest.fixture(scope="module", params=IMAGES.values(), ids=IMAGES.keys())
def case(request, tmp_path_factory):
    """An image, its masks, NiftiMasker's arrays, and whether the image cannot be mapped."""
    folder = tmp_path_factory.mktemp("case")
    image, suffix, needs_copy = request.param
    if isinstance(image, Path):
        fmri_path = image
        _, mask_paths = save_all(folder, nib.load(image), make_masks(nib.load(image)))
    else:
        img = make_image(**image)
        fmri_path, mask_paths = save_all(folder, img, make_masks(img), suffix)
    return fmri_path, mask_paths, nifti_masker(fmri_path, mask_paths), needs_copy


@by_function(FUNCTIONS)
@pytest.mark.parametrize("load", [str, nib.load, load_in_memory], ids=["path", "lazy", "memory"])
def test_values_are_those_of_nifti_masker(case, temporary, rooms, function, load):
    """Other values than NiftiMasker's, or a copy of a file that can be mapped."""
    fmri_path, mask_paths, reference, needs_copy = case
    assert reference[0].ndim == 2
    masks = [load(path) for path in mask_paths]
    # Workers are compared once for each image; the rest runs here, which is quick.
    with contextlib.nullcontext() if load is str else parallel_config(backend="sequential"):
        series = function(load(fmri_path), masks, 2)
    assert_same(series, reference)
    if load is load_in_memory:
        needs_copy = True
    if function is numpy_masker_threads:
        needs_copy = False
    assert [Path(folder).parent for folder in rooms] == [temporary] * (
        needs_copy or function is numpy_masker_joblib_map
    )
    for a in series:
        assert a.flags.c_contiguous
        assert a.flags.writeable
        assert not isinstance(a, np.memmap)


@by_function(FUNCTIONS)
def test_nan_around_a_mask_is_outside(tmp_path, temporary, function):
    """A mask with NaN around its region, as SPM writes it, selects other voxels or warns."""
    region = np.full(SHAPE[:3], np.nan)
    region[1:3], region[3], region[1, 1, 1] = 1, 0, np.inf
    paths = save_all(tmp_path, make_image(), [make_image(data=region)])
    with pytest.warns(UserWarning, match="Non-finite values"):
        reference = nifti_masker(*paths)
    assert reference[0].shape == (7, 47)
    assert_same(function(*paths, 1), reference)


def test_array_in_memory_is_not_copied(monkeypatch):
    """Threads get a second array of an image that is in memory already."""
    img = make_image()
    masks = make_masks(img)
    monkeypatch.setattr(np, "empty", lambda *args, **kwargs: pytest.fail("a second array"))
    series = numpy_masker_threads(img, masks, 2)
    np.testing.assert_array_equal(series[3], np.asarray(img.dataobj).reshape(-1, 7).T)


@by_function(FUNCTIONS)
def test_any_image_of_nibabel_is_taken(temporary, function):
    """An image that is not NIfTI is taken for a path, or mapped as if it were a file."""
    img = make_image()
    others = [nib.spatialimages.SpatialImage(i.dataobj, i.affine) for i in (img, *make_masks(img))]
    from_bytes = nib.Nifti1Image.from_bytes(img.to_bytes())
    with parallel_config(backend="sequential"):
        expected = numpy_masker_threads(img, make_masks(img), 1)
        assert_same(function(others[0], others[1:], 1), expected)
        assert_same(function(from_bytes, make_masks(img), 1), expected)


@by_function(FUNCTIONS)
def test_header_and_data_may_be_two_files(tmp_path, temporary, function):
    """The header's file is mapped instead of the data's. (NiftiMasker takes no such image.)"""
    img = make_image()
    fmri_path, mask_paths = save_all(tmp_path, img, make_masks(img), ".img")
    assert fmri_path.with_suffix(".hdr").exists()
    expected = numpy_masker_threads(img, make_masks(img), 1)
    for path in (fmri_path, fmri_path.with_suffix(".hdr")):
        assert_same(function(path, mask_paths, 1), expected)


def test_workers_in_another_folder_find_the_file(tmp_path, monkeypatch, temporary):
    """A relative path is sent to workers that were started elsewhere."""
    fmri_path, mask_paths = save_all(tmp_path, make_image(), make_masks(make_image()), ".nii")
    reference = nifti_masker(fmri_path, mask_paths)
    Parallel(n_jobs=2)(delayed(os.getcwd)() for _ in range(2))  # they start here
    monkeypatch.chdir(tmp_path)
    for folder in (".", "temporary"):
        monkeypatch.setattr(tempfile, "tempdir", folder)
        for function in WITH_FILE:
            assert_same(function("fmri.nii", mask_paths, 2), reference)


# Bad input
# ---------

MOVED = nib.affines.from_matvec(STRAIGHT[:3, :3], [-6, -9, -6])
GRID = ["4D image", "3D mask", "{fmri.shape} and the mask {mask.shape}", "resample_to_img"]
CUT_MASK = ["{mask_path}", "incomplete or damaged", "Copy or download it again"]
DAMAGED = ["{fmri_path}", "incomplete or damaged", "Copy or download it again"]
EMPTY = ["empty", "differs from zero"]
BAD = {  # name: image, mask, exception, what its message says
    "3D image": ("3d.nii", "mask.nii", ValueError, GRID),
    "5D image": ("5d.nii", "mask.nii", ValueError, GRID),
    "4D mask": ("fmri.nii", "mask_4d.nii", ValueError, GRID),
    "mask on another grid": ("fmri.nii", "mask_other_grid.nii", ValueError, GRID),
    "mask with another affine": (
        *("fmri.nii", "mask_moved.nii", ValueError),
        [*GRID, "{fmri.affine}", "{mask.affine}"],
    ),
    "empty mask": ("fmri.nii", "mask_empty.nii", ValueError, EMPTY),
    "mask of NaN alone": ("fmri.nii", "mask_nan.nii", ValueError, EMPTY),
    "image without volumes": ("no_volume.nii", "mask.nii", ValueError, GRID),
    "mask that is cut off": ("fmri.nii", "mask_cut.nii", OSError, CUT_MASK),
    "compressed mask that is cut off": ("fmri.nii", "mask_cut.nii.gz", OSError, CUT_MASK),
    "missing image": ("none.nii", "mask.nii", FileNotFoundError, ["{fmri_path}"]),
    "missing mask": ("fmri.nii", "none.nii", FileNotFoundError, ["{mask_path}"]),
    "cut in the first volume": ("cut_1.nii", "mask.nii", OSError, DAMAGED),
    "cut in the last volume": ("cut_9.nii", "mask.nii", OSError, DAMAGED),
    "one byte too few": ("cut_byte.nii", "mask.nii", OSError, DAMAGED),
    "scaled, one byte too few": ("scaled_cut_byte.nii", "mask.nii", OSError, DAMAGED),
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
    make_image(shape, "<i2", scaling=(0.5, 1)).to_filename(folder / "scaled.nii")
    make_image(shape[:3]).to_filename(folder / "3d.nii")
    make_image((*shape, 2)).to_filename(folder / "5d.nii")
    make_image((*shape[:3], 0)).to_filename(folder / "no_volume.nii")
    for name, options in {
        "4d": {"data": mask.dataobj[..., None]},
        "other_grid": {"data": mask.dataobj[:, :10]},
        "moved": {"data": mask.dataobj, "affine": MOVED},
        "empty": {"data": np.zeros(shape[:3])},
        "nan": {"data": np.full(shape[:3], np.nan), "dtype": "f4"},
    }.items():
        make_image(**{"dtype": "u1", **options}).to_filename(folder / f"mask_{name}.nii")
    for suffix in (".nii", ".nii.gz"):
        mask.to_filename(folder / f"mask{suffix}")
        content = (folder / f"mask{suffix}").read_bytes()
        (folder / f"mask_cut{suffix}").write_bytes(content[: len(content) * 9 // 10])
        content = (folder / f"fmri{suffix}").read_bytes()
        for tenths in (1, 9):
            (folder / f"cut_{tenths}{suffix}").write_bytes(content[: len(content) * tenths // 10])
    (folder / "cut_byte.nii").write_bytes((folder / "fmri.nii").read_bytes()[:-1])
    (folder / "scaled_cut_byte.nii").write_bytes((folder / "scaled.nii").read_bytes()[:-1])
    content = make_image(shape).to_bytes()
    deflate = zlib.compressobj(wbits=31)  # as gzip does
    start = deflate.compress(content[: len(content) * 3 // 4])  # more than is read at once
    start += deflate.flush(zlib.Z_FULL_FLUSH)
    (folder / "damaged.nii.gz").write_bytes(start + b"\xff" * 1000)
    return folder


def lazy(path):
    """Open an image without reading its data; give the path of one that is not there."""
    return nib.load(path) if path.exists() else path


@by_function(FUNCTIONS)
@pytest.mark.parametrize("load", [Path, lazy], ids=["path", "lazy"])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused(bad_files, temporary, function, load, bad):
    """Bad input gives numbers, or an error that does not say what was found and what to do."""
    fmri_name, mask_name, exception, texts = bad
    fmri_path, mask_path = bad_files / fmri_name, bad_files / mask_name
    masks = [load(bad_files / "mask.nii"), load(mask_path)]
    with parallel_config(backend="sequential"), pytest.raises(exception) as raised:
        function(load(fmri_path), masks, 2)
    assert raised.type is exception
    found = {"fmri_path": fmri_path, "mask_path": mask_path}
    found |= {"fmri": lazy(fmri_path), "mask": lazy(mask_path)}
    for text in texts:
        assert text.format(**found) in str(raised.value)


# Temporary files
# ---------------


def fail(*args, **kwargs):
    """Stand in for a step that fails in the middle of the work."""
    raise ArithmeticError("a region failed")


@by_function(FUNCTIONS)
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_nothing_is_left_when_a_worker_fails(bad_files, temporary, monkeypatch, function, n_jobs):
    """The copy of the image stays on disk because a region failed."""
    there = []

    class Failing(plot_in_memory.Parallel):
        def __call__(self, tasks):
            there.extend(temporary.rglob("fmri"))
            return super().__call__((fail, args, kwargs) for _, args, kwargs in tasks)

    monkeypatch.setattr(plot_in_memory, "Parallel", Failing)
    with pytest.raises(ArithmeticError, match="a region failed"):
        function(bad_files / "fmri.nii.gz", [bad_files / "mask.nii"] * 2, n_jobs)
    assert len(there) == (function in WITH_FILE)  # and the fixture sees that it is gone


@by_function(WITH_FILE)
def test_the_copy_holds_the_final_values(temporary, monkeypatch, function):
    """The copy is more than the image in its final type, or is not all there for the workers."""
    img = make_image(dtype="<i2", scaling=(0.5, 3))
    img = nib.Nifti1Image.from_bytes(img.to_bytes())
    copies = []

    def look(self, tasks):
        copies.extend(path.read_bytes() for path in temporary.rglob("fmri"))
        return []

    monkeypatch.setattr(plot_in_memory.Parallel, "__call__", look)
    function(img, make_masks(img), 2)
    assert copies == [np.asanyarray(img.dataobj).tobytes("F")]
    assert len(copies[0]) == 8 * np.prod(SHAPE)


@by_function(WITH_FILE)
def test_nothing_is_left_when_writing_fails(bad_files, temporary, monkeypatch, function):
    """A disk that fills up in the middle leaves the half of a copy, or ends the process."""
    monkeypatch.setattr(
        plot_in_memory,
        "open",
        lambda path, mode: contextlib.closing(
            SimpleNamespace(path=Path(path).touch(), write=full, close=lambda: None)
        ),
        raising=False,
    )

    def full(content):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device"):
        function(bad_files / "fmri.nii.gz", [bad_files / "mask.nii"], 2)


@by_function(WITH_FILE)
@pytest.mark.parametrize(
    ("shape", "free", "message"),
    [
        pytest.param((8, 8, 8, 2), 4096, None, id="just enough"),
        pytest.param((8, 8, 8, 2), 4095, "TMPDIR", id="one byte too little"),
        pytest.param(
            (64, 64, 64, 48),
            30 * 2**20,
            "48 MiB of disk, and {folder}.* has 30 MiB left.*TMPDIR",
            id="too little",
        ),
    ],
)
def test_room_is_looked_at_first(temporary, monkeypatch, function, shape, free, message):
    """The disk is filled before it is noticed that there is no room, or enough is refused."""
    img = nib.Nifti1Image(np.broadcast_to(np.float32(1), shape), STRAIGHT)
    mask_img = make_masks(img)[2]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    if message:
        with pytest.raises(OSError, match=message.format(folder=temporary)):
            function(img, [mask_img], 1)
    else:
        assert function(img, [mask_img], 1)[0].shape == (2, 1)


def test_a_file_that_is_mapped_needs_no_room(tmp_path, temporary, monkeypatch):
    """A file that can be mapped is refused because there is no room for a copy."""
    paths = save_all(tmp_path, make_image(), make_masks(make_image()), ".nii")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    content = paths[0].read_bytes()
    assert_same(numpy_masker_mapped(*paths, 2), nifti_masker(*paths))
    assert paths[0].read_bytes() == content


def open_files(process):
    """Open files of a process, and its maps of images and copies where the system tells them."""
    maps = process.memory_maps() if hasattr(process, "memory_maps") else []
    maps = [m.path for m in maps if "fmri" in Path(m.path).name]
    return sorted(f.path for f in process.open_files() if "fmri" in Path(f.path).name) + maps


@by_function(FUNCTIONS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_files_are_closed(bad_files, temporary, function, suffix):
    """No process keeps the image or its copy open or mapped, which would keep its disk space."""
    function(bad_files / f"fmri{suffix}", [bad_files / "mask.nii"] * 2, 2)
    gc.collect()
    this = psutil.Process()
    assert open_files(this) == []
    for worker in this.children(recursive=True):  # they let go a moment after their results came
        assert eventually(lambda worker=worker: not open_files(worker))


@by_function(WITH_FILE)
def test_joblib_makes_no_copy_of_the_map(tmp_path, temporary, monkeypatch, function):
    """Workers get the array's content, or a second file of it, instead of the file's name."""
    img = make_image((40, 40, 40, 8))  # more than 1 MB
    fmri_path, mask_paths = save_all(tmp_path, img, make_masks(img)[:2])
    monkeypatch.setattr(_memmapping_reducer, "dump", fail)
    with pytest.raises(PicklingError):
        Parallel(n_jobs=2)(delayed(np.sum)(np.asarray(img.dataobj)) for _ in range(2))
    assert_same(function(fmri_path, mask_paths, 2), nifti_masker(fmri_path, mask_paths))


SCRIPT = """
import sys, time
from pathlib import Path

examples, name, fmri_path, mask_path = sys.argv[1:]
sys.path.insert(0, examples)
import plot_in_memory

class Waiting(plot_in_memory.Parallel):
    def __call__(self, tasks):
        Path("waits").touch()
        return super().__call__((time.sleep, (600,), {}) for _ in range(2))

plot_in_memory.Parallel = Waiting
getattr(plot_in_memory, name)(fmri_path, [mask_path] * 2, 2)
"""


@pytest.mark.chance
@by_function(WITH_FILE)
def test_nothing_is_left_after_an_interrupt(tmp_path, temporary, bad_files, function):
    """Ctrl-C removes the copy from the disk."""
    examples = str(Path(plot_in_memory.__file__).parent)
    fmri_path, mask_path = bad_files / "fmri.nii.gz", bad_files / "mask.nii"
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "script.py", examples, function.__name__, fmri_path, mask_path],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        waits = tmp_path / "waits"
        assert eventually(lambda: waits.exists() or process.poll() is not None)
        assert list(temporary.rglob("fmri"))
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    assert "KeyboardInterrupt" in stderr


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


@by_function(FUNCTIONS)
def test_function_runs_alone(tmp_path, function):
    """A function that is copied out of its page needs something that is not copied with it."""
    paths = save_all(tmp_path, make_image(), make_masks(make_image()))
    page = Path(plot_in_memory.__file__).read_text()
    script = "\n\n\n".join(
        ast.get_source_segment(page, node)
        for node in ast.parse(page).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.FunctionDef) and node.name == function.__name__)
    )
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "script.py").write_text(script + CALL.format(function.__name__))
    (alone / "arguments").write_bytes(pickle.dumps((*paths, 2)))
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
    assert_same(pickle.loads((alone / "result").read_bytes()), nifti_masker(*paths))


# Heavy work
# ----------


def test_bootstrap_tells_one_component_from_many():
    """The share of variance is not one of a region that has a single time course, or is NaN."""
    rng = np.random.default_rng(0)
    one = np.outer(rng.normal(size=50), np.ones(8)).astype("float32")
    np.testing.assert_allclose(bootstrap_first_component(one, 5), 1, rtol=1e-5)
    noise = bootstrap_first_component(rng.normal(size=(2000, 8)), 5)
    assert ((noise > 1 / 8) & (noise < 0.2)).all()
    assert (bootstrap_first_component(np.ones((10, 3), "float32"), 2) == 0).all()


def test_bootstrap_in_workers_is_that_of_one_process():
    """A region's result depends on where or in which order it was computed."""
    regions = [np.random.default_rng(i).normal(size=(30, 5 + i)) for i in range(4)]
    serial = [bootstrap_first_component(series, 3) for series in regions]
    with parallel_config("loky", n_jobs=min(2, cpu_count()), inner_max_num_threads=1):
        results = Parallel(return_as="generator")(
            delayed(bootstrap_first_component)(series, 3) for series in regions
        )
        for a, b in zip(results, serial, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)
