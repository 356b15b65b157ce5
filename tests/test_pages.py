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


# Each element is seen in both colour schemes at a width at which it is shown.
@pytest.mark.parametrize(
    ("width", "scheme"), [(360, "light"), (768, "dark"), (1440, "light"), (1440, "dark")]
)
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
def test_a_fault_of_a_page_is_found(browser, copy, copy_address, axe, put_in, html, problem):
    """What the checks of the pages look for is found in the browser when it is there."""
    (copy / "_static" / "much.js").write_text("/*" + " " * 1_400_000 + "*/")
    options = {"width": 1440, "axe": axe}
    put_in(html)
    wrong = pages.wrong_on_pages(browser, copy_address, copy, [GOOD_PAGE], **options)
    assert [line for line in wrong if line.startswith(f"{GOOD_PAGE}: {problem}")], wrong


def test_the_page_with_nothing_put_in_is_good(browser, copy, copy_address, axe):
    """What was found above was found because it was put in."""
    options = {"width": 1440, "axe": axe}
    assert pages.wrong_on_pages(browser, copy_address, copy, [GOOD_PAGE], **options) == []


# -- By keyboard -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 1440])
def test_the_keyboard_reaches_everything(browser, address, folder, width):
    """Tab reaches every link, entry, button and box that scrolls, and one sees where it is."""
    names = pages.all_pages(folder)
    viewport = {"width": width, "height": 900}
    assert pages.wrong_by_keyboard(browser, address, names, viewport=viewport) == []


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<button type="button" tabindex="-1">no</button>', "not reached by the keyboard"),
        ('<a href="#" style="outline: none">there</a>', "focus is not seen"),
    ],
)
def test_what_the_keyboard_does_not_reach_is_found(browser, copy_address, put_in, html, problem):
    """A control that Tab passes over is found, and one that does not show its focus."""
    put_in(html)
    (wrong,) = pages.wrong_by_keyboard(browser, copy_address, [GOOD_PAGE])
    assert wrong.startswith(f"{GOOD_PAGE}: {problem}: {html[:10]}")


@pytest.fixture
def open_page(browser, address):
    """A function that opens a page in a context of its own."""
    contexts = []

    def start(name, width=1440, **options):
        viewport = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=viewport, reduced_motion="reduce", **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(pages.PATIENCE)
        page.goto(f"{address}/{name}")
        return page

    yield start
    for context in contexts:
        context.close()


def focused(page):
    """What has the focus."""
    return page.locator("*:focus")


def test_the_first_key_skips_to_the_text(open_page):
    """The first Tab shows a link past the navigation, and Enter goes there."""
    page = open_page("masker_memory_usage.html")
    page.keyboard.press("Tab")
    page.locator("*:focus", has_text="Skip to main content").wait_for()
    # It slides into the page.
    page.wait_for_function("document.activeElement.getBoundingClientRect().top >= 0")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert focused(page).evaluate("link => link.closest('main') != null")


def test_the_search_is_used_by_keyboard(open_page):
    """Ctrl+K asks for words, Escape closes, Enter leads to pages that have them."""
    page = open_page("index.html")
    dialog = page.locator("#pst-search-dialog")
    page.keyboard.press("Control+k")
    dialog.wait_for()
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.keyboard.press("Control+k")
    page.keyboard.type("PSS")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=PSS")
    page.locator("#search-results li a[href*='glossary.html']").first.wait_for()


def test_the_theme_is_switched_by_keyboard(open_page):
    """The menu of the colours opens with Enter, is walked through with arrows, and is kept."""
    page = open_page("glossary.html", color_scheme="light")
    page.locator("button.theme-switch-button:visible").focus()
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    page.locator("*:focus", has_text="Dark").wait_for()
    page.keyboard.press("Enter")
    page.locator('html[data-theme="dark"]').wait_for()
    page.goto(page.url.replace("glossary", "index"))
    page.locator('html[data-theme="dark"]').wait_for()


def test_the_menu_of_a_phone_is_used_by_keyboard(open_page):
    """The navigation opens with Enter, has the pages and the theme switch, and closes again."""
    page = open_page("auto_examples/plot_limit.html", width=360)
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


# -- Without scripts ---------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 1440])
def test_scripts_are_not_needed(open_page, address, folder, width):
    """Without scripts every page shows all its text, figures and links, but for buttons."""
    page = open_page("index.html", width, java_script_enabled=False, color_scheme="dark")
    with_scripts = open_page("index.html", width, color_scheme="dark")
    for name in pages.all_pages(folder):
        for each in (page, with_scripts):
            each.goto(f"{address}/{name}")
        assert page.locator("html").get_attribute("data-theme") == "light"
        assert page.locator("h1").first.is_visible()
        if name not in ("search.html", "calculator.html"):
            expected = with_scripts.locator("article").inner_text().splitlines()
            shown = page.locator("article").inner_text().splitlines()
            shown += with_scripts.locator("article button").all_inner_texts()
            assert [line for line in expected if line not in shown] == [], name
        for image in page.locator("article img:visible").all():
            assert image.bounding_box()["height"] > 10, name
        for word in ("The chapter", "Examples"):
            navigation = page.locator("nav").get_by_role("link", name=word, exact=True)
            assert navigation.locator("visible=true").count() >= 1, name


def test_what_needs_scripts_says_so(open_page):
    """Without scripts the calculator and the search say that they need them."""
    for name in ("calculator.html", "search.html"):
        page = open_page(name, java_script_enabled=False)
        assert "JavaScript" in page.locator("main").inner_text()
