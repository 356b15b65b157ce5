"""Time empty tasks on each backend that a study can use.

Empty tasks show only the time of handing out a task and taking its result. joblib joins tasks as
short as these into batches, which would hide the cost of each. Images take longer and are not
joined, so here each task is a batch of its own. As in a study, the backend gets all tasks at once.
"""

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

BACKENDS = {
    "processes": ("loky", {"n_jobs": 2}),
    "threads": ("threading", {"n_jobs": 2}),
    "Dask": ("dask", {}),
}


def task_overhead(folder, n_tasks, slurm=False):
    """Time empty tasks on every backend; return a table and write it to ``task_overhead.csv``.

    With `slurm`, submit them also to the Slurm cluster of this machine.
    """
    about = {"date": datetime.date.today().isoformat()} | describe_machine()
    seconds = {name: time_tasks(name, n_tasks) for name in BACKENDS}
    if slurm:
        seconds["Slurm"] = time_array(n_tasks)
    table = pd.DataFrame(
        {"backend": name, "n_tasks": n_tasks, "seconds_per_task": spent / n_tasks} | about
        for name, spent in seconds.items()
    )
    with moved_into_place(Path(folder) / "task_overhead.csv") as unfinished:
        table.to_csv(unfinished, index=False)
    return table


def time_tasks(name, n_tasks):
    """Return the seconds of empty tasks on one of `BACKENDS`, after its two workers started."""
    backend, options = BACKENDS[name]
    with ExitStack() as stack:
        if name == "Dask":
            from distributed import Client, LocalCluster

            cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
            client = stack.enter_context(Client(stack.enter_context(cluster)))
            client.wait_for_workers(2)
        stack.enter_context(parallel_config(backend=backend, **options))
        run_tasks(10, "")
        start = time.perf_counter()
        run_tasks(n_tasks, name)
        seconds = time.perf_counter() - start
    if name == "processes":
        get_reusable_executor().shutdown(wait=True)
    return seconds


def run_tasks(n_tasks, name):
    """Run empty tasks, each as a batch of its own."""
    options = {"return_as": "generator_unordered", "pre_dispatch": "all"}
    tasks = Parallel(batch_size=1, **options)(delayed(abs)(number) for number in range(n_tasks))
    for _ in tqdm(tasks, total=n_tasks, desc=name, unit="task", delay=2):
        pass


def time_array(n_tasks, largest=1000):
    """Return the seconds of empty tasks in Slurm's job arrays, each of at most `largest` tasks."""
    command = ["sbatch", "--wait", "--wrap=true", "--output=/dev/null", "--mem=16M"]
    sizes = [min(largest, n_tasks - first) for first in range(0, n_tasks, largest)]
    start = time.perf_counter()
    arrays = [
        subprocess.Popen([*command, f"--array=1-{size}"], stdout=subprocess.DEVNULL)
        for size in sizes
    ]
    if any([array.wait() for array in tqdm(arrays, desc="Slurm", unit="array")]):
        raise RuntimeError("A task of the job arrays failed.")
    return time.perf_counter() - start
