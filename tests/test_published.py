"""What a published site needs: its address, the card, the sitemap, the local inventories."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from measured import Measurements
from published import SIZE, draw_card, write_sitemap
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(ROOT.glob("examples/*.py"))


def configuration(site_url, folder):
    """Read conf.py in a process of its own, with an address for the site."""
    names = ("html_baseurl", "notfound_urls_prefix", "notfound_context", "ogp_site_url")
    code = (
        "import json, runpy; c = runpy.run_path('conf.py');"
        f"print(json.dumps({{name: c[name] for name in {names}}}))"
    )
    environ = {**os.environ, "MASKER_CACHE": str(folder), "MEASURED": "doc/measured"}
    environ |= {"SITE_URL": site_url} if site_url else {}
    command = [sys.executable, "-c", code]
    return json.loads(subprocess.check_output(command, cwd=ROOT, env=environ, text=True))


@pytest.mark.parametrize(
    "address", ["https://example.org/some/site", "https://example.org/some/site/"]
)
def test_the_address_of_the_site_reaches_all_that_needs_it(tmp_path, address):
    """SITE_URL, with or without a slash, is in the card's address and in the 404 page's links."""
    found = configuration(address, tmp_path)
    assert found["html_baseurl"] == found["ogp_site_url"] == "https://example.org/some/site/"
    assert found["notfound_urls_prefix"] == "/some/site/"
    assert 'href="/some/site/index.html"' in found["notfound_context"]["body"]


def test_without_an_address_the_site_is_where_make_serve_shows_it(tmp_path):
    """The default address is that of `make serve`."""
    assert configuration(None, tmp_path)["html_baseurl"] == "http://localhost:8000/"


def test_the_card_shows_the_result(tmp_path):
    """The bars are as long as the peaks, to each other; nothing runs out of the picture."""
    (tmp_path / "summary.csv").write_text(
        "method,mode,before_mib,peak_mib,status\n"
        '"NumPy indexing, in-memory image",parallel,100,2000,predicted\n'
        '"Streaming, masks",one pass,100,500,measured\n'
    )
    draw_card("A project", Measurements(tmp_path), tmp_path / "card.png")
    card = matplotlib.image.imread(tmp_path / "card.png")[..., :3]
    assert card.shape[1::-1] == SIZE
    lengths = [
        (np.abs(card - np.array(color) / 255).max(axis=2) < 0.01).sum(axis=1).max()
        for color in ((230, 159, 0), (86, 180, 233))
    ]
    assert lengths[0] == pytest.approx(4 * lengths[1], abs=4)
    background = card[0, 0]
    assert (card[:, -30:] == background).all()


def test_the_card_needs_no_measurements(tmp_path):
    """Before anything was measured, the card has the name alone."""
    draw_card("A project", Measurements(tmp_path), tmp_path / "card.png")
    card = matplotlib.image.imread(tmp_path / "card.png")[..., :3]
    assert (card[300:] == card[0, 0]).all()
    assert (card[:300] != card[0, 0]).any()


def test_the_sitemap_has_whole_addresses(tmp_path):
    """Each page stands in it with the address of the site."""
    write_sitemap("https://example.org/", ["b.html", "a/c.html"], tmp_path / "sitemap.xml")
    root = ElementTree.parse(tmp_path / "sitemap.xml").getroot()
    namespace = "{http://www.sitemaps.org/schemas/sitemap/0.9}"
    assert root.tag == f"{namespace}urlset"
    assert [url.findtext(f"{namespace}loc") for url in root] == [
        "https://example.org/a/c.html",
        "https://example.org/b.html",
    ]


def test_the_inventories_are_those_of_their_table():
    """A name that was added to the table was written into its inventory."""
    folder = ROOT / "doc" / "_inventories"
    projects = runpy.run_path(folder / "write_inventories.py")["PROJECTS"]
    for project, names in projects.items():
        content = (folder / f"{project}.inv").read_bytes()
        found = InventoryFile.loads(content, uri="").data
        assert {name: role for role, items in found.items() for name in items} == {
            name: role for name, (role, _) in names.items()
        }


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_says_what_to_read_next(example):
    """The last words of an example, or of its description, lead to another one."""
    _, _, ending = example.read_text().rpartition("Recommended next")
    links = [word for word in ending.split("`") if word.startswith("sphx_glr_auto_examples_")]
    targets = {link.removeprefix("sphx_glr_auto_examples_") for link in links}
    assert targets - {example.name}
    assert targets <= {path.name for path in EXAMPLES}
