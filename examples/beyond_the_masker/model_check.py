"""
Does the model hold?
====================

Every method, for images of several lengths and types, compressed and not, with several numbers of
:term:`workers <worker>`: each a measurement in a fresh process, compared with the range that the
:mod:`beyond_the_masker.model` predicts.

``make record`` measures the whole grid once into ``doc/recorded``, which takes half an hour;
:ref:`sphx_glr_auto_examples_3_cost_plot_prediction.py` shows it. ``make check-model`` measures a few
points, those with workers several times, prints a table, and fails if the median of a method is
outside its range: so a new version of nilearn or joblib that makes another copy is noticed. A build
of the site does neither.

Always with the default data; a reader's own image is compared by every build.
"""

import csv
import datetime
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from beyond_the_masker import model as memory_model
from beyond_the_masker import synthetic as synthetic_data
from beyond_the_masker.budget import guard
from beyond_the_masker.data import atlas_to_masks, synthetic_atlas_path
from beyond_the_masker.experiment import describe_machine
from beyond_the_masker.headers import count_all, read_header
from beyond_the_masker.imports import calibrate
from beyond_the_masker.meter import measure
from beyond_the_masker.methods import all_methods
from beyond_the_masker.model import Image, predict

# %%
# The points
# ----------


class Point(NamedTuple):
    """A point of the grid."""

    n_images: int
    kind: str  # "float32", "int16", or "scaled": int16 with a slope and an intercept
    ending: str
    n_jobs: int


def full_grid():
    """List all points of the grid, those of the same image next to each other."""
    grid = itertools.product((4, 2, 1), ("float32", "int16"), (".nii.gz", ".nii"), (2, 6))
    scaled = itertools.product((2,), ("scaled",), (".nii.gz", ".nii"), (2, 6))
    return [Point(*values) for values in (*grid, *scaled)]


def few_points():
    """List the points of a check."""
    return [
        *(Point(2, "float32", ".nii.gz", 6), Point(2, "int16", ".nii", 2)),
        Point(1, "scaled", ".nii.gz", 6),
    ]


# %%
# Measuring
# ---------

COLUMNS = (
    *("method", "n_images", "kind", "ending", "n_jobs", "mask_voxels", "shape", "slope", "inter"),
    *("before_mib", "peak_mib", "peak_pss_mib", "peak_rss_mib", "seconds"),
)


def write_image(point, folder):
    """Write the image of a point.

    Parameters
    ----------
    point : Point
    folder : str or pathlib.Path

    Returns
    -------
    pathlib.Path
    """
    subjects = [synthetic_data.synthetic_fmri(i) for i in range(point.n_images)]
    data = np.concatenate([np.asarray(img.dataobj) for img in subjects], axis=3)
    if point.kind == "int16":
        data = (data * (30000 / np.abs(data).max())).astype("int16")
    img = nib.Nifti1Image(data, subjects[0].affine)
    if point.kind == "scaled":
        img.set_data_dtype("int16")  # nibabel finds a slope, and an intercept
    path = Path(folder) / f"fmri{point.ending}"
    img.to_filename(path)
    return path


def measure_point(point, fmri_path, mask_paths, methods, n_runs=1):
    """Measure methods at a point, those that fit into memory.

    Parameters
    ----------
    point : Point
    fmri_path : pathlib.Path
    mask_paths : list of pathlib.Path
    methods : list of methods.Method
    n_runs : int
        Measurements of a method with workers, of which the row has the median.

    Yields
    ------
    dict
        A row, with the columns ``COLUMNS``.
    """
    image = read_header(fmri_path)
    for method in methods:
        model = memory_model.METHODS[method.title]
        masks = mask_paths[: max(point.n_jobs, 2)] if method.mode == "parallel" else mask_paths
        _, reason = guard(method.title, fmri_path, masks, point.n_jobs)
        if reason:
            print(f"{method.title}: {reason}", file=sys.__stderr__)
            continue
        call = method.call(fmri_path, masks, point.n_jobs)
        traces = [measure(call) for _ in range(n_runs if model.imports else 1)]
        stopped = next((t.exception for t in traces if isinstance(t.exception, MemoryError)), None)
        if stopped:
            print(f"{method.title}: {stopped}", file=sys.__stderr__)
            continue
        for trace in traces:
            trace.result()
        row = {"method": method.title, **point._asdict()}
        row["mask_voxels"] = " ".join(str(n) for n in count_all(masks, image.shape[:3]))
        row["shape"] = " ".join(str(n) for n in image.shape)
        row |= {"slope": image.slope, "inter": image.inter}
        for column in COLUMNS[-5:]:
            median = statistics.median(getattr(trace, column) for trace in traces)
            row[column] = f"{median:.2f}" if column == "seconds" else f"{median:.1f}"
        yield row


def measure_points(points, n_runs=1):
    """Measure every method at every point; one without workers once for an image.

    Parameters
    ----------
    points : list of Point
        Those of the same image next to each other.
    n_runs : int
        As for `measure_point`.

    Yields
    ------
    dict
        As `measure_point` does.
    """
    for _, group in itertools.groupby(points, lambda point: point[:3]):
        with tempfile.TemporaryDirectory() as folder:
            first = True
            for point in group:
                print(*point, file=sys.__stderr__, flush=True)
                if first:
                    fmri_path = write_image(point, folder)
                    _, mask_paths = atlas_to_masks(synthetic_atlas_path(), fmri_path, 6)
                methods = [method for method in all_methods() if first or method.mode == "parallel"]
                yield from measure_point(point, fmri_path, mask_paths, methods, n_runs)
                first = False


def record(folder):
    """Measure the whole grid, and write ``prediction.csv`` and ``prediction.json``.

    Parameters
    ----------
    folder : str or pathlib.Path
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = describe_machine() | {"date": datetime.date.today().isoformat()}
    about["imports"] = calibrate()
    rows = []
    for row in measure_points(full_grid()):
        rows.append(row)
        write_rows(folder / "prediction.csv", rows)  # what there is, if the rest is interrupted
    unfinished = folder / "prediction.json.unfinished"
    unfinished.write_text(json.dumps({"prediction": about}))
    unfinished.replace(folder / "prediction.json")


def write_rows(path, rows):
    """Write rows as a table with a header."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with open(unfinished, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(path)


# %%
# Comparing
# ---------
# A method is off if its peak is outside the range of its prediction by more than 10 %, or 30 MiB
# where that is more. The range of a method without workers is a single number.

TOLERANCE = 0.1, 30  # a part of what was measured; MiB


def tolerance(measured_mib):
    """Return by how much a prediction may miss a measured peak, in MiB."""
    return max(TOLERANCE[0] * measured_mib, TOLERANCE[1])


def compare(row, image, masks, n_jobs, machine):
    """Put a measured peak beside its prediction.

    Parameters
    ----------
    row : dict of str to str
        With ``before_mib`` and ``peak_mib``. What the calling process had before the call is taken
        from here, so that what is compared is the call.
    image : memory_model.Image
    masks : list of int
    n_jobs : int
    machine : dict
        As for `memory_model.predict`.

    Returns
    -------
    dict
        ``method``, ``n_jobs``, and in MiB ``measured_mib``, and ``predicted_mib``, ``low_mib`` and
        ``high_mib`` of the prediction.
    """
    caller = f"caller {memory_model.METHODS[row['method']].caller}"
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


def compare_rows(rows, machine):
    """Compare rows of `measure_points` with their predictions.

    Parameters
    ----------
    rows : iterable of dict
    machine : dict
        As for `memory_model.predict`.

    Returns
    -------
    list of dict
        As `compare` returns them, with ``image`` in words.
    """
    points = []
    for row in rows:
        image = Image(
            shape=tuple(int(n) for n in row["shape"].split()),
            dtype="float32" if row["kind"] == "float32" else "int16",
            compressed=row["ending"].endswith(".gz"),
            slope=str(row["slope"]) == "True",
            inter=str(row["inter"]) == "True",
        )
        masks = [int(n) for n in row["mask_voxels"].split()]
        point = compare(row, image, masks, int(row["n_jobs"]), machine)
        points.append(point | {"image": f"{row['kind']}{row['ending']}, {row['n_images']} in one"})
    return points


def read_grid(folder):
    """Read what `record` has measured, and compare it with today's model.

    Parameters
    ----------
    folder : str or pathlib.Path

    Returns
    -------
    list of dict
        As `compare_rows` returns them.
    dict
        The machine on which it was measured.
    """
    about = json.loads((Path(folder) / "prediction.json").read_text())["prediction"]
    with open(Path(folder) / "prediction.csv", newline="") as file:
        return compare_rows(csv.DictReader(file), about["imports"]), about


def is_off(point):
    """Tell whether a peak is outside the range of its prediction by more than the tolerance."""
    measured = point["measured_mib"]
    nearest = min(max(measured, point["low_mib"]), point["high_mib"])
    return abs(nearest - measured) > tolerance(measured)


def table_of(points):
    """Write points as a table, those that are off marked, and count the others.

    Parameters
    ----------
    points : list of dict
        As `compare` returns them, with ``image``.

    Returns
    -------
    str
    """
    lines = [f"{'MiB':42}{'image':26}{'workers':>8}{'predicted':>16}{'measured':>10}"]
    for point in points:
        low, high, measured = (
            f"{point[key]:,.0f}" for key in ("low_mib", "high_mib", "measured_mib")
        )
        span = low if low == high else f"{low} to {high}"
        workers = point["n_jobs"] or "-"
        lines.append(
            f"{point['method']:42}{point['image']:26}{workers:>8}{span:>16}{measured:>10}"
            f"{'  <- off' if is_off(point) else ''}"
        )
    return "\n".join([*lines, count_of(points)])


def count_of(points):
    """Write how many points are within the tolerance, in a sentence."""
    inside = sum(not is_off(point) for point in points)
    return (
        f"{inside} of {len(points)} measured peaks are in the range of their prediction, or less "
        f"than {TOLERANCE[0]:.0%} or {TOLERANCE[1]} MiB outside."
    )


def check(n_runs=5):
    """Measure a few points, print them beside their predictions, and list those that are off.

    Parameters
    ----------
    n_runs : int
        Measurements of a method with workers.

    Returns
    -------
    list of dict
    """
    points = compare_rows(measure_points(few_points(), n_runs), calibrate())
    print(table_of(points))
    return [point for point in points if is_off(point)]
