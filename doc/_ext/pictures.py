"""Save the gallery's figures as SVG, with caption and alternative text, and show such files.

A figure's label holds its caption, an empty line, and a description with the numbers::

    figure.set_label("Peaks for all masks.\\n\\nBar chart: NiftiMasker needs 2,642 MiB, ...")

They are saved in the file, where the directive ``picture`` reads them. (sphinx-gallery's own
scraper takes the alternative text from titles, and has no captions.) The dark theme inverts a
figure on a white background by a style rule; any other background shows a figure as drawn.
"""

import re
from html import unescape
from itertools import groupby
from os.path import relpath
from pathlib import Path

import numpy as np
from docutils import nodes
from docutils.parsers.rst import directives
from matplotlib import pyplot as plt
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective


def scraper(block, block_vars, gallery_conf):
    """Save the open figures of a code block and return the directives that show them.

    Two figures with the same label are two layouts of one picture, the wide one first.
    """
    saved = []
    for figure in map(plt.figure, plt.get_fignums()):
        path = Path(next(block_vars["image_path_iterator"])).with_suffix(".svg")
        label = figure.get_label()
        if not re.fullmatch(r"\S.*?\n\n\S.*", label, re.DOTALL):
            raise ExtensionError(
                f"{path.name}: the figure's label must hold a caption, an empty line and a "
                f"description, not {label!r}."
            )
        figure.savefig(path, metadata={"Description": label, "Date": None})
        if path.stem.endswith("_001"):
            save_thumbnail(figure, path.with_suffix(".png"))
        saved.append((label, "/" + relpath(path, gallery_conf["src_dir"])))
    plt.close("all")
    text = ""
    for _, layouts in groupby(saved, key=lambda pair: pair[0]):
        wide, *tall = (name for _, name in layouts)
        text += f"\n.. picture:: {wide}\n" + "".join(f"   :tall: {name}\n" for name in tall)
    return text + "\n"


def save_thumbnail(figure, path):
    """Save a figure for its thumbnail; of a tall one the upper part, which fades to white."""
    figure.savefig(path, dpi=150)
    pixels = plt.imread(path)
    width, height = pixels.shape[1], round(1.25 * pixels.shape[1])
    if len(pixels) > height:
        pixels, fade = pixels[:height].copy(), np.linspace(1, 0, width // 4)[:, None, None]
        pixels[-len(fade) :] = 1 - fade * (1 - pixels[-len(fade) :])
        plt.imsave(path, pixels)


def caption_and_description(svg):
    """Return what a figure's file holds of its label, each on one line."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", svg, re.DOTALL)
    caption, _, description = unescape(found[1] if found else "").partition("\n\n")
    return " ".join(caption.split()), " ".join(description.split())


def is_white(svg):
    """Return whether a figure is drawn on white."""
    background = re.search(r"<(?:path|rect)\b[^>]*>", svg)
    return "#ffffff" in background[0]


class Picture(SphinxDirective):
    """Show an SVG file, and on a narrow screen that of the option ``tall``.

    Caption and alternative text come from the file; the content and the option ``alt`` replace
    them.
    """

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec = dict.fromkeys(("alt", "tall"), directives.unchanged_required)

    def run(self):
        """Return the figure."""
        names = [self.arguments[0], *filter(None, [self.options.get("tall")])]
        figure = nodes.figure(classes=["picture"])
        for name, layout in zip(names, ("wide", "narrow"), strict=False):
            relative, path = self.env.relfn2path(name)
            self.env.note_dependency(relative)
            svg = Path(path).read_text("utf-8")
            caption, alt = caption_and_description(svg)
            classes = ["dark-light", "no-scaled-link", *["on-white"] * is_white(svg)]
            classes += [f"picture-{layout}"] * (len(names) == 2)
            figure += nodes.image(uri=name, alt=self.options.get("alt") or alt, classes=classes)
        children, messages = self.parse_inline(" ".join(self.content) or caption)
        figure += nodes.caption("", "", *children)
        return [figure, *messages]


def setup(app):
    """Register the directive."""
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True}
