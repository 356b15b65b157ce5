"""What is promised, checked after every trial."""

import os
import pickle
import re
import signal
from pathlib import Path

from .targets import IMAGES, MASKS, OUT, TARGETS, contents, values_in
from .trial import SHM

OF_FILES = ("OSError", "ValueError", "MemoryError", "FileNotFoundError", "FileExistsError")
OF_FILES += ("PermissionError", "IsADirectoryError", "NotADirectoryError", "ImageFileError")
WITHOUT_A_FILE = {
    "kill": ("KeyboardInterrupt", "TerminatedWorkerError", "BrokenProcessPool"),
    "memory": ("MemoryError", "TerminatedWorkerError", "BrokenProcessPool"),
}


OF_HELPERS = (signal.SIGKILL, signal.SIGHUP)  # the signals that joblib's helpers do not ignore


def run_trial(place, kind, trial):
    """Run a trial; return whether its fault happened, and the promises that were broken."""
    fault, target = trial.fault, TARGETS[trial.target]
    options = {"verify": True} if target.is_study and kind == "bits" else {}
    place.fresh()
    if kind == "space" and fault["how"] != "removed":
        place.mount(Path(fault["folder"]))
    allowed = place.place_earlier(trial)
    outcome, left = place.run(target, fault, **options)
    broken = [f"it left {left}"] if left else []
    broken += of_outcome(place, kind, trial, outcome)
    if (other := place.base / "other").exists():  # the outcome of a call at the same time
        broken += of_outcome(place, kind, trial, pickle.loads(other.read_bytes()))
        other.unlink()
    happened = (place.base / "happened").exists()
    place.make_sound()
    broken += of_files(place, kind, trial, allowed)
    if kind in ("image", "bits"):
        place.restore_inputs()
    again, left = place.run(target, **options)
    broken += [f"started again: {text}" for text in of_second(place, trial, again, left)]
    return happened, broken


def of_outcome(place, kind, trial, outcome):
    """Yield what is wrong with the outcome of a disturbed run."""
    allowed = place.reference(trial.target).results[: 2 if kind == "image" else 1]
    if outcome.how == "hung":
        yield f"it hung {outcome.details}"
    elif outcome.how == "ended":
        is_killed = kind in ("kill", "power") or trial.fault["what"] == "limit_group"
        if outcome.value >= 0 or not is_killed:
            yield f"it ended with {outcome.value}: {outcome.details[-2000:]}"
    elif outcome.how == "raised":
        yield from of_error(place, kind, *outcome.value)
    elif TARGETS[trial.target].is_study:
        for path, status, reason in outcome.value:
            if status == "failed":
                yield from of_error(place, kind, *reason.partition(": ")[::2], f"{path}: {reason}")
            elif status not in ("done", "skipped"):
                yield f"{path} is {status}"
    elif outcome.value not in allowed:
        yield f"it returned wrong arrays: {outcome.value}"


def of_error(place, kind, error, message, details):
    """Yield what is wrong with an error: its type, or that it names no file."""
    names = [str(place.base), str(SHM), f"{OUT}/", *IMAGES, *MASKS]
    is_named = error in OF_FILES and any(name in message for name in names)
    if kind == "odd":
        yield f"it failed: {details}"
    elif not is_named and error not in WITHOUT_A_FILE.get(kind, ()):
        yield f"an unexpected error, or one that names no file: {details}"


def of_files(place, kind, trial, allowed):
    """Yield what is wrong with the files that a disturbed run left."""
    reference = place.reference(trial.target)
    versions, found = [reference.files], contents(place.out)
    is_input = trial.fault["what"] == "flip" and str(place.out) not in trial.fault["file"]
    if kind in ("image", "odd") or is_input:  # records differ with the time, or the checksum
        versions, found = reference.values, values_in(place.out)
    for name, checksum in found.items():
        if "unfinished" in name or re.match(r"study.*\.tsv", name):
            continue
        if name not in reference.files:
            yield f"{name} is no result"
        elif checksum not in allowed.get(name, ()) and not is_right(
            place, trial, name, checksum, versions
        ):
            yield f"{name} is incomplete or wrong"
    if trial.fault.get("how") != "removed":
        for name in allowed.keys() - contents(place.out).keys():
            yield f"{name}, which was there before, is gone"


def is_right(place, trial, name, checksum, versions):
    """Return whether a file is as it should be; flipped bits that have no meaning do not count."""
    if checksum in [version.get(name, "") for version in versions]:
        return True
    is_archive = trial.fault["what"] == "flip" and name.endswith(".npz")
    values = place.reference(trial.target).values[0]
    return is_archive and values_in(place.out).get(name) == values.get(name)


def of_second(place, trial, outcome, left):
    """Yield what is wrong after the run that nothing disturbed."""
    reference, versions = place.reference(trial.target), [place.reference(trial.target).files]
    found = contents(place.out)
    if trial.fault["what"] == "set_times" or trial.fault.get("how") == "same":
        versions, found = reference.values, values_in(place.out)
    if outcome.how != "returned":
        yield f"{outcome}"
    elif TARGETS[trial.target].is_study:
        yield from (f"{row}" for row in outcome.value if row[1] not in ("done", "skipped"))
    elif outcome.value != reference.results[0]:
        yield f"it returned wrong arrays: {outcome.value}"
    for name in found.keys() | versions[0].keys():
        if not is_right(place, trial, name, found.get(name), versions):
            yield f"{name} is not as after an undisturbed run"
    if left:
        yield f"it left {left}"
    for folder in (place.tmp, SHM) if place.is_private else (place.tmp,):
        if stay := [name for name in os.listdir(folder) if not is_of_helper(trial, name)]:
            yield f"{folder} holds {stay}"


def is_of_helper(trial, name):
    """Return whether joblib's helper would have removed this, had it not been killed, too."""
    fault = trial.fault
    is_killed = fault.get("who") == "group" and fault["signal"] in OF_HELPERS
    is_killed = is_killed or fault["what"] == "limit_group"  # Linux chooses whom it kills
    return is_killed and name.startswith(("sem.", "joblib_memmapping"))
