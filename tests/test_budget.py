"""Whether a method fits into memory, and the table that says so."""

import re
from functools import partial

import nibabel as nib
import numpy as np
import pytest

from beyond_the_masker.meter import measure
from beyond_the_masker.predict import budget
from beyond_the_masker.predict.budget import guard, predict_peak, print_budget, uses_block, why_not
from beyond_the_masker.predict.imports import TYPICAL
from beyond_the_masker.predict.model import METHODS, Image, predict
from made_images import make_image, make_masks, save_all, sparse_image

MIB = 2**20
LARGE = Image((64, 64, 36, 2000), "float32")  # 1,125 MiB
FROM_PATH = "NiftiMasker, path, single"


@pytest.fixture
def files(tmp_path):
    """An image and masks."""
    fmri_img = make_image()
    return save_all(tmp_path, fmri_img, make_masks(fmri_img))


def test_reason_names_what_is_too_small():
    """The reason names memory or /dev/shm, whichever is too small."""
    shared = predict("NumPy indexing, shared memory, parallel", LARGE, [2000] * 4, 4, TYPICAL)
    assert shared.shm_mib == 1125
    assert why_not(shared, 1e6, shared.shm_mib) == ""
    assert why_not(shared, shared.most_mib, 1e6) == ""
    reason = why_not(shared, 1e6, 1000)
    assert reason == "It needs 1,125 MiB in /dev/shm, which has 1,000 MiB left."
    reason = why_not(shared, 1234, 1000)
    assert reason == f"It may need {shared.most_mib:,.0f} MiB, and 1,234 MiB are available."


def test_joblib_avoids_a_small_folder():
    """joblib writes to /dev/shm only if it is larger than 2 GB."""
    from joblib import _memmapping_reducer

    assert _memmapping_reducer.SYSTEM_SHARED_MEM_FS_MIN_SIZE == 2e9
    longer = LARGE._replace(shape=(64, 64, 36, 6000))
    found = predict("NiftiMasker, in-memory image, parallel", longer, [2000] * 4, 4, TYPICAL)
    assert found.shm_mib == 3375
    assert why_not(found, 1e6, 2e9 / MIB) == ""
    assert "/dev/shm" in why_not(found, 1e6, 2e9 / MIB + 1)
    assert why_not(found, 1e6, 3375) == ""
    blocks = [name for name in METHODS if uses_block(name)]
    assert blocks == ["NumPy indexing, shared memory, parallel"]


@pytest.mark.parametrize(
    ("memory", "fits"), [("unlimited", True), ("100M", False), ("64G", True), (None, False)]
)
def test_guard_follows_the_option(memory, fits, files, monkeypatch):
    """The option MEMORY decides what a build runs."""
    monkeypatch.setattr(budget, "available_mib", lambda: 100)
    monkeypatch.setattr(budget, "available_shm_mib", lambda: 100)
    monkeypatch.setattr(budget, "reserve_mib", lambda: 30)
    if memory:
        monkeypatch.setenv("MEMORY", memory)
    prediction, reason = guard(FROM_PATH, *files, 2)
    assert prediction.method == FROM_PATH
    assert (reason == "") == fits
    if not fits:
        assert f"{100 if memory else 70} MiB are available" in reason


def test_table(files, capsys):
    """The table has a line for each method, which agrees with its row, and its explanation."""
    rows = print_budget(*files, memory="64G", shm="64G", explain=True)
    out = capsys.readouterr().out
    for row, method in zip(rows, METHODS, strict=True):
        assert row.prediction.method == method
        assert row.most_workers == 4
        assert re.search(rf"^ .*  {method}: fits$", out, re.MULTILINE)
        assert f"\n{method}, while {row.prediction.moment}:" in out
    assert "Recommended: stream_masks(fmri_path, mask_paths), which needs no worker." in out
    for words in (
        "numpy_masker_threads",
        "NiftiLabelsMasker(labels)",
        "4 masks",
        "apply_mask_fmri",
    ):
        assert words in out


@pytest.fixture
def large(tmp_path):
    """A large image, of which there is only the header."""
    sparse_image(tmp_path / "large.nii", LARGE.shape)
    return tmp_path / "large.nii"


def test_table_honours_memory_and_shared_memory(large, capsys):
    """The table shows what does not fit, and how many workers would."""
    rows = print_budget(large, [2000] * 20, memory="4G", shm="1G")
    rows = {row.prediction.method: row for row in rows}
    out = capsys.readouterr().out
    usual, shared = "NiftiMasker, path, parallel", "NumPy indexing, shared memory, parallel"
    assert rows[usual].most_workers == 2
    assert "4,096 MiB are available" in rows[usual].reason
    assert re.search(rf"^ .*  {usual}: fits with 2$", out, re.MULTILINE)
    assert "/dev/shm" in rows[shared].reason
    assert re.search(rf"^ .*  {shared}: does not fit$", out, re.MULTILINE)
    assert "available 4,096 MiB; in /dev/shm 1,024 MiB" in out


def test_time_series_that_do_not_fit(large, capsys):
    """Time series that do not fit into memory go into files."""
    print_budget(large, [64 * 64 * 36] * 20, memory="4G")
    out = capsys.readouterr().out
    assert "out=names" in out
    assert "numpy_masker_threads" not in out


def test_lines_for_slurm(large, capsys):
    """The requested memory is half as much more as predicted, and the time is enough to read."""
    rows = print_budget(large, [2000])
    peak = next(row for row in rows if row.prediction.method == budget.STREAMING).prediction
    lines = capsys.readouterr().out.splitlines()
    mib = int(lines[-2].removeprefix("#SBATCH --mem=").removesuffix("M"))
    assert 1.5 * peak.most_mib <= mib < 1.5 * peak.most_mib + 50
    assert lines[-1] == "#SBATCH --time=6"  # minutes


def test_several_files(tmp_path, capsys):
    """The files of a series need what one file with all volumes needs, and the table says so."""
    img = make_image((5, 6, 4, 12))
    img.to_filename(tmp_path / "fmri.nii")
    for number in range(12):
        img.slicer[..., number].to_filename(tmp_path / f"vol_{number}.nii")
    whole, series = (print_budget(tmp_path / name, [9]) for name in ("fmri.nii", "vol_*.nii"))
    assert whole == series
    found = predict_peak(budget.STREAMING, [tmp_path / f"vol_{n}.nii" for n in range(12)], [9])
    assert found == next(row.prediction for row in whole if row.prediction.method == found.method)
    assert capsys.readouterr().out.count("12 files, as for streaming; other methods") == 1


def test_mask_on_another_grid(files):
    """A mask of the image's shape that lies elsewhere is refused, as by every method."""
    fmri_path, mask_paths = files
    mask = nib.load(mask_paths[0])
    moved = nib.Nifti1Image(mask.dataobj, mask.affine + np.eye(4)[:, [1, 2, 3, 0]])
    for call in (print_budget, partial(predict_peak, FROM_PATH)):
        with pytest.raises(ValueError, match="A mask is on the grid"):
            call(fmri_path, [moved])


@pytest.mark.chance
def test_image_is_not_read(large):
    """A budget does not need the memory that the image would."""
    trace = measure(print_budget, large, [2000])
    trace.result()
    assert trace.above_mib < 200


@pytest.mark.parametrize("option", ["memory", "shm"])
def test_memory_is_refused(option, files):
    """Memory is a positive size."""
    with pytest.raises(ValueError, match="'-16G' is not a positive size of memory"):
        print_budget(*files, **{option: "-16G"})


def test_impossible_numbers_are_refused(files):
    """Masks and workers are checked, whether they are files or numbers."""
    fmri_path, mask_paths = files
    with pytest.raises(ValueError, match="A mask has 121 voxels"):
        print_budget(fmri_path, [mask_paths[0], 121])
    for call in (print_budget, partial(predict_peak, FROM_PATH)):
        with pytest.raises(ValueError, match="workers is 0"):
            call(fmri_path, [3, 4], 0)
