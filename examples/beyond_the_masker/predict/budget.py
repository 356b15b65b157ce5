"""Predict whether a method fits into memory, and with how many workers, from headers alone.

.. code-block:: bash

    python -m beyond_the_masker budget image.nii.gz masks/*.nii.gz --jobs 20 --memory 16G

`print_budget` prints the same table, and `predict_peak` returns the parts of one method's peak.
:mod:`beyond_the_masker.predict.model` computes the numbers.
"""

import bisect
import math
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from beyond_the_masker.extract.streaming import open_series
from beyond_the_masker.meter import MIB, available_mib, reserve_mib
from beyond_the_masker.options import parse_memory, read_options
from beyond_the_masker.predict.headers import count_all, read_header
from beyond_the_masker.predict.imports import this_machine
from beyond_the_masker.predict.model import (
    METHODS,
    REASONS,
    Image,
    Prediction,
    check,
    predict,
    quantities,
)

__all__ = ["predict_peak", "print_budget"]

STREAMING = "Streaming, masks, one pass"


def predict_peak(method, image, masks, n_jobs=1, threshold=None):
    """Predict the peak memory of a method, with all its processes.

    Parameters
    ----------
    method : str
        A key of `model.METHODS`: its name and its mode, as `print_budget` prints it.
    image : model.Image, str or pathlib.Path, or list of paths
        A header, or the file to read it from; or the files of a series, as for `stream_masks`.
    masks : list of int or of masks, or masks as for `stream_masks`
        The masks' voxels, or the files to count them in: a list of masks, one label image or one
        4D image.
    n_jobs : int
        Workers; methods without workers ignore it.
    threshold : float, optional
        As for `stream_masks`.

    Returns
    -------
    model.Prediction

    Raises
    ------
    ValueError
        A value is impossible: no worker, a mask without voxels, an unknown method.
    OSError
        A file is missing or damaged, or its header claims more than it holds.
    """
    image, masks = read_inputs(image, masks, threshold)
    return predict(method, image, masks, n_jobs, this_machine())


def read_inputs(image, masks, threshold=None):
    """Return the `Image` of a file, and the voxels of masks on its grid."""
    fmri = None if isinstance(image, Image) else open_series(image)
    image = read_header(fmri) if fmri else image
    return image, count_all(masks, image.shape[:3], threshold, fmri)


def why_not(prediction, memory_mib, shm_mib):
    """Return in a sentence why a method might not fit, or an empty text."""
    most, shm = prediction.most_mib, prediction.shm_mib
    if most > memory_mib:
        return f"It may need {most:,.0f} MiB, and {memory_mib:,.0f} MiB are available."
    # With less free space than this, joblib writes to the folder for temporary files.
    joblib_avoids = shm_mib <= 2e9 / MIB and not uses_block(prediction.method)
    if shm > shm_mib and not joblib_avoids:
        return f"It needs {shm:,.0f} MiB in /dev/shm, which has {shm_mib:,.0f} MiB left."
    return ""


def uses_block(method):
    """Return whether a method itself creates a block of shared memory."""
    moments = METHODS[method].moments
    return any(part.reason == "block" for moment in moments for part in moment.parts)


def available_shm_mib():
    """Return the free space in ``/dev/shm`` in MiB; infinity if there is no such folder."""
    return shutil.disk_usage("/dev/shm").free / MIB if Path("/dev/shm").is_dir() else math.inf


def most_workers(method, image, masks, memory_mib, shm_mib, machine):
    """Return with how many workers a method fits, up to one per mask; 0 if with none."""

    def does_not_fit(n_jobs):
        return bool(why_not(predict(method, image, masks, n_jobs, machine), memory_mib, shm_mib))

    return bisect.bisect_left(range(1, len(masks) + 1), True, key=does_not_fit)


def allowed_mib():
    """Return two limits in MiB, by the option MEMORY: to run a method, and to stop it."""
    memory = read_options().memory
    if memory in ("", "unlimited"):
        free = max(available_mib() - reserve_mib(), 0)
        return math.inf if memory else free, math.inf
    return parse_memory(memory), parse_memory(memory)


def guard(method, fmri_path, mask_paths, n_jobs):
    """Return a method's prediction, and why a build must not run it; empty if it may."""
    prediction = predict_peak(method, fmri_path, mask_paths, n_jobs)
    allowed, _ = allowed_mib()
    shm_mib = available_shm_mib() if allowed < math.inf else math.inf
    return prediction, why_not(prediction, allowed, shm_mib)


class Row(NamedTuple):
    """A line of the table that `print_budget` prints."""

    prediction: Prediction
    reason: str  # why it does not fit; empty if it does
    most_workers: int


def print_budget(
    fmri_path, mask_paths, n_jobs=None, memory=None, shm=None, explain=False, threshold=None
):
    """Print what each method would need, whether that fits, and with how many workers.

    Parameters
    ----------
    fmri_path : str or pathlib.Path, or list of them
        4D NIfTI image, of which only the header is read; or the files of a series, as for
        `stream_masks`. The other methods need them joined in one file.
    mask_paths : list of int or of masks, or masks as for `stream_masks`
        The masks' files, or their numbers of voxels; one label image or one 4D image.
    n_jobs : int, optional
        Workers of the parallel methods; one for each mask by default.
    memory, shm : str or float, optional
        Memory and space in ``/dev/shm`` that may be used: MiB, or text such as ``"16G"``. By
        default the free memory of the machine and its control groups, and the free space.
    explain : bool
        Print also what is in memory at the peak of each method, and why.
    threshold : float, optional
        As for `stream_masks`.

    Returns
    -------
    list of Row
        One for each method. Errors are raised as by `predict_peak`.
    """
    fmri = open_series(fmri_path)
    image, masks = read_inputs(fmri, mask_paths, threshold)
    n_jobs = len(masks) if n_jobs is None else n_jobs
    check(image, masks, n_jobs)
    memory_mib = available_mib() if memory is None else parse_memory(memory)
    shm_mib = available_shm_mib() if shm is None else parse_memory(shm)
    machine, rows = this_machine(), []
    for method in METHODS:
        prediction = predict(method, image, masks, n_jobs, machine)
        reason = why_not(prediction, memory_mib, shm_mib)
        most = most_workers(method, image, masks, memory_mib, shm_mib, machine)
        rows.append(Row(prediction, reason, most))
    if len(fmri.parts) > 1:
        print(f"{len(fmri.parts)} files, as for streaming; other methods need them in one file")
    _print_basis(image, masks, n_jobs, memory_mib, shm_mib, machine)
    _print_table(rows)
    print(f"\n{recommend(rows, memory_mib)}")
    print("\nA Slurm job whose script streams one such image; time in minutes:")
    print(sbatch_lines(image, predict(STREAMING, image, masks, n_jobs, machine)))
    if explain:
        _print_parts(rows)
    return rows


def _print_basis(image, masks, n_jobs, memory_mib, shm_mib, machine):
    """Print the numbers that a budget is based on."""
    amounts = quantities(image, masks, "parallel")
    array_mib, output_mib = amounts["array"] / MIB, amounts["outputs"] / MIB
    kind = image.dtype + (", scaled" if image.scaled else "")
    kind += ", compressed" if image.compressed else ""
    print(f"image {image.shape}, {kind}: {array_mib:,.0f} MiB in memory")
    print(f"{len(masks)} masks, {sum(masks):,} voxels: {output_mib:,.0f} MiB of time series")
    shm = f"{shm_mib:,.0f} MiB" if shm_mib < math.inf else "no limit"
    print(f"available {memory_mib:,.0f} MiB; in /dev/shm {shm}")
    if n_jobs > len(masks):
        print(f"{n_jobs - len(masks)} of {n_jobs} workers have no mask; joblib starts them, too")
    origin = "measured here" if machine["measured"] else "typical; --measure does it here"
    print(f"imports: {origin}\n")


def _print_table(rows):
    """Print a line for each method."""
    print("MiB: likely  at most   mapped  workers  method")
    for prediction, reason, most in rows:
        parallel = METHODS[prediction.method].imports
        fewer = f"fits with {most}" if parallel and most else "does not fit"
        fits = fewer if reason else "fits"
        print(
            f"{prediction.peak_mib:11,.0f}{prediction.most_mib:9,.0f}{prediction.file_mib:9,.0f}"
            f"{prediction.n_jobs or '-':>9}  {prediction.method}: {fits}"
        )
    if any(row.prediction.file_mib for row in rows):
        print("Mapped: up to this much of a file may be in memory as well. The kernel can drop it.")


def recommend(rows, memory_mib):
    """Recommend a method for this much memory, in a sentence or two."""
    found = {row.prediction.method: row for row in rows}
    streaming, reason, _ = found[STREAMING]
    least = sum(part.mib for part in streaming.parts if part.reason != "results")
    if not reason:
        text = "Recommended: stream_masks(fmri_path, mask_paths), which needs no worker."
    elif least <= memory_mib:
        text = (
            "Recommended: stream_masks(fmri_path, mask_paths, out=names) with the names of .npy "
            "files: the time series themselves do not fit."
        )
    else:
        text = f"Nothing fits: even without the time series, streaming takes {least:,.0f} MiB."
    if not found["Streaming, region averages"].reason:
        text += "\nTo average each region: stream_masker(NiftiLabelsMasker(labels), fmri_path)."
    if not found["NumPy indexing, threads, parallel"].reason:
        text += "\nTo keep the image in memory: numpy_masker_threads(fmri_path, mask_paths, n)."
    return text


def sbatch_lines(image, prediction):
    """Return what a Slurm job should request to stream one image, as lines of its script."""
    seconds = math.prod(image.shape) * np.dtype(image.dtype).itemsize / 100e6  # at 100 MB/s
    return request(prediction.most_mib, seconds)


def request(mib, seconds):
    """Return lines of a Slurm script that request one and a half times this memory for one core.

    The time is three times this and five minutes: some nodes start slowly.
    """
    mib, minutes = 50 * math.ceil(1.5 * mib / 50), 5 + math.ceil(3 * seconds / 60)
    return f"#SBATCH --cpus-per-task=1\n#SBATCH --mem={mib}M\n#SBATCH --time={minutes}"


def _print_parts(rows):
    """Print what is in memory at the peak of each method."""
    for prediction, *_ in rows:
        print(f"\n{prediction.method}, while {prediction.moment}:")
        for part in prediction.parts:
            why, source = REASONS[part.reason]
            mib = "not counted" if part.holder == "file" else f"{part.mib:,.0f} MiB"
            print(f"{mib:>14}  {part.holder}: {why} ({source})")
