"""
How close to the limit
======================

How fast can voxels be taken out of an image's file? Not faster than the file can be
:term:`decompressed <decompression>`. On this page you will

1. see the time of every method beside that limit, and beside nilearn's other ways,
2. see how time and memory grow with the length of the image, with the number of masks, with
   the size of a :term:`block`, and with the number of workers, and
3. find the same at full size, as it was recorded on one machine.

:doc:`/auto_examples/benchmark` says what is measured, and how. Each method is a dot: the
median of five runs, each divided by the limit that was timed right before it; the line goes
from the smallest to the largest.
"""

# %%
# This build
# ----------
# The sizes are small here, so that a build does not take long, and always of the default
# data. Whatever takes a fixed time, such as to open 64 masks, weighs more than with a large
# image. In the lines that say "uncompressed" the limit is to read the file.

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from benchmark import SMALL, read_benchmark
from benchmark import plot_growth, plot_memory_growth, plot_ratios, print_ratios
from options import read_options

if __name__ == "__main__":
    measured = Path(read_options().measured)
    subprocess.run([sys.executable, "benchmark.py", str(measured)], check=True)
    times, memory = read_benchmark(measured)
    print_ratios(times, memory)

# %%

if __name__ == "__main__":
    plot_ratios(times, f"Time beside the limit, {SMALL['volumes']} volumes")
    plt.show()

# %%
# How time grows, and memory: the peak PSS above the level before the call, in which the output
# is a part.

if __name__ == "__main__":
    plot_growth(times, "How time grows, small sizes")
    plot_memory_growth(memory, "How memory grows, small sizes")
    plt.show()

# %%
# .. measured-download:: benchmark.csv benchmark_memory.csv benchmark.json
#
# Full size
# ---------
# ``make benchmark`` measures the same with four subjects in one image, and with up to
# twenty, and writes what it found into ``doc/recorded``. That takes its time, and is not a part
# of a build: what follows was recorded earlier.

if __name__ == "__main__":
    recorded = measured.parent / "recorded"
    if (recorded / "benchmark.json").exists():
        about = json.loads((recorded / "benchmark.json").read_text())["benchmark"]
        print(f"Recorded on {about['date']}: {about['system']}, {about['cores']} cores, ", end="")
        print(f"{about['memory_gib']:.0f} GiB, Python {about['python']},")
        print(*(f"{name} {about[name]}" for name in ("nilearn", "nibabel", "isal")), end="; ")
        print(f"{about['n_repeats']} pairs of each.\n")
        times, memory = read_benchmark(recorded)
        print_ratios(times, memory)
    else:
        times = None
        print("Nothing was recorded in doc/recorded: run 'make benchmark'.")

# %%

if __name__ == "__main__" and times:
    plot_ratios(times, f"Time beside the limit, {about['shape'][3]} volumes")
    plt.show()

# %%

if __name__ == "__main__" and times:
    plot_growth(times, "How time grows, full sizes")
    plot_memory_growth(memory, "How memory grows, full sizes")
    plt.show()

# %%
# .. recorded-download:: benchmark.csv benchmark_memory.csv benchmark.json
#
# What to conclude
# ----------------
# With a few masks nearly all of the time goes into decompression. No method can avoid that,
# but a method can do it once instead of once for each worker. Many masks come on top of it; at
# full size even 64 of them cost less than the file itself. Time grows with the length of the image,
# and memory does not, except for the output. The size of a block hardly matters for the
# time, since a volume's voxels are taken while it is in the processor's cache; a large block only
# takes its memory.
#
# If a file is read often, keep it uncompressed: the limit is then the disk.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_benchmark.py`: how the times were taken, to take them on your
#   machine.
# * :ref:`sphx_glr_auto_examples_plot_stream_masks.py`: all masks in one pass, as a function
#   to copy.
