"""The fault campaign: break a run in every way we know, start it again, check what is promised.

``python -m tests.faults --help``
"""

from . import inject  # noqa: F401  first: it has to replace open() before anything keeps it
