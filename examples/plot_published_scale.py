"""
At the scale of the published figure
====================================

The figure that made this experiment known has ten subjects in one image, twenty regions and
twenty workers, and shows a peak of about 110 GB. On this page you will

1. compare these published numbers with measurements of the methods of this site, on a machine of
   known size, and with the model's predictions, also for the methods that do not fit there, and
2. see what :term:`streaming` needs for the same result.
"""

# %%
# What was published
# ------------------
# The numbers are read off a figure: memory over time of a script in a draft chapter for
# nilearn's user guide, of 2025. (`#5113 <https://github.com/nilearn/nilearn/pull/5113>`_,
# the source of nilearn's example, also has one of ten images and twenty regions.) They
# are approximate, and they are sums of :term:`RSS`. Its methods are those of this site, with three
# important differences: the calling process holds the image in memory all the time, also while
# workers read it from a path; the workers of one method are alive while the next one runs; and
# the array over shared memory is passed to joblib, which copies it. A figure does not show how
# much of a peak each of these explains. It is labelled in GB (110 GB are 102 GiB); from here on,
# all numbers are in GiB.

PUBLISHED_GB = {  # of 10 ** 9 bytes
    "NiftiMasker, path, parallel": 110,
    "NiftiMasker, in-memory image, parallel": 41,
    "NumPy indexing, path, parallel": 62,
    "NumPy indexing, shared memory, parallel": 6,
}

# %%
# Predicted and measured
# ----------------------
# ``make record`` runs the experiment at this scale. A method that might not fit into the machine's
# memory is not run. Memory in use is predicted and measured; the sum of RSS, which can be compared
# with the published numbers, is only measured. It counts memory that processes share once for each
# of them.

import csv
import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Patch

GIB = 2**30
KINDS = [  # key, name, style of the bar
    ("published_gib", "published (RSS)", {"fc": "#707070", "ec": "#707070"}),
    ("measured_rss_gib", "measured (RSS)", {"fc": "#0072b2", "ec": "#0072b2"}),
    ("predicted_gib", "predicted", {"fc": "white", "ec": "#d55e00", "hatch": "xxxx"}),
    ("measured_gib", "measured", {"fc": "#d55e00", "ec": "#d55e00"}),
]


def read_scale(folder):
    """Read what was recorded, and predict the same.

    Parameters
    ----------
    folder : str or pathlib.Path
        With ``summary.csv`` and ``experiment.json``.

    Returns
    -------
    list of dict
        For each method of all masks: ``method``, and in GiB ``published_gib`` and
        ``measured_rss_gib`` (sums of RSS), ``predicted_gib`` and ``measured_gib`` (memory in use).
        What is not known is None. ``missing`` says why there is no measurement.
    dict
        The image, the machine and the date.
    """
    from memory_budget import this_machine
    from memory_model import METHODS, Image, predict

    folder = Path(folder)
    about = json.loads((folder / "experiment.json").read_text())
    image = Image(tuple(about["image"]["shape"]), about["image"]["stored_dtype"])
    masks = about["image"]["mask_voxels"]
    with open(folder / "summary.csv", newline="") as file:
        recorded = {f"{row['method']}, {row['mode']}": row for row in csv.DictReader(file)}
    table = []
    for method, model in METHODS.items():
        if model.mode == "single":
            continue
        row = recorded.get(method, {})
        run, published = row.get("status") == "measured", PUBLISHED_GB.get(method)
        measured, rss = (row.get(name) if run else None for name in ("peak_mib", "peak_rss_mib"))
        prediction = predict(method, image, masks, len(masks), this_machine())
        table.append(
            {
                "method": method,
                "published_gib": published and published * 1e9 / GIB,
                "measured_rss_gib": float(rss) / 1024 if rss else None,
                "predicted_gib": prediction.peak_mib / 1024,
                "measured_gib": float(measured) / 1024 if measured else None,
                "missing": "not recorded" if run or not row else "not run",
            }
        )
    return table, about


def in_gib(row, key):
    """Write a number of a row of `read_scale`, or why there is none."""
    if row[key] is None:
        return "not published" if key == "published_gib" else row["missing"]
    return f"{row[key]:.3g}"


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


if __name__ == "__main__":
    from options import read_options

    recorded = Path(read_options().measured).parent / "recorded" / "published_scale"
    table, about = read_scale(recorded) if (recorded / "summary.csv").exists() else ([], {})
    if not table:
        print("Nothing was recorded in doc/recorded: run 'make record'.")
    else:
        machine, shape = about["machine"], " x ".join(map(str, about["image"]["shape"]))
        print(f"Image {shape}, {about['image']['dtype']}, ", end="")
        print(f"{about['image']['in_memory_mib']:,.0f} MiB; {about['image']['n_masks']} masks.")
        print(
            f"Recorded on {about['date']}: {machine['system']}, {machine['cores']} cores, ", end=""
        )
        print(f"{machine['memory_gib']:.0f} GiB.\n")
        print(f"{'':40}{'sum of RSS':>28}{'memory in use':>28}")
        print(f"{'GiB':40}", *(f"{name.split()[0]:>13}" for _, name, _ in KINDS))
        for row in table:
            print(f"{row['method']:40}", *(f"{in_gib(row, key):>13}" for key, *_ in KINDS))

# %%

if __name__ == "__main__" and table:
    plot_scale(table)
    plt.show()

# %%
# .. recorded-download:: published_scale/summary.csv published_scale/experiment.json
#
# What to conclude
# ----------------
# A worker of NiftiMasker from a path holds two copies of the image at its peak, so twenty workers
# can hold forty. The published peaks cannot be compared more closely with those of this site: they
# are sums of RSS and contain what other methods left behind, and the methods with the highest
# published peaks do not fit into the machine that recorded this. But you do not need a larger
# machine: shared memory holds one copy of the image for all workers, and one pass over the file
# needs no copy at all.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_stream_masks.py`: one pass, as a function to copy.
# * :ref:`sphx_glr_auto_examples_memory_budget.py`: whether your own image fits, before anything is
#   loaded.
