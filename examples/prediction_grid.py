"""
A grid of measurements to hold the model against
================================================

Every method, for images of several lengths and types, compressed and not, with several
numbers of :term:`workers <worker>`: each a measurement in a fresh process.
:ref:`sphx_glr_auto_examples_plot_prediction.py` compares them with what the model predicts.

``make record`` measures the whole grid with ``--full``, which takes most of an hour, into
``doc/recorded``; a build measures a small part of it. Always with the default data: what is
asked is whether the model counts right, and the reader's own image is compared by every page's
measurement anyway.

.. code-block:: bash

    python prediction_grid.py folder
"""

import argparse
import csv
import datetime
import functools
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

import synthetic_data
from measured_methods import describe_machine
from memory_budget import calibrate, count_all, guard, read_header, this_machine
from options import read_options
from peak_memory import measure
from plot_large_image import atlas_to_masks, synthetic_atlas_path
from whole_experiment import METHODS, run, title

FULL = {
    "images": (8, 4, 2, 1),
    "kinds": ("float32", "int16"),
    "endings": (".nii.gz", ".nii"),
    "workers": (1, 2, 6),
}
COLUMNS = (
    *("method", "n_images", "kind", "ending", "n_jobs", "mask_voxels", "shape", "slope", "inter"),
    *("before_mib", "peak_pss_mib", "peak_rss_mib", "seconds"),
)


class Point(NamedTuple):
    """A point of the grid."""

    n_images: int
    kind: str  # "float32", "int16", or "scaled": int16 with a slope and an intercept
    ending: str
    n_jobs: int  # 0: methods without workers only


def full_grid():
    """Give all points of the grid, and some with scale factors."""
    points = [
        Point(*values)
        for n_images in FULL["images"]
        for kind in FULL["kinds"]
        for ending in FULL["endings"]
        for values in ((n_images, kind, ending, n_jobs) for n_jobs in FULL["workers"])
    ]
    return points + [
        Point(2, "scaled", ending, n_jobs) for ending in FULL["endings"] for n_jobs in (1, 6)
    ]


def small_grid():
    """Give two points: one for the methods with workers, and one for the others."""
    return [Point(1, "int16", ".nii", 2), Point(1, "scaled", ".nii.gz", 0)]


def methods_at(point, first, full):
    """Choose the methods that are measured at a point.

    Parameters
    ----------
    point : Point
    first : bool
        Whether it is the first point of its image: methods without workers are measured there.
    full : bool
        Whether they are also measured where others have workers.

    Returns
    -------
    list of whole_experiment.Method
    """
    alone = first and (full or not point.n_jobs)
    return [method for method in METHODS if (point.n_jobs if method.mode == "parallel" else alone)]


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


def measure_point(point, fmri_path, mask_paths, methods):
    """Measure methods at a point, those that fit into memory.

    Parameters
    ----------
    point : Point
    fmri_path : pathlib.Path
    mask_paths : list of pathlib.Path
    methods : list of whole_experiment.Method

    Yields
    ------
    dict
        A row, with the columns ``COLUMNS``.
    """
    image = read_header(fmri_path)
    for method in methods:
        masks = mask_paths[: max(point.n_jobs, 2)] if method.mode == "parallel" else mask_paths
        call = functools.partial(run, method, fmri_path, masks, point.n_jobs or 1)
        call.__name__ = title(method)
        _, reason = guard(title(method), fmri_path, masks, point.n_jobs or 1)
        trace = None if reason else measure(call)
        if reason or isinstance(trace.exception, MemoryError):
            print(f"{title(method)}: {reason or trace.exception}", file=sys.__stderr__)
            continue
        trace.result()
        yield {
            "method": call.__name__,
            **point._asdict(),
            "mask_voxels": " ".join(str(n) for n in count_all(masks, image.shape[:3])),
            "shape": " ".join(str(n) for n in image.shape),
            "slope": image.slope,
            "inter": image.inter,
            "before_mib": f"{trace.before_mib:.1f}",
            "peak_pss_mib": f"{trace.peak_pss_mib:.1f}",
            "peak_rss_mib": f"{trace.peak_rss_mib:.1f}",
            "seconds": f"{trace.seconds:.2f}",
        }


def measure_grid(points, folder, full=True):
    """Measure every method at every point, and write ``prediction.csv`` and ``.json``.

    A method without workers is measured once for an image.

    Parameters
    ----------
    points : list of Point
    folder : str or pathlib.Path
    full : bool
        As for `methods_at`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    machine = calibrate() if full else this_machine()  # a build has just measured it
    about = describe_machine() | {"date": datetime.date.today().isoformat(), "imports": machine}
    rows = []
    for _, group in itertools.groupby(points, lambda point: point[:3]):
        group = list(group)
        with tempfile.TemporaryDirectory() as temporary:
            fmri_path = write_image(group[0], temporary)
            _, mask_paths = atlas_to_masks(synthetic_atlas_path(), fmri_path, 6)
            for point in group:
                print(*point, file=sys.__stderr__, flush=True)
                methods = methods_at(point, point is group[0], full)
                rows += measure_point(point, fmri_path, mask_paths, methods)
        write_rows(folder / "prediction.csv", rows)  # what there is, if the rest is interrupted
    unfinished = folder / "prediction.json.unfinished"
    unfinished.write_text(json.dumps({"prediction": about}))
    unfinished.replace(folder / "prediction.json")


def measure_again(method_title, point, times=2):
    """Measure one method at a point again.

    Parameters
    ----------
    method_title : str
        As in the column ``method``.
    point : Point
    times : int

    Returns
    -------
    list of float
        Peak PSS in MiB.
    """
    method = next(method for method in METHODS if title(method) == method_title)
    with tempfile.TemporaryDirectory() as temporary:
        fmri_path = write_image(point, temporary)
        _, mask_paths = atlas_to_masks(synthetic_atlas_path(), fmri_path, 6)
        rows = measure_point(point, fmri_path, mask_paths, [method] * times)
        return [float(row["peak_pss_mib"]) for row in rows]


def write_rows(path, rows):
    """Write rows as a table with a header."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with open(unfinished, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure a grid to hold the model against.")
    parser.add_argument("--full", action="store_true", help="the whole grid")
    measured = read_options().measured
    parser.add_argument("folder", nargs="?", default=measured, help="where to write the results")
    arguments = parser.parse_args()
    points = full_grid() if arguments.full else small_grid()
    measure_grid(points, arguments.folder, arguments.full)

# %%
# Recommended next
# ----------------
# * :ref:`sphx_glr_auto_examples_plot_prediction.py`: what becomes of these measurements.
