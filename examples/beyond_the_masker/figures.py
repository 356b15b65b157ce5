"""figures."""

import os
import statistics

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from beyond_the_masker.comparison import count_of, tolerance
from beyond_the_masker.files import stem
from beyond_the_masker.published import KINDS, in_gib


def peak_text(status, measured_mib, predicted_mib):
    """Return a peak as text: measured, predicted, or reached before the method was stopped."""
    return {
        "measured": f"{measured_mib:,.0f} MiB",
        "predicted": f"not run; predicted {predicted_mib:,.0f} MiB",
        "stopped": f"stopped at {measured_mib:,.0f} MiB",
    }[status]


COLORS = {
    "Streaming": "#aa4499",
    "shared memory": "#009e73",
    "NiftiMasker": "#d55e00",
    "NumPy indexing": "#0072b2",
}


MARKERS = {"Streaming": "o", "shared memory": "D", "NiftiMasker": "s", "NumPy indexing": "^"}


def color_of(method):
    """Return the colour of a family of methods, safe for colour-blind readers."""
    return next((color for word, color in COLORS.items() if word in method), "#707070")


def marker_of(method):
    """Return the marker of a family of methods, for those who do not see its colour."""
    return next((marker for word, marker in MARKERS.items() if word in method), "X")


def name_of(phase):
    """Return a phase's method and mode, as short as they are clear."""
    return f"{phase['method'].replace(' image', '')}, {phase['mode']}"


def peak_label(row):
    """Return the name of a method and its peak, with the range of several runs."""
    name = name_of(row).removesuffix(", parallel").removesuffix(", one pass")
    peak = peak_text(row["status"], *[float(row["peak_mib"])] * 2)
    if int(row["n_runs"]) > 1:
        low, high = (float(row[f"peak_mib_{end}"]) for end in ("min", "max"))
        peak += f" ({low:,.0f}–{high:,.0f})"
    return name, peak


def draw_bars(ax, row, top):
    """Draw a method's bars.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Its vertical axis is in inches, downwards.
    row : dict
    top : float

    Returns
    -------
    float
        Where the bars end.
    """
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


def plot_peaks(rows):
    """Draw the peaks of the methods for all masks, their ranges, and the size of the image.

    Parameters
    ----------
    rows : list of dict
        The rows of ``summary.csv``.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = [row for row in rows if row["mode"] != "single"]
    image_mib = float(rows[0]["image_mib"])
    width, left, right = 4.2, 0.12, 0.32  # all lengths are in inches
    figure = plt.figure(figsize=(width, 9))
    ax = figure.add_axes((left / width, 0, 1 - (left + right) / width, 1))
    top, described = 0, []
    for row in rows:
        name, peak = peak_label(row)
        label = ax.text(0, top, f"{name}: {peak}", va="top")
        label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 1})
        if label.get_window_extent().width > (width - 2 * left) * figure.dpi:
            label.set_text(f"{name}:\n{peak}")
        described.append(f"{name_of(row)}: {peak}")
        top += label.get_window_extent().height / figure.dpi + 0.03
        top = draw_bars(ax, row, top) + 0.1
    end = max(1.05 * ax.dataLim.x1, 1)
    ax.axvline(image_mib, color="black", ls="--", lw=1, zorder=0.5)
    side = "left" if image_mib < end / 2 else "right"
    beside = {"xytext": (4 if side == "left" else -4, 0), "textcoords": "offset points"}
    ax.annotate(f"the image: {image_mib:,.0f} MiB", (image_mib, top), ha=side, va="top", **beside)
    top += 0.2

    crossed = any(row["status"] == "predicted" for row in rows)
    meaning = ["MiB of memory in use (line: range of the runs)"]
    meaning += ["thin and hatched: file pages, droppable"]
    meaning += ["crossed: predicted, not run"] * crossed
    below = 0.5 + 0.17 * len(meaning)
    height = 0.4 + top + below
    figure.set_figheight(height)
    ax.set_position((left / width, below / height, 1 - (left + right) / width, top / height))
    ax.set(xlabel="\n".join(meaning), yticks=[], ylim=(top, 0), xlim=(0, end))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.spines[["top", "right", "left"]].set_visible(False)
    title = f"Peak memory for {rows[0]['n_masks']} masks"
    figure.suptitle(title, fontsize=12, y=1 - 0.1 / height, va="top")
    figure.set_label(
        f"{title}, each method in a process of its own: memory in use as solid bars. The faint "
        "part was there before the call: the interpreter and its imports. A method with workers "
        "is measured several times: the bar is the median, and the line goes from the smallest "
        "to the largest peak. Thin hatched bars: file pages, which the kernel may drop, where "
        "they exceed a quarter of the image. The dashed line is the image "
        f"itself. A loop takes one mask after the other; the other methods take all masks at once."
        f"{' Crossed: predicted, not run.' * crossed}"
        f"\n\nBar chart of {len(rows)} methods, with the image's {image_mib:,.0f} MiB as a line. "
        f"Peaks: {'; '.join(described)}."
    )
    return figure


def save(figure, path):
    """Save a figure as SVG, with its caption and its description."""
    figure.savefig(path, metadata={"Description": figure.get_label(), "Date": None})


def plot_ratios(times, title):
    """Draw the time of each method in units of the limit, with the spread.

    Parameters
    ----------
    times : dict
        As `read_benchmark` returns it.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    ratios = {
        what: pairs[:, 0] / pairs[:, 1] for (q, what, _), pairs in times.items() if q == "methods"
    }
    ordered = sorted(ratios, key=lambda what: -np.median(ratios[what]))
    figure = plt.figure(figsize=(4.2, 1.2 + 0.45 * len(ordered)), layout="constrained")
    ax = figure.gca()
    found = []
    for i, what in enumerate(ordered):
        low, middle, high = np.quantile(ratios[what], [0, 0.5, 1])
        ax.plot([low, high], [i, i], color=color_of(what), lw=3, solid_capstyle="butt", alpha=0.5)
        ax.plot(middle, i, "o", color=color_of(what), ms=7)
        label = ax.text(0.75, i - 0.22, f"{what}: {short(middle)}", va="bottom")
        label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 0.5})
        found.append(f"{what} {short(middle)} ({short(low)} to {short(high)})")
    ax.axvline(1, color="black", ls="--", lw=1, zorder=1)
    ax.text(1.03, len(ordered) - 0.35, "the limit", va="center")
    ax.set(xscale="log", xlabel="time, in units of the limit", yticks=[])
    ax.set(ylim=(len(ordered), -0.9), xlim=(0.7, None))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    figure.set_label(
        f"{title}: each method as a dot, the median of several runs; the line goes from the "
        "smallest to the largest ratio. The dashed line is the limit.\n\n"
        f"Dot chart of the time of {len(ordered)} methods, as multiples of the limit, median with "
        f"smallest and largest: {'; '.join(found)}."
    )
    return figure


GROWTH = {
    "length": "volumes in the image ({regions} masks)",
    "masks": "masks",
    "block size": "volumes in a block (64 masks)",
    "workers": "workers, or threads ({regions} masks)",
}


def plot_growth(times, title, sizes):
    """Draw how time grows, with the spread, and the limit where each panel has one line.

    Parameters
    ----------
    times : dict
        As `read_benchmark` returns it.
    title : str
    sizes : dict
        As for `questions`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, panels = _panels(times, title, sizes)
    for question, ax, what, x, keys in panels:
        low, middle, high = np.quantile([times[key][:, 0] for key in keys], [0, 0.5, 1], axis=1)
        ax.fill_between(x, low, high, color=color_of(what), alpha=0.25, lw=0)
        _line(ax, what, x, middle)
        if question != "workers":
            limit = [np.median(times[key][:, 1]) for key in keys]
            ax.plot(x, limit, color="black", lw=1.2, ls=":", label="the limit")
        _finish(ax, "seconds")
    _describe(
        figure,
        f"{title}: the line is the median of several runs, the band goes from the fastest to the "
        "slowest. Dotted: the limit.",
        [
            (q, what, x, [np.median(times[key][:, 0]) for key in keys])
            for q, _, what, x, keys in panels
        ],
        "seconds",
        sizes,
    )
    return figure


def plot_memory_growth(memory, title, sizes):
    """Draw how the peak above the start grows, and the size of the output.

    Parameters
    ----------
    memory : dict
        As `read_benchmark` returns it.
    title : str
    sizes : dict
        As for `questions`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, panels = _panels(memory, title, sizes)
    for _, ax, what, x, keys in panels:
        above, output = zip(*(memory[key] for key in keys), strict=True)
        _line(ax, what, x, above)
        if "Streaming" in what:
            ax.plot(x, output, color="black", lw=1.2, ls=":", label="the output")
        _finish(ax, "MiB")
    _describe(
        figure,
        f"{title}: the peak above the level before the call. Dotted: the size of the output.",
        [(q, what, x, [memory[key][0] for key in keys]) for q, _, what, x, keys in panels],
        "MiB",
        sizes,
    )
    return figure


def _panels(measured, title, sizes):
    """Prepare a panel for each question; list question, panel, what, x and keys of each line."""
    asked = [question for question in GROWTH if any(key[0] == question for key in measured)]
    ways = {q: sorted({what for one, what, _ in measured if one == q}) for q in asked}
    heights = [2.1 + 0.2 * len(ways[question]) for question in asked]
    figure, axes = plt.subplots(
        *(len(asked), 1),
        figsize=(4.2, 0.4 + sum(heights)),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    lines = []
    for question, ax in zip(asked, axes[:, 0], strict=True):
        ax.set_xlabel(GROWTH[question].format(**sizes))
        for what in ways[question]:
            keys = sorted(key for key in measured if key[:2] == (question, what))
            lines.append((question, ax, what, [key[2] for key in keys], keys))
    figure.suptitle(title, fontsize=12)
    return figure, lines


def _line(ax, what, x, y):
    """Draw one line in the colour of its method; threads are dashed."""
    style = "--" if "threads" in what else "-"
    ax.plot(x, y, style, marker=marker_of(what), ms=5, color=color_of(what), label=what)


def _finish(ax, label):
    """Label a panel, with the legend above the lines."""
    ax.set_ylabel(label)
    ax.set_ylim(0, 1.05 * ax.dataLim.y1)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.03, 1), borderaxespad=0)


def short(number):
    """Write a number with three digits, or all digits of its integer part."""
    return f"{number:,.0f}" if number >= 100 else f"{number:#.3g}".rstrip(".")


def plot_workers(speed, peaks):
    """Draw speed and memory by the number of workers.

    Parameters
    ----------
    speed : dict of int to list of float
        For each number of workers, how many times as fast as one, in each pair.
    peaks : dict of int to float
        Peak memory in use of all processes, in MiB.
    """
    figure = plt.figure(figsize=(4.2, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    numbers = list(peaks)
    labels = ["1\n(no worker)" if n == 1 else n for n in numbers]
    middle = [1.0, *(statistics.median(ratios) for ratios in speed.values())]
    above.plot(numbers, numbers, ":", color="black", label="as many times as workers")
    for n, ratios in speed.items():
        above.plot([n, n], [ratios[0], ratios[-1]], color="#0072b2", lw=4, alpha=0.5)
    above.plot(numbers, middle, "o-", color="#0072b2", label="measured: median, and all pairs")
    above.axvline(os.cpu_count(), color="#d55e00", ls="--", label="cores of this machine")
    above.set(ylabel="times as fast as one", ylim=(0, numbers[-1]))
    above.legend(loc="lower left", bbox_to_anchor=(-0.03, 1), frameon=False)
    below.bar(numbers, peaks.values(), width=0.6, color="#0072b2")
    for n, mib in peaks.items():
        below.text(n, mib, f"{mib:,.0f}", ha="center", va="bottom")
    below.set(xlabel="workers", ylabel="peak memory in use, MiB")
    below.set_xticks(numbers, labels)
    below.margins(y=0.15)
    for ax in (above, below):
        ax.spines[["top", "right"]].set_visible(False)
    said = ", ".join(
        f"{n} workers {ratio:.2f} times as fast as one and {peaks[n]:,.0f} MiB"
        if n > 1
        else f"no worker {peaks[n]:,.0f} MiB"
        for n, ratio in zip(numbers, middle, strict=True)
    )
    figure.set_label(
        "Speed and memory of a study of eight images, by the number of workers; memory is that of "
        f"all processes.\n\nTwo charts by the number of workers, on {os.cpu_count()} cores: {said}."
    )


def plot_plan(hours):
    """Draw the hours that each part needs, by the number of nodes.

    Parameters
    ----------
    hours : pandas.DataFrame
        A row for each number of nodes: ``processors``, ``storage``, ``backend``, ``limit`` and
        ``hours``.
    """
    figure = plt.figure(figsize=(4.2, 4.6), layout="constrained")
    ax = figure.gca()
    looks = {
        "processors": ("#0072b2", "o-"),
        "storage": ("#d55e00", "s--"),
        "backend": ("#009e73", "^:"),
    }
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
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.03, 1), frameon=False, ncols=2)
    said = "; ".join(
        f"{n} {'node' if n == 1 else 'nodes'}: processors {row.processors:.3g} h, storage "
        f"{row.storage:.3g} h, backend {row.backend:.3g} h"
        for n, row in hours.iterrows()
    )
    figure.set_label(
        "Hours for ten thousand images of 1 GB by the number of nodes. The slowest part decides "
        f"how long the study takes.\n\nLine chart, both axes logarithmic. {said}."
    )


def plot_work(table, lost):
    """Draw which worker did which image, and when.

    Parameters
    ----------
    table : pandas.DataFrame
        As `mask_study` returns it.
    lost : dict
        As `lose_a_worker` returns it.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib.pyplot as plt  # here: workers do not need it
    from matplotlib.patches import Patch

    rows = table.sort_values("started")
    zero, end = rows.started.min(), (rows.started + rows.seconds).max()
    pids = dict.fromkeys([lost["pid"], *rows.pid])
    number = {stem(image): n for n, image in enumerate(table.image, start=1)}
    bars, said = [], []
    for lane, pid in enumerate(pids, start=1):
        done = []
        for row in rows[rows.pid == pid].itertuples():
            again = stem(row.image) in lost["begun"] and row.started > lost["time"]
            bars.append((lane, number[stem(row.image)], row.started, row.seconds, again))
            done.append(f"{number[stem(row.image)]}{' for the second time' * again}")
            if again:
                begin = lost["begun"][stem(row.image)]
                bars.append((1, number[stem(row.image)], begin, lost["time"] - begin, None))
        said.append(f"worker {lane} did {', '.join(done) or 'none'}")

    figure = plt.figure(figsize=(4.2, 1.7 + 0.6 * len(pids)), layout="constrained")
    ax = figure.gca()
    kinds = {
        False: ("done", {"fc": "#0072b2", "ec": "white"}),
        None: ("begun, and lost", {"fc": "white", "ec": "#d55e00", "hatch": "xxxx"}),
        True: ("done again", {"fc": "#d55e00", "ec": "white", "hatch": "//"}),
    }
    for kind, (_, style) in kinds.items():
        for lane, n, started, seconds, _ in (bar for bar in bars if bar[4] is kind):
            ax.barh(lane, seconds, left=started - zero, height=0.5, **style)
            if seconds > 0.065 * (end - zero):  # there is room for two digits
                middle = started - zero + seconds / 2
                ax.text(middle, lane - 0.27, n, ha="center", va="bottom")
    ax.plot(lost["time"] - zero, 1, "x", color="#d55e00", ms=10, mew=3, clip_on=False)
    ax.set(xlabel="seconds", ylim=(len(pids) + 0.5, 0.4), xlim=(0, end - zero))
    lanes = range(1, len(pids) + 1)
    ax.set_yticks(lanes, [f"worker {lane}" for lane in lanes])
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    patches = [Patch(label=name, **style) for name, style in kinds.values()]
    figure.legend(handles=patches, loc="outside lower left", frameon=False, ncols=2)
    figure.suptitle("A worker is lost (×)", fontsize=12)
    figure.set_label(
        "Which worker did which image, and when. Worker 1 was killed at the cross; worker 3, if "
        "there is one, replaced it.\n\n"
        f"Bar chart over {end - zero:.1f} seconds, with {len(pids)} workers and {len(table)} "
        f"images. Worker 1 was killed after {lost['time'] - zero:.1f} seconds. {'; '.join(said)}."
    )
    return figure


HOLDERS = {  # in the order in which they are stacked: colour, hatch, name
    "imports": ("#707070", "", "interpreters and imports"),
    "caller": ("#0072b2", "xxxx", "the calling process"),
    "worker": ("#d55e00", "///", "workers"),
    "block": ("#009e73", "+++", "shared memory"),
}


def plot_parts(predictions, measured):
    """Draw the parts of each predicted peak as a bar, and what was measured as a dot.

    Parameters
    ----------
    predictions : list of memory_model.Prediction
    measured : dict of str to float
        Measured peaks in MiB, by the method; those that were not run are not in it.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = plt.figure(figsize=(4.2, 2.3 + 0.5 * len(predictions)), layout="constrained")
    ax = figure.gca()
    bars = []
    for i, prediction in enumerate(predictions):
        left, known = 0, measured.get(prediction.method)
        for holder, (color, hatch, name) in HOLDERS.items():
            mib = sum(
                part.mib
                for part in prediction.parts
                if ("imports" if part.reason == "imports" else part.holder) == holder
            )
            style = {"height": 0.4, "color": color, "hatch": hatch, "edgecolor": "white", "lw": 0}
            ax.barh(i, mib, left=left, label=name if i == 0 else None, **style)
            left += mib
        halo = [patheffects.withStroke(linewidth=3, foreground="white")]
        ends = prediction.low_mib, prediction.most_mib
        ax.plot(ends, [i, i], color="black", lw=1, path_effects=halo)
        if known is not None:
            ax.plot(known, i, "o", ms=6, mfc="white", mec="black")
        label = ax.text(0, i - 0.25, prediction.method, va="bottom")
        label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 0.5})
        found = "not measured" if known is None else f"measured {known:,.0f} MiB"
        bars.append(f"{prediction.method}: predicted {left:,.0f} MiB, {found}")
    ax.plot([], [], "o", ms=6, mfc="white", mec="black", label="measured")
    ax.plot([], [], color="black", lw=1, label="range of the prediction")
    ax.set(xlabel="MiB in use", yticks=[], ylim=(len(predictions) - 0.5, -0.8), xlim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower left", frameon=False, handlelength=2.5, handleheight=1.2)
    figure.suptitle("Predicted peaks and their parts", fontsize=12)
    figure.set_label(
        "Each method's likely peak, made of its parts. The line is the range of the prediction, "
        "the dot the measured peak.\n\n"
        f"Stacked bar chart of {len(predictions)} methods. {'; '.join(bars)}."
    )
    return figure


def plot_points(series, title):
    """Draw predicted against measured peaks, with the tolerance as a band.

    Parameters
    ----------
    series : dict of str to list of dict
        Points as `read_grid` gives them, by what they are.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    pass

    figure = plt.figure(figsize=(4.2, 6.2), layout="constrained")
    ax = figure.gca()
    every = [p[key] for points in series.values() for p in points for key in (*KEYS, *RANGE)]
    low, high = min(every) / 1.15, max(every) * 1.15
    line = np.geomspace(low, high, 200)
    width = np.array([tolerance(mib) for mib in line])
    ax.fill_between(line, line - width, line + width, color="0.85", lw=0)
    ax.plot(line, line, color="0.5", lw=1)
    faces = dict(zip(series, ("white", None) if len(series) > 1 else (None,), strict=True))
    for name, points in series.items():
        for family in dict.fromkeys(color_of(point["method"]) for point in points):
            own = [point for point in points if color_of(point["method"]) == family]
            x, y, least, most = ([point[key] for point in own] for key in (*KEYS, *RANGE))
            marker = marker_of(own[0]["method"])
            ax.vlines(x, least, most, color=family, lw=1, alpha=0.6)
            ax.plot(x, y, marker, ls="", color=family, ms=5, mfc=faces[name] or family)
    for family, color in COLORS.items():
        ax.plot([], [], MARKERS[family], color=color, label=family)
    if len(series) > 1:
        for name, face in faces.items():
            ax.plot([], [], "o", color="0.2", mfc=face or "0.2", label=name)
    ax.plot([], [], color="0.4", lw=1, marker="|", ls="", ms=14, label="range of the prediction")
    ax.fill_between([], [], color="0.85", lw=0, label="tolerance")
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis, name in ((ax.xaxis, "measured"), (ax.yaxis, "predicted")):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 2, 3, 5)))
        axis.set_major_formatter("{x:,.0f}")
        axis.set_minor_locator(NullLocator())
        axis.set_label_text(f"{name} peak, MiB in use")
    plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    figure.legend(loc="outside lower left", frameon=False)
    figure.suptitle(title, fontsize=12)
    both = [point for points in series.values() for point in points]
    ratios = [point["predicted_mib"] / point["measured_mib"] for point in both]
    peaks = [point["measured_mib"] for point in both]
    figure.set_label(
        f"{title}: predicted against measured peaks. The line of a point is the range of its "
        "prediction; the grey band is the tolerance.\n\n"
        f"Scatter plot of {len(both)} points on logarithmic axes, from "
        f"{min(peaks):,.0f} to {max(peaks):,.0f} MiB measured. {count_of(both)} The likely peak is "
        f"{min(ratios):.2f} to {max(ratios):.2f} times the measured one, {np.median(ratios):.2f} "
        "times in the median."
    )
    return figure


KEYS = "measured_mib", "predicted_mib"


RANGE = "low_mib", "high_mib"


def plot_ways(ratios, above_mib, title):
    """Draw time and memory of several ways, one below the other.

    Parameters
    ----------
    ratios : dict of str to array of shape (n_repeats,)
        Times as multiples of that of the first way.
    above_mib : dict of str to float
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib.pyplot as plt

    figure, (times, memory) = plt.subplots(
        *(2, 1), figsize=(4.2, 1.8 + 0.9 * len(ratios)), layout="constrained"
    )
    first, found = next(iter(ratios)), []
    for y, (name, values) in enumerate(ratios.items()):
        low, median, high = np.quantile(values, [0, 0.5, 1])
        times.plot([low, high], [y, y], color="#0072b2", lw=3, solid_capstyle="butt", alpha=0.5)
        times.plot(median, y, "o", color="#0072b2", ms=7)
        memory.barh(y, above_mib[name], 0.3, color="#d55e00", hatch="//", edgecolor="white", lw=0)
        found.append(f"{name}: {median:.2f}, {above_mib[name]:,.0f} MiB")
        for ax, number in ((times, f"{median:.2f}"), (memory, f"{above_mib[name]:,.0f}")):
            label = ax.text(
                *(0, y - 0.2, f"{name}: {number}"),
                transform=ax.get_yaxis_transform(),
                va="bottom",
            )
            label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 0.5})
    times.axvline(1, color="black", ls="--", lw=1, zorder=1)
    times.set(xlabel=f"time, as a multiple of {first}")
    times.set_xlim(0, 1.05 * max(values.max() for values in ratios.values()))
    memory.set_xlabel("peak above the start, MiB")
    for ax in (times, memory):
        ax.set(ylim=(len(ratios) - 0.6, -0.8), yticks=[])
        ax.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    figure.set_label(
        f"{title}. Top: time, a dot for the median of the runs, a line from the fastest to the "
        f"slowest, dashed for {first}. Bottom: the peak of memory in use above the start."
        f"\n\nDot chart of time, as multiples of that of {first}, and bar chart of memory, of "
        f"{len(ratios)} ways: {'; '.join(found)}."
    )
    return figure


def plot_traces(traces, image_mib=None):
    """Draw several traces, one below the other, on the same scale of memory.

    Parameters
    ----------
    traces : dict of str to peak_memory.Trace or NotRun
    image_mib : float, optional
        Size of the image in memory, drawn as a line.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        *(len(traces), 1),
        figsize=(4.2, 2 + 2.5 * len(traces)),
        squeeze=False,
        layout="constrained",
    )
    known = {}
    for ax, (name, trace) in zip(axes.flat, traces.items(), strict=True):
        trace.plot(ax, image_mib, name)
        handles, labels = ax.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
        if ax.get_legend():
            ax.get_legend().remove()
    figure.legend(known.values(), known, loc="outside lower left", frameon=False)
    plt.setp(axes, ylim=(0, max(ax.get_ylim()[1] for ax in axes.flat)))
    figure.suptitle("Memory over time", fontsize=12)
    image = f" The image has {image_mib:,.0f} MiB." if image_mib else ""
    workers = "workers" in known
    layers = "calling process, its workers and shared memory" if workers else "calling process"
    median = " Of several runs, the one with the median peak is drawn." if workers else ""
    figure.set_label(
        f"Memory over time of {next(iter(traces)) if len(traces) == 1 else 'each method'}: the "
        f"{layers} stacked, mapped files above.{median}\n\n"
        f"Area chart{f', {len(traces)} panels on one scale' if len(traces) > 1 else ''}. "
        f"{' '.join(trace.in_words(name) for name, trace in traces.items())}{image}"
    )
    plt.show()
    return figure


def plot_scale(table):
    """Draw published, predicted and measured peaks, one below the other for each method.

    Parameters
    ----------
    table : list of dict
        As `read_scale` returns it.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = plt.figure(figsize=(4.2, 2 + 1.1 * len(table)), layout="constrained")
    ax = figure.gca()
    bars = []
    for i, row in enumerate(table):
        said = []
        for k, (key, name, style) in enumerate(KINDS):
            y = i + (k - 1) * 0.18
            text = in_gib(row, key)
            if row[key] is None:
                ax.text(0, y, f" {text}", va="center", color="0.3")
            else:
                ax.barh(y, row[key], height=0.14, lw=0.7, **style)
                ax.text(row[key], y, f" {text}", va="center")
            said.append(f"{name} {text}")
        ax.text(0, i - 0.29, row["method"], va="bottom", weight="bold")
        bars.append(f"{row['method']}: {', '.join(said)}")
    right = max(row[key] or 0 for row in table for key, *_ in KINDS)
    ax.set(xlabel="GiB", yticks=[], ylim=(len(table) - 0.45, -0.55), xlim=(0, right * 1.2))
    ax.spines[["top", "right", "left"]].set_visible(False)
    proxies = [
        Patch(label=name if "RSS" in name else f"{name} (memory in use)", lw=0.7, **style)
        for _, name, style in KINDS
    ]
    figure.legend(handles=proxies, loc="outside lower left", frameon=False)
    figure.suptitle("Ten subjects, twenty regions", fontsize=12)
    figure.set_label(
        "Ten subjects, twenty regions: published, predicted and measured peaks of each method for "
        "all masks, in GiB.\n\n"
        f"Bar chart of {len(table)} methods, in GiB. {'; '.join(bars)}."
    )
    return figure


def _describe(figure, caption, lines, unit, sizes):
    """Write the caption of a figure of growth, with the numbers at the ends of each line."""
    ends = [
        f"{what}, {GROWTH[question].format(**sizes)} from {x[0]} to {x[-1]}: "
        f"{short(y[0])} to {short(y[-1])} {unit}"
        for question, what, x, y in lines
    ]
    panels = len(figure.axes)
    figure.set_label(
        f"{caption}\n\nLine chart in {panels} panel{'s' if panels > 1 else ''}. {'; '.join(ends)}."
    )


def plot_series(series, title, unit, borders=()):
    """Draw time series over volumes; the first lines are thicker, so that equal ones stay visible.

    Parameters
    ----------
    series : dict of str to array of shape (n_timepoints,)
    title, unit : str
    borders : sequence of int, optional
        Volumes at which a dotted line is drawn.
    """
    figure = plt.figure(figsize=(4.2, 3.6), layout="constrained")
    ax, colors = figure.gca(), ("#0072b2", "#d55e00", "#707070", "#aa4499", "#009e73")
    for number, (name, values) in enumerate(series.items()):
        width = 4 / (number + 1)
        ax.plot(
            values, lw=width, alpha=0.5 if width > 2 else 1, color=colors[number % 5], label=name
        )
    for volume in borders:
        ax.axvline(volume, color="#707070", lw=1, ls=":")
    ax.set(xlabel="volume", ylabel=unit)
    ax.margins(x=0)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", frameon=False, ncols=2)
    figure.suptitle(title, fontsize=12)
    lines = [f"{name} from {v.min():.3g} to {v.max():.3g}" for name, v in series.items()]
    figure.set_label(
        f"{title}{', dotted lines between chunks' if len(borders) else ''}.\n\nLine chart over "
        f"{max(map(len, series.values()))} volumes, in {unit}: {'; '.join(lines)}."
    )
    return figure
