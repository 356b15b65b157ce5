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
# because chance decides how many workers are at their own peak at the same moment: the lower
# end is for one of them, the upper end for all. The likely peak is between them, so it can count
# less than twice as much for two workers as for one.

from beyond_the_masker.budget import predict_peak
from beyond_the_masker.experiment import complete_summary, prepare_all
from beyond_the_masker.model import REASONS

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
# whose files occupy the same memory. All numbers are :term:`memory in use`. A build runs a
# method only if its upper end fits; otherwise it shows the prediction. With ``--explain`` the
# command also prints the parts, and the reason for each.

from beyond_the_masker.budget import print_budget

budget_rows = print_budget(fmri_path, mask_paths)

# %%
# Each bar below is a likely peak, made of its parts; the thin line is the range. The dot is the
# measured peak of this build; with workers, the median of several runs.

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
# This build's measurements
# -------------------------
# Now predicted against measured peaks. The budget above starts from what an interpreter with the
# imports usually takes; here each prediction starts from the memory measured before the call. So
# the same method can differ by a few MiB between the two tables.

from beyond_the_masker.comparison import compare_summary, count_of, is_outside, table_of
from beyond_the_masker.headers import count_all, read_header
from beyond_the_masker.imports import this_machine

image = read_header(fmri_path)
points = compare_summary(summary, image, count_all(mask_paths, image.shape[:3]), this_machine())
plot_points(points, "This build")
plt.show()
print(table_of(points))
print(count_of(points))
ratios = [point["predicted_mib"] / point["measured_mib"] for point in points]
print(f"likely peak / measured peak: {min(ratios):.2f} to {max(ratios):.2f}")

# %%
# With workers the ranges are wide, so the ratio is the stricter test. A peak is outside its range
# if the machine was so busy that the method did not run as usual, or if a library now makes more
# or fewer copies. ``make check-model`` in the repository decides: it measures several times, and
# fails if a median is outside.
#
# The whole grid
# --------------
# ``make record`` measured one, two and four subjects in one image, float32 and int16, compressed
# and not, and also integers with scale factors, with two and six workers. The model is that of this
# build; the memory of imports is that of the machine that measured.

from pathlib import Path

from beyond_the_masker.comparison import distances, read_grid
from beyond_the_masker.options import read_options

recorded = Path(read_options().measured).parent / "recorded"
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
# The likely peak, compared with the measured one: the median over the grid, and the range. A method
# whose median is far from 0% is predicted too low (-) or too high (+). A single point that is far
# away was measured while the machine was busy, or had a copy that the model does not know: its run
# was not repeated, so the recording does not tell which.

print(distances(grid))

# %%
# To download: :download:`prediction.csv </recorded/prediction.csv>`,
# :download:`prediction.json </recorded/prediction.json>`.
#
# What to conclude
# ----------------
# A method's memory follows from the copies that it makes, and these can be counted. With workers
# that copy the image, a single measurement can be far from the likely peak, in either direction.
# If other programs on the machine must not be disturbed, plan for the upper end of the range.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_3_cost_plot_published_scale.py`: the same at ten subjects and
#   twenty regions.
# * :ref:`The calculator <calculator>`: what each method would need for your own image.
