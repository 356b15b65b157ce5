"""A study with maskers: nilearn's values in every table, and only what is missing is done."""

import json
import os
import re
import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from joblib import parallel_config
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker, NiftiSpheresMasker

from beyond_the_masker.meter import MIB, measure
from beyond_the_masker.studies import work
from beyond_the_masker.studies.atlases import read_atlas
from beyond_the_masker.studies.masker_runs import Confounds, Run, masker_study, run_maskers
from beyond_the_masker.studies.tables import read_record, read_table
from made_images import by_name, flip, make_image, sparse_image
from small_masker_study import AFFINE, SHAPE, Study, make_labels, make_maps, make_study
from small_study import start, wait_for

COLUMNS = "image atlas file status reason volumes kept confounds mean_fd below_coverage seconds "
COLUMNS += "peak_rss_mib started host pid"


@pytest.fixture
def study(tmp_path):
    """A small study."""
    make_study(tmp_path / "study")
    return Study(tmp_path / "study")


# What is in the tables
# ---------------------


def same(file, expected, exact=True):
    """Compare a table with an array, bit for bit, or as `stream_masker` promises for maps."""
    found = read_table(file).to_numpy()
    assert found.dtype == expected.dtype
    if exact:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


CLEANING = st.fixed_dictionaries(
    {
        "standardize": st.sampled_from([None, "zscore_sample", "psc"]),
        "detrend": st.booleans(),
        "smoothing_fwhm": st.sampled_from([None, 5]),
    },
    optional={"low_pass": st.just(0.1), "high_pass": st.just(0.01)},
)


@settings(max_examples=settings().max_examples // 3, phases=[Phase.explicit, Phase.generate])
@given(
    how=CLEANING,
    dtype=st.sampled_from(["<f4", ">i2", "<f8"]),
    n_confounds=st.integers(0, 3),
    kept=st.none() | st.sets(st.integers(0, SHAPE[3] - 1), min_size=35),
)
def test_tables_have_nilearns_values(tmp_path_factory, how, dtype, n_confounds, kept):
    """Labels, spheres and voxels have nilearn's values, bit for bit; maps within the bound."""
    folder, rng = tmp_path_factory.mktemp("one"), np.random.default_rng(5)
    image = folder / "image.nii.gz"
    nib.save(make_image(data=rng.normal(100, 30, SHAPE), dtype=dtype, affine=AFFINE), image)
    mask = make_image(data=np.ones(SHAPE[:3]), dtype="u1", affine=AFFINE)
    how = {**how, "t_r": 2.0, "reports": False}
    maskers = {
        "labels": NiftiLabelsMasker(str(make_labels(folder)), **how),
        "maps": NiftiMapsMasker(str(make_maps(folder)), **how),
        "spheres": NiftiSpheresMasker([(6, 9, 8), (3, 3, 4)], radius=4, **how),
        "voxels": NiftiMasker(mask, **how),
    }
    confounds = rng.normal(size=(SHAPE[3], n_confounds))
    kinds = {1: np.ravel, 2: np.asarray, 3: pd.DataFrame}
    confounds = kinds[n_confounds](confounds) if n_confounds else None
    kept = None if kept is None else np.array(sorted(kept))
    cleaning = {"confounds": [confounds], "sample_masks": [kept]}
    table = masker_study([image], maskers, folder / "out", **cleaning)
    assert list(table.status) == ["done"] * 4, list(table.reason)
    assert set(table.kept) == {SHAPE[3] if kept is None else len(kept)}
    assert set(table.confounds) == {n_confounds}
    for name, file in zip(table.atlas, table.file, strict=True):
        expected = maskers[name].fit_transform(image, confounds=confounds, sample_mask=kept)
        same(Path(file), expected, exact=name != "maps")


def test_header_and_record(study):
    """Columns have the names of regions, and the record all that the series depend on."""
    table = study.run()
    assert list(table.columns) == COLUMNS.split()
    file = study.file(1, "labels")
    assert list(read_table(file)) == [f"Area {number}" for number in range(1, 6)]
    record = json.loads(file.with_suffix(".json").read_text())
    assert record["Source"] == "../sub-01_bold.nii.gz"
    assert record["ConfoundColumns"] == ["x", "csf"]
    assert record["Volumes"] == SHAPE[3]
    assert record["SampleMask"] is None
    assert record["Coverage"] == dict.fromkeys(read_table(file), 1.0)
    assert record["Masker"]["standardize"] == "zscore_sample"
    assert set(record["Inputs"]) == {"image", "confounds"}
    assert str(study.folder) not in file.with_suffix(".json").read_text()


def test_regions_that_are_not_covered(study):
    """A region outside the image, or below the wanted share of it, is not available."""
    data = np.zeros((12, 7, 5))
    data[2:4], data[5:8], data[8:] = 1, 2, 3  # of the second region a third is in the image
    nib.save(make_image(data=data, dtype="u1", affine=AFFINE), study.folder / "wide.nii.gz")
    study.maskers = {"wide": study.folder / "wide.nii.gz"}
    table = study.run(min_coverage=0.5)
    assert list(table.below_coverage) == ["2: region_2, region_3"] * 3
    assert list(read_table(study.file(1, "wide")).isna().all()) == [False, True, True]
    assert "\tn/a\tn/a\n" in study.file(1, "wide").read_text()
    for status in ("done", "skipped"):
        table = study.run(min_coverage=0.3)
        assert list(table.status) == [status] * 3
        assert list(table.below_coverage) == ["1: region_3"] * 3


def test_correlations(study):
    """A matrix has the correlations of the series, or n/a; it needs no second pass."""
    study.run()
    before = study.times()
    table = study.run(relmat=True)
    assert set(table.status) == {"done"}
    assert before.items() <= study.times().items()
    for name in study.maskers:
        matrix = pd.read_csv(study.file(1, name, "relmat.tsv"), sep="\t", index_col=0)
        series = read_table(study.file(1, name))
        assert list(matrix) == list(matrix.index) == list(series)
        np.testing.assert_allclose(matrix, np.corrcoef(series.T), atol=1e-12)
    after = study.files()
    assert set(study.run(relmat=True).status) == {"skipped"}
    shutil.rmtree(study.output)
    study.run(relmat=True)
    assert study.files() == after


def test_a_matrix_of_other_series_is_removed(study):
    """A matrix whose series were replaced is never left beside the new ones."""
    study.run(relmat=True)
    study.run(confounds=None)
    assert not list(study.output.glob("*relmat*"))


# What is done again
# ------------------


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_same_bytes_whoever_does_the_work(study, backend):
    """Workers, threads and parts write the same files as the calling process."""
    study.run(relmat=True)
    expected, filters = study.files(), [*warnings.filters]
    shutil.rmtree(study.output)
    with parallel_config(backend=backend):
        tables = [study.run(2, part=(number, 2), relmat=True) for number in (1, 2)]
    assert [len(table) for table in tables] == [6, 3]
    assert {status for table in tables for status in table.status} == {"done"}
    assert study.files() == expected
    assert warnings.filters == filters  # threads that catch warnings change them


def touch(path):
    """Give a file another time of change."""
    os.utime(path, ns=(1, 1))


def edit(path, pattern, new):
    """Replace what matches first in a text."""
    path.write_text(re.sub(pattern, new, path.read_text(), count=1))


def halve(path):
    """Cut off the second half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def turn(path):
    """Turn the labels of an atlas around."""
    data = np.asarray(nib.load(path).dataobj)[::-1]
    nib.save(make_image(data=data, dtype="u1", affine=AFFINE), path)


def move(study):
    """Move the folder of a study with its results."""
    study.__init__(study.folder.rename(study.folder.with_name("moved")))


def cut_mask():
    """Return a mask in memory."""
    return make_image(data=np.indices(SHAPE[:3])[0] > 0, dtype="u1", affine=AFFINE)


EACH, ALL = (1, 2, 3), ("labels", "maps", "spheres")
LABELS = "own_dseg.nii.gz"
CHANGES = {  # a change, and the images and the atlases whose results depend on it
    "newer image": (lambda study: touch(study.images[1]), [2], ALL),
    "other confounds": (lambda study: edit(study.confounds[0], "csf", "wm"), [1], ALL),
    "other labels": (lambda study: turn(study.folder / LABELS), EACH, ["labels"]),
    "other name": (lambda study: edit(study.folder / "own_dseg.tsv", "a 2", "B"), EACH, ["labels"]),
    "seed": (lambda study: study.set("spheres", seeds=[(6, 9, 8), (3, 3, 8)]), EACH, ["spheres"]),
    "strategy": (lambda study: study.set("labels", strategy="median"), EACH, ["labels"]),
    "mask": (lambda study: study.set("spheres", mask_img=cut_mask()), EACH, ["spheres"]),
    "cache": (lambda study: study.set("labels", memory=str(study.folder), verbose=1), [], []),
    "radius": (lambda study: study.set("spheres", radius=4.5), EACH, ["spheres"]),
    "no record": (lambda study: study.file(3, "maps", "timeseries.json").unlink(), [3], ["maps"]),
    "half a record": (lambda study: halve(study.file(3, "maps", "timeseries.json")), [3], ["maps"]),
    "half a table": (lambda study: halve(study.file(2, "maps")), [2], ["maps"]),
    "new atlas": (lambda study: study.maskers.update(b=study.maskers["maps"]), EACH, ["b"]),
    "same labels": (lambda study: touch(study.folder / LABELS), [], []),
    "moved": (move, [], []),
}


@by_name(("change", "images", "names"), CHANGES)
def test_only_what_changed_is_done_again(study, change, images, names):
    """Results that depend on what changed are written again; no other file is touched."""
    study.run()
    before = study.times()
    change(study)
    repeated = {(number, name) for number in images for name in names}
    table = study.run()
    assert set(table.status) <= {"done", "skipped"}, list(table.reason)
    numbers = table.image.str.extract(r"sub-(\d+)")[0].astype(int)
    pairs = zip(numbers, table.atlas, strict=True)
    done = {pair for pair, status in zip(pairs, table.status, strict=True) if status == "done"}
    assert done == repeated
    touched = {name for name, time in study.times().items() if before.get(name) != time}
    ending = ("timeseries.tsv", "timeseries.json")
    assert touched == {study.file(*one, each).name for one in repeated for each in ending}
    expected = study.files()
    shutil.rmtree(study.output)
    study.run()
    assert study.files() == expected


def test_all_missing_atlases_share_one_pass(study, monkeypatch):
    """An image is read once for all atlases, and not at all if none is missing."""
    calls, stream = [], work.stream_masker
    spy = lambda maskers, *more: calls.append(len(maskers)) or stream(maskers, *more)  # noqa: E731
    monkeypatch.setattr(work, "stream_masker", spy)
    study.run()
    study.run()
    assert calls == [3, 3, 3]


def test_damaged_tables_are_found(study):
    """A changed byte in a table or a matrix is found with `verify`, and replaced."""
    study.run(relmat=True)
    sound = study.files()
    for ending in ("timeseries.tsv", "relmat.tsv"):
        flip(study.file(2, "labels", ending))
        assert set(study.run(relmat=True).status) == {"skipped"}
        table = study.run(relmat=True, verify=True)
        assert list(table.status == "done") == [number == 3 for number in range(9)]
        assert study.files() == sound


def test_results_of_another_image_are_kept(study):
    """Results of another image are overwritten only if that image is gone."""
    study.run()
    before = study.files()
    (study.folder / "other").mkdir()
    others = [shutil.copy(study.images[0], study.folder / "other")]
    how = {"confounds": study.confounds[:1]}
    table = masker_study(others, study.maskers, study.output, **how)
    assert set(table.status) == {"failed"}
    assert f"holds results of {study.images[0]}" in table.reason[0]
    assert study.files() == before
    study.images[0].unlink()
    assert set(masker_study(others, study.maskers, study.output, **how).status) == {"done"}


def test_what_a_run_brings(study):
    """A record has what a run is about; a file that only one atlas depends on repeats only that."""
    sidecar, regions = study.folder / "sidecar.json", study.folder / "regions.txt"
    sidecar.touch()
    regions.touch()
    atlases = {name: read_atlas(name, study.maskers[name]) for name in ("labels", "spheres")}
    run = Run(
        image=study.images[0],
        files={name: study.file(1, name) for name in atlases},
        maskers={name: atlas.masker for name, atlas in atlases.items()},
        confounds=lambda: Confounds(None, [3, 4, 8], 0.25),
        sources={"sidecar": sidecar, "atlas-labels": regions},
        about={"RepetitionTime": 2.5},
    )
    table = run_maskers([run], atlases, study.output)
    assert list(table.status) == ["done", "done"], list(table.reason)
    assert table[["kept", "mean_fd"]].to_numpy().tolist() == [[3, 0.25]] * 2
    record = read_record(study.file(1, "labels"))
    expected = {"RepetitionTime": 2.5, "SampleMask": [3, 4, 8], "MeanFramewiseDisplacement": 0.25}
    assert expected.items() <= record.items()
    assert "atlas-labels" not in read_record(study.file(1, "spheres"))["Inputs"]
    touch(regions)
    assert list(run_maskers([run], atlases, study.output).status) == ["done", "skipped"]
    for change in (lambda: touch(sidecar), lambda: run.about.update(RepetitionTime=2.0)):
        change()
        assert list(run_maskers([run], atlases, study.output).status) == ["done", "done"]
    assert list(run_maskers([run], atlases, study.output).status) == ["skipped", "skipped"]


@pytest.fixture(scope="module")
def whole_study(tmp_path_factory):
    """A study of two images that was done at once."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    make_study(folder, n_images=2)
    study = Study(folder)
    study.run(relmat=True)
    return study


@settings(max_examples=settings().max_examples // 5)
@given(
    steps=st.lists(
        st.tuples(
            st.sets(st.sampled_from(["labels", "maps", "spheres"]), min_size=1),
            st.sampled_from([(1, 1), (1, 2), (2, 2)]),
            st.booleans(),
        ),
        max_size=3,
    )
)
def test_any_way_leads_to_the_same_files(whole_study, steps):
    """Whatever atlases and parts were done before, in the end all bytes are the same."""
    expected, study = whole_study.files(), Study(whole_study.folder)
    all_maskers = dict(study.maskers)
    study.output = study.folder / "steps"
    shutil.rmtree(study.output, ignore_errors=True)
    for names, part, relmat in steps:
        study.maskers = {name: all_maskers[name] for name in all_maskers if name in names}
        assert "failed" not in set(study.run(part=part, relmat=relmat).status)
    study.maskers = all_maskers
    study.run(relmat=True)
    assert study.files() == expected


# What fails
# ----------


def dangle(image, _):
    """Replace an image by a link to nothing, as git-annex leaves."""
    image.unlink()
    image.symlink_to(".git/annex/objects/gone")


DAMAGES = {  # to an image or its table of confounds, or a sample mask; and the reason in its rows
    "half an image": (lambda image, _: halve(image), "OSError: .*sub-02_bold.nii.gz is incomplete"),
    "link": (dangle, "FileNotFoundError: .*datalad get"),
    "no table": (lambda _, table: table.unlink(), "FileNotFoundError: .*sub-02_confounds.tsv"),
    "row missing": (
        lambda _, table: edit(table, r".+\n$", ""),
        "ValueError: Confound signal has an",
    ),
    "value missing": (
        lambda _, table: edit(table, r"\n\S+", "\nn/a"),
        "ValueError: The confounds x",
    ),
    "text": (lambda _, table: edit(table, r"0\.", "o."), "ValueError: A confound is not a number"),
    "all scrubbed": ([], "ValueError: sample_mask keeps none of 40 volumes"),
    "too few": ([4, 7, 9], "ValueError: Of 40 volumes 3 are left, too few to remove 2 confounds"),
    "not there": (np.arange(1, 41), "ValueError: sample_mask has 40, but the volumes are 0 to 39"),
    "order": (np.arange(39, 0, -1), "ValueError: .* sample mask are not in increasing order"),
}


@by_name(("damage", "reason"), DAMAGES)
def test_errors_of_an_image_become_rows(study, damage, reason):
    """The rows of an image say what is wrong with it; all others are done."""
    if callable(damage):
        damage(study.images[1], study.confounds[1])
    sample_masks = None if callable(damage) else [None, damage, None]
    table = study.run(sample_masks=sample_masks)
    assert list(table.status == "failed") == [3 <= number < 6 for number in range(9)]
    for row in table[3:6].itertuples():
        assert re.match(reason, row.reason), row.reason
        assert (row.file, row.volumes, row.kept) == ("", 0, 0)
    assert len(study.files()) == 12
    assert not list(study.output.glob("*.unfinished"))


def test_an_atlas_fails_alone(study):
    """An atlas that does not fit an image, or lacks a parameter, leaves the others."""
    far = nib.affines.from_matvec(AFFINE[:3, :3], [9000, 0, 0])
    labels = make_image(data=np.ones(SHAPE[:3]), dtype="u1", affine=far)
    study.maskers["far"] = NiftiLabelsMasker(labels, standardize=None)
    study.maskers["filtered"] = NiftiSpheresMasker([(6, 9, 8)], radius=4, low_pass=0.1)
    table = study.run()
    assert list(table.status) == ["done", "done", "done", "failed", "failed"] * 3
    assert "Repetition time" in table.reason[4]


def test_changed_while_it_is_read(study, monkeypatch):
    """Results of an image or confounds that change meanwhile are not written."""
    stream = work.stream_masker

    def change_and_stream(*arguments):
        touch(study.confounds[0])
        return stream(*arguments)

    monkeypatch.setattr(work, "stream_masker", change_and_stream)
    table = study.run()
    assert list(table.status) == ["failed"] * 3 + ["done"] * 6
    assert "was changed while it was read" in table.reason[0]
    assert len(study.files()) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maskers": {}}, "one atlas"),
        ({"maskers": {"a_b": "own_dseg.nii.gz"}}, "letters and digits"),
        ({"confounds": [None]}, "confounds has 1 entries"),
        ({"confounds": [None, [["a"]], None]}, "confound is not a number"),
        ({"sample_masks": "all"}, "sample_masks is a list"),
        ({"min_coverage": 50}, "min_coverage is 50"),
        ({"part": (4, 3)}, "part is"),
        ({"n_jobs": 0}, "n_jobs is 0"),
        ({"images": []}, "at least one image"),
    ],
)
def test_mistakes_are_errors_at_once(study, change, message):
    """A mistake that concerns all images is an error before any is read."""
    call = {"images": study.images, "maskers": study.maskers, "output_dir": study.output} | change
    with pytest.raises(ValueError, match=message):
        masker_study(**call)
    assert not list(study.folder.glob("out/sub-*"))


def test_runs_need_files_of_their_own(study):
    """Two runs with one file are refused."""
    atlases = {"spheres": read_atlas("spheres", study.maskers["spheres"])}
    maskers, files = {"spheres": study.maskers["spheres"]}, {"spheres": study.file(1, "spheres")}
    runs = [Run(image, files, maskers) for image in study.images]
    with pytest.raises(ValueError, match="would have two results"):
        run_maskers(runs, atlases, study.output)


# What is interrupted
# -------------------


@pytest.mark.chance
def test_killed_and_run_again(study):
    """After a process is killed the next run does the rest; in the end all bytes are the same."""
    study.run()
    expected = study.files()
    shutil.rmtree(study.output)
    stops = study.file(2, "maps").stem
    process = start(study, 1, STOPS=stops, POINT="not yet moved")
    wait_for(study, process)
    process.kill()
    process.communicate()
    left = study.files()
    complete = {name for name in left if f"{name.rsplit('.', 1)[0]}.json" in left}
    assert {name: left[name] for name in complete}.items() <= expected.items()
    assert study.file(2, "maps").name not in complete
    table = study.run()
    assert set(table.status) <= {"done", "skipped"}
    assert study.files() == expected
    assert not list(study.output.glob("*.unfinished"))


@pytest.mark.chance
@pytest.mark.extensive
def test_an_image_that_kills_its_worker_is_named(study):
    """An image that no worker survives fails with all its atlases; all others are done."""
    process = start(study, 2, DIES=study.images[1].name)
    printed, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    failed = [status == "failed" for status in printed.split()]
    assert failed == [3 <= number < 6 for number in range(9)]


# What a worker needs
# -------------------


def peaks_of(images, maskers, folder, **options):
    """Measure a study; return its table, and the largest peaks of workers in MiB."""
    trace = measure(masker_study, images, maskers, folder, 2, **options)
    _, *others = (process["anon"][process["pss"] > 0] for process in trace.processes.values())
    peaks = [float(samples[1:].max()) for samples in others if len(samples) > 1]
    return trace.result(), sorted(peaks)[-2:]


@pytest.mark.chance
@pytest.mark.extensive
@pytest.mark.parametrize("shape", [(64, 64, 40, 240), (16, 16, 10, 4800)])
def test_worker_needs_little(tmp_path, shape):
    """A worker needs at most 64 MiB above its imports and its results."""
    n_volumes, n_regions = shape[3], 100
    images = [tmp_path / f"sub-{number}.nii" for number in range(4)]
    for image in images:
        sparse_image(image, shape)
    labels = np.arange(np.prod(shape[:3])).reshape(shape[:3]) * n_regions // np.prod(shape[:3]) + 1
    labels = nib.Nifti1Image(labels.astype("u1"), nib.load(images[0]).affine)
    nib.save(labels, tmp_path / "labels.nii.gz")
    maskers = {"labels": tmp_path / "labels.nii.gz"}
    confounds = [np.random.default_rng(0).normal(size=(n_volumes, 20))] * 4
    gone = [path.with_name(f"gone-{path.name}") for path in images]
    _, imports = peaks_of(gone, maskers, tmp_path / "gone", confounds=confounds)
    table, workers = peaks_of(images, maskers, tmp_path / "out", confounds=confounds, relmat=True)
    assert set(table.status) == {"done"}, list(table.reason)
    assert max(workers) - min(imports) <= 64 + n_volumes * n_regions * 8 / MIB
