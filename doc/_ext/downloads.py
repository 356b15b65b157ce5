"""Make what the gallery offers for download run.

Sphinx-gallery offers each example as ``.py``, ``.ipynb`` and ``.zip``. The examples here import
each other, so a file alone is not enough:

* The zip of a page holds the page as script and notebook, the modules and the recorded data
  that it needs, and ``requirements.txt``. The zip of all examples holds what theirs hold.
* A single script or notebook that needs neighbours says so in its first lines, with a link to
  the page's zip. This is done on the copies in the built site.
* A notebook has no command line: where the script has one, a cell stands for it.

What is written depends on the examples alone, and only a file that differs is replaced.
"""

import ast
import json
import os
import re
import zipfile
from io import BytesIO
from pathlib import Path
from urllib.parse import urljoin

from gallery_helpers import ReadingOrder
from rerun import imported, local_imports

ALL = "beyond_the_masker_examples.zip"
REQUIREMENTS = "requirements.txt"
SCRIPT_NOTE = """\
# To run this script, unpack {name} in this file's folder: it needs the files beside it.
# {where}{alone}
# The packages to install are in the {requirements} that comes with it.
"""
ALONE = "\n# To import its functions, this file is enough."
NOTEBOOK_NOTE = """\
**To run this notebook, unpack {name} in its folder: it needs the files beside it.**

{where}

The packages to install are in the `{requirements}` that comes with it."""
COMMAND_LINE = """\
# The command line of {name}: add arguments here, or "--help".
import sys

sys.argv = ["{name}"]"""
README = """\
Beyond the masker: the examples
===============================

    python -m pip install -r requirements.txt
    python plot_stream_masks.py

Each example is here as a script and as a notebook, which needs Jupyter. They import each other:
keep them in one folder. The data are made on your machine, unless you name your own:

    FMRI=image.nii.gz ATLAS=atlas.nii.gz python plot_stream_masks.py

options.py explains this and all other options. Prepared data go into the folder masker_cache,
measurements into the folder measured. The folder recorded holds what was measured once, on one
machine, and is shown beside your own. In the order in which they are read:

"""


def page_files(script, gallery, recorded):
    """Give everything that a page needs to run in an empty folder.

    Parameters
    ----------
    script : pathlib.Path
        An example.
    gallery : pathlib.Path
        Where sphinx-gallery puts the notebooks.
    recorded : pathlib.Path
        The folder of recorded measurements.

    Returns
    -------
    dict of str to bytes
        What the files hold, by their names.
    """
    files = {path.name: path.read_bytes() for path in local_imports(script)}
    files[f"{script.stem}.ipynb"] = notebook(script, gallery)
    files[REQUIREMENTS] = script.with_name(REQUIREMENTS).read_bytes()
    for names in re.findall(r"^# \.\. recorded-download:: (.+)$", script.read_text(), re.M):
        for name in names.split():
            if (recorded / name).exists():
                files[f"recorded/{name}"] = (recorded / name).read_bytes()
    return files


def notebook(script, gallery, note=""):
    """Give an example as a notebook.

    Parameters
    ----------
    script : pathlib.Path
    gallery : pathlib.Path
        Where sphinx-gallery puts the notebooks.
    note : str
        What the first cell says.

    Returns
    -------
    bytes
    """
    content = json.loads((gallery / f"{script.stem}.ipynb").read_text())
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = without_roles("".join(cell["source"]))
    if has_command_line(script):
        source = COMMAND_LINE.format(name=script.name)
        cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
        content["cells"].insert(1, cell | {"source": source})
    if note:
        content["cells"].insert(0, {"cell_type": "markdown", "metadata": {}, "source": note})
    return json.dumps(content, indent=1).encode()


def without_roles(text):
    """Give a text with the words of its roles alone, such as "worker" for a term."""
    text = re.sub(r":[a-z:]+:`~[\w.]*?(\w+)`", r"\1", text)
    return re.sub(r":[a-z:]+:`([^`<]+?)(?:\s*<[^`>]+>)?`", r"\1", text)


def has_command_line(script):
    """Tell whether a script reads arguments."""
    nodes = ast.walk(ast.parse(script.read_text()))
    return any(isinstance(node, ast.Name) and node.id == "argparse" for node in nodes)


def can_be_imported_alone(script):
    """Tell whether a script imports nothing of ours before it is run."""
    names = imported(ast.parse(script.read_text()).body)
    return not any(script.with_name(f"{name}.py").exists() for name in names)


def needs_neighbours(script, suffix):
    """Tell whether a page's script or notebook does not run alone.

    A notebook is not a module: it also needs the script if somebody imports that.
    """
    own = rf"\b(import {script.stem}|from {script.stem} import)\b"
    imported = suffix == ".ipynb" and re.search(own, script.read_text())
    return bool(imported) or local_imports(script) != {script}


def write_zip(path, files):
    """Write a zip that depends on what the files hold, and on nothing else.

    Parameters
    ----------
    path : pathlib.Path
    files : dict of str to bytes
        As `page_files` gives it.
    """
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as zip_file:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name)  # dated 1980
            entry.external_attr = 0o644 << 16
            zip_file.writestr(entry, content, zipfile.ZIP_DEFLATED)
    replace(path, archive.getvalue())
    os.utime(path, (0, 0))  # the pages that link it need not be read again


def replace(path, content):
    """Write a file if it does not hold this already, under another name until it is complete."""
    if not path.exists() or path.read_bytes() != content:
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_bytes(content)
        unfinished.replace(path)


def folders(app):
    """Give the folders of the examples, of the gallery, and of recorded measurements."""
    conf, source = app.config.sphinx_gallery_conf, Path(app.srcdir)
    examples = (source / conf["examples_dirs"]).resolve()
    return examples, source / conf["gallery_dirs"], source / "recorded"


def write_zips(app):
    """After the gallery, and before it is read: write the zips of the pages, and that of all."""
    examples, gallery, recorded = folders(app)
    every, readme = {}, README
    for script in sorted(examples.glob("*.py"), key=lambda path: ReadingOrder(None)(path.name)):
        files = page_files(script, gallery, recorded)
        write_zip(gallery / f"{script.stem}.zip", files)
        every |= files
        title = ast.get_docstring(ast.parse(script.read_text())).splitlines()[0]
        readme += f"    {script.name:26}{title}\n"
    write_zip(gallery / ALL, every | {"README.txt": readme.encode()})


def say_what_is_needed(app, exception):
    """After the build: say in single scripts and notebooks which zip they need beside them."""
    if exception is not None or app.builder.format != "html":
        return
    examples, gallery, _ = folders(app)
    places = {Path(app.srcdir, name): place for name, (_, place) in app.env.dlfiles.items()}
    for downloaded, place in places.items():
        script = examples / f"{downloaded.stem}.py"
        if downloaded.parent != gallery or downloaded.suffix not in (".py", ".ipynb"):
            continue
        zip_path, note = downloaded.with_suffix(".zip"), {".py": "", ".ipynb": ""}
        if needs_neighbours(script, downloaded.suffix):
            where = "It is on the page of this example."
            if app.config.html_baseurl:
                where = urljoin(app.config.html_baseurl, f"_downloads/{places[zip_path]}")
            say = {"name": zip_path.name, "where": where, "requirements": REQUIREMENTS}
            say["alone"] = ALONE if can_be_imported_alone(script) else ""
            note = {".py": SCRIPT_NOTE.format(**say), ".ipynb": NOTEBOOK_NOTE.format(**say)}
        content = {
            ".py": note[".py"].encode() + script.read_bytes(),
            ".ipynb": notebook(script, gallery, note[".ipynb"]),
        }
        replace(Path(app.outdir, "_downloads", place), content[downloaded.suffix])


def setup(app):
    """Follow sphinx-gallery, which writes its own downloads at priority 500."""
    app.connect("builder-inited", write_zips, priority=900)
    app.connect("build-finished", say_what_is_needed)
    return {"parallel_read_safe": True}
