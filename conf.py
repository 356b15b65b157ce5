"""Sphinx configuration. The sources are in doc/, the examples in examples/."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.resolve()
sys.path[:0] = [str(ROOT / "doc" / "_ext"), str(ROOT / "examples")]

# -- What the build works on ------------------------------------------------------------
# The examples read their options from the environment, and run in their own folder: so
# the options are checked here, and handed on with absolute paths.

os.environ.setdefault("MASKER_CACHE", str(ROOT / "masker_cache"))
os.environ.setdefault("MEASURED", str(ROOT / "doc" / "measured"))
os.environ.setdefault("MPLBACKEND", "agg")

from options import read_options  # noqa: E402

try:
    os.environ.update(read_options().to_environ())
except ValueError as error:
    sys.exit(str(error))
if ROOT / "doc" not in Path(os.environ["MEASURED"]).resolve().parents:
    sys.exit(f"MEASURED is {os.environ['MEASURED']}; the pages need it below {ROOT / 'doc'}.")

# -- Project ----------------------------------------------------------------------------

project = "Beyond the masker"
author = "the Beyond the masker developers"
copyright = author
html_title = project

# -- General ----------------------------------------------------------------------------

extensions = [
    "calculator",
    "downloads",
    "measured",
    "rerun",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_ext", "sg_execution_times.rst"]
nitpicky = True
# An example's own functions are explained on its page and have no entry of their own.
default_role = "code"

# -- Numbers and figures of the run (doc/_ext/measured.py) --------------------------------

measured_folder = os.environ["MEASURED"]

# -- Links to other projects --------------------------------------------------------------
# Only local inventories: a build needs no network. See doc/_inventories.

intersphinx_mapping = {
    name: (url, f"_inventories/{name}.inv")
    for name, url in {
        "joblib": "https://joblib.readthedocs.io/en/stable/",
        "nibabel": "https://nipy.org/nibabel/",
        "nilearn": "https://nilearn.github.io/stable/",
        "numpy": "https://numpy.org/doc/stable/",
        "python": "https://docs.python.org/3/",
    }.items()
}

# -- Gallery ----------------------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"[\\/](plot_|peak_memory)",
    "within_subsection_order": "gallery_helpers.ReadingOrder",
    "reset_modules": ("gallery_helpers.warnings_are_errors", "matplotlib"),
    "reset_modules_order": "both",
    "abort_on_example_error": True,
    "download_all_examples": False,  # doc/_ext/downloads.py makes a zip in which they run
    "backreferences_dir": None,
    "capture_repr": (),
    "doc_module": (),
    "image_srcset": ["2x"],
    "min_reported_time": 0,
    "remove_config_comments": True,
    "show_memory": False,  # ignores workers
    "show_signature": False,
    "write_computation_times": False,
}

# -- HTML -------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_static_path = ["doc/_static"]
html_css_files = ["custom.css"]
html_favicon = "doc/_static/favicon.svg"
html_show_sourcelink = False
html_show_sphinx = False
html_sidebars = {
    "index": [],
    "masker_memory_usage": [],
    "calculator": [],
    "glossary": [],
}
html_theme_options = {
    "logo": {"text": project},
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}
copybutton_selector = "div:not(.sphx-glr-script-out) > div.highlight pre"  # no output
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = "$ "

# -- Link check -------------------------------------------------------------------------

linkcheck_anchors = False
linkcheck_timeout = 20
