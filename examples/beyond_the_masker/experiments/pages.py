"""Find the pages and their recordings; take the functions of a page without running it."""

import ast
import functools
import types
from pathlib import Path

PAGES = Path(__file__).parents[2]
DEFINITIONS = ast.FunctionDef, ast.ClassDef
IMPORTS = ast.Import, ast.ImportFrom


def check_pages():
    """Raise a FileNotFoundError if this is an installation, which has no pages."""
    if not (PAGES / "GALLERY_HEADER.rst").exists():
        raise FileNotFoundError(
            "This needs the pages of the project, which pip does not install. Download or clone "
            "the whole project, run 'pip install -e .' in its folder, and try again."
        )


def recorded_folder():
    """Return the project's folder of recordings, wherever this build writes its measurements."""
    check_pages()
    return PAGES.parent / "doc" / "recorded"


def page_path(name):
    """Return the file of a page, such as ``"plot_numpy_indexing"``."""
    for path in PAGES.glob(f"*/{name}.py"):
        return path
    check_pages()
    raise ValueError(f"There is no page {name}.py in the folders of {PAGES}.")


def definitions(source):
    """Return the functions, classes and constants of a module, and the imports that they use."""
    body = ast.parse(source).body
    kept = [node for node in body if isinstance(node, DEFINITIONS) or is_constant(node)]
    used = {n.id for node in kept for n in ast.walk(node) if isinstance(n, ast.Name)}
    return [node for node in body if node in kept or imported_names(node) & used]


def is_constant(node):
    """Return whether a statement assigns to a name in capitals."""
    return isinstance(node, ast.Assign) and all(
        isinstance(target, ast.Name) and target.id.isupper() for target in node.targets
    )


def imported_names(node):
    """Return the names that an import binds."""
    if not isinstance(node, IMPORTS):
        return set()
    return {(alias.asname or alias.name).split(".")[0] for alias in node.names}


@functools.cache
def load_page(name):
    """Return a module with the functions and constants of a page.

    The module cannot be imported by its name, so joblib and the memory meter send its functions by
    value: the process that receives one imports only what this function uses.
    """
    path = page_path(name)
    module = types.ModuleType(name)
    tree = ast.Module(definitions(path.read_text()), type_ignores=[])
    exec(compile(tree, path, "exec"), module.__dict__)
    return module
