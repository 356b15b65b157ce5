"""Draw the benchmark: time compared with decompression alone, and how time and memory grow."""

from collections import Counter

import numpy as np
from matplotlib.ticker import MaxNLocator

from beyond_the_masker.draw.figures import (
    color_of,
    column_figure,
    draw_ratios,
    family_of,
    hide_frame,
    legend_above,
    rows_from_the_top,
    short,
)
from beyond_the_masker.experiments.benchmark import label_of


def plot_ratios(times, title, question="methods"):
    """Draw the time of each method as a multiple of the limit, with the spread.

    A method that was measured with several numbers of regions is drawn once, with the last one.
    """
    last = {key[1]: key for key in times if key[0] == question}.values()
    ratios = {label_of(key): times[key][:, 0] / times[key][:, 1] for key in last}
    ordered = dict(sorted(ratios.items(), key=lambda item: -np.median(item[1])))
    figure, ax = column_figure(1.2 + 0.45 * len(ordered), title)
    found = [
        f"{name} {short(middle)} ({short(low)} to {short(high)})"
        for name, (low, middle, high) in draw_ratios(ax, ordered, 0.75, color_of).items()
    ]
    ax.text(1.03, len(ordered) - 0.35, "the limit", va="center")
    ax.set(xscale="log", xlabel="time, in units of the limit (logarithmic)", xlim=(0.7, None))
    ax.xaxis.set_major_formatter("{x:g}")
    rows_from_the_top(ax, len(ordered), 0.9, 1)
    figure.set_label(
        f"{title}: each method as a dot, the median of several runs; the line goes from the "
        "smallest to the largest ratio, on a logarithmic axis. The dashed line is the limit.\n\n"
        f"Dot chart of the time of {len(ordered)} methods, as multiples of the limit, median with "
        f"smallest and largest: {'; '.join(found)}."
    )
    return figure


GROWTH = {  # the label of the x axis for each question of the benchmark
    "length": "volumes in the image ({regions} masks)",
    "masks": "masks",
    "block size": "volumes in a block (64 masks)",
    "workers": "workers, or threads ({regions} masks)",
    "regions": "regions that are averaged",
}
SPREAD = (
    "the line is the median of several runs, the band goes from the fastest to the slowest. "
    "Dotted: the limit."
)
ABOVE = (
    "the peak of {}, summed over all processes, above the level before the call. "
    "Dotted: the size of the output."
)


def plot_growth(found, title, sizes, metric=None):
    """Draw how times grow, with the spread and the limit; or memory, if its metric is named.

    `found` is one of the two dicts that `read_benchmark` returns.
    """
    counts = Counter(key[:2] for key in found)
    names = {q: sorted(name for one, name in counts if one == q) for q in GROWTH}
    names["regions"] = [name for name in names["regions"] if counts["regions", name] > 1]
    asked = [question for question in GROWTH if names[question]]
    heights = [2.1 + 0.2 * len(names[question]) for question in asked]
    options = {"height_ratios": heights, "squeeze": False}
    figure, axes = column_figure(0.4 + sum(heights), title, len(asked), **options)
    label, reference, caption = "seconds", "the limit", SPREAD
    if metric:
        label, reference, caption = f"MiB ({metric})", "the output", ABOVE.format(metric)
    words = []
    for question, ax in zip(asked, axes.flat, strict=True):
        ax.set(xlabel=GROWTH[question].format(**sizes), ylabel=label)
        for name in names[question]:
            keys = sorted(key for key in found if key[:2] == (question, name))
            pairs = [np.atleast_2d(found[key]) for key in keys]
            if question != "workers" and not ax.lines:
                dotted = [np.median(one[:, 1]) for one in pairs]
                ax.plot([key[2] for key in keys], dotted, "k:", lw=1.2, label=reference)
            words.append(_draw_line(ax, keys, pairs))
        _finish(ax)
    described = f"Line chart, panels: {len(asked)}. {'; '.join(words)}."
    figure.set_label(f"{title}: {caption}\n\n{described}")
    return figure


def _draw_line(ax, keys, pairs):
    """Draw medians and ranges of the first of each pair; return a description of the ends."""
    name, x = keys[0][1], [key[2] for key in keys]
    low, middle, high = np.transpose([np.quantile(one[:, 0], [0, 0.5, 1]) for one in pairs])
    color, marker = family_of(name)
    style = "--" if "threads" in name or "cleaned" in name else "-"  # a variant
    ax.fill_between(x, low, high, color=color, alpha=0.25, lw=0)
    ax.plot(x, middle, style, marker=marker, ms=5, color=color, label=name)
    unit = ax.get_ylabel().split(" (")[0]
    numbers = f"{short(middle[0])} to {short(middle[-1])} {unit}"
    return f"{name}, {ax.get_xlabel()} from {x[0]} to {x[-1]}: {numbers}"


def _finish(ax):
    """Begin a panel at zero, with the legend above the lines; blocks on a logarithmic axis."""
    ax.set_ylim(0, 1.05 * ax.dataLim.y1)
    if ax.get_xlabel().startswith("volumes in a block"):
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    hide_frame(ax)
    legend_above(ax)
