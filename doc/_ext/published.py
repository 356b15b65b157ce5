"""What a published site needs besides its pages: a card, a sitemap, and a search for terms.

The card is what other sites show beside a link: the result of this build, as a picture. The
sitemap names every page by its address on the site, which begins with ``html_baseurl``. Both
are written at the end of every build, whether or not the pages were written again.
"""

from pathlib import Path
from xml.etree import ElementTree

from matplotlib.figure import Figure
from measured import Measurements

CARD = "_static/card.png"
SIZE = 1200, 630  # pixels, the shape that OpenGraph recommends
NOT_LISTED = {"404", "genindex", "search"}


def draw_card(project, measurements, path):
    """Draw the card: the project's name, and the highest and the lowest peak as bars.

    Parameters
    ----------
    project : str
    measurements : measured.Measurements
        Without measurements, the card has the name alone.
    path : pathlib.Path
        A PNG file.
    """
    figure = Figure(figsize=(SIZE[0] / 100, SIZE[1] / 100), dpi=100, facecolor="#14213d")
    figure.text(0.06, 0.83, project, color="white", fontsize=52, weight="bold")
    figure.text(
        *(0.06, 0.71, "Masking large fMRI images in parallel, without running out of memory"),
        **{"color": "white", "fontsize": 21},
    )
    rows = [measurements.row(which, "all masks") for which in ("highest", "lowest")]
    if all(rows):
        ax = figure.add_axes((0.06, 0.08, 0.88, 0.52))
        ax.set_axis_off()
        peaks = [float(row["peak_mib"]) for row in rows]
        ax.barh([1, 0], peaks, height=0.34, color=["#e69f00", "#56b4e9"])
        for height, row in zip([1, 0], rows, strict=True):
            text = measurements.text(f"{row['method']} / {row['mode']} / peak_mib")
            name = f"{row['method']}, {row['mode']}".replace(" image", "")
            ax.text(0, height + 0.24, f"{name}: {text}", color="white", fontsize=22, va="bottom")
        ax.set_ylim(-0.2, 1.7)
    figure.savefig(path)


def write_sitemap(base, pages, path):
    """List the addresses of pages as search engines read them.

    Parameters
    ----------
    base : str
        The address of the site, with a slash at its end.
    pages : list of str
        Relative to it.
    path : pathlib.Path
    """
    root = ElementTree.Element("urlset", xmlns="http://www.sitemaps.org/schemas/sitemap/0.9")
    for page in sorted(pages):
        ElementTree.SubElement(ElementTree.SubElement(root, "url"), "loc").text = base + page
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def write_both(app, exception):
    """At the end of a build: write the card and the sitemap."""
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir)
        measurements = Measurements(app.config.measured_folder)
        draw_card(app.config.project, measurements, folder / CARD)
        pages = [app.builder.get_target_uri(name) for name in app.env.found_docs - NOT_LISTED]
        write_sitemap(app.config.html_baseurl, pages, folder / "sitemap.xml")


def glossary_again(app, env, added, changed, removed):
    """Read the glossary in every build: the search finds a term only if its page was written."""
    return ["glossary"]


def setup(app):
    """Write both when all else is there."""
    app.connect("build-finished", write_both)
    app.connect("env-get-outdated", glossary_again)
    return {"parallel_read_safe": True}
