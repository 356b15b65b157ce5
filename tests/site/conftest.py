"""The sites that these tests look at, each built once.

The small one is the project, built for an image that it has never seen: a real int16 one from
nibabel's own tests.
"""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import archive
import psutil
import pytest
from nibabel.testing import data_path

import pages
from leftovers import eventually, shared_blocks
from made_images import regions_of

ROOT = Path(__file__).parent.parent.parent


class Site:
    """The project unpacked from its archive, with its own options."""

    def __init__(self, folder):
        self.archive = folder / archive.NAME
        archive.write_archive(ROOT, self.archive)
        zipfile.ZipFile(self.archive).extractall(folder)
        folder = self.folder = folder / self.archive.stem
        self.fmri = shutil.copy(Path(data_path, "example4d.nii.gz"), folder / "a real image.nii.gz")
        self.atlas = folder / "labels.nii.gz"
        regions_of(self.fmri).to_filename(self.atlas)
        self.html = folder / "doc" / "_build" / "html"
        self.gallery = folder / "doc" / "auto_examples"
        self.measured = folder / "doc" / "measured"
        self.options = {
            "FMRI": str(self.fmri),
            "ATLAS": str(self.atlas),
            "N_REGIONS": "2",
            "PAUSE": "0.1",
            "MASKER_CACHE": str(folder / "cache"),
            "MEASURED": str(self.measured),
            "PYTHONPATH": str(folder / "examples"),
            "SITE_URL": "http://localhost:8000",
        }

    def start(self, *arguments):
        """Start a strict build in the background, its messages in a file."""
        command = [sys.executable, "-m", "sphinx", "-c", ".", "-W", "--keep-going"]
        with open(self.folder / "messages.txt", "w") as messages:
            return subprocess.Popen(
                [*command, *arguments, "doc", str(self.html)],
                cwd=self.folder,
                env=os.environ | self.options,
                stdout=messages,
                stderr=subprocess.STDOUT,
            )

    def messages(self):
        """Return the messages of the last build."""
        return (self.folder / "messages.txt").read_text()

    def build(self, *arguments):
        """Build to the end; return the messages."""
        code = self.start(*arguments).wait(timeout=3600)
        messages = self.messages()
        problems = re.findall(r"(?i).*(?:warning|error): .*", messages)
        assert code == 0, "\n".join(problems) or messages
        return messages

    def rows(self):
        """Return the rows of summary.csv."""
        with open(self.measured / "summary.csv", newline="") as file:
            return list(csv.DictReader(file))

    def page(self, name):
        """Return the HTML of a page."""
        return (self.html / f"{name}.html").read_text("utf-8")


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
