"""The site as a reader gets it: built for an image that the project has never seen.

conftest.py builds it: interrupted, then to its end; here once more without any change.
"""

import json

import nibabel as nib
import numpy as np
import pytest
from bs4 import BeautifulSoup

import pages
from beyond_the_masker.experiments.benchmark import print_ratios, read_benchmark
from beyond_the_masker.experiments.report import PLACEHOLDER, written
from beyond_the_masker.predict.model import METHODS

pytestmark = pytest.mark.extensive
N_METHODS = len(METHODS)


@pytest.mark.chance
def test_an_interrupted_build_leaves_nothing_behind(interrupted):
    """Ctrl-C ends workers, removes shared memory, and leaves nothing that looks complete."""
    assert interrupted["code"] != 0
    assert interrupted["alive"] == []
    assert interrupted["shared"] == set()
    assert interrupted["unfinished"] == []
    assert len(interrupted["rows"]) < N_METHODS
    assert "plot_memory_over_time.py.md5" not in interrupted["done"]


def test_all_methods_are_measured_and_identical(site):
    """The table has every method's runs, each with the arrays of NiftiMasker."""
    rows = site.rows()
    assert [f"{row['method']}, {row['mode']}" for row in rows] == list(METHODS)
    assert {row["identical"] for row in rows} == {"true"}
    mib = np.asanyarray(nib.load(site.fmri).dataobj).nbytes / 2**20
    for row in rows:
        assert float(row["image_mib"]) == pytest.approx(mib, abs=0.05)
        assert int(row["n_masks"]) == (1 if row["mode"] == "single" else 2)
        model = METHODS[f"{row['method']}, {row['mode']}"]
        assert int(row["n_runs"]) == (3 if model.mode == "parallel" and model.imports else 1)
        assert 0 < float(row["before_mib"]) <= float(row["peak_mib"])
        for name in ("peak_mib", "seconds"):
            low, middle, high = (float(row[f"{name}{end}"]) for end in ("_min", "", "_max"))
            assert low <= middle <= high
    assert len(list((site.measured / "traces").glob("*.dat"))) == N_METHODS


def test_an_unchanged_build_runs_nothing(site):
    """A second build executes no example, measures nothing, and its search finds the same."""
    summary, search = site.measured / "summary.csv", site.html / "searchindex.js"
    before = summary.stat().st_mtime_ns, search.read_text("utf-8")
    assert "executed 0 out of 0" in site.build()
    assert (summary.stat().st_mtime_ns, search.read_text("utf-8")) == before


def test_pages_are_complete(site):
    """Every number, table and figure comes from the run, and every link leads somewhere."""
    for name in pages.all_pages(site.html):
        assert PLACEHOLDER not in (site.html / name).read_text("utf-8"), name
    assert pages.wrong_links(site.html) == []
    for page in site.html.glob("auto_examples/*/plot_*.html"):
        assert "Total running time of the script:" in page.read_text("utf-8"), page.name


def test_the_chapter_shows_every_method(site):
    """Its table and the descriptions of its figures have each method's peak, rounded once."""
    chapter = BeautifulSoup(site.page("masker_memory_usage"), "html.parser")
    (table, *_) = chapter.select("table.measured-table")
    lines = [line.get_text(" ", strip=True) for line in table.select("tbody tr")]
    alts = [image["alt"] for image in chapter.select("figure.picture img")]
    for row, line in zip(site.rows(), lines, strict=True):
        peak = written("peak_mib", row["peak_mib"])
        number = peak.removesuffix(" MiB")  # the heading has the unit
        assert line.startswith(f"{row['method']}, {row['mode']} {number}")
        name = f"{row['method'].replace(' image', '')}, {row['mode']}"
        assert sum(f"{name}: " in alt for alt in alts) >= 2
        if row["mode"] != "single":
            assert any(f"{name}: " in alt and peak in alt for alt in alts)


def test_the_text_is_about_the_readers_image(site):
    """The chapter names the file, the shape, the type and the size of the reader's image."""
    text = BeautifulSoup(site.page("masker_memory_usage"), "html.parser").get_text()
    data = np.asanyarray(nib.load(site.fmri).dataobj)
    for word in ("a real image.nii.gz", " × ".join(map(str, data.shape)), str(data.dtype)):
        assert word in text
    assert f"{data.nbytes / 2**20:,.0f} MiB" in text
    described = json.loads((site.measured / "experiment.json").read_text())["image"]
    assert described["stored_dtype"] == str(data.dtype)


def test_the_page_on_the_limit_shows_this_builds_times(site, capsys):
    """The page prints what the build measured, not what was recorded."""
    print_ratios(*read_benchmark(site.measured))
    page = BeautifulSoup(site.page("auto_examples/3_cost/plot_limit"), "html.parser")
    printed = page.select_one("div.sphx-glr-script-out").get_text()
    for line in capsys.readouterr().out.splitlines():
        assert line.strip() in printed


DOCUMENTED = {
    "1_methods/plot_numpy_indexing": ("np.asanyarray", "https://numpy.org/"),
    "1_methods/plot_nifti_masker": ("NiftiMasker", "https://nilearn.github.io/"),
    "1_methods/plot_shared_memory": ("SharedMemory", "https://docs.python.org/3/"),
    "4_many_images/plot_one_machine": ("mask_study", "../../functions.html#"),
}


def test_names_in_code_lead_to_their_documentation(site):
    """A name in a code block is a link to its documentation, here or elsewhere."""
    for example, (name, address) in DOCUMENTED.items():
        page = BeautifulSoup(site.page(f"auto_examples/{example}"), "html.parser")
        links = [a["href"] for a in page.select("div.highlight pre a") if a.get_text() == name]
        assert links
        assert all(link.startswith(address) for link in links)
