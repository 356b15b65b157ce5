"""What every test starts from: options at their defaults, and folders of its own."""

import functools
import http.server
import os
import shutil
import signal
import sys
import threading
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, settings

os.environ["MPLBACKEND"] = "agg"  # before anything imports matplotlib, also in subprocesses
# A job in the background ignores Ctrl-C, with nohup also a terminal that closes, and so would all
# that the tests start, to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(getattr(signal, "SIGHUP", signal.SIGINT), signal.default_int_handler)
# The same examples in each run, however long they take on a busy machine.
options = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=25, derandomize=True, database=None, **options)
settings.register_profile("all", max_examples=500, derandomize=True, database=None, **options)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _fresh_options(monkeypatch, tmp_path):
    """Keep the caller's options, cache and measurements out of the tests, and the reverse."""
    for name in ("N_IMAGES", "N_REGIONS", "DATA", "FMRI", "ATLAS", "MEMORY", "PAUSE", "SITE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASKER_CACHE", str(tmp_path / "masker_cache"))
    monkeypatch.setenv("MEASURED", str(tmp_path / "measured"))


@pytest.fixture(scope="module", autouse=True)
def _nothing_left():
    """Close figures, and end joblib's workers, after the tests of each file."""
    yield
    if plt := sys.modules.get("matplotlib.pyplot"):
        plt.close("all")
    if loky := sys.modules.get("joblib.externals.loky"):
        loky.get_reusable_executor().shutdown(wait=True)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        assert not os.environ.get("REQUIRE_BROWSER"), "REQUIRE_BROWSER is set; no chromium found"
        pytest.skip("chromium is not installed, so no page can be opened")
    from playwright.sync_api import sync_playwright

    flags = ["--disable-gpu", "--disable-background-networking"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")
    with sync_playwright() as playwright:
        options = {"executable_path": chromium, "args": flags, "timeout": 300_000}
        browser = playwright.chromium.launch(**options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def serve():
    """A function that serves a folder on this machine and returns its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ExitStack() as stack:

        def start(folder):
            handler = functools.partial(Quiet, directory=folder)
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            stack.enter_context(server)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


# They start many processes, or measure the memory of some: so one after the other.
WITH_PROCESSES = (
    *("test_blocks", "test_dask_cluster", "test_in_memory", "test_meter", "test_meter_and_kernel"),
    *("test_slurm", "test_study"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Repeat failures of tests marked `chance`; keep each file, those above, the site together.

    The site takes longest, so it begins.
    """
    for item in items:
        if item.get_closest_marker("chance"):
            item.add_marker(pytest.mark.flaky(reruns=2))
        group = "processes" if item.path.stem in WITH_PROCESSES else item.path.stem
        group = "site" if item.path.parent.name == "site" else group
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path.parent.name != "site")
