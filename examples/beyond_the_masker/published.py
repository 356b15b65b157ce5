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


def in_gib(row, key):
    """Return a number of a row of `read_scale` as text, or why there is none."""
    if row[key] is None:
        return "not published" if key == "published_gib" else row["missing"]
    return f"{row[key]:.3g}"


def table_of(table, about):
    """Return the rows of `read_scale` as a printed table, after a description of the recording."""
    image, machine = about["image"], about["machine"]
    lines = [
        f"Image {' x '.join(map(str, image['shape']))}, {image['dtype']}, "
        f"{image['in_memory_mib']:,.0f} MiB; {image['n_masks']} masks.",
        f"Recorded on {about['date']}: {machine['system']}, {machine['cores']} cores, "
        f"{machine['memory_gib']:.0f} GiB.\n",
        f"{'':40}{'sum of RSS':>28}{'memory in use':>28}",
        f"{'GiB':40} " + " ".join(f"{name.split()[0]:>13}" for name in KINDS.values()),
    ]
    for row in table:
        lines.append(f"{row['method']:40} " + " ".join(f"{in_gib(row, key):>13}" for key in KINDS))
    return "\n".join(lines)
