"""What every test starts from: options that are not given, and folders of its own."""

import os

import pytest

os.environ["MPLBACKEND"] = "agg"  # before anything imports matplotlib, also in subprocesses


@pytest.fixture(autouse=True)
def _fresh_options(monkeypatch, tmp_path):
    """Keep the caller's options, cache and measurements out of the tests, and the reverse."""
    for name in ("N_IMAGES", "N_REGIONS", "DATA", "FMRI", "ATLAS", "MEMORY", "PAUSE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASKER_CACHE", str(tmp_path / "masker_cache"))
    monkeypatch.setenv("MEASURED", str(tmp_path / "measured"))


def pytest_collection_modifyitems(items):
    """Begin with the build of the site, which takes longest: the rest runs beside it."""
    items.sort(key=lambda item: item.path.name != "test_site.py")
