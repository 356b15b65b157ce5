"""Figures of examples are saved with their words, and shown with them; warnings are errors."""

import re
import warnings

import gallery_helpers
import matplotlib.pyplot as plt
import numpy as np
import pictures
import pytest
from matplotlib.colors import to_rgba
from sphinx.cmd.build import build_main
from sphinx.errors import ExtensionError
from sphinx_gallery.scrapers import ImagePathIterator

SVG = (
    '<svg xmlns="x" width="72pt" viewBox="0 0 72 36"><metadata><dc:description>{label}'
    '</dc:description></metadata><path style="fill: {behind}"/></svg>'
)


def scrape(folder):
    """Call the scraper as sphinx-gallery does; return the text."""
    (folder / "images").mkdir()
    paths = ImagePathIterator(folder / "images" / "page_{0:03}.png")
    return pictures.scraper(None, {"image_path_iterator": paths}, {"src_dir": str(folder)})


def test_scraper(tmp_path):
    """Every figure is shown, and two layouts of one figure are one picture."""
    for label in ("A.\n\nFirst.", "B & C.\n\nSecond: 1 < 2.", "B & C.\n\nSecond: 1 < 2."):
        plt.figure().set_label(label)
    assert scrape(tmp_path).split() == [
        *("..", "picture::", "/images/page_001.svg"),
        *("..", "picture::", "/images/page_002.svg", ":tall:", "/images/page_003.svg"),
    ]
    assert plt.get_fignums() == []
    svg = (tmp_path / "images" / "page_002.svg").read_text()
    assert pictures.caption_and_description(svg) == ("B & C.", "Second: 1 < 2.")


@pytest.mark.parametrize(("height", "ends"), [(4.9, "blue"), (9, "white")])
def test_a_thumbnail_is_the_whole_figure_or_fades(height, ends, tmp_path):
    """A thumbnail shows a figure to its end, or fades to white."""
    figure = plt.figure(figsize=(4, height), facecolor="blue")
    pictures.save_thumbnail(figure, tmp_path / "a.png")
    pixels = plt.imread(tmp_path / "a.png")
    assert len(pixels) == 150 * min(height, 5)
    for row, color in ((0, "blue"), (-1, ends)):
        np.testing.assert_allclose(pixels[row, 0], to_rgba(color))


@pytest.mark.parametrize("label", ["", "A caption alone.", "\n\nA description alone."])
def test_a_figure_needs_its_words(label, tmp_path):
    """A build stops at a figure without a description or a caption."""
    plt.figure().set_label(label)
    with pytest.raises(ExtensionError, match=r"page_001\.svg: the figure's label"):
        scrape(tmp_path)
    plt.close("all")


def test_picture_in_a_page(tmp_path):
    """A picture has both layouts, alternative text and a caption, and follows its file."""
    (tmp_path / "index.rst").write_text("Page\n====\n\n.. picture:: /a.svg\n   :tall: b.svg\n")
    (tmp_path / "conf.py").write_text('extensions = ["pictures"]\nhtml_theme = "basic"\n')
    for words in ("3 MiB", "4 MiB"):
        label = f"Its caption.\n\nB &lt; {words}."
        for name, color in (("a.svg", "#ffffff"), ("b.svg", "#000000")):
            (tmp_path / name).write_text(SVG.format(label=label, behind=color))
        assert build_main(["-q", "-W", str(tmp_path), str(tmp_path / "out")]) == 0
        page = (tmp_path / "out" / "index.html").read_text()
        images = re.findall(r"<img [^>]*>", page)
        assert [f'alt="B &lt; {words}."' in image for image in images] == [True, True]
        classes = [set(re.search(r'class="([^"]*)"', image)[1].split()) for image in images]
        assert ["on-white" in names for names in classes] == [True, False]
        assert "picture-wide" in classes[0]
        assert "picture-narrow" in classes[1]
        assert "Its caption." in page


def test_only_warnings_about_the_code_stop_an_example():
    """NaN in the reader's image is shown; a busy machine is ignored; the rest is an error."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.resetwarnings()
        gallery_helpers.warnings_are_errors(None, None, "before")
        warnings.warn("Non-finite values detected. These values ...", stacklevel=1)
        warnings.warn("Port 8787 is already in use.", stacklevel=1)
        with pytest.raises(FutureWarning, match="deprecated"):
            warnings.warn("deprecated", FutureWarning, stacklevel=1)
    assert [str(warning.message)[:10] for warning in shown] == ["Non-finite"]
