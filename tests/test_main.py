"""The command line: help, results and errors."""

import os
import subprocess
import sys

import numpy as np
import pytest

from beyond_the_masker.__main__ import COMMANDS, main
from beyond_the_masker.model import METHODS
from made_images import make_image, make_masks, save_all, sparse_image

MIB = 2**20


def start(*arguments, **options):
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "beyond_the_masker", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


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


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    """Every command has help, and importing it costs nothing until it runs."""
    assert status_of(command, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: beyond-the-masker {command}")
    assert COMMANDS[command][0].__doc__[:30] in out


def test_help_lists_all_commands(capsys):
    """The help lists each command with its summary."""
    assert status_of("--help") == 0
    out = capsys.readouterr().out
    assert all(f"    {name}" in out for name in COMMANDS)


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
        ("budget mask_0.nii.gz mask_0.nii.gz", 1, "a 4D NIfTI image is needed"),
        ("budget fmri.nii.gz mask_0.nii.gz --jobs 0", 1, "workers is 0"),
        ("budget fmri.nii.gz mask_0.nii.gz --jobs 1.5", 2, "--jobs"),
        ("budget fmri.nii.gz mask_0.nii.gz --memory plenty", 1, "'plenty'"),
        ("budget fmri.nii.gz", 2, "masks"),
        ("study fmri.nii.gz", 2, "--masks"),
        ("study @none.txt", 2, "none.txt"),
        ("experiment", 1, "FMRI and ATLAS go together"),
        ("measure", 1, "FMRI and ATLAS go together"),
        ("no-such-command", 2, "no-such-command"),
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


def test_budget(files):
    """The command prints the table and follows its options."""
    fmri_path, mask_paths = files
    arguments = ("budget", fmri_path, *mask_paths, "--jobs", 2, "--memory", "2G", "--shm", "64M")
    with start(*arguments, "--explain") as process:
        out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    assert "available 2,048 MiB; in /dev/shm 64 MiB" in out
    for method in METHODS:
        assert f"\n{method}" in out
        assert f"\n{method}, while " in out


def test_study(files, capsys):
    """The command extracts what it can, lists the images that failed, and exits with 1."""
    arguments = ("--masks", files[1][0], "--output", "series")
    assert status_of("study", "fmri.nii.gz", *arguments) == 0
    assert "1 done\nThe table is in series." in capsys.readouterr().out
    assert status_of("study", "fmri.nii.gz", "none.nii", *arguments) == 1
    out = capsys.readouterr().out
    assert "none.nii\n    " in out
    assert "1 failed" in out


@pytest.mark.chance
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs wait4")
def test_large_image_is_not_read(tmp_path):
    """A budget for 10 GB needs neither the time nor the memory to read them."""
    sparse_image(tmp_path / "large.nii")
    mask = np.zeros((100, 100, 100))
    mask[:10] = 1
    make_image(data=mask, dtype="u1").to_filename(tmp_path / "mask.nii.gz")
    with start("budget", "large.nii", "mask.nii.gz", "--memory", "16G") as process:
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert "9,537 MiB in memory" in out
    assert usage.ru_utime + usage.ru_stime < 10
    unit = 1 if sys.platform == "darwin" else 1024
    assert usage.ru_maxrss * unit / MIB < 1500, "MiB of an image of 9,537"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_named_pipe_is_refused(tmp_path):
    """A pipe is refused; the command does not wait for someone to write into it."""
    os.mkfifo(tmp_path / "pipe.nii")
    with start("budget", "pipe.nii", "mask.nii") as process:
        try:
            _, err = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "pipe.nii" in err
    assert "Traceback" not in err
