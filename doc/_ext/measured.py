"""Put what was measured into the text: numbers, tables and figures of the run.

The role ``measured`` writes one value of the files in the folder of measurements::

    :measured:`image / shape`
    :measured:`NiftiMasker, path / parallel / peak_mib`
    :measured:`NiftiMasker, path / parallel / seconds with range`
    :measured:`highest / parallel / method`
    :measured:`ratio / highest / lowest`

The first four name a value: of ``experiment.json``, or of a row of ``summary.csv`` by its
method and mode. The mode ``all masks`` stands for every mode but ``single``. ``highest`` and
``lowest`` stand for the method with that peak. ``with range`` adds the smallest and the largest
value of several runs. A ratio divides the peaks of two methods for all masks; with a column at
its end, that column. The column ``above_mib`` is computed here: the peak less the level before
the call. Every value is rounded once, from the number in the file.

Where a method, or everything, has not been measured, a placeholder stands in the text, so that
a page can always be built. A key that names no method and no value is an error.

The directive ``measured-table`` shows ``summary.csv``, and ``measured-figure`` a picture of
the folder, with the description in the file, or with one in which values stand in braces. A
``measured-note`` appears only where a value is as given. ``measured-download`` and
``recorded-download`` link files.
"""

import csv
import json
import re
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from pictures import Picture
from sphinx.util.docutils import SphinxDirective, SphinxRole

from beyond_the_masker.meter import in_seconds
from beyond_the_masker.model import METHODS

PLACEHOLDER = "[not measured yet]"
NOT_RUN = "not measured"
RANGES = {"peak_mib", "seconds"}  # columns with a smallest and a largest value


class Found(NamedTuple):
    """What a key stands for.

    Attributes
    ----------
    key : str
        The same for the same quantity, however it was asked for.
    text : str
        The value with its unit.
    after : str
        What follows it: a range, or a remark.
    """

    key: str
    text: str
    after: str = ""

    def as_nodes(self):
        """Return it for a page."""
        value = Value(self.text, self.text, key=self.key)
        return [value, nodes.Text(self.after)] if self.after else [value]


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
                rows = csv.DictReader(file)
                if "peak_mib" in (rows.fieldnames or ()):  # an earlier version had another
                    self.rows = list(rows)
        for row in self.rows:
            row["above_mib"] = str(float(row["peak_mib"]) - float(row["before_mib"]))
        for name in ("experiment.json", "mprof.json"):
            if (self.folder / name).exists():
                self.values |= json.loads((self.folder / name).read_text())

    def row(self, method, mode):
        """Return a row by method and mode; None if it was not measured.

        Parameters
        ----------
        method : str
            Its name, with its mode where it has several; ``highest`` or ``lowest``.
        mode : str

        Raises
        ------
        KeyError
            There is no such method, or there are several.
        """
        every = mode == "all masks"
        rows = [r for r in self.rows if r["mode"] == mode or (every and r["mode"] != "single")]
        if method in ("highest", "lowest"):
            choose = max if method == "highest" else min
            return choose(rows, key=lambda row: float(row["peak_mib"]), default=None)
        rows = [r for r in rows if method in (r["method"], f"{r['method']}, {r['mode']}")]
        if len(rows) > 1 or (not rows and not is_a_method(method, mode)):
            raise KeyError(f"{method}, {mode}")
        return rows[0] if rows else None

    def find(self, key):
        """Return what a key of the role stands for.

        Parameters
        ----------
        key : str

        Returns
        -------
        Found

        Raises
        ------
        KeyError
            Something was measured, and it does not have this value.
        """
        words = key.split(" / ")
        if words[0] == "ratio":
            return Found(key, *self.ratio(*words[1:]))
        if len(words) == 3:
            row = self.row(*words[:2])
            if row is None:
                return Found(key, PLACEHOLDER)
            name = words[2].removesuffix(" with range")
            after = spread(name, row) if words[2] != name else ""
            return cell(name, row, after)
        value = self.values
        if not value:
            return Found(key, PLACEHOLDER)
        for word in words:
            value = value[word]
        return Found(key, written(words[-1], value))

    def text(self, key):
        """Return what a key stands for as text."""
        found = self.find(key)
        return found.text + found.after

    def ratio(self, above, below, column="peak_mib"):
        """Return a column of one method divided by that of another: text, and a remark."""
        pair = [self.row(name, "all masks") for name in (above, below)]
        if not all(pair):
            return PLACEHOLDER, ""
        if not all(row[column] for row in pair):
            return NOT_RUN, ""
        above, below = (float(row[column]) for row in pair)
        least = {"above_mib": 1, "seconds": 0.01}.get(column, 0)  # less is noise
        ratio = above / max(below, least)
        text = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
        remarks = [remark(column, row) for row in pair]
        return ("more than " if below < least else "") + text, max(remarks, key=len)


def is_a_method(method, mode):
    """Return whether the experiment has this method."""
    return any(
        mode in (model.mode, "all masks")
        and method in (title, title.removesuffix(f", {model.mode}"))
        for title, model in METHODS.items()
    )


def cell(name, row, after=""):
    """Return the value of a column, with its key and its remark."""
    key = f"{row['method']} / {row['mode']} / {name}"
    return Found(key, written(name, row[name]), after + remark(name, row))


def spread(name, row):
    """Return the range of several runs in parentheses; nothing for a single run."""
    if name not in RANGES or not row[name] or int(row["n_runs"]) < 2:
        return ""
    low, high = (written(name, row[f"{name}_{end}"]).rsplit(" ", 1)[0] for end in ("min", "max"))
    return f" ({low}–{high})"


def remark(name, row):
    """Return what a peak is that was not measured to its end; nothing for other values."""
    if ("peak" not in name and name != "above_mib") or not row[name]:
        return ""
    return {"predicted": " (predicted)", "stopped": " (then stopped)"}.get(row["status"], "")


def written(name, value):
    """Return a value as text, rounded; the unit follows from its name."""
    if value == "":
        return NOT_RUN
    if unit := re.search(r"_([mg])ib(_min|_max)?$", name):
        text, unit = f"{float(value):,.0f}", f"{unit[1].upper()}iB"
        return f"less than 1 {unit}" if text in ("0", "-0") else f"{text} {unit}"
    if name.startswith("seconds"):
        return in_seconds(float(value))
    if name == "pause":
        return f"{value:.3g} s"
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


class Value(nodes.inline):
    """A measured value in the text, with its key, by which tests compare equal quantities."""


def open_value(translator, node):
    """Begin a measured value in HTML."""
    attributes = {"CLASS": "measured", "data-key": node["key"]}
    translator.body.append(translator.starttag(node, "span", "", **attributes))


def close_value(translator, node):
    """End a measured value in HTML."""
    translator.body.append("</span>")


class Measured(SphinxRole):
    """The role ``measured``."""

    def run(self):
        """Put the value into the text."""
        note_use(self.env)
        try:
            found = Measurements(self.config.measured_folder).find(self.text)
        except (KeyError, TypeError):
            message = self.inliner.reporter.error(f"nothing measured is called {self.text!r}")
            return [], [message]
        return found.as_nodes(), []


class MeasuredTable(SphinxDirective):
    """The directive ``measured-table``: ``summary.csv`` for people, and a link to it."""

    HEADINGS = {  # noqa: RUF012
        "method": "Method",
        "mode": "Mode",
        "peak_mib": "Peak memory",
        "above_mib": "Above the start",
        "before_mib": "Before the call",
        "seconds": "Time",
        "identical": "Identical",
        "n_jobs": "Workers",
        "peak_file_mib": "File pages (droppable)",
        "peak_pss_mib": "PSS summed",
        "peak_rss_mib": "RSS summed",
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
        head, body = nodes.thead(), nodes.tbody()
        group += [head, body]
        head += nodes.row()
        head[0] += [nodes.entry("", nodes.paragraph(text, text)) for text in self.HEADINGS.values()]
        for row in rows:
            body += nodes.row(classes=["predicted"] if row["status"] == "predicted" else [])
            for name in self.HEADINGS:
                found = cell(name, row, spread(name, row))
                body[-1] += nodes.entry("", nodes.paragraph("", "", *found.as_nodes()))
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
    app.add_node(Value, html=(open_value, close_value))
    app.add_role("measured", Measured())
    app.add_directive("measured-table", MeasuredTable)
    app.add_directive("measured-figure", MeasuredFigure)
    app.add_directive("measured-download", MeasuredDownload)
    app.add_directive("recorded-download", MeasuredDownload)
    app.add_directive("measured-note", MeasuredNote)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True}
