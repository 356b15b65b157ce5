"""
A study: one image per worker
=============================

One image needs one pass and no workers. A study has hundreds of images, or tens of thousands,
and there workers pay: each takes one image, and needs no more memory than one pass does. This
file masks a study, on a laptop as on a cluster:

.. code-block:: bash

    python mask_study.py image*.nii.gz --masks masks/*.nii.gz --output series --jobs 2

or, from a script, ``mask_study(images, masks, "series", n_jobs=2)``.

For each image there is then one file of time series, and in a table one row: done, skipped or
failed, and why. Copy it together with ``plot_stream_masks.py``, which does the one pass. What it
takes care of, because studies run for hours and something always fails:

* **An image that fails stops nothing else.** It is missing, damaged, on another grid: the
  reason stands in its row, and all others are done.
* **A worker that dies stops nothing else.** It was out of memory, or its node is gone: the
  images that may have killed it are done again, each alone. (With ``n_jobs=1`` there is no
  worker. What ends the process ends the study; started again, it does that image last.)
* **Started again, it goes on.** A file has its name when it is complete. What is complete, and
  made from the same image with the same masks, is skipped; anything else is done again.
* **A result can be traced.** Each file says from which image and with which masks it was made.

Three pages show it at work: :ref:`sphx_glr_auto_examples_4_many_images_plot_one_machine.py`,
:ref:`sphx_glr_auto_examples_4_many_images_plot_dask_cluster.py` and
:ref:`sphx_glr_auto_examples_4_many_images_plot_slurm.py`.
"""

import argparse
import hashlib
import json
import os
import re
import socket
import sys
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from beyond_the_masker.files import find_unfinished, moved_into_place, remove_unfinished, stem
from beyond_the_masker.streaming import stream_masks

# %%
# The masks
# ---------
# Masks are read once, by the calling process, and become the positions of their voxels: 4 bytes for
# each, whatever the grid. They are written beside the results, into a file with a checksum in its
# name. So a change of a mask while the study runs changes nothing, workers get nothing but paths,
# and whoever has the results has the masks as well.


@dataclass(frozen=True)
class Masks:
    """Masks on one grid.

    Attributes
    ----------
    names : list of str
    positions : list of arrays of int32
        For each mask the positions of its voxels, in C order of the grid.
    shape : tuple of int
        The grid.
    affine : array of shape (4, 4)
    """

    names: list
    positions: list
    shape: tuple
    affine: np.ndarray

    def images(self):
        """Give one image after the other: only one is in memory."""
        for name, positions in zip(self.names, self.positions, strict=True):
            inside = np.zeros(self.shape, "uint8")
            inside.flat[positions] = 1
            mask_img = nib.Nifti1Image(inside, self.affine)
            mask_img.set_filename(f"{name}.nii")  # for messages
            yield mask_img

    def checksum(self, options=None):
        """Give a checksum of names, voxels, grid, and the options of a study."""
        digest = hashlib.sha256(repr((self.names, self.shape, options)).encode())
        for array in (self.affine, *self.positions):
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
        return digest.hexdigest()


def read_masks(masks):
    """Read masks, once for the whole study.

    Parameters
    ----------
    masks : list of str or pathlib.Path, or dict of str to str, pathlib.Path or Nifti1Image
        3D masks on one grid: non-zero in the region. Files give their masks their names,
        without folder and ending; a dict says the names itself.

    Returns
    -------
    Masks

    Raises
    ------
    ValueError
        There is no mask, two have one name, a name cannot be used, or one is empty, is not 3D,
        or is on another grid than the first.
    OSError
        A file is missing or damaged.
    """
    if not isinstance(masks, dict):
        paths = [masks] if isinstance(masks, str | Path) else list(masks)
        masks = {stem(path): path for path in paths}
        if len(masks) < len(paths):
            raise ValueError(f"Each mask needs a file name of its own, or give a dict: {paths}")
    if not masks:
        raise ValueError("One mask at least is needed.")
    if wrong := [name for name in masks if name == ABOUT or name.endswith(".npy")]:
        raise ValueError(f"A mask cannot have one of these names: {wrong}. Give it another.")
    first, positions = None, []
    for name, mask in masks.items():
        try:
            img = nib.load(mask) if isinstance(mask, str | Path) else mask
            inside = np.nan_to_num(np.asarray(img.dataobj), posinf=0, neginf=0) != 0
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # nibabel lets a damaged file raise almost anything
            raise OSError(f"The mask {mask} is incomplete or damaged ({error}).") from error
        inside = inside[..., 0] if inside.shape[3:] == (1,) else inside
        first = img if first is None else first
        on_grid = inside.shape == first.shape[:3] and np.allclose(img.affine, first.affine)
        if not on_grid or inside.ndim != 3 or not inside.any():
            raise ValueError(
                f"The mask {name} has {inside.sum()} voxels that are not zero, on the grid "
                f"{inside.shape}\n{img.affine}\nIt needs some, on the 3D grid that all masks "
                f"have: {first.shape[:3]}\n{first.affine}"
            )
        positions.append(np.flatnonzero(inside).astype("int32"))
    return Masks(list(masks), positions, first.shape[:3], np.asarray(first.affine, float))


# %%
# One file of results
# -------------------
# The arrays of an image go into one ``.npz`` file, each under the name of its mask, and beside
# them a few lines that say what they were made of. The same arrays make the same file, byte for
# byte: no date is written.

ABOUT = "about.json"


def describe(image, masks, options):
    """Say what the results of an image depend on.

    Parameters
    ----------
    image : pathlib.Path
    masks : Masks
    options : dict
        Those of `mask_study` that change results.

    Returns
    -------
    dict
        As it is kept in the file of results, but for the shape of the image.
    """
    files = [image]
    if image.name.removesuffix(".gz").endswith((".hdr", ".img")):
        file_map = nib.Nifti1Pair.filespec_to_file_map(image)
        files = [Path(file_map[part].filename) for part in ("header", "image")]
    stats = [file.stat() for file in files]
    return {
        "image": str(image),
        "file": os.path.realpath(image),
        "size": [stat.st_size for stat in stats],
        "modified_ns": [stat.st_mtime_ns for stat in stats],
        "masks": {
            name: len(positions)
            for name, positions in zip(masks.names, masks.positions, strict=True)
        },
        "options": options,
        "checksum": masks.checksum(options),
    }


def read_about(file):
    """Say what a file of results was made of: nothing, if it is missing or damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            return json.loads(archive.read(ABOUT))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError):
        return {}


def write_arrays(path, names, arrays, about):
    """Write arrays under their names, and what they were made of.

    Parameters
    ----------
    path : pathlib.Path
    names : list of str
    arrays : list of arrays
    about : dict
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in zip(names, arrays, strict=True):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        archive.writestr(zipfile.ZipInfo(ABOUT), json.dumps(about, indent=1))


def save_masks(masks, folder):
    """Write masks into a folder, unless they are there; give the file."""
    file = folder / f"masks-{masks.checksum()[:12]}.npz"
    if not read_about(file):
        grid = {"shape": masks.shape, "affine": masks.affine.tolist()}
        with moved_into_place(file) as unfinished:
            write_arrays(unfinished, masks.names, masks.positions, grid)
    return file


def load_masks(file):
    """Read what `save_masks` wrote."""
    with np.load(file) as arrays:
        grid = json.loads(arrays[ABOUT])
        positions = {name: arrays[name] for name in arrays.files if name != ABOUT}
    grid = (tuple(grid["shape"]), np.array(grid["affine"]))
    return Masks(list(positions), list(positions.values()), *grid)


# %%
# One image
# ---------
# This is what a worker does. It gives a row of the table, also when something went wrong. The
# image never travels: a worker gets its path.


def mask_image(image, file, masks_file, options):
    """Stream the time series of one image into a file, unless they are there.

    Parameters
    ----------
    image, file : pathlib.Path
        A 4D image, and the ``.npz`` file of its results.
    masks_file : pathlib.Path
        As `save_masks` gives it.
    options : dict
        ``resample``: whether masks on another grid are resampled to that of the image.

    Returns
    -------
    dict
        A row of the table of `mask_study`.
    """
    row = {"image": str(image), "file": str(file), "status": "failed", "reason": "", "volumes": 0}
    row |= {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    forget_peak()
    try:
        row["status"], row["volumes"] = extract(image, file, load_masks(masks_file), options)
    except Exception as error:
        row["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return row | {"seconds": time.time() - row["started"], "peak_rss_mib": peak_rss_mib()}


def extract(image, file, masks, options):
    """Do what `mask_image` does; give the status and the number of volumes."""
    about, there = describe(image, masks, options), read_about(file)
    if about.items() <= there.items():
        return "skipped", there["shape"][3]
    other = there.get("image", str(image))
    if other != str(image) and os.path.exists(other):
        raise FileExistsError(f"{file} holds results of {other}. Take another output folder.")
    if len(find_unfinished([file])) > 1:  # a backend that gives it to one worker after the other
        raise RuntimeError("The worker died twice while it did this image.")
    with moved_into_place(file) as unfinished:
        mask_imgs = resampled(masks, image) if options["resample"] else masks.images()
        every_series = stream_masks(image, mask_imgs)
        if describe(image, masks, options) != about:
            raise OSError(f"{image} was changed while it was read. Start again.")
        voxels = [series.shape[1] for series in every_series]
        about["voxels"] = dict(zip(masks.names, voxels, strict=True))
        about["shape"] = nib.load(image).shape
        write_arrays(unfinished, masks.names, every_series, about)
    return "done", about["shape"][3]


def resampled(masks, image):
    """Give the masks on the grid of an image, one after the other."""
    from nilearn.image import resample_img  # here: not every worker needs it

    img = nib.load(image)
    for mask_img in masks.images():
        yield resample_img(
            mask_img,
            *(img.affine, img.shape[:3]),
            interpolation="nearest",
            copy_header=True,
            force_resample=True,
        )


def forget_peak():
    """Let Linux begin anew with the largest resident set size of this process."""
    with suppress(OSError):  # another system, or not allowed: it stays the largest so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mib():
    """Return the largest resident set size of this process, in MiB, since `forget_peak`."""
    try:
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except OSError:
        try:
            import resource  # here: Windows has none
        except ImportError:
            return float("nan")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 1024)


# %%
# The study
# ---------
# joblib hands one image after the other to whatever backend the reader has chosen, and gives the
# rows as they come. When a backend breaks because a worker died, nobody says on which image; but
# an image that was begun has an unfinished file. These images are done again at the end, each
# alone, so that the one that kills its worker takes no other with it.

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
        3D masks on one grid: non-zero in the region. Files give their masks their names,
        without folder and ending; a dict says the names itself.
    output_dir : str or pathlib.Path
        Folder of the results: for each image an ``.npz`` file of the image's name.
    n_jobs : int, optional
        Workers, as for :class:`joblib.Parallel`: by default what `joblib.parallel_config` says,
        and else one, the calling process. That is also where the backend is chosen.
    relative_to : str or pathlib.Path, optional
        A folder above all images: results get the folders that images have below it. Needed
        where images have the same name in different folders.
    resample : bool
        Resample masks on another grid to that of the image, by nearest neighbour. By default,
        such an image fails.
    part : tuple of int
        ``(3, 10)`` does every tenth image, from the third on: the third of ten parts.

    Returns
    -------
    pandas.DataFrame
        A row per image, in their order, as it is written into ``study.tsv`` in the output folder,
        or into ``study_3_of_10.tsv``: ``image``, ``file``,
        ``status`` (done, skipped, failed; after an interruption also not done), ``reason``,
        ``volumes``, ``seconds``, ``peak_rss_mib`` (of the worker process while it did this
        image, its imports included; NaN on Windows), ``started`` (seconds since 1970), ``host``,
        ``pid``.

    Raises
    ------
    ValueError
        There is no image, two images would have one file, or the masks do not fit each other.
    OSError
        A mask is missing or damaged, or the output folder cannot be written.

    Notes
    -----
    `numpy.load` opens a file of results. Under the name of each mask it has an array of shape
    (n_timepoints, n_voxels), as `stream_masks` gives it, and under ``about.json`` what it was made
    of, as text for `json.loads`: ``masks`` are the masks' voxels as they were given, ``voxels``
    those in the arrays, which are others where a mask was resampled.

    It is skipped when the image has the path, size and time of change that it had, and the
    masks and `resample` are the same. Otherwise it is replaced, but for results of another image
    that is still there: that image fails. The masks are beside the results, as positions of
    voxels.

    Parts can be done at the same time. The same image should not: what begins later removes the
    unfinished file of the other, which then fails.
    """
    import pandas as pd  # here: workers do not need it

    paths = [images] if isinstance(images, str | Path) else images
    files = name_files([Path(path).absolute() for path in paths], output_dir, relative_to)
    if len(part) != 2 or not 1 <= part[0] <= part[1]:
        raise ValueError(f"part is {part}; it needs two numbers, such as (3, 10).")
    number, n_parts = part
    files = dict(list(files.items())[number - 1 :: n_parts])
    table = f"study_{number}_of_{n_parts}.tsv" if n_parts > 1 else "study.tsv"
    masks, options = read_masks(masks), {"resample": bool(resample)}
    output_dir = Path(output_dir).absolute()
    output_dir.mkdir(parents=True, exist_ok=True)
    masks_file = save_masks(masks, output_dir)
    written = {*files.values(), output_dir / table}
    begun = remove_unfinished(written)  # and perhaps died of
    tasks = {
        str(image): delayed(mask_image)(image, file, masks_file, options)
        for image, file in sorted(files.items(), key=lambda item: item[1] in begun)
    }
    rows = {
        str(image): {"image": str(image), "file": str(file), "status": "not done"}
        for image, file in files.items()
    }
    failed, peak = 0, 0
    try:
        with tqdm(total=len(rows), unit="image", delay=2) as progress:
            for row in run(tasks, n_jobs, files):
                rows[row["image"]] = row
                failed += row["status"] == "failed"
                peak = max(peak, row["peak_rss_mib"])
                progress.set_postfix(failed=failed, peak=f"{peak:.0f} MiB", refresh=False)
                progress.update()
    finally:
        remove_unfinished(written)
        frame = pd.DataFrame(rows.values(), columns=COLUMNS)
        with moved_into_place(output_dir / table) as unfinished:
            frame.to_csv(unfinished, sep="\t", index=False, errors="surrogateescape")
    return frame


def name_files(images, output_dir, relative_to=None):
    """Say into which file the results of each image go; see `mask_study`."""
    files = {}
    for image in images:
        below = image.relative_to(Path(relative_to).absolute()) if relative_to else image.name
        files[image] = Path(output_dir).absolute() / Path(below).with_name(f"{stem(image)}.npz")
    first = {}
    for image, file in files.items():
        if first.setdefault(file, image) != image:
            raise ValueError(
                f"{image} and {first[file]} would both become {file}. If they are in different "
                "folders, say with relative_to which folder is above all images."
            )
    if len(files) < max(len(images), 1):
        raise ValueError(f"One image at least is needed, and none twice: {len(images)} are given.")
    return files


def run(tasks, n_jobs, files):
    """Give the rows of images as they come.

    Parameters
    ----------
    tasks : dict of str to the call of `mask_image`
        For each image.
    n_jobs : int or None
    files : dict of pathlib.Path to pathlib.Path
        As `name_files` gives it.

    Yields
    ------
    dict
        A row of the table of `mask_study`.
    """
    todo, alone = dict(tasks), []
    while todo:
        try:
            # All tasks at once: Dask gives them to workers that come later, too.
            parallel = Parallel(n_jobs, return_as="generator_unordered", pre_dispatch="all")
            for row in parallel(list(todo.values())):
                del todo[row["image"]]
                yield row
        except Exception:  # of the backend: those of an image are in its row
            begun = set(find_unfinished(files.values()).values())
            died_of = [str(image) for image, file in files.items() if file in begun]
            died_of = [image for image in died_of if todo.pop(image, None)]
            if not died_of:
                raise
            alone += died_of
    for image in alone:
        try:
            # Two, so that it is a worker's task, and not the calling process's.
            yield from Parallel(n_jobs=2, return_as="generator")([tasks[image]])
        except Exception as error:
            yield lost(image, files[Path(image)], error)


def lost(image, file, error):
    """Give the row of an image whose worker died twice."""
    reason = f"{type(error).__name__}: the worker died twice while it did this image."
    row = {"image": image, "file": str(file), "status": "failed", "reason": reason, "volumes": 0}
    return row | {"peak_rss_mib": 0}


# %%
# From the command line
# ---------------------
# A list of ten thousand images is too long for a command: write it into a file, a path on each
# line, and give ``@images.txt``. With ``--part 3/10`` it does every tenth image, from the third
# on: that is what the tasks of a job array do. When something failed, the exit status is 1.


def part_of(text):
    """Read ``3/10`` as the third of ten parts."""
    return tuple(int(word) for word in text.split("/"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Extract the voxel time series of several masks from every image of a study.",
        fromfile_prefix_chars="@",
    )
    parser.add_argument("images", nargs="*", help="4D NIfTI files; @FILE names them on its lines")
    parser.add_argument("--masks", nargs="+", help="3D masks on one grid")
    parser.add_argument("--output", metavar="FOLDER", default="series", help="where results go")
    parser.add_argument("--jobs", type=int, metavar="N", help="workers; 1 by default")
    parser.add_argument(
        "--part", type=part_of, default=(1, 1), metavar="K/N", help="only the Kth of N parts"
    )
    parser.add_argument("--relative-to", metavar="FOLDER", help="keep the folders below this one")
    parser.add_argument("--resample", action="store_true", help="masks to the images' grids")
    arguments = parser.parse_args()
    arguments.images = [line for line in arguments.images if line.strip()]  # a list can have some
    if bool(arguments.images) != bool(arguments.masks):
        parser.error("images and --masks go together")
    if not arguments.images:  # a study made from the options' image, as in the other examples
        from beyond_the_masker.options import read_options
        from beyond_the_masker.workers import prepare_study

        arguments.images, arguments.masks = prepare_study()
        arguments.output = Path(read_options().measured) / "series"
    try:
        table = mask_study(
            *(arguments.images, arguments.masks, arguments.output, arguments.jobs),
            relative_to=arguments.relative_to,
            resample=arguments.resample,
            part=arguments.part,
        )
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted. Start it again, and it goes on with what is missing.")
    for row in table[table.status == "failed"].itertuples():
        print(f"{row.image}\n    {row.reason}")
    counts = table.status.value_counts()
    print(*(f"{count} {status}" for status, count in counts.items()), sep=", ")
    print(f"The table is in {arguments.output}.")
    if "failed" in counts:
        sys.exit(1)
