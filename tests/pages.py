"""Checks of a built site: each returns a list of problems, with the page where they are.

The tests of the pages use them, and put a fault of each kind into a page to see it found.
"""

import functools
import gzip
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from bs4 import BeautifulSoup

PATIENCE = 60_000  # milliseconds; only what hangs takes longer
MOST_BYTES = 1_500_000  # of a page with all it loads, as sent with gzip

# axe-core finds elements that keep a reader out. (The theme names its search button "Search", and
# shows the keys beside that word.)
AXE = """async () => {
    const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
    const found = await axe.run({exclude: [".search-button-field"]}, {
        resultTypes: ["violations"], runOnly: {type: "tag", values: tags}
    });
    return found.violations.flatMap(({id, help, nodes}) => nodes.map(
        node => `${id}: ${help}: ${node.target.join(" ")} ${node.html.slice(0, 200)}`
    ));
}"""
IMAGES = """async () => {
    const wrong = [];
    for (const image of document.images) {
        const name = image.getAttribute("src");
        const decoration = image.closest(".sphx-glr-thumbcontainer");  // beside its title
        if (!image.alt.trim() && !decoration) wrong.push(`image without alt text: ${name}`);
        if (!image.checkVisibility()) continue;  // the layout for another screen
        image.loading = "eager";
        await image.decode().catch(() => {});
        if (!image.naturalWidth) wrong.push(`image does not load: ${name}`);
    }
    return wrong;
}"""
# Neither the page may scroll sideways, nor a box in it that the keyboard does not reach.
SIDEWAYS = """() => {
    const page = document.scrollingElement;
    const wide = [page, ...document.body.querySelectorAll("*")].filter(
        box => box.scrollWidth > box.clientWidth && box.checkVisibility() && (box == page ||
            (box.tabIndex < 0 && /auto|scroll/.test(getComputedStyle(box).overflowX))));
    return wide.map(box => `${box.tagName} ${box.className}: ${box.scrollWidth} pixels wide`);
}"""


class Links(NamedTuple):
    """The links of a page, the addresses that it loads, and its anchors."""

    links: list
    loads: list
    anchors: list


LOADED = {"icon", "stylesheet", "preload", "preconnect", "dns-prefetch", "manifest"}


def read_links(html):
    """Return the `Links` of a page."""
    page = BeautifulSoup(html, "html.parser")
    loads = [e["href"] for e in page.select("link[href]") if LOADED & set(e.get("rel", ()))]
    for name in ("src", "data", "poster", "action"):
        loads += [e[name] for e in page.select(f"[{name}]")]
    for e in page.select("[srcset]"):
        loads += [choice.split()[0] for choice in e["srcset"].split(",")]
    links = [e["href"] for e in page.select("[href]:not(link)")]
    return Links(links, loads, [e["id"] for e in page.select("[id]")])


def all_pages(folder):
    """Return every page of a site, relative to its root."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    return sorted(name for name in names if not name.startswith("_static/"))


def wrong_links(folder):
    """Return links and anchors of a site that lead nowhere, and what is loaded from elsewhere."""
    found = {name: read_links((folder / name).read_text("utf-8")) for name in all_pages(folder)}
    wrong = []
    for name, page in found.items():
        # sphinx-gallery writes an empty list of tags for each section.
        twice = {a for a in page.anchors if page.anchors.count(a) > 1} - {"sg-tag-list"}
        wrong += [f"{name}: two elements are called {anchor!r}" for anchor in sorted(twice)]
        for link in page.links + page.loads:
            problem = _problem_of(link, name, folder, found)
            if not problem and link in page.loads and urlsplit(link).netloc:
                problem = "loads from another host"
            wrong += [f"{name}: {problem}: {link}"] * bool(problem)
    return wrong


def _problem_of(link, name, folder, found):
    """Return what is wrong with a link into the site; nothing for one to another host."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return ""
    target = unquote(urlsplit(urljoin(f"/{name}", parts.path)).path).lstrip("/") or "index.html"
    target = name if not parts.path else target + "index.html" * target.endswith("/")
    if not (folder / target).is_file():
        return "dead link"
    if target in found and parts.fragment and unquote(parts.fragment) not in found[target].anchors:
        return "dead anchor"
    return ""


@functools.cache
def sent_bytes(path):
    """Return the size of a file as it is sent, with gzip."""
    return len(gzip.compress(path.read_bytes(), 6)) if path.is_file() else 0


class Visitor:
    """Opens pages of a site one after the other, and notes what is wrong on each.

    Without the source of axe-core, accessibility is not checked. Options are the context's.
    """

    def __init__(self, browser, address, folder, width, axe="", **options):
        self.address, self.folder, self.axe = address, folder, axe
        self.name, self.wrong, self.requests = "", [], set()
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            device_scale_factor=2,  # the sharpest images, which are the heaviest
            reduced_motion="reduce",
            **options,
        )
        if axe:
            self.context.add_init_script(axe)
        self.context.on("request", self.note_request)
        # Opening the next page aborts what is still being fetched; "csp" is a script not wanted.
        ignored = ("net::ERR_ABORTED", "csp")
        self.context.on(
            "requestfailed", lambda r: r.failure in ignored or self.note(f"{r.failure}: {r.url}")
        )
        self.context.on("response", lambda r: r.status < 400 or self.note(f"{r.status}: {r.url}"))
        self.context.on(
            "console", lambda m: m.type in ("error", "warning") and self.note(f"console: {m.text}")
        )
        self.context.on("weberror", lambda error: self.note(f"error of a script: {error.error}"))
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()

    def note(self, *problems):
        """Note what is wrong on the page that is open."""
        self.wrong += [f"{self.name}: {problem}" for problem in problems]

    def note_request(self, request):
        """Note what is loaded, and whether it comes from another host."""
        if request.url.startswith(self.address):
            self.requests.add(urlsplit(request.url).path)
        elif not request.url.startswith(("data:", "blob:")):
            self.note(f"request to another host: {request.url}")

    def visit(self, name):
        """Open a page and check it."""
        self.name = name
        self.requests.clear()
        self.page.goto(f"{self.address}/{name}")
        self.note(*(f"scrolls sideways: {what}" for what in self.page.evaluate(SIDEWAYS)))
        self.note(*self.page.evaluate(IMAGES))
        if self.axe:
            self.note(*self.page.evaluate(AXE))
        if cookies := self.page.evaluate("document.cookie") or self.context.cookies():
            self.note(f"cookies: {cookies}")
        size = sum(sent_bytes(self.folder / unquote(path).lstrip("/")) for path in self.requests)
        if size > MOST_BYTES:
            self.note(f"{size:,} bytes are loaded; {MOST_BYTES:,} can be")


def wrong_on_pages(browser, address, folder, names, **options):
    """Open pages in the browser, and return what is wrong with what they show and load."""
    visitor = Visitor(browser, address, folder, **options)
    for name in names:
        visitor.visit(name)
    visitor.context.close()
    return visitor.wrong


# Notes what the keyboard reaches, and where its focus is not visible.
START = """() => {
    const all = 'a[href], button, input, select, textarea, summary, [tabindex="0"]';
    const look = element => {
        const s = getComputedStyle(element);
        const child = getComputedStyle(element.firstElementChild || element);
        const lines = [s, child, getComputedStyle(element, "::after")].map(
            style => style.outlineStyle == "none" ? 0 : parseFloat(style.outlineWidth));
        const rest = [s.boxShadow, s.borderColor, s.backgroundColor].join();
        return {line: Math.max(...lines), rest};
    };
    const here = [...document.querySelectorAll(all)].filter(element =>
        !element.disabled && element.checkVisibility({visibilityProperty: true}));
    window.toReach = new Map(here.map(element => [element, look(element).rest]));
    window.unseen = [];
    document.addEventListener("focusin", ({target}) => {
        const rest = window.toReach.get(target);
        const now = look(target);
        if (rest && now.line < 1 && now.rest == rest) window.unseen.push(target);
        window.toReach.delete(target);
    });
    return here.length;
}"""
END = """() => {
    // Of radio buttons with one name, Tab reaches one, and the arrow keys the others.
    const reached = element => element.type == "radio" && [...document.getElementsByName(
        element.name)].some(other => !window.toReach.has(other));
    const missed = [...window.toReach.keys()].filter(element => !reached(element));
    const name = element => element.outerHTML.slice(0, 150);
    return [...missed.map(element => `not reached by the keyboard: ${name(element)}`),
            ...window.unseen.map(element => `focus is not seen: ${name(element)}`)];
}"""


def wrong_by_keyboard(browser, address, names, **options):
    """Return what the Tab key does not reach on pages, and what does not show its focus."""
    context = browser.new_context(reduced_motion="reduce", **options)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    wrong = []
    for name in names:
        page.goto(f"{address}/{name}")
        for _ in range(page.evaluate(START) + 3):
            page.keyboard.press("Tab")
        wrong += [f"{name}: {problem}" for problem in page.evaluate(END)]
    context.close()
    return wrong
