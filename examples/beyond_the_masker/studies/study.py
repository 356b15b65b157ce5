"""Mask a study: many images, one per worker, each in one pass.

* **A failed image does not stop the others.** Its row of the table has the reason.
* **A lost worker does not stop the others.** The images that may have killed it are repeated at the
  end, each alone. (With ``n_jobs=1`` there is no worker. If the process dies, run it again: the
  suspect image is done last.)
* **Run it again to continue.** Complete files made from the same image and masks are skipped.
* **A region that is cut off is named**, with the number of its voxels that are left.
* **Results can be traced.** Each file has a record of its image and masks.
"""

import warnings
from textwrap import shorten

from beyond_the_masker.extract.running import ready_parallel
from beyond_the_masker.extract.streaming import (
    in_file_order,
    is_same_grid,
    open_series,
    stream_voxels,
)
from beyond_the_masker.files import check_folder, moved_into_place
from beyond_the_masker.studies.masks import load_masks, read_masks, save_masks
from beyond_the_masker.studies.results import describe, is_undamaged, read_about, write_arrays
from beyond_the_masker.studies.tasks import (
    Task,
    absolute,
    absolute_paths,
    name_files,
    one_part,
    refuse_other,
    refuse_third_try,
    run_tasks,
)

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
        the same name and the ending ``.tsv``, name its labels; in a BIDS dataset, the table may lie
        in a folder above. It names the volumes of a 4D image if ``index`` counts all of them, from
        1 or from 0. Without it, names are numbers, such as ``region_12``.
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
        ``status`` (done, skipped, failed; after an interruption also not done), ``reason`` (why it
        failed, or which other masks' results were replaced; a warning names them, too),
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
    arrays. `beyond_the_masker.studies.results.read_arrays` also compares the checksums of all
    arrays.

    An image is skipped if its file, size and time of change, the masks and `resample` are the same
    as before. Otherwise its results are replaced: give other masks another output folder. Results
    of another image that still exists are never overwritten.
    """
    ready_parallel(n_jobs)
    check_folder(output_dir := absolute(output_dir))
    files = name_files(absolute_paths(images), output_dir, ".npz", relative_to)
    pairs, table = one_part(files.items(), part)
    masks, options = read_masks(masks, threshold), {"resample": bool(resample)}
    output_dir.mkdir(parents=True, exist_ok=True)
    masks_file = save_masks(masks, output_dir)
    tasks = []
    for image, file in pairs:
        row = {"image": str(image), "file": str(file), "incomplete": ""}
        arguments = image, file, masks_file, options, verify
        tasks.append(Task(mask_image, arguments, [row], marker=file, files=[]))
    frame = run_tasks(tasks, output_dir / table, COLUMNS, n_jobs)
    what = "incomplete", "lack voxels of regions"
    warn_of(frame, frame.incomplete != "", *what, output_dir / table)
    what = "reason", "had results of other masks"
    warn_of(frame, (frame.status == "done") & (frame.reason != ""), *what, output_dir / table)
    return frame


def warn_of(frame, affected, column, what, table):
    """Warn of images, for which a column of the table has the particulars."""
    rows = frame[affected]
    if len(rows):
        image, found = rows.iloc[0][["image", column]]
        warnings.warn(
            f"{len(rows)} of {len(frame)} images {what}, for example {image}: "
            f"{shorten(found, 500)}. The column {column} of {table} names all.",
            stacklevel=3,
        )


def mask_image(image, file, masks_file, options, verify):
    """Stream an image's time series into a file, unless they are there; return its only row."""
    masks = load_masks(masks_file)
    about, found = describe(image, masks, options), read_about(file)
    is_finished = about.items() <= (found | {"image": str(image)}).items()
    if is_finished and not (verify and not is_undamaged(file)):
        return [summary("skipped", found)]
    other = found.get("image", str(image))
    if other != str(image) and found.get("file") != about["file"]:
        refuse_other(file, other)
    refuse_third_try(file)
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
    row = summary("done", about)
    if found.get("checksum", masks.checksum) != masks.checksum:
        row["reason"] = f"replaced those of {shorten(', '.join(found['masks']), 200)}"
    return [row]


def place(masks, fmri, resample):
    """Return where regions lie in an image, and for incomplete ones how many voxels are left."""
    if is_same_grid(masks, fmri):
        return masks.positions, {}
    if not resample:
        raise ValueError(
            f"The masks are on the grid {masks.shape}\n{masks.affine}\nThe image is on the grid "
            f"{fmri.shape[:3]}\n{fmri.affine}\nResample the masks: "
            "resample=True, on the command line --resample; or nilearn.image.resample_to_img, "
            "interpolation='nearest'."
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
