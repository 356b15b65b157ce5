"""Find the function of each method that the model names, and call it."""

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

from beyond_the_masker.experiments.pages import load_page
from beyond_the_masker.extract.running import run_method
from beyond_the_masker.inputs.data import atlas_to_labels
from beyond_the_masker.predict.model import AVERAGES, METHODS

MODES = ("single", "loop", "parallel", "one pass", AVERAGES)


class Method(NamedTuple):
    """A method: its name in figures and tables, its function, and how the function is called."""

    name: str
    function: Callable
    mode: str  # one of MODES; see `model.Model`
    in_memory: bool = False  # takes images whose data are in memory, instead of paths
    workers: bool = False  # starts worker processes

    @property
    def title(self):
        """The key of the method in `model.METHODS`: its name and its mode."""
        return f"{self.name}, {self.mode}"

    def call(self, fmri_path, mask_paths, n_jobs=None):
        """Return the work from the files to the arrays, as a function without arguments.

        A process that gets it imports what the method needs, not this module. See `run_method`.
        """
        mode = self.mode
        if mode == AVERAGES:
            mode, mask_paths = "single", [atlas_to_labels(mask_paths, fmri_path)]
        how = self.function, mode, self.in_memory
        call = functools.partial(run_method, *how, fmri_path, mask_paths, n_jobs, self.workers)
        call.__name__ = self.title
        return call


def find_method(title, model):
    """Return the method of an entry of `model.METHODS`; ValueError if the entry has a mistake."""
    entry = f"METHODS of model.py has {title!r}"
    if model.mode not in MODES:
        raise ValueError(f"{entry} with the mode {model.mode!r}; use one of {', '.join(MODES)}.")
    if not title.endswith(f", {model.mode}"):
        raise ValueError(f"{entry}, whose name must end with its mode: ', {model.mode}'.")
    load = load_page if model.module.startswith("plot_") else importlib.import_module
    try:
        module = load(model.module)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{entry}, but there is no module {model.module}.") from error
    function = getattr(module, model.function, None)
    if function is None:
        raise ValueError(f"{entry}, but {model.module} has no function {model.function!r}.")
    name = title.removesuffix(f", {model.mode}")
    return Method(name, function, model.mode, model.in_memory, bool(model.imports))


@functools.cache
def all_methods():
    """Return every method as a list of `Method`, in the order of `model.METHODS`."""
    return [find_method(title, model) for title, model in METHODS.items()]
