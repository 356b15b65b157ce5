"""The site as a reader gets it: built for an image that the project has never seen.

It is built in small_site.py: prose only, interrupted, and to the end; here once more without
any change.
"""

import csv
import importlib.util
import json
import os
import re
from html import unescape

import nibabel as nib
import numpy as np
import pytest
from measured import MeasuredTable, Measurements, written

import pages
from beyond_the_masker.figures import short
from beyond_the_masker.model import METHODS
from small_site import N_REGIONS, Site

N_METHODS = len(METHODS)
SVG_TEXT = re.compile(r"<text[^>]*>(.*?)</text>")
ALT = re.compile(r'alt="([^"]*)"')
# What the page of a method prints, and how it describes the figure.
PRINTED = r"{}\n    peak (?P<peak>[\d,]+ MiB).*?, (?P<before>[\d,]+ MiB) before the call"
IN_WORDS = r"{}: [\w ]+ from (?P<before>[\d,]+ MiB) before .*? peak of (?P<peak>[\d,]+ MiB)"


def test_prose_alone_has_placeholders_instead_of_numbers(placeholders):
    """`make html-noplot` works on a fresh clone, and shows no number that was not measured."""
    assert "[not measured yet]" in placeholders
    assert not re.search(r"\d MiB</", placeholders)


def test_an_interrupted_build_leaves_nothing_behind(interrupted):
    """Ctrl-C ends workers and shared memory and leaves no half-written file."""
    assert interrupted["code"] != 0
    assert interrupted["alive"] == []
    assert interrupted["shared"] == set()
    assert interrupted["unfinished"] == []
    assert not [name for name in interrupted["prepared"] if name.startswith("unfinished")]


def test_an_interrupted_example_is_not_trusted(interrupted):
    """The example that was running has no checksum, so that the next build runs it."""
    assert len(interrupted["rows"]) < N_METHODS
    assert "plot_memory_over_time.py.md5" not in interrupted["checksums"]
    assert "plot_nifti_masker.py.md5" not in interrupted["checksums"]


def test_all_methods_are_measured_and_identical(site):
    """The table has every method's run, each with the arrays of NiftiMasker."""
    rows = site.rows()
    assert len({(row["method"], row["mode"]) for row in rows}) == len(rows) == N_METHODS
    assert {row["identical"] for row in rows} == {"true"}
    image = nib.load(site.fmri)
    mib = np.asanyarray(image.dataobj).nbytes / 2**20
    for row in rows:
        assert float(row["image_mib"]) == pytest.approx(mib, abs=0.05)
        assert int(row["n_masks"]) == (1 if row["mode"] == "single" else N_REGIONS)
        model = METHODS[f"{row['method']}, {row['mode']}"]
        workers = model.mode == "parallel" and model.imports
        assert int(row["n_runs"]) == (3 if workers else 1)
        assert 0 < float(row["before_mib"]) <= float(row["peak_mib"])
        for name in ("peak_mib", "seconds"):
            low, middle, high = (float(row[f"{name}{end}"]) for end in ("_min", "", "_max"))
            assert low <= middle <= high
    assert len(list((site.measured / "traces").glob("*.dat"))) == N_METHODS


def test_the_index_is_measured(site):
    """The page on blocks measures with indexed_gzip, and only that page has it."""
    page = (site.html / "auto_examples" / "plot_large_image_in_blocks.html").read_text()
    text = re.sub(r"<[^>]+>", "", page)
    assert "indexed_gzip is installed, and is measured below." in text
    assert re.search(r"blocks, 2 workers, \.nii\.gz, index +[\d.]+ .* True\n", text)
    assert re.search(r"the index +[\d.]+ s to make, [\d.]+ MiB on disk", text)
    assert re.search(r"without indexed_gzip +[\d.]+ s .*\nwith indexed_gzip +[\d.]+ s", text)
    assert len(re.findall(r"^(?:one pass|blocks), .* True$", text, re.M)) == 5  # no index: none
    assert importlib.util.find_spec("indexed_gzip") is None


def test_an_unchanged_build_runs_nothing(site):
    """A second build executes no example and measures nothing."""
    before = (site.measured / "summary.csv").stat().st_mtime_ns
    messages = site.build()
    assert "executed 0 out of 0" in messages
    assert (site.measured / "summary.csv").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("helper", {"plot_large_image", "plot_nifti_masker", "plot_memory_over_time"}),
        ("method", {"plot_shared_memory", "plot_nifti_masker"}),
        ("meter", {"peak_memory", "plot_numpy_indexing"}),
        ("N_REGIONS", {"plot_large_image", "plot_nifti_masker"}),
        ("PAUSE", {"plot_memory_over_time"}),
        ("image", {"plot_large_image", "plot_shared_memory"}),
    ],
)
def test_a_change_reruns_what_depends_on_it(tmp_path, monkeypatch, change, again):
    """A page is run again after a change of a helper, a method, an option, or the image."""
    import rerun

    site = Site(tmp_path)
    for name, value in site.options.items():
        monkeypatch.setenv(name, value)
    pages = [*site.folder.glob("examples/plot_*.py"), site.folder / "examples/peak_memory.py"]
    before = {page.stem: rerun.fingerprint(page) for page in pages}
    assert before == {page.stem: rerun.fingerprint(page) for page in pages}
    files = {"helper": "synthetic_data", "method": "plot_shared_memory", "meter": "peak_memory"}
    if change in files:
        with open(site.folder / "examples" / f"{files[change]}.py", "a") as file:
            file.write("\nCHANGED = True\n")
    elif change == "image":
        os.utime(site.fmri, (1, 1))
    else:
        monkeypatch.setenv(change, "1")
    changed = {page.stem for page in pages if rerun.fingerprint(page) != before[page.stem]}
    assert again <= changed
    if change != "meter":
        assert "peak_memory" not in changed
    if change == "PAUSE":
        assert changed == again


# -- In the browser --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(site, serve):
    """The built site, served on this machine."""
    return serve(site.html)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_every_page_is_sound(browser, address, site, width, scheme):
    """No page for the reader's image fails, loads from elsewhere, or runs out of the screen."""
    names = pages.all_pages(site.html)
    options = {"width": width, "color_scheme": scheme}
    assert pages.wrong_on_pages(browser, address, site.html, names, **options) == []


def test_links_inside_the_site_lead_somewhere(site):
    """No link of the site points to a page, a file or an anchor that is not there."""
    assert pages.wrong_links(site.html) == []


@pytest.fixture
def chapter(browser, address):
    """The chapter, opened on a wide screen."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(f"{address}/masker_memory_usage.html")
    yield page
    page.close()


def test_the_chapters_figure_names_every_method(chapter, site):
    """The annotated figures are shown with alt text, and label each phase with its peak."""
    visible = [
        image
        for image in chapter.locator("figure.picture img:not([src*='decision'])").all()
        if image.is_visible()
    ]
    alts = [image.get_attribute("alt") for image in visible]
    assert len(alts) == 3
    rows = site.rows()
    for metric, alt in zip(("PSS", "RSS"), alts, strict=False):
        assert metric in alt
        for row in rows:
            name = f"{row['method'].replace(' image', '')}, {row['mode']}"
            assert re.search(rf"{name}: [\d,]+ MiB", alt)
    for row in rows:
        if row["mode"] != "single":
            assert f"{float(row['peak_mib']):,.0f} MiB" in alts[2]
    for layout in ("wide", "tall"):
        for metric in ("pss", "rss"):
            drawing = (site.measured / f"memory_over_time_{metric}_{layout}.svg").read_text()
            texts = " ".join(SVG_TEXT.findall(drawing))
            for row in rows:
                for word in (*row["method"].replace(" image", "").split(", "), row["mode"]):
                    assert word in texts
            assert len(re.findall(r"[\d,]+ MiB(?! \()", texts)) == N_METHODS


@pytest.mark.parametrize(("width", "layout"), [(1200, "wide"), (400, "tall")])
def test_the_figure_fits_the_screen(chapter, width, layout):
    """A phone gets the tall drawing, a desktop the wide one; its letters are not tiny."""
    chapter.set_viewport_size({"width": width, "height": 900})
    shown = [
        (image.get_attribute("src"), image.bounding_box()["width"])
        for image in chapter.locator("figure.picture img:not([src*='decision'])").all()
        if image.is_visible() and "memory_over_time" in image.get_attribute("src")
    ]
    assert [layout in source for source, _ in shown] == [True, True]
    points_wide = 72 * {"wide": 9.2, "tall": 4.2}[layout]
    for _, pixels in shown:
        assert 10 * pixels / points_wide >= 8 * 96 / 72


def test_equal_quantities_are_equal_on_all_pages(site):
    """Each number has one text, in the prose, the tables, and what the methods' pages say."""
    rows = {f"{row['method']}, {row['mode']}": row for row in Measurements(site.measured).rows}
    shown, said = {}, {}
    for name in pages.all_pages(site.html):
        page = (site.html / name).read_text()
        for key, text in re.findall(r'data-key="([^"]*)">([^<]*)</span>', page):
            shown.setdefault(unescape(key), set()).add(unescape(text))
        page = unescape(re.sub(r"</?[a-z][^>]*>", "", page) + " ".join(ALT.findall(page)))
        for title in rows:
            for words in (PRINTED, IN_WORDS):
                for found in re.finditer(words.format(title), page):
                    said.setdefault(title, set()).add((found["before"], found["peak"]))
    names = [*MeasuredTable.HEADINGS]
    for title, row in rows.items():
        values = {name: written(name, row[name]) for name in names}
        key = f"{row['method']} / {row['mode']}"
        assert {name: shown[f"{key} / {name}"] for name in names} == {
            name: {text} for name, text in values.items()
        }
        assert said[title] == {(values["before_mib"], values["peak_mib"])}
    assert [key for key, texts in shown.items() if len(texts) > 1] == []
    assert "[not measured yet]" not in set.union(*shown.values())


def test_the_table_has_a_line_for_each_method(chapter, site):
    """The chapter's table has every row of summary.csv, with the range of several runs."""
    lines = chapter.locator("table.measured-table tbody tr").all()
    names = [*MeasuredTable.HEADINGS]
    for line, row in zip(lines, Measurements(site.measured).rows, strict=True):
        cells = dict(zip(names, line.locator("td").all_inner_texts(), strict=True))
        for name in ("method", "mode", "n_jobs"):
            assert cells[name] == row[name]
        low, high = (f"{float(row[f'peak_mib_{end}']):,.0f}" for end in ("min", "max"))
        assert cells["peak_mib"].endswith(f"({low}–{high})" if int(row["n_runs"]) > 1 else " MiB")
        assert cells["identical"] == "yes"


def test_the_text_is_about_the_readers_image(chapter, site):
    """Name, shape, type and size of the image in the prose are those of the reader's file."""
    text = chapter.locator("main").inner_text()
    image = nib.load(site.fmri)
    assert "a real image.nii.gz" in text
    assert " × ".join(map(str, image.shape)) in text
    assert str(np.asanyarray(image.dataobj).dtype) in text
    assert f"{np.asanyarray(image.dataobj).nbytes / 2**20:,.0f} MiB in memory" in text
    described = json.loads((site.measured / "experiment.json").read_text())["image"]
    assert described["stored_dtype"] == str(np.asanyarray(image.dataobj).dtype)


def test_the_page_on_the_limit_shows_this_builds_times(browser, address, site):
    """Each method's ratio on the page is the median of the pairs that the build measured."""
    with open(site.measured / "benchmark.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["question"] == "methods"]
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(f"{address}/auto_examples/plot_limit.html")
    tables = page.locator("div.sphx-glr-script-out").all_inner_texts()
    page.close()
    names = {row["what"] for row in rows}
    assert len(names) >= N_METHODS
    for what in names:
        pairs = [row for row in rows if row["what"] == what]
        assert len(pairs) >= 3
        ratios = [float(row["seconds"]) / float(row["limit_seconds"]) for row in pairs]
        line = next(line for line in tables[0].splitlines() if line.startswith(what + " "))
        seconds, ratio = line[len(what) :].split()[:2]
        assert ratio == short(np.median(ratios))
        assert seconds == short(np.median([float(row["seconds"]) for row in pairs]))


def test_every_parameter_of_the_maskers_is_in_the_table(browser, address):
    """The page on maskers says of each parameter what becomes of it."""
    from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker, NiftiSpheresMasker

    page = browser.new_page()
    page.goto(f"{address}/auto_examples/plot_stream_masker.html")
    shown = page.locator("table.dataframe tbody th").all_inner_texts()
    page.close()
    for kind in (NiftiMasker, NiftiLabelsMasker, NiftiMapsMasker, NiftiSpheresMasker):
        assert set(kind().get_params()) <= set(shown), kind


# -- Conventions -----------------------------------------------------------------------------


@pytest.fixture
def wide(browser):
    """A page of a wide screen, in the dark scheme."""
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="dark")
    yield page
    page.close()


def test_the_front_page_shows_the_result(wide, address, site):
    """Its cards: memory above the start, peak and time of three methods; with the chart."""
    wide.goto(f"{address}/index.html")
    ways = (
        "NiftiMasker, path / parallel",
        "NiftiMasker, path / loop",
        "Streaming, masks / one pass",
    )
    found = Measurements(site.measured)
    for card, way in zip(wide.locator(".headline .sd-card").all(), ways, strict=True):
        text = card.inner_text()
        for name in ("above_mib", "peak_mib with range", "seconds with range"):
            assert found.text(f"{way} / {name}") in text
    size = wide.locator(".headline .measured").first.evaluate("e => getComputedStyle(e).fontSize")
    assert float(size.removesuffix("px")) >= 32
    assert [image.is_visible() for image in wide.locator("#the-result img").all()].count(True) == 1


def test_the_function_on_the_front_page_runs_when_copied(wide, address, site):
    """What is folded up there is complete: pasted into an empty file, it masks an image."""
    wide.goto(f"{address}/index.html")
    wide.locator("details summary").click()
    copied = {}
    exec(wide.locator("details pre").inner_text(), copied)
    atlas = nib.load(site.atlas)
    masks = [
        nib.Nifti1Image((atlas.get_fdata() == k).astype("uint8"), atlas.affine) for k in (3, 8)
    ]
    data = np.asanyarray(nib.load(site.fmri).dataobj)
    for series, mask in zip(copied["stream_masks"](site.fmri, masks), masks, strict=True):
        np.testing.assert_array_equal(series, data[mask.get_fdata() > 0].T)


@pytest.mark.parametrize("term", ["PSS", "proxy image", "shared memory", "block"])
def test_the_search_finds_the_glossary(wide, address, term):
    """The first thing that the search finds for a term is its entry in the glossary."""
    wide.goto(f"{address}/search.html?q={term.replace(' ', '+')}")
    first = wide.locator("#search-results ul.search > li > a").first
    assert first.get_attribute("href") == f"glossary.html#term-{term.replace(' ', '-')}"


@pytest.mark.parametrize(
    ("example", "name", "address_of_name"),
    [
        ("plot_numpy_indexing", "np.asanyarray", "https://numpy.org/.*#numpy.asanyarray"),
        ("plot_stream_masks", "nib.load", "https://nipy.org/nibabel/.*load"),
        ("plot_nifti_masker", "Parallel", "https://joblib.readthedocs.io/.*#joblib.Parallel"),
        ("plot_nifti_masker", "NiftiMasker", "https://nilearn.github.io/.*NiftiMasker"),
        ("plot_shared_memory", "SharedMemory", "https://docs.python.org/3/.*SharedMemory"),
        ("benchmark", "stream_masks", r"\.\./functions.html#plot_stream_masks.stream_masks"),
    ],
)
def test_names_in_code_lead_to_their_documentation(wide, address, example, name, address_of_name):
    """A name in a code block is a link to where it is explained, here or elsewhere."""
    wide.goto(f"{address}/auto_examples/{example}.html")
    links = wide.locator("div.highlight pre a").all()
    found = [link.get_attribute("href") for link in links if link.inner_text() == name]
    assert found
    assert all(re.fullmatch(address_of_name, href) for href in found)


def test_an_example_that_runs_tells_how_long_it_took(site):
    """The footer of each page that is run has its time."""
    for page in [*site.html.glob("auto_examples/plot_*.html")]:
        assert "Total running time of the script:" in page.read_text(), page.name


def test_every_page_has_a_card_for_links(site):
    """Each page has its title and the card, which is there; nothing of it is loaded."""
    card = "http://localhost:8000/_static/card.png"
    for name in set(pages.all_pages(site.html)) - {"404.html", "genindex.html", "search.html"}:
        text = (site.html / name).read_text()
        tags = dict(re.findall(r'<meta property="(og:[a-z:]+)" content="([^"]*)"', text))
        assert tags["og:url"] == f"http://localhost:8000/{name}"
        assert tags["og:image"] == card
        assert tags["og:title"]
        assert tags["og:description"]
    assert (site.html / "_static" / "card.png").stat().st_size > 0


def test_the_sitemap_lists_every_page(site):
    """Also those that the last build did not write again."""
    listed = re.findall(
        r"<loc>http://localhost:8000/(.*?)</loc>", (site.html / "sitemap.xml").read_text()
    )
    assert sorted(listed) == sorted(
        set(pages.all_pages(site.html)) - {"404.html", "genindex.html", "search.html"}
    )


def test_the_page_for_what_is_not_found_works_at_any_depth(wide, address, site):
    """Shown for an address deep below, it has its style, and its links lead into the site."""
    wide.route(
        f"{address}/some/where/deep.html",
        lambda route: route.fulfill(path=site.html / "404.html", status=404),
    )
    failed = []
    wide.on("response", lambda r: r.status < 400 or failed.append(r.url))
    wide.goto(f"{address}/some/where/deep.html")
    assert failed == [f"{address}/some/where/deep.html"]
    wide.locator("article a", has_text="front page").click()
    assert wide.url == f"{address}/index.html"


def test_the_chapter_can_be_printed(wide, address):
    """On paper there is the text alone, black, nothing wider than a sheet, nothing folded up."""
    wide.goto(f"{address}/masker_memory_usage.html")
    wide.emulate_media(media="print", color_scheme="dark")
    wide.set_viewport_size({"width": 680, "height": 960})  # A4 without its margins
    assert not wide.locator("header.bd-header").is_visible()
    assert not wide.locator(".prev-next-footer").is_visible()
    for what in ("article p", "article h2", "article pre span"):
        color = wide.locator(what).first.evaluate("e => getComputedStyle(e).color")
        assert color == "rgb(0, 0, 0)", what
    cut = wide.evaluate(
        """() => [...document.querySelectorAll("article *")]
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.outerHTML.slice(0, 100))"""
    )
    assert cut == []
    for figure in wide.locator("article figure").all():
        images = [image for image in figure.locator("img").all() if image.is_visible()]
        (name,) = (image.get_attribute("src") for image in images)
        assert name.endswith("light.svg")
        assert "_tall" not in name
