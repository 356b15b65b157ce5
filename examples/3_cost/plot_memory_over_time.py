"""
Memory over time, with every method labelled
============================================

``mprof`` records the memory of a process and its workers over time, but not which part of the curve
belongs to which method. On this page you will run all methods in sequence, draw memory over time
with each method labelled, and compare the :term:`peaks <peak>` of all methods.
"""

# %%
# Run all methods under mprof
# ---------------------------
# ``python -m beyond_the_masker experiment`` runs the methods one after the other, with a pause
# before each, and writes a table of when each method began and ended, on the clock of mprof's file.
# A method that might not fit into memory does not run.
#
# With ``--include-children``, mprof adds up the memory of all processes, and with
# ``--multiprocess`` it also records each worker. By default it reads the resident set size
# (:term:`RSS`), which counts a page once for each process that shares it. The proportional set size
# (:term:`PSS`) counts it once. One run gives both: while mprof samples RSS, ``memory_usage``, the
# function that mprof itself calls, samples PSS of the same processes. Where the system does not
# provide PSS, the unique set size (:term:`USS`) takes its place.

from pathlib import Path

from beyond_the_masker.experiments.experiment import complete_summary
from beyond_the_masker.experiments.mprof_run import run_under_mprof
from beyond_the_masker.options import read_options

rows = complete_summary()  # measures the methods that no page has measured yet
measured = Path(read_options().measured)
finished = run_under_mprof(measured)

# %%
# Label the curve
# ---------------
# The peak of a method is the largest sample between its beginning and its end. For a method that
# did not run, the figure has a hatched area, and the label shows the model's prediction. First the
# default metric, as in ``mprof plot``, then PSS of the same run:

from beyond_the_masker.draw.figures import save
from beyond_the_masker.experiments.mprof_run import read_run
from beyond_the_masker.draw.timeline import plot_phases

runs = read_run(measured) if finished else {}
for metric, run in reversed(runs.items()):  # for a wide screen, and for a narrow one
    name = measured / f"memory_over_time_{'rss' if metric == 'RSS' else 'pss'}"
    save(plot_phases(*run[:3], metric), f"{name}_wide.svg")
    save(plot_phases(*run[:3], metric, tall=True), f"{name}_tall.svg")

# %%
# Explore the figure
# ------------------
# In a browser, point at the curve to see the method and its processes at each moment. The areas are
# RSS, because mprof records child processes as RSS, with any backend. A child that outlives a
# method is not a worker but a resource tracker, which removes what other processes leave behind.

from beyond_the_masker.draw.timeline import timeline_html

if finished:
    (measured / "timeline.html").write_text(timeline_html(runs))

# %%
# .. include:: /_report/timeline.rst
#
# Compare the peaks
# -----------------
# The peaks in this chart come from the memory meter, which gives each method a process of its own.
# It samples the :term:`memory in use`: the memory that the machine cannot take back during the
# call. The faint part is the calling process's interpreter and its imports, before the call. The
# dashed line marks the size of the image: a method that holds the whole image needs at least that
# much on top of the faint part. A method with workers is measured several times, and the line goes
# from the smallest peak to the largest.

from beyond_the_masker.draw.figures import plot_peaks

save(plot_peaks(rows), measured / "peaks.svg")

# %%
# What to conclude
# ----------------
# Every worker of NiftiMasker adds copies of the image, while shared memory holds one copy for all
# workers, and one pass over the file needs none. The two metrics show the same run: where RSS is
# higher than PSS, it counts shared pages more than once.
#
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_3_cost_plot_prediction.py`: where these peaks come from, copy by
#   copy.
# * :ref:`sphx_glr_auto_examples_2_streaming_plot_stream_masks.py`: one pass over the file, as
#   a function to copy.
