"""Draw the figures of the pages.

Each figure fits a narrow column. Its label holds a caption, an empty line, and a description with
the numbers for readers who do not see it.
"""

import json
import os
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from beyond_the_masker.files import moved_into_place
from beyond_the_masker.inputs.data import subject_starts
from beyond_the_masker.meter import Trace, counted, in_seconds
from beyond_the_masker.studies.tasks import IS_FINISHED

WIDTH = 4.2  # inches
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#aa4499"
GREY = "#707070"
FAMILIES = {  # of methods, by a word in their names: colour, safe for colour-blind readers, marker
    "Streaming": (PURPLE, "o"),
    "shared memory": (GREEN, "D"),
    "NiftiMasker": (ORANGE, "s"),
    "NiftiLabelsMasker": (ORANGE, "P"),
    "Nifti": (ORANGE, "v"),  # any other of nilearn's maskers
    "NumPy indexing": (BLUE, "^"),
    "": (GREY, "X"),  # any other method
}
# Its ends are of medium lightness, so that they stay apart from the middle when the dark theme
# inverts it.
DIVERGING = LinearSegmentedColormap.from_list("blue to orange", [BLUE, "white", ORANGE])
MISSING = LinearSegmentedColormap.from_list("orange to white", [ORANGE, "white"])


def family_of(method):
    """Return the colour and the marker of a method."""
    return next(look for word, look in FAMILIES.items() if word in method)


def color_of(method):
    """Return the colour of a method."""
    return family_of(method)[0]


def name_of(phase):
    """Return the method and the mode of a phase or a row, shortened."""
    return f"{phase['method'].replace(' image', '')}, {phase['mode']}"


def peak_text(status, mib):
    """Return a peak as text: measured, predicted, or reached before the method was stopped."""
    words = {"measured": "", "predicted": "predicted ", "stopped": "stopped at "}
    return f"{words[status]}{mib:,.0f} MiB"


def short(number):
    """Return a number with three digits, or with all digits of its integer part."""
    return f"{number:,.0f}" if number >= 100 else f"{number:#.3g}".rstrip(".")


def save(figure, path):
    """Save a figure as SVG, with its caption and its description."""
    figure.savefig(path, metadata={"Description": figure.get_label(), "Date": None})


def column_figure(height, title, n_panels=1, **options):
    """Return a figure as wide as a column, and its axes, or an array of them."""
    figure, axes = plt.subplots(n_panels, figsize=(WIDTH, height), layout="constrained", **options)
    figure.suptitle(title, fontsize=12)
    return figure, axes


def hide_frame(ax, *sides):
    """Hide the frame at the top, at the right and at other sides."""
    ax.spines[["top", "right", *sides]].set_visible(False)


def rows_from_the_top(ax, n_rows, above=0.8, below=0.5):
    """Let rows of bars or dots begin at the top, with some space above and below them."""
    ax.set(yticks=[], ylim=(n_rows - 1 + below, -above))
    hide_frame(ax, "left")


def whole_numbers(axis, n_ticks=4):
    """Write the numbers of an axis whole, with commas."""
    axis.set_major_locator(MaxNLocator(n_ticks))
    axis.set_major_formatter("{x:,.0f}")


def label_above(ax, x, y, text):
    """Write a label above a bar or a dot, on white that leaves the bar whole."""
    on_white = {"facecolor": "white", "linewidth": 0, "pad": 0.5}
    ax.annotate(text, (x, y), (0, 2), textcoords="offset points", va="bottom", bbox=on_white)


def legend_above(ax, **options):
    """Place the legend of a panel above it."""
    place = {"loc": "lower left", "bbox_to_anchor": (-0.03, 1), "borderaxespad": 0}
    ax.legend(frameon=False, **place | options)


def draw_ratios(ax, ratios, x, color):
    """Draw a dot for the median of each array in a dict of ratios, and a line over its range.

    The labels begin at `x`; `color` is a function of a name. Return the three numbers by name.
    """
    found = {name: np.quantile(values, [0, 0.5, 1]) for name, values in ratios.items()}
    for y, (name, (low, middle, high)) in enumerate(found.items()):
        ax.plot([low, high], [y, y], color=color(name), lw=3, solid_capstyle="butt", alpha=0.5)
        ax.plot(middle, y, "o", color=color(name), ms=7)
        label_above(ax, x, y - 0.2, f"{name}: {short(middle)}")
    draw_reference(ax, 1)
    return found


def draw_reference(ax, x):
    """Draw a dashed line on the bars and behind the dots of all rows; labels cover it."""
    ax.axvline(x, color="black", ls="--", lw=1.2, zorder=1.5)


def spread(positions, distance, low, high):
    """Move sorted positions so that they are at least `distance` apart, within limits."""
    distance = min(distance, (high - low) / len(positions))
    steps = distance * np.arange(len(positions))
    moved = np.maximum.accumulate(np.maximum(positions, low + distance / 2) - steps)
    moved = np.minimum(moved, high - distance / 2 - steps[-1])
    return moved + steps


def plot_series(series, title, unit, borders=()):
    """Draw a dict of time series by name.

    With `borders`, dotted lines are at these volumes, and the first lines are thick, so that equal
    ones stay visible.
    """
    figure, ax = column_figure(3.6, title)
    ax.set_prop_cycle(color=[BLUE, ORANGE, GREY, PURPLE, GREEN])
    for number, (name, values) in enumerate(series.items(), start=1):
        ax.plot(values, label=name, lw=5 / number if borders else 1.5)
    for volume in borders:
        ax.axvline(volume, color=GREY, lw=1, ls=":")
    figure.legend(loc="outside lower left", frameon=False, ncols=2)
    _finish_series(ax, series, unit, " Dotted: borders between chunks." * bool(borders))
    return figure


def plot_lanes(series, title, unit):
    """Draw a dict of time series by name, one above the other, on one scale."""
    figure, ax = column_figure(1.1 + 0.8 * len(series), title)
    step = 1.3 * max(np.ptp(values) for values in series.values()) or 1
    for lane, (name, values) in enumerate(series.items()):
        color = [BLUE, ORANGE, GREEN, PURPLE][lane % 4]
        ax.plot(values - np.mean(values) - lane * step, color=color, lw=1)
        label_above(ax, len(values) / 100, step * (0.38 - lane), name)
    ax.set_ylim(step * (0.45 - len(series)), 0.75 * step)
    ticks = MaxNLocator(4).tick_values(-step / 3, step / 3)[1:-1]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.spines["left"].set_visible(False)
    lanes = " Each series is drawn around its mean, all on the scale of the first one's ticks."
    _finish_series(ax, series, unit, lanes)
    return figure


def _finish_series(ax, series, unit, remark):
    """Label a panel of time series, mark where another subject begins, and describe the figure."""
    n_volumes = max(map(len, series.values()))
    starts = subject_starts(n_volumes)
    for volume in starts:
        ax.axvline(volume, color=GREY, lw=0.7, zorder=0.5)
    ax.set(xlabel="volume", ylabel=unit)
    ax.margins(x=0)
    hide_frame(ax)
    title, found = ax.figure.get_suptitle(), []
    for name, values in series.items():
        known = values[np.isfinite(values)]
        ends = f"from {known.min():.3g} to {known.max():.3g}" if known.size else "without a number"
        found.append(f"{name} {ends}")
    subjects = " Thin upright line: the next subject's volumes begin." * bool(starts)
    ax.figure.set_label(
        f"{title}: {unit}, at each of {n_volumes:,} volumes, of {', '.join(series)}."
        f"{remark}{subjects}\n\n"
        f"Line chart of {len(series)} series over {n_volumes:,} volumes; {unit}: "
        f"{'; '.join(found)}."
    )


def plot_correlations(correlations, title):
    """Draw a matrix of correlations, with regions that are similar next to each other."""
    order = by_similarity(correlations)
    ordered, n = correlations[np.ix_(order, order)], len(order)
    pairs = ordered[np.triu_indices(n, 1)]
    low, middle, high = np.quantile(pairs, [0, 0.5, 1])
    most = max(abs(low), abs(high))
    figure, ax = column_figure(5.1, title)
    drawn = ax.imshow(ordered, DIVERGING, vmin=-most, vmax=most, interpolation="nearest")
    ax.set(xlabel=f"{n} regions, sorted by similarity", xticks=[], yticks=[])
    bar = figure.colorbar(drawn, location="bottom", label="correlation", shrink=0.9, aspect=30)
    bar.outline.set_visible(False)
    figure.set_label(
        f"{title}: orange where two series rise together, blue where one falls while the other "
        "rises, no colour where neither holds. The diagonal, a region with itself, is off the "
        f"scale.\n\nMatrix of the correlations of {n} regions. Of {len(pairs):,} pairs, "
        f"{np.mean(pairs > 0):.0%} are positive; from {low:.2f} to {high:.2f}, median {middle:.2f}."
    )
    return figure


def by_similarity(correlations):
    """Return an order of regions in which similar ones are next to each other."""
    distances = squareform(1 - correlations, checks=False)
    return leaves_list(linkage(distances, "average", optimal_ordering=True))


def plot_traces(traces, image_mib=None, repeated=True):
    """Draw a dict of traces, or of `NotRun` in place of them, one below the other on one scale.

    The size of the image in memory is a line. Calls with workers are `repeated`: their traces are
    those of the run with the median peak.
    """
    n, title = len(traces), "Memory over time"
    figure, axes = column_figure(2 + 2.5 * n, title, n, squeeze=False)
    known, words = {}, []
    for ax, (name, trace) in zip(axes.flat, traces.items(), strict=True):
        if isinstance(trace, Trace):
            trace.plot(ax, image_mib, name)
            words.append(_trace_in_words(trace, name))
            ax.get_legend().remove()
        else:
            words.append(_draw_prediction(ax, trace, image_mib, name))
        handles, labels = ax.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(known.values(), known, loc="outside lower left", frameon=False)
    plt.setp(axes, ylim=(0, max(ax.get_ylim()[1] for ax in axes.flat)))
    image = f" The image has {image_mib:,.0f} MiB." if image_mib else ""
    workers = "workers" in known
    layers = "calling process"
    if workers:
        shared = "shared memory" in known
        layers += f"{', its workers and shared memory' if shared else ' and its workers'}, stacked"
    median = " Of several runs, the one with the median peak is drawn." * (workers and repeated)
    figure.set_label(
        f"{next(iter(traces)) if n == 1 else 'Each method'}: memory over time of the {layers}. The "
        f"dashed line adds mapped files.{median}\n\n"
        f"Area chart, panels on one scale: {n}. {' '.join(words)}{image}"
    )
    plt.show()
    return figure


def _trace_in_words(trace, title):
    """Describe the drawing of a trace, with its numbers."""
    moment = f"{in_seconds(max(trace.times[trace.total().argmax()], 0))} into"
    if trace.high_water_mib > trace.total().max():
        moment = "between two samples of"
    return (
        f"{title}: {trace.metric} rises from {trace.before_mib:,.0f} MiB before the call to a peak "
        f"of {trace.peak_mib:,.0f} MiB, {moment} the call of {in_seconds(trace.seconds)}, with "
        f"{counted(len(trace.processes) - 1, 'child process')}; mapped files take "
        f"{trace.peak_file_mib:,.0f} MiB at most."
    )


def _draw_prediction(ax, not_run, image_mib, title):
    """Draw a predicted peak, hatched, in place of a trace; return its description."""
    peak = not_run.prediction.peak_mib
    ax.barh(peak / 2, 1, peak, color="white", edgecolor="0.4", hatch="xx", lw=0)
    reason = "\n".join(textwrap.wrap(f"Not run. {not_run.reason}", 34))
    place = {"transform": ax.transAxes, "ha": "center", "va": "center"}
    ax.text(0.5, 0.5, reason, bbox={"facecolor": "white", "linewidth": 0}, **place)
    if image_mib:
        ax.axhline(image_mib, color="#cc79a7", label="the image")
    ax.set(xlim=(0, 1), xticks=[], ylabel="MiB")
    ax.set_title(f"{title}:\npredicted peak {peak:,.0f} MiB", loc="left", fontsize=11)
    return f"{title}: not run, predicted peak {peak:,.0f} MiB."


def plot_peaks(rows):
    """Draw rows of ``summary.csv``: peaks for all masks, ranges, and the size of the image."""
    rows = [row for row in rows if row["mode"] != "single"]
    image_mib = float(rows[0]["image_mib"])
    title = f"Peak memory for {rows[0]['n_masks']} masks"
    height = 0.6 if {row["status"] for row in rows} == {"measured"} else 0.8  # labels of two lines
    figure, ax = column_figure(1.5 + height * len(rows), title)
    for y, row in enumerate(rows):
        _draw_bars(ax, row, y)
        gap = " " if row["status"] == "measured" else "\n"
        label_above(ax, 0, y - 0.14, f"{name_of(row)}:{gap}{_peak_of(row)}")
    draw_reference(ax, image_mib)
    left = image_mib <= ax.dataLim.x1 / 2
    words = f" the image: {image_mib:,.0f} MiB "
    ax.text(image_mib, len(rows) - 0.4, words, va="center", ha="left" if left else "right")
    meaning = ["MiB of memory in use (line: range of the runs)"]
    meaning += ["thin and hatched: file pages, droppable"]
    meaning += ["crossed: predicted, not run"] * ("predicted" in {row["status"] for row in rows})
    ax.set(xlabel="\n".join(meaning), xlim=(0, max(1.05 * ax.dataLim.x1, 1)))
    whole_numbers(ax.xaxis)
    rows_from_the_top(ax, len(rows), 0.7, 0.9)
    figure.set_label(f"{title}, {_peaks_in_words(rows)}")
    return figure


def _peak_of(row, with_range=False):
    """Return the peak of a method as text, with the range of its runs or without it."""
    peak = peak_text(row["status"], float(row["peak_mib"]))
    low, high = (f"{float(row[f'peak_mib_{end}']):,.0f}" for end in ("min", "max"))
    return f"{peak} ({low} to {high})" if with_range and int(row["n_runs"]) > 1 else peak


def _peaks_in_words(rows):
    """Return the caption of the chart of peaks, but for its title, and its description."""
    peaks = "; ".join(f"{name_of(row)}: {_peak_of(row, with_range=True)}" for row in rows)
    return (
        "each method in a process of its own. Bars: memory in use. The faint part is the calling "
        "process's interpreter and imports, before the call; those of workers are in the solid "
        "part. A method with workers is measured several times: the bar is the median, the line "
        "goes from the smallest to the largest peak. Thin hatched bars: file pages, which the "
        "kernel may drop, where they exceed a quarter of the image. The dashed line is the size of "
        "the image. A loop takes one mask after the other; the other methods take all masks at "
        "once. Region averages are one series for each mask; the other methods return all voxels."
        f"{' Crossed: predicted, not run.' * ('predicted' in peaks)}"
        f"\n\nBar chart of {len(rows)} methods, with the image's "
        f"{float(rows[0]['image_mib']):,.0f} MiB as a line. Peaks: {peaks}."
    )


def _draw_bars(ax, row, y):
    """Draw the bars of a method."""
    color = color_of(row["method"])
    empty = {"color": "white", "edgecolor": color, "lw": 1}
    peak_mib, file_mib = float(row["peak_mib"]), float(row["peak_file_mib"] or 0)
    if row["status"] == "predicted":
        ax.barh(y, peak_mib, height=0.28, hatch="xxxx", ls=":", **empty)
        return
    ax.barh(y, peak_mib, height=0.28, color=color)
    ax.barh(y, float(row["before_mib"]), height=0.28, color="white", alpha=0.6)
    if int(row["n_runs"]) > 1:
        ends = [float(row[f"peak_mib_{end}"]) for end in ("min", "max")]
        ax.plot(ends, [y, y], color="black", lw=1.2, marker="|", ms=8)
    if file_mib >= float(row["image_mib"]) / 4:
        ax.barh(y + 0.23, file_mib, height=0.13, hatch="//////", **empty)


def plot_ways(ratios, above_mib, title):
    """Draw time, as multiples of that of the first way, and memory of several ways."""
    figure, (times, memory) = column_figure(1.8 + 0.9 * len(ratios), title, 2)
    drawn = draw_ratios(times, ratios, 0, lambda name: BLUE)
    first, found = next(iter(ratios)), []
    for y, (name, (_, median, _)) in enumerate(drawn.items()):
        memory.barh(y, above_mib[name], 0.3, color=ORANGE, hatch="//", edgecolor="white", lw=0)
        label_above(memory, 0, y - 0.2, f"{name}: {above_mib[name]:,.0f}")
        found.append(f"{name}: {short(median)}, {above_mib[name]:,.0f} MiB")
    times.set(xlabel=f"time, as a multiple of {first}", xlim=(0, 1.05 * times.dataLim.x1))
    memory.set(xlabel="peak above the start, MiB", xlim=(0, None))
    for ax in (times, memory):
        rows_from_the_top(ax, len(ratios), below=0.4)
    figure.set_label(
        f"{title}. Top: time, a dot for the median of the runs, a line from the fastest to the "
        f"slowest; the dashed line is {first}. Bottom: the peak of memory in use above the start."
        f"\n\nDot chart of time, as multiples of that of {first}, and bar chart of memory, of "
        f"{len(ratios)} ways: {'; '.join(found)}."
    )
    return figure


def plot_workers(speed, peaks):
    """Draw by the number of workers how many times as fast as one they are, and peaks in MiB."""
    figure, (above, below) = column_figure(5.5, "Speed and memory of a study", 2, sharex=True)
    numbers = list(peaks)
    middle = [1.0, *map(np.median, speed.values())]
    above.plot(numbers, numbers, ":", color="black", label="proportional to the workers")
    for n, ratios in speed.items():
        above.plot([n, n], [ratios[0], ratios[-1]], color=BLUE, lw=4, alpha=0.5)
    above.plot(numbers, middle, "o-", color=BLUE, label="measured: median, and all pairs")
    above.axvline(os.cpu_count(), color=ORANGE, ls="--", label="cores of this machine")
    above.set(ylabel="times as fast", ylim=(0, numbers[-1]))
    legend_above(above)
    bars = below.bar(numbers, peaks.values(), width=0.6, color=BLUE)
    below.bar_label(bars, fmt="{:,.0f}")
    below.set(xlabel="workers", ylabel="peak, MiB")
    below.set_xticks(numbers, ["1\n(this process)" if n == 1 else n for n in numbers])
    below.margins(y=0.15)
    hide_frame(above)
    hide_frame(below)
    described = "; ".join(
        f"{n}: {ratio:.2f} times as fast as one process, {peaks[n]:,.0f} MiB"
        for n, ratio in zip(numbers, middle, strict=True)
    )
    figure.set_label(
        "Speed and memory of a study of eight images, by the number of workers; 1 is the calling "
        "process alone. Memory is the peak of memory in use of all processes.\n\n"
        f"Two charts by the number of workers, on {os.cpu_count()} cores: {described}."
    )
    return figure


def plot_plan(hours):
    """Draw the hours that each part of a `plan` needs, by the number of workers."""
    figure, ax = column_figure(4.9, "How long the study takes")
    looks = {"processors": (BLUE, "o-"), "storage": (ORANGE, "s--")}
    for name, (color, style) in looks.items():
        ax.plot(hours.index, hours[name], style, color=color, label=name)
    ax.plot(hours.index, hours.hours, color="black", lw=7, alpha=0.15, label="the study")
    for n, row in hours.iterrows():  # to the right of a point, all lines are below it
        ax.annotate(f"{row.hours:.3g} h", (n, row.hours), (3, 7), textcoords="offset points")
    ax.set(xscale="log", yscale="log", xlabel="workers", ylabel="hours", xticks=hours.index)
    ax.xaxis.minorticks_off()
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:,g}")
    ax.margins(0.12)
    ax.set_xlim(right=5 * hours.index[-1])  # space for the last label
    hide_frame(ax)
    legend_above(ax, ncols=2)
    described = "; ".join(
        f"{n:,} workers: {', '.join(f'{name} {row[name]:.3g} h' for name in looks)}"
        for n, row in hours.iterrows()
    )
    figure.set_label(
        "Hours by the number of workers. The slower part decides how long the study takes.\n\n"
        f"Line chart, both axes logarithmic, of processors and storage. {described}."
    )
    return figure


def read_coverage(table, atlas):
    """Return how much of each region is inside each image, from the records beside the results."""
    is_finished = table.status.isin(IS_FINISHED)
    files = [Path(file) for file in table[is_finished & (table.atlas == atlas)].file]
    if not files:
        raise ValueError(f"The table has no results of {atlas}, only of {set(table.atlas)}.")
    records = [json.loads(file.with_suffix(".json").read_text()) for file in files]
    rows = [[record["Coverage"][region] for region in record["Regions"]] for record in records]
    return pd.DataFrame(rows, [file.stem for file in files], records[0]["Regions"], dtype=float)


def plot_study(table, atlas, min_coverage=0.5):
    """Draw how much of each region is inside each image, and how much of each image is kept.

    `table` is that of `fmriprep_study`; images that failed are only counted.
    """
    coverage, rows = read_coverage(table, atlas), table[table.atlas == atlas]
    figure, (above, below) = column_figure(7, "Coverage and head motion", 2, height_ratios=[3, 2])
    _draw_coverage(above, coverage, min_coverage)
    below.plot(rows.mean_fd, rows.kept, "o", color=BLUE, mec="white", ms=8)
    below.set(xlabel="mean framewise displacement, mm", ylabel="volumes kept", xlim=(0, None))
    whole_numbers(below.yaxis)
    below.margins(y=0.15)
    hide_frame(below)
    n_failed, known = sum(rows.status == "failed"), rows[rows.mean_fd.notna()]
    n_low = int((coverage < min_coverage).sum(axis=None))
    figure.set_label(
        f"Top: how much of each of {coverage.shape[1]} regions (columns) is inside each image "
        f"(rows); a cross where it is less than {min_coverage:.0%}, so that the series is n/a. "
        f"Bottom: each dot is an image, by its head motion and the volumes that are kept.\n\n"
        f"Matrix of {len(coverage)} images and {coverage.shape[1]} regions: in {n_low} of "
        f"{coverage.size:,} places the coverage is below {min_coverage:.0%}. Scatter chart of "
        f"{len(known)} images: mean framewise displacement from {known.mean_fd.min():.2f} to "
        f"{known.mean_fd.max():.2f} mm, from {known.kept.min():.0f} to {known.kept.max():.0f} "
        f"volumes kept. {n_failed} of {len(rows)} images failed."
    )
    return figure


def save_study(table, folder, min_coverage):
    """Write a picture for each atlas of a study that has results; return the files."""
    files = []
    for atlas in table[table.file != ""].atlas.unique():
        files.append(Path(folder).expanduser() / f"study_atlas-{atlas}.svg")
        figure = plot_study(table, atlas, min_coverage)
        about = {"Title": f"The study, atlas {atlas}", "Description": figure.get_label()}
        with moved_into_place(files[-1]) as unfinished:
            figure.savefig(unfinished, format="svg", metadata=about | {"Date": None})
        plt.close(figure)
    return files


def _draw_coverage(ax, coverage, min_coverage):
    """Draw a matrix of images and regions: the more is missing, the darker."""
    drawn = ax.imshow(coverage, MISSING, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    rows, columns = np.nonzero(coverage.to_numpy() < min_coverage)
    ax.plot(columns, rows, "x", color="black", ms=min(6, 150 / len(coverage)), mew=1)
    subjects = coverage.index.str.partition("_").get_level_values(0)
    first = np.append(0, np.flatnonzero(subjects[1:] != subjects[:-1]) + 1)
    some = first[:: -(-len(first) // 12)]  # at most twelve names
    ax.set_yticks(some, subjects[some])
    ax.set(xlabel=f"{coverage.shape[1]} regions", xticks=[])
    ax.tick_params(length=0)
    ax.figure.colorbar(drawn, ax=ax, label="coverage", format="{x:.0%}", aspect=15, pad=0.03)


def plot_faults(table):
    """Draw how many trials of each class of faults were survived, and how many broke a promise."""
    figure, ax = column_figure(1.3 + 0.36 * len(table), "Trials of the fault campaign")
    ax.barh(range(len(table)), table.survived, height=0.5, color=BLUE, label="survived")
    broke = {"color": ORANGE, "hatch": "//", "label": "broke a promise"}
    ax.barh(range(len(table)), table.violations, left=table.survived, height=0.5, **broke)
    words = [f"{row.Index}: {row.survived:,} of {row.trials:,}" for row in table.itertuples()]
    for row, text in enumerate(words):
        ax.text(0, row - 0.3, text, ha="left", va="bottom")
    rows_from_the_top(ax, len(table))
    ax.set(xlabel="trials", xlim=(0, 1.02 * table.trials.max()))
    whole_numbers(ax.xaxis)
    figure.legend(loc="outside lower left", frameon=False, ncols=2)
    figure.set_label(
        "Trials of each class of faults: those after which every promise held, and those that "
        f"broke one.\n\nBar chart of {len(table)} classes, trials survived of all: "
        f"{'; '.join(words)}."
    )
    return figure


KINDS_OF_WORK = {
    "done": {"fc": BLUE, "ec": "white"},
    "begun, and lost": {"fc": "white", "ec": ORANGE, "hatch": "xxxx"},
    "done again": {"fc": ORANGE, "ec": "white", "hatch": "//"},
}


def plot_work(table, lost):
    """Draw which worker did which image, and when, from a study and `lose_a_worker`."""
    table = table.assign(number=range(1, len(table) + 1)).sort_values("started")
    pids = dict.fromkeys([lost["pid"], *table.pid])
    lanes = {pid: lane for lane, pid in enumerate(pids, start=1)}
    zero, end = table.started.min(), (table.started + table.seconds).max()
    figure, ax = column_figure(1.7 + 0.6 * len(lanes), "A worker is lost (×)")
    ax.set(xlabel="seconds", xlim=(0, end - zero), ylim=(len(lanes) + 0.5, 0.4))
    ax.plot(lost["time"] - zero, 1, "x", color=ORANGE, ms=10, mew=3, zorder=3)
    done, bars = {pid: [] for pid in lanes}, {lane: [] for lane in lanes.values()}
    for row in table.itertuples():
        begun = lost["begun"].get(Path(row.image).name.partition("_")[0])
        repeated = begun is not None and row.started > lost["time"]
        skipped = row.status == "skipped"  # its file was complete when the worker was lost
        if repeated:
            kind = "done" if skipped else "begun, and lost"
            bars[1].append((kind, row.number, begun, lost["time"] - begun))
        if skipped:
            done[lost["pid"]].append(f"{row.number}")
            continue
        kind = "done again" if repeated else "done"
        bars[lanes[row.pid]].append((kind, row.number, row.started, row.seconds))
        done[row.pid].append(f"{row.number}{' for the second time' * repeated}")
    for lane, own in bars.items():
        _draw_work(ax, lane, own, zero)
    ax.set_yticks([*lanes.values()], [f"worker {lane}" for lane in lanes.values()])
    ax.tick_params(axis="y", length=0)
    hide_frame(ax, "left")
    patches = [Patch(label=kind, **style) for kind, style in KINDS_OF_WORK.items()]
    figure.legend(loc="outside lower left", frameon=False, handles=patches, ncols=2)
    each = [f"worker {lanes[pid]} did {', '.join(own) or 'none'}" for pid, own in done.items()]
    figure.set_label(
        "Which worker processed which image, and when. Worker 1 was killed at the cross; worker 3, "
        "if there is one, replaced it.\n\n"
        f"Bar chart over {end - zero:.1f} seconds, with {len(lanes)} workers and {len(table)} "
        f"images. Worker 1 was killed after {lost['time'] - zero:.1f} seconds. {'; '.join(each)}."
    )
    return figure


def _draw_work(ax, lane, bars, zero):
    """Draw the bars of a worker's images, with their numbers, moved where two would overlap."""
    middles = {}
    for kind, number, start, seconds in sorted(bars, key=lambda bar: bar[2]):
        ax.barh(lane, seconds, left=start - zero, height=0.5, **KINDS_OF_WORK[kind])
        middles[number] = start - zero + seconds / 2
    end = ax.get_xlim()[1]
    places = spread([*middles.values()], 0.065 * end, 0, end) if bars else []
    for number, place in zip(middles, places, strict=True):
        ax.text(place, lane - 0.27, number, ha="center", va="bottom")
