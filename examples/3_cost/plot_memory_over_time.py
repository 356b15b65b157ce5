"""
Memory over time, with every method labelled
============================================

:mod:`beyond_the_masker.experiment` runs all methods in sequence. On this page you will

1. run it under ``mprof``, and sample the same run with two metrics, the resident set size
   (:term:`RSS`) and the proportional set size (:term:`PSS`),
2. draw memory over time from mprof's files, with each method shaded and labelled by the
   program, and
3. compare the :term:`peaks <peak>` of all methods.
"""

# %%
# Run it under mprof
# ------------------
# ``--include-children`` adds up the memory of all processes, and ``--multiprocess`` also
# records each worker by itself. By default mprof reads the resident set size (RSS), in
# which a page that several workers share counts several times. With ``--backend psutil_pss``
# it counts once. One run provides both: while mprof samples RSS, ``memory_usage``, the
# function that mprof itself calls, samples PSS of the same processes. Where the system has no
# PSS, the unique set size (:term:`USS`) takes its place.

# %%
# Each phase has a number, and a list next to the figure has its method and its peak. Numbers
# must not overlap, however short a phase is: they are moved apart, and a line leads from each to
# its phase. There are two layouts: the list to the right, for a wide screen, and below, for a
# phone. Of a long run, only the largest sample of each short interval is drawn.
# %%
# An interactive version
# ----------------------
# A page can also show the curve with the method and its processes at each moment. For that, the
# samples are written as they are drawn. mprof records each child process as RSS, with any backend.
# A child that outlives a method is not a worker, but a resource tracker, which removes what other
# processes leave behind.
# %%
# Compare the peaks
# -----------------
# The peaks in this chart come from the meter, which gives each method a process of its own. It
# counts the :term:`memory in use`: what the machine cannot take back during the call. The faint
# part is the interpreter and its imports, before the call. The dashed line is the image's size,
# from 0: a method that holds the whole image needs at least that much on top of the faint part.
# A method with workers is measured three times. The line goes from the smallest peak to the
# largest: how many workers are at their own peak at the same moment is chance.
# %%
# This build
# ----------
# The default metric first, as in ``mprof plot``:
import json
from pathlib import Path

from beyond_the_masker.experiment import complete_summary

# %%
# Read and label
# --------------
# mprof's own reader gives the memory and the time of each sample. A phase's peak is the
# largest sample between its begin and its end.
# %%
# A method that might not fit into memory was not run. Its place in the figure is hatched, and
# its label shows the model's prediction.
from beyond_the_masker.figures import as_timeline, plot_peaks, plot_phases, save
from beyond_the_masker.meter import HAS_PSS
from beyond_the_masker.mprof_run import read_children, read_phases, run_under_mprof
from beyond_the_masker.options import read_options

options = read_options()
rows = complete_summary()
measured = Path(options.measured)
(measured / "mprof.json").write_text(json.dumps({"mprof": {"pause": options.pause}}))
for drawing in (*measured.glob("memory_over_time_*.svg"), measured / "timeline.json"):
    drawing.unlink(missing_ok=True)
finished = run_under_mprof(
    "whole_experiment.py", measured, "psutil_pss" if HAS_PSS else "psutil_uss"
)


def draw(metric, label):
    """Draw a metric in both layouts, and return it as a timeline."""
    path = measured / f"mprof_{metric}.dat"
    times, mib, phases = read_phases(measured / "phases.csv", path)
    for layout in ("wide", "tall"):
        figure = plot_phases(times, mib, phases, label, tall=layout == "tall")
        save(figure, measured / f"memory_over_time_{metric}_{layout}.svg")
    return as_timeline(times, mib, phases, read_children(phases, times, path), label)


rss = draw("rss", "RSS") if finished else None

# %%
# And the proportional set size of the same run, which counts a shared page once:

if finished:
    pss = draw("pss", "PSS" if HAS_PSS else "USS")
    (measured / "timeline.json").write_text(json.dumps([pss, rss]))

# %%
# .. memory-timeline:: timeline.json
#
# The peaks, method by method:

save(plot_peaks(rows), measured / "peaks.svg")

# %%
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_3_cost_plot_prediction.py`: where these peaks come from, copy by copy.
