"""The directive ``memory-calculator``: the form, the model as data, and the scripts."""

from html import escape
from pathlib import Path
from string import Template

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from beyond_the_masker.comparison import count_of, read_grid
from beyond_the_masker.imports import this_machine
from beyond_the_masker.model import DTYPES, as_json

FORM = Path(__file__).with_suffix(".html")
RECORDED = Path(__file__).parent.parent / "recorded"
PREDICTION = "auto_examples/3_cost/plot_prediction.html"
SCRIPTS = ("calculator_model.js", "calculator.js")
MEASURED_HERE = "was measured on the machine that built this page ({versions})"
TYPICAL = "is typical for a machine with two cores; <code>budget --measure</code> measures yours"
MACHINE = (
    "The memory of interpreters and imports {origin}. Elsewhere it may differ, by some tens of MiB"
    " per worker. In the recorded measurements, {count} <a href='{page}'>The page about it</a>"
    " lists the others."
)


def machine_text(machine):
    """Return how exact the numbers are, as HTML."""
    versions = escape(machine["measured"])
    origin = MEASURED_HERE.format(versions=versions) if versions else TYPICAL
    points, _ = read_grid(RECORDED)
    return MACHINE.format(origin=origin, count=count_of(points), page=PREDICTION)


def form():
    """Return the form with the model, as HTML."""
    machine = this_machine()
    options = "".join(
        f"<option{' selected' if name == 'float32' else ''}>{name}</option>" for name in DTYPES
    )
    return Template(FORM.read_text()).substitute(
        types=options,
        machine=machine_text(machine),
        model=as_json(machine).replace("<", "\\u003c"),
    )


class MemoryCalculator(SphinxDirective):
    """Show the calculator."""

    def run(self):
        """Return the form as it is in HTML."""
        self.env.metadata[self.env.docname]["calculator"] = True
        return [nodes.raw("", form(), format="html")]


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
