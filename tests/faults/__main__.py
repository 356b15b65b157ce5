"""Run the fault campaign, or one trial of it, and print a table."""

import argparse
import platform
import re
import shlex
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from itertools import islice
from multiprocessing import active_children, get_context

import pandas as pd
from tqdm import tqdm

from .classes import CLASSES, NEEDS_ROOT, trials
from .promises import run_trial
from .targets import TARGETS
from .trial import private_place

COLUMNS = ["trials", "survived", "violations", "not reached", "seconds"]
STOPPED = threading.Event()


def campaign(given, first=0):
    """Run every trial of one job, until Ctrl-C; return a table of their classes."""
    table = pd.DataFrame(0, index=list(CLASSES), columns=COLUMNS).astype({"seconds": float})
    with private_place() as place:
        kinds, names = chosen(place, given), [given.target] if given.target else list(TARGETS)
        seed, number = map(int, given.repeat.split(":")) if given.repeat else (given.seed, first)
        numbers = range(number, number + 1 if given.repeat else given.trials, given.jobs)
        todo = islice(trials(place, seed, kinds, names), number, None, given.jobs)
        for number in tqdm(numbers, unit="trial", position=first, disable=None):
            start, (kind, trial) = time.monotonic(), next(todo)
            happened, broken = run_trial(place, kind, trial)
            row = [1, not broken, bool(broken), not happened, time.monotonic() - start]
            table.loc[kind] += row
            if broken:
                report(kind, trial, broken, given, f"{seed}:{number}")
            if STOPPED.is_set() or (broken and given.stop):
                break
    return table


def chosen(place, given):
    """Return the classes that are asked for; say which can only be tried in part, or not at all."""
    kinds = [given.kind] if given.kind else list(CLASSES)
    for kind in NEEDS_ROOT.intersection(kinds) if not place.is_private else ():
        print(f"{kind}: skipped; only root on Linux can mount the file systems that it needs.")
        kinds.remove(kind)
    if "memory" in kinds and not place.group:
        print("memory: without control groups, which root can make where the kernel has them.")
    return kinds


def campaigns(given):
    """Run some jobs, each in a process; return their table."""
    if given.jobs == 1:
        return campaign(given)
    with ProcessPoolExecutor(given.jobs, get_context("fork")) as pool:
        jobs = [pool.submit(campaign, given, first) for first in range(given.jobs)]
        return sum(job.result() for job in jobs)


def stop_soon(*_):
    """End after the present trial, in all jobs; an interruption between could harm a fork."""
    STOPPED.set()
    for child in active_children():
        child.terminate()


def report(kind, trial, broken, given, repeat):
    """Print the promises that a trial broke, and the line that repeats it."""
    options = {"--class": given.kind, "--target": given.target, "--repeat": repeat}
    words = [f"{name}={value}" for name, value in options.items() if value]
    lines = [f"{kind}: {trial}", *broken, shlex.join(["python", "-m", "tests.faults", *words])]
    text = re.sub(r"(.)\1{40,}", r"\1\1\1...", "\n    ".join(lines))  # long names
    tqdm.write(text, file=sys.stderr)


def record(table, file):
    """Write a table into a file, with what each class does, the date and the machine."""
    does = [" ".join(CLASSES[kind].__doc__.split()) for kind in table.index]
    machine = f"{platform.platform(terse=True)}, {platform.machine()}, Python " + sys.version[:6]
    more = {"what happens": does, "date": str(date.today()), "machine": machine.strip()}
    table.assign(**more).round(1).rename_axis("class").to_csv(file)


def main(arguments=None):
    """Run what the command line asks for; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="another order of the trials")
    parser.add_argument("--trials", type=int, default=1000, metavar="N")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials at a time")
    parser.add_argument("--class", dest="kind", choices=CLASSES, help="only this class of faults")
    parser.add_argument("--target", choices=TARGETS, help="only this function")
    parser.add_argument("--repeat", metavar="SEED:TRIAL", help="only this trial, as it is printed")
    parser.add_argument("--stop", action="store_true", help="stop at the first violation")
    parser.add_argument("--record", metavar="FILE", help="write the table, with date and machine")
    given = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_soon)
    tqdm.monitor_interval = 0  # no thread, because trials are forked
    tqdm.set_lock(threading.RLock())  # not shared with a trial, which may be killed while it has it
    table = campaigns(given)
    table = table[table.trials > 0]
    both = pd.concat([table, table.sum().to_frame("all").T])
    print(both.round(1).to_string(float_format="{:g}".format))
    if given.record:
        record(table, given.record)
    return int(table.violations.any())


if __name__ == "__main__":
    sys.exit(main())
