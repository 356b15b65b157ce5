"""The fault campaign: break a run in every way we know, start it again, check what is promised.

``python -m tests.faults --help``
"""

import os
import sys
from pathlib import Path

from .inject import KINDS  # noqa: F401  first: it replaces open() before anything keeps it

# A fork starts OpenBLAS's threads again, which interrupts it if there is no memory for them.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
