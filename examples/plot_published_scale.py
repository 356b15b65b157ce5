"""
At the scale of the published figure
====================================

The figure that made this experiment known has ten subjects in one image, twenty regions and
twenty workers, and shows a peak of about 110 GB. On this page you will

1. see these published numbers beside what the model predicts for the methods of this site,
2. see beside them what was measured, on a machine of known size, for the methods that fit, and
3. see what :term:`streaming` needs for the same result.
"""

# %%
# What was published
# ------------------
# The numbers are read off a figure: memory over time of a script in a draft chapter for
# nilearn's user guide, of 2025. (`#5113 <https://github.com/nilearn/nilearn/pull/5113>`_,
# from which nilearn's example came, also has one of ten images and twenty regions.) They
# are approximate, and they are sums of :term:`RSS`. Its methods are those of this site,
# with three differences that weigh: the calling process has the image in memory all the
# time, also while workers read it from a path; the workers of one method are alive while
# the next one runs; and the array over shared memory is handed to joblib, which copies it.
# How much of a peak is due to which, a figure does not tell. It is labelled in GB (110 GB
# are 102 GiB); from here on, everything is in GiB.

PUBLISHED_GB = {  # of 10 ** 9 bytes
    "NiftiMasker, path, parallel": 110,
    "NiftiMasker, in-memory image, parallel": 41,
    "NumPy indexing, path, parallel": 62,
    "NumPy indexing, shared memory, parallel": 6,
}

# %%
# Predicted, and measured
# -----------------------
# ``make record`` runs the experiment at this scale. A method that may not fit into the machine's
# memory is not run; what stands for it is the prediction, and it is marked as such.

import csv
import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Patch

GIB = 2**30


def read_scale(folder):
    """Read what was recorded, and predict the same.

    Parameters
    ----------
    folder : str or pathlib.Path
        With ``summary.csv`` and ``experiment.json``.

    Returns
    -------
    list of dict
        For each method of all masks: ``method``, ``published_gib`` (RSS; None if it was not
        published), ``rss_gib``, ``pss_gib``, as predicted, and ``measured_rss_gib`` and
        ``measured_pss_gib`` (None if it was not run).
    dict
        The image, the machine and the date.
    """
    from memory_budget import this_machine
    from memory_model import Image, predict

    folder = Path(folder)
    about = json.loads((folder / "experiment.json").read_text())
    image = Image(tuple(about["image"]["shape"]), about["image"]["stored_dtype"])
    masks = about["image"]["mask_voxels"]
    with open(folder / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = []
    for row in rows:
        if row["mode"] == "single":
            continue
        method = f"{row['method']}, {row['mode']}"
        prediction = predict(method, image, masks, len(masks), this_machine())
        known = row["status"] == "measured"
        published = PUBLISHED_GB.get(method)
        table.append(
            {
                "method": method,
                "published_gib": published and published * 1e9 / GIB,
                "rss_gib": prediction.peak_rss_mib / 1024,
                "pss_gib": prediction.peak_pss_mib / 1024,
                "measured_rss_gib": float(row["peak_rss_mib"]) / 1024 if known else None,
                "measured_pss_gib": float(row["peak_pss_mib"]) / 1024 if known else None,
            }
        )
    return table, about


def plot_scale(table):
    """Draw published, predicted and measured peaks, one below the other for each method.

    Parameters
    ----------
    table : list of dict
        As `read_scale` gives it.

    Returns
    -------
    matplotlib.figure.Figure
    """
    kinds = [
        ("published_gib", "published (RSS)", {"fc": "#707070", "ec": "#707070"}),
        ("rss_gib", "predicted (RSS)", {"fc": "white", "ec": "#0072b2", "hatch": "xxxx"}),
        ("measured_rss_gib", "measured (RSS)", {"fc": "#0072b2", "ec": "#0072b2"}),
        ("pss_gib", "predicted (PSS)", {"fc": "white", "ec": "#d55e00", "hatch": "xxxx"}),
        ("measured_pss_gib", "measured (PSS)", {"fc": "#d55e00", "ec": "#d55e00"}),
    ]
    figure = plt.figure(figsize=(4.2, 2.2 + 1.25 * len(table)), layout="constrained")
    ax = figure.gca()
    bars = []
    for i, row in enumerate(table):
        said = []
        for k, (key, name, style) in enumerate(kinds):
            y = i + (k - 1.5) * 0.155
            if row[key] is None:
                text = "not published" if key == "published_gib" else "not run"
                ax.text(0, y, f" {text}", va="center", color="0.3")
            else:
                text = f"{row[key]:.1f}"
                ax.barh(y, row[key], height=0.12, lw=0.7, **style)
                ax.text(row[key], y, f" {text}", va="center")
            said.append(f"{name} {text}")
        ax.text(0, i - 0.325, row["method"], va="bottom", weight="bold")
        bars.append(f"{row['method']}: {', '.join(said)}")
    right = max(row[key] or 0 for row in table for key, *_ in kinds)
    ax.set(xlabel="GiB", yticks=[], ylim=(len(table) - 0.4, -0.55), xlim=(0, right * 1.2))
    ax.spines[["top", "right", "left"]].set_visible(False)
    proxies = [Patch(label=name, lw=0.7, **style) for _, name, style in kinds]
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
        print(f"{'GiB':42}{'published':>10}{'RSS predicted':>15}{'measured':>10}", end="")
        print(f"{'PSS predicted':>15}{'measured':>10}")
        for row in table:
            numbers = [
                ("-" if key == "published_gib" else "not run")
                if row[key] is None
                else f"{row[key]:{'.2f' if 'pss' in key else '.1f'}}"
                for key in (
                    *("published_gib", "rss_gib", "measured_rss_gib"),
                    *("pss_gib", "measured_pss_gib"),
                )
            ]
            print("{:42}{:>10}{:>15}{:>10}{:>15}{:>10}".format(row["method"], *numbers))

# %%

if __name__ == "__main__" and table:
    plot_scale(table)
    plt.show()

# %%
# .. recorded-download:: published_scale/summary.csv published_scale/experiment.json
#
# What to conclude
# ----------------
# A worker of NiftiMasker from a path holds two copies of the image at its peak, and twenty
# workers hold forty. The published peaks of the methods that read from a path are higher than
# that by far, and nothing that was measured here explains them; those of the in-memory image and
# of shared memory are somewhat below the prediction, which counts what workers share once for
# each, and is above what was measured here, too. A closer comparison
# cannot be made: the published sums of RSS contain what other methods left behind, and the
# methods with the highest peaks do not fit into the machine that measured. What it does tell is
# that the way out is not a larger machine: one copy of the image, which all workers share, needs
# a fraction of that, and one pass over the file needs no copy at all.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_stream_masks.py`: the way out, as a function to copy.
# * :ref:`sphx_glr_auto_examples_memory_budget.py`: whether your own image fits, before anything is
#   loaded.
