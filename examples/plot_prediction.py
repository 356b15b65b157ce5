"""
Will it fit? Prediction against measurement
===========================================

How much memory a method needs can be told from the header of the image alone, before
anything is loaded. On this page you will

1. see the budget for the image of this build: what each method needs, and whether it fits,
2. see of which parts each :term:`peak` consists, beside what was measured, and
3. compare the model with measurements: those of this build, and a whole grid of images, types and
   numbers of workers.

For your own image, use :doc:`memory_budget.py </auto_examples/memory_budget>` on the command
line, or :ref:`the calculator <calculator>` in the browser.
"""

# %%
# The budget of this build
# ------------------------
# Only headers are read. What is predicted is :term:`memory in use`. The likely peak is for the
# number of workers that probably reach their own peak together; at most, all of them do. Before a
# build runs a method, it compares the most with the memory that is available, and predicts a
# method that might not fit instead of running it.

if __name__ == "__main__":
    from measured_methods import complete_summary, prepare_all
    from memory_budget import budget

    fmri_path, mask_paths, *_ = prepare_all()
    budget_rows = budget(fmri_path, mask_paths)

# %%
# Of which parts
# --------------
# A bar is a method's likely peak, made of its parts, and the thin line its range, where it has
# workers. The dot is the measured peak, the median where there are several runs.
# ``memory_budget.py --explain`` prints the reason for each part.

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib import patheffects
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

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


if __name__ == "__main__":
    summary = complete_summary()
    measured = {
        f"{row['method']}, {row['mode']}": float(row["peak_mib"])
        for row in summary
        if row["status"] == "measured"
    }
    plot_parts([row.prediction for row in budget_rows], measured)
    plt.show()

# %%
# Compared with measurements
# --------------------------
# Without workers, a prediction is one number. With workers, it is a range, drawn as a line: from
# one worker at its peak to all of them, because each reaches its own peak at another moment, and a
# busy machine makes them wait. What the calling process had before the call is taken from the
# measurement here, so a prediction can differ from the budget by a few MiB.

import numpy as np

from prediction_grid import compare, count_of, is_off, read_grid, table_of, tolerance


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
    from plot_memory_over_time import COLORS, MARKERS, color_of, marker_of

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


# %%
# This build's own image:

if __name__ == "__main__":
    from memory_budget import count_all, read_header, this_machine
    from options import read_options

    options = read_options()
    image = read_header(fmri_path)
    masks = count_all(mask_paths, image.shape[:3])
    own = []
    for row in summary:
        if row["status"] == "measured":
            named = row | {"method": f"{row['method']}, {row['mode']}"}
            point = compare(named, image, masks, len(masks), this_machine())
            own.append(point | {"image": "this image"})
    plot_points({"this image": own}, "This build")
    plt.show()
    print(table_of(own))

# %%
# A peak that is off can mean two things. Either the machine was so busy, or so short of memory,
# that the method did not run as usual: then it is not off in the next build. Or a library makes a
# copy that the model does not know, or no longer makes one. ``make check-model`` decides: it
# measures several times, and fails if a median is off.

# %%
# The whole grid
# --------------
# One, two and four subjects in one image, float32 and int16, compressed and not, with two
# and six workers, as ``make record`` measured it. The predictions are those of this build's
# model, with the imports of the machine that measured.

if __name__ == "__main__":
    recorded = Path(options.measured).parent / "recorded"
    grid, about = [], {}
    if (recorded / "prediction.json").exists():
        grid, about = read_grid(recorded)
        print(f"Recorded on {about['date']}: {about['system']}, {about['cores']} cores, ", end="")
        print(f"{about['memory_gib']:.0f} GiB, Python {about['python']},")
        print(*(f"{name} {about[name]}" for name in ("nilearn", "nibabel", "numpy", "joblib")))
        print()
        if any(map(is_off, grid)):
            print(table_of([point for point in grid if is_off(point)]).rpartition("\n")[0])
        print(count_of(grid))
    else:
        print("Nothing was recorded in doc/recorded: run 'make record'.")

# %%

if __name__ == "__main__" and grid:
    plot_points({f"recorded {about['date']}": grid}, "The whole grid")
    plt.show()

# %%
# How far the likely peak is from the measured one, for each method:

if __name__ == "__main__" and grid:
    for method in dict.fromkeys(point["method"] for point in grid):
        ratios = [p["predicted_mib"] / p["measured_mib"] for p in grid if p["method"] == method]
        low, middle, high = np.quantile(ratios, [0, 0.5, 1]) - 1
        print(f"{method:42}{middle:+6.0%}  ({low:+.0%} to {high:+.0%}, {len(ratios)} points)")

# %%
# .. recorded-download:: prediction.csv prediction.json
#
# What to conclude
# ----------------
# What a method needs follows from the copies that it makes, and these can be counted. With workers
# that copy the image, the likely peak can be far from a single measurement, in either direction,
# because chance decides how many workers are at their peak at once. If nothing else on the machine
# may suffer, rely on the upper end of the range.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_published_scale.py`: the same at ten subjects and twenty
#   regions.
# * :ref:`sphx_glr_auto_examples_memory_budget.py`: what each method would need for your own image.
