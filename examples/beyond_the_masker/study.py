"""Mask a study: many images, one per worker, each in one pass.

* **A failed image does not stop the others.** Its row of the table has the reason.
* **A lost worker does not stop the others.** The images that may have killed it are repeated at the
  end, each alone. (With ``n_jobs=1`` there is no worker. If the process dies, run it again: the
  suspect image is done last.)
* **Run it again to continue.** Complete files made from the same image and masks are skipped.
* **Results can be traced.** Each file has a record of its image and masks.
"""

import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path

import nibabel as nib
from joblib import Parallel, delayed
from tqdm import tqdm

from beyond_the_masker.files import find_unfinished, moved_into_place, remove_unfinished, stem
from beyond_the_masker.masks import load_masks, read_masks, save_masks
from beyond_the_masker.results import describe, read_about, write_arrays
from beyond_the_masker.running import results_as_ready
from beyond_the_masker.streaming import stream_masks

__all__ = ["mask_study"]
COLUMNS = ["image", "file", "status", "reason", "volumes", "seconds", "peak_rss_mib"]
COLUMNS += ["started", "host", "pid"]


def mask_study(
    images, masks, output_dir, n_jobs=None, *, relative_to=None, resample=False, part=(1, 1)
):
    """Extract the voxel time series of several masks from every image of a study.

    Parameters
    ----------
    images : list of str or pathlib.Path
        4D NIfTI images, compressed or not.
    masks : list of str or pathlib.Path, or dict of str to str, pathlib.Path or Nifti1Image
        3D masks on one grid: non-zero in the region. A file's name, without folder and ending,
        becomes the name of its mask; a dict gives the names itself.
    output_dir : str or pathlib.Path
        Folder of the results: for each image an ``.npz`` file with the image's name.
    n_jobs : int, optional
        Workers, as for :class:`joblib.Parallel`; by default the calling process does the work.
        `joblib.parallel_config` selects the backend: loky, threading or dask.
    relative_to : str or pathlib.Path, optional
        A folder above all images: results keep the folders below it. Needed if images in different
        folders have the same name.
    resample : bool
        Resample masks to the grid of each image, by nearest neighbour; at the edge of the masks'
        grid up to half a voxel, where nilearn takes none. By default, an image on another grid
        fails.
    part : tuple of int
        ``(3, 10)`` does the third of ten parts: every tenth image. Parts can run at the same time.

    Returns
    -------
    pandas.DataFrame
        A row per image, in their order; also written to ``study.tsv`` in the output folder, or
        to ``study_3_of_10.tsv``. Columns: ``image``, ``file``, ``status`` (done, skipped, failed;
        after an interruption also not done), ``reason``, ``volumes``, ``seconds``,
        ``peak_rss_mib`` (of the worker process during this image; on Linux), ``started``
        (seconds since 1970), ``host``, ``pid``.

    Raises
    ------
    ValueError
        There is no image, two images would have one file, the masks do not fit together, or the
        backend does not return results as they become ready.
    OSError
        A mask is missing or damaged, or the output folder cannot be written.

    Notes
    -----
    `numpy.load` opens a file of results: an array of shape (n_timepoints, n_voxels) for each mask's
    name, as `stream_masks` returns it, and ``about.json``, the record of their origin, for
    `json.loads`. There ``masks`` counts the voxels of the masks as given, ``voxels`` those of the
    arrays.

    An image is skipped if its path, size and time of change, the masks and `resample` are the same
    as before. Results of another image that still exists are never overwritten.
    """
    import pandas as pd  # here: workers do not need it

    paths = [images] if isinstance(images, str | Path) else images
    files = name_files([Path(path).absolute() for path in paths], output_dir, relative_to)
    files, table = one_part(files, part)
    masks, options = read_masks(masks), {"resample": bool(resample)}
    output_dir = Path(output_dir).absolute()
    output_dir.mkdir(parents=True, exist_ok=True)
    masks_file = save_masks(masks, output_dir)
    written = {*files.values(), output_dir / table}
    begun = remove_unfinished(written)  # these may have killed their process
    tasks = {
        image: delayed(mask_image)(image, file, masks_file, options)
        for image, file in sorted(files.items(), key=lambda item: item[1] in begun)
    }
    rows = {image: new_row(image, file, "not done") for image, file in files.items()}
    try:
        for row in show_progress(run_tasks(tasks, n_jobs, files), len(tasks)):
            rows[Path(row["image"])] = row
    finally:
        remove_unfinished(written)
        frame = pd.DataFrame(rows.values(), columns=COLUMNS)
        with moved_into_place(output_dir / table) as unfinished:
            frame.to_csv(unfinished, sep="\t", index=False, errors="surrogateescape")
    return frame


def name_files(images, output_dir, relative_to=None):
    """Return for each image the file of its results; see `mask_study`."""
    files, images_of = {}, {}
    for image in images:
        below = image.relative_to(Path(relative_to).absolute()) if relative_to else image.name
        file = Path(output_dir).absolute() / Path(below).with_name(f"{stem(image)}.npz")
        if (other := images_of.setdefault(file, image)) != image:
            raise ValueError(
                f"{image} and {other} would both become {file}. If they are in different folders, "
                "set relative_to to a folder above all images."
            )
        files[image] = file
    if len(files) < max(len(images), 1):
        raise ValueError(f"Give at least one image, and none twice; there are {len(images)}.")
    return files


def one_part(files, part):
    """Return the files of one part of the images, and the name of its table."""
    if len(part) != 2 or not 1 <= part[0] <= part[1]:
        raise ValueError(f"part is {part}; it needs two numbers, such as (3, 10).")
    number, n_parts = part
    table = f"study_{number}_of_{n_parts}.tsv" if n_parts > 1 else "study.tsv"
    return dict(list(files.items())[number - 1 :: n_parts]), table


def new_row(image, file, status, **more):
    """Return a row of the table of `mask_study`."""
    return {"image": str(image), "file": str(file), "status": status, **more}


def show_progress(rows, total):
    """Yield rows as they come, and show how many images failed and the largest peak of memory."""
    failed, peak_mib = 0, 0
    with tqdm(total=total, unit="image", delay=2) as progress:
        for row in rows:
            yield row
            failed += row["status"] == "failed"
            peak_mib = max(peak_mib, row.get("peak_rss_mib", 0))
            progress.set_postfix(failed=failed, peak=f"{peak_mib:.0f} MiB", refresh=False)
            progress.update()


def run_tasks(tasks, n_jobs, files):
    """Yield the rows of images as they come.

    A broken backend does not report which image killed its worker, but that image has an unfinished
    file. Such images are repeated at the end, each alone.
    """
    todo, suspects = dict(tasks), []
    while todo:
        try:
            # All tasks at once: Dask gives them to workers that come later, too.
            for row in results_as_ready(list(todo.values()), n_jobs, pre_dispatch="all"):
                del todo[Path(row["image"])]
                yield row
        except Exception:  # of the backend: errors of an image are in its row
            begun = set(find_unfinished(files.values()).values())
            found = [image for image in todo if files[image] in begun]
            if not found:
                raise
            suspects += found
            for image in found:
                del todo[image]
    for image in suspects:
        try:
            # Two workers: with one, the calling process would run the task, and might die.
            yield from Parallel(n_jobs=2)([tasks[image]])
        except Exception as error:
            reason = f"{type(error).__name__}: the worker died twice while it did this image."
            yield new_row(image, files[image], "failed", reason=reason, volumes=0)


def mask_image(image, file, masks_file, options):
    """Stream an image's time series into a file, unless they are there; return its row."""
    process = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    forget_peak()
    status, volumes, reason = "failed", 0, ""
    try:
        status, volumes = extract(image, file, load_masks(masks_file), options)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    cost = {"seconds": time.time() - process["started"], "peak_rss_mib": peak_rss_mib()}
    return new_row(image, file, status, reason=reason, volumes=volumes, **process, **cost)


def extract(image, file, masks, options):
    """Write the results of an image; return the status and the number of volumes."""
    about, found = describe(image, masks, options), read_about(file)
    if about.items() <= found.items():
        return "skipped", found["shape"][3]
    other = found.get("image", str(image))
    if other != str(image) and os.path.exists(other):
        raise FileExistsError(f"{file} holds results of {other}. Use another output folder.")
    if len(find_unfinished([file])) > 1:  # from a backend that repeats tasks, such as Dask
        raise RuntimeError("The worker died twice while it did this image.")
    with moved_into_place(file) as unfinished:
        every_series = stream_masks(
            image, masks.resampled(image) if options["resample"] else masks.images()
        )
        if describe(image, masks, options) != about:
            raise OSError(f"{image} was changed while it was read. Run the study again.")
        voxels = [series.shape[1] for series in every_series]
        about["voxels"] = dict(zip(masks.names, voxels, strict=True))
        about["shape"] = nib.load(image).shape
        write_arrays(unfinished, masks.names, every_series, about)
    return "done", about["shape"][3]


def forget_peak():
    """Reset the largest resident set size of this process, on Linux."""
    with suppress(OSError):  # another system, or not allowed: it stays the largest so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mib():
    """Return the largest resident set size of this process since `forget_peak`, in MiB."""
    with suppress(OSError):
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    return float("nan")  # another system
