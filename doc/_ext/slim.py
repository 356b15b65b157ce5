"""Leave out what the theme brings and no page uses: scripts, style rules, icons.

The theme's style sheets and its icon font serve any site, and are more than half of what a
page here would load. When the pages are written, this extension removes the rules whose
classes occur in no page and in no script, and keeps those icons that are left. The
search's scripts are loaded by the search page only.
"""

import logging
import re
from itertools import pairwise

import tinycss2
from fontTools.subset import Options, Subsetter, load_font, save_font

# The theme loads fontawesome.js for icons of one's own, and the search for results while one
# types, on every page.
UNUSED = "fontawesome.js", "searchtools.js", "language_data.js", "searchindex.js"
SCRIPT = re.compile(rf"<script[^>]*({'|'.join(map(re.escape, UNUSED))})[^>]*></script>\n?")


def without_unused(html):
    """Give a part of a page without the scripts that it has no use for."""
    return SCRIPT.sub("", html)


def classes_in(folder):
    """Give the classes of all pages, every word of a script, and what scripts put together.

    Parameters
    ----------
    folder : pathlib.Path
        The site.

    Returns
    -------
    names : set of str
    beginnings : tuple of str
        A class such as ``bs-tooltip-auto`` is written ``bs-${name}-auto`` in a script.
    """
    names, beginnings = set(), set()
    for page in folder.rglob("*.html"):
        for _, value in re.findall(
            r"""class *= *(["'])(.*?)\1""", page.read_text("utf-8"), re.DOTALL
        ):
            names.update(value.split())
    for path in folder.rglob("*.js"):
        if path.name not in UNUSED:
            script = path.read_text("utf-8")
            names.update(re.findall(r"[\w-]+", script))
            beginnings.update(re.findall(r"([A-Za-z][\w-]*-)(?:\$\{|[\"'`])", script))
    return names, tuple(beginnings)


def split(tokens):
    """Give the selectors of a list that is separated by commas."""
    selectors = [[]]
    for token in tokens:
        if token == ",":
            selectors.append([])
        else:
            selectors[-1].append(token)
    return selectors


def can_match(selector, names, beginnings):
    """Say whether a selector's classes occur; what stands in brackets is not looked at."""
    return all(
        name.value in names or name.value.startswith(beginnings)
        for dot, name in pairwise(selector)
        if dot == "." and name.type == "ident"
    )


def used_rules(rules, *classes):
    """Give the rules of a style sheet that can match, as text, with the licences in it."""
    text = []
    for rule in rules:
        if rule.type == "qualified-rule":
            kept = [s for s in split(rule.prelude) if can_match(s, *classes)]
            if kept:
                selectors = ",".join(tinycss2.serialize(s).strip() for s in kept)
                text.append(f"{selectors}{{{tinycss2.serialize(rule.content)}}}")
        elif rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports"):
            inner = used_rules(tinycss2.parse_rule_list(rule.content), *classes)
            if inner:
                text.append(f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inner}}}")
        elif rule.type == "at-rule" or (rule.type == "comment" and rule.value.startswith("!")):
            text.append(rule.serialize())
    return "\n".join(text)


def keep_icons(font_file, css):
    """Keep the glyphs of a font that a style sheet names, in the range for private use."""
    options = Options(flavor="woff2")
    font = load_font(font_file, options, lazy=False)  # closes the file
    subsetter = Subsetter(options)
    subsetter.populate(text="".join(re.findall("[\ue000-\uf8ff]", css)))
    subsetter.subset(font)
    save_font(font, font_file, options)


def slim(app, exception):
    """When the site is written: leave out what no page uses."""
    if exception or app.builder.format != "html":
        return
    static = app.outdir / "_static"
    classes = classes_in(app.outdir)
    for path in static.rglob("*.css"):
        rules = tinycss2.parse_stylesheet(path.read_text("utf-8"), skip_whitespace=True)
        path.write_text(used_rules(rules, *classes), "utf-8")
    css = (static / "styles" / "pydata-sphinx-theme.css").read_text("utf-8")
    for font_file in static.rglob("fa-*.woff2"):
        keep_icons(font_file, css)


def add_filter(app, pagename, templatename, context, doctree):
    """Let the template leave out scripts."""
    context["without_unused"] = without_unused


def setup(app):
    """Register both steps."""
    logging.getLogger("fontTools").setLevel("WARNING")  # it tells every step
    app.connect("html-page-context", add_filter)
    app.connect("build-finished", slim, priority=900)  # after the theme
    return {"parallel_read_safe": True, "parallel_write_safe": True}
