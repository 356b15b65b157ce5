"""Helpers of the gallery, named as strings in conf.py so that the configuration pickles."""

import sys
import warnings
from functools import partialmethod
from pathlib import Path

from tqdm import tqdm

OTHER_METHODS = "plot_"  # pages that are not named below
ORDER = [
    "plot_large_image",
    "plot_nifti_masker",
    "plot_numpy_indexing",
    "plot_shared_memory",
    "plot_stream_masks",
    "plot_stream_masker",
    "plot_in_memory",
    OTHER_METHODS,  # measured here, before the figures of all methods are drawn
    "plot_memory_over_time",
    "plot_prediction",
    "plot_published_scale",
    "plot_limit",
    "mask_study",
    "plot_one_machine",
    "plot_dask_cluster",
    "plot_slurm",
    "plot_large_image_in_blocks",
    "plot_study_plan",
    "whole_experiment",
    "memory_budget",
    "memory_model",
    "prediction_grid",
    "benchmark",
    "peak_memory",
    "measured_methods",
    "one_run",
    "synthetic_data",
    "options",
]


class ReadingOrder:
    """Sort key of the examples: the order in which they are read, and run.

    A page that is not named comes after the last of the methods, and a module after the others.
    """

    def __init__(self, source_folder):
        self.source_folder = source_folder

    def __call__(self, file_name):
        """Return the place of an example among the others."""
        name = Path(file_name).stem
        if name in ORDER:
            return ORDER.index(name), name
        return (ORDER.index(OTHER_METHODS) if name.startswith("plot_") else len(ORDER)), name


DRAW = tqdm.__init__


def bars_on_the_terminal(gallery_conf, file_name, when):
    """Draw an example's progress bars on the terminal, not on its page."""
    before = when == "before"
    tqdm.__init__ = partialmethod(DRAW, file=sys.__stderr__) if before else DRAW


# Warnings about the machine or the clock, not about the code: they must not stop a build. (In a
# thread of joblib or Dask, an error in place of a warning would end the thread, and the example
# would wait forever.)
ABOUT_THE_MACHINE = (
    "A worker stopped while some jobs were given",  # joblib: slow to start, or short of memory
    "resource_tracker: ",  # joblib: the system ended the tracker, or files are gone already
    "Failed to delete temporary folder",  # joblib
    "Could not find the number of physical cores",  # joblib
    r"Port \d+ is already in use",  # Dask: it takes another one
    r"\s*Could not launch service",  # Dask
    "Creating scratch directories is taking a surprisingly long time",  # Dask
    "Couldn't detect a suitable IP address",  # Dask: no network
    "Attempting to set identical low and high",  # matplotlib: a measured value is zero
)


def warnings_are_errors(gallery_conf, file_name, when):
    """Turn warnings into errors while an example runs, except those about the machine."""
    if when == "before":
        warnings.simplefilter("error")
        for message in ABOUT_THE_MACHINE:
            warnings.filterwarnings("ignore", message)
    else:
        warnings.resetwarnings()
