"""Python runs this first in each worker of a trial, and in a command that is started anew."""

import inject

inject.start_from_environ()
