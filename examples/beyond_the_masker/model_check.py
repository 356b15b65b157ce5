"""Measure every method for images of several lengths and types, to check the model.

``record`` measures the whole grid once, for
:ref:`sphx_glr_auto_examples_3_cost_plot_prediction.py`. ``check`` measures a few points, several
times those with workers, and finds the methods outside their range: so a new version of nilearn or
joblib that makes another copy is noticed. Both use the default data.
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

from beyond_the_masker.budget import guard
from beyond_the_masker.comparison import compare_grid_row, count_of, is_outside, table_of
from beyond_the_masker.data import atlas_to_masks, synthetic_atlas_path
from beyond_the_masker.experiment import describe_machine, repeat, show_progress, why_stopped
from beyond_the_masker.files import moved_into_place
from beyond_the_masker.headers import count_all, read_header
from beyond_the_masker.imports import calibrate
from beyond_the_masker.methods import all_methods
from beyond_the_masker.synthetic import synthetic_fmri

NUMBERS = ("before_mib", "peak_mib", "peak_pss_mib", "peak_rss_mib", "seconds")
COLUMNS = ("method", "n_images", "kind", "ending", "n_jobs", "mask_voxels", "shape", "slope")
COLUMNS += ("inter", *NUMBERS)


class Point(NamedTuple):
    """A point of the grid."""

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
    with moved_into_place(Path(folder, "prediction.json")) as unfinished:
        unfinished.write_text(json.dumps({"prediction": about}))


def check(n_runs=5):
    """Measure a few points, print them with their predictions, and return those outside."""
    machine = calibrate()
    points = [compare_grid_row(row, machine) for row in measure_points(FEW_POINTS, n_runs)]
    print(table_of(points))
    print(count_of(points))
    return [point for point in points if is_outside(point)]
