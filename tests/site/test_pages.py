"""Every page in a browser: light or dark, on any screen, by keyboard, without scripts.

The checks are in pages.py; here they also have to find faults that are put into a page.
"""

import os
import shutil
from pathlib import Path

import pytest

import pages

AXE = Path(__file__).parent.parent / "node_modules" / "axe-core" / "axe.min.js"
GOOD_PAGE = "glossary.html"
OF_EACH_KIND = [
    *("index.html", "masker_memory_usage.html", "calculator.html", "functions.html"),
    *("auto_examples/index.html", "auto_examples/2_streaming/plot_stream_masks.html"),
]


@pytest.fixture(scope="module")
def address(folder, serve):
    """The site, served on this machine."""
    return serve(folder)


@pytest.fixture(scope="module")
def axe():
    """The source of axe-core, which finds what keeps readers out."""
    if not AXE.exists():
        assert not os.environ.get("REQUIRE_BROWSER"), "REQUIRE_BROWSER is set; no axe-core found"
        pytest.skip("axe-core is not installed, which 'make test' does where npm is")
    return AXE.read_text("utf-8")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1440, "dark")])
def test_a_page_of_each_kind_is_sound(browser, address, folder, axe, width, scheme):
    """It is accessible, fits the screen, and loads without errors, cookies or other hosts."""
    options = {"width": width, "color_scheme": scheme, "axe": axe}
    assert pages.wrong_on_pages(browser, address, folder, OF_EACH_KIND, **options) == []


# Each element is shown in both colour schemes at one of these widths.
@pytest.mark.extensive
@pytest.mark.parametrize(
    ("width", "scheme"), [(360, "dark"), (768, "light"), (1440, "light"), (1440, "dark")]
)
def test_every_page_is_sound(browser, address, folder, axe, width, scheme):
    """So is each of the other pages."""
    options = {"width": width, "color_scheme": scheme, "axe": axe}
    names = pages.all_pages(folder)
    assert len(names) >= 27
    assert pages.wrong_on_pages(browser, address, folder, names, **options) == []


@pytest.mark.extensive
@pytest.mark.parametrize("width", [320, 2560])
def test_the_narrowest_and_the_widest_screen(browser, address, folder, width):
    """Each page can be read without scrolling sideways."""
    names = pages.all_pages(folder)
    assert pages.wrong_on_pages(browser, address, folder, names, width=width) == []


# -- The checks find faults --------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(folder, tmp_path_factory):
    """A copy of the site, to put faults into."""
    ignore = shutil.ignore_patterns("*.map")
    return shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "html", ignore=ignore)


@pytest.fixture
def put_in(copy):
    """A function that puts HTML at the end of a page's text, until the test ends."""
    page = copy / GOOD_PAGE
    good = page.read_text("utf-8")

    def put(*html):
        assert good.count("</article>") == 1
        page.write_text(good.replace("</article>", f"{''.join(html)}</article>"), "utf-8")

    yield put
    page.write_text(good, "utf-8")


LINKS = {
    '<a href="nowhere.html">there</a>': "dead link: nowhere.html",
    '<a href="_downloads/nothing.zip" download>it</a>': "dead link: _downloads/nothing.zip",
    '<a href="index.html#nowhere">there</a>': "dead anchor: index.html#nowhere",
    '<a href="#nowhere">there</a>': "dead anchor: #nowhere",
    '<img src="_images/nothing.svg" alt="A bar">': "dead link: _images/nothing.svg",
    '<img srcset="_images/nothing.png 2x" alt="A">': "dead link: _images/nothing.png",
    '<p id="main-content">Again</p>': "two elements are called 'main-content'",
    '<script src="https://other.invalid/count.js"></script>': "loads from another host: "
    "https://other.invalid/count.js",
    '<link rel="preconnect" href="//other.invalid">': "loads from another host: //other.invalid",
}


def test_every_link_leads_somewhere(copy, put_in):
    """Links into the site have a target; those put in that have none are found."""
    assert pages.wrong_links(copy) == []
    put_in(*LINKS)
    found = {problem.removeprefix(f"{GOOD_PAGE}: ") for problem in pages.wrong_links(copy)}
    assert found == set(LINKS.values())


FAULTS = {
    '<img src="_static/favicon.svg">': "image without alt text: _static/favicon.svg",
    '<img src="_static/favicon.svg?2" alt=" ">': "image without alt text: _static/favicon.svg?2",
    '<img src="nothing.png" alt="A bar" loading="lazy">': "image does not load: nothing.png",
    '<script>fetch("http://other.invalid/")</script>': "request to another host: http",
    '<script>console.error("no")</script>': "console: no",
    '<script>console.warn("hm")</script>': "console: hm",
    "<script>notThere()</script>": "error of a script: notThere is not defined",
    '<p style="width: 2000px">wide</p>': "scrolls sideways: ",
    '<p style="color: #999; background: #fff">pale</p>': "color-contrast: ",
    '<button type="button"></button>': "button-name: ",
    "<h5>Two levels down</h5>": "heading-order: ",
    '<script>document.cookie = "a=b"</script>': "cookies: a=b",
    '<script src="_static/much.js"></script>': "bytes are loaded",
}


def test_faults_of_a_page_are_found(browser, copy, serve, axe, put_in):
    """Each fault that is put into a page without faults is found in the browser."""
    (copy / "_static" / "much.js").write_bytes(b"//" + os.urandom(1_500_000).hex().encode())
    address, options = serve(copy), {"width": 1440, "axe": axe}
    assert pages.wrong_on_pages(browser, address, copy, [GOOD_PAGE], **options) == []
    put_in(*FAULTS)
    wrong = pages.wrong_on_pages(browser, address, copy, [GOOD_PAGE], **options)
    for problem in FAULTS.values():
        assert any(problem in line for line in wrong), problem


# -- By keyboard -------------------------------------------------------------------------------


@pytest.mark.extensive
@pytest.mark.parametrize("width", [360, 1440])
def test_the_keyboard_reaches_everything(browser, address, folder, width):
    """Tab reaches every link, entry, button and box that scrolls, and the focus is visible."""
    names = pages.all_pages(folder)
    viewport = {"width": width, "height": 900}
    assert pages.wrong_by_keyboard(browser, address, names, viewport=viewport) == []


def test_a_control_out_of_reach_is_found(browser, copy, serve, put_in):
    """A control that Tab passes over is found, and one whose focus is invisible."""
    button = '<button type="button" tabindex="-1">no</button>'
    link = '<a href="#" style="outline: none">there</a>'
    put_in(button, link)
    wrong = pages.wrong_by_keyboard(browser, serve(copy), [GOOD_PAGE])
    assert wrong == [
        f"{GOOD_PAGE}: not reached by the keyboard: {button}",
        f"{GOOD_PAGE}: focus is not seen: {link}",
    ]


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


def test_the_first_key_skips_to_the_text(open_page):
    """The first Tab shows a link past the navigation, and Enter goes there."""
    page = open_page("masker_memory_usage.html")
    page.keyboard.press("Tab")
    page.locator("*:focus", has_text="Skip to main content").wait_for()
    page.wait_for_function("document.activeElement.getBoundingClientRect().top >= 0")  # it slides
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator("*:focus").evaluate("link => link.closest('main') != null")


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


@pytest.mark.parametrize("term", ["PSS", "proxy image", "block"])
def test_the_search_finds_the_glossary(open_page, term):
    """The first result for a term is its entry in the glossary."""
    page = open_page(f"search.html?q={term.replace(' ', '+')}")
    first = page.locator("#search-results ul.search > li > a").first
    assert first.get_attribute("href") == f"glossary.html#term-{term.replace(' ', '-')}"


@pytest.mark.extensive
def test_the_theme_is_switched_by_keyboard(open_page):
    """The menu of the colours opens with Enter, arrows walk through it, and the choice is kept."""
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
@pytest.mark.parametrize("width", [360, 1440])
def test_scripts_are_not_needed(open_page, address, folder, width):
    """Without scripts every page shows all its text, figures and links, except for buttons."""
    page = open_page("index.html", width, java_script_enabled=False)
    with_scripts = open_page("index.html", width)
    for name in pages.all_pages(folder):
        for each in (page, with_scripts):
            each.goto(f"{address}/{name}")
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
