"""Every page in a browser: light or dark, on any screen, by keyboard, without scripts.

The checks are in pages.py; here they also have to find faults that are put into a page.
"""

import os
import shutil
from pathlib import Path

import pytest

import pages

AXE = Path(__file__).parent.parent / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def axe():
    """The source of axe-core, which finds what keeps readers out."""
    if not AXE.exists():
        assert not os.environ.get("REQUIRE_BROWSER"), "REQUIRE_BROWSER is set; no axe-core found"
        pytest.skip("axe-core is not installed, which 'make test' does where npm is")
    return AXE.read_text("utf-8")


# Each element is shown in both colour schemes at one of these widths.
@pytest.mark.parametrize(
    ("width", "scheme", "keyboard"),
    [
        (360, "dark", True),
        pytest.param(768, "light", False, marks=pytest.mark.extensive),
        (1440, "light", True),
        pytest.param(1440, "dark", False, marks=pytest.mark.extensive),
    ],
)
def test_pages_are_sound(browser, address, folder, names, axe, width, scheme, keyboard):
    """They are accessible, fit the screen, and load without errors, cookies or other hosts.

    Tab reaches everything, and the focus is visible.
    """
    options = {"width": width, "color_scheme": scheme, "axe": axe, "keyboard": keyboard}
    assert pages.wrong_on_pages(browser, address, folder, names, **options) == []


@pytest.mark.extensive
@pytest.mark.parametrize("width", [320, 2560])
def test_pages_fit_the_smallest_and_the_largest_screens(browser, address, folder, names, width):
    """They do not scroll sideways, and their images load."""
    assert len(names) >= 27
    assert pages.wrong_on_pages(browser, address, folder, names, width=width) == []


FAULTS = {
    '<a href="nowhere.html">there</a>': "dead link: nowhere.html",
    '<a href="#nowhere">there</a>': "dead anchor: #nowhere",
    '<a href="index.html#nowhere">there</a>': "dead anchor: index.html#nowhere",
    '<img srcset="_images/nothing.png 2x" alt="A">': "dead link: _images/nothing.png",
    '<p id="main-content">Again</p>': "two elements are called 'main-content'",
    '<link rel="preconnect" href="//other.invalid">': "loads from another host: //other.invalid",
    '<img src="_static/favicon.svg">': "image without alt text: _static/favicon.svg",
    '<img src="nothing.png" alt="A bar" loading="lazy">': "image does not load: nothing.png",
    '<script>fetch("http://other.invalid/")</script>': "request to another host: http",
    '<script>console.error("no")</script>': "console: no",
    "<script>notThere()</script>": "error of a script: notThere is not defined",
    '<p style="width: 2000px">wide</p>': "scrolls sideways: ",
    '<p style="color: #999; background: #fff">pale</p>': "color-contrast: ",
    '<script>document.cookie = "a=b"</script>': "cookies: a=b",
    '<script src="_static/much.js"></script>': "bytes are loaded",
    '<button tabindex="-1">no</button>': 'not reached by the keyboard: <button tabindex="-1">',
    '<a href="#" style="outline: none">it</a>': 'focus is not seen: <a href="#" style',
}


def test_the_checks_find_faults(browser, folder, serve, axe, tmp_path):
    """A page without faults is sound; each fault that is put into it is found."""
    copy = shutil.copytree(folder, tmp_path / "html", ignore=shutil.ignore_patterns("*.map"))
    (copy / "_static" / "much.js").write_bytes(b"//" + os.urandom(1_500_000).hex().encode())
    page, address = copy / "glossary.html", serve(copy)

    def wrong():
        options = {"width": 1440, "axe": axe, "keyboard": True}
        on_page = pages.wrong_on_pages(browser, address, copy, [page.name], **options)
        return pages.wrong_links(copy) + on_page

    assert wrong() == []
    good = page.read_text("utf-8")
    page.write_text(good.replace("</article>", f"{''.join(FAULTS)}</article>"), "utf-8")
    found = "\n".join(wrong())
    assert [problem for problem in FAULTS.values() if problem not in found] == []


# -- In use ---------------------------------------------------------------------------------------


def test_the_search_finds_the_glossary(open_page):
    """The first result for a term is its entry in the glossary."""
    page = open_page("search.html?q=proxy+image")
    first = page.locator("#search-results ul.search > li > a").first
    assert first.get_attribute("href") == "glossary.html#term-proxy-image"


@pytest.mark.extensive
def test_the_menu_of_a_phone_is_used_by_keyboard(open_page):
    """The navigation opens with Enter, has the pages and the theme switch, and closes."""
    page = open_page("auto_examples/3_cost/plot_limit.html", width=360)
    for button, dialog, words in (
        (".primary-toggle", "#pst-primary-sidebar-modal", "The chapter"),
        (".secondary-toggle", "#pst-secondary-sidebar-modal", "On this page"),
    ):
        page.locator(button).focus()
        page.keyboard.press("Enter")
        page.locator(dialog).wait_for()
        assert words in page.locator(dialog).inner_text()
        page.keyboard.press("Escape")
        page.locator(dialog).wait_for(state="hidden")
        page.locator(f"{button}:focus").wait_for()


# -- Without scripts, and on paper -------------------------------------------------------------


@pytest.mark.extensive
def test_scripts_are_not_needed(open_page, address, names):
    """Without scripts every page shows all its text, figures and links, except for buttons."""
    page = open_page("index.html", java_script_enabled=False)
    with_scripts = open_page("index.html")
    for name in names:
        for each in (page, with_scripts):
            each.goto(f"{address}/{name}")
        if name in ("search.html", "calculator.html"):
            assert "JavaScript" in page.locator("main").inner_text()
        else:
            expected = with_scripts.locator("article").inner_text().splitlines()
            shown = page.locator("article").inner_text().splitlines()
            buttons = "article button, article .timeline summary"
            shown += with_scripts.locator(buttons).all_inner_texts()
            assert [line for line in expected if line not in shown] == [], name
        for image in page.locator("article img:visible").all():
            assert image.bounding_box()["height"] > 10, name
        for word in ("The chapter", "Examples"):
            navigation = page.locator("nav").get_by_role("link", name=word, exact=True)
            assert navigation.locator("visible=true").count() >= 1, name


@pytest.mark.extensive
def test_the_chapter_can_be_printed(open_page):
    """On paper there is the text alone, black, nothing wider than a sheet, one layout a figure."""
    page = open_page("masker_memory_usage.html", color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 680, "height": 960})  # A4 without its margins
    assert not page.locator("header.bd-header").is_visible()
    assert not page.locator(".prev-next-footer").is_visible()
    for what in ("article p", "article h2", "article pre span"):
        color = page.locator(what).first.evaluate("e => getComputedStyle(e).color")
        assert color == "rgb(0, 0, 0)", what
    cut = page.evaluate(
        """() => [...document.querySelectorAll("article *")]
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.outerHTML.slice(0, 100))"""
    )
    assert cut == []
    for figure in page.locator("article figure").all():
        assert [image.is_visible() for image in figure.locator("img").all()].count(True) == 1
