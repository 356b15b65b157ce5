"""Sphinx configuration. The sources are in doc/, the examples in examples/."""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from bokeh.util.paths import bokehjs_path
from sphinx.errors import ConfigError
from sphinx.util.index_entries import split_index_msg

ROOT = Path(__file__).parent.resolve()
sys.path[:0] = [str(ROOT / "doc" / "_ext"), str(ROOT / "examples")]

# -- What the build works on ------------------------------------------------------------
# The examples read their options from the environment, and run in their own folder: so
# the options are checked here, and handed on with absolute paths.

os.environ.setdefault("MASKER_CACHE", str(ROOT / "masker_cache"))
os.environ.setdefault("MEASURED", str(ROOT / "doc" / "measured"))
os.environ.setdefault("MPLBACKEND", "agg")

import beyond_the_masker
from beyond_the_masker.experiments.report import write_report
from beyond_the_masker.options import read_options

try:
    os.environ.update(read_options().to_environ())
except ValueError as error:
    raise ConfigError(str(error)) from None
measured = Path(os.environ["MEASURED"])
measured = measured.parent.resolve() / measured.name  # this folder itself may be a link
if ROOT / "doc" not in measured.parents:
    raise ConfigError(f"MEASURED is {measured}; the pages need it below {ROOT / 'doc'}.")
os.environ["MEASURED"] = str(measured)

# -- Project ----------------------------------------------------------------------------

project = "Beyond the masker"
author = "the Beyond the masker developers"
copyright = author
html_title = project

# -- General ----------------------------------------------------------------------------

extensions = [
    "archive",
    "calculator",
    "gallery_helpers",
    "notfound.extension",
    "numpydoc",
    "pictures",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_ext", "_report", "sg_execution_times.rst"]
nitpicky = True
# In docstrings, names stand in single backquotes.
default_role = "code"

# -- Numbers, tables and figures of the run -----------------------------------------------
# Pages include the files in doc/_report, which are written when the gallery has run. Every page
# may name a number of the run: |image shape|.

rst_epilog = ".. include:: /_report/numbers.rst"


def write_report_of_the_run(app):
    """Write what the prose includes."""
    write_report(os.environ["MEASURED"], ROOT / "doc" / "_report")


def setup(app):
    """Write the report after sphinx-gallery, and before Sphinx reads the pages; name functions."""
    app.connect("builder-inited", write_report_of_the_run, priority=900)
    app.connect("env-updated", name_as_imported)
    app.connect("env-updated", keep_index_entries)


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

# -- Functions ----------------------------------------------------------------------------
add_module_names = False
numpydoc_show_class_members = False


def name_as_imported(app, env):
    """Let names in code lead to functions that pages import from the package itself."""
    documented = env.domains["py"].objects
    for name, home in beyond_the_masker.HOMES.items():
        entry = documented[f"beyond_the_masker.{home}.{name}"]
        documented[f"beyond_the_masker.{name}"] = entry._replace(aliased=True)


def keep_index_entries(app, env):
    """Let the search know the glossary in a second build, too.

    Sphinx 9.0 remembers the entries only of pages that it writes again.
    """
    for page, entries in env.domains["index"].entries.items():
        env._search_index_index_entries[page] = sorted(
            {
                (name, target, main)
                for kind, text, target, main, _ in entries
                for name in split_index_msg(kind, text)
            }
        )


# -- Gallery ----------------------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"[\\/]plot_",
    "within_subsection_order": "gallery_helpers.reading_order",
    "reset_modules": (
        "gallery_helpers.bars_on_the_terminal",
        "gallery_helpers.warnings_are_errors",
        "matplotlib",
    ),
    "reset_modules_order": "both",
    "abort_on_example_error": True,
    "download_all_examples": False,  # doc/_ext/archive.py has the package, too
    "backreferences_dir": None,
    "capture_repr": (),
    "doc_module": (),
    "image_scrapers": ("pictures.scraper",),
    "thumbnail_size": (400, 400),
    "default_thumb_file": str(ROOT / "doc" / "_static" / "favicon.svg"),  # of pages without figures
    # Text in notebooks is Markdown: references, figures and what pages include would be lost.
    "notebook_extensions": set(),
    "min_reported_time": 0,
    "remove_config_comments": True,
    "show_memory": False,  # ignores workers
    "show_signature": False,
    "write_computation_times": False,
}

# -- HTML -------------------------------------------------------------------------------

# Where the site is published, and its repository. Pages link each other without it; only with the
# address are there previews of links and a sitemap.
html_baseurl = os.environ.get("SITE_URL", "").rstrip("/")
if html_baseurl:
    html_baseurl += "/"
    extensions += ["sphinx_sitemap", "sphinxext.opengraph"]
repository = os.environ.get("REPOSITORY_URL", "").rstrip("/")
notfound_urls_prefix = urlsplit(html_baseurl).path or "/"
ways = {"index": "front page", "search": "search", "auto_examples/index": "examples"}
notfound_context = {
    "title": "This page does not exist",
    "body": "<h1>This page does not exist</h1><p>The address may be an old one. Try the "
    + ", or the ".join(
        f'<a href="{notfound_urls_prefix}{page}.html">{name}</a>' for page, name in ways.items()
    )
    + ".</p>",
}
sitemap_url_scheme = "{link}"
sitemap_excludes = ["404.html", "genindex.html", "py-modindex.html", "search.html"]
ogp_site_url = html_baseurl
ogp_social_cards = {"font": "DejaVu Sans"}

html_theme = "pydata_sphinx_theme"
# Bokeh's own script draws the figure to explore; pages load it when a reader opens the figure.
html_static_path = ["doc/_static", str(bokehjs_path() / "js" / "bokeh.min.js")]
templates_path = ["doc/_templates"]
html_css_files = ["custom.css"]
html_favicon = "doc/_static/favicon.svg"
html_show_sourcelink = False
html_show_sphinx = False
html_sidebars = {"[!a]*": [], "auto_examples/**": ["sections"]}
html_context = {"author": author, "repository": repository, "default_mode": "light"}
html_theme_options = {
    "logo": {"text": project},
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "article_footer_items": ["package"],
    "footer_start": ["project"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_selector = "div:not(.sphx-glr-script-out) > div.highlight pre"  # no output
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = "$ "

# -- Link check -------------------------------------------------------------------------

linkcheck_anchors = False
linkcheck_timeout = 20
