"""
How close to the limit
======================

How fast can voxels be extracted from an image's file? No faster than the file can be
:term:`decompressed <decompression>`: this time is the limit. On this page you will compare the
methods, nilearn's maskers and other programs with the limit, and see how time and memory grow with
the length of the image, the number of masks or regions and the size of a :term:`block`: first at
the size of this build, then at full size, as recorded on one machine.

These times differ from those of the other pages, where each call is timed in a fresh process. Here
all imports are done and all workers started before the clock starts.
"""

# %%
# This build
# ----------
# The sizes are small, so that a build does not take long, and the image is always made of the
# default data. Calls this short are noisy, because whatever else the machine does can take as long
# as the call: use this table to see that everything runs, and compare methods at full size, below.
#
# ``ratio`` is the time divided by the limit, which is timed right before each call: the median of
# several runs, and from the smallest to the largest. Most methods with workers are left out: at
# this size they mostly wait for tasks. For "uncompressed", the limit is the time to read the file.

import json
import subprocess
import sys
from pathlib import Path

from beyond_the_masker.experiments.benchmark import SMALL, print_ratios, read_benchmark
from beyond_the_masker.options import read_options

measured = Path(read_options().measured)
command = [sys.executable, "-m", "beyond_the_masker", "benchmark", str(measured)]
subprocess.run(command, check=True)
times, memory = read_benchmark(measured)
about = json.loads((measured / "benchmark.json").read_text())["benchmark"]
small = f"{SMALL['volumes']} volumes, {SMALL['regions']} masks"
print(f"{small}, each timed {about['n_repeats']} times:\n")
print_ratios(times, memory)

# %%
# The ratios as dots, with lines from the smallest to the largest:

import matplotlib.pyplot as plt

from beyond_the_masker.experiments.benchmark_figures import plot_growth, plot_ratios

plot_ratios(times, f"Time and the limit, {small}")
plt.show()

# %%
# How time and memory grow. Memory is the peak of :term:`memory in use` during the call, minus what
# was in use before it; it includes the output. These are measurements of their own, so the numbers
# differ from those of the table.

plot_growth(times, "How time grows, small sizes", SMALL)
if memory:
    plot_growth(memory, "How memory grows, small sizes", SMALL, about["metric"])
plt.show()

# %%
# Averages over regions
# ---------------------
# The regions are those of synthetic label images, of overlapping maps as in DiFuMo, and of spheres.
# "Cleaned" series are detrended, high-pass filtered and standardised, and their confounds are
# removed; "smoothed" ones come from smoothed volumes. The last two rows extract voxels instead of
# averages: the same voxels with a list of NiftiMaskers, and with ``stream_masks``. The row with
# several atlases and masks reads the file once for all of them.
#
# Other programs average regions too. They are timed only if their averages agree with those of
# streaming to five digits. Programs that take one mask at a time read the file again for each.

from beyond_the_masker.experiments.benchmark import print_peers

print_ratios(times, memory, "regions")
print("\nOther programs:")
print_peers(about)

# %%
# If a method has rows for several numbers of regions, the figure shows the largest.

plot_ratios(times, f"Regions and the limit, {SMALL['volumes']} volumes", "regions")
plt.show()

# %%
# To download: |download benchmark.csv|, |download benchmark_memory.csv|, |download benchmark.json|.
#
# Full size
# ---------
# ``make benchmark`` in the repository measures the methods on a longer image, and streaming on
# images of several lengths, and writes the results into ``doc/recorded``. The figures of growth are
# again measurements of their own. With workers, memory varies more between runs than time does,
# because chance decides how many of them reach their peak at the same moment.
# The averages are computed from a larger image, on MNI152's grid of 2 mm, and in one row from more
# volumes, as its name shows; the rows that extract voxels use the image and the masks of
# :ref:`the published scale <sphx_glr_auto_examples_3_cost_plot_published_scale.py>`.

from beyond_the_masker.experiments.benchmark import FULL
from beyond_the_masker.experiments.pages import recorded_folder
from beyond_the_masker.predict.model import METHODS

recorded = recorded_folder()
exists = (recorded / "benchmark.json").exists()
if exists:
    about = json.loads((recorded / "benchmark.json").read_text())["benchmark"]
    print(f"Recorded on {about['date']}: {about['system']}, {about['cores']} cores,")
    print(f"{about['memory_gib']:.0f} GiB, Python {about['python']},")
    print(
        *(f"{name} {about[name]}" for name in ("nilearn", "nibabel", "isal")), sep=", ", end=";\n"
    )
    print(f"each timed {about['n_repeats']} times. Memory: {about['metric']}, of all processes.\n")
    full = f"{about['shape'][3]} volumes, {FULL['regions']} masks"
    print(f"{full}:\n")
    times, memory = read_benchmark(recorded)
    print_ratios(times, memory)
    missing = set(METHODS) - {name for question, name, _ in times if question == "methods"}
    print(*(f"Not recorded: {name}" for name in sorted(missing)), sep="\n")
else:
    print("Nothing was recorded in doc/recorded: run 'make benchmark'.")

# %%
# The ratios as dots, and how time and memory grow:

if exists:
    plot_ratios(times, f"Time and the limit, {full}")
    plot_growth(times, "How time grows, full sizes", FULL)
    plot_growth(memory, "How memory grows, full sizes", FULL, about["metric"])
    plt.show()

# %%
# Averages over regions:

if exists and "averaged" in about:
    *grid, n_volumes = about["averaged"]
    print(f"{n_volumes} volumes of {' x '.join(map(str, grid))}:\n")
    print_ratios(times, memory, "regions")
    print("\nOther programs:")
    print_peers(about)
elif exists:
    print("This recording has no averages over regions: run 'make benchmark'.")

# %%
# As dots:

if exists and "averaged" in about:
    plot_ratios(times, f"Regions and the limit, {n_volumes} volumes", "regions")
    plt.show()

# %%
# To download: :download:`benchmark.csv </recorded/benchmark.csv>`,
# :download:`benchmark_memory.csv </recorded/benchmark_memory.csv>`,
# :download:`benchmark.json </recorded/benchmark.json>`.
#
# What to conclude
# ----------------
# How streaming compares with the limit, and how it grows:

from beyond_the_masker.experiments.benchmark import print_conclusions

print(f"Recorded on {about['date']}:" if exists else "This build:")
print_conclusions(times, memory)

# %%
# Every method must decompress the file, but once is enough: not once for each worker. Threads share
# the work on one array, but only one of them reads the file. A larger block needs more memory
# without necessarily saving time: whatever its size, each volume's voxels are extracted while the
# volume is in the processor's cache. Averaging adds each labelled voxel once, so its time depends
# on these voxels more than on the number of regions; cleaning takes longer with more regions.
#
# If you read a file often, keep it uncompressed: the limit is then the disk.
#
# Recommended next
# ----------------
# * :mod:`beyond_the_masker.experiments.benchmark`: how to time the methods on your machine.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_region_averages.py`: averages of regions, from the
#   idea to the correlations.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: all masks in one pass, as a
#   function to copy.
