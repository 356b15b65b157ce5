"""The prose of the site, its downloads, its addresses, and when an example runs again."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gallery_helpers
import pytest

import pages
from beyond_the_masker.experiments.report import PLACEHOLDER

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = {path.stem: path for path in sorted(ROOT.glob("examples/*/plot_*.py"))}
SCRIPTS = [name for name in EXAMPLES if name != "plot_limit"]  # a benchmark takes a minute
NO_CONTENT = {"404.html", "genindex.html", "py-modindex.html", "search.html"}


def test_prose_alone_has_placeholders_instead_of_numbers(prose):
    """`make html-noplot` works on a fresh clone, and shows no number that was not measured."""
    for name in ("index", "masker_memory_usage"):
        assert PLACEHOLDER in prose.page(name)
        assert not re.search(r"\d MiB</", prose.page(name))


def test_every_link_leads_somewhere(prose):
    """No link of the prose leads to a page, a file or an anchor that is missing."""
    assert pages.wrong_links(prose.html) == []


# -- Downloads ---------------------------------------------------------------------------------


def test_the_archive_is_the_project(prose):
    """It makes a site that offers the same archive, without anything that a build has made."""
    (path,) = prose.html.glob("_downloads/*/beyond_the_masker.zip")
    names = zipfile.ZipFile(path).namelist()
    assert names == zipfile.ZipFile(prose.archive).namelist()
    for name in ("LICENSE", "README.md", "Makefile", "requirements.txt", "tests/conftest.py"):
        assert f"beyond_the_masker/{name}" in names


def test_pages_offer_their_script(prose):
    """The script is the page's source, and a note says how to run it."""
    for name, source in EXAMPLES.items():
        (script,) = prose.html.glob(f"_downloads/*/{name}.py")
        assert script.read_bytes() == source.read_bytes()
        page = prose.page(f"auto_examples/{source.parent.name}/{name}")
        assert "unpack the whole project" in page
        assert "sphx-glr-download-zip" not in page  # of the script alone


@pytest.mark.extensive
def test_the_archive_can_be_installed(prose, tmp_path):
    """pip installs the package from it, and the command runs."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    zipfile.ZipFile(prose.archive).extractall(tmp_path)
    target = tmp_path / "installed"
    run_in(tmp_path, *pip, "--no-index", "--target", target, tmp_path / "beyond_the_masker")
    done = run_in(tmp_path, target / "bin" / "beyond-the-masker", "--help", PYTHONPATH=target)
    assert "budget" in done


@pytest.mark.extensive
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs_as_a_script(name, prose):
    """Each script runs in the unpacked archive on a small image; warnings are errors.

    It finds the recordings, although it measures into another folder than a build does. Methods
    that need much memory are predicted; test_build.py measures them all.
    """
    options = prose.options | {"PAUSE": "0", "MEMORY": "250M", "MEASURED": ""}
    script = EXAMPLES[name].relative_to(ROOT)
    ignored = "ignore:FigureCanvasAgg is non-interactive:UserWarning"
    python = sys.executable, "-W", "error", "-W", ignored
    assert "doc/recorded" not in run_in(prose.folder, *python, script, **options)  # none is missing


def run_in(folder, *command, **environ):
    """Run a command in a folder; return its output."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=os.environ | {name: str(value) for name, value in environ.items()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# -- Addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["https://example.org/some/site", None])
def test_the_address_of_the_site_reaches_all_that_needs_it(address, tmp_path):
    """SITE_URL is in the previews of links and on the 404 page; without it there are none."""
    names = ("html_baseurl", "ogp_site_url", "notfound_urls_prefix")
    code = "import json, runpy; c = runpy.run_path('conf.py');"
    code += f"print(json.dumps([c[name] for name in {names}]))"
    environ = {"MEASURED": "doc/measured", "MASKER_CACHE": tmp_path}
    environ |= {"SITE_URL": address} if address else {}
    base, previews, prefix = json.loads(run_in(ROOT, sys.executable, "-c", code, **environ))
    assert base == previews == (f"{address}/" if address else "")
    assert prefix == ("/some/site/" if address else "/")


def test_an_option_that_a_build_cannot_use_is_named(tmp_path):
    """The pages need the measurements below their own folder."""
    command = [sys.executable, "-m", "sphinx", "-c", ".", "doc", tmp_path / "html"]
    environ = os.environ | {"MEASURED": str(tmp_path / "elsewhere")}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"MEASURED is {tmp_path / 'elsewhere'}; the pages need it below" in done.stderr


def test_every_page_has_a_preview_and_is_in_the_sitemap(prose):
    """Each page has its title, a description and a picture that exists, and its whole address."""
    names, root = set(pages.all_pages(prose.html)) - NO_CONTENT, "http://localhost:8000/"
    for name in names:
        text = (prose.html / name).read_text("utf-8")
        tags = dict(re.findall(r'<meta property="(og:[a-z:]+)" content="([^"]*)"', text))
        assert tags["og:url"] == root + name
        assert tags["og:title"]
        assert tags["og:description"]
        assert (prose.html / tags["og:image"].removeprefix(root)).is_file()
    listed = re.findall(r"<loc>(.*?)</loc>", (prose.html / "sitemap.xml").read_text())
    assert {root + name for name in names} == set(listed)


def test_the_page_for_what_is_not_found_works_at_any_depth(prose):
    """It loads and links by whole paths."""
    links, loads, _ = pages.read_page(prose.html / "404.html")
    inside = [link for link in links + loads if "://" not in link]
    assert [link for link in inside if not link.startswith(("/", "#", "data:"))] == []


# -- What runs again ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "addition", "again"),
    [
        ("examples/beyond_the_masker/inputs/synthetic.py", "# a remark", True),
        ("examples/1_methods/plot_shared_memory.py", "# a remark", False),
        ("examples/1_methods/plot_shared_memory.py", "def a_method():\n    pass", True),
        ("recorded/measurements.csv", "1,2", True),
        ("image.nii.gz", "another volume", True),
    ],
)
def test_a_change_runs_all_pages_again(path, addition, again, tmp_path, monkeypatch):
    """So does one of the package, a page's function, an option or an image; not one of a text."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "recorded").mkdir()
    for name in ("FMRI", "ATLAS"):
        monkeypatch.setenv(name, str(tmp_path / "image.nii.gz"))
    (tmp_path / "image.nii.gz").touch()
    digest = partial(gallery_helpers.digest, tmp_path / "examples", tmp_path / "recorded")
    before = digest()
    assert digest() == before
    with open(tmp_path / path, "a") as file:
        file.write(f"\n\n{addition}\n")
    after = digest()
    assert (after != before) == again
    monkeypatch.setenv("N_REGIONS", "1")
    assert digest() != after


def test_checksums_are_removed_when_something_has_changed(tmp_path, monkeypatch):
    """They stay while the digest is the same and something was measured."""
    gallery, measured = tmp_path / "doc" / "auto_examples", tmp_path / "measured"
    (gallery / "1_methods").mkdir(parents=True)
    measured.mkdir()
    monkeypatch.setenv("MEASURED", str(measured))
    checksum, digest = gallery / "1_methods" / "plot_it.py.md5", ["one"]
    monkeypatch.setattr(gallery_helpers, "digest", lambda *folders: digest[0])
    conf = {"gallery_dirs": "auto_examples"}
    config = SimpleNamespace(plot_gallery=True, sphinx_gallery_conf=conf)
    app = SimpleNamespace(srcdir=tmp_path / "doc", config=config)

    def is_kept():
        checksum.touch()
        gallery_helpers.forget_outdated(app)
        return checksum.exists()

    assert not is_kept()
    (measured / "summary.csv").touch()
    assert is_kept()
    digest[0] = "another"
    assert not is_kept()
    assert is_kept()
