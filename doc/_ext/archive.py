"""Write one archive with everything that the examples need, which the gallery's page offers."""

import zipfile
from pathlib import Path

NAME = "beyond_the_masker.zip"
CONTENT = (
    *("README.md", "LICENSE", "CITATION.cff", "pyproject.toml"),
    *("examples/**/*.py", "examples/**/*.txt", "examples/**/*.sbatch", "doc/recorded/**/*.*"),
)


def write_archive(app):
    """Write the archive into the gallery's folder, where a download link finds it."""
    root = Path(app.confdir)
    path = Path(app.srcdir, app.config.sphinx_gallery_conf["gallery_dirs"], NAME)
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(file for pattern in CONTENT for file in root.glob(pattern)):
            archive.write(file, Path(NAME).stem / file.relative_to(root))


def setup(app):
    """Write the archive before the pages are read."""
    app.connect("builder-inited", write_archive)
    return {"parallel_read_safe": True}
