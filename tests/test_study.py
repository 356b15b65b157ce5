"""A study: NiftiMasker's values in every file, failures named, no incomplete files."""

import os
import re
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pandas as pd
import psutil
import pytest
from joblib import parallel_config

from beyond_the_masker.experiments.workers import memory_of
from beyond_the_masker.files import stem
from beyond_the_masker.meter import MIB
from beyond_the_masker.studies import masks as masks_module
from beyond_the_masker.studies import study as module
from beyond_the_masker.studies import tasks as tasks_module
from beyond_the_masker.studies.results import is_undamaged, read_about, read_arrays
from beyond_the_masker.studies.study import mask_study
from leftovers import kill
from made_images import assert_same, make_image, nifti_masker
from small_study import Study, start, wait_for, write


@pytest.fixture
def study(tmp_path):
    """A study of six images."""
    return Study(tmp_path / "study")


@pytest.mark.parametrize(("n_jobs", "backend"), [(1, "loky"), (2, "loky"), (2, "threading")])
def test_results_are_nifti_maskers(study, n_jobs, backend):
    """Files of results and the table are complete, with NiftiMasker's values, bit for bit."""
    with parallel_config(backend=backend):
        table = study.run(n_jobs)
    assert list(table.status) == ["done"] * 6
    assert list(table.image) == [str(path) for path in study.images]
    assert list(table.volumes) == [nib.load(path).shape[3] for path in study.images]
    assert (table.peak_rss_mib > 10).all()
    assert (os.getpid() in set(table.pid)) == (n_jobs == 1 or backend == "threading")
    for path in study.images:
        assert_same(study.results(path), nifti_masker(path, study.masks))
    read = pd.read_csv(study.output / "study.tsv", sep="\t", keep_default_na=False)
    pd.testing.assert_frame_equal(read, table, check_dtype=False)


def test_what_cannot_work_changes_nothing(study):
    """An error names the backends to choose from; no image is begun, no table replaced."""
    with parallel_config("multiprocessing"), pytest.raises(ValueError, match="threading or dask"):
        study.run(2)
    assert not study.output.exists()
    study.run()
    table = (study.output / "study.tsv").read_bytes()
    with parallel_config("multiprocessing"), pytest.raises(ValueError, match="threading or dask"):
        study.run(2)
    with pytest.raises(ValueError, match="n_jobs is 0"):
        study.run(0)
    assert (study.output / "study.tsv").read_bytes() == table


def test_what_a_killed_run_left_is_removed(study):
    """Unfinished files of tables, masks and results are gone after the next run."""
    study.run()
    for name in ("masks-0123456789ab.npz", "study.tsv", "sub-00_bold.npz"):
        (study.output / f"{name}.0123.unfinished").touch()
    study.run()
    assert not list(study.output.glob("*.unfinished"))


def test_results_can_be_traced(study):
    """A file records its image, the image's shape, and its masks."""
    study.run()
    sizes = {path.name[:8]: int(np.count_nonzero(nib.load(path).dataobj)) for path in study.masks}
    for image in study.images:
        about = read_about(study.output / f"{stem(image)}.npz")
        assert about["image"] == str(image)
        assert tuple(about["shape"]) == nib.load(image).shape
        assert about["size"] == [image.stat().st_size]
        assert about["masks"] == about["voxels"] == sizes
        assert re.fullmatch("[0-9a-f]{64}", about["checksum"])


def test_seventeen_of_twenty(tmp_path):
    """The command line names each failed image with its reason, and does all others."""
    study = Study(tmp_path / "study", 20)
    cut, other, missing = study.images[3], study.images[7], study.images[12]
    os.truncate(cut, cut.stat().st_size - 200)
    write(study.folder, 7, (7, 6, 4, 3), "".join(other.suffixes))
    missing.unlink()
    bad = {cut: "OSError.*incomplete or damaged", other: "ValueError.*the grid", missing: "File"}
    process = start(study, 1)
    printed, messages = process.communicate(timeout=300)
    assert process.returncode == 1, messages
    assert "17 done, 3 failed" in printed
    table = pd.read_csv(study.output / "study.tsv", sep="\t", keep_default_na=False)
    for row in table.itertuples():
        image = Path(row.image)
        if image in bad:
            assert row.status == "failed"
            assert re.match(bad[image], row.reason), row.reason
            assert row.file == ""
            assert f"{image}\n    {row.reason}" in printed
        else:
            assert (row.status, row.reason) == ("done", "")
            assert_same(study.results(image), nifti_masker(image, study.masks))
    assert len(study.files()) == 17


def other_grid(study):
    make_image(data=np.ones((3, 3, 3)), dtype="u1").to_filename(study.masks[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (other_grid, ValueError, "region_1.nii.gz is on .*grid .3, 3, 3"),
        (lambda s: os.truncate(s.masks[2], 60), OSError, "region_2.nii.gz is incomplete"),
        (lambda s: s.masks[3].unlink(), FileNotFoundError, "There is no file .*region_3"),
        (lambda s: s.masks.clear(), ValueError, "At least one mask"),
        (lambda s: s.masks.append(s.masks[0]), ValueError, "a file name of its own"),
        (lambda s: setattr(s, "masks", {"a.npy": s.masks[0]}), ValueError, "one of these names"),
        (lambda s: s.images.clear(), ValueError, "at least one image"),
        (lambda s: s.images.append(s.images[0]), ValueError, "nii.gz is given twice"),
        (lambda s: s.images.append("sub-00_bold.nii"), ValueError, "would both become"),
        (lambda s: s.output.touch(), NotADirectoryError, "series is a file. Give a folder"),
    ],
)
def test_errors_that_concern_all_images_are_raised_first(study, change, error, message):
    """An error that concerns all images is raised before any image is read."""
    change(study)
    with pytest.raises(error, match=f"(?s){message}"):
        study.run()
    assert not study.output.is_dir() or study.files() == {}


def test_equal_names_need_folders(study):
    """Images with equal names in different folders need `relative_to`."""
    for name in ("a", "b"):
        (study.folder / name).mkdir()
        study.images.append(Path(shutil.copy(study.images[0], study.folder / name)))
    with pytest.raises(ValueError, match="relative_to"):
        study.run()
    table = study.run(relative_to=study.folder)
    assert list(table.status) == ["done"] * 8
    assert {"sub-00_bold.npz", "a/sub-00_bold.npz", "b/sub-00_bold.npz"} <= set(study.files())
    with pytest.raises(ValueError, match="not in the subpath"):
        study.run(relative_to=study.folder / "a")


def test_parts_are_all_images_and_none_twice(study):
    """Parts together do every image once, each with a table of its own."""
    tables = [study.run(part=(number, 4)) for number in (1, 2, 3, 4)]
    done = [image for table in tables for image in table.image]
    assert sorted(done) == [str(path) for path in study.images]
    names = {f"study_{number}_of_4.tsv" for number in (1, 2, 3, 4)}
    assert {path.name for path in study.output.glob("*.tsv")} == names
    assert len(study.run(part=(7, 8))) == 0
    for part in ((0, 3), (4, 3), (1,)):
        with pytest.raises(ValueError, match=r"part is .* a K of 1 to N"):
            study.run(part=part)
    study.images.append(study.folder / "other" / study.images[0].name)
    with pytest.raises(ValueError, match="would both become"):
        study.run(part=(7, 7))  # the equal names are in different parts


def test_results_of_another_image_are_kept(study):
    """Results of another image are overwritten only if that image is gone."""
    study.run()
    before = study.files()
    folder = study.folder / "other"
    folder.mkdir()
    others = [Path(shutil.copy(image, folder)) for image in study.images[:2]]
    table = mask_study(others, study.masks, study.output)
    assert list(table.status) == ["failed"] * 2
    assert f"holds results of {study.images[0]}" in table.reason[0]
    assert study.files() == before
    study.images[0].unlink()  # moved to the other folder
    assert list(mask_study(others, study.masks, study.output).status) == ["done", "failed"]


def test_parts_at_the_same_time(study, monkeypatch):
    """A part that begins leaves the files that another one is writing."""
    original, seen = masks_module.write_arrays, []

    def meanwhile(path, *arguments):
        original(path, *arguments)
        if not seen:
            seen.append(path)
            assert list(study.run(part=(2, 2)).status) == ["done"] * 3

    monkeypatch.setattr(masks_module, "write_arrays", meanwhile)
    assert list(study.run(part=(1, 2)).status) == ["done"] * 3
    assert seen[0].name.startswith("masks-")


def test_masks_are_read_once(study, monkeypatch):
    """A worker, here the calling process, reads the masks for the first image alone."""
    original, seen = masks_module.read_arrays, []
    monkeypatch.setattr(
        masks_module, "read_arrays", lambda file: seen.append(file) or original(file)
    )
    assert list(study.run().status) == ["done"] * 6
    assert len(seen) == 1


def test_changed_while_it_is_read(study, monkeypatch):
    """An image that changes while it is read fails."""

    def read_and_change(fmri, positions):
        os.utime(fmri.name, ns=(1, 1))
        return []

    monkeypatch.setattr(module, "stream_voxels", read_and_change)
    table = study.run()
    assert list(table.status) == ["failed"] * 6
    assert "was changed while it was read" in table.reason[0]
    assert study.files() == {}


def test_a_broken_backend_is_not_hidden(study, monkeypatch):
    """An error of the backend is raised, and the table lists images that are not done."""

    def broken(*args, **options):
        raise RuntimeError("no cluster")

    monkeypatch.setattr(tasks_module, "results_as_ready", broken)
    with pytest.raises(RuntimeError, match="no cluster"):
        study.run()
    table = pd.read_csv(study.output / "study.tsv", sep="\t")
    assert set(table.status) == {"not done"}


def newer_image(study):
    os.utime(study.images[2], ns=(1, 1))
    return [2]


def result_without_its_end(study):
    path = study.output / "sub-01_bold.npz"
    path.write_bytes(path.read_bytes()[:-50])
    return [1]


def other_mask(study):
    img = nib.load(study.masks[2])
    data = img.get_fdata()
    data[0, 0, 0] = 1 - data[0, 0, 0]
    nib.save(nib.Nifti1Image(data, img.affine), study.masks[2])
    return range(6)


def other_name(study):
    study.masks[0] = study.masks[0].rename(study.folder / "renamed.nii.gz")
    return range(6)


def damaged_masks(study):
    (masks_file,) = study.output.glob("masks-*.npz")
    masks_file.write_bytes(b"")
    return newer_image(study)


CHANGES = [newer_image, damaged_masks, result_without_its_end, other_mask, other_name]


@pytest.mark.parametrize("change", [lambda study: [], *CHANGES])
def test_only_changed_images_are_repeated(study, change):
    """Only images whose results are missing or out of date are computed again."""
    study.run()
    repeated = set(change(study))
    reason, warns = "", nullcontext()
    if change in (other_mask, other_name):
        reason = "replaced those of region_0, region_1, region_2, region_3"
        warns = pytest.warns(UserWarning, match=f"^6 of 6 images had .*: {reason}")
    with warns:
        table = study.run()
    expected = ["done" if number in repeated else "skipped" for number in range(6)]
    assert list(table.status) == expected
    assert {*table.reason} == {reason}
    for image in study.images:
        assert_same(study.results(image), nifti_masker(image, study.masks))


@pytest.mark.parametrize("share", np.linspace(0, 0.999, 25))
def test_damaged_results_are_named_and_done_again(tmp_path, share):
    """No changed bit is believed: an error names the file, and `verify` replaces it."""
    study = Study(tmp_path / "study", 1)
    study.run()
    file = study.output / "sub-00_bold.npz"
    sound, arrays = file.read_bytes(), read_arrays(file)
    for bits in (1, 0x10, 0xFF):
        damaged = bytearray(sound)
        damaged[int(len(sound) * share)] ^= bits
        file.write_bytes(damaged)
        if is_undamaged(file):  # the bits have no meaning
            assert_same([*read_arrays(file).values()], [*arrays.values()])
            continue
        with pytest.raises(OSError, match=f"{file} is damaged"):
            read_arrays(file)
        assert list(study.run(verify=True).status) == ["done"]
        assert file.read_bytes() == sound


def test_the_same_image_through_a_link(study):
    """An image that is given through a link, or through a folder that is one, is the same image."""
    study.images = study.images[:1]
    study.run()
    folder = study.folder.with_name("link")
    folder.symlink_to(study.folder)
    (study.folder / "other").mkdir()
    link = study.folder / "other" / study.images[0].name
    link.symlink_to(study.images[0])
    for image in (link, folder / link.name, folder / "other" / ".." / link.name):
        study.images = [image]
        assert list(study.run().status) == ["skipped"]


def test_folders_above_the_images_may_be_links(study):
    """With `relative_to`, results stay below the output folder, whatever the paths look like."""
    (study.folder / "sub").mkdir()
    image = study.images[0].rename(study.folder / "sub" / "a.nii.gz")
    link = study.folder.with_name("link")
    link.symlink_to(study.folder)
    for above, path in (
        (link, image),
        (study.folder, link / "sub" / "a.nii.gz"),
        (study.folder / "sub" / "..", image),
        (study.folder, study.folder / "sub" / ".." / "sub" / "a.nii.gz"),
    ):
        study.images = [path]
        assert study.run(relative_to=above).status[0] in ("done", "skipped")
        assert set(study.files()) == {"sub/a.npz"}
    study.images = [study.folder / "sub" / ".." / "sub-01_bold.nii"]
    with pytest.raises(ValueError, match="not in the subpath"):
        study.run(relative_to=study.folder / "sub")


def test_home_folder(study, monkeypatch):
    """All paths may begin with ``~``."""
    monkeypatch.setenv("HOME", str(study.folder))
    images, masks = ([f"~/{path.name}" for path in paths] for paths in (study.images, study.masks))
    table = mask_study(images, masks, "~/series", relative_to="~")
    assert list(table.file) == [str(study.output / f"{stem(path)}.npz") for path in study.images]
    for image in study.images:
        assert_same(study.results(image), nifti_masker(image, study.masks))


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "[x]*?",
        "é\u2028",
        "n\new",
        "t\tab",
        "r\return",
        "q\"'",
        "~",
        "#%&",
        os.fsdecode(b"\xe9"),
    ],
)
def test_any_character_in_a_name(study, name):
    """Names of images and folders may have any bytes; those of masks become text."""
    folder = study.folder / name
    folder.mkdir()
    image = study.images[0].rename(folder / f"{name}.nii.gz")
    mask = study.masks[0].rename(folder / f"m{name}.nii.gz")
    table = mask_study([image], [mask], folder / "out")
    assert list(table.status) == ["done"], table.reason[0]
    assert [*read_arrays(table.file[0])] == [os.fsencode(f"m{name}").decode(errors="replace")]
    how = {"sep": "\t", "keep_default_na": False, "encoding_errors": "surrogateescape"}
    assert list(pd.read_csv(folder / "out" / "study.tsv", **how).image) == [str(image)]


def test_link_to_another_image(study):
    """A link that leads to another image of the same size and time is a change."""
    images = [write(study.folder, seed, suffix=".nii") for seed in (70, 71)]
    for image in images:
        os.utime(image, ns=(1, 1))
    link = study.folder / "sub-72_bold.nii"
    study.images = [link]
    for image in images:
        link.unlink(missing_ok=True)
        link.symlink_to(image)
        assert list(study.run().status) == ["done"]
        assert_same(study.results(link), nifti_masker(image, study.masks))


@pytest.mark.chance
@pytest.mark.parametrize(
    ("how", "n_jobs", "point"),
    [
        (signal.SIGINT, 2, "being read"),
        (signal.SIGKILL, 2, "not yet moved"),
        pytest.param(signal.SIGINT, 1, "being read", marks=pytest.mark.extensive),
        (signal.SIGTERM, 2, "being read"),
        pytest.param(signal.SIGHUP, 2, "being read", marks=pytest.mark.extensive),
    ],
)
def test_interrupted_and_run_again(study, how, n_jobs, point):
    """An interruption leaves only complete files, and the next run does the others."""
    whole = Study(study.folder / "whole")
    whole.images, whole.masks = study.images, study.masks
    whole.run()
    process = start(study, n_jobs, STOPS=study.images[4].name, POINT=point)
    wait_for(study, process)
    tree = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    assert process.wait(timeout=300) != 0
    if how == signal.SIGKILL:  # a worker in the middle of an image goes on
        kill(tree)
    _, alive = psutil.wait_procs(tree, timeout=60)
    assert not alive
    _, messages = process.communicate()
    left = study.files()
    complete = {name: content for name, content in left.items() if name.endswith(".npz")}
    assert complete.items() <= whole.files().items()
    assert "sub-04_bold.npz" not in complete
    if how != signal.SIGKILL:
        assert left == complete
        assert "Interrupted. Run the same command again to continue.\n" in messages
        table = pd.read_csv(study.output / "study.tsv", sep="\t")
        assert table.status[4] == "not done"
    table = study.run()
    expected = [f"sub-{n:02d}_bold.npz" in complete for n in range(6)]
    assert list(table.status == "skipped") == expected
    assert study.files() == whole.files()


@pytest.mark.chance
def test_the_suspect_image_is_done_last(study):
    """Without workers, an image that kills the process is done last the next time."""
    for _ in range(2):
        process = start(study, 1, DIES=study.images[2].name)
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
    done = {name for name in study.files() if name.endswith(".npz")}
    assert done == {f"sub-{n:02d}_bold.npz" for n in (0, 1, 3, 4, 5)}


@pytest.mark.chance
def test_a_killed_worker_stops_nothing(study):
    """All images are done, also the one whose worker was killed."""
    process = start(study, 2, STOPS=study.images[1].name)
    os.kill(wait_for(study, process), signal.SIGKILL)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    table = pd.read_csv(study.output / "study.tsv", sep="\t")
    assert set(table.status) <= {"done", "skipped"}
    assert len(study.files()) == 6
    for image in study.images:
        assert_same(study.results(image), nifti_masker(image, study.masks))


@pytest.mark.chance
def test_an_image_that_kills_its_worker_is_named(study):
    """An image that no worker survives fails, and all others are done."""
    process = start(study, 2, DIES=study.images[2].name)
    printed, messages = process.communicate(timeout=300)
    assert process.returncode == 1, messages
    assert re.search(r"\b1 failed\b", printed)  # others can be skipped: done, and the row was lost
    table = pd.read_csv(study.output / "study.tsv", sep="\t")
    assert list(table.status == "failed") == [number == 2 for number in range(6)]
    assert table.reason[2].endswith("the worker died twice while it did this image.")
    assert len(study.files()) == 5


@pytest.mark.chance
def test_worker_needs_little(tmp_path):
    """A worker needs its largest result and at most 64 MiB above its imports."""
    data = np.zeros((64, 64, 64, 250), "f4")  # 250 MiB
    images = [tmp_path / f"sub-{i}.nii.gz" for i in range(4)]
    nib.Nifti1Image(data, np.eye(4)).to_filename(images[0])
    for image in images[1:]:
        image.symlink_to(images[0])
    inside = np.zeros(data.shape[:3], "u1")
    inside[10:30, 10:30, 10:20] = 1
    masks = {"a": nib.Nifti1Image(inside, np.eye(4)), "b": nib.Nifti1Image(inside, np.eye(4))}
    missing = [tmp_path / f"missing-{i}.nii.gz" for i in range(4)]
    imports = sorted(memory_of(missing, masks, 2)[1])[-2:]  # of workers, not of their helpers
    trace, workers = memory_of(images, masks, 2)
    table = trace.result()
    output_mib = 2 * inside.sum() * data.shape[3] * 4 / MIB
    assert set(table.status) == {"done"}
    assert max(workers) > max(imports) + 0.8 * output_mib  # these are the workers
    assert max(workers) - min(imports) <= output_mib + 64
    assert max(table.peak_rss_mib) >= max(workers) - 5


def test_an_error_of_the_disk_names_the_file(study, monkeypatch):
    """A file of results that cannot be read is named, also if the system's error names none."""
    file = study.run().file[0]
    monkeypatch.setattr(np, "load", mock.Mock(side_effect=OSError(5, "odd")))
    with pytest.raises(OSError, match=r"odd: '.*sub-00_bold\.npz'"):
        read_arrays(file)
