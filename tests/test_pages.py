"""Every page, as people open it: light or dark, on any screen, by keyboard, without scripts.

The pages are those of the folder SITE, where ``make html`` builds, or else of the small site
that the tests build. The checks are in pages.py. Here they also have to find what is put into a
page on purpose.
"""

import os
import shutil
from pathlib import Path

import pytest

import pages

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
GOOD_PAGE = "glossary.html"


@pytest.fixture(scope="module")
def folder(request):
    """The site whose pages are opened."""
    if os.environ.get("SITE"):
        folder = Path(os.environ["SITE"]).resolve()
        assert (folder / "index.html").exists(), f"SITE is {folder}; there is no index.html"
        return folder
    return request.getfixturevalue("site").html


@pytest.fixture(scope="module")
def address(folder, serve):
    """The site, served on this machine."""
    return serve(folder)


@pytest.fixture(scope="module")
def axe():
    """The source of axe-core, which looks for what keeps readers out."""
    if not AXE.exists():
        assert not os.environ.get("REQUIRE_BROWSER"), "REQUIRE_BROWSER is set; no axe-core found"
        pytest.skip("axe-core is not installed, which 'make test' does where npm is")
    return AXE.read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_is_wrong_on_any_page(browser, address, folder, axe, width, scheme):
    """Each page is accessible, fits, is whole and light, without errors, cookies, other hosts."""
    names = pages.all_pages(folder)
    options = {"width": width, "color_scheme": scheme, "axe": axe}
    assert pages.wrong_on_pages(browser, address, folder, names, **options) == []


@pytest.mark.parametrize("width", [320, 2560])
def test_the_narrowest_and_the_widest_screen(browser, address, folder, width):
    """Each page can be read without scrolling sideways."""
    names = pages.all_pages(folder)
    assert pages.wrong_on_pages(browser, address, folder, names, width=width) == []


def test_every_link_leads_somewhere(folder):
    """No link of the site leads to a page, a file or an anchor that is not there."""
    assert len(pages.all_pages(folder)) >= 27
    assert pages.wrong_links(folder) == []


# -- What is wrong on purpose ------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(folder, tmp_path_factory):
    """A copy of the site, to put something wrong into."""
    ignore = shutil.ignore_patterns("*.map")
    return shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "html", ignore=ignore)


@pytest.fixture(scope="module")
def copy_address(copy, serve):
    """The copy, served on this machine."""
    return serve(copy)


@pytest.fixture
def put_in(copy):
    """A function that puts HTML at the end of a page's text; it is gone after the test."""
    page = copy / GOOD_PAGE
    good = page.read_text("utf-8")

    def put(html):
        assert good.count("</article>") == 1
        page.write_text(good.replace("</article>", f"{html}</article>"), "utf-8")

    yield put
    page.write_text(good, "utf-8")


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="nowhere.html">there</a>', "dead link: nowhere.html"),
        ('<a href="_downloads/nothing.zip" download>it</a>', "dead link: _downloads/nothing.zip"),
        ('<a href="index.html#nowhere">there</a>', "dead anchor: index.html#nowhere"),
        ('<a href="#nowhere">there</a>', "dead anchor: #nowhere"),
        ('<img src="_images/nothing.svg" alt="A bar">', "dead link: _images/nothing.svg"),
        ('<img srcset="_images/nothing.png 2x" alt="A">', "dead link: _images/nothing.png"),
        ('<p id="main-content">Again</p>', "two elements are called 'main-content'"),
        (
            '<script src="https://other.invalid/count.js"></script>',
            "loads from another host: https://other.invalid/count.js",
        ),
        (
            '<link rel="preconnect" href="//other.invalid">',
            "loads from another host: //other.invalid",
        ),
    ],
)
def test_a_wrong_link_is_found(copy, put_in, html, problem):
    """What leads nowhere or to another host is found in the files, and nothing else is."""
    assert pages.wrong_links(copy) == []
    put_in(html)
    assert pages.wrong_links(copy) == [f"{GOOD_PAGE}: {problem}"]


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<img src="_static/favicon.svg">', "image without alt text: _static/favicon.svg"),
        ('<img src="_static/favicon.svg" alt=" ">', "image without alt text: _static/favicon.svg"),
        ('<img src="nothing.png" alt="A bar">', "image does not load: nothing.png"),
        ('<img src="nothing.png" alt="A bar" loading="lazy">', "image does not load: nothing.png"),
        ('<script>fetch("http://other.invalid/")</script>', "request to another host: http"),
        ('<img src="http://other.invalid/a.png" alt="A">', "request to another host: http"),
        ('<script>console.error("no")</script>', "console: no"),
        ('<script>console.warn("hm")</script>', "console: hm"),
        ("<script>notThere()</script>", "error of a script: notThere is not defined"),
        ('<p style="width: 2000px">wide</p>', "scrolls sideways: "),
        ('<p style="color: #999; background: #fff">pale</p>', "color-contrast: "),
        ('<button type="button"></button>', "button-name: "),
        ("<h5>Two levels down</h5>", "heading-order: "),
        ('<script>document.cookie = "a=b"</script>', "cookies: a=b"),
        ('<script src="_static/much.js"></script>', "1,7"),
    ],
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_fault_of_a_page_is_found(
    browser, copy, copy_address, axe, put_in, html, problem, scheme
):
    """What the checks of the pages look for is found in the browser when it is there."""
    (copy / "_static" / "much.js").write_text("/*" + " " * 1_400_000 + "*/")
    options = {"width": 1440, "color_scheme": scheme, "axe": axe}
    put_in(html)
    wrong = pages.wrong_on_pages(browser, copy_address, copy, [GOOD_PAGE], **options)
    assert [line for line in wrong if line.startswith(f"{GOOD_PAGE}: {problem}")], wrong


def test_the_page_with_nothing_put_in_is_good(browser, copy, copy_address, axe):
    """What was found above was found because it was put in."""
    options = {"width": 1440, "axe": axe}
    assert pages.wrong_on_pages(browser, copy_address, copy, [GOOD_PAGE], **options) == []
