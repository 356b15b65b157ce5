"""Write one archive with the sources of package, pages, site and tests, which the site offers."""

import zipfile
from pathlib import Path

NAME = "beyond_the_masker.zip"
CONTENT = (  # no pattern matches what a build makes
    *("*.md", "LICENSE", "CITATION.cff", "pyproject.toml", "Makefile", "conf.py"),
    *("requirements*.txt", ".gitignore", ".pre-commit-config.yaml", ".ci/run"),
    *(".github/workflows/*.yml", "tests/**/*.py", "tests/*.json", "tests/.npmrc"),
    *("examples/**/*.py", "examples/**/*.rst", "examples/**/*.txt"),
    *("doc/*.rst", "doc/*.svg", "doc/_ext/*.py", "doc/_ext/*.html", "doc/_static/*"),
    *("doc/_templates/*", "doc/_inventories/*.*", "doc/recorded/**/*.*"),
)


def write_archive(root, path):
    """Write the archive of the project in a folder."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted({file for pattern in CONTENT for file in root.glob(pattern)}):
            if "node_modules" not in file.parts:
                archive.write(file, Path(NAME).stem / file.relative_to(root))


def offer_archive(app):
    """Write the archive into the gallery's folder, where a download link finds it."""
    path = Path(app.srcdir, app.config.sphinx_gallery_conf["gallery_dirs"], NAME)
    path.parent.mkdir(exist_ok=True)
    write_archive(Path(app.confdir), path)


def setup(app):
    """Write the archive before the pages are read."""
    app.connect("builder-inited", offer_archive)
    return {"parallel_read_safe": True}
