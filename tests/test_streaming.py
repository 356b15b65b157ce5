"""stream_masks: NiftiMasker's values, errors for damaged files, little memory, no files left."""

import errno
import gc
import gzip
import importlib.util
import io
import itertools
import operator
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import made_images
from beyond_the_masker.extract import streaming
from beyond_the_masker.extract.streaming import stream_masks
from beyond_the_masker.meter import MIB, measure
from made_images import (
    FLIPPED,
    NONE,
    OBLIQUE,
    SHAPE,
    STRAIGHT,
    any_bits,
    by_name,
    changed,
    masks_for,
    open_files,
    regions,
    write,
)

TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


# Files, and NiftiMasker's arrays
# -------------------------------


def without_isal():
    """Return the module imported anew, as if isal were not installed."""
    spec = importlib.util.spec_from_file_location("streaming_without_isal", streaming.__file__)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "isal", None)
        spec.loader.exec_module(module)
    return module


MODULES = (streaming, without_isal())


def nifti_masker(fmri_path, masks):
    """Return nilearn's arrays in native byte order, without its warnings about types and values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        series = made_images.nifti_masker(fmri_path, masks)
    return [a.astype(a.dtype.newbyteorder("=")) for a in series]


def assert_same(series, reference):
    """Compare shapes, types, byte orders, and every bit of every value."""
    assert [a.shape for a in series] == [a.shape for a in reference]
    assert [a.dtype for a in series] == [a.dtype for a in reference]
    for a, b in zip(series, reference, strict=True):
        assert a.dtype.isnative
        if a.dtype == np.longdouble:  # which has bytes that mean nothing
            np.testing.assert_array_equal(a, b)
        else:
            assert a.tobytes() == b.tobytes()


# NiftiMasker's values
# --------------------


SCALINGS = [
    NONE,
    *((2, 0), (0.37, -5.1), (-1.5, 3), (1e-45, 0), (0.1, 1e10)),
    *((1, 10), (0, 7), (np.nan, 3), (np.inf, 3)),
]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_type_with_scale_factors(tmp_path, scaling):
    """Every type gives NiftiMasker's values, in its precision, in both versions of NIfTI."""
    masks = masks_for(SHAPE, OBLIQUE)
    for number, (order, kind) in enumerate(itertools.product("<>", TYPES)):
        path, data = tmp_path / f"{number}.nii", any_bits(SHAPE, order + kind)
        write(path, data, OBLIQUE, scaling, version=1 + number % 2)
        assert_same(stream_masks(path, masks), nifti_masker(path, masks))


def test_scale_factors_beyond_float64(tmp_path):
    """Numbers that nibabel scales in long double keep that type, as in NiftiMasker."""
    fmri_path = write(tmp_path / "fmri.nii", any_bits(SHAPE, "u8"), scaling=(1e300, 0), version=2)
    series = stream_masks(fmri_path, masks_for(SHAPE))
    assert series[0].dtype == np.longdouble
    assert_same(series, nifti_masker(fmri_path, masks_for(SHAPE)))


def test_unusual_files(tmp_path):
    """Every file that gzip and nibabel accept is read."""
    content = write(tmp_path / "fmri.nii", any_bits(SHAPE, "<i4")).read_bytes()
    path, masks = tmp_path / "fmri.nii.gz", masks_for(SHAPE)
    for packed in (
        gzip.compress(content[:9]) + gzip.compress(content[9:]),  # in parts, as by bgzip
        gzip.compress(content) + bytes(1000),
        gzip.compress(content + bytes(3_000_000)),  # more than the volumes
        gzip.compress(content[:108] + bytes(4) + content[112:]),  # without an offset
    ):
        path.write_bytes(packed)
        for module in MODULES:
            assert_same(module.stream_masks(path, masks), nifti_masker(path, masks))


MASKS = [
    *(lambda region, kind=kind: (3 * region).astype(kind) for kind in TYPES),
    lambda region: region.astype(">f8"),
    lambda region: -2.5 * region,
    lambda region: np.where(region, 1, np.nan),
    lambda region: np.where(region, 1e-300, np.inf),
    lambda region: region[..., None].astype("u1"),
]


def test_any_mask(tmp_path):
    """A mask of any type selects what is neither zero, nor NaN or infinite, as SPM writes it."""
    fmri_path = write(tmp_path / "fmri.nii", any_bits(SHAPE, "<i2"))
    ways = itertools.product((".nii", ".nii.gz", ".nii.bz2"), (str, Path, nib.load))
    for convert, (suffix, load) in zip(MASKS, itertools.cycle(ways), strict=False):
        mask = load(write(tmp_path / f"mask{suffix}", convert(regions(SHAPE)[0])))
        assert_same(stream_masks(str(fmri_path), [mask]), nifti_masker(fmri_path, [mask]))


def test_number_of_volumes_in_a_block(tmp_path, monkeypatch):
    """`memory_mib` or `block_size` sets the number of volumes in a block."""
    fmri_path = write(tmp_path / "fmri.nii", any_bits((8, 8, 8, 40), "<f4"))
    seen, to_values = [], streaming.to_values
    monkeypatch.setattr(
        streaming, "to_values", lambda rows, *rest: seen.append(len(rows)) or to_values(rows, *rest)
    )
    mask, ten = masks_for((8, 8, 8))[-1], 4 * 4 * 512 * 10 / MIB
    for memory_mib in (8, np.inf, ten, 0):
        stream_masks(fmri_path, [mask], memory_mib=memory_mib)
    stream_masks(fmri_path, [mask], block_size=7)
    assert seen == [40, 40, *[10] * 4, *[1] * 40, *[7] * 5, 5]


def test_without_isal():
    """One version uses isal where it is installed, the other does not."""
    assert MODULES[1].gzip is gzip
    if importlib.util.find_spec("isal"):
        assert streaming.gzip.__name__ == "isal.igzip"


def images():
    """Draw the arguments of `write`: any type, scaling, shape and place of the data."""
    scalings = st.sampled_from([(np.nan, 0.0), (1.0, 0.0), (2.0, 0.0), (0.0, 3.0)])
    arrays = st.builds(
        any_bits,
        st.tuples(*[st.integers(1, 5)] * 3, st.integers(1, 9)),
        st.builds(operator.add, st.sampled_from("<>"), st.sampled_from(TYPES)),
        st.integers(0, 2**32),
    )
    return st.fixed_dictionaries(
        {
            "data": arrays,
            "affine": st.sampled_from([STRAIGHT, FLIPPED, OBLIQUE]),
            "scaling": scalings | st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 2),
            "version": st.sampled_from([1, 2]),
            "offset": st.sampled_from([0, 0, 560, 5008]),
        }
    )


@given(
    image=images(),
    suffix=st.sampled_from([".nii", ".nii.gz", ".NII.GZ", ".nii.bz2", ".img", ".hdr.gz"]),
    block_size=st.none() | st.integers(1, 12),
    kinds=st.lists(st.sampled_from(["file", "array"]), min_size=4, max_size=4) | st.none(),
    module=st.sampled_from(MODULES),
)
def test_any_image_gives_the_values_of_nifti_masker(image, suffix, block_size, kinds, module):
    """Any shape, type, value, scaling, mask, block and output goes with any other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        same = write(folder / "same.nii", **image)  # NiftiMasker fails on a pair of files
        write(folder / f"fmri{suffix.replace('hdr', 'img')}", **image)
        masks = masks_for(image["data"].shape, image["affine"], 2)
        reference = nifti_masker(same, masks)
        out = kinds and [
            np.empty(a.shape, a.dtype) if kind == "array" else folder / f"{i}.npy"
            for i, (kind, a) in enumerate(zip(kinds, reference, strict=True))
        ]
        series = module.stream_masks(folder / f"fmri{suffix}", iter(masks), block_size, out=out)
        assert_same(series, reference)
        for path in folder.glob("*.npy"):
            assert_same([np.load(path)], [reference[int(path.stem)]])
        assert not list(folder.glob("*.unfinished"))


# Files that are cut off or damaged
# ---------------------------------


def content_of(folder, suffix):
    """Return the bytes of a small image of noise that is compressed a bit."""
    data = np.random.default_rng(3).normal(100, 9, (5, 6, 4, 5)).astype("<i2")
    path = write(folder / f"fmri{suffix}", data)
    content = path.read_bytes()
    path.unlink()
    return content


def assert_refused(folder, suffix, contents):
    """Check that each content raises an error that names the file, and leaves nothing behind."""
    fmri_path, mask = folder / f"fmri{suffix}", masks_for(SHAPE)[0]
    for number, (content, module) in enumerate(itertools.product(contents, MODULES)):
        fmri_path.write_bytes(content)
        out = [folder / "series.npy"] if number % 3 else None
        with pytest.raises((OSError, ValueError), match=re.escape(str(fmri_path))):
            module.stream_masks(fmri_path, [mask], out=out)
        assert list(folder.iterdir()) == [fmri_path]


@pytest.mark.extensive
@pytest.mark.parametrize("damage", [lambda content, n: content[:n], changed], ids=["cut", "flip"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2"])
def test_file_that_is_damaged_anywhere(tmp_path, suffix, damage):
    """A file that is cut off at any place, or has one wrong byte, raises an error."""
    if suffix == ".nii" and damage is changed:
        return  # it has no checksum
    content = content_of(tmp_path, suffix)
    n, first = len(content), 352 if suffix == ".nii" else 10
    ends = [*range(first, first + 30), *range(n - 40, n)]
    places = [*np.linspace(first, n - 1, 200).astype(int), *ends]
    assert_refused(tmp_path, suffix, [damage(content, place) for place in places])


def test_damage_is_found_by_the_checksum(tmp_path):
    """Damage to data, header, checksum or length that still decompresses raises an error."""
    content = content_of(tmp_path, ".nii")
    stored = gzip.compress(content, 0, mtime=0)  # as it is, from byte 15 on
    contents = [changed(stored, n, 0x10) for n in (-500, -8, -4, 15 + 43, 15 + 283, 15 + 290)]
    after_the_volumes = content + np.random.default_rng(0).bytes(3 * MIB)
    contents.append(changed(gzip.compress(after_the_volumes, 1), -9, 1))
    assert_refused(tmp_path, ".nii.gz", contents)


# Input that does not fit
# -----------------------

MOVED = nib.affines.from_matvec(STRAIGHT[:3, :3], [-6, -9, -6])
NO_4D, GRID = ["{fmri}", "4D NIfTI"], ["{mask}", "resample_to_img", "(5, 6, 4)"]
DAMAGED = ["incomplete or damaged", "copy it again"]
BAD = {  # name: image, mask, exception, parts of its message
    "3D image": ("3d.nii", "mask.nii", ValueError, [*NO_4D, "(5, 6, 4)"]),
    "5D image": ("5d.nii", "mask.nii", ValueError, [*NO_4D, "(5, 6, 4, 7, 2)"]),
    "no volumes": ("no_volume.nii", "mask.nii", ValueError, [*NO_4D, "(5, 6, 4, 0)"]),
    "not NIfTI": ("image.mgz", "mask.nii", ValueError, NO_4D),
    "no image at all": ("garbage.nii", "mask.nii", OSError, ["{fmri}", *DAMAGED]),
    "intercept NaN": ("intercept.nii", "mask.nii", OSError, ["{fmri}", *DAMAGED]),
    "missing": ("none.nii", "mask.nii", FileNotFoundError, ["{fmri}"]),
    "data missing": ("half.hdr", "mask.nii", FileNotFoundError, ["half.img"]),
    "mask missing": ("fmri.nii", "none.nii", FileNotFoundError, ["{mask}"]),
    "other grid": ("fmri.nii", "small.nii", ValueError, [*GRID, "(5, 5, 4)"]),
    "other affine": ("fmri.nii", "moved.nii", ValueError, [*GRID, str(MOVED), str(STRAIGHT)]),
    "mask is cut off": ("fmri.nii", "cut.nii", OSError, ["{mask}", *DAMAGED]),
    "cut off": ("cut_fmri.nii", "mask.nii", OSError, ["{fmri}", *DAMAGED]),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """Return a folder with a good image, a good mask, and a bad one of every kind."""
    folder = tmp_path_factory.mktemp("bad")
    data, region = any_bits(SHAPE, "<f4"), regions(SHAPE)[0].astype("u1")
    for name, values in {
        "fmri": data,
        "3d": data[..., 0],
        "5d": np.stack([data, data], -1),
        "mask": region,
        "small": region[:, :5],
        "no_volume": data[..., :0],
    }.items():
        write(folder / f"{name}.nii", values)
    write(folder / "moved.nii", region, MOVED)
    write(folder / "intercept.nii", data, scaling=(2, np.nan))
    write(folder / "half.img", data).unlink()
    for source, name in (("mask", "cut"), ("fmri", "cut_fmri")):
        (folder / f"{name}.nii").write_bytes((folder / f"{source}.nii").read_bytes()[:-1])
    (folder / "garbage.nii").write_bytes(np.random.default_rng(0).bytes(5000))
    nib.save(nib.MGHImage(data, STRAIGHT), folder / "image.mgz")
    return folder


@by_name("bad", BAD)
def test_bad_input_is_refused(tmp_path, bad_files, bad):
    """Bad input raises an error that names it; no result is left and no file stays open."""
    fmri_name, mask_name, exception, texts = bad
    fmri_path, mask_path = bad_files / fmri_name, bad_files / mask_name
    for out in (None, [tmp_path / "0.npy", tmp_path / "1.npy"]):
        with pytest.raises(exception) as raised:
            stream_masks(fmri_path, [bad_files / "mask.nii", mask_path], out=out)
        assert raised.type is exception
        for text in texts:
            assert text.format(fmri=fmri_path, mask=mask_path) in str(raised.value)
        # While the traceback exists: nothing is closed by the garbage collector.
        assert open_files(bad_files) == []
        assert list(tmp_path.iterdir()) == []


NO_MASKS = {
    "one mask at least": [[], {}, iter([])],
    "^A ndarray is not an image": [np.ones(SHAPE[:3]), [np.ones(SHAPE[:3])]],
    "Images of masks are needed.* not (None|3)": [None, 3],
    "Image is not an image of numbers on a grid": [
        *(nib.Nifti1Image(np.ones(SHAPE[:3], "u1"), None), nib.GiftiImage())
    ],
}


@pytest.mark.parametrize("message", NO_MASKS)
def test_no_masks(bad_files, message):
    """One mask at least is needed, and an array is none."""
    for masks in NO_MASKS[message]:
        with pytest.raises(ValueError, match=message):
            stream_masks(bad_files / "fmri.nii", masks)


def test_names_that_begin_with_a_tilde(tmp_path, monkeypatch):
    """``~/`` is the home folder, and ``~fmri.nii`` a name like any other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    data = any_bits(SHAPE, "<f4")
    write(Path("~fmri.nii"), data)
    nib.save(masks_for(SHAPE)[0], tmp_path / "~mask.nii.gz")
    reference = nifti_masker(nib.Nifti1Image(data, STRAIGHT), masks_for(SHAPE)[:1])
    for fmri_path, mask in (("~fmri.nii", "~mask.nii.gz"), ("~/~fmri.nii", "~/~mask.nii.gz")):
        assert_same(stream_masks(fmri_path, [Path(mask)]), reference)


@pytest.mark.parametrize("module", MODULES, ids=["as installed", "without isal"])
def test_files_are_closed(tmp_path, module, capfd):
    """The call itself closes the image, and prints nothing."""
    mask_path = write(tmp_path / "mask.nii.gz", regions(SHAPE)[0].astype("u1"))
    gc.collect()  # other tests' garbage may warn
    for name in ("fmri.nii", "fmri.nii.gz"):
        fmri_path = write(tmp_path / name, any_bits(SHAPE, "<f4"))
        series = module.stream_masks(fmri_path, [mask_path])
        assert open_files(tmp_path) == []
        maps = module.stream_masks(fmri_path, [mask_path], out=[tmp_path / "series.npy"])
        assert set(open_files(tmp_path)) <= {"series.npy"}  # a map may keep its file open
        assert_same(maps, series)
        del maps
        gc.collect()
        assert open_files(tmp_path) == []
    assert capfd.readouterr() == ("", "")


# Results in arrays and files
# ---------------------------


@pytest.fixture
def good(tmp_path):
    """Return an image, three masks and NiftiMasker's arrays; an empty folder for results."""
    fmri_path = write(tmp_path / "fmri.nii.gz", any_bits(SHAPE, ">f4"))
    masks, folder = masks_for(SHAPE), tmp_path / "results"
    folder.mkdir()
    return SimpleNamespace(
        fmri_path=fmri_path, masks=masks, reference=nifti_masker(fmri_path, masks), folder=folder
    )


def test_function_that_makes_arrays(good):
    """A function as `out` gets the number, shape and dtype of each result."""
    asked = []
    out = lambda *each: asked.append(each) or np.empty(*each[1:])  # noqa: E731
    assert_same(stream_masks(good.fmri_path, good.masks, out=out), good.reference)
    assert asked == [(i, a.shape, a.dtype) for i, a in enumerate(good.reference)]


def test_a_result_that_cannot_be_read_is_named(good, monkeypatch):
    """An error of the disk while a file of results is opened names the file."""
    series = stream_masks(good.fmri_path, good.masks[:1], out=[good.folder / "0.npy"])

    def fail(*_, **__):
        raise OSError(errno.EIO, "odd")

    monkeypatch.setattr(streaming.np, "load", fail)
    with pytest.raises(OSError, match=r"odd: '.*/0\.npy'"):
        series[0]


def test_results_in_arrays_and_files(good, monkeypatch):
    """Names become files, which come back as maps; arrays, of any order, come back filled."""
    monkeypatch.chdir(good.folder)
    out = ["0.npy", Path("1.npy"), np.zeros((7, 240), "f4")[:, ::2]]
    series = stream_masks(good.fmri_path, good.masks, 3, out=tuple(out))
    assert_same(series, good.reference)
    assert series[2] is out[2]
    assert sorted(path.name for path in good.folder.iterdir()) == ["0.npy", "1.npy"]
    for found, name, expected in zip(series[:2], out[:2], good.reference[:2], strict=True):
        assert Path(found.filename) == good.folder / name
        assert not found.flags.writeable
        assert_same([np.load(name)], [expected])


WRONG = {
    "too few": lambda own, name: own[:2],
    "too many": lambda own, name: [*own, own[0]],
    "one row more": lambda own, name: [np.empty((8, own[0].shape[1]), "f4"), *own[1:]],
    "float64": lambda own, name: [own[0].astype("f8"), *own[1:]],
    "byte order": lambda own, name: [own[0].astype(own[0].dtype.newbyteorder("S")), *own[1:]],
    "same file, other spelling": lambda own, name: [name(0), f"./{name(0).name}", name(1)],
    "a name and a wrong array": lambda own, name: [name(0), own[0], own[2]],
    "a dict": lambda own, name: {f"{i}.npy": array for i, array in enumerate(own)},
    "another ending": lambda own, name: [own[0], name(0).with_suffix(".nii"), own[2]],
    "a number": lambda own, name: 3,
    "as many letters as masks": lambda own, name: "abc",
    "None": lambda own, name: [None] * 3,
}


@by_name("wrong", WRONG)
def test_out_that_does_not_fit_is_refused(good, monkeypatch, wrong):
    """Output that does not fit is refused before the image is read."""
    monkeypatch.chdir(good.folder)
    monkeypatch.setattr(streaming.gzip, "open", lambda *_: pytest.fail("the image was read"))
    own = [np.full(a.shape, 99, a.dtype) for a in good.reference]
    with pytest.raises(ValueError, match="out needs"):
        stream_masks(good.fmri_path, good.masks, out=wrong(own, lambda i: good.folder / f"{i}.npy"))
    assert list(good.folder.iterdir()) == []
    assert all((a == 99).all() for a in own)


def cut_off(files, monkeypatch):
    files.fmri_path.write_bytes(files.fmri_path.read_bytes()[:-9])


def one_byte_too_few(files, monkeypatch):
    free = sum(a.nbytes for a in files.reference) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


def full_disk(files, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def ctrl_c(files, monkeypatch):
    def interrupt(file, rows, values):
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming.NpyFile, "__setitem__", interrupt)


FAILURES = {
    "image is cut off": (cut_off, OSError, "fmri.nii.gz is incomplete"),
    "no space": (one_byte_too_few, OSError, "not enough space for .*[.]npy: .* MiB"),
    "full disk": (full_disk, OSError, "No space left on device: '.*[.]npy'"),
    "Ctrl-C": (ctrl_c, KeyboardInterrupt, None),
}


@by_name(("prepare", "exception", "message"), FAILURES)
def test_failure_leaves_files_as_they_were(good, monkeypatch, prepare, exception, message):
    """A failed call leaves no unfinished file, and an earlier result as it was."""
    names = [good.folder / f"{i}.npy" for i in range(3)]
    names[0].write_bytes(b"an earlier result")
    prepare(good, monkeypatch)
    with pytest.raises(exception, match=message) as raised:
        stream_masks(good.fmri_path, good.masks, 1, out=names)
    assert "fmri.nii.gz" not in open_files(good.fmri_path.parent)
    del raised
    gc.collect()
    assert open_files(good.fmri_path.parent) == []
    assert [path.name for path in good.folder.iterdir()] == ["0.npy"]
    assert names[0].read_bytes() == b"an earlier result"


def test_what_a_killed_call_left_is_removed(good):
    """The next call removes unfinished files of processes that are gone, and no others."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    # Two calls that write the same file have different names until they are complete.
    own, other = (streaming.unfinished_beside(good.folder / "a.npy") for _ in range(2))
    left = Path(str(own).replace(f"-{os.getpid()}-", f"-{gone.pid}-"))
    for path in (own, other, left, good.folder / "of_another_program.unfinished"):
        path.touch(exist_ok=False)
    stream_masks(good.fmri_path, good.masks[:1], out=[good.folder / f"{'a' * 251}.npy"])
    assert not left.exists()
    assert len(list(good.folder.iterdir())) == 4


def test_more_files_than_may_be_open(good):
    """Hundreds of results in files need no more open files than one."""
    limits, n_open = resource.getrlimit(resource.RLIMIT_NOFILE), psutil.Process().num_fds()
    names = [good.folder / f"{i}.npy" for i in range(60)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + 20, limits[1]))
    try:
        series = stream_masks(good.fmri_path, good.masks[:1] * 60, out=names)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for one in series:
        np.testing.assert_array_equal(one, good.reference[0])
        assert not one.flags.writeable
    assert len(series[10:20:3]) == 4


def test_results_in_one_place_are_refused(good):
    """Results of the same shape in the same array would overwrite each other."""
    array = np.empty_like(good.reference[0])
    for out in ([array, array], [array, array[:]], lambda *_: array):
        with pytest.raises(ValueError, match="of its own"):
            stream_masks(good.fmri_path, good.masks[:1] * 2, out=out)
    both = np.empty((7, 2 * array.shape[1]), "f4")
    stream_masks(good.fmri_path, good.masks[:1] * 2, out=np.split(both, 2, axis=1))
    np.testing.assert_array_equal(both, np.hstack(good.reference[:1] * 2))


def test_file_that_disappears_is_not_begun_anew(good, monkeypatch):
    """If somebody removes an unfinished file, the call fails: its first rows are lost."""
    read = streaming.read_volumes

    def read_and_remove(fmri):
        for number, item in enumerate(read(fmri)):
            if number == 3:
                next(good.folder.glob("*.unfinished")).unlink()
            yield item

    monkeypatch.setattr(streaming, "read_volumes", read_and_remove)
    with pytest.raises(FileNotFoundError, match=r"a.npy.*unfinished"):
        stream_masks(good.fmri_path, good.masks[:1], 1, out=[good.folder / "a.npy"])


# Memory
# ------


@pytest.mark.chance
@pytest.mark.parametrize("n_files", [1, 50])
def test_memory_does_not_grow_with_the_image(tmp_path, n_files):
    """The call needs the result and some MiB for any number of volumes, or the MiB with files."""

    def call(fmri_path, masks, out):
        """Keep everything in memory after the last block until it has been measured."""
        streaming.tqdm.close = lambda bar: time.sleep(0.1)  # in the fresh process
        return [a.shape for a in streaming.stream_masks(fmri_path, masks, out=out)]

    grid = (40, 40, 30)
    chance = np.random.default_rng(0).random((20, *grid))
    masks = [nib.Nifti1Image((region < 0.02).astype("u1"), STRAIGHT) for region in chance]
    above = []
    for n_volumes in (100, 1000):
        data = np.ones((*grid, n_volumes // n_files), "<i2")
        files = [write(tmp_path / f"{n}.nii.gz", data) for n in range(n_files)]
        for out in (None, [tmp_path / f"{i}.npy" for i in range(20)]):
            trace = measure(call, files if n_files > 1 else files[0], masks, out)
            n_values = sum(np.prod(shape) for shape in trace.result())
            above.append(trace.above_mib - (0 if out else 4 * n_values / MIB))
    assert max(above) < 48, above
    assert max(above) - min(above) < 0.1 * max(above) + 5, above


# Decompressing ahead
# -------------------


def test_volumes_are_read_ahead_where_many_voxels_are_taken(tmp_path, monkeypatch):
    """A thread reads ahead for many voxels, not for few, nor in a worker."""
    threads, own = [], streaming.read_ahead
    monkeypatch.setattr(streaming, "read_ahead", lambda items: threads.append(1) or own(items))
    fmri_path = write(tmp_path / "fmri.nii.gz", any_bits(SHAPE, "<f4"))
    region = np.zeros(SHAPE[:3], "u1")
    region.flat[: region.size // 9] = 1
    mask = nib.Nifti1Image(region, STRAIGHT)
    expected = stream_masks(fmri_path, [mask])
    assert threads == []
    assert_same(stream_masks(fmri_path, [mask] * 9), expected * 9)
    assert threads == [1]
    monkeypatch.setattr(streaming, "is_worker", lambda: True)
    assert_same(stream_masks(fmri_path, [mask] * 9), expected * 9)
    assert threads == [1]


def test_progress_is_shown_where_someone_watches(monkeypatch):
    """There is a bar on a terminal and in a notebook, but none in a log, nor of a worker."""
    kernel = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    terminal = type("Terminal", (io.StringIO,), {"isatty": lambda self: True})
    for stream, shown in ((io.StringIO, False), (kernel, True), (terminal, True)):
        monkeypatch.setattr("sys.stderr", stream())
        assert streaming.progress_bar(2, "volume").disable is not shown
    monkeypatch.setattr(streaming, "is_worker", lambda: True)
    assert streaming.progress_bar(2, "volume").disable


def test_reading_ahead_ends_with_its_reader():
    """A reader that stops early, and an error, leave no thread; what came before is delivered."""

    def items():
        yield from range(3)
        raise OSError("the fourth")

    before = threading.active_count()
    ahead = streaming.read_ahead(items())
    assert next(ahead) == 0
    ahead.close()
    received = []
    with pytest.raises(OSError, match="the fourth"):
        list(map(received.append, streaming.read_ahead(items())))
    assert received == [0, 1, 2]
    assert threading.active_count() == before


def test_file_works_alone(good):
    """The file needs nothing of the package."""
    shutil.copy(streaming.__file__, good.folder)
    mask = good.folder / "mask.nii"
    nib.save(good.masks[0], mask)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy, streaming;"
        "numpy.save('series', *streaming.stream_masks(sys.argv[2], sys.argv[3:]));"
        "assert not [name for name in sys.modules if 'beyond' in name or 'nilearn' in name]"
    )
    command = [sys.executable, "-I", "-c", script, good.folder, good.fmri_path, mask]
    subprocess.run(command, cwd=good.folder, check=True)
    assert_same([np.load(good.folder / "series.npy")], good.reference[:1])
