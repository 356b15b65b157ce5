"""Time series of regions from large 4D images, and the memory that each way of getting them needs.

Names are imported when they are first used: a process that only streams does not load nilearn.
"""

from importlib import import_module

HOMES = {
    "stream_masks": "extract.streaming",
    "stream_masker": "extract.maskers",
    "mask_blocks": "extract.blocks",
    "mask_study": "studies.study",
    "masker_study": "studies.masker_runs",
    "fmriprep_study": "studies.fmriprep",
    "measure": "meter",
    "measure_within": "meter",
    "predict_peak": "predict.budget",
}
__all__ = list(HOMES)


def __getattr__(name):
    """Import a public function when it is first used."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
