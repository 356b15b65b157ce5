"""A study: NiftiMasker's values in every file, failures named, no incomplete files."""

import contextlib
import os
import re
import shutil
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor
from nibabel.testing import data_path

from beyond_the_masker import masks as masks_module
from beyond_the_masker import study as module
from beyond_the_masker.meter import MIB
from beyond_the_masker.results import read_about
from beyond_the_masker.study import mask_study, name_files
from beyond_the_masker.workers import memory_of
from leftovers import eventually
from made_images import FLIPPED, OBLIQUE, STRAIGHT, make_image, nifti_masker
from small_study import Study, assert_same, failing, write


@pytest.fixture(scope="module", autouse=True)
def _no_workers_left():
    """Keep joblib's workers for all tests of this file, and then end them."""
    yield
    get_reusable_executor().shutdown(wait=True)


@pytest.fixture
def study(tmp_path):
    """A study of six images."""
    return Study(tmp_path / "study")


# Results
# -------


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


@settings(suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["u1", "<i2", ">i2", "<i4", "<f4", ">f4", "<f8", ">f8"]),
    scaling=st.sampled_from([None, (0.1, 0), (2.5, -3)]),
    shape=st.tuples(*[st.integers(1, 6)] * 3, st.integers(1, 9)),
    affine=st.sampled_from([STRAIGHT, FLIPPED, OBLIQUE]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    data=st.data(),
)
def test_any_image(tmp_path_factory, kind, scaling, shape, affine, suffix, data):
    """Positions that travel are the voxels of the masks, on any grid."""
    folder = tmp_path_factory.mktemp("any")
    scaling = scaling if np.dtype(kind).kind != "f" else None
    image = write(folder, 1, shape, suffix, dtype=kind, affine=affine, scaling=scaling)
    n = int(np.prod(shape[:3]))
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    inside = np.zeros(shape[:3], "u1")
    inside.flat[chosen] = 1
    check_one_mask(image, nib.Nifti1Image(inside, affine), folder)


def check_one_mask(image, mask, folder):
    """Check the results of one image with a mask in memory."""
    (row,) = mask_study([image], {"a region": mask}, folder).itertuples()
    assert row.status == "done", row.reason
    with np.load(row.file) as results:
        assert_same([results["a region"]], nifti_masker(image, [mask]))


def test_real_image(tmp_path):
    """A real int16 file of nibabel's, with an odd orientation, has NiftiMasker's values."""
    image = Path(data_path, "example4d.nii.gz")
    inside = np.zeros(nib.load(image).shape[:3], "u1")
    inside[40:60, 40:50, 8:12] = 1
    check_one_mask(image, nib.Nifti1Image(inside, nib.load(image).affine), tmp_path)


def test_results_can_be_traced(study):
    """A file records its image, the image's shape, and its masks."""
    study.run()
    inside = [nib.load(path).get_fdata() != 0 for path in study.masks]
    sizes = {f"region_{i}": int(one.sum()) for i, one in enumerate(inside)}
    for image in study.images:
        about = read_about(study.output / f"{image.name.split('.')[0]}.npz")
        assert about["image"] == str(image)
        assert tuple(about["shape"]) == nib.load(image).shape
        assert about["size"] == [image.stat().st_size]
        assert about["masks"] == about["voxels"] == sizes
        assert re.fullmatch("[0-9a-f]{64}", about["checksum"])


def test_masks_in_memory_and_in_files_are_the_same(study):
    """Masks in memory are the same as masks in files."""
    study.run()
    before = study.files()
    masks = {path.name.split(".")[0]: nib.load(path) for path in study.masks}
    assert list(mask_study(study.images, masks, study.output).status) == ["skipped"] * 6
    assert study.files() == before


def test_masks_are_resampled_on_request(study):
    """Masks on another grid are resampled as nilearn does it, and only on request."""
    from nilearn.image import resample_to_img

    finer = STRAIGHT * [[0.8], [0.8], [0.8], [1]]
    other = write(study.folder, 50, (7, 8, 6, 3), affine=finer)
    half = write(study.folder, 60, (3, 6, 4, 3))  # without the far half of the masks
    study.images = [*study.images[:2], other, half]
    table = study.run()
    assert list(table.status) == ["done", "done", "failed", "failed"]
    assert "resample_to_img" in table.reason[2]
    assert list(study.run(resample=True).status) == ["done"] * 4
    options = {"interpolation": "nearest", "copy_header": True, "force_resample": True}
    masks = []
    for path in study.masks:
        inside = (nib.load(path).get_fdata() != 0).astype("u1")
        binary = nib.Nifti1Image(inside, nib.load(path).affine)
        masks.append(resample_to_img(binary, nib.load(other), **options))
    assert_same(study.results(other), nifti_masker(other, masks))
    assert_same(study.results(study.images[0]), nifti_masker(study.images[0], study.masks))
    about = read_about(study.output / "sub-60_bold.npz")
    assert list(about["voxels"].values()) == [a.shape[1] for a in study.results(half)]
    assert about["voxels"] != about["masks"]


# Failures
# --------


def spoil(study):
    """Damage three of twenty images; return the reasons that the table should have."""
    cut, other, missing = study.images[3], study.images[7], study.images[12]
    cut.write_bytes(cut.read_bytes()[:-200])
    write(other.parent, 7, (7, 6, 4, 3), "".join(other.suffixes))
    missing.unlink()
    return {
        cut: "OSError.*incomplete or damaged",
        other: "ValueError.*on the grid",
        missing: "File",
    }


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.extensive)])
def test_seventeen_of_twenty(tmp_path, n_jobs):
    """The command line names each failed image with its reason, and does all others."""
    study = Study(tmp_path / "study", 20)
    references = {path: nifti_masker(path, study.masks) for path in study.images}
    bad = spoil(study)
    process = study.start(f"--jobs={n_jobs}")
    printed, messages = process.communicate(timeout=300)
    assert process.returncode == 1, messages
    assert "17 done, 3 failed" in printed
    table = pd.read_csv(study.output / "study.tsv", sep="\t", keep_default_na=False)
    for row in table.itertuples():
        image = Path(row.image)
        if image in bad:
            assert row.status == "failed"
            assert re.match(bad[image], row.reason), row.reason
            assert not Path(row.file).exists()
            assert f"{image}\n    {row.reason}" in printed
        else:
            assert (row.status, row.reason) == ("done", "")
            assert_same(study.results(image), references[image])
    assert len(study.files()) == 17


def test_success_and_blank_lines(study):
    """Blank lines in the list of images are ignored; success ends with status 0, in silence."""
    study.images = [study.images[0], "", *study.images[1:], ""]
    process = study.start()
    assert process.communicate(timeout=300) == ("6 done\nThe table is in series.\n", "")
    assert process.returncode == 0


def other_masks(study):
    nib.save(make_image(data=np.ones((3, 3, 3)), dtype="u1"), study.masks[1])


def empty_mask(study):
    nib.save(make_image(data=np.zeros((5, 6, 4)), dtype="u1"), study.masks[0])


def mask_of_four_dimensions(study):
    nib.save(make_image(data=np.ones((5, 6, 4, 2)), dtype="u1"), study.masks[0])


def damaged_mask(study):
    study.masks[2].write_bytes(study.masks[2].read_bytes()[:60])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (other_masks, ValueError, "region_1 has 27 voxels.*on the grid .3, 3, 3"),
        (empty_mask, ValueError, "region_0 has 0 voxels"),
        (mask_of_four_dimensions, ValueError, "region_0 has .*3D grid"),
        (damaged_mask, OSError, "region_2.nii.gz is incomplete or damaged"),
        (lambda study: study.masks[3].unlink(), FileNotFoundError, "region_3"),
        (lambda study: study.masks.clear(), ValueError, "At least one mask"),
        (lambda study: study.masks.append(study.masks[0]), ValueError, "a file name of its own"),
        (lambda study: study.images.clear(), ValueError, "at least one image"),
        (lambda study: study.images.append(study.images[0]), ValueError, "none twice"),
        (lambda study: study.output.touch(), OSError, "series"),
    ],
)
def test_errors_that_concern_all_images_are_raised_first(study, change, error, message):
    """An error that concerns all images is raised before any image is read."""
    change(study)
    with pytest.raises(error, match=f"(?s){message}"):
        study.run()
    assert not study.output.is_dir() or study.files() == {}


@pytest.mark.parametrize("name", ["about.json", "a.npy"])
def test_names_that_files_of_results_cannot_have(study, name):
    """A mask whose name would not be found in the file of results is rejected."""
    with pytest.raises(ValueError, match="one of these names"):
        mask_study(study.images, {name: study.masks[0]}, study.output)


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


@pytest.mark.parametrize("names", [["a.nii", "a.nii.gz"], ["x/a.nii", "y/a.nii"]])
def test_one_file_for_two_images_is_rejected(tmp_path, names):
    """Two images whose results would have one file are rejected."""
    with pytest.raises(ValueError, match="would both become"):
        name_files([tmp_path / name for name in names], tmp_path)


def test_parts_are_all_images_and_none_twice(study):
    """Parts together do every image once, each with a table of its own."""
    tables = [study.run(part=(number, 4)) for number in (1, 2, 3, 4)]
    done = [image for table in tables for image in table.image]
    assert sorted(done) == [str(path) for path in study.images]
    names = {f"study_{number}_of_4.tsv" for number in (1, 2, 3, 4)}
    assert {path.name for path in study.output.glob("*.tsv")} == names
    assert len(study.run(part=(7, 8))) == 0
    for part in ((0, 3), (4, 3), (1,)):
        with pytest.raises(ValueError, match="part is"):
            study.run(part=part)
    folder = study.folder / "other"
    folder.mkdir()
    study.images.append(Path(shutil.copy(study.images[0], folder)))
    for number in (1, 7):  # the equal names are in different parts
        with pytest.raises(ValueError, match="would both become"):
            study.run(part=(number, 7))


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


def test_damaged_masks_are_written_again(study):
    """A damaged file of masks is replaced."""
    study.run()
    (masks_file,) = study.output.glob("masks-*.npz")
    masks_file.write_bytes(b"")
    study.images[0].touch()
    assert list(study.run().status) == ["done"] + ["skipped"] * 5


def test_name_in_another_encoding(study):
    """A file name that is no text is in the table as it is on disk."""
    image = study.images[0].rename(study.folder / os.fsdecode(b"sub-\xe9.nii.gz"))
    study.images[0] = image
    assert list(study.run().status) == ["done"] * 6
    assert os.fsencode(image) in (study.output / "study.tsv").read_bytes()


def test_changed_while_it_is_read(study, monkeypatch):
    """An image that changes while it is read fails."""

    def read_and_change(image, masks):
        os.utime(image, ns=(1, 1))
        return []

    monkeypatch.setattr(module, "stream_masks", read_and_change)
    table = study.run()
    assert list(table.status) == ["failed"] * 6
    assert "was changed while it was read" in table.reason[0]
    assert study.files() == {}


def test_full_disk(study, monkeypatch):
    """Nothing is left of a file when the disk is full."""
    good = module.write_arrays

    def fill_disk(path, names, every_series, about):
        good(path, names[:1], every_series[:1], about)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_arrays", fill_disk)
    table = study.run()
    assert set(table.reason) == {"OSError: [Errno 28] No space left on device"}
    assert study.files() == {}


def test_a_broken_backend_is_not_hidden(study, monkeypatch):
    """An error of the backend is raised, and the table lists images that are not done."""

    def broken(*args, **options):
        raise RuntimeError("no cluster")

    monkeypatch.setattr(module, "Parallel", broken)
    with pytest.raises(RuntimeError, match="no cluster"):
        study.run()
    table = pd.read_csv(study.output / "study.tsv", sep="\t")
    assert set(table.status) == {"not done"}


# Run it again
# ------------


def newer_image(study):
    os.utime(study.images[2], ns=(1, 1))
    return [2]


def result_without_its_end(study):
    path = study.output / "sub-01_bold.npz"
    path.write_bytes(path.read_bytes()[:-50])
    return [1]


def no_result(study):
    (study.output / "sub-04_bold.npz").unlink()
    return [4]


def other_mask(study):
    img = nib.load(study.masks[2])
    data = img.get_fdata()
    data[0, 0, 0] = 1 - data[0, 0, 0]
    nib.save(nib.Nifti1Image(data, img.affine), study.masks[2])
    return range(6)


def other_name(study):
    study.masks[0] = study.masks[0].rename(study.folder / "renamed.nii.gz")
    return range(6)


def files_of_others(study):
    (study.output / "sub-05_bold.npz").write_bytes(b"not a zip")
    np.savez(study.output / "sub-00_bold.npz", a=np.ones(3))
    return [0, 5]


CHANGES = [newer_image, result_without_its_end, no_result, other_mask, other_name, files_of_others]


@pytest.mark.parametrize("change", [lambda study: [], *CHANGES])
def test_only_changed_images_are_repeated(study, change):
    """Only images whose results are missing or out of date are computed again."""
    study.run()
    repeated = set(change(study))
    table = study.run()
    expected = ["done" if number in repeated else "skipped" for number in range(6)]
    assert list(table.status) == expected
    assert list(table.volumes) == [nib.load(path).shape[3] for path in study.images]
    for image in study.images:
        assert_same(study.results(image), nifti_masker(image, study.masks))


def test_options_are_part_of_the_checksum(study):
    """Results without resampling are not taken for results with it."""
    study.run()
    assert list(study.run(resample=True).status) == ["done"] * 6


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


# Processes that die
# ------------------


def start(study, n_jobs, **environ):
    """Start the study in a process that fails at one image; see `failing`."""
    folder = study.folder / "failing"
    shutil.rmtree(folder, ignore_errors=True)
    return study.start(f"--jobs={n_jobs}", **failing(folder, **environ))


def wait_for(study, process):
    """Wait until the study is in the middle of an image; return the number of that process."""
    pid = study.folder / "failing" / "pid"
    assert eventually(lambda: pid.exists() or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    return int(pid.read_text())


extensive = pytest.mark.extensive


@pytest.mark.chance
@pytest.mark.parametrize(
    ("how", "n_jobs", "point"),
    [
        (signal.SIGINT, 2, "written in part"),
        (signal.SIGKILL, 2, "not yet moved"),
        pytest.param(signal.SIGINT, 1, "being read", marks=extensive),
        pytest.param(signal.SIGINT, 2, "being read", marks=extensive),
        pytest.param(signal.SIGTERM, 2, "being read", marks=extensive),
        pytest.param(signal.SIGKILL, 1, "written in part", marks=extensive),
        pytest.param(signal.SIGKILL, 2, "being read", marks=extensive),
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
    for child in tree:  # if the caller was killed, a worker in the middle of an image goes on
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in child.cmdline()):
                child.kill()
    _, alive = psutil.wait_procs(tree, timeout=60)
    assert not alive, "joblib's resource tracker does not end"
    _, messages = process.communicate()
    left = study.files()
    complete = {name: content for name, content in left.items() if name.endswith(".npz")}
    assert complete.items() <= whole.files().items()
    assert "sub-04_bold.npz" not in complete
    if how == signal.SIGINT:
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
