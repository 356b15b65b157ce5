"""The options of a build: what is allowed, and errors that say what would be."""

import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beyond_the_masker import options
from beyond_the_masker.options import Options, parse_memory, read_options

FILES = ("fmri.nii.gz", "my fmri.nii", "atlas.nii", "my atlas.nii", "roi_1.nii", "roi_2.nii")
ODD_FILES = ("left roi 1.nii", "left roi 2.nii", "it's one.nii", "roi[12].nii")
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


def test_environment_is_read(monkeypatch):
    """``make html N_REGIONS=3`` reaches the scripts."""
    monkeypatch.setenv("N_REGIONS", "3")
    assert read_options().n_regions == 3


@pytest.mark.parametrize(
    ("environ", "field", "value"),
    [
        ({"N_IMAGES": "1"}, "n_images", 1),
        ({"N_IMAGES": "1000"}, "n_images", 1000),
        ({"N_IMAGES": "155", "DATA": "development_fmri"}, "n_images", 155),
        ({"N_REGIONS": " 1 "}, "n_regions", 1),
        ({"N_REGIONS": "64"}, "n_regions", 64),
        (OWN | {"N_REGIONS": "500"}, "n_regions", 500),
        ({"DATA": "development_fmri"}, "data", "development_fmri"),
        *[({"MEMORY": v}, "memory", v) for v in ("16G", "900 MiB", "0.5", "unlimited")],
        ({"PAUSE": "0"}, "pause", 0),
        ({"PAUSE": "0.5"}, "pause", 0.5),
        ({"PAUSE": "3600"}, "pause", 3600),
        ({"MASKER_CACHE": "/some where"}, "cache", "/some where"),
        ({"MEASURED": "/else where"}, "measured", "/else where"),
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
        *[({"N_IMAGES": v}, f"N_IMAGES is '{v}'; allowed: {IMAGES}") for v in ("0", "1001", "two")],
        ({"N_IMAGES": "2.5"}, f"N_IMAGES is '2.5'; allowed: {IMAGES}"),
        (
            {"N_IMAGES": "156", "DATA": "development_fmri"},
            "N_IMAGES is '156'; allowed: a whole number, 1 to 155.",
        ),
        *[({"N_REGIONS": v}, f"N_REGIONS is '{v}'; allowed: {REGIONS}") for v in ("0", "65", "x")],
        (OWN | {"N_REGIONS": "0"}, "N_REGIONS is '0'; allowed: a whole number, 1 or more."),
        ({"DATA": "haxby"}, "DATA is 'haxby'; allowed: synthetic or development_fmri."),
        *[
            ({"PAUSE": v}, f"PAUSE is '{v}'; allowed: {PAUSE}")
            for v in ("-1", "3601", "nan", "inf", "a while")
        ],
        *[
            ({"MEMORY": v}, f"MEMORY is '{v}'; allowed: unlimited, or a size. '{v}' is not")
            for v in ("0", "-1G", "nan", "inf", "much", "16 X", "Unlimited")
        ],
        ({"FMRI": "fmri.nii.gz"}, "FMRI and ATLAS go together"),
        ({"ATLAS": "atlas.nii"}, "FMRI and ATLAS go together"),
        (OWN | {"N_IMAGES": "2"}, "N_IMAGES chooses prepared data and FMRI an own image"),
        (OWN | {"DATA": "synthetic"}, "DATA chooses prepared data and FMRI an own image"),
        (OWN | {"FMRI": "none.nii"}, "FMRI is 'none.nii'; there is no such file"),
        (OWN | {"FMRI": "."}, "FMRI is '.'; there is no such file"),
        (OWN | {"ATLAS": "none.nii"}, "ATLAS is 'none.nii'; there is no such file"),
        (OWN | {"ATLAS": "roi_1.nii none.nii"}, "ATLAS is 'none.nii'; there is no such file"),
        (OWN | {"ATLAS": "none_*.nii"}, "ATLAS is 'none_*.nii'; there is no such file"),
        (OWN | {"ATLAS": "no one's.nii"}, 'ATLAS is "no one\'s.nii"; '),
    ],
    ids=as_for_make,
)
def test_wrong_value_is_named(environ, message):
    """A wrong value raises one line: its name, the value, and what is allowed."""
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_options(environ)
    assert len(str(error.value).splitlines()) == 1


def test_missing_file_is_reported_with_its_folder(folder):
    """A missing file is reported with the folder that its name is relative to."""
    with pytest.raises(ValueError, match="there is no such file") as error:
        read_options(OWN | {"FMRI": "none.nii"})
    assert str(folder) in str(error.value)


def test_all_wrong_options_are_named_at_once():
    """All wrong options are reported at once."""
    environ = {"N_IMAGES": "x", "N_REGIONS": "0", "PAUSE": "-1", "FMRI": "a.nii", "ATLAS": "b.nii"}
    environ["MEMORY"] = "0"
    with pytest.raises(ValueError, match="N_IMAGES") as error:
        read_options(environ)
    lines = str(error.value).splitlines()
    assert {line.split()[0] for line in lines} == set(environ)
    assert read_options(OWN)  # and none of it stays behind


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("atlas.nii", ["atlas.nii"]),
        ("my atlas.nii", ["my atlas.nii"]),
        ("'my atlas.nii'", ["my atlas.nii"]),
        ("it's one.nii", ["it's one.nii"]),
        ("roi_2.nii roi_1.nii", ["roi_2.nii", "roi_1.nii"]),
        ("'left roi 1.nii' roi_1.nii", ["left roi 1.nii", "roi_1.nii"]),
        ("roi_*.nii", ["roi_1.nii", "roi_2.nii"]),
        ("'left roi *.nii'", ["left roi 1.nii", "left roi 2.nii"]),
        ("atlas.nii roi_?.nii", ["atlas.nii", "roi_1.nii", "roi_2.nii"]),
        ("roi[12].nii", ["roi[12].nii"]),
        ("roi_1.nii roi[12].nii", ["roi_1.nii", "roi[12].nii"]),
    ],
)
def test_atlas_is_one_file_or_several_or_a_pattern(folder, text, names):
    """ATLAS takes one file, several with quotes, or patterns, in the order given."""
    assert read_options(OWN | {"ATLAS": text}).atlas == tuple(str(folder / name) for name in names)


def test_file_name_that_looks_like_a_pattern(folder):
    """A file that exists is not taken for a pattern."""
    (folder / "roi1.nii").touch()
    atlas = read_options(OWN | {"ATLAS": "roi_1.nii roi[12].nii"}).atlas
    assert atlas == (str(folder / "roi_1.nii"), str(folder / "roi[12].nii"))


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"N_IMAGES": "3", "N_REGIONS": "4", "DATA": "development_fmri", "PAUSE": "0"},
        {"PAUSE": "1234.5678"},
        {"MEMORY": "16G"},
        OWN | {"MEMORY": "unlimited"},
        {"MASKER_CACHE": "a cache", "MEASURED": "measured here"},
        OWN | {"N_REGIONS": "99"},
        {"FMRI": "my fmri.nii", "ATLAS": "my atlas.nii"},
        {"FMRI": "fmri.nii.gz", "ATLAS": shlex.join(ODD_FILES)},
        {"FMRI": "fmri.nii.gz", "ATLAS": "roi[12].nii"},
    ],
    ids=as_for_make,
)
def test_round_trip_through_the_environment(environ, tmp_path, monkeypatch):
    """A script that a build starts gets the same options."""
    found = read_options(environ)
    monkeypatch.chdir(tmp_path)  # also from another folder
    assert read_options(found.to_environ()) == found


def run_alone(**environ):
    """Run the command in a Python without installed packages."""
    needed = {k: v for k, v in os.environ.items() if k in ("SYSTEMROOT", "LD_LIBRARY_PATH")}
    return subprocess.run(
        [sys.executable, "-S", "-m", "beyond_the_masker", "options"],
        cwd=Path(options.__file__).parents[1],
        env=needed | environ,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_runs_with_the_standard_library_alone():
    """Options can be checked before anything is installed."""
    done = run_alone(N_REGIONS="3")
    assert (done.returncode, done.stderr) == (0, "")
    assert "n_regions=3" in done.stdout


def test_refuses_on_the_command_line_without_a_traceback():
    """``make`` stops at wrong options with a message, without a traceback."""
    done = run_alone(N_REGIONS="0", DATA="haxby")
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "DATA is 'haxby'; allowed: synthetic or development_fmri.",
        f"N_REGIONS is '0'; allowed: {REGIONS}",
    ]


@given(
    number=st.decimals("0.001", 10**12, places=3),
    unit=st.sampled_from(["", "K", "M", "G", "T"]),
    ending=st.sampled_from(["", "B", "iB", "b"]),
    space=st.sampled_from(["", " ", "  "]),
    lower=st.booleans(),
)
def test_sizes_with_units(number, unit, ending, space, lower):
    """A size may have a unit, in any case."""
    text = f" {number}{space}{unit}{ending if unit else ''} "
    mib = float(number) * {"": 1, "K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}[unit]
    assert parse_memory(text.lower() if lower else text) == pytest.approx(mib)


@given(st.floats(1e-3, 1e300) | st.integers(1, 10**18))
def test_sizes_as_numbers(mib):
    """A number is a size in MiB."""
    assert parse_memory(mib) == pytest.approx(mib, rel=1e-3)


BAD_SIZES = ["16X", "16GiBs", "G", "1.2.3G", "1e3", "+5", "5 0", "1_000", "16 G B", "٣G", "5\u212a"]


@given(st.text() | st.sampled_from(BAD_SIZES))
def test_any_text_is_a_size_or_refused(text):
    """Any text is a positive size, or the error quotes it."""
    try:
        mib = parse_memory(text)
    except ValueError as error:
        assert repr(text) in str(error)  # noqa: PT017
    else:
        assert 0 < mib < math.inf
        assert text not in BAD_SIZES
