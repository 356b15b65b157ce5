"""End the worker processes of joblib when the process that started them is gone.

A worker that only takes voxels loads this, and NumPy: no other package.
"""

import multiprocessing
import os
import threading
import time


def end_with_parent():
    """Let this process end soon after the one that started it, if it is a worker of joblib's loky.

    Otherwise it stays for five minutes or more, together with the shared memory that it uses.
    """
    is_worker = multiprocessing.current_process().name.startswith("LokyProcess")
    if is_worker and "parent" not in [thread.name for thread in threading.enumerate()]:
        parent = multiprocessing.parent_process().pid  # it may be gone: getppid() is another one
        watch = threading.Thread(target=wait_and_end, args=[parent], name="parent")
        watch.daemon = True
        watch.start()


def wait_and_end(parent):
    """End this process when its parent is another one than that which started it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
