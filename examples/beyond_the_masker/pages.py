"""Take the functions of a page without running the page."""

import ast
import functools
import types
from pathlib import Path

PAGES = Path(__file__).parent.parent
DEFINITIONS = ast.FunctionDef, ast.ClassDef
IMPORTS = ast.Import, ast.ImportFrom


def page_path(name):
    """Return the file of a page.

    Parameters
    ----------
    name : str
        Its name, such as ``"plot_numpy_indexing"``.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ValueError
        There is no such page, as in an installation without the pages.
    """
    for path in PAGES.glob(f"*/{name}.py"):
        return path
    raise ValueError(f"There is no page {name}.py in the folders of {PAGES}.")


def definitions(source):
    """Return the statements of a page that define something: functions, constants, their imports.

    Parameters
    ----------
    source : str

    Returns
    -------
    list of ast.stmt
        In the page's order. Imports that no definition uses are left out.
    """
    body = ast.parse(source).body
    kept = [n for n in body if isinstance(n, DEFINITIONS) or _is_constant(n)]
    used = {n.id for one in kept for n in ast.walk(one) if isinstance(n, ast.Name)}
    return [n for n in body if n in kept or _imported(n) & used]


def _is_constant(node):
    return isinstance(node, ast.Assign) and all(
        isinstance(t, ast.Name) and t.id.isupper() for t in node.targets
    )


def _imported(node):
    """Return the names that an import binds."""
    if not isinstance(node, IMPORTS):
        return set()
    return {(alias.asname or alias.name).split(".")[0] for alias in node.names}


@functools.cache
def load_page(name):
    """Return a module with the functions and constants of a page.

    The module cannot be imported by its name, so joblib and the meter send its functions by value:
    the process that receives one imports only what this function uses.

    Parameters
    ----------
    name : str
        As for `page_path`.

    Returns
    -------
    types.ModuleType
    """
    path = page_path(name)
    module = types.ModuleType(name)
    module.__file__ = str(path)
    tree = ast.Module(definitions(path.read_text()), type_ignores=[])
    exec(compile(tree, path, "exec"), module.__dict__)
    return module
