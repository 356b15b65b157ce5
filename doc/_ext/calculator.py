"""The directive ``memory-calculator``: the form, the model as data, and the scripts."""

from pathlib import Path

from docutils import nodes
from jinja2 import Template
from sphinx.util.docutils import SphinxDirective

from beyond_the_masker.experiments.comparison import count_of, read_grid
from beyond_the_masker.predict.imports import TYPICAL
from beyond_the_masker.predict.model import DTYPES, as_json

FORM = Path(__file__).with_suffix(".html")
RECORDED = Path(__file__).parent.parent / "recorded"
HEADING = "What each method needs"
SCRIPTS = ("calculator_model.js", "calculator.js")


def form():
    """Return the form with the model, as HTML."""
    points, _ = read_grid(RECORDED)
    return Template(FORM.read_text()).render(
        dtypes=[(name, name) for name in DTYPES],
        count=count_of(points),
        page="auto_examples/3_cost/plot_prediction.html",
        model=as_json(TYPICAL).replace("<", "\\u003c"),
    )


class MemoryCalculator(SphinxDirective):
    """Show the calculator."""

    def run(self):
        """Return the form as it is in HTML."""
        self.env.metadata[self.env.docname]["calculator"] = True
        before, inside, after = (
            nodes.raw("", html, format="html") for html in form().split("<!-- section -->")
        )
        # As a section of the page it is in the list of its headings.
        ids = [nodes.make_id(HEADING)]
        return [before, nodes.section("", nodes.title("", HEADING), inside, ids=ids), after]


def load_scripts(app, pagename, templatename, context, doctree):
    """Load the scripts on pages with the directive."""
    if "calculator" in app.env.metadata.get(pagename, {}):
        for name in SCRIPTS:
            app.add_js_file(name, loading_method="defer")
        app.add_css_file("calculator.css")


def outdated(app, env, added, changed, removed):
    """Read pages with the directive in every build: the model may have changed."""
    return [name for name, metadata in env.metadata.items() if "calculator" in metadata]


def setup(app):
    """Register the directive."""
    app.add_directive("memory-calculator", MemoryCalculator)
    app.connect("env-get-outdated", outdated)
    app.connect("html-page-context", load_scripts)
    return {"parallel_read_safe": True}
