"""The sites that these tests look at, each built once."""

import os
import signal
from pathlib import Path

import psutil
import pytest

import pages
from leftovers import eventually, shared_blocks
from small_site import Site

OF_EACH_KIND = [
    *("index.html", "masker_memory_usage.html", "calculator.html", "functions.html"),
    *("auto_examples/index.html", "auto_examples/2_streaming/plot_stream_masks.html"),
]


@pytest.fixture(scope="session")
def prose(tmp_path_factory):
    """A site of prose only, of which nothing has been measured."""
    site = Site(tmp_path_factory.mktemp("prose"))
    site.build("-D", "plot_gallery=0")
    return site


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory):
    """A site whose build got Ctrl-C between two measurements, and what was left."""
    site = Site(tmp_path_factory.mktemp("site"))
    build, summary = site.start(), site.measured / "summary.csv"
    assert eventually(lambda: summary.exists() or build.poll() is not None, 1800)
    assert build.poll() is None, site.messages()
    tree = [psutil.Process(build.pid), *psutil.Process(build.pid).children(recursive=True)]
    blocks = shared_blocks(tree)
    build.send_signal(signal.SIGINT)
    code = build.wait(timeout=300)
    _, alive = psutil.wait_procs(tree, timeout=60)
    return {
        "site": site,
        "code": code,
        "alive": alive,
        "shared": {block for block in blocks | shared_blocks(tree) if block.exists()},
        "unfinished": [path for path in site.folder.rglob("*unfinished*") if path.is_file()],
        "rows": site.rows(),
        "done": {path.name for path in site.gallery.rglob("*.md5")},
    }


@pytest.fixture(scope="session")
def site(interrupted):
    """The site, built to its end after the interrupted build."""
    interrupted["site"].build()
    return interrupted["site"]


@pytest.fixture(scope="session")
def folder(request):
    """The site whose pages are opened: SITE, or in a fast run the prose, or the small site."""
    if os.environ.get("SITE"):
        folder = Path(os.environ["SITE"]).resolve()
        assert (folder / "index.html").exists(), f"SITE is {folder}; there is no index.html"
        return folder
    fast = "not extensive" in request.config.option.markexpr
    return request.getfixturevalue("prose" if fast else "site").html


@pytest.fixture(scope="session")
def names(request, folder):
    """The pages that are opened: all of them, or in a fast run one of each kind."""
    fast = "not extensive" in request.config.option.markexpr
    return OF_EACH_KIND if fast else pages.all_pages(folder)


@pytest.fixture(scope="module")
def address(folder, serve):
    """The site, served on this machine."""
    return serve(folder)


@pytest.fixture
def open_page(browser, address, folder):
    """A function that opens a page in a context of its own; no page may have had a problem."""
    visitors = []

    def start(name, width=1440, **options):
        visitors.append(pages.Visitor(browser, address, folder, width, **options))
        visitors[-1].page.goto(f"{address}/{name}")
        return visitors[-1].page

    yield start
    for visitor in visitors:
        visitor.context.close()
    assert [problem for visitor in visitors for problem in visitor.wrong] == []
