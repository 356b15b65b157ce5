"""Blocks over workers: the arrays of one pass, a block's bytes alone, failures said, no litter."""

import contextlib
import gzip
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor
from nibabel.testing import data_path

from beyond_the_masker import block_costs as measured_blocks
from beyond_the_masker import blocks as page
from beyond_the_masker.block_costs import APART, memory_of, prepare_both, same, with_apart
from beyond_the_masker.blocks import Volumes, extract_block, make_index, mask_blocks
from beyond_the_masker.figures import plot_ways
from beyond_the_masker.meter import MIB, measure
from beyond_the_masker.streaming import stream_masks
from good_figures import is_a_good_figure, nothing_overlaps
from leftovers import SHM, allocate, allocate_here_and_in_workers, named_after
from made_images import FLIPPED, OBLIQUE, STRAIGHT, make_masks
from small_site import regions_of
from test_streaming import TYPES, any_bits, write

EXAMPLES = Path(page.__file__).parent
SHAPE = (5, 6, 4, 7)


@pytest.fixture(scope="module", autouse=True)
def _no_workers_left():
    """Workers stay for the tests of this file, where starting them would take the time."""
    yield
    get_reusable_executor().shutdown(wait=True)
    plt.close("all")


@pytest.fixture
def indexed_gzip(monkeypatch):
    """Let this process import indexed_gzip, for one test; its nibabel was imported without."""
    monkeypatch.syspath_prepend(str(APART))
    importlib.import_module("indexed_gzip")
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "indexed_gzip"]:
        del sys.modules[name]


def named(mask_imgs):
    """Masks as a dict."""
    return {f"mask_{i}": mask_img for i, mask_img in enumerate(mask_imgs)}


def image_and_masks(folder, dtype="<i2", name="fmri.nii", shape=SHAPE, **options):
    """Write an image; give its path, and masks on its grid."""
    path = write(folder / name, any_bits(shape, dtype), **options)
    return path, named(make_masks(nib.load(path)))


# The arrays of one pass
# ----------------------


@st.composite
def cases(draw):
    """An image of any type, scaling and shape, a size of blocks, and workers."""
    shape = draw(st.tuples(*[st.integers(1, 5)] * 3, st.integers(1, 9)))
    dtype = draw(st.sampled_from("<>")) + draw(st.sampled_from(TYPES))
    volume_mib = np.prod(shape[:3]) * np.dtype(dtype).itemsize / MIB
    return {
        "data": any_bits(shape, dtype, draw(st.integers(0, 2**32))),
        "affine": draw(st.sampled_from([STRAIGHT, FLIPPED, OBLIQUE])),
        "scaling": draw(
            st.sampled_from([(np.nan, 0.0), (1.0, 0.0), (2.0, 0.0), (0.0, 3.0)])
            | st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32))
        ),
        "version": draw(st.sampled_from([1, 2])),
        "offset": draw(st.sampled_from([0, 0, 560, 5008])),
        "name": draw(st.sampled_from(["fmri.nii", "fmri.img", "FMRI.NII"])),
    }, {
        "block_mib": draw(st.floats(0, 10)) * volume_mib,
        "n_jobs": draw(st.sampled_from([None, 1, 2, 3])),
    }


@settings(max_examples=200)
@given(cases())
def test_the_arrays_are_those_of_one_pass(case):
    """Some shape, type, value, scaling, byte order, offset or size of block gives other bits."""
    image, options = case
    with tempfile.TemporaryDirectory() as folder, parallel_config("threading"):
        fmri_path = write(Path(folder) / image.pop("name"), **image)
        masks = [m for m in make_masks(nib.load(fmri_path)) if np.asarray(m.dataobj).any()]
        found = mask_blocks(fmri_path, named(masks), **options)
        assert same(found, stream_masks(fmri_path, masks))
        assert all(series.dtype.isnative and series.flags.writeable for series in found)


@pytest.mark.parametrize("dtype", ["<i2", ">f4", "<f8"])
def test_processes_give_the_arrays_of_one_pass(tmp_path, dtype):
    """What travels to another process, and back in any order, is put in another place."""
    fmri_path, masks = image_and_masks(tmp_path, dtype, shape=(5, 6, 4, 23), scaling=(0.37, -5.1))
    volume_mib = 120 * np.dtype(dtype).itemsize / MIB
    found = mask_blocks(str(fmri_path), masks, n_jobs=2, block_mib=2 * volume_mib)
    assert same(found, stream_masks(fmri_path, masks.values()))


def test_rows_may_come_in_any_order(tmp_path, monkeypatch):
    """Rows are put in the order in which they come."""
    fmri_path, masks = image_and_masks(tmp_path)

    class Backwards:
        def __init__(self, n_jobs, return_as):
            assert return_as == "generator_unordered"

        def __call__(self, tasks):
            return (function(*args, **kwargs) for function, args, kwargs in reversed(tasks))

    monkeypatch.setattr(page, "Parallel", Backwards)
    found = mask_blocks(fmri_path, masks, block_mib=0)
    assert same(found, stream_masks(fmri_path, masks.values()))


def test_same_sees_a_bit():
    """What compares the arrays, here and on the page, takes others for the same."""
    array = np.zeros((2, 3), "f4")
    assert same([array], [array.copy()])
    for other in (-array, array[:1], array.reshape(3, 2), array.astype("f8"), array.view("i4")):
        assert not same([array], [other])
    with pytest.raises(ValueError, match="zip"):
        same([array], [])


# A block's bytes alone
# ---------------------


@pytest.fixture
def sparse(tmp_path):
    """An image of 64 GiB that is a hole, but for two volumes in the middle."""
    shape, dtype = (64, 64, 64, 2**17), np.dtype("<i2")
    header = nib.Nifti2Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header["vox_offset"] = 544
    path, middle = tmp_path / "sparse.nii", 2**16
    values = any_bits((*shape[:3], 2), dtype)
    with open(path, "wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.seek(544 + middle * values[..., 0].nbytes)
        file.write(values.tobytes("F"))
        file.truncate(544 + shape[3] * values[..., 0].nbytes)
    return path, middle, values


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what is read")
def test_only_the_bytes_of_a_block_are_read(sparse):
    """A worker reads what comes before its block, or behind it."""
    path, middle, values = sparse

    def n_read():
        return int(Path("/proc/self/io").read_text().split()[1])

    volumes, positions = Volumes.of(nib.load(path)), np.arange(64**3)
    before = n_read()
    start, rows = extract_block(volumes, positions, middle, middle + 2)
    assert values.nbytes <= n_read() - before <= values.nbytes + 2**16
    assert start == middle
    np.testing.assert_array_equal(rows, values.reshape(-1, 2, order="F").T.astype("f4"))


@pytest.mark.chance
def test_a_worker_needs_its_block_and_rows(tmp_path):
    """A worker has its block once, unscaled, and the rows of the block."""
    path = write(tmp_path / "fmri.nii", any_bits((64, 64, 32, 512), "<i2"), scaling=(0.1, 3))
    inside = np.zeros((64, 64, 32), "u1")
    inside[:8] = 1
    mask = {"mask": nib.Nifti1Image(inside, STRAIGHT)}
    call = partial(mask_blocks, path, mask, 2, block_mib=32)
    found, above, of_worker, _ = memory_of(call, 2, ("plot_large_image_in_blocks",))
    assert same(found, stream_masks(path, mask.values()))
    rows = 128 * inside.sum() * 8 / MIB  # of a block, scaled in float64
    assert 28 < of_worker < 32 + 2 * rows + 16, of_worker
    assert above < 2 * (32 + 2 * rows + 16) + 2 * found[0].nbytes / MIB + 16, above


def test_what_travels_is_small(sparse):
    """The image, or a part of it, is sent with each task."""
    import pickle

    volumes = Volumes.of(nib.load(sparse[0]), "an.index")
    assert len(pickle.dumps(volumes)) < 1000
    assert pickle.loads(pickle.dumps(volumes)) == volumes
    assert Path(volumes.file).is_absolute()
    assert Path(volumes.index).is_absolute()


@pytest.mark.parametrize(
    ("block_mib", "expected"),
    [(0, 5), (1e-9, 5), (2, 3), (2.9, 3), (5, 1), (1e6, 1)],
)
def test_blocks_cover_all_volumes_once(block_mib, expected):
    """A volume is left out, or done twice, or a block is larger than was asked for."""
    volumes = Volumes("file", (64, 64, 64, 5), np.dtype("<f4"), 352, 1.0, 0.0)  # of 1 MiB each
    blocks = volumes.blocks(block_mib)
    assert [n for block in blocks for n in range(*block)] == list(range(5))
    assert len(blocks) == expected


# What is refused
# ---------------


def test_other_grids_are_refused(tmp_path):
    """Masks of another shape or place give numbers."""
    fmri_path, _ = image_and_masks(tmp_path)
    _, moved = image_and_masks(tmp_path, name="moved.nii", affine=OBLIQUE)
    _, small = image_and_masks(tmp_path, name="small.nii", shape=(5, 5, 4, 7))
    for others in (moved, small):
        with pytest.raises(ValueError, match="resample_to_img") as raised:
            mask_blocks(fmri_path, others)
        assert str(fmri_path) in str(raised.value)
        assert str(next(iter(others.values())).shape) in str(raised.value)
        assert str(STRAIGHT) in str(raised.value)
    with pytest.raises(ValueError, match="has 0 voxels"):
        mask_blocks(fmri_path, {"none": nib.Nifti1Image(np.zeros(SHAPE[:3], "u1"), STRAIGHT)})
    with pytest.raises(ValueError, match="one mask"):
        mask_blocks(fmri_path, [])


def test_what_is_no_4d_image_is_refused(tmp_path):
    """An image with another number of dimensions, or of complex numbers, gives arrays."""
    _, masks = image_and_masks(tmp_path)
    for data in (
        np.ones(SHAPE[:3], "<f4"),
        np.ones((*SHAPE, 1), "<f4"),
        np.ones((*SHAPE[:3], 0), "<f4"),
        np.ones(SHAPE, "<c8"),
    ):
        path = write(tmp_path / "other.nii", data)
        with pytest.raises(ValueError, match="not a 4D NIfTI image of numbers"):
            mask_blocks(path, masks)
    nib.save(nib.MGHImage(np.ones(SHAPE, "f4"), STRAIGHT), tmp_path / "image.mgz")
    with pytest.raises(ValueError, match="not a 4D NIfTI"):
        mask_blocks(tmp_path / "image.mgz", masks)


@pytest.mark.parametrize("missing", [1, 241, 3 * 240, 7 * 240])
def test_a_file_that_is_cut_off_is_refused(tmp_path, monkeypatch, missing):
    """A task is sent for a file that lacks volumes, or the error does not say how many."""
    fmri_path, masks = image_and_masks(tmp_path)
    n_bytes = fmri_path.stat().st_size
    os.truncate(fmri_path, n_bytes - missing)
    monkeypatch.setattr(page, "Parallel", lambda *_, **__: pytest.fail("tasks were sent"))
    with pytest.raises(OSError, match="incomplete") as raised:
        mask_blocks(fmri_path, masks)
    there = 7 - -(-missing // 240)
    for text in (fmri_path, f"{there} of 7 volumes", f"{n_bytes - missing:,} of {n_bytes:,} bytes"):
        assert str(text) in str(raised.value)


def test_a_file_that_is_cut_off_meanwhile_is_refused(tmp_path):
    """A block that is not there any more is made up."""
    fmri_path, _ = image_and_masks(tmp_path)
    volumes = Volumes.of(nib.load(fmri_path))
    os.truncate(fmri_path, 352 + 3 * 240 + 17)
    extract_block(volumes, np.arange(5), 0, 3)
    with pytest.raises(OSError, match="damaged") as raised:
        extract_block(volumes, np.arange(5), 2, 4)
    assert str(fmri_path) in str(raised.value)
    fmri_path.unlink()
    with pytest.raises(FileNotFoundError, match=r"fmri.nii"):
        extract_block(volumes, np.arange(5), 0, 3)


def test_a_worker_that_cannot_read_says_so(tmp_path):
    """An error in another process is lost, or keeps the others busy."""
    fmri_path, masks = image_and_masks(tmp_path)
    volumes = Volumes.of(nib.load(fmri_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "check_file", lambda *_: os.truncate(fmri_path, 352 + 5 * 240))
        with pytest.raises(OSError, match=r"fmri.nii is incomplete or damaged"):
            mask_blocks(fmri_path, masks, n_jobs=2, block_mib=0)
    assert volumes.blocks(0)[-1] == (6, 7)


def test_what_is_no_image_is_refused(tmp_path):
    """A file that is missing or garbage ends in an error from the inside of nibabel."""
    _, masks = image_and_masks(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none.nii"):
        mask_blocks(tmp_path / "none.nii", masks)
    (tmp_path / "garbage.nii").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(OSError, match=r"garbage.nii is incomplete or damaged"):
        mask_blocks(tmp_path / "garbage.nii", masks)
    write(tmp_path / "half.img", any_bits(SHAPE, "<f4")).unlink()
    with pytest.raises(FileNotFoundError, match=r"half.img"):
        mask_blocks(tmp_path / "half.hdr", masks)


@pytest.mark.parametrize(
    "name", ["fmri.nii.gz", "fmri.nii.bz2", "fmri.img.gz", "FMRI.NII.GZ", "fmri.nii.zst"]
)
def test_a_compressed_file_is_refused_with_the_reason(tmp_path, name):
    """A compressed file is read in blocks, or the reader is left without advice."""
    fmri_path, masks = image_and_masks(tmp_path)
    fmri_img = nib.load(fmri_path)
    fmri_img.file_map["image"].filename = str(tmp_path / name)
    with pytest.raises(ValueError, match="one beginning") as raised:
        page.check_file(Volumes.of(fmri_img), tmp_path / name)
    for word in (name, "stream_masks", "decompress it once", "make_index"):
        assert word in str(raised.value)
    if name == "fmri.nii.gz":
        write(tmp_path / name, any_bits(SHAPE, "<f4"))
        with pytest.raises(ValueError, match="one beginning"):
            mask_blocks(tmp_path / name, masks)


# An index
# --------


def test_indexed_gzip_is_kept_apart():
    """It is not installed as the Makefile says; or it is, and all of nibabel uses it."""
    assert importlib.util.find_spec("indexed_gzip") is None
    before = sys.path[:]
    with with_apart() as there:
        assert there, f"indexed_gzip is not in {APART}: run make test"
    assert sys.path == before
    made = (EXAMPLES.parent / "Makefile").read_text()
    assert "--target $(VENV)/apart -r examples/requirements-apart.txt" in made


def packed_like(fmri_path):
    """Write the ``.nii.gz`` of an image, of many parts of the stream."""
    path = fmri_path.with_name(f"{fmri_path.name}.gz")
    path.write_bytes(gzip.compress(fmri_path.read_bytes(), 1, mtime=0))
    return path


@pytest.fixture
def large(tmp_path):
    """An image of 20 MiB, compressed to less, with an index of several points; and masks."""
    data = np.random.default_rng(0).normal(100, 9, (32, 32, 32, 160)).astype(">i2")
    fmri_path = write(tmp_path / "fmri.nii", data, scaling=(0.5, -3))
    return fmri_path, packed_like(fmri_path), named(make_masks(nib.load(fmri_path))[:3])


def test_an_index_gives_the_arrays_of_one_pass(large, tmp_path, indexed_gzip):
    """A block that begins at a point of the index has other values."""
    _, packed, masks = large
    index = tmp_path / "sub" / "fmri.gzidx"
    make_index(packed, index)
    assert [path.name for path in index.parent.iterdir()] == ["fmri.gzidx"]
    expected = stream_masks(packed, masks.values())
    for block_mib in (1.3, 32):
        found = mask_blocks(str(packed), masks, block_mib=block_mib, index=str(index))
        assert same(found, expected)


def test_processes_with_an_index(large, tmp_path):
    """Workers do not find indexed_gzip, or one another's index; or nibabel's use of it matters."""
    _, packed, masks = large
    index = tmp_path / "fmri.gzidx"
    with with_apart():
        measure(make_index, packed, index).result()
        found = measure(mask_blocks, packed, masks, 2, block_mib=3, index=index).result()
    assert same(found, stream_masks(packed, masks.values()))


def test_an_index_that_does_not_fit_is_refused(large, tmp_path, indexed_gzip):
    """An index of another file, or of an earlier state, gives numbers that are none."""
    plain, packed, masks = large
    index = tmp_path / "fmri.gzidx"
    make_index(packed, index)
    with pytest.raises(ValueError, match=r"fmri.nii does not end in .gz"):
        mask_blocks(plain, masks, index=index)
    with pytest.raises(FileNotFoundError, match=r"none.gzidx"):
        mask_blocks(packed, masks, index=tmp_path / "none.gzidx")
    garbage = tmp_path / "garbage.gzidx"
    garbage.write_bytes(bytes(5000))
    with pytest.raises(OSError, match=r"garbage.gzidx is no index of"):
        mask_blocks(packed, masks, index=garbage)
    os.utime(packed, (time.time() + 10,) * 2)
    with pytest.raises(OSError, match=r"is older than .*make the index again"):
        mask_blocks(packed, masks, index=index)
    content = packed.read_bytes()
    packed.write_bytes(content[:-1])
    os.utime(packed, (0, 0))
    with pytest.raises(OSError, match="is no index of"):
        mask_blocks(packed, masks, index=index)


def test_no_index_of_a_damaged_file(large, tmp_path, indexed_gzip):
    """The end of a file was cut off, or a bit changed, and an index is made of it."""
    _, packed, _ = large
    content, index = packed.read_bytes(), tmp_path / "fmri.gzidx"
    changed = bytearray(content)
    changed[-6] ^= 1
    for damaged in (content[:-1], content[:-9], content[: len(content) // 2], bytes(changed)):
        packed.write_bytes(damaged)
        with pytest.raises(OSError, match=r"fmri.nii.gz is incomplete or damaged"):
            make_index(packed, index)
        assert not index.exists()
    with pytest.raises(FileNotFoundError):
        make_index(tmp_path / "none.nii.gz", index)


def test_an_index_of_too_few_volumes_is_refused(tmp_path, indexed_gzip):
    """A ``.nii.gz`` that was made of a file that was cut off gives made-up volumes."""
    fmri_path, masks = image_and_masks(tmp_path)
    os.truncate(fmri_path, 352 + 5 * 240)
    packed, index = packed_like(fmri_path), tmp_path / "fmri.gzidx"
    make_index(packed, index)
    with pytest.raises(OSError, match="5 of 7 volumes"):
        mask_blocks(packed, masks, index=index)


def test_without_indexed_gzip_an_index_is_refused(tmp_path):
    """The reason is another than that the library is missing."""
    fmri_path, masks = image_and_masks(tmp_path)
    packed, index = packed_like(fmri_path), tmp_path / "fmri.gzidx"
    index.touch()
    for call in (partial(make_index, packed), partial(mask_blocks, packed, masks, index=index)):
        with pytest.raises(ModuleNotFoundError, match="indexed_gzip"):
            call(index) if call.func is make_index else call()


def test_without_an_index_more_is_decompressed(large):
    """The page counts other bytes than were decompressed."""
    plain, packed, _ = large
    n_bytes = page.blocks_without_index(packed, 1, block_mib=2.5)
    volume = 32**3 * 2
    assert n_bytes == sum(352 + stop * volume for stop in range(40, 161, 40))
    assert n_bytes > 2.4 * plain.stat().st_size


# Ctrl-C
# ------

SCRIPT = """
import sys, time
import nibabel as nib, numpy as np
import plot_large_image_in_blocks as page
from plot_stream_masks import stream_masks

class Slow:
    def __init__(self, **options): pass
    def __enter__(self): return self
    def __exit__(self, *exception): pass
    def update(self, n):
        print("block", flush=True)
        time.sleep(600)  # until Ctrl-C comes

mask_img = nib.Nifti1Image(np.ones((66, 66, 66), "u1"), np.eye(4))
fast, page.tqdm = page.tqdm, Slow
if __name__ == "__main__":
    try:
        page.mask_blocks(sys.argv[1], {"all": mask_img}, n_jobs=2, block_mib=0)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    page.tqdm = fast
    (found,) = page.mask_blocks(sys.argv[1], {"all": mask_img}, n_jobs=2)
    print("again", (found == stream_masks(sys.argv[1], [mask_img])[0]).all(), flush=True)
"""


@pytest.mark.chance
def test_ctrl_c_leaves_nothing(tmp_path):
    """After Ctrl-C the next call works; then no worker and no file is left."""
    data = np.arange(66**3 * 30, dtype="i4").reshape((66, 66, 66, 30)).astype("<i2")
    fmri_path = tmp_path / "data" / "fmri.nii"
    fmri_path.parent.mkdir()
    write(fmri_path, data, np.eye(4))
    (tmp_path / "empty").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(fmri_path)],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(EXAMPLES)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "block\n"
    caller = psutil.Process(process.pid)
    tree = caller.children(recursive=True)
    assert len(tree) >= 2

    def shared():  # the positions of voxels, more than 1 MiB, as joblib sends them
        return [file for file in SHM.glob("*") if named_after(file, [caller])]

    assert shared() or not SHM.is_dir()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines() == ["interrupted", "again True"]
    assert psutil.wait_procs(tree, timeout=60)[1] == []
    assert shared() == []
    assert list((tmp_path / "empty").iterdir()) == []
    assert [path.name for path in fmri_path.parent.iterdir()] == ["fmri.nii"]


# What is measured
# ----------------


def test_both_files_hold_the_same(tmp_path):
    """The uncompressed file has other values than the compressed one, or more volumes."""
    data = any_bits((8, 8, 8, 20), "<i2")
    volume_mib = 512 * 8 / MIB  # float64, scaled
    for name in ("fmri.nii", "fmri.nii.gz"):
        fmri_path = write(tmp_path / name, data, scaling=(0.5, 1))
        for most_mib, length in ((512, 20), (6.5 * volume_mib, 6), (0, 1)):
            packed, plain = prepare_both(fmri_path, most_mib)
            assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
            assert nib.load(plain).shape == (8, 8, 8, length)
            assert packed.is_symlink() == (name.endswith(".gz") and length == 20)
            values = np.asarray(nib.load(fmri_path).dataobj)[..., :length]
            np.testing.assert_allclose(np.asarray(nib.load(plain).dataobj), values, atol=1)


def test_times_are_taken_in_turns(monkeypatch):
    """A call is timed in a row, or its first run counts."""
    done, clock = [], iter(range(1000))
    monkeypatch.setattr(
        measured_blocks, "time", type("clock", (), {"perf_counter": lambda: next(clock)})
    )
    calls = {name: partial(done.append, name) for name in "ab"}
    seconds = measured_blocks.time_in_turns(calls, 2)
    assert done == list("ababab")
    assert {name: list(values) for name, values in seconds.items()} == {"a": [1, 1], "b": [1, 1]}


@pytest.mark.chance
def test_memory_above_the_imports():
    """What workers allocate is counted, and what they import is not."""
    value, above, of_worker, seconds = memory_of(partial(allocate, 64), 1, ())
    assert (value, of_worker, seconds) == (1, 0, 0)
    assert 32 < above < 80
    call = partial(allocate_here_and_in_workers, 150)
    _, above, of_worker, seconds = memory_of(call, 2, ("numpy",))
    assert 75 < of_worker < 175  # the meter may look while the array is filled
    assert 75 < above < 350
    assert seconds > 0


@pytest.mark.parametrize(
    ("one_pass", "two_workers", "make", "expected"),
    [
        (1.0, 1.5, 2.0, (4, 4)),  # three workers are as fast; eight take 0.375 s
        (1.0, 0.5, 0.3, (2, 1)),
        (0.1, 1.0, 1.0, (21, 20)),
    ],
)
def test_when_an_index_pays(one_pass, two_workers, make, expected):
    """The number of workers or passes at which the index is paid is another."""
    assert measured_blocks.when_it_pays(one_pass, two_workers, make) == expected
    n_workers, n_passes = expected
    assert 2 * two_workers / n_workers < one_pass <= 2 * two_workers / (n_workers - 1)
    paid = make + n_passes * two_workers / n_workers
    assert paid <= n_passes * one_pass


WAYS = [
    *("one pass, .nii.gz", "one pass, .nii", "blocks, 1 process, .nii"),
    *("blocks, 2 workers, .nii", "blocks, 2 workers, .nii.gz, no index"),
    "blocks, 2 workers, .nii.gz, index",
]


@pytest.mark.parametrize("n_ways", [5, 6])
@pytest.mark.parametrize("spread", [1, 1.01, 30, 1e4])
def test_the_figure(n_ways, spread):
    """A word is cut off or lies on another, for odd times and sizes."""
    factors = np.geomspace(1, 1 / spread, n_ways)
    ratios = {
        name: np.array([0.9, 1, 1.2]) * f for name, f in zip(WAYS[:n_ways], factors, strict=True)
    }
    above_mib = {name: spread * 1.3**i for i, name in enumerate(ratios)}
    figure = plot_ways(ratios, above_mib, "An image of 12,345 MiB, 123 blocks")
    is_a_good_figure(figure, WAYS[1], f"{above_mib[WAYS[0]]:,.0f} MiB", f"{n_ways} ways")
    for ax in figure.axes:
        nothing_overlaps([*ax.texts, ax.xaxis.label])


# The page
# --------


def test_the_page_says_what_is_not_measured(tmp_path, monkeypatch):
    """Without indexed_gzip the page runs and states what is missing."""
    image = Path(data_path, "example4d.nii.gz")
    regions_of(image).to_filename(tmp_path / "atlas.nii.gz")
    options = {"FMRI": str(image), "ATLAS": str(tmp_path / "atlas.nii.gz"), "N_REGIONS": "2"}
    script = (
        "import measured_blocks, pathlib, runpy\n"
        "measured_blocks.APART = pathlib.Path('nowhere')\n"
        "measured_blocks.memory_of = lambda call, *_: (call(), 1.0, 1.0, 1.0)\n"
        f"runpy.run_path({str(EXAMPLES / 'plot_large_image_in_blocks.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | options | {"PYTHONPATH": str(EXAMPLES)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "indexed_gzip is not installed" in done.stdout
    assert f"pip install --no-deps --target {Path('nowhere')} indexed_gzip" in done.stdout
    assert "Not measured: indexed_gzip is not installed." in done.stdout
    assert "bit for bit the same: True" in done.stdout
    table = [line for line in done.stdout.splitlines() if line.startswith(tuple(WAYS))]
    assert [line.split("  ")[0] for line in table] == WAYS[:5]
    with contextlib.suppress(FileNotFoundError):
        assert list((tmp_path / "measured").iterdir()) == []
