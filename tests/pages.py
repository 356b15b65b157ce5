"""Checks of a built site: each returns a list of problems, with the page where they are.

The tests of the pages use them, and put a fault of each kind into a page to see it found.
"""

import functools
import gzip
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
# Neither the page may scroll sideways, nor a box in it that the keyboard does not reach. (The theme
# looks at boxes again a moment after the page has changed.)
SIDEWAYS = """async () => {
    const page = document.scrollingElement;
    const tooWide = box => box.scrollWidth > box.clientWidth && box.checkVisibility() && (
        box == page || (box.tabIndex < 0 && /auto|scroll/.test(getComputedStyle(box).overflowX)));
    await document.fonts.ready;
    let wide = [page, ...document.body.querySelectorAll("*")].filter(tooWide);
    for (let i = 0; i < 20 && wide.length; i++) {
        await new Promise(resolve => setTimeout(resolve, 100));
        wide = wide.filter(tooWide);
    }
    return wide.map(box => `${box.tagName} ${box.className}: ${box.scrollWidth} pixels wide`);
}"""
# Notes what the keyboard reaches, and where its focus is not visible. Other stops do not count:
# boxes that scroll, which the theme and some versions of Chromium add, and the browser's own.
START = """async () => {
    const stops = 'a[href], button, input, select, textarea, summary, [tabindex="0"]';
    const canBeReached = element => element.matches(stops) && !element.disabled &&
        element.checkVisibility({visibilityProperty: true});
    const look = element => {
        const s = getComputedStyle(element);
        const child = getComputedStyle(element.firstElementChild || element);
        const lines = [s, child, getComputedStyle(element, "::after")].map(
            style => style.outlineStyle == "none" ? 0 : parseFloat(style.outlineWidth));
        const rest = [s.boxShadow, s.borderColor, s.backgroundColor].join();
        return {line: Math.max(...lines), rest};
    };
    await document.fonts.ready;
    const here = [...document.querySelectorAll(stops)].filter(canBeReached);
    const toReach = new Map(here.map(element => [element, look(element).rest]));
    const unseen = [];
    let first = null, rounds = -1;
    document.addEventListener("focusin", ({target}) => {
        first ??= target;
        rounds += target == first;
        const rest = toReach.get(target);
        const now = look(target);
        if (rest && now.line < 1 && now.rest == rest) unseen.push(target);
        toReach.delete(target);
    });
    // Of radio buttons with one name, Tab reaches one, and the arrow keys the others.
    const reached = element => element.type == "radio" && [...document.getElementsByName(
        element.name)].some(other => !toReach.has(other));
    const name = element => element.outerHTML.slice(0, 150);
    window.ofKeyboard = () => {
        const missed = [...toReach.keys()].filter(e => canBeReached(e) && !reached(e)).map(name);
        return {missed, rounds, unseen: unseen.map(name)};
    };
    return here.length;
}"""


LOADED = {"icon", "stylesheet", "preload", "preconnect", "dns-prefetch", "manifest"}


def read_page(path):
    """Return the addresses that a page links, those that it loads, and its anchors."""
    page = BeautifulSoup(path.read_text("utf-8"), "html.parser")
    loads = [e["href"] for e in page.select("link[href]") if LOADED & set(e.get("rel", ()))]
    for name in ("src", "data", "poster", "action"):
        loads += [e[name] for e in page.select(f"[{name}]")]
    for e in page.select("[srcset]"):
        loads += [choice.split()[0] for choice in e["srcset"].split(",")]
    links = [e["href"] for e in page.select("[href]:not(link)")]
    return links, loads, [e["id"] for e in page.select("[id]")]


def all_pages(folder):
    """Return every page of a site, relative to its root."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    return sorted(name for name in names if not name.startswith("_static/"))


def wrong_links(folder):
    """Return links and anchors of a site that lead nowhere, and what is loaded from elsewhere."""
    found = {name: read_page(folder / name) for name in all_pages(folder)}
    anchors = {name: ids for name, (_, _, ids) in found.items()}
    wrong = []
    for name, (links, loads, ids) in found.items():
        # sphinx-gallery writes an empty list of tags for each section.
        twice = {one for one in ids if ids.count(one) > 1} - {"sg-tag-list"}
        wrong += [f"{name}: two elements are called {one!r}" for one in sorted(twice)]
        other = [link for link in loads if urlsplit(link).netloc]
        wrong += [f"{name}: loads from another host: {link}" for link in other]
        for link in links + loads:
            if problem := _problem_of(link, name, folder, anchors):
                wrong.append(f"{name}: {problem}: {link}")
    return wrong


def _problem_of(link, name, folder, anchors):
    """Return what is wrong with a link into the site; nothing for one to another host."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return ""
    target = unquote(urlsplit(urljoin(f"/{name}", parts.path)).path).lstrip("/") or "index.html"
    target = name if not parts.path else target + "index.html" * target.endswith("/")
    if not (folder / target).is_file():
        return "dead link"
    if target in anchors and parts.fragment and unquote(parts.fragment) not in anchors[target]:
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
        self.context.on("console", self.note_message)
        self.context.on("weberror", lambda error: self.note(f"error of a script: {error.error}"))
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()

    def note(self, *problems):
        """Note what is wrong on the page that is open."""
        self.wrong += [f"{self.name}: {problem}" for problem in problems]

    def note_message(self, message):
        """Note an error or a warning of the page, not the browser's remarks on itself."""
        remark = message.text.startswith(("[Deprecation]", "[Intervention]"))
        if message.type in ("error", "warning") and not remark:
            self.note(f"console: {message.text}")

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

    def press_tab(self):
        """Press Tab until all is reached or the focus has gone round twice; note what is wrong."""
        left = 3 * self.page.evaluate(START) + 50  # a page may keep the focus to itself
        found = self.page.evaluate("ofKeyboard()")
        while found["missed"] and found["rounds"] < 2 and left > 0:
            left -= len(found["missed"])
            for _ in found["missed"]:
                self.page.keyboard.press("Tab")
            found = self.page.evaluate("ofKeyboard()")
        self.note(*(f"not reached by the keyboard: {what}" for what in found["missed"]))
        self.note(*(f"focus is not seen: {what}" for what in found["unseen"]))


def wrong_on_pages(browser, address, folder, names, keyboard=False, **options):
    """Open pages in the browser; return what is wrong with what they show, load and focus."""
    visitor = Visitor(browser, address, folder, **options)
    for name in names:
        visitor.visit(name)
        if keyboard:
            visitor.press_tab()
    visitor.context.close()
    return visitor.wrong
