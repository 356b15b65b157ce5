"""The shared checks: which errors name a damaged file, and the form of what methods return."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from beyond_the_masker.checks import (
    as_nifti_masker,
    damaged_file_named,
    read_volumes,
    size_in_bytes,
    value_type,
)
from beyond_the_masker.pages import PAGES
from made_images import make_image


@pytest.mark.parametrize(
    "error", [EOFError, OSError, OverflowError, ValueError, nib.filebasedimages.ImageFileError]
)
def test_errors_of_a_damaged_file_name_it(error):
    """What nibabel raises becomes an OSError with the file and the original message."""
    with (
        pytest.raises(OSError, match=r"^a\.nii is incomplete or damaged \(odd\)\. Copy") as raised,
        damaged_file_named("a.nii"),
    ):
        raise error("odd")
    assert isinstance(raised.value.__cause__, error)


@pytest.mark.parametrize(
    "error",
    [
        *(FileNotFoundError, IsADirectoryError, PermissionError),
        *(MemoryError, TypeError, KeyboardInterrupt),
    ],
)
def test_other_errors_pass(error):
    """An error that is not about the file's content passes unchanged."""
    with pytest.raises(error, match=r"^odd$"), damaged_file_named("a.nii"):
        raise error("odd")


@pytest.mark.parametrize(
    ("given", "returned"),
    [("<f4", "f4"), (">f4", "f4"), ("<f8", "f8"), (">f8", "f8"), ("<i2", "f4"), ("u1", "f4")],
)
def test_form_of_the_results(given, returned):
    """Floats keep their precision, integers become float32; values that are not finite are zero."""
    voxels = np.arange(6).reshape(2, 3).astype(given)
    expected = voxels.T.astype(returned)
    if voxels.dtype.kind == "f":
        voxels[0, 1:] = np.nan, np.inf
        expected[1:, 0] = 0
    series = as_nifti_masker(voxels)
    np.testing.assert_array_equal(series, expected)
    assert series.dtype == np.dtype(returned)
    assert series.flags.c_contiguous


@pytest.mark.parametrize("scaling", [None, (0.5, 1)])
def test_volumes_are_those_of_the_image(tmp_path, scaling):
    """Volumes, their type and their size are those of the array that nibabel returns."""
    make_image(dtype="<i2", scaling=scaling).to_filename(tmp_path / "fmri.nii.gz")
    img = nib.load(tmp_path / "fmri.nii.gz")
    data = np.asanyarray(img.dataobj)
    assert (value_type(img), size_in_bytes(img)) == (data.dtype, data.nbytes)
    volumes = list(read_volumes(img))
    assert {volume.dtype for volume in volumes} == {data.dtype}
    np.testing.assert_array_equal(np.stack(volumes, axis=3), data)


HEAVY = ("nilearn", "pandas", "matplotlib", "joblib")


@pytest.mark.parametrize(
    ("module", "absent"),
    [("checks", ("nibabel", *HEAVY)), ("running", HEAVY), ("options", ("numpy", *HEAVY))],
)
def test_what_a_measured_process_imports_is_light(module, absent):
    """Modules that every measured process imports load only what they need."""
    code = f"import sys, beyond_the_masker.{module}; print(*{{*{absent}}} & sys.modules.keys())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PAGES, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
