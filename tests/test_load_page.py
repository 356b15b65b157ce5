"""The functions of a page, taken without running it."""

import ast
import subprocess
import sys

from beyond_the_masker.experiments.pages import PAGES, definitions

SOURCE = '''
"""A page."""
import os
import numpy as np
from json import dumps, loads

def used():
    return np.zeros(LENGTH), dumps({})

LENGTH = 3
length = os.listdir()
print("not run")
'''


def test_definitions_are_functions_constants_and_what_they_import():
    """Statements that run something are left out, and so are imports for them."""
    kept = [ast.unparse(node).splitlines()[0] for node in definitions(SOURCE)]
    assert kept == [
        "import numpy as np",
        "from json import dumps, loads",
        "def used():",
        "LENGTH = 3",
    ]


def test_every_page_can_be_loaded():
    """Loading a page prints and warns nothing, and measures nothing."""
    code = (
        "from beyond_the_masker.experiments.pages import PAGES, load_page\n"
        "pages = sorted(PAGES.glob('*/plot_*.py'))\n"
        "for path in pages: load_page(path.stem)\n"
        "assert len(pages) > 10"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PAGES, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
