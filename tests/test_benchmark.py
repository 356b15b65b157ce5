"""The benchmark times each call after the limit; its files are read back and drawn."""

import functools
import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from beyond_the_masker.draw.figures import short
from beyond_the_masker.experiments import benchmark, methods
from beyond_the_masker.experiments.averages import AVERAGES, LABELS, PEERS, averages
from beyond_the_masker.experiments.benchmark import (
    FULL,
    QUESTIONS,
    SMALL,
    Timing,
    label_of,
    read_benchmark,
)
from beyond_the_masker.experiments.benchmark_figures import GROWTH, plot_growth, plot_ratios
from beyond_the_masker.experiments.methods import all_methods
from beyond_the_masker.extract import streaming
from beyond_the_masker.extract.streaming import stream_masks
from beyond_the_masker.inputs.data import write_joined
from beyond_the_masker.inputs.synthetic import synthetic_fmri
from good_figures import is_a_good_figure, nothing_overlaps

RECORDED = Path(__file__).parent.parent / "doc" / "recorded"
TITLES = [method.title for method in all_methods()]


@pytest.fixture
def image(tmp_path):
    """A small compressed image and a mask."""
    data = np.random.default_rng(0).normal(size=(6, 7, 5, 9)).astype("float32")
    nib.Nifti1Image(data, np.eye(4)).to_filename(tmp_path / "fmri.nii.gz")
    nib.Nifti1Image((data[..., 0] > 0).astype("uint8"), np.eye(4)).to_filename(tmp_path / "m.nii")
    return tmp_path / "fmri.nii.gz", [tmp_path / "m.nii"]


def test_call_and_limit_are_timed_in_turns(monkeypatch):
    """Each repeat has one limit, of the right file, and one call; the first call is not timed."""
    events = []
    monkeypatch.setattr(benchmark, "read_and_discard", lambda path: events.append(path))
    todo = [
        Timing(("masks", name, x), functools.partial(events.append, name), f"file {name}")
        for x, name in enumerate("ab", start=1)
    ]
    rows = benchmark.time_pairs(todo, 2)
    assert events == ["a", *["file a", "a"] * 2, "b", *["file b", "b"] * 2]
    assert [tuple(row[:4]) for row in rows.to_numpy()] == [
        ("masks", name, x, repeat) for x, name in enumerate("ab", start=1) for repeat in (1, 2)
    ]


def test_without_isal_is_the_same(image, monkeypatch):
    """Python's own gzip leads to the same arrays, and isal is back afterwards."""
    every_series = stream_masks(*image)
    monkeypatch.setattr(streaming, "gzip", None)
    for one, other in zip(benchmark.stream_without_isal(*image), every_series, strict=True):
        np.testing.assert_array_equal(one, other)
    assert streaming.gzip is None


@pytest.mark.chance
def test_written_results_can_be_read(tmp_path, monkeypatch, image):
    """A run writes two tables and a description."""
    fmri_path, _ = image
    call = functools.partial(stream_masks, *image)
    keys = ("methods", "Streaming", 1), ("masks", "Streaming", 1), ("masks", "Streaming", 6)
    todo = [Timing(key, call, fmri_path) for key in keys]
    monkeypatch.setattr(benchmark, "questions", lambda sizes: todo)
    monkeypatch.setattr(benchmark, "cut_image", lambda n_volumes: fmri_path)
    benchmark.benchmark(tmp_path / "out", {"volumes": 9, "2 mm": []}, 3, with_memory=("masks",))
    names = {"benchmark.csv", "benchmark_memory.csv", "benchmark.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    times, memory = read_benchmark(tmp_path / "out")
    assert {key: pairs.shape for key, pairs in times.items()} == {one.key: (3, 2) for one in todo}
    assert set(memory) == {one.key for one in todo[1:]}
    output_mib = call()[0].nbytes / 2**20
    assert all(abs(output - output_mib) <= 0.05 for _, output in memory.values())
    about = json.loads((tmp_path / "out" / "benchmark.json").read_text())["benchmark"]
    assert about["shape"] == [6, 7, 5, 9]
    assert about["n_repeats"] == 3
    assert about["cores"] >= 1


def test_a_method_that_might_not_fit_is_left_out(image, monkeypatch, capsys):
    """A method is run if the model allows it; otherwise the reason is printed."""
    assert benchmark.fits("Streaming, masks, one pass", *image)
    monkeypatch.setenv("MEMORY", "20M")
    assert not benchmark.fits("NiftiMasker, path, loop", *image)
    assert "NiftiMasker, path, loop is left out. It may need" in capsys.readouterr().out


def test_the_limit_reads_the_whole_file(image):
    """The file is read to its end: an error that only its last byte reveals is raised."""
    path, _ = image
    benchmark.read_and_discard(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(EOFError):
        benchmark.read_and_discard(path)


def test_printed_ratios_are_medians_of_pairs(capsys):
    """The ratio is the median of ratios, not the ratio of medians."""
    key = "methods", "a way", 6
    pairs = np.array([[2.0, 1.0], [9.0, 3.0], [40.0, 8.0]])  # ratios 2, 3, 5
    benchmark.print_ratios({key: pairs}, {key: (1234.4, 5.0)})
    line = capsys.readouterr().out.splitlines()[2]
    assert line.split() == ["9.00", "3.00", "(2.00", "to", "5.00)", "1,234", "a", "way"]


def test_printed_conclusions(capsys):
    """Ratios, growth with the length, block sizes and memory beyond the output."""
    times = {
        ("methods", "Streaming, masks, one pass", 6): np.array([[3.0, 2.0]]),
        ("regions", AVERAGES, 400): np.array([[1.2, 1.0]]),
        ("regions", LABELS, 400): np.array([[12.0, 1.0]]),
        ("length", "Streaming, masks", 840): np.array([[10.0, 1.0]]),
        ("length", "Streaming, masks", 168): np.array([[2.5, 1.0]]),
        ("block size", "Streaming, masks", 8): np.array([[0.5, 1.0]]),
    }
    benchmark.print_conclusions(times, {("length", "Streaming, masks", 168): (12.5, 8.0)})
    assert capsys.readouterr().out.splitlines() == [
        "6 masks: 1.50 times the limit",
        "averages of 400 regions: 1.20 times the limit; NiftiLabelsMasker: 12.0",
        "5 times as many volumes: 4.0 times the time",
        "blocks of 8: 0.500 s",
        "168 volumes: 4.5 MiB beyond the output",
    ]


@pytest.mark.parametrize(("number", "text"), [(0.4, "0.400"), (99.96, "100"), (1234.4, "1,234")])
def test_numbers_have_three_digits(number, text):
    """The table and the figure write the same number in the same way."""
    assert short(number) == text


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """A synthetic image with voxels of 8 mm."""
    path = tmp_path_factory.mktemp("coarse") / "fmri.nii.gz"
    affine = np.array([[8.0, 0, 0, -92], [0, 8, 0, -128], [0, 0, 8, -76], [0, 0, 0, 1]])
    write_joined([synthetic_fmri(0, (24, 29, 24, 40), affine)], 40, path)
    return path


def test_averages_are_those_of_nilearn(coarse, monkeypatch):
    """Each masker of nilearn is followed by streaming, which returns its values."""
    monkeypatch.setattr("beyond_the_masker.experiments.averages.PEERS", {})
    found = averages([coarse, coarse], [10, 12])
    pairs = list(zip(found[:-2:2], found[1:-2:2], strict=True))
    for by_nilearn, streamed in pairs:
        assert "Nifti" in by_nilearn[0]
        assert "Streaming" in streamed[0]
        (expected,), (series,) = (way[2](*way[3:]) for way in (by_nilearn, streamed))
        assert series.shape == (40, by_nilearn[1])
        np.testing.assert_allclose(series, expected, rtol=1e-4, atol=1e-4)
    assert [way[1] for way, _ in pairs if way[0] == LABELS] == [10, 12]
    assert sum("cleaned" in way[0] for way, _ in pairs) == 2
    (name, n, call, *arguments), (long, *_) = found[-2:]
    assert (name, n) == ("Streaming, 2 atlases and 10 masks", 32)
    assert [one.shape[1] for one in call(*arguments)][:2] == [10, 12]
    assert long == "Streaming, averages, 40 volumes"


def write_program(path, code):
    """Write a program in Python."""
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)


def test_a_peer_is_compared_before_it_is_timed(coarse, tmp_path, monkeypatch):
    """A program that returns the averages is listed for each atlas; another one is an error."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [name for name, peer in PEERS.items() if peer.installed] == ["apply_mask, mask by mask"]
    table = "import sys, nibabel as nib, numpy as np; *_, labels, fmri = sys.argv\n"
    table += "labels, fmri = (np.asarray(nib.load(path).dataobj) for path in (labels, fmri))\n"
    table += "for volume in np.moveaxis(fmri, -1, 0): print(*(volume[labels == n].mean() for n in"
    write_program(tmp_path / "3dROIstats", f"{table} range(1, 1 + labels.max())))")
    assert PEERS["AFNI, 3dROIstats"].version is None
    found = averages([coarse], [10, 12])
    timed = {(name, n) for name, n, *_ in found if name in PEERS}
    assert timed == {("apply_mask, mask by mask", 2), *(("AFNI, 3dROIstats", n) for n in (10, 12))}
    write_program(tmp_path / "3dROIstats", "for i in range(40): print(*range(10))")
    with pytest.raises(ValueError, match="AFNI, 3dROIstats returns other averages"):
        averages([coarse], [10, 12])


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.installed])
def test_installed_peers_return_the_averages(coarse, name, monkeypatch):
    """Each program on this machine returns the averages of streaming."""
    monkeypatch.setattr("beyond_the_masker.experiments.averages.PEERS", {name: PEERS[name]})
    assert any(way[0] == name for way in averages([coarse], [10, 12]))


def test_what_peers_can_do_is_printed(capsys):
    """Also of those that are not installed, and that they are not."""
    versions = {"MRtrix3, mrstats, mask by mask": "3.0.3", "FSL, fslmeants": None}
    benchmark.print_peers({"not_installed": ["FSL, fslmeants"], "peers": versions})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "apply_mask, mask by mask"
    assert lines[2] == "MRtrix3, mrstats, mask by mask, 3.0.3"
    assert lines[-1] == "FSL, fslmeants (all labels at once): not installed, so not compared"
    assert len(lines) == len(PEERS)


@pytest.mark.parametrize("sizes", [SMALL, FULL], ids=["small", "full"])
def test_every_way_is_among_the_questions(monkeypatch, tmp_path, sizes):
    """All methods, nilearn's other ways, and all that grows are measured at either size."""
    masks = [tmp_path / f"{i}.nii.gz" for i in range(64)]
    stand_ins = {
        "cut_image": lambda n_volumes: tmp_path / f"{n_volumes}.nii.gz",
        "prepare_both": lambda path, **options: (path, tmp_path / "plain.nii"),
        "get_atlas_path": lambda: None,
        "atlas_to_masks": lambda *args: (None, masks),
        "fits": lambda *args: True,
        "prepare_2mm": lambda n: tmp_path / f"2mm-{n}.nii.gz",
        "averages": lambda paths, sizes: [(LABELS, n, str, paths[0]) for n in sizes],
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(benchmark, name, stand_in)
    monkeypatch.setattr(methods, "atlas_to_labels", lambda *_: tmp_path / "labels.nii.gz")
    todo = benchmark.questions(sizes)
    names = [one.key[1] for one in todo if one.key[0] == "methods"]
    left_out = set(benchmark.WITH_WORKERS) - set(sizes["parallel"])
    assert [name for name in names if name in TITLES] == [t for t in TITLES if t not in left_out]
    assert {"Streaming, 64 masks", "Streaming, without isal"} <= set(names)
    asked = {one.key[0] for one in todo}
    assert asked == set(QUESTIONS) - (set() if sizes["workers"] else {"workers"})
    for one in todo:
        assert one.path in one.call.args  # the limit is that of the file that the call reads


def test_recorded_results_are_complete():
    """The recorded results are of existing methods, each question five times.

    A method that is newer than the record is missing until `make benchmark` runs.
    """
    times, memory = read_benchmark(RECORDED)
    assert all(len(pairs) >= 5 for pairs in times.values())
    assert set(QUESTIONS) == {"methods", *GROWTH}
    for found in (times, memory):
        assert set(QUESTIONS) - {"regions"} <= {question for question, *_ in found}
    modes = (", single", ", loop", ", parallel", ", one pass")
    assert {name for question, name, _ in times if name.endswith(modes)} <= set(TITLES)
    about = json.loads((RECORDED / "benchmark.json").read_text())["benchmark"]
    assert about["shape"][3] == FULL["volumes"]


@pytest.mark.parametrize("question", ["methods", "regions"])
def test_every_recorded_ratio_is_drawn(question):
    """Each name has a dot, a label and a description; of several numbers of regions, the last."""
    times, _ = read_benchmark(RECORDED)
    last = {name: (asked, name, x) for asked, name, x in times if asked == question}.values()
    ratios = {label_of(key): np.median(times[key][:, 0] / times[key][:, 1]) for key in last}
    assert (f"{LABELS}, 1,000 regions" in ratios) == (question == "regions")
    figure = plot_ratios(times, "Time and the limit, 672 volumes", question)
    is_a_good_figure(figure, *(f"{name} {short(ratio)} (" for name, ratio in ratios.items()))
    texts = figure.axes[0].texts
    nothing_overlaps(texts)
    labels = {f"{name}: {short(ratio)}" for name, ratio in ratios.items()}
    assert {text.get_text() for text in texts} == labels | {"the limit"}


def test_growth_is_drawn():
    """Each question has a panel with a reference; a name with one number of regions is no line."""
    times, memory = read_benchmark(RECORDED)
    figures = {
        "the limit": plot_growth(times, "How time grows, full sizes", FULL),
        "the output": plot_growth(memory, "How memory grows, full sizes", FULL, "PSS"),
    }
    averaged = f"{AVERAGES}, cleaned, regions that are averaged from 100 to 1000: "
    for reference, figure in figures.items():
        is_a_good_figure(figure, "Streaming, masks, masks from 1 to 64: ", averaged)
        labels = [ax.get_xlabel() for ax in figure.axes]
        assert labels == [xlabel.format(**FULL) for xlabel in GROWTH.values()]
        lines = [line.get_label() for line in figure.axes[-1].lines]
        assert lines[0] == reference
        assert {LABELS, AVERAGES} < set(lines)
        assert "Streaming, maps" not in lines
