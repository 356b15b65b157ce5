"""Numbers, table, figures and notes of a run, as text that the prose includes."""

import csv
import json
import re
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import Directive, directives, roles

from beyond_the_masker.experiments.experiment import COLUMNS
from beyond_the_masker.experiments.report import (
    PLACEHOLDER,
    SECTIONS,
    read_run,
    value,
    write_report,
)
from beyond_the_masker.meter import in_seconds
from beyond_the_masker.predict.model import METHODS

ROOT = Path(__file__).parent.parent
FUNCTIONS = ROOT / "doc" / "functions.rst"
PAGES = [*(ROOT / "doc").glob("*.rst"), *(ROOT / "examples").glob("*/plot_*.py")]


def row_of(title, **changes):
    """Return a row of summary.csv with plausible numbers."""
    method, mode = title.rsplit(", ", 1)
    numbers = {"before_mib": 137.6, "peak_mib": 3100.1, "peak_mib_min": 2997.4, "n_runs": 3}
    numbers |= {"peak_mib_max": 3155.5, "peak_file_mib": 0.2, "peak_pss_mib": 3150.3}
    numbers |= {"peak_rss_mib": 3509.9, "seconds": 13.52, "seconds_min": 13.05, "n_jobs": 6}
    numbers |= {"seconds_max": 14.3, "status": "measured", "identical": "true", "reason": ""}
    return dict.fromkeys(COLUMNS, "") | {"method": method, "mode": mode} | numbers | changes


PREDICTED = {"status": "predicted", "n_runs": 0, "seconds": "", "identical": ""}
PREDICTED |= {"reason": "It may need 9,000 MiB; a_b* are available."}


@pytest.fixture
def measured(tmp_path):
    """A folder of measurements: one method was predicted, one has not been measured."""
    folder = tmp_path / "doc" / "measured"
    folder.mkdir(parents=True)
    with open(folder / "summary.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS)
        rows.writeheader()
        for i, title in enumerate(list(METHODS)[1:]):
            rows.writerow(row_of(title, **(PREDICTED if i == 1 else {})))
    image = {"name": "a_file*.nii.gz", "shape": [5, 6, 7, 8], "n_masks": 1, "in_memory_mib": 189.4}
    machine = {"metric": "USS", "memory_gib": 23.54, "cores": 2}
    facts = {"image": image, "machine": machine, "date": "2026-11-26"}
    (folder / "experiment.json").write_text(json.dumps(facts))
    (folder / "mprof.json").write_text('{"mprof": {"pause": 0.5}}')
    (folder / "peaks.svg").write_text("<svg/>")
    return folder


def written(measured):
    """Write the report; return its files' texts by name."""
    folder = measured.parent / "_report"
    write_report(measured, folder)
    return {path.stem: path.read_text() for path in folder.glob("*.rst")}


def substitutions(text):
    """Return the substitutions of a text by name."""
    return dict(re.findall(r"^\.\. \|(.+?)\| replace:: (.+)$", text, re.MULTILINE))


def test_each_value_is_rounded_once_with_unit_range_and_remark(measured):
    """Numbers have their unit; several runs their range; a prediction is marked as one."""
    found = substitutions(written(measured)["numbers"])
    assert found["image name"] == r"a\_file\*.nii.gz"
    assert found["image shape"] == "5 × 6 × 7 × 8"
    assert (found["image in memory"], found["memory"]) == ("189 MiB", "24 GiB")
    assert (found["pause"], found["date"]) == ("0.5 s", "2026-11-26")
    parallel = "NiftiMasker path parallel"
    assert found[f"{parallel} peak range"] == "3,100 MiB (2,997–3,156)"
    assert found[f"{parallel} above"] == "2,962 MiB"  # computed before rounding
    assert found[f"{parallel} time range"] == f"{in_seconds(13.52)} (13.1–14.3)"
    assert found["NiftiMasker path loop peak range"] == "3,100 MiB (predicted)"
    assert found["NiftiMasker path loop time"] == "not measured"
    assert found["peak ratio"] == found["time ratio"] == "1.0"
    run = read_run(measured)
    assert value(run.rows["NiftiMasker, path, parallel"], "peak_file_mib") == "less than 1 MiB"


def test_what_is_missing_is_a_placeholder(measured, tmp_path):
    """A method, or everything, that has not been measured leaves the prose buildable."""
    first, *_ = METHODS
    found = substitutions(written(measured)["numbers"])
    assert found[f"{first.replace(',', '')} peak"] == PLACEHOLDER
    assert found["nilearn version"] == found["download benchmark.csv"] == PLACEHOLDER
    empty = tmp_path / "empty" / "measured"
    empty.mkdir(parents=True)
    texts = written(empty)
    assert substitutions(texts["numbers"]).keys() == found.keys()
    assert set(substitutions(texts["numbers"]).values()) == {PLACEHOLDER}
    assert texts["table"].strip() == texts["peaks"].strip() == PLACEHOLDER
    assert texts["notes"] == texts["reasons"] == ""


def test_every_number_that_a_page_names_is_defined(tmp_path):
    """A substitution in the prose has a definition, and every included file is written."""
    texts = written(tmp_path / "doc" / "measured")
    defined = substitutions(texts["numbers"])
    for page in PAGES:
        text = page.read_text()
        text = text if page.suffix == ".rst" else re.sub("^# ?", "", text, flags=re.MULTILINE)
        prose = re.sub(r"``.*?``", "", text.replace("\n", " "))
        names = {re.sub(" +", " ", name) for name in re.findall(r"\|(\w[^|]*\w)\|", prose)}
        assert names <= defined.keys(), page.name
        for name in re.findall(r"include:: /_report/(\w+)\.rst", text):
            assert name in texts, page.name


def test_the_tables_are_valid_and_complete(measured, monkeypatch):
    """Every method has a row in each table; units stand in headings; predictions in italics."""
    nothing = type("Nothing", (Directive,), {"required_arguments": 1, "run": lambda self: []})
    monkeypatch.setitem(directives._directives, "picture", nothing)
    for name in ("download", "term"):  # of Sphinx
        monkeypatch.setitem(roles._roles, name, roles.GenericRole(name, nodes.inline))
    texts = written(measured)
    for name, n_columns in (("table", 4), ("every_column", 10)):
        tree = publish_doctree(texts[name], settings_overrides={"halt_level": 2})
        rows = [[cell.astext() for cell in row.children] for row in tree.findall(nodes.row)]
        assert [row[0] for row in rows[1:]] == list(METHODS)[1:]
        assert {len(row) for row in rows} == {n_columns}
        assert rows[0][:2] == ["Method", "Peak memory (MiB)"]
        assert rows[3][1:3] == ["3,100 (2,997–3,156)", "2,962"]
        assert rows[2][1] == "3,100 (predicted)"
        assert len(list(tree.findall(nodes.emphasis))) == n_columns
    for name in ("numbers", "notes", "reasons", "peaks"):
        publish_doctree(texts[name], settings_overrides={"halt_level": 2})
    assert "a single region" in texts["notes"]
    assert "unique set size" in texts["notes"]
    assert "NiftiMasker, path, loop: It may need" in texts["reasons"]
    assert "/measured/peaks.svg" in texts["peaks"]


def test_unchanged_files_are_left_alone(measured):
    """Sphinx reads a page again only if what it includes has changed."""
    folder = measured.parent / "_report"
    write_report(measured, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.rst")}
    write_report(measured, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.rst")} == before


def test_the_page_of_functions_names_every_module(tmp_path):
    """A module with a public name has a section there; the others are listed."""
    sections = re.findall(r"automodule:: beyond_the_masker\.([\w.]+)", FUNCTIONS.read_text())
    assert set(sections) == SECTIONS
    listed = re.findall(
        r"beyond_the_masker\.([\w.]+)$", written(tmp_path / "doc/measured")["modules"], re.MULTILINE
    )
    package = FUNCTIONS.parent.parent / "examples" / "beyond_the_masker"
    assert {*listed, *sections} == {
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("[!_]*.py")
    }
