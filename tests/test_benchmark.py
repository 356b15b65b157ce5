"""The benchmark: pairs in turns, files that can be read back, pictures with every label."""

import csv
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest

from beyond_the_masker import benchmark as benchmark
from beyond_the_masker import streaming as plot_stream_masks
from beyond_the_masker.experiment import METHODS
from beyond_the_masker.streaming import stream_masks


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def image(tmp_path):
    """A small compressed image and a mask."""
    data = np.random.default_rng(0).normal(size=(6, 7, 5, 9)).astype("float32")
    nib.Nifti1Image(data, np.eye(4)).to_filename(tmp_path / "fmri.nii.gz")
    nib.Nifti1Image((data[..., 0] > 0).astype("uint8"), np.eye(4)).to_filename(tmp_path / "m.nii")
    return tmp_path / "fmri.nii.gz", [tmp_path / "m.nii"]


def test_call_and_limit_are_timed_in_turns(monkeypatch, image):
    """Each repeat has one limit, of the right file, and one call; the first call is not timed."""
    events = []
    monkeypatch.setattr(benchmark, "read_and_forget", lambda path: events.append(path))
    todo = [
        ("masks", "a", 1, functools.partial(events.append, "a"), "file a"),
        ("masks", "b", 2, functools.partial(events.append, "b"), "file b"),
    ]
    rows = benchmark.time_pairs(todo, 2)
    assert events == ["a", *["file a", "a"] * 2, "b", *["file b", "b"] * 2]
    assert [row[:4] for row in rows] == [
        *(("masks", "a", 1, repeat) for repeat in (1, 2)),
        *(("masks", "b", 2, repeat) for repeat in (1, 2)),
    ]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_limit_reads_the_whole_file(tmp_path, monkeypatch, suffix):
    """Every byte is read, and decompressed where the file is compressed."""
    path = tmp_path / f"fmri{suffix}"
    nib.Nifti1Image(np.ones((40, 50, 60, 3), "float32"), np.eye(4)).to_filename(path)
    read = []

    class Countable:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def read(self, n):
            data = self.file.read(n)
            read.append(len(data))
            return data

    original = benchmark.fast_gzip.open if suffix == ".nii.gz" else open
    place = (benchmark.fast_gzip, "open") if suffix == ".nii.gz" else (benchmark, "open")
    monkeypatch.setattr(*place, lambda *a, **k: Countable(original(*a, **k)), raising=False)
    benchmark.read_and_forget(path)
    assert sum(read) == 352 + 40 * 50 * 60 * 3 * 4
    assert read[-1] == 0


def test_without_isal_is_the_same_and_leaves_no_trace(image):
    """The fallback gives the same arrays, and the module is as before afterwards."""
    before = plot_stream_masks.gzip
    for one, other in zip(benchmark.without_isal(*image), stream_masks(*image), strict=True):
        np.testing.assert_array_equal(one, other)
    assert plot_stream_masks.gzip is before
    with pytest.raises(FileNotFoundError):
        benchmark.without_isal("nothing.nii.gz", image[1])
    assert plot_stream_masks.gzip is before


def test_what_is_written_can_be_read_and_drawn(tmp_path, monkeypatch, image):
    """A run writes two tables and a description; the table on the page is that of the file."""
    fmri_path, mask_paths = image
    call = functools.partial(stream_masks, fmri_path, mask_paths)
    todo = [("methods", "Streaming, masks", 1, call, fmri_path)]
    todo += [("masks", "Streaming, masks", n, call, fmri_path) for n in (1, 6)]
    monkeypatch.setattr(benchmark, "questions", lambda sizes: todo)
    monkeypatch.setattr(benchmark, "_image", lambda n_volumes: fmri_path)
    benchmark.benchmark(tmp_path / "out", {"volumes": 9}, 3, with_memory=("masks",))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("benchmark.csv", "benchmark_memory.csv", "benchmark.json")
    }
    times, memory = benchmark.read_benchmark(tmp_path / "out")
    assert {key: pairs.shape for key, pairs in times.items()} == {
        (question, what, x): (3, 2) for question, what, x, _, _ in todo
    }
    assert set(memory) == {("masks", "Streaming, masks", 1), ("masks", "Streaming, masks", 6)}
    output_mib = call()[0].nbytes / 2**20
    assert all(abs(output - output_mib) <= 0.05 for _, output in memory.values())
    about = json.loads((tmp_path / "out" / "benchmark.json").read_text())["benchmark"]
    assert about["shape"] == [6, 7, 5, 9]
    assert about["n_repeats"] == 3
    assert about["cores"] >= 1
    assert about["isal"]


def test_printed_ratios_are_medians_of_pairs(capsys):
    """The ratio is the median of ratios, not the ratio of medians."""
    pairs = np.array([[2.0, 1.0], [9.0, 3.0], [40.0, 8.0]])  # ratios 2, 3, 5
    key = "methods", "a way", 6
    benchmark.print_ratios({key: pairs, ("masks", "a way", 6): pairs}, {key: (1234.4, 5.0)})
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split() == ["a", "way", "9.00", "3.00", "(2.00", "to", "5.00)", "1,234"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0.4, "0.400"), (1.05, "1.05"), (15.49, "15.5"), (99.96, "100"), (1234.4, "1,234")],
)
def test_numbers_have_three_digits(number, expected):
    """The table and the figure write the same number in the same way."""
    assert benchmark.short(number) == expected


def all_measured(n_repeats=5):
    """Times and memory of every question, with the longest names there are."""
    rng = np.random.default_rng(0)
    names = [f"{m.name}, {m.mode}" for m in METHODS] + ["NumPy indexing, threads, uncompressed"]
    times = {("methods", name, 6): rng.uniform(1, 100, (n_repeats, 2)) for name in names}
    memory = {}
    for question in benchmark.GROWTH:
        for what in ("Streaming, masks", "NumPy indexing, threads"):
            for x in (1, 6, 64):
                times[question, what, x] = rng.uniform(1, 100, (n_repeats, 2))
                memory[question, what, x] = (10.0 * x, x)
    return times, memory


def test_pictures_have_every_label_inside():
    """Each method and each question is there, and no text leaves the picture."""
    times, memory = all_measured()
    figures = [
        benchmark.plot_ratios(times, "Time beside the limit"),
        benchmark.plot_growth(times, "How time grows", benchmark.FULL),
        benchmark.plot_memory_growth(memory, "How memory grows", benchmark.FULL),
    ]
    for figure in figures:
        figure.canvas.draw()
        for ax in figure.axes:
            texts = [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
            for text in filter(lambda text: text.get_text(), texts):
                box = text.get_window_extent()
                assert figure.bbox.x0 <= box.x0, text
                assert box.x1 <= figure.bbox.x1, text
    shown = " ".join(text.get_text() for text in figures[0].axes[0].texts)
    for _, what, _ in (key for key in times if key[0] == "methods"):
        assert what in shown
    for figure in figures[1:]:
        labels = [ax.get_xlabel() for ax in figure.axes]
        assert labels == [label.format(**benchmark.FULL) for label in benchmark.GROWTH.values()]
        assert labels[0] == "volumes in the image (6 masks)"
        for ax in figure.axes:
            top = max(np.max(line.get_ydata()) for line in ax.lines)
            assert ax.get_ylim()[1] > top


def test_every_way_is_among_the_questions(monkeypatch, tmp_path):
    """All methods, nilearn's other ways, and what grows: nothing is left out at either size."""
    masks = [tmp_path / f"{i}.nii.gz" for i in range(64)]
    monkeypatch.setattr(benchmark, "_image", lambda n_volumes: tmp_path / f"{n_volumes}.nii.gz")
    monkeypatch.setattr(benchmark, "_uncompressed", lambda path: tmp_path / "plain.nii")
    monkeypatch.setattr(benchmark, "_labels", lambda paths: tmp_path / "labels.nii.gz")
    monkeypatch.setattr(benchmark, "get_atlas_path", lambda: None)
    monkeypatch.setattr(benchmark, "atlas_to_masks", lambda *args: (None, masks))
    for sizes in (benchmark.SMALL, benchmark.FULL):
        todo = benchmark.questions(sizes)
        methods = [what for question, what, *_ in todo if question == "methods"]
        names = [f"{m.name}, {m.mode}" for m in METHODS]
        left_out = set(benchmark.WITH_WORKERS) - set(sizes["parallel"])
        assert [m for m in methods if m in names] == [m for m in names if m not in left_out]
        assert {"NiftiLabelsMasker (averages)", "apply_mask, one by one"} <= set(methods)
        grows = {q: {x for question, _, x, *_ in todo if question == q} for q in benchmark.GROWTH}
        assert grows == {
            "length": set(sizes["lengths"]),
            "masks": set(sizes["masks"]),
            "block size": set(sizes["blocks"]),
            "workers": set(sizes["workers"]),
        }
        for _, _, _, call, path in todo:
            assert path in call.args  # the limit is that of the file that is read
    assert set(benchmark.FULL["parallel"]) == set(benchmark.WITH_WORKERS)
    assert max(benchmark.FULL["lengths"]) == 20 * 168
    assert max(benchmark.FULL["masks"]) == 64


def test_own_images_are_not_benchmarked(tmp_path):
    """From the command line the default data are used, also in a build for another image."""
    script = (
        "import sys, runpy, benchmark, os\n"
        "sys.argv = ['benchmark.py', 'out']\n"
        "def stop(*args, **kwargs): raise SystemExit(repr([os.environ.get(n) for n in "
        "('FMRI', 'ATLAS', 'DATA')]))\n"
        "import plot_large_image; plot_large_image.get_fmri_path = stop\n"
        "runpy.run_module('benchmark', run_name='__main__')\n"
    )
    environ = {"FMRI": "own.nii", "ATLAS": "own_atlas.nii", "DATA": "development_fmri"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | environ | {"PYTHONPATH": str(Path(benchmark.__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.strip().splitlines()[-1] == "[None, None, None]"


def test_recorded_results_are_complete():
    """What the page shows as recorded is of methods that there are, each question five times.

    A method that has come since is missing until `make benchmark` is run again.
    """
    recorded = Path(__file__).parent.parent / "doc" / "recorded"
    with open(recorded / "benchmark.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    times, memory = benchmark.read_benchmark(recorded)
    assert all(len(pairs) >= 5 for pairs in times.values())
    timed = {what for question, what, _ in times if question == "methods"}
    modes = (", single", ", loop", ", parallel", ", one pass")
    by_mode = {what for what in timed if what.endswith(modes)}
    assert by_mode
    assert by_mode <= {f"{m.name}, {m.mode}" for m in METHODS}
    assert {row["question"] for row in rows} == {"methods", *benchmark.GROWTH}
    assert {question for question, _, _ in memory} == {"methods", *benchmark.GROWTH}
    about = json.loads((recorded / "benchmark.json").read_text())["benchmark"]
    assert about["date"]
    assert about["shape"][3] == benchmark.FULL["volumes"]
