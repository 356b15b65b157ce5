"""mask_blocks: the arrays of one pass, each worker reads its block alone, errors, no files left."""

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
from hypothesis import given
from hypothesis import strategies as st
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor

from beyond_the_masker import block_costs
from beyond_the_masker import blocks as module
from beyond_the_masker.block_costs import SEPARATE, indexed_gzip_importable, prepare_both, same
from beyond_the_masker.blocks import Volumes, extract_block, make_index, mask_blocks
from beyond_the_masker.figures import plot_ways
from beyond_the_masker.meter import MIB, measure
from beyond_the_masker.pages import load_page
from beyond_the_masker.streaming import stream_masks
from good_figures import is_a_good_figure, nothing_overlaps
from leftovers import SHM, named_after
from made_images import FLIPPED, OBLIQUE, SHAPE, STRAIGHT, make_masks
from test_streaming import TYPES, any_bits, write

EXAMPLES = Path(module.__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def _no_workers_left():
    """Keep the workers for all tests of this file: starting them takes long."""
    yield
    get_reusable_executor().shutdown(wait=True)
    plt.close("all")


@pytest.fixture
def indexed_gzip(monkeypatch):
    """Let this process import indexed_gzip for one test; its nibabel was imported without."""
    monkeypatch.syspath_prepend(str(SEPARATE))
    importlib.import_module("indexed_gzip")
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "indexed_gzip"]:
        del sys.modules[name]


def named(mask_imgs):
    """Return masks as a dict."""
    return {f"mask_{i}": mask_img for i, mask_img in enumerate(mask_imgs)}


def image_and_masks(folder, dtype="<i2", name="fmri.nii", shape=SHAPE, **options):
    """Write an image; return its path, and masks on its grid."""
    path = write(folder / name, any_bits(shape, dtype), **options)
    return path, named(make_masks(nib.load(path)))


# The arrays of one pass
# ----------------------


@st.composite
def cases(draw):
    """Draw an image of any type, scaling and shape, a size of blocks, and workers."""
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


@given(cases())
def test_the_arrays_are_those_of_one_pass(case):
    """Any shape, type, scaling, byte order, offset and size of block gives the bits of one pass."""
    image, options = case
    with tempfile.TemporaryDirectory() as folder, parallel_config("threading"):
        fmri_path = write(Path(folder) / image.pop("name"), **image)
        masks = [m for m in make_masks(nib.load(fmri_path)) if np.asarray(m.dataobj).any()]
        found = mask_blocks(fmri_path, named(masks), **options)
        assert same(found, stream_masks(fmri_path, masks))
        assert all(series.dtype.isnative and series.flags.writeable for series in found)


@pytest.mark.parametrize("dtype", ["<i2", pytest.param(">f8", marks=pytest.mark.extensive)])
def test_processes_give_the_arrays_of_one_pass(tmp_path, dtype):
    """Rows from other processes are put in their place."""
    fmri_path, masks = image_and_masks(tmp_path, dtype, shape=(5, 6, 4, 23), scaling=(0.37, -5.1))
    volume_mib = 120 * np.dtype(dtype).itemsize / MIB
    found = mask_blocks(str(fmri_path), masks, n_jobs=2, block_mib=2 * volume_mib)
    assert same(found, stream_masks(fmri_path, masks.values()))


def test_rows_may_come_in_any_order(tmp_path, monkeypatch):
    """Rows are put in their place, not in the order of arrival."""
    fmri_path, masks = image_and_masks(tmp_path)

    class Backwards:
        def __init__(self, n_jobs, return_as):
            assert return_as == "generator_unordered"

        def __call__(self, tasks):
            return (function(*args, **kwargs) for function, args, kwargs in reversed(tasks))

    monkeypatch.setattr(module, "Parallel", Backwards)
    found = mask_blocks(fmri_path, masks, block_mib=0)
    assert same(found, stream_masks(fmri_path, masks.values()))


def test_same_compares_every_bit():
    """Arrays of another sign, shape, type or number are not the same."""
    array = np.zeros((2, 3), "f4")
    assert same([array], [array.copy()])
    for other in (-array, array[:1], array.reshape(3, 2), array.astype("f8"), array.view("i4")):
        assert not same([array], [other])
    with pytest.raises(ValueError, match="zip"):
        same([array], [])


def test_worker_of_the_page(tmp_path):
    """The page's short function reads the values of a block."""
    fmri_path, _ = image_and_masks(tmp_path, "<f8", scaling=(0.5, 1))
    rows = load_page("plot_large_image_in_blocks").extract_block(fmri_path, np.arange(120), 2, 5)
    expected = nib.load(fmri_path).dataobj[..., 2:5].reshape(-1, 3, order="F").T
    np.testing.assert_array_equal(rows, expected)


# One block alone is read
# -----------------------


@pytest.fixture
def sparse(tmp_path):
    """Write an image of 64 GiB that is a hole, except for two volumes in the middle."""
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
    """A worker reads nothing before its block, nor after it."""
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
    small, large = (measure(mask_blocks, path, mask, 2, block_mib=mib) for mib in (1, 32))
    assert same(large.result(), stream_masks(path, mask.values()))
    rows = 2 * 128 * inside.sum() * 8 / MIB  # of a block, in float64, before and after scaling
    of_workers = [[w["anon"].max() for w in list(t.processes.values())[1:]] for t in (small, large)]
    assert 20 < max(of_workers[1]) - max(of_workers[0]) < 32 + rows + 16, of_workers


def test_what_travels_is_small(sparse):
    """A task carries the place of the volumes, not the image."""
    import pickle

    volumes = Volumes.of(nib.load(sparse[0]), "an.index")
    assert len(pickle.dumps(volumes)) < 1000
    assert pickle.loads(pickle.dumps(volumes)) == volumes
    assert Path(volumes.file).is_absolute()
    assert Path(volumes.index).is_absolute()


@pytest.mark.parametrize(
    ("block_mib", "expected"), [(0, 5), (1e-9, 5), (2, 3), (2.9, 3), (5, 1), (1e6, 1)]
)
def test_blocks_cover_all_volumes_once(block_mib, expected):
    """Every volume is in one block, and no block is larger than asked for."""
    volumes = Volumes("file", (64, 64, 64, 5), np.dtype("<f4"), 352, 1.0, 0.0)  # of 1 MiB each
    blocks = volumes.blocks(block_mib)
    assert [n for block in blocks for n in range(*block)] == list(range(5))
    assert len(blocks) == expected


# Bad input
# ---------


def test_other_grids_are_refused(tmp_path):
    """Masks of another shape or place are refused."""
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


def test_an_image_that_is_not_4d_is_refused(tmp_path):
    """An image is checked as in one pass."""
    _, masks = image_and_masks(tmp_path)
    path = write(tmp_path / "other.nii", np.ones(SHAPE[:3], "<f4"))
    with pytest.raises(ValueError, match="not a 4D NIfTI image of numbers"):
        mask_blocks(path, masks)


@pytest.mark.parametrize("missing", [1, 241, 3 * 240, 7 * 240])
def test_a_file_that_is_cut_off_is_refused(tmp_path, monkeypatch, missing):
    """A file that lacks volumes is refused before a task is sent; the error counts them."""
    fmri_path, masks = image_and_masks(tmp_path)
    n_bytes = fmri_path.stat().st_size
    os.truncate(fmri_path, n_bytes - missing)
    monkeypatch.setattr(module, "Parallel", lambda *_, **__: pytest.fail("tasks were sent"))
    with pytest.raises(OSError, match="incomplete") as raised:
        mask_blocks(fmri_path, masks)
    there = 7 - -(-missing // 240)
    for text in (fmri_path, f"{there} of 7 volumes", f"{n_bytes - missing:,} of {n_bytes:,} bytes"):
        assert str(text) in str(raised.value)


def test_a_file_that_is_cut_off_meanwhile_is_refused(tmp_path):
    """A block that is missing when the worker reads it raises an error."""
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


def test_an_error_in_a_worker_names_the_file(tmp_path):
    """An error in another process names the file."""
    fmri_path, masks = image_and_masks(tmp_path)
    volumes = Volumes.of(nib.load(fmri_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "check_file", lambda *_: os.truncate(fmri_path, 352 + 5 * 240))
        with pytest.raises(OSError, match=r"fmri.nii is incomplete or damaged"):
            mask_blocks(fmri_path, masks, n_jobs=2, block_mib=0)
    assert volumes.blocks(0)[-1] == (6, 7)


@pytest.mark.parametrize(
    "name", ["fmri.nii.gz", "fmri.nii.bz2", "fmri.img.gz", "FMRI.NII.GZ", "fmri.nii.zst"]
)
def test_a_compressed_file_is_refused_with_the_reason(tmp_path, name):
    """A compressed file is refused, with the reason and the alternatives."""
    fmri_path, masks = image_and_masks(tmp_path)
    fmri_img = nib.load(fmri_path)
    fmri_img.file_map["image"].filename = str(tmp_path / name)
    with pytest.raises(ValueError, match="one beginning") as raised:
        module.check_file(Volumes.of(fmri_img), tmp_path / name)
    for word in (name, "stream_masks", "decompress it once", "make_index"):
        assert word in str(raised.value)
    if name == "fmri.nii.gz":
        write(tmp_path / name, any_bits(SHAPE, "<f4"))
        with pytest.raises(ValueError, match="one beginning"):
            mask_blocks(tmp_path / name, masks)


# An index
# --------


def test_indexed_gzip_is_in_a_separate_folder():
    """It is installed in a folder of its own, where nibabel does not find it."""
    assert importlib.util.find_spec("indexed_gzip") is None
    before = sys.path[:]
    with indexed_gzip_importable() as installed:
        assert installed, f"indexed_gzip is not in {SEPARATE}: run make test"
    assert sys.path == before


def packed_like(fmri_path):
    """Write the ``.nii.gz`` of an image."""
    path = fmri_path.with_name(f"{fmri_path.name}.gz")
    path.write_bytes(gzip.compress(fmri_path.read_bytes(), 1, mtime=0))
    return path


@pytest.fixture
def large(tmp_path):
    """Write an image of 10 MiB, also compressed, whose index has several points; and masks."""
    data = np.random.default_rng(0).normal(100, 9, (32, 32, 32, 160)).astype(">i2")
    fmri_path = write(tmp_path / "fmri.nii", data, scaling=(0.5, -3))
    return fmri_path, packed_like(fmri_path), named(make_masks(nib.load(fmri_path))[:3])


def test_an_index_gives_the_arrays_of_one_pass(large, tmp_path, indexed_gzip):
    """Blocks that begin at a point of the index have the values of one pass."""
    _, packed, masks = large
    index = tmp_path / "sub" / "fmri.gzidx"
    make_index(packed, index)
    assert [path.name for path in index.parent.iterdir()] == ["fmri.gzidx"]
    expected = stream_masks(packed, masks.values())
    for block_mib in (1.3, 32):
        found = mask_blocks(str(packed), masks, block_mib=block_mib, index=str(index))
        assert same(found, expected)


def test_processes_with_an_index(large, tmp_path):
    """Workers find indexed_gzip and the index, and nibabel's use of it changes no value."""
    _, packed, masks = large
    index = tmp_path / "fmri.gzidx"
    with indexed_gzip_importable():
        measure(make_index, packed, index).result()
        found = measure(mask_blocks, packed, masks, 2, block_mib=3, index=index).result()
    assert same(found, stream_masks(packed, masks.values()))


def test_an_index_that_does_not_fit_is_refused(large, tmp_path, indexed_gzip):
    """An index of another file, or of an earlier state of it, is refused."""
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
    """A file that was cut off, or has one wrong bit, gets no index."""
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
    """A compressed file that lacks volumes is refused."""
    fmri_path, masks = image_and_masks(tmp_path)
    os.truncate(fmri_path, 352 + 5 * 240)
    packed, index = packed_like(fmri_path), tmp_path / "fmri.gzidx"
    make_index(packed, index)
    with pytest.raises(OSError, match="5 of 7 volumes"):
        mask_blocks(packed, masks, index=index)


def test_without_indexed_gzip_an_index_is_refused(tmp_path):
    """The error names the missing library."""
    fmri_path, masks = image_and_masks(tmp_path)
    packed, index = packed_like(fmri_path), tmp_path / "fmri.gzidx"
    index.touch()
    for call in (partial(make_index, packed), partial(mask_blocks, packed, masks, index=index)):
        with pytest.raises(ModuleNotFoundError, match="indexed_gzip"):
            call(index) if call.func is make_index else call()


def test_without_an_index_more_is_decompressed(large):
    """Without an index, every block decompresses the file from its beginning."""
    plain, packed, _ = large
    n_bytes = block_costs.blocks_without_index(packed, 1, block_mib=2.5)
    volume = 32**3 * 2
    assert n_bytes == sum(352 + stop * volume for stop in range(40, 161, 40))
    assert n_bytes > 2.4 * plain.stat().st_size


# Ctrl-C
# ------

SCRIPT = """
import sys, time
import nibabel as nib, numpy as np
from beyond_the_masker import blocks
from beyond_the_masker.streaming import stream_masks

class Slow:
    def __init__(self, **options): pass
    def __enter__(self): return self
    def __exit__(self, *exception): pass
    def update(self, n):
        print("block", flush=True)
        time.sleep(600)  # until Ctrl-C comes

mask_img = nib.Nifti1Image(np.ones((66, 66, 66), "u1"), np.eye(4))
fast, blocks.tqdm = blocks.tqdm, Slow
if __name__ == "__main__":
    try:
        blocks.mask_blocks(sys.argv[1], {"all": mask_img}, n_jobs=2, block_mib=0)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    blocks.tqdm = fast
    (found,) = blocks.mask_blocks(sys.argv[1], {"all": mask_img}, n_jobs=2)
    print("equal", (found == stream_masks(sys.argv[1], [mask_img])[0]).all(), flush=True)
"""


@pytest.mark.chance
def test_ctrl_c_leaves_nothing(tmp_path):
    """After Ctrl-C the next call works; afterwards no worker and no file is left."""
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
    assert out.splitlines() == ["interrupted", "equal True"]
    assert psutil.wait_procs(tree, timeout=60)[1] == []
    assert shared() == []
    assert list((tmp_path / "empty").iterdir()) == []
    assert [path.name for path in fmri_path.parent.iterdir()] == ["fmri.nii"]


# Measuring
# ---------


def test_both_files_have_the_same_volumes(tmp_path):
    """The compressed and the uncompressed file have the same volumes, cut to some MiB."""
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
    """Calls are timed in turns; the first round comes first."""
    done, clock = [], iter(range(1000))
    monkeypatch.setattr(
        block_costs, "time", type("clock", (), {"perf_counter": lambda: next(clock)})
    )
    calls = {name: partial(done.append, name) for name in "ab"}
    seconds = block_costs.time_in_turns(calls, 2)
    assert done == list("ababab")
    assert {name: list(values) for name, values in seconds.items()} == {"a": [1] * 3, "b": [1] * 3}


@pytest.mark.chance
def test_calls_are_compared_with_the_first():
    """A call has its times, their ratio to those of the first, its memory, and equality."""

    def zeros(n):  # as an inner function, it makes the process import NumPy alone
        return [np.zeros(n)]

    calls = {"a": partial(zeros, 3), "longer": partial(zeros, 4), "no arrays": float}
    found = block_costs.measure_calls(calls)
    equal = {name: row["identical"] for name, row in found.items()}
    assert equal == {"a": True, "longer": False, "no arrays": None}
    for row in found.values():
        np.testing.assert_array_equal(row["ratio"], row["seconds"] / found["a"]["seconds"])
        assert len(row["seconds"]) == 2
        assert row["above_mib"] < 30


WAYS = [
    *("one pass, .nii.gz", "one pass, .nii", "blocks, 1 process, .nii"),
    *("blocks, 2 workers, .nii", "blocks, 2 workers, .nii.gz, no index"),
    "blocks, 2 workers, .nii.gz, index",
]


def test_ways_with_and_without_indexed_gzip(monkeypatch, tmp_path):
    """An index is measured if indexed_gzip is installed; all other ways are measured anyway."""
    monkeypatch.setattr(block_costs, "measure_calls", dict)
    monkeypatch.setattr(block_costs, "measure_index", lambda *_: {"path": "index"})
    ways, index = block_costs.measure_ways("fmri.nii.gz", "fmri.nii", [])
    assert (list(ways), index) == (WAYS, {"path": "index"})
    monkeypatch.setattr(block_costs, "SEPARATE", tmp_path)
    ways, index = block_costs.measure_ways("fmri.nii.gz", "fmri.nii", [])
    assert (list(ways), index) == (WAYS[:5], {})


@pytest.mark.parametrize(("n_ways", "spread"), [(5, 1), (6, 1.01), (5, 30), (6, 1e4)])
def test_the_figure(n_ways, spread):
    """No word is cut off or overlaps another, for any times and sizes."""
    factors = np.geomspace(1, 1 / spread, n_ways)
    ratios = {
        name: np.array([0.9, 1, 1.2]) * f for name, f in zip(WAYS[:n_ways], factors, strict=True)
    }
    above_mib = {name: spread * 1.3**i for i, name in enumerate(ratios)}
    figure = plot_ways(ratios, above_mib, "An image of 12,345 MiB, 123 blocks")
    is_a_good_figure(figure, WAYS[1], f"{above_mib[WAYS[0]]:,.0f} MiB", f"{n_ways} ways")
    for ax in figure.axes:
        nothing_overlaps([*ax.texts, ax.xaxis.label])
