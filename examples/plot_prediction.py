"""
Will it fit? Prediction against measurement
===========================================

How much memory a method needs can be told from the header of the image alone, before
anything is loaded. On this page you will

1. see the budget for the image of this build: what each method needs, and whether it fits,
2. see of which parts each :term:`peak` consists, beside what was measured, and
3. see the model held against measurements: in this build, and over a whole grid of images,
   types and numbers of workers.

For your own image, use :doc:`memory_budget.py </auto_examples/memory_budget>` on the command
line, or :ref:`the calculator <calculator>` in the browser.
"""

# %%
# The budget of this build
# ------------------------
# Only headers are read. The likely peak is what the machine will probably show, as a range where
# parts of a mapped file may be in memory or not; the most is what cannot be avoided if all
# workers are at their peak at the same moment. Before a build runs a method, it holds the most
# against the memory that is available, and does not run what may not fit. A file that is only
# mapped does not count in the most, because the kernel can drop it: so the likely peak may be
# above it.

if __name__ == "__main__":
    from measured_methods import complete_summary, prepare_all
    from memory_budget import budget

    fmri_path, mask_paths, *_ = prepare_all()
    budget_rows = budget(fmri_path, mask_paths)

# %%
# Of which parts
# --------------
# A bar is a method's likely peak, put together from its parts; the dot is what the meter
# found. The reasons for each part are printed by ``memory_budget.py --explain``.

import csv
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

HOLDERS = {  # in the order in which they are stacked: colour, hatch, name
    "imports": ("#707070", "", "interpreters and imports"),
    "caller": ("#0072b2", "xxxx", "the calling process"),
    "worker": ("#d55e00", "///", "workers"),
    "block": ("#009e73", "+++", "shared memory"),
    "file": ("#aa4499", "\\\\\\", "mapped file"),
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
                part.pss_mib
                for part in prediction.parts
                if ("imports" if part.reason == "imports" else part.holder) == holder
            )
            style = {"height": 0.4, "color": color, "hatch": hatch, "edgecolor": "white", "lw": 0}
            ax.barh(i, mib, left=left, label=name if i == 0 else None, **style)
            left += mib
        if known is not None:
            ax.plot(known, i, "o", ms=6, mfc="white", mec="black")
        label = ax.text(0, i - 0.25, prediction.method, va="bottom")
        label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 0.5})
        found = "not measured" if known is None else f"measured {known:,.0f} MiB"
        bars.append(f"{prediction.method}: predicted {left:,.0f} MiB, {found}")
    ax.plot([], [], "o", ms=6, mfc="white", mec="black", label="measured")
    ax.set(xlabel="MiB (PSS)", yticks=[], ylim=(len(predictions) - 0.5, -0.8), xlim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower left", frameon=False, handlelength=2.5, handleheight=1.2)
    figure.suptitle("Predicted peaks and their parts", fontsize=12)
    figure.set_label(
        "Each method's likely peak, put together from its parts. The dot is what was measured.\n\n"
        f"Stacked bar chart of {len(predictions)} methods. {'; '.join(bars)}."
    )
    return figure


if __name__ == "__main__":
    summary = complete_summary()
    measured = {
        f"{row['method']}, {row['mode']}": float(row["peak_pss_mib"])
        for row in summary
        if row["status"] == "measured"
    }
    plot_parts([row.prediction for row in budget_rows], measured)
    plt.show()

# %%
# Held against measurements
# -------------------------
# A prediction may be off by 15 %, or by 40 MiB where that is more. Without workers, there is
# one number to be off from. With workers, it is chance how many of them are at their peak at
# once: they begin one after the other, and a busy machine lets them wait. And what they look
# at in a mapped file is in memory for some milliseconds only. So the prediction is a range, drawn
# as a line: from one worker at its peak to all of them, from nothing looked at to everything.
#
# What the calling process has before the call is taken from the measurement itself here, because
# it depends on what else runs; the bars above have the value that the build measured once.
#
# If a method is off by more on the default data, it is measured twice again; if the median is
# off, too, this page stops the build. So a new version of nilearn or joblib that makes another
# copy is noticed. The sum of RSS is predicted, too, and not held against measurements: it counts
# what workers share once for each, so that chance weighs still more.

TOLERANCE = 0.15, 40  # a part of what was measured; MiB


def tolerance(measured_mib):
    """Tell by how much a prediction may be off, in MiB."""
    return max(TOLERANCE[0] * measured_mib, TOLERANCE[1])


def read_grid(folder):
    """Read what `prediction_grid` has measured, and predict the same.

    Parameters
    ----------
    folder : str or pathlib.Path

    Returns
    -------
    list of dict
        For each measurement ``method``, ``image`` in words, ``n_jobs``, ``point``, the point of
        the grid, and of PSS ``measured_mib`` and what `predicted` gives.
    dict
        The machine on which it was measured.
    """
    from memory_model import Image
    from prediction_grid import Point

    about = json.loads((Path(folder) / "prediction.json").read_text())["prediction"]
    with open(Path(folder) / "prediction.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    points = []
    for row in rows:
        image = Image(
            shape=tuple(int(n) for n in row["shape"].split()),
            dtype="float32" if row["kind"] == "float32" else "int16",
            compressed=row["ending"].endswith(".gz"),
            slope=row["slope"] == "True",
            inter=row["inter"] == "True",
        )
        masks = [int(n) for n in row["mask_voxels"].split()]
        n_jobs = max(int(row["n_jobs"]), 1)
        machine = with_caller(about["imports"], row)
        points.append(
            {
                "method": row["method"],
                "image": f"{row['kind']}{row['ending']}, {row['n_images']} in one",
                "point": Point(
                    int(row["n_images"]), row["kind"], row["ending"], int(row["n_jobs"])
                ),
                "n_jobs": n_jobs,
                "measured_mib": float(row["peak_pss_mib"]),
                **predicted(row["method"], image, masks, n_jobs, machine),
            }
        )
    return points, about


def predicted(method, image, masks, n_jobs, machine):
    """Predict the likely peak, and from where to where it may be.

    Parameters
    ----------
    method, image, masks, n_jobs, machine
        As for `memory_model.predict`.

    Returns
    -------
    dict
        In MiB of PSS ``predicted_mib``, the likely peak; ``low_mib``, if one worker is at its
        peak at a time and nothing is looked at in mapped files; ``high_mib``, if all are.
    """
    from memory_model import predict

    likely, alone, together = (
        predict(method, image, masks, n_jobs, machine, overlap) for overlap in (None, 0, 1)
    )
    return {
        "predicted_mib": likely.peak_pss_mib,
        "low_mib": alone.least_pss_mib,
        "high_mib": together.peak_pss_mib,
    }


def with_caller(machine, row):
    """Take what the calling process had before the call from the measurement itself.

    How much of it is shared with other programs, and so how much PSS counts, depends on what
    else runs on the machine.
    """
    return machine | {"caller": [float(row["before_mib"]), machine["caller"][1]]}


def off(point):
    """Tell how far a point is outside its range: 1 is what it may be, 0 is within."""
    measured = point["measured_mib"]
    nearest = min(max(measured, point["low_mib"]), point["high_mib"])
    return (nearest - measured) / tolerance(measured)


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
    faces = dict(zip(series, ("white", None), strict=False))  # open, filled
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
        axis.set_label_text(f"{name} peak PSS, MiB")
    plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    figure.legend(loc="outside lower left", frameon=False)
    figure.suptitle(title, fontsize=12)
    both = [point for points in series.values() for point in points]
    inside = sum(abs(off(point)) <= 1 for point in both)
    ratios = [point["predicted_mib"] / point["measured_mib"] for point in both]
    peaks = [point["measured_mib"] for point in both]
    figure.set_label(
        f"{title}: predicted against measured peaks. The line of a point is the range of its "
        "prediction; the grey band is what a prediction may be off.\n\n"
        f"Scatter plot of {len(both)} points on logarithmic axes, from "
        f"{min(peaks):,.0f} to {max(peaks):,.0f} MiB measured. {inside} of them are "
        f"within the tolerance; the likely peak is {min(ratios):.2f} to "
        f"{max(ratios):.2f} times what was measured, {np.median(ratios):.2f} times in the middle."
    )
    return figure


KEYS = "measured_mib", "predicted_mib"
RANGE = "low_mib", "high_mib"


def say_off(points):
    """Say which points are off by more than the tolerance, and how many are not."""
    lines = [
        f"{point['method']}, {point['image']}, {point['n_jobs']} workers: predicted "
        f"{point['low_mib']:,.0f} to {point['high_mib']:,.0f} MiB, "
        f"measured {point['measured_mib']:,.0f} MiB"
        for point in points
        if abs(off(point)) > 1
    ]
    likely = sum(
        abs(p["predicted_mib"] - p["measured_mib"]) <= tolerance(p["measured_mib"]) for p in points
    )
    lines.append(f"{len(points) - len(lines)} of {len(points)} within the tolerance of the range")
    lines.append(f"{likely} of {len(points)} within the tolerance of the likely peak")
    return "\n".join(lines)


# %%
# This build's own image, and a few points of the grid:

if __name__ == "__main__":
    import subprocess
    import sys

    from memory_budget import count_all, read_header, this_machine
    from options import read_options
    from peak_memory import HAS_PSS
    from whole_experiment import METHODS

    options = read_options()
    subprocess.run([sys.executable, "prediction_grid.py", options.measured], check=True)
    few, _ = read_grid(options.measured)
    image = read_header(fmri_path)
    masks = count_all(mask_paths, image.shape[:3])
    own = [
        {
            "method": f"{row['method']}, {row['mode']}",
            "image": fmri_path.name,
            "n_jobs": int(row["n_jobs"]),
            "measured_mib": float(row["peak_pss_mib"]),
            **predicted(
                *(f"{row['method']}, {row['mode']}", image, masks, len(masks)),
                with_caller(this_machine(), row),
            ),
        }
        for row in summary
        if row["status"] == "measured"
    ]
    plot_points({"this image": own, "points of the grid": few}, "This build")
    plt.show()
    print(say_off(own + few))

# %%
# What is off the range is measured again:

if __name__ == "__main__":
    import functools
    import statistics

    from peak_memory import measure
    from prediction_grid import measure_again
    from whole_experiment import run, title

    def again(point):
        """Measure a point's method twice more."""
        if "point" in point:
            return measure_again(point["method"], point["point"])
        method = next(method for method in METHODS if title(method) == point["method"])
        call = functools.partial(run, method, fmri_path, mask_paths)
        return [measure(call).peak_pss_mib for _ in range(2)]

    still = []
    for point in own + few:
        if abs(off(point)) > 1:
            three = [point["measured_mib"], *again(point)]
            point["measured_mib"] = statistics.median(three)
            still += [point] if abs(off(point)) > 1 else []
    print(say_off(still) if still else "Nothing is off.")
    if still and not options.fmri and HAS_PSS:
        raise RuntimeError(
            "The model is off by more than its tolerance. If a library makes copies that it did "
            "not make before, or makes fewer, memory_model.py must be told.\n" + say_off(still)
        )

# %%
# .. measured-download:: prediction.csv prediction.json
#
# The whole grid
# --------------
# One, two, four and eight subjects in one image, float32 and int16, compressed and not, with one,
# two and six workers, as ``make record`` measured it. The predictions are those of this build's
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
        print(say_off(grid))
    else:
        print("Nothing was recorded in doc/recorded: run 'make record'.")

# %%

if __name__ == "__main__" and grid:
    plot_points({f"recorded {about['date']}": grid}, "The whole grid")
    plt.show()

# %%
# How far off each method is, as a part of the measured peak:

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
# What a method needs follows from the copies that it makes, and these can be counted. What
# cannot be counted is chance: when workers begin one after the other, it depends on the
# machine how many are at their peak at once. So rely on the most, not on the likely peak, if
# what else runs on the machine must not be harmed, and leave some room: at a point of the recorded
# grid, even the upper end of the range was exceeded. And of a mapped file, what is in memory
# depends on where the regions lie, and on how long the workers look; the most leaves it out.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_published_scale.py`: the same at ten subjects and twenty
#   regions.
# * :ref:`sphx_glr_auto_examples_memory_budget.py`: what each method would need for your own image.
