"""The fault campaign: break a run in every way we know, start it again, check what is promised.

``python -m tests.faults --help``
"""

from .inject import KINDS  # noqa: F401  first: it replaces open() before anything keeps it
