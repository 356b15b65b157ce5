"""
Will it fit? Prediction against measurement
===========================================

The header of an image is enough to predict how much memory a method will need, before anything is
loaded: the prediction counts copies. NiftiMasker, for example, copies the whole image before it
indexes it, so each :term:`worker` holds the image twice.

On this page you will predict the :term:`peak` of one method and of all methods, see the parts that
each peak consists of, and compare the predictions with measurements. For your own image, use
:ref:`the calculator <calculator>` in the browser, or the command line:

.. code-block:: bash

    python -m beyond_the_masker budget image.nii.gz masks/*.nii.gz --jobs 20 --memory 16G
"""

# %%
# One method
# ----------
# ``predict_peak`` reads the header and counts the voxels of the masks. The prediction is a range,
# because chance decides how many workers are at their own peak at the same moment: the lower end
# is for one of them, the upper end for all. The likely peak lies in between, so for two workers it
# can count less than twice the memory of one.

from beyond_the_masker.predict.budget import predict_peak
from beyond_the_masker.experiments.experiment import complete_summary, prepare_all
from beyond_the_masker.predict.model import REASONS

fmri_path, mask_paths, *_ = prepare_all()
prediction = predict_peak("NiftiMasker, path, parallel", fmri_path, mask_paths, n_jobs=2)
print(f"{prediction.low_mib:,.0f} to {prediction.most_mib:,.0f} MiB with two workers")
print(f"{prediction.peak_mib:,.0f} MiB are likely, reached while {prediction.moment}:")
for part in prediction.parts:
    print(f"{part.mib:10,.0f} MiB  {part.holder}: {REASONS[part.reason][0]}")

# %%
# All methods
# -----------
# ``print_budget`` compares every method with the free memory, and with the space in ``/dev/shm``,
# whose files occupy the same memory. All numbers are :term:`memory in use`. A build runs a method
# only if the upper end of its range fits; otherwise it shows the prediction. With ``--explain``,
# the command ``budget`` also prints the parts, and the reason for each.

from beyond_the_masker.predict.budget import print_budget

budget_rows = print_budget(fmri_path, mask_paths)

# %%
# Each bar below is a likely peak, made of its parts; the thin line is the range. The dot is the
# peak measured in this build; with workers, the median of several runs.

import matplotlib.pyplot as plt

from beyond_the_masker.experiments.prediction_figures import plot_parts, plot_points

summary = complete_summary()
measured = {
    f"{row['method']}, {row['mode']}": float(row["peak_mib"])
    for row in summary
    if row["status"] == "measured"
}
plot_parts([row.prediction for row in budget_rows], measured)
plt.show()

# %%
# This build's measurements
# -------------------------
# Now compare predicted with measured peaks. The budget above starts from what an interpreter with
# the imports usually takes; here each prediction starts from the memory measured before the call.
# So a method's prediction can differ by a few MiB between the two tables.

from beyond_the_masker.experiments.comparison import compare_summary, count_of, is_outside, table_of
from beyond_the_masker.predict.headers import count_all, read_header
from beyond_the_masker.predict.imports import this_machine

image = read_header(fmri_path)
points = compare_summary(summary, image, count_all(mask_paths, image.shape[:3]), this_machine())
plot_points(points, "This build")
plt.show()
print(table_of(points))
print(count_of(points))
ratios = [point["predicted_mib"] / point["measured_mib"] for point in points]
print(f"likely peak / measured peak: {min(ratios):.2f} to {max(ratios):.2f}")

# %%
# A peak is marked as outside if it is farther from its range than the line below the table allows.
# The machine may have been so busy that the method did not run as usual, or a library may now make
# more or fewer copies: ``make check-model`` in the repository tells these apart. It measures
# several times, and fails if a median is outside. With workers the ranges are wide, so the ratio of
# the two peaks is the stricter test.
#
# The whole grid
# --------------
# ``make record`` has measured images of several lengths, float32 and int16, compressed and not, and
# also integers with scale factors, each with few and with more workers. The predictions are those
# of this build's model, with the memory of imports as on the machine that measured. The table lists
# only the points that are outside:

from beyond_the_masker.experiments.comparison import distances, read_grid
from beyond_the_masker.experiments.pages import recorded_folder

recorded = recorded_folder()
grid, about = read_grid(recorded) if (recorded / "prediction.csv").exists() else ([], {})
if grid:
    print(f"Recorded on {about['date']}: {about['system']}, {about['cores']} cores,")
    print(f"{about['memory_gib']:.0f} GiB, Python {about['python']},")
    print(", ".join(f"{name} {about[name]}" for name in ("nilearn", "nibabel", "numpy", "joblib")))
    outside = [point for point in grid if is_outside(point)]
    print(table_of(outside) if outside else "No measured peak is outside.")
    print(count_of(grid))
    plot_points(grid, "The whole grid")
    plt.show()
else:
    print("There is no recorded grid in doc/recorded: run 'make record'.")

# %%
# Each point was measured once. So the recording does not show why a single one is outside: the
# machine may have been busy, or there was a copy that the model does not count. A fault of the
# model would put many points of a method outside, and move its median. Here is how far the likely
# peak is above (+) or below (-) the measured one: the median over the grid, and the range.

print(distances(grid))

# %%
# To download: :download:`prediction.csv </recorded/prediction.csv>`,
# :download:`prediction.json </recorded/prediction.json>`.
#
# What to conclude
# ----------------
# A method's memory follows from the copies that it makes, and you can count them. With workers that
# copy the image, a single measurement can be far from the likely peak, in either direction. If you
# must not disturb other programs on the machine, plan for the upper end of the range.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_3_cost_plot_published_scale.py`: the same at ten subjects and
#   twenty regions.
# * :ref:`The calculator <calculator>`: what each method would need for your own image.
