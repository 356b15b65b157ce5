"""mask_blocks: the arrays of one pass, each worker reads its block alone, errors, no files left."""

import os
import pickle
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joblib import parallel_config
from tqdm import tqdm

from beyond_the_masker.draw.figures import plot_ways
from beyond_the_masker.experiments import benchmark
from beyond_the_masker.extract import blocks as module
from beyond_the_masker.extract.blocks import divide, extract_block, mask_blocks
from beyond_the_masker.extract.running import start_workers
from beyond_the_masker.extract.streaming import Part, stream_masks
from beyond_the_masker.meter import MIB, measure
from good_figures import is_a_good_figure, nothing_overlaps
from leftovers import SHM, eventually, named_after
from made_images import SHAPE, STRAIGHT, any_bits, make_masks, write
from test_streaming import assert_same, images


def image_and_masks(folder, dtype="<i2", name="fmri.nii", shape=SHAPE, **options):
    """Write an image; return its path, and masks on its grid."""
    path = write(folder / name, any_bits(shape, dtype), **options)
    return path, make_masks(nib.load(path))


@given(
    image=images(),
    name=st.sampled_from(["fmri.nii", "fmri.img", "FMRI.NII"]),
    block_mib=st.floats(0, 0.01),
    n_jobs=st.sampled_from([None, 1, 2, 3]),
)
def test_the_arrays_are_those_of_one_pass(image, name, block_mib, n_jobs):
    """Any shape, type, scaling, byte order, offset and size of block gives the bits of one pass."""
    with tempfile.TemporaryDirectory() as folder, parallel_config("threading"):
        fmri_path = write(Path(folder) / name, **image)
        masks = [m for m in make_masks(nib.load(fmri_path)) if np.asarray(m.dataobj).any()]
        found = mask_blocks(fmri_path, masks, n_jobs, block_mib=block_mib)
        assert_same(found, stream_masks(fmri_path, masks))
        assert all(series.flags.writeable for series in found)


def test_processes_give_the_arrays_of_one_pass(tmp_path, monkeypatch):
    """Workers of another folder find the file; a backend that returns nothing early is refused."""
    fmri_path, masks = image_and_masks(tmp_path, shape=(5, 6, 4, 23), scaling=(0.37, -5.1))
    start_workers(2)
    monkeypatch.chdir(tmp_path)
    found = mask_blocks(fmri_path.name, masks, n_jobs=2, block_mib=2 * 240 / MIB)
    assert_same(found, stream_masks(fmri_path, masks))
    with parallel_config("multiprocessing"), pytest.raises(ValueError, match="loky"):
        mask_blocks(fmri_path, masks, n_jobs=2)


def test_rows_may_come_in_any_order(tmp_path, monkeypatch):
    """Rows are put in their place, not in the order of arrival."""
    fmri_path, masks = image_and_masks(tmp_path)

    def backwards(tasks, n_jobs):
        return nullcontext(function(*args) for function, args, _ in reversed(tasks))

    monkeypatch.setattr(module, "results_as_ready", backwards)
    assert_same(mask_blocks(fmri_path, masks, block_mib=0), stream_masks(fmri_path, masks))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what is read")
def test_only_the_bytes_of_a_block_are_read(tmp_path):
    """A task carries no volumes, and a worker reads nothing before its block, nor after it."""

    def n_read():
        return int(Path("/proc/self/io").read_text().split()[1])

    fmri_path = write(tmp_path / "fmri.nii", any_bits((64, 64, 64, 9), "<i2"))
    part, positions = Part.of(nib.load(fmri_path)), np.arange(64**3)
    assert len(pickle.dumps(part)) < 1000
    before = n_read()
    start, rows = extract_block(part, 64**3, positions, 4, 6)
    assert 2 * 2**19 <= n_read() - before <= 2 * 2**19 + 2**16
    assert start == 4
    expected = np.asarray(nib.load(fmri_path).dataobj)[..., 4:6]
    np.testing.assert_array_equal(rows, expected.reshape(-1, 2, order="F").T)


@pytest.mark.chance
def test_a_worker_needs_its_block_and_rows(tmp_path):
    """A worker has its block once, unscaled, and the rows of the block."""
    path = write(tmp_path / "fmri.nii", any_bits((64, 64, 32, 256), "<i2"), scaling=(0.1, 3))
    inside = np.zeros((64, 64, 32), "u1")
    inside[:8] = 1
    mask = [nib.Nifti1Image(inside, STRAIGHT)]
    small, large = (measure(mask_blocks, path, mask, 2, block_mib=mib) for mib in (1, 32))
    rows = 2 * 128 * inside.sum() * 8 / MIB  # of a block, in float64, before and after scaling
    of_workers = [[w["anon"].max() for w in list(t.processes.values())[1:]] for t in (small, large)]
    assert 20 < max(of_workers[1]) - max(of_workers[0]) < 32 + rows + 16, of_workers


def test_blocks_cover_all_volumes_once():
    """Every volume is in one block, and no block has more volumes than it may."""
    assert divide(5, 0) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert divide(5, 2.9) == [(0, 2), (2, 4), (4, 5)]
    assert divide(5, 5) == divide(5, 9) == [(0, 5)]


@pytest.mark.parametrize("name", ["fmri.nii.bz2", "FMRI.NII.GZ"])
def test_a_compressed_file_is_refused_with_the_reason(tmp_path, name):
    """A compressed file is refused, with the reason and the alternatives."""
    fmri_path, masks = image_and_masks(tmp_path, name=name)
    with pytest.raises(ValueError, match=rf"(?s){name}.*one beginning.*stream_masks.*decompress"):
        mask_blocks(fmri_path, masks)


@pytest.mark.parametrize(("missing", "there"), [(1, 6), (3 * 240, 4)])
def test_a_file_that_is_cut_off_is_refused(tmp_path, monkeypatch, missing, there):
    """A file that lacks volumes is refused before a task is sent; the error counts them."""
    fmri_path, masks = image_and_masks(tmp_path)
    os.truncate(fmri_path, 2032 - missing)
    monkeypatch.setattr(module, "results_as_ready", lambda *_: pytest.fail("tasks were sent"))
    counted = f"{there} of 7 volumes, {2032 - missing:,} of 2,032 bytes"
    with pytest.raises(OSError, match=rf"{fmri_path} is incomplete: it has {counted}"):
        mask_blocks(fmri_path, masks)


def test_a_file_that_is_cut_off_meanwhile_is_refused(tmp_path):
    """A block that is missing when the worker reads it raises an error."""
    fmri_path, _ = image_and_masks(tmp_path)
    block = Part.of(nib.load(fmri_path)), 120, np.arange(5)
    os.truncate(fmri_path, 352 + 3 * 240 + 17)
    with pytest.raises(OSError, match=r"fmri.nii was changed"):
        extract_block(*block, 0, 3)
    with pytest.raises(OSError, match=r"fmri.nii is incomplete or damaged"):
        extract_block(*block, 2, 4)
    fmri_path.unlink()
    with pytest.raises(FileNotFoundError, match=r"fmri.nii"):
        extract_block(*block, 0, 3)


@pytest.mark.chance
@pytest.mark.skipif(not SHM.is_dir(), reason="joblib shares files in another folder")
def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    """After Ctrl-C the workers end, and nothing is left of what joblib shared with them."""
    fmri_path = write(tmp_path / "fmri.nii", any_bits((66, 66, 66, 30), "<i2"), np.eye(4))
    mask_img = nib.Nifti1Image(np.ones((66, 66, 66), "u1"), np.eye(4))
    this = psutil.Process()

    def left():
        """Return this process's workers, and the folders that joblib shares with them."""
        workers = [p for p in this.children() if "LokyProcess" in " ".join(p.cmdline())]
        return workers, [f for f in SHM.glob("joblib_memmap*/*") if named_after(f.parent, [this])]

    def interrupt(bar, n):
        assert all(left())  # positions of voxels, more than 1 MiB
        raise KeyboardInterrupt

    monkeypatch.setattr(tqdm, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mask_blocks(fmri_path, [mask_img], n_jobs=2, block_mib=0)
    assert eventually(lambda: not any(left()), 60)


def test_both_files_have_the_same_volumes(tmp_path):
    """The compressed and the uncompressed file have the same volumes, cut to some MiB."""
    for name in ("fmri.nii", "fmri.nii.gz"):
        fmri_path = write(tmp_path / name, any_bits((8, 8, 8, 20), "<i2"), scaling=(0.5, 1))
        for most_mib, length in ((512, 20), (6.5 * 8**3 * 8 / MIB, 6), (0, 1)):
            packed, plain = benchmark.prepare_both(fmri_path, most_mib)
            assert (packed == fmri_path) == (name.endswith(".gz") and length == 20)
            assert [path.name[-4:] for path in (packed, plain)] == ["i.gz", ".nii"]
            values = np.asarray(nib.load(fmri_path).dataobj)[..., :length]
            for path in (packed, plain):
                np.testing.assert_array_equal(nib.load(path).dataobj, values)


@pytest.mark.chance
def test_calls_are_compared_with_the_first():
    """A call has its times, their ratio to those of the first, its memory, and equality."""

    def zeros(n):  # as an inner function, it makes the process import NumPy alone
        return [np.zeros(n)]

    found = benchmark.measure_calls({"a": partial(zeros, 3), "longer": partial(zeros, 4)})
    assert [row["identical"] for row in found.values()] == [True, False]
    for row in found.values():
        np.testing.assert_array_equal(row["ratio"], row["seconds"] / found["a"]["seconds"])
        assert len(row["seconds"]) == 2
        assert row["above_mib"] < 30


@pytest.mark.parametrize("spread", [1, 1e4])
def test_the_figure(spread):
    """No word is cut off or overlaps another, for any times and sizes."""
    names = ["one pass, .nii.gz", "one pass, .nii", "blocks, 1 process, .nii", "blocks, 2 workers"]
    factors = np.geomspace(1, 1 / spread, len(names))
    ratios = {name: np.array([0.9, 1, 1.2]) * f for name, f in zip(names, factors, strict=True)}
    above_mib = {name: spread * 1.3**i for i, name in enumerate(names)}
    figure = plot_ways(ratios, above_mib, "An image of 12,345 MiB")
    is_a_good_figure(figure, names[1], f"{above_mib[names[0]]:,.0f} MiB", "4 ways")
    for ax in figure.axes:
        nothing_overlaps([*ax.texts, ax.xaxis.label])
