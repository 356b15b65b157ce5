"""Compare measured peaks with the ranges that the model predicts."""

import csv
import json
from pathlib import Path

import numpy as np

from beyond_the_masker.model import METHODS, Image, predict

TOLERANCE = 0.1, 30  # a part of the measured peak, and MiB: the larger counts


def tolerance(measured_mib):
    """Return how far a measured peak may lie outside its predicted range, in MiB."""
    return max(TOLERANCE[0] * measured_mib, TOLERANCE[1])


def compare(row, image, masks, n_jobs, machine):
    """Compare a row's ``peak_mib`` with a prediction that starts from its ``before_mib``."""
    caller = f"caller {METHODS[row['method']].caller}"
    machine = machine | {caller: float(row["before_mib"])}
    prediction = predict(row["method"], image, masks, n_jobs, machine)
    return {
        "method": row["method"],
        "n_jobs": prediction.n_jobs,
        "measured_mib": float(row["peak_mib"]),
        "predicted_mib": prediction.peak_mib,
        "low_mib": prediction.low_mib,
        "high_mib": prediction.most_mib,
    }


def compare_summary(summary, image, masks, machine):
    """Compare the measured rows of `experiment.complete_summary`."""
    points = []
    for row in summary:
        if row["status"] == "measured":
            named = row | {"method": f"{row['method']}, {row['mode']}"}
            point = compare(named, image, masks, len(masks), machine)
            points.append(point | {"image": "this image"})
    return points


def compare_grid_row(row, machine):
    """Compare a row of the grid, as `model_check.measure_points` yields it; add the image."""
    image = Image(
        shape=tuple(int(n) for n in row["shape"].split()),
        dtype="float32" if row["kind"] == "float32" else "int16",
        compressed=row["ending"].endswith(".gz"),
        slope=str(row["slope"]) == "True",
        inter=str(row["inter"]) == "True",
    )
    masks = [int(n) for n in row["mask_voxels"].split()]
    name = f"{row['kind']}{row['ending']}, {row['n_images']} in one"
    return compare(row, image, masks, int(row["n_jobs"]), machine) | {"image": name}


def read_grid(folder):
    """Compare the grid that `model_check.record` has measured; describe also the machine."""
    about = json.loads(Path(folder, "prediction.json").read_text())["prediction"]
    with open(Path(folder, "prediction.csv"), newline="") as file:
        return [compare_grid_row(row, about["imports"]) for row in csv.DictReader(file)], about


def is_outside(point):
    """Return whether a peak lies outside its predicted range by more than the tolerance."""
    measured = point["measured_mib"]
    nearest = min(max(measured, point["low_mib"]), point["high_mib"])
    return abs(nearest - measured) > tolerance(measured)


def table_of(points):
    """Return points as a table in text."""
    lines = [f"MiB: {'predicted':>11}{'measured':>10}{'workers':>9}  method; image"]
    for point in points:
        low, high = f"{point['low_mib']:,.0f}", f"{point['high_mib']:,.0f}"
        span = low if low == high else f"{low} to {high}"
        lines.append(
            f"{span:>16}{point['measured_mib']:10,.0f}{point['n_jobs'] or '-':>9}  "
            f"{point['method']}; {point['image']}{'  <- outside' if is_outside(point) else ''}"
        )
    return "\n".join(lines)


def count_of(points):
    """Return in a sentence how many points are within the tolerance."""
    inside = sum(not is_outside(point) for point in points)
    return (
        f"{inside} of {len(points)} measured peaks are in the range of their prediction, or less "
        f"than {TOLERANCE[0]:.0%} or {TOLERANCE[1]} MiB outside."
    )


def distances(points):
    """Return how far each method's likely peaks are from the measured ones, as lines of text."""
    lines = []
    for method in dict.fromkeys(point["method"] for point in points):
        ratios = [p["predicted_mib"] / p["measured_mib"] for p in points if p["method"] == method]
        low, middle, high = map(_percent, np.quantile(ratios, [0, 0.5, 1]) - 1)
        lines.append(f"{middle:>5} {f'({low} to {high})':16}{len(ratios):>3} points  {method}")
    return "\n".join(lines)


def _percent(share):
    """Write a share in whole percent, with its sign unless it rounds to zero."""
    number = round(100 * share)
    return f"{number:+d}%" if number else "0%"
