"""Draw the figures of the pages.

Each figure fits a narrow column. Its label holds a caption, an empty line, and a description with
the numbers for readers who do not see it.
"""

import os
import statistics
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from beyond_the_masker.files import stem
from beyond_the_masker.meter import Trace

WIDTH = 4.2  # inches
REFERENCE = {"colors": "black", "linestyles": "--", "lw": 1, "zorder": 0.5}
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#aa4499"
FAMILIES = {  # of methods, by a word in their names: colour and marker
    "Streaming": (PURPLE, "o"),
    "shared memory": (GREEN, "D"),
    "NiftiMasker": (ORANGE, "s"),
    "NumPy indexing": (BLUE, "^"),
}


def color_of(method):
    """Return the colour of a family of methods, safe for colour-blind readers."""
    return next((color for word, (color, _) in FAMILIES.items() if word in method), "#707070")


def marker_of(method):
    """Return the marker of a family of methods, for those who do not see its colour."""
    return next((marker for word, (_, marker) in FAMILIES.items() if word in method), "X")


def name_of(phase):
    """Return the method and the mode of a phase or a row, shortened."""
    return f"{phase['method'].replace(' image', '')}, {phase['mode']}"


def peak_text(status, measured_mib, predicted_mib):
    """Return a peak as text: measured, predicted, or reached before the method was stopped."""
    return {
        "measured": f"{measured_mib:,.0f} MiB",
        "predicted": f"not run; predicted {predicted_mib:,.0f} MiB",
        "stopped": f"stopped at {measured_mib:,.0f} MiB",
    }[status]


def short(number):
    """Return a number with three digits, or with all digits of its integer part."""
    return f"{number:,.0f}" if number >= 100 else f"{number:#.3g}".rstrip(".")


def save(figure, path):
    """Save a figure as SVG, with its caption and its description."""
    figure.savefig(path, metadata={"Description": figure.get_label(), "Date": None})


def column_figure(height):
    """Return a figure as wide as a column, and its axes."""
    figure = plt.figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.gca()


def hide_frame(ax, *sides):
    """Hide the frame at the top, at the right and at other sides."""
    ax.spines[["top", "right", *sides]].set_visible(False)


def label_above(ax, x, y, text):
    """Write a label above a bar or a dot, on white."""
    label = ax.text(x, y, text, va="bottom")
    label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 0.5})


def legend_above(ax, **options):
    """Place the legend of a panel above it."""
    place = {"loc": "lower left", "bbox_to_anchor": (-0.03, 1), "borderaxespad": 0}
    ax.legend(frameon=False, **place | options)


def draw_spread(ax, y, values, color):
    """Draw a dot at the median and a line over the range; return the three numbers."""
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    ax.plot([low, high], [y, y], color=color, lw=3, solid_capstyle="butt", alpha=0.5)
    ax.plot(middle, y, "o", color=color, ms=7)
    return low, middle, high


def draw_reference(ax, n_rows):
    """Draw a dashed line at 1 beside the dots of all rows, leaving out their labels."""
    rows = np.arange(n_rows)
    ax.vlines(np.ones(n_rows), rows - 0.15, rows + 0.35, **REFERENCE)


def plot_series(series, title, unit, borders=()):
    """Draw a dict of time series by name.

    With `borders`, dotted lines are at these volumes, and the first lines are thick, so that equal
    ones stay visible. The caption consists of the title, the unit and the names.
    """
    figure, ax = column_figure(3.6)
    colors = BLUE, ORANGE, "#707070", PURPLE, GREEN
    for number, (name, values) in enumerate(series.items()):
        ax.plot(
            values, color=colors[number % 5], label=name, lw=5 / (number + 1) if borders else 1.5
        )
    for volume in borders:
        ax.axvline(volume, color="#707070", lw=1, ls=":")
    ax.set(xlabel="volume", ylabel=unit)
    ax.margins(x=0)
    hide_frame(ax)
    figure.legend(loc="outside lower left", frameon=False, ncols=2)
    figure.suptitle(title, fontsize=12)
    ranges = {name: (np.nanmin(values), np.nanmax(values)) for name, values in series.items()}
    lines = [f"{name} from {low:.3g} to {high:.3g}" for name, (low, high) in ranges.items()]
    n_volumes = max(map(len, series.values()))
    figure.set_label(
        f"{title}: {unit}, at each of {n_volumes:,} volumes, of {', '.join(series)}."
        f"{' Dotted: borders between chunks.' * bool(borders)}"
        f"\n\nLine chart over {n_volumes} volumes; {unit}: {'; '.join(lines)}."
    )
    return figure


def plot_traces(traces, image_mib=None):
    """Draw traces, or predictions in place of them, one below the other on one scale of memory.

    Parameters
    ----------
    traces : dict of str to meter.Trace or experiment.NotRun
    image_mib : float, optional
        Size of the image in memory, drawn as a line.
    """
    size = WIDTH, 2 + 2.5 * len(traces)
    figure, axes = plt.subplots(len(traces), 1, figsize=size, squeeze=False, layout="constrained")
    known, words = {}, []
    for ax, (name, trace) in zip(axes.flat, traces.items(), strict=True):
        if isinstance(trace, Trace):
            trace.plot(ax, image_mib, name)
            words.append(trace.in_words(name))
            ax.get_legend().remove()
        else:
            words.append(_draw_prediction(ax, trace, image_mib, name))
        handles, labels = ax.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(known.values(), known, loc="outside lower left", frameon=False)
    plt.setp(axes, ylim=(0, max(ax.get_ylim()[1] for ax in axes.flat)))
    figure.suptitle("Memory over time", fontsize=12)
    image = f" The image has {image_mib:,.0f} MiB." if image_mib else ""
    workers = "workers" in known
    layers = "calling process, its workers and shared memory, stacked"
    layers = layers if workers else "calling process"
    median = " Of several runs, the one with the median peak is drawn." if workers else ""
    figure.set_label(
        f"{next(iter(traces)) if len(traces) == 1 else 'Each method'}: memory over time of the "
        f"{layers}. The dashed line adds mapped files.{median}\n\n"
        f"Area chart{f', {len(traces)} panels on one scale' if len(traces) > 1 else ''}. "
        f"{' '.join(words)}{image}"
    )
    plt.show()
    return figure


def _draw_prediction(ax, not_run, image_mib, title):
    """Draw a predicted peak, hatched, in place of a trace; return its description."""
    peak = not_run.prediction.peak_mib
    ax.barh(peak / 2, 1, peak, color="white", edgecolor="0.4", hatch="xx", lw=0)
    reason = "\n".join(textwrap.wrap(f"Not run. {not_run.reason}", 34))
    words = ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center")
    words.set_bbox({"facecolor": "white", "linewidth": 0})
    if image_mib:
        ax.axhline(image_mib, color="#cc79a7", label="the image")
    ax.set(xlim=(0, 1), xticks=[], ylabel="MiB")
    ax.set_title(f"{title}:\npredicted peak {peak:,.0f} MiB", loc="left", fontsize=11)
    return f"{title}: not run, predicted peak {peak:,.0f} MiB."


def plot_peaks(rows):
    """Draw rows of ``summary.csv``: peaks for all masks, ranges, and the size of the image."""
    rows = [row for row in rows if row["mode"] != "single"]
    image_mib = float(rows[0]["image_mib"])
    left, right = 0.12, 0.32  # all lengths are in inches, and the vertical axis goes downwards
    figure = plt.figure(figsize=(WIDTH, 9))
    ax = figure.add_axes((left / WIDTH, 0, 1 - (left + right) / WIDTH, 1))
    top, described = 0, []
    for row in rows:
        name, peak = peak_label(row)
        below_label = _label_peak(ax, name, peak, top, WIDTH - 2 * left)
        top = _draw_bars(ax, row, below_label) + 0.1
        ax.vlines(image_mib, below_label, top, **REFERENCE)
        described.append(f"{name_of(row)}: {peak}")
    _label_image_size(ax, image_mib, top)
    top += 0.2
    crossed = any(row["status"] == "predicted" for row in rows)
    meaning = ["MiB of memory in use (line: range of the runs)"]
    meaning += ["thin and hatched: file pages, droppable"]
    meaning += ["crossed: predicted, not run"] * crossed
    below = 0.5 + 0.17 * len(meaning)
    height = 0.4 + top + below
    figure.set_figheight(height)
    ax.set_position((left / WIDTH, below / height, 1 - (left + right) / WIDTH, top / height))
    ax.set(xlabel="\n".join(meaning), yticks=[], ylim=(top, 0))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    hide_frame(ax, "left")
    title = f"Peak memory for {rows[0]['n_masks']} masks"
    figure.suptitle(title, fontsize=12, y=1 - 0.1 / height, va="top")
    figure.set_label(
        f"{title}, each method in a process of its own: memory in use as solid bars. The faint "
        "part was there before the call: the interpreter and its imports. A method with workers "
        "is measured several times: the bar is the median, and the line goes from the smallest "
        "to the largest peak. Thin hatched bars: file pages, which the kernel may drop, where "
        "they exceed a quarter of the image. The dashed line is the size of the image. A loop "
        "takes one mask after the other; the other methods take all masks at once."
        f"{' Crossed: predicted, not run.' * crossed}"
        f"\n\nBar chart of {len(rows)} methods, with the image's {image_mib:,.0f} MiB as a line. "
        f"Peaks: {'; '.join(described)}."
    )
    return figure


def peak_label(row):
    """Return the name of a method, and its peak with the range of several runs."""
    name = name_of(row).removesuffix(", parallel").removesuffix(", one pass")
    peak = peak_text(row["status"], *[float(row["peak_mib"])] * 2)
    if int(row["n_runs"]) > 1:
        low, high = (float(row[f"peak_mib_{end}"]) for end in ("min", "max"))
        peak += f" ({low:,.0f}–{high:,.0f})"
    return name, peak


def _label_peak(ax, name, peak, top, width):
    """Write name and peak on one line, or on two if they are wider; return where they end."""
    label = ax.text(0, top, f"{name}: {peak}", va="top")
    label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 1})
    dpi = ax.figure.dpi
    if label.get_window_extent().width > width * dpi:
        label.set_text(f"{name}:\n{peak}")
    return top + label.get_window_extent().height / dpi + 0.03


def _draw_bars(ax, row, top):
    """Draw the bars of a method below `top`; return where they end."""
    color, thick = color_of(row["method"]), {"height": 0.18, "align": "edge"}
    empty = {"color": "white", "edgecolor": color, "lw": 1}
    peak_mib, file_mib = float(row["peak_mib"]), float(row["peak_file_mib"] or 0)
    if row["status"] == "predicted":
        ax.barh(top, peak_mib, hatch="xxxx", ls=":", **thick, **empty)
        return top + 0.18
    ax.barh(top, peak_mib, color=color, **thick)
    ax.barh(top, float(row["before_mib"]), color="white", alpha=0.6, **thick)
    if int(row["n_runs"]) > 1:
        ends = [float(row[f"peak_mib_{end}"]) for end in ("min", "max")]
        ax.plot(ends, [top + 0.09] * 2, color="black", lw=1.2, marker="|", ms=8)
    if file_mib < float(row["image_mib"]) / 4:
        return top + 0.18
    ax.barh(top + 0.21, file_mib, height=0.09, align="edge", hatch="//////", **empty)
    return top + 0.3


def _label_image_size(ax, image_mib, top):
    """Label the line of the image's size, on the side with more space."""
    end = max(1.05 * ax.dataLim.x1, 1)
    ax.vlines(image_mib, top, top + 0.2, **REFERENCE)
    side, shift = ("left", 4) if image_mib < end / 2 else ("right", -4)
    place = {"xytext": (shift, 0), "textcoords": "offset points", "ha": side, "va": "top"}
    ax.annotate(f"the image: {image_mib:,.0f} MiB", (image_mib, top), **place)
    ax.set_xlim(0, end)


def plot_ways(ratios, above_mib, title):
    """Draw time and memory of several ways, one below the other.

    Parameters
    ----------
    ratios : dict of str to array of shape (n_repeats,)
        Times as multiples of that of the first way.
    above_mib : dict of str to float
    title : str
    """
    size = WIDTH, 1.8 + 0.9 * len(ratios)
    figure, (times, memory) = plt.subplots(2, 1, figsize=size, layout="constrained")
    first, found = next(iter(ratios)), []
    for y, (name, values) in enumerate(ratios.items()):
        _, median, _ = draw_spread(times, y, values, BLUE)
        memory.barh(y, above_mib[name], 0.3, color=ORANGE, hatch="//", edgecolor="white", lw=0)
        for ax, number in ((times, f"{median:.2f}"), (memory, f"{above_mib[name]:,.0f}")):
            label_above(ax, 0, y - 0.2, f"{name}: {number}")
        found.append(f"{name}: {median:.2f}, {above_mib[name]:,.0f} MiB")
    draw_reference(times, len(ratios))
    times.set(xlabel=f"time, as a multiple of {first}")
    times.set_xlim(0, 1.05 * max(values.max() for values in ratios.values()))
    memory.set(xlabel="peak above the start, MiB", xlim=(0, None))
    for ax in (times, memory):
        ax.set(ylim=(len(ratios) - 0.6, -0.8), yticks=[])
        hide_frame(ax, "left")
    figure.suptitle(title, fontsize=12)
    figure.set_label(
        f"{title}. Top: time, a dot for the median of the runs, a line from the fastest to the "
        f"slowest, dashed for {first}. Bottom: the peak of memory in use above the start."
        f"\n\nDot chart of time, as multiples of that of {first}, and bar chart of memory, of "
        f"{len(ratios)} ways: {'; '.join(found)}."
    )
    return figure


def plot_workers(speed, peaks):
    """Draw speed and memory by the number of workers.

    Parameters
    ----------
    speed : dict of int to list of float
        For each number of workers, how many times as fast as one, in each pair.
    peaks : dict of int to float
        Peak memory in use of all processes, in MiB.
    """
    figure = plt.figure(figsize=(WIDTH, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    numbers = list(peaks)
    middle = [1.0, *(statistics.median(ratios) for ratios in speed.values())]
    above.plot(numbers, numbers, ":", color="black", label="as many times as workers")
    for n, ratios in speed.items():
        above.plot([n, n], [ratios[0], ratios[-1]], color=BLUE, lw=4, alpha=0.5)
    above.plot(numbers, middle, "o-", color=BLUE, label="measured: median, and all pairs")
    above.axvline(os.cpu_count(), color=ORANGE, ls="--", label="cores of this machine")
    above.set(ylabel="times as fast as one process", ylim=(0, numbers[-1]))
    legend_above(above)
    below.bar(numbers, peaks.values(), width=0.6, color=BLUE)
    for n, mib in peaks.items():
        below.text(n, mib, f"{mib:,.0f}", ha="center", va="bottom")
    below.set(xlabel="workers", ylabel="peak memory in use, MiB")
    below.set_xticks(numbers, ["1\n(this process)" if n == 1 else n for n in numbers])
    below.margins(y=0.15)
    hide_frame(above)
    hide_frame(below)
    described = ", ".join(
        f"{n} workers {ratio:.2f} times as fast as one process and {peaks[n]:,.0f} MiB"
        if n > 1
        else f"1 process {peaks[n]:,.0f} MiB"
        for n, ratio in zip(numbers, middle, strict=True)
    )
    figure.set_label(
        "Speed and memory of a study of eight images, by the number of workers; 1 is the calling "
        "process alone. Memory is the peak of memory in use of all processes.\n\n"
        f"Two charts by the number of workers, on {os.cpu_count()} cores: {described}."
    )
    return figure


def plot_plan(hours):
    """Draw the hours that each part of a `plan` needs, by the number of nodes."""
    figure, ax = column_figure(4.6)
    looks = {"processors": (BLUE, "o-"), "storage": (ORANGE, "s--"), "backend": (GREEN, "^:")}
    for name, (color, style) in looks.items():
        ax.plot(hours.index, hours[name], style, color=color, label=name)
    ax.plot(hours.index, hours.hours, color="black", lw=7, alpha=0.15, label="the study")
    for n, row in hours.iterrows():
        place = {"ha": "right" if n == hours.index[-1] else "left", "textcoords": "offset points"}
        ax.annotate(f"{row.hours:.3g} h", (n, row.hours), (0, 9), **place)
    ax.set(xscale="log", yscale="log", xlabel="nodes", ylabel="hours", xticks=hours.index)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
    ax.margins(0.12)
    hide_frame(ax)
    legend_above(ax, ncols=2)
    described = "; ".join(
        f"{n} {'node' if n == 1 else 'nodes'}: processors {row.processors:.3g} h, storage "
        f"{row.storage:.3g} h, backend {row.backend:.3g} h"
        for n, row in hours.iterrows()
    )
    figure.set_label(
        "Hours for ten thousand images of 1 GB by the number of nodes. The slowest part decides "
        f"how long the study takes.\n\nLine chart, both axes logarithmic. {described}."
    )
    return figure


KINDS_OF_WORK = {  # label and style
    "done": ("done", {"fc": BLUE, "ec": "white"}),
    "lost": ("begun, and lost", {"fc": "white", "ec": ORANGE, "hatch": "xxxx"}),
    "repeated": ("done again", {"fc": ORANGE, "ec": "white", "hatch": "//"}),
}


def plot_work(table, lost):
    """Draw which worker did which image, and when.

    Parameters
    ----------
    table : pandas.DataFrame
        As `mask_study` returns it.
    lost : dict
        The killed worker: ``pid``, ``time``, and ``begun``, when it began unfinished images.
    """
    pids = list(dict.fromkeys([lost["pid"], *table.sort_values("started").pid]))
    zero, end = table.started.min(), (table.started + table.seconds).max()
    bars = _bars_of_work(table, lost, pids)
    figure, ax = column_figure(1.7 + 0.6 * len(pids))
    for kind, lane, number, started, seconds in bars:
        ax.barh(lane, seconds, left=started - zero, height=0.5, **KINDS_OF_WORK[kind][1])
        if seconds > 0.065 * (end - zero):  # there is space for two digits
            middle = started - zero + seconds / 2
            ax.text(middle, lane - 0.27, number, ha="center", va="bottom")
    ax.plot(lost["time"] - zero, 1, "x", color=ORANGE, ms=10, mew=3, clip_on=False)
    ax.set(xlabel="seconds", ylim=(len(pids) + 0.5, 0.4), xlim=(0, end - zero))
    lanes = range(1, len(pids) + 1)
    ax.set_yticks(lanes, [f"worker {lane}" for lane in lanes])
    ax.tick_params(axis="y", length=0)
    hide_frame(ax, "left")
    patches = [Patch(label=name, **style) for name, style in KINDS_OF_WORK.values()]
    figure.legend(handles=patches, loc="outside lower left", frameon=False, ncols=2)
    figure.suptitle("A worker is lost (×)", fontsize=12)
    figure.set_label(
        "Which worker did which image, and when. Worker 1 was killed at the cross; worker 3, if "
        "there is one, replaced it.\n\n"
        f"Bar chart over {end - zero:.1f} seconds, with {len(pids)} workers and {len(table)} "
        f"images. Worker 1 was killed after {lost['time'] - zero:.1f} seconds. "
        f"{'; '.join(_work_in_words(bars, lane) for lane in lanes)}."
    )
    return figure


def _bars_of_work(table, lost, pids):
    """List kind, lane, number of the image, start and seconds of each bar, lost ones first."""
    number = {stem(image): n for n, image in enumerate(table.image, start=1)}
    bars = []
    for row in table.sort_values("started").itertuples():
        name, lane = stem(row.image), pids.index(row.pid) + 1
        repeated = name in lost["begun"] and row.started > lost["time"]
        kind = "repeated" if repeated else "done"
        bars.append((kind, lane, number[name], row.started, row.seconds))
        if repeated:
            begin = lost["begun"][name]
            bars.append(("lost", 1, number[name], begin, lost["time"] - begin))
    return sorted(bars, key=lambda bar: list(KINDS_OF_WORK).index(bar[0]))


def _work_in_words(bars, lane):
    """Return which images a worker did, in their order in time."""
    own = sorted((bar for bar in bars if bar[1] == lane and bar[0] != "lost"), key=lambda b: b[3])
    repeated = " for the second time"
    done = [f"{number}{repeated * (kind == 'repeated')}" for kind, _, number, *_ in own]
    return f"worker {lane} did {', '.join(done) or 'none'}"
