"""nilearn's own tests of its maskers, with `stream_masker` in place of `fit_transform`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nilearn
import pytest

HERE = Path(__file__).parent
MODULES = [
    f"nilearn.maskers.tests.test_nifti_{kind}"
    for kind in ("masker", "labels_masker", "maps_masker", "spheres_masker")
]
# They do not stream, and half of the time is theirs; check_set_output needs polars, too.
LEFT_OUT = "check_estimator_sklearn or dtypes or report or set_output"


@pytest.mark.extensive
def test_nilearns_own_tests_pass(tmp_path):
    """They pass with streamed images."""
    own = {"RECORD": str(tmp_path / "record.json")}
    own["PYTHONPATH"] = os.pathsep.join(map(str, (HERE, HERE.parent / "examples")))
    options = ["-q", "-p", "no:cacheprovider", "-p", "streamed_fit_transform"]
    options += ["--rootdir", Path(nilearn.__file__).parent, "-k", f"not ({LEFT_OUT})"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--pyargs", *MODULES],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | own,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    record = json.loads((tmp_path / "record.json").read_text())
    assert len(record) >= 189
