"""The classes of faults: for each target, all faults of a class that can happen to it."""

import errno
import random
import signal
from itertools import cycle, product

from .inject import KINDS
from .targets import IMAGES, MASKS, TARGETS
from .trial import SHM, Trial

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
ERRORS = [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE]
NO_RESULTS = (".bidsignore", "dataset_description.json")  # readers may change them
WRITES = ("open", "write", "flush", "rename", "link", "mkdir")


def moments(place, name, kinds=KINDS, where="caller"):
    """Yield a fault for each call of some kinds that a target makes, to be completed."""
    n_calls = sum(kind in kinds for kind in place.reference(name).calls[where])
    for n in range(1, n_calls + 1):
        yield {"where": where, "kinds": kinds, "n": n}


def first(what, **more):
    """Return a fault that happens before the work begins."""
    return {"where": "caller", "kinds": [], "n": 0, "what": what, **more}


def kill(place, name):
    """A signal ends the process, its parent, a worker, or all of them."""
    own = ["self", "group"] if TARGETS[name].workers > 1 else ["self"]
    for moment, who, number in product(moments(place, name), own, SIGNALS):
        yield moment | {"what": "kill", "who": who, "signal": number}
    own = moments(place, name, where="worker")
    for moment, who, number in product(own, ["self", "parent", "group"], SIGNALS):
        yield moment | {"what": "kill", "who": who, "signal": number}


def power(place, name):
    """The power is cut: files lose what was not flushed to the disk."""
    for moment in moments(place, name):
        yield moment | {"what": "cut"}
    yield first("cut") | {"n": "end"}


def calls(place, name):
    """One call fails: open, read, write, flush, rename, link, mkdir."""
    for where, kind in product(["caller", "worker"], [*WRITES, "read"]):
        errors = [errno.EIO] if kind == "read" else ERRORS
        for moment, error in product(moments(place, name, [kind], where), errors):
            yield moment | {"what": "fail", "errno": error}


def space(place, name):
    """A folder is full, tiny, read-only or removed: of results, TMPDIR, /dev/shm."""
    folders = [place.out] if place.reference(name).files else []
    folders += [place.tmp, SHM] if TARGETS[name].workers > 1 else []
    for folder in folders:
        for pages in range(1, 41):
            yield first("space", folder=str(folder), how="tiny", pages=pages)
        yield first("space", folder=str(folder), how="read-only")
        hows = ["full", "read-only", "removed"]
        for moment, how in product(moments(place, name), hows if folder != SHM else ["full"]):
            yield moment | {"what": "space", "folder": str(folder), "how": how}


def memory(place, name):
    """The memory of the process, or of its control group, is limited, from plenty to nothing."""
    limits = ["RLIMIT_AS", "RLIMIT_DATA"]
    sizes = [0, *(2**k for k in range(-4, 8))]
    if TARGETS[name].is_command:
        for which, mib in product(limits, range(40, 2000, 10)):
            yield first("limit", limit=which, mib=mib, in_all=True)
        return
    for where in ("caller", "worker") if place.group else ():
        for moment, mib in product(moments(place, name, where=where), sizes):
            yield moment | {"what": "limit_group", "mib": mib}
    for moment, which, mib in product(moments(place, name), limits, sizes):
        if TARGETS[name].workers == 1:
            yield moment | {"what": "limit", "limit": which, "mib": mib}


def image(place, name):
    """The image is truncated, replaced, appended to, touched or overwritten while it is read."""
    path, other = place.work / TARGETS[name].image, place.base / "inputs-1" / TARGETS[name].image
    hows = ["truncate", "replace", "append", "touch", "same"]
    for where in ("caller", "worker") if TARGETS[name].image else ():
        for moment, how in product(moments(place, name, ["open", "read"], where), hows):
            yield moment | {"what": "change", "how": how, "file": str(path), "other": str(other)}


def bits(place, name):
    """One to three bits flip: in a compressed file that is read, or in a result."""
    read = [place.work / file for file in TARGETS[name].files]
    written = [place.out / file for file in place.reference(name).files if file not in NO_RESULTS]
    rng = random.Random(name)
    for path in [*read, *([] if TARGETS[name].replaces else written)]:
        for _ in range(100):
            shares = [rng.random() for _ in range(rng.choice([1, 2, 3]))]
            yield first("flip", file=str(path), bits=shares)


def together(place, name):
    """Another call for the same files runs while this one is at one of its calls."""
    if place.reference(name).files and TARGETS[name].workers == 1:
        for moment in moments(place, name):
            yield moment | {"what": "meanwhile"}


def odd(place, name):
    """The clock goes back; files are from the future or the past; a folder has 10,000 files."""
    for moment, seconds in product(moments(place, name), (-3600, -(10**9), 10**9)):
        yield moment | {"what": "set_clock", "seconds": seconds}
    paths = [str(place.work / file) for file in (*IMAGES, *MASKS)]
    for seconds in (0, -1, -(10**9), 1, 315532799, 2**31, 2**32, 2**33, 10**10):
        yield first("set_times", files=paths, seconds=seconds)
    if place.reference(name).files:
        yield first("crowd", folder=str(place.out))


CLASSES = {one.__name__: one for one in (kill, power, calls, space, memory, image, bits)}
CLASSES |= {one.__name__: one for one in (together, odd)}
NEEDS_ROOT = {"space"}


def weight(target, kind):
    """Return how often a target is taken: those that start processes take much longer."""
    if target.is_command:
        return 1 if kind in ("kill", "memory") else 0
    if target.workers > 1:
        return 0 if kind == "power" else 1
    return 6


def trials(place, seed, kinds, names):
    """Yield pairs of a class and a trial, without end: from one class after the other."""
    decks = {kind: deck(place, seed, kind, names) for kind in kinds}
    decks = [(kind, cycle(cards)) for kind, cards in decks.items() if cards]
    while True:
        for kind, cards in decks:
            yield kind, next(cards)


def deck(place, seed, kind, names):
    """Return all trials of a class, shuffled; the targets take turns, slow ones more seldom."""
    rng, placed = random.Random(f"{seed} {kind}"), []
    for name in names:
        share = weight(TARGETS[name], kind)
        faults = list(CLASSES[kind](place, name)) if share else []
        rng.shuffle(faults)
        start = rng.random()
        for turn, fault in enumerate(faults):
            earlier = rng.choice(["none", "none", "none", "some", "all"])
            if TARGETS[name].is_whole:
                earlier = earlier.replace("some", "all")
            if str(place.out) in fault.get("file", ""):
                earlier = "all"
            placed.append(((turn + start) / share, Trial(name, fault, earlier)))
    return [trial for _, trial in sorted(placed, key=lambda item: item[0])]
