"""The project and its site, built for an image that the project has never seen.

The image is a real int16 one from nibabel's own tests.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import archive
from nibabel.testing import data_path

from made_images import regions_of

ROOT = Path(__file__).parent.parent
N_REGIONS = 2


class Site:
    """The project unpacked from its archive, with its own options."""

    def __init__(self, folder):
        self.archive = folder / archive.NAME
        archive.write_archive(ROOT, self.archive)
        zipfile.ZipFile(self.archive).extractall(folder)
        folder = self.folder = folder / self.archive.stem
        self.fmri = shutil.copy(Path(data_path, "example4d.nii.gz"), folder / "a real image.nii.gz")
        self.atlas = folder / "labels.nii.gz"
        regions_of(self.fmri).to_filename(self.atlas)
        self.html = folder / "doc" / "_build" / "html"
        self.gallery = folder / "doc" / "auto_examples"
        self.measured = folder / "doc" / "measured"
        self.options = {
            "FMRI": str(self.fmri),
            "ATLAS": str(self.atlas),
            "N_REGIONS": str(N_REGIONS),
            "PAUSE": "0.1",
            "MASKER_CACHE": str(folder / "cache"),
            "MEASURED": str(self.measured),
            "PYTHONPATH": str(folder / "examples"),
            "SITE_URL": "http://localhost:8000",
        }

    def start(self, *arguments):
        """Start a strict build in the background, its messages in a file."""
        command = [sys.executable, "-m", "sphinx", "-c", ".", "-W", "--keep-going"]
        with open(self.folder / "messages.txt", "w") as messages:
            return subprocess.Popen(
                [*command, *arguments, "doc", str(self.html)],
                cwd=self.folder,
                env=os.environ | self.options,
                stdout=messages,
                stderr=subprocess.STDOUT,
            )

    def messages(self):
        """Return the messages of the last build."""
        return (self.folder / "messages.txt").read_text()

    def build(self, *arguments):
        """Build to the end; return the messages."""
        code = self.start(*arguments).wait(timeout=3600)
        messages = self.messages()
        problems = re.findall(r"(?i).*(?:warning|error): .*", messages)
        assert code == 0, "\n".join(problems) or messages
        return messages

    def rows(self):
        """Return the rows of summary.csv."""
        with open(self.measured / "summary.csv", newline="") as file:
            return list(csv.DictReader(file))

    def page(self, name):
        """Return the HTML of a page."""
        return (self.html / f"{name}.html").read_text("utf-8")
