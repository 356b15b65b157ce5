"""Compare measured peaks with the ranges that the model predicts.

``record`` measures every method for images of several lengths and types once, for
:ref:`sphx_glr_auto_examples_3_cost_plot_prediction.py`. ``check`` measures a few of these images,
several times those with workers, and finds the methods outside their range: so a new version of
nilearn or joblib that makes another copy is noticed. Both use the default data.
"""

import csv
import datetime
import itertools
import json
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from beyond_the_masker.experiments.experiment import (
    describe_machine,
    repeat,
    show_progress,
    why_stopped,
)
from beyond_the_masker.experiments.methods import all_methods
from beyond_the_masker.experiments.report import read_run
from beyond_the_masker.files import write_bytes
from beyond_the_masker.inputs.data import atlas_to_masks, synthetic_atlas_path
from beyond_the_masker.inputs.synthetic import synthetic_fmri
from beyond_the_masker.predict.budget import guard
from beyond_the_masker.predict.headers import count_all, read_header
from beyond_the_masker.predict.imports import calibrate, this_machine
from beyond_the_masker.predict.model import METHODS, Image, predict

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
    """Compare a row of the grid, as `measure_points` yields it; add the image."""
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
    """Compare the grid that `record` has measured; describe also the machine."""
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


# The grid

NUMBERS = ("before_mib", "peak_mib", "peak_pss_mib", "peak_rss_mib", "seconds")
COLUMNS = ("method", "n_images", "kind", "ending", "n_jobs", "mask_voxels", "shape", "slope")
COLUMNS += ("inter", *NUMBERS)


class Point(NamedTuple):
    """A point of the grid of images and numbers of workers."""

    n_images: int
    kind: str  # "float32", "int16", or "scaled": int16 with a slope and an intercept
    ending: str
    n_jobs: int


FEW_POINTS = (
    Point(2, "float32", ".nii.gz", 6),
    Point(2, "int16", ".nii", 2),
    Point(1, "scaled", ".nii.gz", 6),
)


def full_grid():
    """List all points of the grid, those of the same image next to each other."""
    grid = itertools.product((4, 2, 1), ("float32", "int16"), (".nii.gz", ".nii"), (2, 6))
    scaled = itertools.product((2,), ("scaled",), (".nii.gz", ".nii"), (2, 6))
    return [Point(*values) for values in (*grid, *scaled)]


def write_image(point, folder):
    """Write the image of a point into a folder; return its path."""
    subjects = [synthetic_fmri(i) for i in range(point.n_images)]
    data = np.concatenate([np.asarray(img.dataobj) for img in subjects], axis=3)
    if point.kind == "int16":
        data = (data * (30000 / np.abs(data).max())).astype("int16")
    img = nib.Nifti1Image(data, subjects[0].affine)
    if point.kind == "scaled":
        img.set_data_dtype("int16")  # nibabel chooses a slope and an intercept
    path = Path(folder) / f"fmri{point.ending}"
    img.to_filename(path)
    return path


def measure_points(points, n_runs=1):
    """Yield a row for each method at each point; for one without workers, once for an image."""
    for _, group in itertools.groupby(points, lambda point: point[:3]):
        with tempfile.TemporaryDirectory() as folder:
            for number, point in enumerate(group):
                show_progress(point)
                if number == 0:
                    fmri_path = write_image(point, folder)
                    _, mask_paths = atlas_to_masks(synthetic_atlas_path(), fmri_path, 6)
                for method in all_methods():
                    if number == 0 or method.mode == "parallel":
                        yield from measure_point(point, method, fmri_path, mask_paths, n_runs)


def measure_point(point, method, fmri_path, mask_paths, n_runs):
    """Yield the medians of a method's runs, or nothing if it does not fit into memory."""
    masks = mask_paths[: max(point.n_jobs, 2)] if method.mode == "parallel" else mask_paths
    _, reason = guard(method.title, fmri_path, masks, point.n_jobs)
    if reason:
        show_progress(f"{method.title}: {reason}")
        return
    call = method.call(fmri_path, masks, point.n_jobs)
    outcome, traces = repeat(call, n_runs if method.workers else 1, method.title)
    if reason := why_stopped(outcome):
        show_progress(reason)
        return
    image = read_header(fmri_path)
    row = {"method": method.title, **point._asdict(), "slope": image.slope, "inter": image.inter}
    row["mask_voxels"] = " ".join(str(n) for n in count_all(masks, image.shape[:3]))
    row["shape"] = " ".join(str(n) for n in image.shape)
    for column in NUMBERS:
        median = statistics.median(getattr(trace, column) for trace in traces)
        row[column] = f"{median:.2f}" if column == "seconds" else f"{median:.1f}"
    yield row


def record(folder):
    """Measure the whole grid, and write prediction.csv and prediction.json into a folder."""
    about = describe_machine() | {"date": datetime.date.today().isoformat()}
    about["imports"] = calibrate()
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder, "prediction.csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in measure_points(full_grid()):
            writer.writerow(row)
            file.flush()  # a run may be interrupted
    write_bytes(Path(folder, "prediction.json"), json.dumps({"prediction": about}).encode())


def check(n_runs=5):
    """Measure a few points, print them with their predictions, and return those outside."""
    machine = calibrate()
    points = [compare_grid_row(row, machine) for row in measure_points(FEW_POINTS, n_runs)]
    print(table_of(points))
    print(count_of(points))
    return [point for point in points if is_outside(point)]


# The published scale: ten subjects and twenty regions

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
    _, recorded, about = read_run(folder)
    image = Image(tuple(about["image"]["shape"]), about["image"]["stored_dtype"])
    masks, machine, table = about["image"]["mask_voxels"], this_machine(), []
    for method in [name for name, model in METHODS.items() if model.mode != "single"]:
        row, gb = recorded.get(method), PUBLISHED_GB.get(method)
        run = row if row and row["status"] == "measured" else None
        prediction = predict(method, image, masks, len(masks), machine)
        numbers = {
            "method": method,
            "published_gib": gb and gb * 1e9 / 2**30,
            "measured_rss_gib": run and float(run["peak_rss_mib"]) / 1024,
            "predicted_gib": prediction.peak_mib / 1024,
            "measured_gib": run and float(run["peak_mib"]) / 1024,
            "missing": "not run" if row else "not recorded",
        }
        table.append(numbers)
    return table, about


def kinds_of(table):
    """Return the keys and names of the numbers that at least one row of `read_scale` has."""
    return {key: name for key, name in KINDS.items() if any(row[key] for row in table)}


def in_gib(row, key):
    """Return a number of a row of `read_scale` as text, or why there is none."""
    if row[key] is None:
        return "not published" if key == "published_gib" else row["missing"]
    return f"{row[key]:#.3g}".rstrip(".")


def table_of_scale(table, about):
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
