"""
The cost of a task: empty tasks on each backend
===============================================

Handing out a task and taking its result back takes time, whatever the task is. Empty tasks show
only that time. ``python task_overhead.py`` times them on every backend that
:mod:`beyond_the_masker.study` can use, including Slurm if there is a cluster, and writes
``task_overhead.csv``: a row per backend, in its column ``engine``.

joblib joins tasks as short as these into batches, which would hide the cost of each. Images take
longer and are not joined, so here each task is a batch of its own. As in a study, the backend gets
all tasks at once.
"""

import argparse
import datetime
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor
from tqdm import tqdm

from beyond_the_masker.experiment import describe_machine
from beyond_the_masker.files import moved_into_place
from beyond_the_masker.options import read_options

# %%
# joblib's backends
# -----------------
# The workers are started before the clock.


ENGINES = {
    "processes": ("loky", {"n_jobs": 2}),
    "threads": ("threading", {"n_jobs": 2}),
    "Dask": ("dask", {}),
}


def time_tasks(engine, n_tasks):
    """Time empty tasks on one of joblib's backends, with two workers.

    Parameters
    ----------
    engine : {"processes", "threads", "Dask"}
    n_tasks : int

    Returns
    -------
    float
        Seconds for all of them.
    """
    backend, options = ENGINES[engine]
    with ExitStack() as stack:
        if engine == "Dask":
            from distributed import Client, LocalCluster

            cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
            client = stack.enter_context(Client(stack.enter_context(cluster)))
            client.wait_for_workers(2)
        stack.enter_context(parallel_config(backend=backend, **options))
        run_tasks(10, "")
        start = time.perf_counter()
        run_tasks(n_tasks, engine)
        seconds = time.perf_counter() - start
    if engine == "processes":
        get_reusable_executor().shutdown(wait=True)
    return seconds


def run_tasks(n_tasks, name):
    """Run empty tasks, each as a batch of its own."""
    options = {"return_as": "generator_unordered", "pre_dispatch": "all"}
    tasks = Parallel(batch_size=1, **options)(delayed(abs)(number) for number in range(n_tasks))
    for _ in tqdm(tasks, total=n_tasks, desc=name, unit="task", delay=2):
        pass


# %%
# Slurm
# -----
# Here the tasks are those of job arrays, and each runs ``true``. ``sbatch`` waits until they are
# done. By default, Slurm accepts a thousand tasks in an array.


def time_array(n_tasks, largest=1000):
    """Time empty tasks in job arrays of a Slurm cluster.

    Parameters
    ----------
    n_tasks : int
    largest : int
        Tasks in an array.

    Returns
    -------
    float
        Seconds for all of them.
    """
    command = ["sbatch", "--wait", "--wrap=true", "--output=/dev/null", "--mem=16M"]
    sizes = [min(largest, n_tasks - first) for first in range(0, n_tasks, largest)]
    start = time.perf_counter()
    arrays = [
        subprocess.Popen([*command, f"--array=1-{size}"], stdout=subprocess.DEVNULL)
        for size in sizes
    ]
    with tqdm(arrays, desc="Slurm", unit="array") as progress:
        if any([array.wait() for array in progress]):
            raise RuntimeError("A task of the job arrays has failed.")
    return time.perf_counter() - start


# %%
# Run it
# ------


def task_overhead(folder, n_tasks, slurm=False):
    """Time empty tasks on every backend and write ``task_overhead.csv``.

    Parameters
    ----------
    folder : str or pathlib.Path
    n_tasks : int
        Tasks on each backend.
    slurm : bool
        Also submit them to the Slurm cluster of this machine.

    Returns
    -------
    pandas.DataFrame
        A row per backend: ``engine``, ``n_tasks``, ``seconds_per_task``, ``date``, and the
        columns of `describe_machine`.
    """
    about = {"date": datetime.date.today().isoformat()} | describe_machine()
    seconds = {engine: time_tasks(engine, n_tasks) for engine in ENGINES}
    if slurm:
        seconds["Slurm"] = time_array(n_tasks)
    table = pd.DataFrame(
        {"engine": engine, "n_tasks": n_tasks, "seconds_per_task": spent / n_tasks} | about
        for engine, spent in seconds.items()
    )
    with moved_into_place(Path(folder) / "task_overhead.csv") as unfinished:
        table.to_csv(unfinished, index=False)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Time empty tasks on each backend.")
    measured = read_options().measured
    parser.add_argument("folder", nargs="?", default=measured, help="where to write the result")
    parser.add_argument("--tasks", type=int, default=1000, help="on each backend; 1000 by default")
    parser.add_argument("--slurm", action="store_true", help="on this machine's Slurm cluster, too")
    arguments = parser.parse_args()
    print(task_overhead(arguments.folder, arguments.tasks, arguments.slurm).iloc[:, :3].to_string())
