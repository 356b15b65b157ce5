"""Write the nine ways of the chapter as one script, which needs no other file of this project.

It is put together from functions of the pages and of this package; `main` of this module is one.
"""

import argparse
import ast
import itertools
import re
import sys
import tempfile
import time
from pathlib import Path

from joblib.externals.loky import get_reusable_executor

from beyond_the_masker.experiments.pages import DEFINITIONS, IMPORTS, definitions, page_path
from beyond_the_masker.extract.running import run_method
from beyond_the_masker.inputs.cache import filled
from beyond_the_masker.inputs.data import (
    difumo_path,
    write_fmri,
    write_for_nilearn,
    write_masks,
    write_synthetic_atlas,
)
from beyond_the_masker.predict.model import METHODS

PAGES = ("plot_nifti_masker", "plot_numpy_indexing", "plot_shared_memory")
DEFINES = ("def ", "class ", "@")
PARTS = ("extract/streaming", "files", "extract/checks", "extract/orphans")
PARTS += ("inputs/cache", "inputs/synthetic", "inputs/data", *PAGES)
PARTS += ("extract/running", "experiments/script")  # a name defined twice is that of the last
NINE = {
    name: model
    for name, model in METHODS.items()
    if model.module in PAGES and model.mode in ("single", "parallel")
}
ARGUMENTS = {"N_REGIONS": "--n-regions", "DATA=": "--data "}  # in messages
WAYS = ()  # filled in the script: name, function, mode, and whether images are in memory
HEADER = '''\
"""Extract the time series of several regions in nine ways, one after the other.

Needed: nibabel, NumPy, joblib, nilearn, memory_profiler. To record memory over time, and draw it:

    mprof run --include-children --multiprocess {name}
    mprof plot

This file was put together from the pages of "Beyond the masker", which explain its functions.
"""
'''


def prepare_data(data, n_images):
    """Return the files of image and atlas, which are made or downloaded if they are not there."""

    def fill(folder):
        write_fmri(data, n_images, folder)
        if data == "synthetic":
            write_synthetic_atlas(folder)

    folder = filled(Path(f"{data}-{n_images}-images"), fill)
    return folder / "fmri.nii.gz", folder / "maps.nii.gz" if data == "synthetic" else difumo_path()


def main(n_images, n_regions, data="synthetic", fmri=None, atlas=(), pause=1.0):
    """Run all ways, with a pause before each, which separates them in mprof's plot."""
    if not fmri:
        fmri, *atlas = prepare_data(data, n_images)
    with tempfile.TemporaryDirectory() as folder:
        fmri = write_for_nilearn(Path(fmri), Path(folder))
        mask_paths = write_masks([Path(path) for path in atlas], fmri, n_regions, Path(folder))
        for name, function, mode, in_memory in WAYS:
            time.sleep(pause)
            start = time.perf_counter()
            run_method(function, mode, in_memory, fmri, mask_paths, workers=mode == "parallel")
            get_reusable_executor().shutdown(wait=True)  # workers would stay for five minutes
            print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


def parse_arguments():
    """Return the arguments of the command line, as `main` takes them."""
    parser = argparse.ArgumentParser(description="Extract regions in nine ways, in sequence.")
    parser.add_argument("--n-images", type=int, default=2, help="subjects to join in one image")
    parser.add_argument("--n-regions", type=int, default=6, help="masks, and parallel workers")
    parser.add_argument("--data", choices=["synthetic", "development_fmri"], default="synthetic")
    parser.add_argument("--fmri", help="your own 4D image, instead of --data")
    parser.add_argument("--atlas", nargs="+", help="its regions: maps, labels, or several masks")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds before each way")
    arguments = parser.parse_args()
    if bool(arguments.fmri) != bool(arguments.atlas):
        parser.error("--fmri and --atlas go together")
    return vars(arguments)


def write_script(path):
    """Write the script to a file."""
    code, imports = read_parts()
    code["WAYS"] = code_of_ways()
    needed = find_needed(code, {"main", "parse_arguments"})
    kept = [text for name, text in code.items() if name in needed]
    used = set().union(*map(names_in, kept))
    blocks = [import_lines({imports[name] for name in used & imports.keys()})]
    for defines, group in itertools.groupby(kept, lambda text: text.startswith(DEFINES)):
        texts = list(group)  # functions and classes, or constants
        blocks += texts if defines else ["\n".join(texts)]
    blocks.append('if __name__ == "__main__":\n    main(**parse_arguments())')
    text = HEADER.format(name=Path(path).name) + "\n" + "\n\n\n".join(blocks) + "\n"
    for option, argument in ARGUMENTS.items():
        text = text.replace(option, argument)
    Path(path).write_text(text)


def read_parts():
    """Return the code of each definition by its name, and module and name of each import by it."""
    code, imports, here = {}, {}, Path(__file__).parents[1]
    for part in PARTS:
        source = (page_path(part) if part in PAGES else here / f"{part}.py").read_text()
        for node in definitions(source):
            module = getattr(node, "module", "")
            if not isinstance(node, IMPORTS):
                name = node.name if isinstance(node, DEFINITIONS) else node.targets[0].id
                code.pop(name, None)  # that of an earlier part
                code[name] = short(source, node)
            elif not module.startswith("beyond_the_masker"):
                for alias in node.names:
                    name = (alias.asname or alias.name).split(".")[0]
                    imports[name] = module, ast.unparse(alias)
    return code, imports


def short(source, node):
    """Return the source of a definition, with its decorators and the summary of its docstring."""
    lines = source.splitlines()
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    code = lines[first - 1 : node.end_lineno]
    if isinstance(node, DEFINITIONS) and ast.get_docstring(node):
        doc = node.body[0]
        summary = f'    """{ast.get_docstring(node).splitlines()[0]}"""'
        code[doc.lineno - first : doc.end_lineno - first + 1] = [summary]
    # What a function imports from this package is in the script, too.
    return re.sub(r"\n\n? +from beyond_the_masker\S+ import (\([^)]*\)|.*)", "", "\n".join(code))


def code_of_ways():
    """Return the constant `WAYS` as the script has it, with the functions of the pages."""
    lines = []
    for name, model in NINE.items():
        lines.append(f'    ("{name}",')
        lines.append(f'     {model.function}, "{model.mode}", {model.in_memory}),')
    return "\n".join(["WAYS = [", *lines, "]"])


def names_in(code):
    """Return the names that some code uses."""
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}


def find_needed(code, names):
    """Return the names, and those of all definitions that they need."""
    found, new = set(), set(names)
    while new:
        found |= new
        new = {used for name in new for used in names_in(code[name])} & code.keys() - found
    return found


def import_lines(imports):
    """Return the statements that import some names from modules: standard library first."""
    lines = [f"import {name}" for module, name in imports if not module]
    modules = {module for module, _ in imports if module}
    for module in modules:
        names = sorted(name for one, name in imports if one == module)
        lines.append(f"from {module} import {', '.join(names)}")
    lines.sort(key=lambda line: (line.startswith("from"), line.lower()))
    standard = [line for line in lines if line.split()[1].split(".")[0] in sys.stdlib_module_names]
    return "\n".join([*standard, "", *(line for line in lines if line not in standard)])
