"""Pictures: each figure as SVG in the theme's type and colours, light and dark.

A figure says itself what it shows. Its label holds a caption, an empty line, and a
description with the numbers, for those who do not see it::

    figure.set_label("Peaks for all masks.\\n\\nBar chart: NiftiMasker needs 2,642 MiB, ...")

`scraper` is what sphinx-gallery calls after each block of an example: it saves the open
figures, with their labels, and puts the directive ``picture`` for each into the page. Two
figures with the same label are two layouts of one picture, the wide one first.

The directive takes the name of an SVG file, and with the option ``tall`` that of the layout
for a narrow column. Description and caption come from the file; the option ``alt`` and the
content replace them. Figures are drawn in black on white. Of every grey, the counterpart on
the theme's light or dark page is taken; the colours of data stay. A figure on another
background than white keeps all its colours, and is the same on both pages.
"""

import re
from html import unescape
from itertools import groupby
from os.path import relpath
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

THEMES = {  # of the theme's pages: colour of text, colour behind it
    "light": ("#222832", "#ffffff"),
    "dark": ("#ced6dd", "#14181e"),
}
TYPE = "system-ui, sans-serif"  # the theme's own
THUMBNAIL = 0.7  # height of a thumbnail, in units of its width


def scraper(block, block_vars, gallery_conf):
    """Save the open figures of a block, and give the text that shows them.

    Parameters
    ----------
    block, block_vars, gallery_conf
        As sphinx-gallery calls a scraper.

    Returns
    -------
    str

    Raises
    ------
    sphinx.errors.ExtensionError
        A figure does not say what it shows.
    """
    import matplotlib.pyplot as plt

    paths = block_vars["image_path_iterator"]
    saved = []
    for number in plt.get_fignums():
        figure = plt.figure(number)
        path = Path(next(paths)).with_suffix(".svg")
        save(figure, path)
        if len(paths) == 1:
            save_thumbnail(figure, path.with_suffix(".png"))
        saved.append((figure.get_label(), path))
    plt.close("all")
    text = ""
    for _, layouts in groupby(saved, key=lambda pair: pair[0]):
        names = ["/" + relpath(path, gallery_conf["src_dir"]) for _, path in layouts]
        text += f"\n.. picture:: {names[0]}\n"
        text += "".join(f"   :tall: {name}\n" for name in names[1:])
    return text + "\n"


def save(figure, path):
    """Save a figure as SVG, with words as words, and what it shows beside them."""
    import matplotlib.pyplot as plt

    if not re.fullmatch(r"\S.*?\n\n\S.*", figure.get_label(), re.DOTALL):
        raise ExtensionError(
            f"{path.name}: the figure's label must hold a caption, an empty line and a "
            f"description, not {figure.get_label()!r}."
        )
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure.savefig(path, metadata={"Description": figure.get_label(), "Date": None})


def save_thumbnail(figure, path):
    """Save the upper part of a figure, as high as a thumbnail is."""
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=150)
    pixels = plt.imread(path)
    plt.imsave(path, pixels[: round(THUMBNAIL * pixels.shape[1])])


def what_it_shows(svg):
    """Read the caption and the description of a figure, each empty if there is none."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", svg, re.DOTALL)
    caption, _, description = unescape(found[1] if found else "").partition("\n\n")
    return tuple(" ".join(text.split()) for text in (caption, description))


def size(svg):
    """Tell a figure's width and height in pixels, as a browser shows it."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    scale = 96 / 72 if re.search(r'<svg[^>]* width="[\d.]+pt"', svg) else 1
    return tuple(str(round(scale * float(length))) for length in box.groups())


def has_own_colours(svg):
    """Tell whether a figure is drawn on another background than white."""
    behind = re.search(r"<(?:path|rect)\b[^>]*>", svg)[0]
    return "#ffffff" not in behind


def for_theme(svg, theme):
    """Draw a figure in the colours and the type of the theme's pages.

    Parameters
    ----------
    svg : str
    theme : {"light", "dark"}

    Returns
    -------
    str
    """
    text, background = (bytes.fromhex(color[1:]) for color in THEMES[theme])

    def counterpart(match):
        white = int(match[2], 16) / 255
        mixed = (white * b + (1 - white) * t for t, b in zip(text, background, strict=True))
        return match[1] + "#" + "".join(f"{round(part):02x}" for part in mixed)

    svg = re.sub(r"font-family(: [^;\"]*;? ?|=\"[^\"]*\" ?)", "", svg)
    if not has_own_colours(svg):
        svg = re.sub(r"(\b(?:fill|stroke)(?:: |=\"))#([0-9a-f]{2})\2\2\b", counterpart, svg)
        # What is black has no colour of its own in matplotlib's files.
        svg = svg.replace("<svg ", f'<svg fill="{THEMES[theme][0]}" ', 1)
    # Words begin with the space that was drawn.
    return svg.replace("<svg ", f'<svg font-family="{TYPE}" style="white-space: pre" ', 1)


class Picture(SphinxDirective):
    """The directive ``picture``."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec = {  # noqa: RUF012
        "alt": directives.unchanged_required,
        "tall": directives.unchanged_required,
    }

    def run(self):
        """Build the figure."""
        paths = {
            layout: Path(self.env.relfn2path(name)[1])
            for layout, name in (("wide", self.arguments[0]), ("narrow", self.options.get("tall")))
            if name
        }
        return self.figure(paths, self.options.get("alt"))

    def figure(self, paths, alt=None):
        """Build a figure.

        Parameters
        ----------
        paths : dict of str to pathlib.Path
            One file, or two: by their layout, ``wide`` and ``narrow``.
        alt : str, optional
            Instead of the file's own description.

        Returns
        -------
        list of nodes
        """
        caption, description = what_it_shows(next(iter(paths.values())).read_text())
        alt = alt or description
        caption = " ".join(self.content) or caption
        if not (alt and caption):
            raise self.error(f"{self.arguments[0]} has no description, or no caption")
        figure = nodes.figure(classes=["picture"])
        for layout, path in paths.items():
            both = nodes.container(classes=[f"picture-{layout}"] if len(paths) == 2 else [])
            both += [self.image(*version, alt) for version in self.versions(path)]
            figure += both
        children, messages = self.parse_inline(caption)
        figure += nodes.caption("", "", *children)
        return [figure, *messages]

    def versions(self, path):
        """Write a figure for the theme's light and dark pages; give file and class of each."""
        svg = path.read_text()
        for needed in (path, __file__):
            self.env.note_dependency(str(needed))
        folder = Path(self.env.doctreedir, "pictures")
        folder.mkdir(parents=True, exist_ok=True)
        themes = {"light": "dark-light"} if has_own_colours(svg) else THEMES
        for theme in themes:
            version = folder / f"{path.stem}.{theme}.svg"
            drawn = for_theme(svg, theme)
            if not version.exists() or version.read_text() != drawn:  # other pages may have it
                version.write_text(drawn)
            yield version, "dark-light" if len(themes) == 1 else f"only-{theme}"

    def image(self, path, kind, alt):
        """Build one image, which a browser loads when it is about to be seen."""
        width, height = size(path.read_text())
        uri = Path(relpath(path, self.env.srcdir)).as_posix()
        classes = [kind, "no-scaled-link"]
        image = nodes.image(uri=f"/{uri}", alt=alt, classes=classes, width=width, height=height)
        image["loading"] = "lazy"
        return image


def setup(app):
    """Register the directive."""
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True}
