"""Run an example again when what it depends on has changed.

Sphinx-gallery runs an example again when its own text has changed. An example here also
depends on the modules that it imports from its folder, on the options of the build, on the
reader's own files, and on the versions of the libraries. This extension keeps a fingerprint
of all that for each example, and forgets sphinx-gallery's checksum of those whose
fingerprint is another than when they last ran.
"""

import ast
import hashlib
import json
import platform
import re
from functools import partial
from pathlib import Path

from beyond_the_masker.experiment import PACKAGES, version_of
from beyond_the_masker.options import read_options


def local_imports(path):
    """Give the files of a folder that a script needs: itself, what it imports, and so on.

    A string that is the name of a script's file counts as well: scripts are started by their
    names. And where ``find_spec`` is called, so does one that is a module's name: the table
    of methods names the examples that have their functions.

    Parameters
    ----------
    path : pathlib.Path
        A Python script.

    Returns
    -------
    set of pathlib.Path
    """
    found, to_read, named, by_name = set(), [path], [], False
    while to_read:
        current = to_read.pop()
        if current not in found and current.exists():
            found.add(current)
            nodes = list(ast.walk(ast.parse(current.read_text())))
            texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
            texts = [text for text in texts if isinstance(text, str)]
            names = [*imported(nodes), *(t[:-3] for t in texts if re.fullmatch(r"\w+\.py", t))]
            to_read += [path.with_name(f"{name}.py") for name in names]
            named += [path.with_name(f"{text}.py") for text in texts if re.fullmatch(r"\w+", text)]
            by_name |= any(getattr(node, "attr", "") == "find_spec" for node in nodes)
        if by_name and not to_read:
            to_read, named = named, []
    return found


def imported(nodes):
    """Give the names of the modules that some statements import.

    Parameters
    ----------
    nodes : iterable of ast.AST

    Yields
    ------
    str
    """
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def fingerprint(path):
    """Give a digest of everything that an example's output depends on."""
    files = sorted(local_imports(path))
    parts = [platform.python_version(), *(version_of(name) for name in PACKAGES)]
    parts += [f"{file.name}\n{file.read_text()}" for file in files]
    if "options.py" in {file.name for file in files}:
        options = read_options()
        environ = options.to_environ()
        if "options.pause" not in path.read_text():
            del environ["PAUSE"]  # rests between methods, which only some pages show
        parts.append(repr(environ))
        recorded = Path(options.measured).parent / "recorded"
        if '"recorded"' in path.read_text():  # measured once, and kept
            parts += [file.read_text() for file in sorted(recorded.rglob("*.*"))]
        for own in filter(None, (options.fmri, *options.atlas)):
            status = Path(own).stat()
            parts.append(f"{own} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def examples(app):
    """Give each example that can be run, and sphinx-gallery's checksum file for it."""
    folder = Path(app.srcdir, app.config.sphinx_gallery_conf["examples_dirs"])
    gallery = Path(app.srcdir, app.config.sphinx_gallery_conf["gallery_dirs"])
    for path in sorted(folder.resolve().glob("*.py")):
        yield path, gallery / f"{path.name}.md5"


def record_path(app):
    """Where the fingerprints are kept."""
    return Path(app.srcdir, app.config.sphinx_gallery_conf["gallery_dirs"], "fingerprints.json")


def forget_outdated(app):
    """Before the gallery: forget the checksums of examples that must run again."""
    if str(app.config.plot_gallery).lower() in ("0", "false"):
        return
    path = record_path(app)
    recorded = json.loads(path.read_text()) if path.exists() else {}
    current = {example.name: fingerprint(example) for example, _ in examples(app)}
    nothing_measured = not Path(app.config.measured_folder, "peaks.svg").exists()
    for example, checksum in examples(app):
        if nothing_measured or recorded.get(example.name) != current[example.name]:
            checksum.unlink(missing_ok=True)
    app.connect("build-finished", partial(keep_fingerprints, current))


def keep_fingerprints(current, app, exception):
    """After the build: keep the fingerprints of the examples whose output is current."""
    if exception is None:
        done = {e.name: current[e.name] for e, checksum in examples(app) if checksum.exists()}
        unfinished = record_path(app).with_suffix(".unfinished")
        unfinished.write_text(json.dumps(done, indent=1))
        unfinished.replace(record_path(app))


def setup(app):
    """Look before sphinx-gallery does."""
    app.connect("builder-inited", forget_outdated, priority=100)
    return {"parallel_read_safe": True}
