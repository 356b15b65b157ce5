"""The options of a build: what is allowed, and errors that say what would be."""

import functools
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from beyond_the_masker import options
from beyond_the_masker.experiments.pages import PAGES
from beyond_the_masker.options import Options, parse_memory, read_options

FILES = ("fmri.nii.gz", "my fmri.nii", "atlas.nii", "my atlas.nii", "roi_1.nii", "roi_2.nii")
ODD_FILES = ("left roi 1.nii", "left roi 2.nii", "it's one.nii", "roi[12].nii")
ODD_FILES += ('~ 50% \u00fc"$\n#.nii ',)
ROOT = Path(__file__).parent.parent
OWN = {"FMRI": "fmri.nii.gz", "ATLAS": "atlas.nii"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with an image and regions; only their names matter here."""
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path / "images")
    for name in (*FILES, *ODD_FILES):
        Path(name).touch()
    return Path.cwd()


def as_for_make(value):
    """Name a test after its options."""
    return " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None


def test_defaults(folder, monkeypatch):
    """The defaults are those of the table in the module's docstring, whatever the environment."""
    monkeypatch.setenv("N_REGIONS", "3")
    assert read_options().n_regions == 3
    found = read_options({})
    here = {"cache": str(folder / "masker_cache"), "measured": str(folder / "measured")}
    assert found == Options(**here)
    table = dict(re.findall(r"^([A-Z_]+) +(\S+)", options.__doc__, re.MULTILINE))
    assert table == {
        "N_IMAGES": str(found.n_images),
        "N_REGIONS": str(found.n_regions),
        "DATA": found.data,
        "FMRI": "(none)",
        "ATLAS": "(none)",
        "MEMORY": "(what",
        "PAUSE": f"{found.pause:g}",
        "MASKER_CACHE": "``masker_cache``",
        "MEASURED": "``measured``",
    }
    assert read_options(dict.fromkeys(table, " ")) == found


@pytest.mark.parametrize(
    ("environ", "field", "value"),
    [
        ({"N_IMAGES": "1000"}, "n_images", 1000),
        ({"N_IMAGES": "155", "DATA": "development_fmri"}, "n_images", 155),
        ({"N_REGIONS": " 1 "}, "n_regions", 1),
        ({"N_REGIONS": "64"}, "n_regions", 64),
        (OWN | {"N_REGIONS": "500"}, "n_regions", 500),
        ({"MEMORY": "unlimited"}, "memory", "unlimited"),
        ({"PAUSE": "0"}, "pause", 0),
        ({"PAUSE": "3600"}, "pause", 3600),
    ],
    ids=as_for_make,
)
def test_allowed_value_is_taken(environ, field, value):
    """Values at the edges of what is allowed are taken."""
    assert getattr(read_options(environ), field) == value


IMAGES = "a whole number, 1 to 1000."
REGIONS = "a whole number, 1 to 64."
PAUSE = "a number, 0 to 3600."


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        *[({"N_IMAGES": v}, f"N_IMAGES is '{v}'; allowed: {IMAGES}") for v in ("0", "1001", "2.5")],
        (
            {"N_IMAGES": "156", "DATA": "development_fmri"},
            "N_IMAGES is '156'; allowed: a whole number, 1 to 155.",
        ),
        *[({"N_REGIONS": v}, f"N_REGIONS is '{v}'; allowed: {REGIONS}") for v in ("0", "65", "x")],
        (OWN | {"N_REGIONS": "0"}, "N_REGIONS is '0'; allowed: a whole number, 1 or more."),
        ({"DATA": "haxby"}, "DATA is 'haxby'; allowed: synthetic or development_fmri."),
        *[
            ({"PAUSE": v}, f"PAUSE is '{v}'; allowed: {PAUSE}")
            for v in ("-1", "3601", "nan", "a while")
        ],
        *[
            ({"MEMORY": v}, f"MEMORY is '{v}'; allowed: unlimited, or a size. '{v}' is not")
            for v in ("0M", "16", "nan", "16 X", "Unlimited")
        ],
        ({"FMRI": "fmri.nii.gz"}, "FMRI and ATLAS go together"),
        (OWN | {"N_IMAGES": "2"}, "N_IMAGES chooses prepared data and FMRI an own image"),
        (OWN | {"DATA": "synthetic"}, "DATA chooses prepared data and FMRI an own image"),
        (OWN | {"FMRI": "."}, "FMRI is '.'; there is no such file"),
        (OWN | {"ATLAS": "roi_1.nii none.nii"}, "ATLAS is 'none.nii'; there is no such file"),
        (OWN | {"ATLAS": "none_*.nii"}, "ATLAS is 'none_*.nii'; there is no such file"),
        (OWN | {"ATLAS": "no one's.nii"}, 'ATLAS is "no one\'s.nii"; '),
        ({"MASKER_CACHE": "a[1]"}, "MASKER_CACHE is 'a[1]'; allowed: a folder without"),
    ],
    ids=as_for_make,
)
def test_wrong_value_is_named(environ, message):
    """A wrong value raises one line: its name, the value, and what is allowed."""
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_options(environ)
    assert len(str(error.value).splitlines()) == 1


def test_all_wrong_options_are_named_at_once(folder):
    """All wrong options are reported at once, and a missing file with its folder."""
    environ = {"N_IMAGES": "x", "N_REGIONS": "0", "PAUSE": "-1", "MEMORY": "0"}
    environ |= {"FMRI": "a.nii", "ATLAS": "b.nii"}
    with pytest.raises(ValueError, match=f"FMRI is 'a.nii'; .*{folder}") as error:
        read_options(environ)
    assert {line.split()[0] for line in str(error.value).splitlines()} == set(environ)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("atlas.nii", ["atlas.nii"]),
        ("my atlas.nii", ["my atlas.nii"]),
        ("it's one.nii", ["it's one.nii"]),
        ("roi_2.nii roi_1.nii", ["roi_2.nii", "roi_1.nii"]),
        ("'left roi 1.nii' roi_1.nii", ["left roi 1.nii", "roi_1.nii"]),
        ("'left roi *.nii'", ["left roi 1.nii", "left roi 2.nii"]),
        ("atlas.nii roi_?.nii", ["atlas.nii", "roi_1.nii", "roi_2.nii"]),
        ("roi_1.nii roi[12].nii", ["roi_1.nii", "roi[12].nii"]),
    ],
)
def test_atlas_is_one_file_or_several_or_a_pattern(folder, text, names):
    """ATLAS takes one file, several with quotes, or patterns, in the order given."""
    assert read_options(OWN | {"ATLAS": text}).atlas == tuple(str(folder / name) for name in names)


def test_home_and_links(folder, monkeypatch):
    """``~`` is the home in every path, also in a pattern; a link stays a link."""
    monkeypatch.setenv("HOME", str(folder))
    (folder / "link").symlink_to(folder)
    environ = {"FMRI": "~/my fmri.nii", "ATLAS": "~/link/roi_?.nii ~/atlas.nii"}
    found = read_options(environ | {"MASKER_CACHE": "~/cache", "MEASURED": "~"})
    assert found.fmri == str(folder / "my fmri.nii")
    names = "link/roi_1.nii", "link/roi_2.nii", "atlas.nii"
    assert found.atlas == tuple(str(folder / name) for name in names)
    assert (found.cache, found.measured) == (str(folder / "cache"), str(folder))


@pytest.mark.parametrize(
    "environ",
    [
        {"N_IMAGES": "3", "N_REGIONS": "4", "DATA": "development_fmri", "PAUSE": "0"},
        OWN | {"MEMORY": "unlimited"},
        {"MASKER_CACHE": "a cache", "MEASURED": "measured here"},
        {"FMRI": ODD_FILES[-1], "ATLAS": ODD_FILES[-1]},
        {"FMRI": "fmri.nii.gz", "ATLAS": shlex.join(ODD_FILES)},
    ],
    ids=as_for_make,
)
def test_round_trip_through_the_environment(environ, tmp_path, monkeypatch):
    """A script that a build starts gets the same options."""
    found = read_options(environ)
    monkeypatch.chdir(tmp_path)  # also from another folder
    assert read_options(found.to_environ()) == found


@pytest.mark.parametrize("name", ODD_FILES[2:])
def test_make_hands_on_any_name(name, folder):
    """``make`` takes no character of a name for its own."""
    command = ["make", "-s", "-f", ROOT / "Makefile", "check-options", f"PYTHON={sys.executable}"]
    files = [f"FMRI={folder / name}", f"ATLAS={folder / name}"]
    environ = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    subprocess.run([*command, *files], check=True, cwd=ROOT, env=environ)


def test_runs_with_the_standard_library_alone():
    """Before anything is installed, options can be checked; an error has no traceback."""
    needed = {k: v for k, v in os.environ.items() if k in ("SYSTEMROOT", "LD_LIBRARY_PATH")}
    command = [sys.executable, "-S", "-m", "beyond_the_masker", "options"]
    run = functools.partial(
        subprocess.run, command, cwd=PAGES, capture_output=True, text=True, timeout=300
    )
    done = run(env=needed | {"N_REGIONS": "3"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "n_regions=3" in done.stdout
    done = run(env=needed | {"N_REGIONS": "0"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"N_REGIONS is '0'; allowed: {REGIONS}\n"


@pytest.mark.parametrize(
    ("size", "mib"), [("16G", 2**14), ("1.5 tib", 1.5 * 2**20), (" 512kB", 0.5), (0.001, 0.001)]
)
def test_size_of_memory(size, mib):
    """A text has a unit, in any case; a number is in MiB."""
    assert parse_memory(size) == mib


NO_SIZES = ["16", "16X", "G", "1.2.3G", "1e3", "+5G", "-5G", "5 0M", "1_000M", "٣G", "inf", "", 0]
NO_SIZES += [math.nan]


@pytest.mark.parametrize("size", NO_SIZES)
def test_no_size_of_memory(size):
    """The error quotes what was given."""
    with pytest.raises(ValueError, match=re.escape(repr(size))):
        parse_memory(size)
