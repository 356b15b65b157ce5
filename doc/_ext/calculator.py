"""Put the calculator into a page: the model as data, the form, and the script.

The directive ``memory-calculator`` has no argument. The model is that of
``examples/memory_model.py`` as JSON, with the memory of imports on the machine of the build. Only
pages with the directive load the script ``calculator.js``.
"""

from html import escape
from pathlib import Path
from string import Template

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from beyond_the_masker.budget import this_machine
from beyond_the_masker.model import DTYPES, as_json

MEASURED_HERE = (
    "The memory of interpreters and imports was measured on the machine that built this page"
    " ({versions}). On yours it may differ, by some tens of MiB for each worker."
)
TYPICAL = (
    "The memory of interpreters and imports is typical, measured on a machine with two cores. On"
    " yours it may differ, by some tens of MiB for each worker. The option <code>--measure</code>"
    " of the command line measures yours."
)


def embedded_model():
    """Return the model as JSON that can stand inside a script element."""
    return as_json(this_machine()).replace("<", "\\u003c")


def machine_text(machine):
    """Return the origin of the numbers of interpreters and imports, as HTML."""
    versions = machine["measured"]
    return MEASURED_HERE.format(versions=escape(versions)) if versions else TYPICAL


class MemoryCalculator(SphinxDirective):
    """The directive ``memory-calculator``."""

    def run(self):
        """Build the form, with the model beside it."""
        self.env.metadata[self.env.docname]["calculator"] = True
        template = Template(Path(__file__).with_suffix(".html").read_text())
        selected = {"float32": " selected"}
        options = "".join(
            f'<option value="{name}"{selected.get(name, "")}>{name}</option>' for name in DTYPES
        )
        html = template.substitute(
            types=options, machine=machine_text(this_machine()), model=embedded_model()
        )
        return [nodes.raw("", html, format="html")]


def load_script(app, pagename, templatename, context, doctree):
    """Load the script, on pages with the directive."""
    if "calculator" in app.env.metadata.get(pagename, {}):
        app.add_js_file("calculator.js", loading_method="defer")


def outdated(app, env, added, changed, removed):
    """Read pages with the directive again when the model or the form has changed."""
    stamp = embedded_model(), Path(__file__).with_suffix(".html").read_text()
    if getattr(env, "calculator_stamp", None) == stamp:
        return []
    env.calculator_stamp = stamp
    return [name for name, metadata in env.metadata.items() if "calculator" in metadata]


def setup(app):
    """Register the directive."""
    app.add_directive("memory-calculator", MemoryCalculator)
    app.connect("env-get-outdated", outdated)
    app.connect("html-page-context", load_script)
    return {"parallel_read_safe": True}
