"""Draw the benchmark: time compared with decompression alone, and how time and memory grow."""

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from beyond_the_masker.benchmark import label_of
from beyond_the_masker.figures import (
    WIDTH,
    color_of,
    column_figure,
    draw_reference,
    draw_spread,
    family_of,
    hide_frame,
    label_above,
    legend_above,
    short,
)


def plot_ratios(times, title, question="methods"):
    """Draw the time of each method as a multiple of the limit, with the spread.

    A method that was measured with several numbers of regions is drawn once, with the last one.
    """
    last = {key[1]: key for key in times if key[0] == question}.values()
    ratios = {label_of(key): times[key][:, 0] / times[key][:, 1] for key in last}
    ordered = sorted(ratios, key=lambda name: -np.median(ratios[name]))
    figure, ax = column_figure(1.2 + 0.45 * len(ordered))
    found = []
    for i, name in enumerate(ordered):
        low, middle, high = draw_spread(ax, i, ratios[name], _color(name))
        label_above(ax, 0.75, i - 0.2, f"{name}: {short(middle)}")
        found.append(f"{name} {short(middle)} ({short(low)} to {short(high)})")
    draw_reference(ax, len(ordered))
    ax.text(1.03, len(ordered) - 0.35, "the limit", va="center")
    ax.set(xscale="log", xlabel="time, in units of the limit (logarithmic)", yticks=[])
    ax.set(ylim=(len(ordered), -0.9), xlim=(0.7, None))
    ax.xaxis.set_major_formatter("{x:g}")
    hide_frame(ax, "left")
    figure.suptitle(title, fontsize=12)
    figure.set_label(
        f"{title}: each method as a dot, the median of several runs; the line goes from the "
        "smallest to the largest ratio, on a logarithmic axis. The dashed line is the limit.\n\n"
        f"Dot chart of the time of {len(ordered)} methods, as multiples of the limit, median with "
        f"smallest and largest: {'; '.join(found)}."
    )
    return figure


def _color(name):
    """Return the colour of a method; all of nilearn's maskers have one."""
    return color_of("NiftiMasker" if name.startswith("Nifti") else name)


GROWTH = {  # the label of the x axis for each question of the benchmark
    "length": "volumes in the image ({regions} masks)",
    "masks": "masks",
    "block size": "volumes in a block (64 masks)",
    "workers": "workers, or threads ({regions} masks)",
    "regions": "regions that are averaged",
}


def plot_growth(times, title, sizes):
    """Draw how time grows, with the spread, and the limit where each panel has one line."""
    figure, lines = _panels(times, title, sizes)
    ends = []
    for question, ax, name, x, keys in lines:
        low, middle, high = np.quantile([times[key][:, 0] for key in keys], [0, 0.5, 1], axis=1)
        ax.fill_between(x, low, high, color=_color(name), alpha=0.25, lw=0)
        if question != "workers" and not ax.lines:
            limit = [np.median(times[key][:, 1]) for key in keys]
            ax.plot(x, limit, color="black", lw=1.2, ls=":", label="the limit")
        ends.append(_draw_line(ax, name, x, middle, "seconds"))
        _finish(ax, "seconds")
    caption = (
        f"{title}: the line is the median of several runs, the band goes from the fastest to the "
        "slowest. Dotted: the limit."
    )
    _describe(figure, caption, ends)
    return figure


def plot_memory_growth(memory, title, sizes, metric):
    """Draw how the peak above the level before the call grows, and the size of the output.

    The metric is that of the description, such as PSS.
    """
    figure, lines = _panels(memory, title, sizes)
    ends = []
    for question, ax, name, x, keys in lines:
        above, output = zip(*(memory[key] for key in keys), strict=True)
        if question != "workers" and not ax.lines:
            ax.plot(x, output, color="black", lw=1.2, ls=":", label="the output")
        ends.append(_draw_line(ax, name, x, above, "MiB"))
        _finish(ax, f"MiB ({metric})")
    caption = (
        f"{title}: the peak of {metric}, summed over all processes, above the level before the "
        "call. Dotted: the size of the output."
    )
    _describe(figure, caption, ends)
    return figure


def _panels(measured, title, sizes):
    """Prepare a panel for each question; list question, panel, name, x and keys of each line."""
    counts = Counter(key[:2] for key in measured)
    names = {q: sorted(name for one, name in counts if one == q) for q in GROWTH}
    names["regions"] = [name for name in names["regions"] if counts["regions", name] > 1]
    asked = [question for question in GROWTH if names[question]]
    heights = [2.1 + 0.2 * len(names[question]) for question in asked]
    size = WIDTH, 0.4 + sum(heights)
    figure, axes = plt.subplots(
        len(asked), 1, figsize=size, height_ratios=heights, layout="constrained", squeeze=False
    )
    lines = []
    for question, ax in zip(asked, axes[:, 0], strict=True):
        ax.set_xlabel(GROWTH[question].format(**sizes))
        for name in names[question]:
            keys = sorted(key for key in measured if key[:2] == (question, name))
            lines.append((question, ax, name, [key[2] for key in keys], keys))
    figure.suptitle(title, fontsize=12)
    return figure, lines


def _draw_line(ax, name, x, y, unit):
    """Draw one line in the colour of its method, dashed for a variant; describe its ends."""
    style = "--" if "threads" in name or "cleaned" in name else "-"
    ax.plot(x, y, style, marker=family_of(name)[1], ms=5, color=_color(name), label=name)
    ends = f"{short(y[0])} to {short(y[-1])} {unit}"
    return f"{name}, {ax.get_xlabel()} from {x[0]} to {x[-1]}: {ends}"


def _finish(ax, label):
    """Label a panel, with the legend above the lines; blocks on a logarithmic axis."""
    ax.set_ylabel(label)
    ax.set_ylim(0, 1.05 * ax.dataLim.y1)
    if ax.get_xlabel().startswith("volumes in a block"):
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    hide_frame(ax)
    legend_above(ax)


def _describe(figure, caption, ends):
    """Set the caption of a figure of growth, and the numbers at the ends of each line."""
    figure.set_label(f"{caption}\n\nLine chart, panels: {len(figure.axes)}. {'; '.join(ends)}.")
