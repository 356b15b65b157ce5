"""Mask a study: many images, one per worker, each in one pass.

* **A failed image does not stop the others.** Its row of the table has the reason.
* **A lost worker does not stop the others.** The images that may have killed it are repeated at the
  end, each alone. (With ``n_jobs=1`` there is no worker. If the process dies, run it again: the
  suspect image is done last.)
* **Run it again to continue.** Complete files made from the same image and masks are skipped.
* **A region that is cut off is named**, with the number of its voxels that are left.
* **Results can be traced.** Each file has a record of its image and masks.
"""

import csv
import os
import re
import socket
import time
import warnings
from contextlib import suppress
from glob import has_magic
from pathlib import Path
from textwrap import shorten

from joblib import Parallel, delayed
from tqdm import tqdm

from beyond_the_masker.checks import is_same_grid
from beyond_the_masker.files import find_unfinished, moved_into_place, remove_unfinished, stem
from beyond_the_masker.masks import load_masks, read_masks, save_masks
from beyond_the_masker.orphans import end_with_parent
from beyond_the_masker.results import describe, is_undamaged, read_about, write_arrays
from beyond_the_masker.running import results_as_ready
from beyond_the_masker.streaming import in_file_order, list_files, open_series, stream_voxels

__all__ = ["mask_study"]
COLUMNS = ["image", "file", "status", "reason", "incomplete", "volumes", "seconds", "peak_rss_mib"]
COLUMNS += ["started", "host", "pid"]


def mask_study(
    images,
    masks,
    output_dir,
    n_jobs=None,
    *,
    relative_to=None,
    resample=False,
    part=(1, 1),
    threshold=None,
    verify=False,
):
    """Extract the voxel time series of several masks from every image of a study.

    Parameters
    ----------
    images : list of str or pathlib.Path
        4D NIfTI images, compressed or not. A pattern, such as ``"sub-01/vol_*.nii"``, is one image:
        its files in the order of their numbers, as for `stream_masks`.
    masks : str, pathlib.Path or nibabel.Nifti1Image, or a list or dict of them
        As for `stream_masks`: a list of 3D masks on one grid, a label image, or a 4D image of
        masks. A file's name, without folder and ending, becomes the name of its mask; a dict gives
        the names itself. The columns ``index`` and ``name`` of a table beside a label image, with
        the same name and the ending ``.tsv``, name its labels. Without it, names are their numbers,
        such as ``region_12``.
    output_dir : str or pathlib.Path
        Folder of the results: for each image an ``.npz`` file with the image's name, or with the
        pattern's name without wildcards.
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
    threshold : float, optional
        As for `stream_masks`.
    verify : bool
        Read finished files, too, and replace those that are damaged. By default only their records
        are read, at the end of the files: a file that was cut off is replaced, but not one with
        changed bytes in its arrays.

    Returns
    -------
    pandas.DataFrame
        A row per image, in their order; also written to ``study.tsv`` in the output folder, or
        to ``study_3_of_10.tsv``. Columns: ``image``, ``file`` (empty if there are no results),
        ``status`` (done, skipped, failed; after an interruption also not done), ``reason``,
        ``incomplete`` (regions that, resampled, are partly outside the image, or vanish on a
        coarser grid, and how many of their voxels are left; a warning names them, too),
        ``volumes``, ``seconds``, ``peak_rss_mib`` (of the worker process during this image; on
        Linux), ``started`` (seconds since 1970), ``host``, ``pid``.

    Raises
    ------
    ValueError
        There is no image, two images would have one file, a mask is empty or needs a threshold,
        the masks are on different grids, or the backend does not return results as they become
        ready.
    OSError
        A mask is missing or damaged, or the output folder cannot be written.

    Notes
    -----
    `numpy.load` opens a file of results: an array of shape (n_timepoints, n_voxels) for each mask's
    name, as `stream_masks` returns it, and ``about.json``, the record of their origin, for
    `json.loads`. There ``masks`` counts the voxels of the masks as given, ``voxels`` those of the
    arrays. `beyond_the_masker.results.read_arrays` also compares the checksums of all arrays.

    An image is skipped if its file, size and time of change, the masks and `resample` are the same
    as before. Results of another image that still exists are never overwritten.
    """
    paths = [images] if isinstance(images, str | Path) else images
    output_dir = absolute(output_dir)
    files = name_files([absolute(path) for path in paths], output_dir, relative_to)
    files, table = one_part(files, part)
    masks, options = read_masks(masks, threshold), {"resample": bool(resample)}
    output_dir.mkdir(parents=True, exist_ok=True)
    masks_file = save_masks(masks, output_dir)
    written = {*files.values(), output_dir / table}
    begun = remove_unfinished(written)  # these may have killed their process
    tasks = {
        image: delayed(mask_image)(image, file, masks_file, options, verify)
        for image, file in sorted(files.items(), key=lambda item: item[1] in begun)
    }
    rows = {image: new_row(image, file, "not done") for image, file in files.items()}
    try:
        for row in show_progress(run_tasks(tasks, n_jobs, files), len(tasks)):
            rows[Path(row["image"])] = row
    finally:
        remove_unfinished(written)
        frame = write_table(rows.values(), output_dir / table)
    warn_of_incomplete(frame, output_dir / table)
    return frame


def absolute(path):
    """Return a path that depends neither on the working directory nor on ``~``."""
    if not isinstance(path, str | Path):
        raise ValueError(
            f"The path of a file is needed, not a {type(path).__name__}. For the files of one "
            "image give a pattern, such as 'sub-01/vol_*.nii'."
        )
    return Path(os.path.expanduser(path)).absolute()


def name_files(images, output_dir, relative_to=None):
    """Return for each image the file of its results; see `mask_study`."""
    files, images_of = {}, {}
    for image in images:
        below = place_below(image, absolute(relative_to)) if relative_to else Path(image.name)
        file = output_dir / below.with_name(f"{name_of(image)}.npz")
        if (other := images_of.setdefault(file, image)) != image:
            raise ValueError(
                f"{image} and {other} would both become {file}. If they are in different folders, "
                "set relative_to to a folder above all images."
            )
        files[image] = file
    if len(files) < max(len(images), 1):
        raise ValueError(f"Give at least one image, and none twice; there are {len(images)}.")
    return files


def name_of(image):
    """Return the name of an image's results; refuse a pattern for the images of several people."""
    name = stem(image)
    if os.path.lexists(image):
        return name
    folder_is_pattern = has_magic(str(image.parent)) and not image.parent.is_dir()
    if folder_is_pattern or re.search(r"sub-[^_]*[*?[]", name):
        raise ValueError(
            f"{image} is a pattern, so its files are one image, and may be of several people: only "
            "the name may have wildcards, but not that of the subject. Or give the files in a list."
        )
    return re.sub(r"[-_.]*([*?]|\[.*?\])+", "", name) or image.parent.name


def place_below(image, folder):
    """Return the path of an image below a folder, either of which may be named through a link."""
    if ".." in image.parts + folder.parts or not image.is_relative_to(folder):
        image, folder = image.parent.resolve() / image.name, folder.resolve()
    return image.relative_to(folder)


def one_part(files, part):
    """Return the files of one part of the images, and the name of its table."""
    if len(part) != 2 or not 1 <= part[0] <= part[1]:
        raise ValueError(f"part is {part}; it needs two numbers, such as (3, 10).")
    number, n_parts = part
    table = f"study_{number}_of_{n_parts}.tsv" if n_parts > 1 else "study.tsv"
    return dict(list(files.items())[number - 1 :: n_parts]), table


def new_row(image, file, status, **more):
    """Return a row of the table of `mask_study`; only a finished image has a file."""
    file = str(file) if status in ("done", "skipped") else ""
    return {"image": str(image), "file": file, "status": status, "incomplete": "", **more}


def write_table(rows, file):
    """Write rows into a file; return them as a DataFrame."""
    import pandas as pd  # here: workers do not need it

    frame = pd.DataFrame(rows, columns=COLUMNS)
    how = {"sep": "\t", "index": False, "errors": "surrogateescape"}
    if "\r" in "".join(frame.image):  # pandas quotes a line feed itself
        how["quoting"] = csv.QUOTE_NONNUMERIC
    with moved_into_place(file) as unfinished:
        frame.to_csv(unfinished, **how)
    return frame


def warn_of_incomplete(frame, table):
    """Warn of regions that are incomplete, or vanished, in some images."""
    rows = frame[frame.incomplete != ""]
    if len(rows):
        image, incomplete = rows.iloc[0][["image", "incomplete"]]
        warnings.warn(
            f"{len(rows)} of {len(frame)} images lack voxels of regions, for example {image}: "
            f"{shorten(incomplete, 500)}. The column incomplete of {table} names all.",
            stacklevel=3,
        )


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
            with results_as_ready([*todo.values()], n_jobs, pre_dispatch="all") as rows:
                for row in rows:
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


def mask_image(image, file, masks_file, options, verify=False):
    """Stream an image's time series into a file, unless they are there; return its row."""
    end_with_parent()
    process = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    forget_peak()
    try:
        result = extract(image, file, load_masks(masks_file), options, verify)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        result = {"status": "failed", "reason": reason, "volumes": 0}
    cost = {"seconds": time.time() - process["started"], "peak_rss_mib": peak_rss_mib()}
    return new_row(image, file, **result, **process, **cost)


def extract(image, file, masks, options, verify=False):
    """Write the results of an image, unless they are there; return what its row says of them."""
    about, found = describe(image, masks, options), read_about(file)
    is_finished = about.items() <= (found | {"image": str(image)}).items()
    if is_finished and not (verify and not is_undamaged(file)):
        return summary("skipped", found)
    other = found.get("image", str(image))
    if other != str(image) and found.get("file") != about["file"] and is_there(other):
        raise FileExistsError(f"{file} holds results of {other}. Use another output folder.")
    if len(find_unfinished([file])) > 1:  # from a backend that repeats tasks, such as Dask
        raise RuntimeError("The worker died twice while it did this image.")
    with moved_into_place(file) as unfinished:
        fmri = open_series(image)
        positions, about["incomplete"] = place(masks, fmri, **options)
        in_file = [in_file_order(one, fmri.shape) for one in positions]
        every_series = stream_voxels(fmri, in_file)
        if not describe(image, masks, options).items() <= about.items():
            raise OSError(f"{image} was changed while it was read. Run the study again.")
        about["voxels"] = dict(zip(masks.names, map(len, positions), strict=True))
        about["shape"] = fmri.shape
        write_arrays(unfinished, masks.names, every_series, about)
    return summary("done", about)


def is_there(image):
    """Return whether an image exists, or a file that matches its pattern."""
    with suppress(FileNotFoundError):
        return bool(list_files(image))
    return False


def place(masks, fmri, resample):
    """Return where regions lie in an image, and for incomplete ones how many voxels are left."""
    if is_same_grid(masks, fmri):
        return masks.positions, {}
    if not resample:
        raise ValueError(
            f"The masks are on the grid {masks.shape}\n{masks.affine}\nThe image is on the grid "
            f"{fmri.shape[:3]}\n{fmri.affine}\nSet resample, or see "
            "nilearn.image.resample_to_img, interpolation='nearest'."
        )
    positions, inside = masks.resampled(fmri), masks.inside(fmri)
    left = {
        name: n if len(there) else 0
        for name, n, there in zip(masks.names, inside, positions, strict=True)
    }
    if not any(map(len, positions)):
        raise ValueError(f"No region has a voxel in the image: {shorten(', '.join(left), 500)}.")
    n_voxels = zip(masks.names, map(len, masks.positions), strict=True)
    return positions, {name: left[name] for name, n in n_voxels if left[name] < n}


def summary(status, about):
    """Return what the row of a finished image says of its results."""
    incomplete = about.get("incomplete", {}).items()
    counts = (f"{name} {left} of {about['masks'][name]}" for name, left in incomplete)
    row = {"status": status, "reason": "", "incomplete": "; ".join(counts)}
    return row | {"volumes": about["shape"][3]}


def forget_peak():
    """Reset the largest resident set size of this process, on Linux."""
    with suppress(OSError):  # another system, or not allowed: it stays the largest so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mib():
    """Return the largest resident set size of this process since `forget_peak`, in MiB."""
    with suppress(OSError):
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    return float("nan")  # another system
