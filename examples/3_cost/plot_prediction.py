"""
Will it fit? Prediction against measurement
===========================================

How much memory a method needs can be told from the header of the image alone, before
anything is loaded. On this page you will

1. see the budget for the image of this build: what each method needs, and whether it fits,
2. see of which parts each :term:`peak` consists, beside what was measured, and
3. compare the model with measurements: those of this build, and a whole grid of images, types and
   numbers of workers.

For your own image, use :mod:`beyond_the_masker.budget` on the command
line, or :ref:`the calculator <calculator>` in the browser.
"""

# %%
# The budget of this build
# ------------------------
# Only headers are read. What is predicted is :term:`memory in use`. The likely peak is for the
# number of workers that probably reach their own peak together; at most, all of them do. Before a
# build runs a method, it compares the most with the memory that is available, and predicts a
# method that might not fit instead of running it.

from beyond_the_masker.budget import print_budget
from beyond_the_masker.experiment import complete_summary, prepare_all

fmri_path, mask_paths, *_ = prepare_all()
budget_rows = print_budget(fmri_path, mask_paths)

# %%
# Of which parts
# --------------
# A bar is a method's likely peak, made of its parts, and the thin line its range, where it has
# workers. The dot is the measured peak, the median where there are several runs.
# ``memory_budget.py --explain`` prints the reason for each part.

from pathlib import Path

import matplotlib.pyplot as plt

from beyond_the_masker.prediction_figures import plot_parts, plot_points

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

# %%
# This build's own image:
from beyond_the_masker.headers import count_all, read_header
from beyond_the_masker.imports import this_machine
from beyond_the_masker.model_check import compare, count_of, is_off, read_grid, table_of
from beyond_the_masker.options import read_options

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

if grid:
    plot_points({f"recorded {about['date']}": grid}, "The whole grid")
    plt.show()

# %%
# How far the likely peak is from the measured one, for each method:

if grid:
    for method in dict.fromkeys(point["method"] for point in grid):
        ratios = [p["predicted_mib"] / p["measured_mib"] for p in grid if p["method"] == method]
        low, middle, high = np.quantile(ratios, [0, 0.5, 1]) - 1
        print(f"{method:42}{middle:+6.0%}  ({low:+.0%} to {high:+.0%}, {len(ratios)} points)")

# %%
# To download: :download:`prediction.csv </recorded/prediction.csv>`, :download:`prediction.json </recorded/prediction.json>`.
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
# * :ref:`sphx_glr_auto_examples_3_cost_plot_published_scale.py`: the same at ten subjects and twenty
#   regions.
# * :mod:`beyond_the_masker.budget`: what each method would need for your own image.
