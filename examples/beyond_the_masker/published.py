"""Compare published peaks, of ten subjects and twenty regions, with measurements of the same."""

import csv
import json
from pathlib import Path

from beyond_the_masker.imports import this_machine
from beyond_the_masker.model import METHODS, Image, predict

GIB = 2**30
PUBLISHED_GB = {  # of 10 ** 9 bytes
    "NiftiMasker, path, parallel": 110,
    "NiftiMasker, in-memory image, parallel": 41,
    "NumPy indexing, path, parallel": 62,
    "NumPy indexing, shared memory, parallel": 6,
}
KINDS = {  # key of a number, and its name
    "published_gib": "published (RSS)",
    "measured_rss_gib": "measured (RSS)",
    "predicted_gib": "predicted",
    "measured_gib": "measured",
}


def read_scale(folder):
    """Read the recorded peaks from a folder, and predict the same.

    Return a dict for each method of all masks, and a description of the recording. The dict has
    the ``method``, and in GiB the keys of ``KINDS``, None if unknown; ``missing`` is the reason why
    there is no measurement.
    """
    about = json.loads(Path(folder, "experiment.json").read_text())
    image = Image(tuple(about["image"]["shape"]), about["image"]["stored_dtype"])
    masks, machine = about["image"]["mask_voxels"], this_machine()
    with open(Path(folder, "summary.csv"), newline="") as file:
        recorded = {f"{row['method']}, {row['mode']}": row for row in csv.DictReader(file)}
    table = []
    for method, model in METHODS.items():
        if model.mode != "single":
            peak_mib = predict(method, image, masks, len(masks), machine).peak_mib
            gb = PUBLISHED_GB.get(method)
            numbers = {"method": method, "predicted_gib": peak_mib / 1024}
            numbers |= {"published_gib": gb and gb * 1e9 / GIB}
            table.append(numbers | _recorded(recorded.get(method)))
    return table, about


def _recorded(row):
    """Return the measured numbers of a row of ``summary.csv``, None where it has none."""
    run = bool(row) and row["status"] == "measured"
    peak, rss = (row.get(key) if run else None for key in ("peak_mib", "peak_rss_mib"))
    return {
        "measured_gib": float(peak) / 1024 if peak else None,
        "measured_rss_gib": float(rss) / 1024 if rss else None,
        "missing": "not run" if row and not run else "not recorded",
    }


def kinds_of(table):
    """Return the keys and names of the numbers that at least one row of `read_scale` has."""
    return {key: name for key, name in KINDS.items() if any(row[key] for row in table)}


def in_gib(row, key):
    """Return a number of a row of `read_scale` as text, or why there is none."""
    if row[key] is None:
        return "not published" if key == "published_gib" else row["missing"]
    return f"{row[key]:#.3g}".rstrip(".")


def table_of(table, about):
    """Return the rows of `read_scale` as a printed table, after a description of the recording."""
    image, machine, kinds = about["image"], about["machine"], kinds_of(table)
    lines = [
        f"Image {' x '.join(map(str, image['shape']))}, {image['dtype']}, "
        f"{image['in_memory_mib']:,.0f} MiB; {image['n_masks']} masks.",
        f"Recorded on {about['date']}: {machine['system']}, {machine['cores']} cores, "
        f"{machine['memory_gib']:.0f} GiB.\n",
        "GiB: sums of RSS to the left of 'predicted', memory in use from there on",
        " ".join(f"{name.removesuffix(' (RSS)'):>9}" for name in kinds.values()),
    ]
    for row in table:
        texts = ["-" if row[key] is None else in_gib(row, key) for key in kinds]
        lines.append(" ".join(f"{text:>9}" for text in texts) + f"  {row['method']}")
    return "\n".join([*lines, "-: not published, or not run, or not recorded."])
