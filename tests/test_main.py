"""The command line: help, results and errors."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from beyond_the_masker.__main__ import COMMANDS, main
from beyond_the_masker.predict.model import METHODS
from beyond_the_masker.studies.results import read_arrays
from made_images import SHAPE, make_image, make_masks, save_all
from small_fmriprep import make_fmriprep, make_labels


def start(*arguments):
    """Start the command in a process of its own."""
    command = [sys.executable, "-m", "beyond_the_masker", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **pipes)


def status_of(*arguments):
    """Run the command in this process; return its exit status, or its message."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """Work in a folder with an image and masks."""
    monkeypatch.chdir(tmp_path)
    fmri_img = make_image()
    return save_all(tmp_path, fmri_img, make_masks(fmri_img))


def test_help(capsys):
    """The help lists every command, and each has help of its own."""
    assert status_of("--help") == 0
    listed = capsys.readouterr().out
    for command in COMMANDS:
        assert f"    {command}" in listed
        assert status_of(command, "--help") == 0
        assert capsys.readouterr().out.startswith(f"usage: beyond-the-masker {command}")


def test_output_that_is_not_read():
    """Where the reader of the output ends first, as head does, there is no message."""
    process = start("options")
    process.stdout.close()
    assert (process.stderr.read(), process.wait(600)) == ("", 1)
    process.stderr.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others do not limit memory so")
def test_a_lack_of_memory_is_named():
    """Also if packages cannot be imported: without a traceback, by the command or by OpenBLAS."""
    command = 'ulimit -v $1; exec "$0" -m beyond_the_masker study none.nii --masks none.nii'
    for mib in range(40, 130, 15):
        words = ["sh", "-c", command, sys.executable, str(mib * 1024)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert re.search("[Mm]emory|There is no file", done.stderr), (mib, done.stderr)
        assert "Traceback" not in done.stderr, mib


def test_options_need_only_the_standard_library(tmp_path):
    """Options are checked before anything is installed."""
    code = "import runpy, sys; sys.modules.update(dict.fromkeys(['numpy', 'nibabel', 'tqdm']))\n"
    code += "sys.argv[1:] = ['options']\nrunpy.run_module('beyond_the_masker', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=600
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Options(n_images=2")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("budget none.nii mask_0.nii.gz", 1, "none.nii"),
        ("budget mask_0.nii.gz mask_0.nii.gz", 1, "is not a 4D NIfTI image"),
        ("budget fmri.nii.gz mask_0.nii.gz --jobs 1.5", 2, "--jobs"),
        ("budget fmri.nii.gz mask_0.nii.gz --memory plenty", 1, "'plenty'"),
        ("budget fmri.nii.gz", 2, "masks"),
        ("study fmri.nii.gz", 2, "--masks"),
        ("study @none.txt", 2, "none.txt"),
        ("study fmri.nii.gz --masks mask_0.nii.gz --part 3/2", 2, "'3/2' is not K/N"),
        ("study fmri.nii.gz --masks mask_0.nii.gz --part x", 2, "'x' is not K/N"),
        ("fmriprep none out participant --atlas A=b.nii", 1, "none is not a folder"),
        ("fmriprep none out participant", 2, "--atlas"),
        ("fmriprep none out participant --atlas a.nii", 2, "'a.nii' has no ="),
        ("fmriprep none out participant --atlas A=b.nii A=c.nii", 1, "a name twice"),
        ("fmriprep none out group --atlas A=b.nii", 2, "group"),
        ("fmriprep none out participant --atlas A=b.nii --strategy no.json", 2, "no.json"),
        ("experiment", 1, "FMRI and ATLAS go together"),
        ("measure", 1, "FMRI and ATLAS go together"),
        ("", 2, "COMMAND"),
    ],
)
def test_errors_have_no_traceback(arguments, status, message, monkeypatch, capsys):
    """A command fails with a message on standard error and an exit status."""
    monkeypatch.setenv("FMRI", "fmri.nii.gz")  # without ATLAS
    code = status_of(*arguments.split())
    out, err = capsys.readouterr()
    text = code if isinstance(code, str) else err  # sys.exit prints a text, with status 1
    assert (1 if isinstance(code, str) else code) == status
    assert message in text
    assert out == ""


@pytest.mark.parametrize("name", [name for name, (_, pages, *_) in COMMANDS.items() if pages])
def test_without_pages(name, tmp_path, monkeypatch):
    """An installation, which has no pages, says at once what is missing and how to get it."""
    monkeypatch.setattr("beyond_the_masker.experiments.pages.PAGES", tmp_path)
    folder = ["results"] if name in ("record", "benchmark") else []
    assert "pip install -e ." in status_of(name, *folder)
    assert not Path("results").exists()


def test_budget(files, capsys):
    """The command prints the table and follows its options."""
    arguments = ("budget", files[0], *files[1], "--jobs", 7, "--memory", "2G", "--shm", "64M")
    assert not status_of(*arguments, "--explain")
    out, err = capsys.readouterr()
    assert err == ""
    assert "available 2,048 MiB; in /dev/shm 64 MiB" in out
    assert "3 of 7 workers have no mask" in out
    for method in METHODS:
        assert f"\n{method}" in out
        assert f"\n{method}, while " in out


def test_study(files, capsys):
    """The command extracts what it can, lists the images that failed, and exits with 1."""
    arguments = ("--masks", files[1][0], "--output", "series")
    assert status_of("study", "fmri.nii.gz", *arguments) == 0
    assert capsys.readouterr() == ("1 done\nThe table is in series.\n", "")
    assert status_of("study", "fmri.nii.gz", "none.nii", *arguments) == 1
    out = capsys.readouterr().out
    assert "none.nii\n    " in out
    assert "1 failed" in out


def test_regions_of_one_image(files, capsys):
    """A label image or a 4D image, alone, has many regions; a file lists paths, of any bytes."""
    labels = np.resize([0, 3, 5, 5], SHAPE[:3])
    make_image(data=labels, dtype="i2").to_filename("atlas.nii.gz")
    make_image(data=np.stack([labels / 5, labels / 7], 3)).to_filename("maps.nii.gz")
    odd = os.fsdecode(b"sub-\xe9.nii.gz")
    shutil.copy("fmri.nii.gz", odd)
    Path("images.txt").write_bytes(os.fsencode(odd) + b"\r\n\nnone.nii\n")
    for masks, names in (
        (["atlas.nii.gz"], ["region_3", "region_5"]),
        (["maps.nii.gz", "--threshold", "0.5"], ["region_1", "region_2"]),
    ):
        assert not status_of("budget", "fmri.nii.gz", *masks)
        assert "\n2 masks, " in capsys.readouterr().out
        output = names[0]
        assert status_of("study", "@images.txt", "--masks", *masks, "--output", output) == 1
        printed = capsys.readouterr().out
        assert "none.nii\n    FileNotFoundError" in printed
        assert "\n1 done, 1 failed\n" in printed
        assert [*read_arrays(Path(output, odd[:-7] + ".npz"))] == names


def test_fmriprep(tmp_path, capsys):
    """The command finds and extracts; with --dry-run it only says what there is and is needed."""
    make_fmriprep(tmp_path / "fmriprep")
    make_labels(tmp_path / "atlas.nii.gz")
    command = "fmriprep fmriprep out participant --atlas A=atlas.nii.gz"
    arguments = (*command.split(), "--task", "rest")
    assert status_of(*arguments, "--ses", 1, "--jobs", 2, "--part=1/2", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "2 images of" in out
    assert f"beyond_the_masker {command} --task rest --ses 1 \\\n    --jobs 1 --part" in out
    assert "time with 2 workers" in out
    assert "--dry-run" not in out
    assert err == ""
    assert not Path("out").exists()
    options = ["--filter", "acq=a", "--participant-label", "sub-01", "--strategy", "scrubbing"]
    options += ["--smoothing-fwhm", "5", "--standardize", "none", "--no-detrend", "--relmat"]
    assert status_of(*arguments, *options) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 done\nThe table is in out.\nstudy_atlas-A.svg shows")
    picture = Path("out/study_atlas-A.svg").read_text()
    assert "Scatter chart of 1 images" in picture
    assert len([*Path("out").rglob("*acq-a*_desc-scrubbing_*")]) == 4


def test_strategies_of_the_command(tmp_path, capsys):
    """A strategy may be none, or arguments in a file; a failure is listed once for all atlases."""
    make_fmriprep(tmp_path / "fmriprep")
    make_labels(tmp_path / "atlas.nii.gz")
    command = "fmriprep fmriprep out participant --atlas A=atlas.nii.gz B=atlas.nii.gz --acq a"
    assert status_of(*command.split(), "--strategy", "none", "--no-brain-mask") == 0
    assert capsys.readouterr().out.startswith("2 done\n")
    Path("own.json").write_text('{"six": {"strategy": ["motion"], "motion": "basic"}}')
    assert status_of(*command.split(), "--strategy", "own.json") == 0
    assert len([*Path("out").rglob("*_desc-six_timeseries.tsv")]) == 2
    capsys.readouterr()
    next(Path("fmriprep").rglob("*acq-a_desc-confounds*")).unlink()
    assert status_of(*command.split()) == 1
    out = capsys.readouterr().out
    assert out.count("It has no confounds") == 1
    assert out.endswith("\n2 failed\nThe table is in out.\n")


def test_warnings_are_short(files):
    """A warning is a line on standard error, without a place in the code."""
    make_image(data=np.resize([0, 3, 5], SHAPE[:3]), dtype="i2").to_filename("atlas.nii.gz")
    _, err = start("budget", "fmri.nii.gz", "atlas.nii.gz", "mask_0.nii.gz").communicate(
        timeout=600
    )
    assert err.startswith("Warning: atlas.nii.gz has 80 voxels")
    assert err.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_named_pipe_is_refused(tmp_path):
    """A pipe is refused; the command does not wait for someone to write into it."""
    os.mkfifo(tmp_path / "pipe.nii")
    process = start("budget", "pipe.nii", "mask.nii")
    try:
        _, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 1
    assert err.startswith("pipe.nii")
