"""published."""

import csv
import json
from pathlib import Path

PUBLISHED_GB = {  # of 10 ** 9 bytes
    "NiftiMasker, path, parallel": 110,
    "NiftiMasker, in-memory image, parallel": 41,
    "NumPy indexing, path, parallel": 62,
    "NumPy indexing, shared memory, parallel": 6,
}


GIB = 2**30


KINDS = [  # key, name, style of the bar
    ("published_gib", "published (RSS)", {"fc": "#707070", "ec": "#707070"}),
    ("measured_rss_gib", "measured (RSS)", {"fc": "#0072b2", "ec": "#0072b2"}),
    ("predicted_gib", "predicted", {"fc": "white", "ec": "#d55e00", "hatch": "xxxx"}),
    ("measured_gib", "measured", {"fc": "#d55e00", "ec": "#d55e00"}),
]


def read_scale(folder):
    """Read what was recorded, and predict the same.

    Parameters
    ----------
    folder : str or pathlib.Path
        With ``summary.csv`` and ``experiment.json``.

    Returns
    -------
    list of dict
        For each method of all masks: ``method``, and in GiB ``published_gib`` and
        ``measured_rss_gib`` (sums of RSS), ``predicted_gib`` and ``measured_gib`` (memory in use).
        What is not known is None. ``missing`` says why there is no measurement.
    dict
        The image, the machine and the date.
    """
    from beyond_the_masker.imports import this_machine
    from beyond_the_masker.model import METHODS, Image, predict

    folder = Path(folder)
    about = json.loads((folder / "experiment.json").read_text())
    image = Image(tuple(about["image"]["shape"]), about["image"]["stored_dtype"])
    masks = about["image"]["mask_voxels"]
    with open(folder / "summary.csv", newline="") as file:
        recorded = {f"{row['method']}, {row['mode']}": row for row in csv.DictReader(file)}
    table = []
    for method, model in METHODS.items():
        if model.mode == "single":
            continue
        row = recorded.get(method, {})
        run, published = row.get("status") == "measured", PUBLISHED_GB.get(method)
        measured, rss = (row.get(name) if run else None for name in ("peak_mib", "peak_rss_mib"))
        prediction = predict(method, image, masks, len(masks), this_machine())
        table.append(
            {
                "method": method,
                "published_gib": published and published * 1e9 / GIB,
                "measured_rss_gib": float(rss) / 1024 if rss else None,
                "predicted_gib": prediction.peak_mib / 1024,
                "measured_gib": float(measured) / 1024 if measured else None,
                "missing": "not recorded" if run or not row else "not run",
            }
        )
    return table, about


def in_gib(row, key):
    """Write a number of a row of `read_scale`, or why there is none."""
    if row[key] is None:
        return "not published" if key == "published_gib" else row["missing"]
    return f"{row[key]:.3g}"
