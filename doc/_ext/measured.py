"""Put what was measured into the text: numbers, tables and figures of the run.

The role ``measured`` writes one value of the files in the folder of measurements::

    :measured:`image / shape`
    :measured:`NiftiMasker, path / parallel / peak_pss_mib`
    :measured:`highest / parallel / method`
    :measured:`ratio / highest / lowest`

The first three name a value: of ``experiment.json``, or of a row of ``summary.csv`` by its
method and mode. The mode ``all masks`` stands for every mode but ``single``. ``highest`` and
``lowest`` stand for the method with that peak PSS. A ratio divides the peak PSS of two methods
for all masks; with a column at its end, that column. The column ``above_mib`` is computed
here: the peak PSS above the level before the call. Where nothing has been measured, a
placeholder stands, so that the prose can be built alone.

The directive ``measured-table`` shows ``summary.csv``, and ``measured-figure`` a picture of
the folder, with the description that is in the file, or with one in which values stand in
braces. A ``measured-note``
stands only where a value is as given. ``measured-download`` and ``recorded-download`` link
files.
"""

import csv
import json
import re
from pathlib import Path

from docutils import nodes
from pictures import Picture
from sphinx.util.docutils import SphinxDirective, SphinxRole

PLACEHOLDER = "[not measured yet]"
NOT_RUN = "not measured"


class Measurements:
    """The content of the folder of measurements.

    Parameters
    ----------
    folder : str or pathlib.Path
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.rows = []
        self.values = {}
        if (self.folder / "summary.csv").exists():
            with open(self.folder / "summary.csv", newline="") as file:
                self.rows = list(csv.DictReader(file))
        for row in self.rows:
            row["above_mib"] = str(float(row["peak_pss_mib"]) - float(row["before_mib"]))
        for name in ("experiment.json", "mprof.json"):
            if (self.folder / name).exists():
                self.values |= json.loads((self.folder / name).read_text())

    def row(self, method, mode):
        """Give a row by method, ``highest`` or ``lowest``, and mode; None if not measured."""
        every = mode == "all masks"
        rows = [r for r in self.rows if r["mode"] == mode or (every and r["mode"] != "single")]
        if method in ("highest", "lowest") and rows:
            choose = max if method == "highest" else min
            return choose(rows, key=lambda row: float(row["peak_pss_mib"]))
        return next((row for row in rows if row["method"] == method), None)

    def text(self, key):
        """Give a value as text, with its unit.

        Parameters
        ----------
        key : str
            As in the role.

        Returns
        -------
        str

        Raises
        ------
        KeyError
            Something was measured, and it does not have this value.
        """
        words = key.split(" / ")
        if len(words) == 3 and words[0] != "ratio":
            if not self.rows:
                return PLACEHOLDER
            row = self.row(*words[:2])
            if row is None:
                raise KeyError(key)
            return written(words[2], row[words[2]]) + remark(words[2], row)
        if words[0] == "ratio":
            if not self.rows:
                return PLACEHOLDER
            column = words[3] if len(words) == 4 else "peak_pss_mib"
            pair = [self.row(name, "all masks") for name in words[1:3]]
            if not all(row[column] for row in pair):
                return NOT_RUN
            above, below = (float(row[column]) for row in pair)
            least = {"above_mib": 1, "seconds": 0.01}.get(column, 0)  # less is noise
            ratio = above / max(below, least)
            more = "more than " if below < least else ""
            text = more + (f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}")
            return text + max((remark(column, row) for row in pair), key=len)
        value = self.values
        if not value:
            return PLACEHOLDER
        for word in words:
            value = value[word]
        return written(words[-1], value)


def remark(name, row):
    """Say of a peak that was not measured to its end what it is; nothing of other values."""
    if "peak" not in name and name != "above_mib":
        return ""
    return {"predicted": " (predicted)", "stopped": " (then stopped)"}.get(row["status"], "")


def written(name, value):
    """Write a value as it reads well: the unit follows from its name."""
    if value == "" and name in ("seconds", "identical"):
        return NOT_RUN
    if name.endswith("_mib"):
        return f"{float(value):,.0f} MiB"
    if name.endswith("_gib"):
        return f"{float(value):,.0f} GiB"
    if name in ("seconds", "pause"):
        return f"{float(value):.3g} s"
    if name == "shape":
        return " × ".join(str(number) for number in value)
    if name == "identical":
        return "yes" if value == "true" else "no"
    return str(value)


def note_use(env):
    """Remember that the current document shows measurements."""
    env.metadata[env.docname]["measured"] = True


def outdated(app, env, added, changed, removed):
    """Read documents that show measurements again when any of these has changed."""
    files = Path(app.config.measured_folder).glob("*.*")
    stamp = sorted((path.name, path.stat().st_mtime_ns) for path in files)
    if getattr(env, "measured_stamp", None) == stamp:
        return []
    env.measured_stamp = stamp
    return [name for name, metadata in env.metadata.items() if "measured" in metadata]


class Measured(SphinxRole):
    """The role ``measured``."""

    def run(self):
        """Put the value into the text."""
        note_use(self.env)
        try:
            text = Measurements(self.config.measured_folder).text(self.text)
        except (KeyError, TypeError):
            message = self.inliner.reporter.error(f"nothing measured is called {self.text!r}")
            return [], [message]
        kind = nodes.emphasis if self.text.endswith("/ method") else nodes.inline
        return [kind(text, text, classes=["measured"])], []


class MeasuredTable(SphinxDirective):
    """The directive ``measured-table``: ``summary.csv`` for people, and a link to it."""

    HEADINGS = {  # noqa: RUF012
        "method": "Method",
        "mode": "Mode",
        "n_jobs": "Workers",
        "before_mib": "Before the call",
        "peak_pss_mib": "Peak PSS",
        "peak_rss_mib": "Peak RSS",
        "seconds": "Time",
        "identical": "Identical",
    }

    def run(self):
        """Build the table."""
        note_use(self.env)
        rows = Measurements(self.config.measured_folder).rows
        if not rows:
            return [nodes.paragraph(PLACEHOLDER, PLACEHOLDER)]
        table = nodes.table(classes=["measured-table"])
        group = nodes.tgroup(cols=len(self.HEADINGS))
        table += group
        group += [nodes.colspec(colwidth=1) for _ in self.HEADINGS]
        cells = [
            [written(name, row[name]) + remark(name, row) for name in self.HEADINGS] for row in rows
        ]
        head, body = nodes.thead(), nodes.tbody()
        group += [head, body]
        for target, lines in ((head, [list(self.HEADINGS.values())]), (body, cells)):
            for line in lines:
                row = nodes.row()
                if any("(predicted)" in text for text in line):
                    row["classes"].append("predicted")
                row += [nodes.entry("", nodes.paragraph(text, text)) for text in line]
                target += row
        link = ":download:`summary.csv </measured/summary.csv>`"
        text = [f"The same numbers without rounding: {link}."]
        text += [
            f"* {row['method']}, {row['mode']}: {row['reason']}" for row in rows if row["reason"]
        ]
        region = '<div class="scrolling" role="region" aria-label="Measurements" tabindex="0">'
        around = [nodes.raw("", tag, format="html") for tag in (region, "</div>")]
        return [around[0], table, around[1], *self.parse_text_to_nodes("\n\n".join(text))]


class MeasuredFigure(Picture):
    """The directive ``measured-figure``: a picture of the folder of measurements.

    Its argument is the file's name. It has the options and the content of ``picture``; values
    stand in braces in the option ``alt``.
    """

    def run(self):
        """Build the figure."""
        note_use(self.env)
        measurements = Measurements(self.config.measured_folder)
        names = {"wide": self.arguments[0], "narrow": self.options.get("tall")}
        paths = {
            layout: (measurements.folder / name).resolve() for layout, name in names.items() if name
        }
        if not all(path.exists() for path in paths.values()):
            return [nodes.paragraph(PLACEHOLDER, PLACEHOLDER)]
        alt = self.options.get("alt", "")
        alt = re.sub(r"\{(.+?)\}", lambda m: measurements.text(m[1]), alt)
        figure, *messages = self.figure(paths, alt)
        figure["classes"].append("measured-figure")
        return [figure, *messages]


class MeasuredDownload(SphinxDirective):
    """The directives ``measured-download`` and ``recorded-download``: links to files.

    The arguments are names of files in the folder of measurements, or in the folder
    ``recorded`` beside it. Files that are not there are left out.
    """

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        """Build the links."""
        note_use(self.env)
        folder = Path(self.config.measured_folder).resolve()
        if self.name.startswith("recorded"):
            folder = folder.parent / "recorded"
        place = folder.relative_to(Path(self.env.srcdir).resolve()).as_posix()
        names = [name for name in self.arguments[0].split() if (folder / name).exists()]
        if not names:
            return [nodes.paragraph(PLACEHOLDER, PLACEHOLDER)]
        links = ", ".join(f":download:`{name} </{place}/{name}>`" for name in names)
        return self.parse_text_to_nodes(f"To download: {links}.")


class MeasuredNote(SphinxDirective):
    """The directive ``measured-note``: a note that stands only where a value is as given.

    Its argument is a key and a text, as in ``image / n_masks = 1``.
    """

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self):
        """Build the note."""
        note_use(self.env)
        key, value = self.arguments[0].split(" = ")
        if Measurements(self.config.measured_folder).text(key) != value:
            return []
        note = nodes.note()
        note += self.parse_content_to_nodes()
        return [note]


def setup(app):
    """Register the role and the directives."""
    app.add_config_value("measured_folder", "measured", "env")
    app.add_role("measured", Measured())
    app.add_directive("measured-table", MeasuredTable)
    app.add_directive("measured-figure", MeasuredFigure)
    app.add_directive("measured-download", MeasuredDownload)
    app.add_directive("recorded-download", MeasuredDownload)
    app.add_directive("measured-note", MeasuredNote)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True}
