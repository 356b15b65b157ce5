"""Write the numbers, tables and figures of a run as text files that the prose includes."""

import csv
import json
import re
from os.path import relpath
from pathlib import Path
from textwrap import indent
from typing import NamedTuple

from beyond_the_masker import HOMES
from beyond_the_masker.experiments.script import write_script
from beyond_the_masker.meter import in_seconds
from beyond_the_masker.predict.model import METHODS

PLACEHOLDER = "[not measured yet]"
FACTS = {  # the name of a fact in the prose: its place in the JSON files of the run
    "image name": ("image", "name"),
    "image source": ("image", "source"),
    "image shape": ("image", "shape"),
    "image type": ("image", "dtype"),
    "image on disk": ("image", "on_disk_mib"),
    "image in memory": ("image", "in_memory_mib"),
    "number of regions": ("image", "n_masks"),
    "system": ("machine", "system"),
    "cores": ("machine", "cores"),
    "memory": ("machine", "memory_gib"),
    "date": ("date",),
    "pause": ("mprof", "pause"),
}
PACKAGES = ("python", "nilearn", "nibabel", "numpy", "joblib", "memory_profiler", "isal")
FACTS |= {f"{name} version": ("machine", name) for name in PACKAGES}
QUANTITIES = {  # of each method: "|NiftiMasker path parallel peak|", "... time range|"
    "peak": "peak_mib",
    "above": "above_mib",
    "time": "seconds",
}
RANGES = ("peak_mib", "seconds")  # columns with a smallest and a largest value
RATIO = ("NiftiMasker, path, parallel", "Streaming, masks, one pass")
# "|download summary.csv|"
FILES = ("summary.csv", "benchmark.csv", "benchmark_memory.csv", "benchmark.json")
TABLE = {
    "peak_mib": "Peak memory (MiB)",
    "above_mib": "Above the start (MiB)",
    "seconds": "Time (s)",
}
EVERY_COLUMN = {
    **TABLE,
    "before_mib": "Before the call (MiB)",
    "identical": "Identical",
    "n_jobs": "Workers or threads",
    "peak_file_mib": "File pages (MiB)",
    "peak_pss_mib": "Sum of PSS (MiB)",
    "peak_rss_mib": "Sum of RSS (MiB)",
}
FIGURES = {  # a layout for a wide column, and where there is one, another for a narrow column
    "peaks": ("peaks.svg",),
    "memory_over_time_pss": ("memory_over_time_pss_wide.svg", "memory_over_time_pss_tall.svg"),
    "memory_over_time_rss": ("memory_over_time_rss_wide.svg", "memory_over_time_rss_tall.svg"),
}
NOTES = {
    ("image", "n_masks", 1): "This build has a single region. joblib then starts no worker, so the "
    "numbers on this page show nothing about workers and their copies. That needs two regions or "
    "more.",
    ("machine", "metric", "USS"): "This system does not report the memory in use. Where this page "
    "shows memory in use or PSS, its figures and tables hold the unique set size (:term:`USS`), "
    "which leaves shared pages out.",
}

SECTIONS = {*HOMES.values(), "predict.model"}  # modules of public names, and of what these return


class Run(NamedTuple):
    """The measurements of a run: a row for each method, and facts on image and machine."""

    folder: Path
    rows: dict
    facts: dict


def read_run(folder):
    """Read the measurements in the folder ``MEASURED``; what is missing is empty."""
    folder, rows, facts = Path(folder), {}, {}
    if (folder / "summary.csv").exists():
        with open(folder / "summary.csv", newline="") as file:
            for row in csv.DictReader(file):
                row["above_mib"] = str(float(row["peak_mib"]) - float(row["before_mib"]))
                rows[f"{row['method']}, {row['mode']}"] = row
    for name in ("experiment.json", "mprof.json"):
        if (folder / name).exists():
            facts |= json.loads((folder / name).read_text())
    return Run(folder, rows, facts)


def write_report(measured, folder):
    """Write all that the prose includes; a file that would not change is left alone.

    The folder `measured` is below the documentation's sources, and `folder` directly below them.
    """
    run, folder = read_run(measured), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    place = "/" + Path(relpath(measured, folder.parent)).as_posix()
    write_script(folder / "script.py")
    texts = {
        "numbers": numbers(run, place),
        "notes": notes(run),
        "table": table(run, TABLE, "measured-table"),
        "every_column": table(run, EVERY_COLUMN, "measured-table every-column"),
        "reasons": reasons(run),
        "timeline": timeline(run),
        "modules": modules(),
        **{name: figure(run, place, layouts) for name, layouts in FIGURES.items()},
    }
    for name, text in texts.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def numbers(run, place):
    """Return the definition of every number that the prose may name."""
    found = {name: fact(run.facts, keys) for name, keys in FACTS.items()}
    for title in METHODS:
        for quantity, column in QUANTITIES.items():
            name, row = f"{title.replace(',', '')} {quantity}", run.rows.get(title)
            found[name] = value(row, column)
            found[f"{name} range"] = value(row, column, with_range=True)
    found["peak ratio"] = ratio(run.rows, "peak_mib")
    found["time ratio"] = ratio(run.rows, "seconds")
    lines = [f".. |{name}| replace:: {escaped(text)}\n" for name, text in found.items()]
    lines += [f".. |download {name}| replace:: {link(run, place, name)}\n" for name in FILES]
    return "".join(lines)


def fact(facts, keys):
    """Return a fact on the image or the machine as text."""
    for key in keys:
        facts = facts.get(key, {})
    return PLACEHOLDER if facts == {} else written(keys[-1], facts)


def value(row, column, with_range=False):
    """Return a cell as text: rounded, with its unit, its range and what it is if not measured."""
    if row is None:
        return PLACEHOLDER
    text = written(column, row[column])
    if with_range and column in RANGES and row[column] and int(row["n_runs"]) > 1:
        low, high = (written(column, row[f"{column}_{end}"]) for end in ("min", "max"))
        text += f" ({low.rsplit(' ', 1)[0]}–{high.rsplit(' ', 1)[0]})"
    remarks = {"predicted": " (predicted)", "stopped": " (then stopped)"}
    peak = column == "above_mib" or "peak" in column
    return text + (remarks.get(row["status"], "") if peak and row[column] else "")


def written(name, number):
    """Return a value as text, rounded; the unit follows from its name."""
    if number == "":
        return "not measured"
    if unit := re.search(r"_([mg])ib(_min|_max)?$", name):
        text, unit = f"{float(number):,.0f}", f"{unit[1].upper()}iB"
        return f"less than 1 {unit}" if text in ("0", "-0") else f"{text} {unit}"
    if name.startswith("seconds"):
        return in_seconds(float(number))
    if name == "pause":
        return f"{number:.3g} s"
    if name == "shape":
        return " × ".join(map(str, number))
    return {"true": "yes", "false": "no"}.get(str(number), str(number))


def ratio(rows, column):
    """Return how many times as much NiftiMasker in parallel needs as streaming."""
    above, below = (rows.get(title) for title in RATIO)
    if not above or not below:
        return PLACEHOLDER
    if not above[column] or not below[column]:
        return "not measured"
    number = float(above[column]) / max(float(below[column]), 1e-3)
    remark = " (predicted)" if column == "peak_mib" and above["status"] == "predicted" else ""
    return (f"{number:,.0f}" if number >= 10 else f"{number:.1f}") + remark


def escaped(text):
    """Return text in which reStructuredText sees no markup."""
    return re.sub(r"([\\*`_|])", r"\\\1", text)


def link(run, place, name):
    """Return a link to a measured file, if there is one."""
    exists = (run.folder / name).exists()
    return f":download:`{name} <{place}/{name}>`" if exists else PLACEHOLDER


def notes(run):
    """Return the notes that apply to this run."""
    return "".join(
        f".. note::\n\n   {text}\n\n"
        for (group, key, known), text in NOTES.items()
        if run.facts.get(group, {}).get(key) == known
    )


def table(run, columns, classes):
    """Return a table of all methods; a predicted row is in italics."""
    if not run.rows:
        return f"{PLACEHOLDER}\n"
    lines = [".. list-table::", "   :header-rows: 1", f"   :class: {classes}", "   :widths: auto"]
    cells = [["Method", *columns.values()]]
    for title, row in run.rows.items():
        texts = [title, *(value(row, column, with_range=True) for column in columns)]
        texts = [escaped(re.sub(" (MiB|s)(?= |$)", "", text)) for text in texts]  # in the heading
        cells.append([f"*{text}*" for text in texts] if row["status"] == "predicted" else texts)
    for row in cells:
        lines += ["", f"   * - {row[0]}", *(f"     - {cell}" for cell in row[1:])]
    return "\n".join(lines) + "\n"


def reasons(run):
    """Return a list of the methods that were predicted or stopped, with the reason."""
    found = {title: row["reason"] for title, row in run.rows.items() if row["reason"]}
    return "".join(f"* {title}: {escaped(reason)}\n" for title, reason in found.items())


def figure(run, place, layouts):
    """Return the figure, in a wide and a narrow layout where it has both."""
    if not all((run.folder / name).exists() for name in layouts):
        return f"{PLACEHOLDER}\n"
    options = [f"   :tall: {place}/{name}\n" for name in layouts[1:]]
    return "".join([f".. picture:: {place}/{layouts[0]}\n", *options])


def timeline(run):
    """Return the interactive drawing of memory over time, where there is one."""
    path = run.folder / "timeline.html"
    return ".. raw:: html\n\n" + indent(path.read_text(), "   ") if path.exists() else ""


def modules():
    """Return a list of the modules that have no section on the page of functions."""
    package = Path(__file__).parents[1]
    paths = (path.relative_to(package).with_suffix("") for path in package.rglob("[!_]*.py"))
    names = {".".join(path.parts) for path in paths} - SECTIONS
    modules = (f"beyond_the_masker.{name}" for name in sorted(names))
    return "".join(f"``{name}``\n   .. automodule:: {name}\n\n" for name in modules)
