"""Helpers of the gallery, named as strings in conf.py so that the configuration pickles."""

import warnings
from pathlib import Path

ORDER = [
    "plot_large_image",
    "plot_nifti_masker",
    "plot_numpy_indexing",
    "plot_shared_memory",
    "plot_stream_masks",
    "plot_stream_masker",
    "plot_in_memory",
    "plot_memory_over_time",
    "plot_prediction",
    "plot_published_scale",
    "plot_limit",
    "whole_experiment",
    "memory_budget",
    "memory_model",
    "prediction_grid",
    "peak_memory",
    "measured_methods",
    "synthetic_data",
    "options",
]


class ReadingOrder:
    """Sort key of the examples: the order in which they are read, and run.

    An example that is not named comes after the others.
    """

    def __init__(self, source_folder):
        self.source_folder = source_folder

    def __call__(self, file_name):
        """Give the place of an example among the others."""
        name = Path(file_name).stem
        return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def warnings_are_errors(gallery_conf, file_name, when):
    """Turn warnings into errors while an example runs."""
    if when == "before":
        warnings.simplefilter("error")
    else:
        warnings.resetwarnings()
