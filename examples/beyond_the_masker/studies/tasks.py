"""Do the tasks of a study in workers: resume, name what fails, survive lost workers, write a table.

A task is an image with its files of results and its rows of the table. It runs alone in a worker,
and may fail or kill its worker without harm to the others.
"""

import csv
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from glob import has_magic
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from joblib import Parallel, delayed, parallel_config

from beyond_the_masker.extract.orphans import WORKERS
from beyond_the_masker.extract.running import results_as_ready
from beyond_the_masker.extract.streaming import list_files, progress_bar
from beyond_the_masker.files import (
    find_unfinished,
    moved_into_place,
    remove_abandoned,
    remove_unfinished,
    stem,
)

IS_FINISHED = ("done", "skipped")
SHARED = ("masks-", "atlas-", "dataset_description.", ".bidsignore.")  # files of all parts


class Task(NamedTuple):
    """What a worker gets: it calls ``work(*arguments)``, which returns the values of each row."""

    work: Callable
    arguments: tuple
    rows: list  # what each row of the table begins with: at least its image and its file
    marker: Path  # an unfinished version of it is there while the image is being done
    files: list  # of which a worker that was killed leaves unfinished versions


def run_tasks(tasks, table, columns, n_jobs=None):
    """Do all tasks; return their rows as a DataFrame, which is also written to a table."""
    table.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(table.parent, *(f"{start}*.unfinished" for start in SHARED))
    written = {table, *chain.from_iterable([task.marker, *task.files] for task in tasks)}
    begun = remove_unfinished(written)  # these may have killed their process, so they come last
    order = sorted(range(len(tasks)), key=lambda number: tasks[number].marker in begun)
    calls = {number: delayed(do)(number, tasks[number]) for number in order}
    rows = [as_rows(task, [{"status": "not done"}] * len(task.rows)) for task in tasks]
    try:
        for number, found in show_progress(results_of(calls, tasks, n_jobs), len(calls)):
            rows[number] = found
    finally:
        remove_unfinished(written)
        frame = write_table(chain.from_iterable(rows), table, columns)
    return frame


def results_of(calls, tasks, n_jobs):
    """Yield the number and the rows of each task as they come.

    A broken backend does not report which image killed its worker, but that image has an unfinished
    file. Such images are repeated at the end, each alone. If no image was begun, as when a worker
    is killed while it starts, the work goes on once; a second time in a row is an error.
    """
    todo, suspects, n_stuck = dict(calls), [], 0
    while todo:
        n_before = len(todo)
        try:
            # All tasks at once: Dask gives them to workers that come later, too.
            with results_as_ready([*todo.values()], n_jobs, pre_dispatch="all") as results:
                for number, rows in results:
                    del todo[number]
                    yield number, rows
        except Exception:  # of the backend: errors of an image are in its rows
            begun = set(find_unfinished(task.marker for task in tasks).values())
            found = [number for number in todo if tasks[number].marker in begun]
            suspects += found
            for number in found:
                del todo[number]
            n_stuck = n_stuck + 1 if len(todo) == n_before else 0
            if n_stuck == 2:
                raise
    for number in suspects:
        try:
            # Two workers: with one, the calling process would run the task, and might die.
            yield from Parallel(n_jobs=2, **WORKERS)([calls[number]])
        except Exception as error:
            reason = f"{type(error).__name__}: the worker died twice while it did this image."
            yield number, as_rows(tasks[number], [failed(reason)] * len(tasks[number].rows))


def do(number, task):
    """Do a task; return its number, and its rows with what it took. An error becomes a row."""
    process = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    forget_peak()
    try:
        # nilearn calls joblib, for which a worker of Dask would begin another image meanwhile.
        with parallel_config(backend="sequential"):
            found = task.work(*task.arguments)
    except Exception as error:
        found = [failed(error)] * len(task.rows)
    cost = {"seconds": time.time() - process["started"], "peak_rss_mib": peak_rss_mib()}
    return number, as_rows(task, [row | process | cost for row in found])


def as_rows(task, found):
    """Return a task's rows of the table; only what is finished has a file."""
    rows = [start | more for start, more in zip(task.rows, found, strict=True)]
    return [row if row["status"] in IS_FINISHED else row | {"file": ""} for row in rows]


def failed(error):
    """Return the values of a row that failed because of an error, or for a reason."""
    if isinstance(error, Exception):
        error = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return {"status": "failed", "reason": error, "volumes": 0}


def refuse_third_try(marker):
    """Raise a RuntimeError for an image that has killed its worker twice."""
    if len(find_unfinished([marker])) > 1:  # from a backend that repeats tasks, such as Dask
        raise RuntimeError("The worker died twice while it did this image.")


def show_progress(results, total):
    """Yield results as they come, and show how many images failed and the largest peak."""
    n_failed, peak_mib = 0, 0
    with progress_bar(total, "image") as progress:
        for number, rows in results:
            yield number, rows
            n_failed += any(row["status"] == "failed" for row in rows)
            peak_mib = max([peak_mib, *(row.get("peak_rss_mib", 0) for row in rows)])
            progress.set_postfix(failed=n_failed, peak=f"{peak_mib:.0f} MiB", refresh=False)
            progress.update()


def write_table(rows, file, columns):
    """Write rows into a file; return them as a DataFrame."""
    import pandas as pd  # here: workers do not need it

    frame = pd.DataFrame(rows, columns=columns)
    how = {"sep": "\t", "index": False, "errors": "surrogateescape"}
    if "\r" in "".join(frame.image):  # pandas quotes a line feed itself
        how["quoting"] = csv.QUOTE_NONNUMERIC
    with moved_into_place(file) as unfinished:
        frame.to_csv(unfinished, **how)
    return frame


def absolute_paths(images):
    """Return the absolute paths of images, or of one."""
    is_list = isinstance(images, Iterable) and not isinstance(images, str)
    return [absolute(image) for image in (images if is_list else [images])]


def absolute(path):
    """Return a path that depends neither on the working directory nor on ``~``."""
    if not isinstance(path, str | Path):
        raise ValueError(
            f"The path of a file is needed, not a {type(path).__name__}. For the files of one "
            "image give a pattern, such as 'sub-01/vol_*.nii'."
        )
    return Path(os.path.expanduser(path)).absolute()


def name_files(images, output_dir, ending, relative_to=None):
    """Return for each image the file of its results: its name with another ending."""
    files = {}
    for image in images:
        below = place_below(image, absolute(relative_to)) if relative_to else Path(image.name)
        files[image] = output_dir / below.with_name(f"{name_of(image)}{ending}")
    if not files:
        raise ValueError("Give at least one image.")
    if len(files) < len(images):
        [(twice, _)] = Counter(images).most_common(1)
        raise ValueError(f"{twice} is given twice. Give each image once.")
    hint = "If they are in different folders, set relative_to to a folder above all images."
    check_apart(files.items(), hint)
    return files


def check_apart(files, hint):
    """Raise a ValueError if two images have one file; `files` are pairs of both."""
    images = {}
    for image, file in files:
        if (other := images.setdefault(file, image)) != image:
            raise ValueError(f"{other} and {image} would both become {file}. {hint}")


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


def is_there(image):
    """Return whether an image exists, or a file that matches its pattern."""
    with suppress(FileNotFoundError):
        return bool(list_files(image))
    return False


def refuse_other(file, other):
    """Raise a FileExistsError if a file has results of another image that still exists."""
    if is_there(other):
        raise FileExistsError(f"{file} holds results of {other}. Use another output folder.")


def place_below(image, folder):
    """Return the path of an image below a folder, either of which may be named through a link."""
    if ".." in image.parts + folder.parts or not image.is_relative_to(folder):
        image, folder = image.parent.resolve() / image.name, folder.resolve()
    return image.relative_to(folder)


def one_part(items, part):
    """Return one part of some items, and the name of its table."""
    if len(part) != 2 or not 1 <= part[0] <= part[1]:
        raise ValueError(
            f"part is {part}; (3, 10) is the third of ten parts, so (K, N) needs a K of 1 to N."
        )
    number, n_parts = part
    table = f"study_{number}_of_{n_parts}.tsv" if n_parts > 1 else "study.tsv"
    return list(items)[number - 1 :: n_parts], table


def forget_peak():
    """Reset the largest resident set size of this process, on Linux."""
    with suppress(OSError):  # another system, or not allowed: it stays the largest so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mib():
    """Return the largest resident set size of this process since `forget_peak`, in MiB."""
    with suppress(OSError):
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    return float("nan")  # another system
