"""The fault campaign: break a run in every way we know, start it again, check what is promised.

``python -m tests.faults --help``
"""

import sys
from pathlib import Path

from .inject import KINDS  # noqa: F401  first: it replaces open() before anything keeps it

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
