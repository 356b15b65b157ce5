"""Draw predicted peaks: their parts, and compared with measured and published ones."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from beyond_the_masker.draw.figures import (
    BLUE,
    FAMILIES,
    GREEN,
    GREY,
    ORANGE,
    column_figure,
    family_of,
    label_above,
    rows_from_the_top,
    whole_numbers,
)
from beyond_the_masker.experiments.comparison import count_of, in_gib, kinds_of, tolerance

HOLDERS = {  # in the order in which they are stacked: colour, hatch, name
    "imports": (GREY, "", "interpreters and imports"),
    "caller": (BLUE, "xxxx", "the calling process"),
    "worker": (ORANGE, "///", "workers"),
    "block": (GREEN, "+++", "shared memory"),
}


def plot_parts(predictions, measured):
    """Draw the parts of predicted peaks as bars, and a dict of measured ones as dots."""
    title, dot = "Predicted peaks and their parts", {"ms": 6, "mfc": "white", "mec": "black"}
    figure, ax = column_figure(2.3 + 0.5 * len(predictions), title)
    for color, hatch, name in HOLDERS.values():
        ax.barh(0, 0, color=color, hatch=hatch, edgecolor="white", lw=0, label=name)
    ax.plot([], [], "o", label="measured", **dot)
    ax.plot([], [], color="black", lw=1, label="range of the prediction")
    bars = []
    for i, prediction in enumerate(predictions):
        total, known = _draw_parts(ax, i, prediction), measured.get(prediction.method)
        found = "not measured" if known is None else f"measured {known:,.0f} MiB"
        if known is not None:
            ax.plot(known, i, "o", **dot)
        label_above(ax, 0, i - 0.25, prediction.method)
        bars.append(f"{prediction.method}: predicted {total:,.0f} MiB, {found}")
    ax.set(xlabel="MiB in use", xlim=(0, None))
    whole_numbers(ax.xaxis)
    rows_from_the_top(ax, len(predictions))
    figure.legend(loc="outside lower left", frameon=False, handlelength=2.5, handleheight=1.2)
    figure.set_label(
        "Each method's likely peak, made of its parts. The line is the range of the prediction, "
        "the dot the measured peak.\n\n"
        f"Stacked bar chart of {len(predictions)} methods. {'; '.join(bars)}."
    )
    return figure


def _draw_parts(ax, y, prediction):
    """Draw the parts of a prediction one after the other, and its range; return their sum."""
    left = 0
    for holder, (color, hatch, _) in HOLDERS.items():
        mib = sum(
            part.mib
            for part in prediction.parts
            if ("imports" if part.reason == "imports" else part.holder) == holder
        )
        ax.barh(y, mib, 0.4, left=left, color=color, hatch=hatch, edgecolor="white", lw=0)
        left += mib
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]
    ends = prediction.low_mib, prediction.most_mib
    ax.plot(ends, [y, y], color="black", lw=1, path_effects=halo)
    return left


KEYS = "measured_mib", "predicted_mib"
RANGE = "low_mib", "high_mib"


def plot_points(points, title):
    """Draw points of `compare`, each family in its colour, with the tolerance as a band."""
    figure, ax = column_figure(6.2, title)
    every = [point[key] for point in points for key in (*KEYS, *RANGE)]
    low, high = min(every) / 1.15, max(every) * 1.15
    line = np.geomspace(low, high, 200)
    width = np.array([tolerance(mib) for mib in line])
    ax.fill_between(line, line - width, line + width, color="0.85", lw=0, label="tolerance")
    ax.plot(line, line, color="0.5", lw=1)
    for family, (color, marker) in FAMILIES.items():
        own = [point for point in points if family_of(point["method"]) == (color, marker)]
        x, y, least, most = ([point[key] for point in own] for key in (*KEYS, *RANGE))
        ax.vlines(x, least, most, color=color, lw=1, alpha=0.6)
        ax.plot(x, y, marker, ls="", color=color, ms=5, label=family if own else "")
    ax.plot([], [], color="0.4", lw=1, marker="|", ls="", ms=14, label="range of the prediction")
    _logarithmic(ax, low, high)
    figure.legend(loc="outside lower left", frameon=False)
    ratios = [point["predicted_mib"] / point["measured_mib"] for point in points]
    peaks = [point["measured_mib"] for point in points]
    figure.set_label(
        f"{title}: predicted against measured peaks. The line of a point is the range of its "
        "prediction; the grey band is the tolerance.\n\n"
        f"Scatter plot of {len(points)} points on logarithmic axes, from "
        f"{min(peaks):,.0f} to {max(peaks):,.0f} MiB measured. {count_of(points)} The likely peak "
        f"is {min(ratios):.2f} to {max(ratios):.2f} times the measured one, "
        f"{np.median(ratios):.2f} times in the median."
    )
    return figure


def _logarithmic(ax, low, high):
    """Give both axes the same logarithmic scale, with round numbers."""
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis, name in ((ax.xaxis, "measured"), (ax.yaxis, "predicted")):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 2, 3, 5)))
        axis.set_major_formatter("{x:,.0f}")
        axis.set_minor_locator(NullLocator())
        axis.set_label_text(f"{name} peak, MiB in use")
    plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")


STYLES = {  # of the kinds of peaks
    "published_gib": {"fc": GREY, "ec": GREY},
    "measured_rss_gib": {"fc": BLUE, "ec": BLUE},
    "predicted_gib": {"fc": "white", "ec": ORANGE, "hatch": "xxxx"},
    "measured_gib": {"fc": ORANGE, "ec": ORANGE},
}


def plot_scale(table):
    """Draw the table of `read_scale`: published, predicted and measured peaks of each method."""
    title, kinds, described = "Ten subjects, twenty regions", kinds_of(table), []
    figure, ax = column_figure(2 + 1.1 * len(table), title)
    for i, row in enumerate(table):
        texts = {name: in_gib(row, key) for key, name in kinds.items()}
        for k, (key, name) in enumerate(kinds.items()):
            y = i + (k - 1) * 0.18
            if row[key] is not None:
                ax.barh(y, row[key], height=0.14, lw=0.7, **STYLES[key])
            color = "0.3" if row[key] is None else "0"
            ax.text(row[key] or 0, y, f" {texts[name]}", va="center", color=color)
        ax.text(0, i - 0.29, row["method"], va="bottom", weight="bold")
        described.append(f"{row['method']}: {', '.join(map(' '.join, texts.items()))}")
    right = max(row[key] or 0 for row in table for key in kinds)
    ax.set(xlabel="GiB", xlim=(0, right * 1.2))
    rows_from_the_top(ax, len(table), 0.55, 0.55)
    patches = [
        Patch(label=name if "RSS" in name else f"{name} (memory in use)", lw=0.7, **STYLES[key])
        for key, name in kinds.items()
    ]
    figure.legend(loc="outside lower left", frameon=False, handles=patches)
    figure.set_label(
        f"{title}: published, predicted and measured peaks of each method for "
        "all masks, in GiB. The first two are sums of RSS, the others memory in use.\n\n"
        f"Bar chart of {len(table)} methods, in GiB. {'; '.join(described)}."
    )
    return figure
