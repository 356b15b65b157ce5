"""Checks that every figure must pass, whatever it shows."""

import itertools

PHONE = 328  # pixels that a figure has on a screen of 360
COLUMN = 711  # pixels that a figure of two layouts has at least, where the wide one is shown
SMALLEST = 8 * 96 / 72  # pixels


def words_of(figure):
    """Return all visible words of a figure."""
    texts = [*figure.texts, *([figure._suptitle] if figure._suptitle else [])]
    for ax in figure.axes:
        texts += [*ax.texts, ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = axis.get_major_ticks()
            texts += [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]
        texts += ax.get_legend().get_texts() if ax.get_legend() else []
    for legend in figure.legends:
        texts += legend.get_texts()
    return [text for text in texts if text.get_text()]


def is_a_good_figure(figure, *numbers):
    """Check what each figure must be: whole, legible, and described with these numbers."""
    figure.canvas.draw()
    for text in words_of(figure):
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0, text
        assert box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0, text
        assert box.y1 <= figure.bbox.y1, text
        width = figure.get_figwidth()
        pixels = text.get_fontsize() * (PHONE if width < 5 else COLUMN) / 72 / width
        assert pixels >= 0.99 * SMALLEST, text
    caption, _, description = figure.get_label().partition("\n\n")
    assert len(caption) > 20
    assert len(description) > 80
    for number in numbers:
        assert number in description, number


def nothing_overlaps(texts):
    """Check that words do not overlap by more than the space around letters."""
    boxes = [text.get_window_extent() for text in texts]
    for (one, a), (other, b) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert wide <= 1 or high <= 0.2 * min(a.height, b.height), (one, other)
