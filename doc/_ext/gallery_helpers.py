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
        """Give the place of an example among the others."""
        name = Path(file_name).stem
        if name in ORDER:
            return ORDER.index(name), name
        return (ORDER.index(OTHER_METHODS) if name.startswith("plot_") else len(ORDER)), name


DRAW = tqdm.__init__


def bars_on_the_terminal(gallery_conf, file_name, when):
    """Let progress bars of an example be drawn for who builds, and not into its page."""
    before = when == "before"
    tqdm.__init__ = partialmethod(DRAW, file=sys.__stderr__) if before else DRAW


def warnings_are_errors(gallery_conf, file_name, when):
    """Turn warnings into errors while an example runs."""
    if when == "before":
        warnings.simplefilter("error")
    else:
        warnings.resetwarnings()
