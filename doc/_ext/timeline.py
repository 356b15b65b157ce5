"""Memory over time to point at: the samples as data, and the script that draws them.

The directive ``memory-timeline`` stands below the picture that shows the same. Its argument is
a file in the folder of measurements. Without scripts it is not seen; with them, it is a button
that opens the drawing. ``timeline.js`` is loaded by pages with the directive only.
"""

import os
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class MemoryTimeline(SphinxDirective):
    """The directive ``memory-timeline``."""

    required_arguments = 1

    def run(self):
        """Put the data into the page; nothing if there are none."""
        path = Path(os.environ["MEASURED"], self.arguments[0])
        if not path.exists():
            return []
        self.env.metadata[self.env.docname]["timeline"] = True
        data = path.read_text().replace("<", "\\u003c")
        html = f'<div class="timeline"><script type="application/json">{data}</script></div>'
        return [nodes.raw("", html, format="html")]


def load_script(app, pagename, templatename, context, doctree):
    """Load the script, on pages with the directive."""
    if "timeline" in app.env.metadata.get(pagename, {}):
        app.add_js_file("timeline.js", loading_method="defer")


def setup(app):
    """Register the directive."""
    app.add_directive("memory-timeline", MemoryTimeline)
    app.connect("html-page-context", load_script)
    return {"parallel_read_safe": True}
