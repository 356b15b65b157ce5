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
from beyond_the_masker.report import PLACEHOLDER

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = {path.stem: path for path in sorted(ROOT.glob("examples/*/plot_*.py"))}
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


def archive(site):
    """Return the archive that the site offers."""
    (path,) = site.html.glob("_downloads/*/beyond_the_masker.zip")
    return zipfile.ZipFile(path)


def test_the_archive_has_all_that_examples_need(prose):
    """It holds every page, the package, what `make html` needs, the licence and the recordings."""
    names = set(archive(prose).namelist())
    expected = [*EXAMPLES.values(), *ROOT.glob("examples/beyond_the_masker/*.py")]
    expected += ROOT.glob("examples/requirements*.txt")
    expected += [ROOT / name for name in ("README.md", "LICENSE", "pyproject.toml", "Makefile")]
    expected += [ROOT / name for name in ("conf.py", "requirements.txt", "doc/readme.svg")]
    expected += [*ROOT.glob("doc/*.rst"), *ROOT.glob("examples/**/*.rst")]
    expected += [ROOT / "doc" / "recorded" / "prediction.csv"]
    expected = {f"beyond_the_masker/{path.relative_to(ROOT).as_posix()}" for path in expected}
    assert expected - names == set()
    made = ("__pycache__", "_build", "_report", "auto_examples", "measured/", "node_modules")
    assert not [name for name in names if any(part in name for part in made)]


def test_pages_offer_their_script(prose):
    """The script is the page's source, and a note has a link to the package."""
    for name, source in EXAMPLES.items():
        (script,) = prose.html.glob(f"_downloads/*/{name}.py")
        assert script.read_bytes() == source.read_bytes()
        page = prose.page(f"auto_examples/{source.parent.name}/{name}")
        assert "download it with all examples" in page
        assert "sphx-glr-download-zip" not in page  # of the script alone


@pytest.mark.extensive
def test_the_archive_can_be_installed(prose, tmp_path):
    """pip installs the package from it, and the command runs."""
    archive(prose).extractall(tmp_path)
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    run_in(tmp_path, *pip, "--no-index", "--target", target, tmp_path / "beyond_the_masker")
    done = run_in(tmp_path, target / "bin" / "beyond-the-masker", "--help", PYTHONPATH=target)
    assert "budget" in done


@pytest.mark.extensive
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_from_the_archive(name, prose, tmp_path):
    """Each script runs in the unpacked archive on a small image; warnings are errors.

    Methods that need much memory are predicted; test_build.py measures them all.
    """
    archive(prose).extractall(tmp_path)
    folder = tmp_path / "beyond_the_masker"
    options = {name: prose.options[name] for name in ("FMRI", "ATLAS", "N_REGIONS")}
    options |= {"PAUSE": "0", "MEMORY": "250M", "PYTHONPATH": str(folder / "examples")}
    options["MASKER_CACHE"] = str(prose.folder / "shared cache")
    script = (folder / EXAMPLES[name].relative_to(ROOT)).relative_to(folder)
    ignored = "ignore:FigureCanvasAgg is non-interactive:UserWarning"
    run_in(folder, sys.executable, "-W", "error", "-W", ignored, script, **options)


def run_in(folder, *command, **environ):
    """Run a command in a folder; return its output."""
    inherited = {name: text for name, text in os.environ.items() if name != "MEASURED"}
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=inherited | {name: str(value) for name, value in environ.items()},
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
    links = pages.read_links(prose.page("404"))
    inside = [link for link in links.loads + links.links if "://" not in link]
    assert [link for link in inside if not link.startswith(("/", "#", "data:"))] == []


# -- What runs again ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("examples/beyond_the_masker/synthetic.py", True),
        ("examples/1_methods/plot_shared_memory.py", False),
        ("a function", True),
        ("N_REGIONS", True),
        ("image", True),
        ("recorded/measurements.csv", True),
    ],
)
def test_a_change_runs_all_pages_again(change, again, tmp_path, monkeypatch):
    """So does one of the package, a page's function, an option or an image; not one of a text."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "recorded").mkdir()
    image = tmp_path / "image.nii.gz"
    image.write_bytes(b"an image")
    for name in ("FMRI", "ATLAS"):
        monkeypatch.setenv(name, str(image))
    digest = partial(gallery_helpers.digest, tmp_path / "examples", tmp_path / "recorded")
    before = digest()
    assert digest() == before
    if change == "image":
        os.utime(image, (1, 1))
    elif change == "N_REGIONS":
        monkeypatch.setenv(change, "1")
    else:
        function = change == "a function"
        path = "examples/1_methods/plot_shared_memory.py" if function else change
        with open(tmp_path / path, "a") as file:
            file.write("\n\ndef a_method():\n    pass\n" if function else "\n# a remark\n")
    assert (digest() != before) == again


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
