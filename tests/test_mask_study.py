"""A study: NiftiMasker's values in every file, failures named, nothing half-written, no litter."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
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

from beyond_the_masker import study as module
from beyond_the_masker.meter import MIB
from beyond_the_masker.results import read_about
from beyond_the_masker.study import mask_study, name_files
from beyond_the_masker.workers import memory_of
from leftovers import eventually
from made_images import FLIPPED, OBLIQUE, STRAIGHT, make_image, nifti_masker
from small_study import Study, assert_same, write

EXAMPLES = Path(module.__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def _no_workers_left():
    """Workers stay for the tests of this file, where starting them would take the time."""
    yield
    get_reusable_executor().shutdown(wait=True)


@pytest.fixture
def study(tmp_path):
    """A study of six images."""
    return Study(tmp_path)


def command(study, *arguments):
    """Run the command line in the study's folder."""
    names = [str(path) for path in study.images]
    (study.folder / "images.txt").write_text("\n".join(names) + "\n")
    masks = [path.name for path in study.masks]
    return subprocess.run(
        [sys.executable, "-m", "beyond_the_masker", "study", "@images.txt", "--masks", *masks, "--output=series", *arguments],
        cwd=study.folder,
        capture_output=True,
        text=True,
    )


# Results
# -------


@pytest.mark.parametrize(("n_jobs", "engine"), [(1, "loky"), (2, "loky"), (2, "threading")])
def test_results_are_nifti_maskers(study, n_jobs, engine):
    """A file of results does not hold what NiftiMasker gives, bit for bit."""
    with parallel_config(backend=engine):
        table = study.run(n_jobs)
    assert list(table.status) == ["done"] * 6
    assert list(table.image) == [str(path) for path in study.images]
    assert list(table.volumes) == [nib.load(path).shape[3] for path in study.images]
    for path in study.images:
        assert_same(study.results(path), nifti_masker(path, study.masks))


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["u1", "<i2", ">i2", "<i4", "<f4", ">f4", "<f8", ">f8"]),
    scaling=st.sampled_from([None, (0.1, 0), (2.5, -3)]),
    shape=st.tuples(*[st.integers(1, 6)] * 3, st.integers(1, 9)),
    affine=st.sampled_from([STRAIGHT, FLIPPED, OBLIQUE]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    data=st.data(),
)
def test_any_image(tmp_path_factory, kind, scaling, shape, affine, suffix, data):
    """Positions that travel are not the voxels of the masks, on some grid."""
    folder = tmp_path_factory.mktemp("any")
    scaling = scaling if np.dtype(kind).kind != "f" else None
    image = write(folder, 1, shape, suffix, dtype=kind, affine=affine, scaling=scaling)
    n = int(np.prod(shape[:3]))
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    inside = np.zeros(shape[:3], "u1")
    inside.flat[chosen] = 1
    mask = nib.Nifti1Image(inside, affine)
    (row,) = mask_study([image], {"one": mask}, folder).itertuples()
    assert row.status == "done", row.reason
    with np.load(row.file) as results:
        assert_same([results["one"]], nifti_masker(image, [mask]))


def test_real_images(tmp_path):
    """A real int16 file of nibabel's, with an odd orientation, gives other values."""
    image = Path(data_path, "example4d.nii.gz")
    inside = np.zeros(nib.load(image).shape[:3], "u1")
    inside[40:60, 40:50, 8:12] = 1
    mask = nib.Nifti1Image(inside, nib.load(image).affine)
    (row,) = mask_study([image], {"a region": mask}, tmp_path).itertuples()
    with np.load(row.file) as results:
        assert_same([results["a region"]], nifti_masker(image, [mask]))


def test_results_can_be_traced(study):
    """A file does not say from which image, of which shape, and with which masks it is made."""
    study.run()
    for image in study.images:
        about = read_about(study.output / f"{image.name.split('.')[0]}.npz")
        assert about["image"] == str(image)
        assert tuple(about["shape"]) == nib.load(image).shape
        assert about["size"] == [image.stat().st_size]
        sizes = {
            path.name.split(".")[0]: int((nib.load(path).get_fdata() != 0).sum())
            for path in study.masks
        }
        assert about["masks"] == sizes
        assert re.fullmatch("[0-9a-f]{64}", about["checksum"])


def test_table_is_what_is_returned(study):
    """The table on disk is the one that is returned."""
    table = study.run(2)
    read = pd.read_csv(study.output / "study.tsv", sep="\t", keep_default_na=False)
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    assert (table.peak_rss_mib > 10).all()
    assert not set(table.pid) & {os.getpid()}


def test_masks_in_memory_and_in_files_are_the_same(study):
    """What is masked depends on how the masks are given."""
    study.run()
    before = study.files()
    masks = {path.name.split(".")[0]: nib.load(path) for path in study.masks}
    table = mask_study(study.images, masks, study.output)
    assert list(table.status) == ["skipped"] * 6
    assert study.files() == before


# Failures
# --------


def spoil(study):
    """Twenty images: one cut off, one on another grid, one missing."""
    cut, other, missing = study.images[3], study.images[7], study.images[12]
    cut.write_bytes(cut.read_bytes()[:-200])
    write(other.parent, 7, (7, 6, 4, 3), "".join(other.suffixes))
    missing.unlink()
    return {
        cut: "OSError.*incomplete or damaged",
        other: "ValueError.*on the grid",
        missing: "File",
    }


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_seventeen_of_twenty(tmp_path, n_jobs):
    """A failure stops others, or is not named with its reason, or ends with success."""
    study = Study(tmp_path, 20)
    references = {path: nifti_masker(path, study.masks) for path in study.images}
    bad = spoil(study)
    done = command(study, f"--jobs={n_jobs}")
    assert done.returncode == 1, done.stderr
    assert "17 done, 3 failed" in done.stdout
    table = pd.read_csv(study.output / "study.tsv", sep="\t", keep_default_na=False)
    for row in table.itertuples():
        image = Path(row.image)
        if image in bad:
            assert row.status == "failed"
            assert re.match(bad[image], row.reason), row.reason
            assert not Path(row.file).exists()
            assert f"{image}\n    {row.reason}" in done.stdout
        else:
            assert (row.status, row.reason) == ("done", "")
            assert_same(study.results(image), references[image])
    assert len(study.files()) == 17


def test_success_is_success(study):
    """The command line fails, or says something else than what it did."""
    done = command(study, "--jobs=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "6 done\nThe table is in series.\n"
    assert "6 skipped" in command(study).stdout


def test_another_grid_is_resampled_when_asked_for(study):
    """Masks are resampled where nobody asked for it, or to something else than nilearn does."""
    from nilearn.image import resample_to_img

    finer = STRAIGHT * [[0.8], [0.8], [0.8], [1]]
    other = write(study.folder, 50, (7, 8, 6, 3), affine=finer)
    study.images.append(other)
    table = study.run()
    assert list(table.status) == ["done"] * 6 + ["failed"]
    assert "resample_to_img" in table.reason[6]
    table = study.run(resample=True)
    assert list(table.status) == ["done"] * 7
    options = {"interpolation": "nearest", "copy_header": True, "force_resample": True}
    masks = []
    for path in study.masks:
        inside = (nib.load(path).get_fdata() != 0).astype("u1")
        binary = nib.Nifti1Image(inside, nib.load(path).affine)
        masks.append(resample_to_img(binary, nib.load(other), **options))
    assert_same(study.results(other), nifti_masker(other, masks))
    assert_same(study.results(study.images[0]), nifti_masker(study.images[0], study.masks))


def other_masks(study):
    nib.save(make_image(data=np.ones((3, 3, 3)), dtype="u1"), study.masks[1])


def empty_mask(study):
    nib.save(make_image(data=np.zeros((5, 6, 4)), dtype="u1"), study.masks[0])


def mask_of_four_dimensions(study):
    nib.save(make_image(data=np.ones((5, 6, 4, 2)), dtype="u1"), study.masks[0])


def damaged_mask(study):
    study.masks[2].write_bytes(study.masks[2].read_bytes()[:60])


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
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
def test_what_concerns_all_is_refused_at_once(study, spoil, error, message):
    """The study runs for hours, and then fails for each image."""
    spoil(study)
    with pytest.raises(error, match=f"(?s){message}"):
        study.run()
    assert not study.output.is_dir() or study.files() == {}


def test_equal_names_need_folders(study):
    """One image's results replace another's."""
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
def test_one_file_for_two_images_is_refused(tmp_path, names):
    """Two names that differ in their ending or folder alone become one file."""
    with pytest.raises(ValueError, match="would both become"):
        name_files([tmp_path / name for name in names], tmp_path)


def test_parts_are_all_and_none_twice(study):
    """Parts leave an image out, do it twice, or get in each other's way with equal names."""
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
    for number in (1, 7):  # in different parts
        with pytest.raises(ValueError, match="would both become"):
            study.run(part=(number, 7))


def test_results_of_another_image_are_kept(study):
    """A later study with other images of the same names replaces results in silence."""
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
    """A part that begins removes what another is writing."""
    original, seen = module.write_arrays, []

    def meanwhile(path, *arguments):
        if not seen:
            seen.append(path)
            assert list(study.run(part=(2, 2)).status) == ["done"] * 3
        original(path, *arguments)

    monkeypatch.setattr(module, "write_arrays", meanwhile)
    assert list(study.run(part=(1, 2)).status) == ["done"] * 3
    assert seen[0].name.startswith("masks-")


@pytest.mark.parametrize("name", ["about.json", "a.npy"])
def test_names_that_files_of_results_cannot_have(study, name):
    """A mask is not found again under its name."""
    with pytest.raises(ValueError, match="one of these names"):
        mask_study(study.images, {name: study.masks[0]}, study.output)


def test_damaged_masks_are_written_again(study):
    """An empty file of masks makes every image fail, at each start."""
    study.run()
    (masks_file,) = study.output.glob("masks-*.npz")
    masks_file.write_bytes(b"")
    study.images[0].touch()
    assert list(study.run().status) == ["done"] + ["skipped"] * 5


def test_name_that_is_no_text(study):
    """A file name in another encoding loses the whole table, after all the work."""
    image = study.images[0].rename(study.folder / os.fsdecode(b"sub-\xe9.nii.gz"))
    study.images[0] = image
    assert list(study.run().status) == ["done"] * 6
    assert os.fsencode(image) in (study.output / "study.tsv").read_bytes()


def test_link_to_another_image(study):
    """A link that leads to another image of the same size and time is taken for unchanged."""
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


def test_voxels_of_resampled_masks_are_told(study):
    """The file says that an array has other voxels than it has."""
    half = write(study.folder, 60, (3, 6, 4, 3))  # without the far half of the masks
    study.images = [half]
    assert list(study.run(resample=True).status) == ["done"]
    about = read_about(study.output / "sub-60_bold.npz")
    series = study.results(half)
    assert list(about["voxels"].values()) == [a.shape[1] for a in series]
    assert about["voxels"] != about["masks"]


def test_blank_lines_are_no_images(study):
    """A blank line in the list is the current folder, and fails."""
    study.images = [study.images[0], "", *study.images[1:], ""]
    done = command(study)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "6 done")


@pytest.mark.chance
def test_what_ended_the_process_is_done_last(study):
    """Without workers, an image that ends the process is done last the next time."""
    for _ in range(2):
        process = start(study, 1, dies=study.images[2].name)
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
    done = {name for name in study.files() if name.endswith(".npz")}
    assert done == {f"sub-{n:02d}_bold.npz" for n in (0, 1, 3, 4, 5)}


def test_changed_while_it_is_read(study, monkeypatch):
    """A file that changes while it is read gives an array of which nobody knows what it is."""

    def read_and_change(image, masks):
        os.utime(image, ns=(1, 1))
        return []

    monkeypatch.setattr(module, "stream_masks", read_and_change)
    table = study.run()
    assert list(table.status) == ["failed"] * 6
    assert "was changed while it was read" in table.reason[0]
    assert study.files() == {}


def test_full_disk(study, monkeypatch):
    """Half a file stays when there is no room for the other half."""
    good = module.write_arrays

    def fill_disk(path, names, every_series, about):
        if path.name.startswith("masks-"):
            good(path, names, every_series, about)
            return
        good(path, names[:1], every_series[:1], about)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_arrays", fill_disk)
    table = study.run()
    assert set(table.reason) == {"OSError: [Errno 28] No space left on device"}
    assert study.files() == {}


# Started again
# -------------


def touch(study):
    """A newer image."""
    os.utime(study.images[2], ns=(1, 1))
    return [2]


def cut_result(study):
    """A file of results that lost its end."""
    path = study.output / "sub-01_bold.npz"
    path.write_bytes(path.read_bytes()[:-50])
    return [1]


def no_result(study):
    """A file of results that is gone."""
    (study.output / "sub-04_bold.npz").unlink()
    return [4]


def other_mask(study):
    """One voxel more in one mask."""
    img = nib.load(study.masks[2])
    data = img.get_fdata()
    data[0, 0, 0] = 1 - data[0, 0, 0]
    nib.save(nib.Nifti1Image(data, img.affine), study.masks[2])
    return range(6)


def other_name(study):
    """A mask that has another name."""
    study.masks[0] = study.masks[0].rename(study.folder / "renamed.nii.gz")
    return range(6)


def stranger(study):
    """Somebody else's file under the name."""
    (study.output / "sub-05_bold.npz").write_bytes(b"not a zip")
    np.savez(study.output / "sub-00_bold.npz", a=np.ones(3))
    return [0, 5]


@pytest.mark.parametrize(
    "change", [touch, cut_result, no_result, other_mask, other_name, stranger, lambda study: []]
)
def test_only_what_changed_is_done_again(study, change):
    """Something old is taken for new, or the other way round."""
    study.run()
    again = set(change(study))
    table = study.run()
    expected = ["done" if number in again else "skipped" for number in range(6)]
    assert list(table.status) == expected
    assert list(table.volumes) == [nib.load(path).shape[3] for path in study.images]
    for image in study.images:
        assert_same(study.results(image), nifti_masker(image, study.masks))


def test_options_are_part_of_the_checksum(study):
    """Results with resampled masks are taken for those without."""
    study.run()
    assert list(study.run(resample=True).status) == ["done"] * 6


# Stands before the page's module in every process, and stops or dies in the middle of an image.
SHIM = """
import importlib.util, os, pathlib, signal, time, zipfile
from pathlib import Path

spec = importlib.util.spec_from_file_location("page", os.environ["PAGE"])
page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page)

def stop(point, path):
    moment = Path(os.environ["STOPS"] + ".reached")
    here = os.environ["POINT"] == point and stem(path.name) == stem(os.environ["STOPS"])
    if here and not moment.exists():
        Path("pid").write_text(str(os.getpid()))
        Path("pid").rename(moment)
        time.sleep(600)

def stem(name):
    return name.split(".")[0]

def writestr(archive, *args, original=zipfile.ZipFile.writestr):
    stop("written in part", Path(archive.filename))
    original(archive, *args)

def replace(path, to, original=Path.replace):
    stop("not yet moved", path)
    original(path, to)

zipfile.ZipFile.writestr, Path.replace = writestr, replace

def stream_masks(image, masks):
    stop("being read", image)
    if image.name == os.environ["DIES"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return page.stream_masks(image, masks)
"""
RUN = """
import sys
from mask_study import mask_study

if __name__ == "__main__":
    images, masks, n_jobs = (word.split(",") for word in sys.argv[1:])
    mask_study(images, masks, "series", n_jobs=int(n_jobs[0]))
"""


def start(study, n_jobs, stops="", dies="", point="being read"):
    """Start the study in a process of its own."""
    (study.folder / "plot_stream_masks.py").write_text(SHIM)
    (study.folder / "run.py").write_text(RUN)
    names = [",".join(map(str, paths)) for paths in (study.images, study.masks)]
    page = EXAMPLES / "plot_stream_masks.py"
    own = {"PYTHONPATH": str(EXAMPLES), "PAGE": str(page), "STOPS": stops, "DIES": dies}
    own["POINT"] = point
    return subprocess.Popen(
        [sys.executable, "run.py", *names, str(n_jobs)],
        cwd=study.folder,
        env=os.environ | own,
        stderr=subprocess.PIPE,
    )


def wait_for(study, process, image):
    """Wait until the study is in the middle of an image; return the number of that process."""
    moment = study.folder / f"{image.name}.reached"
    assert eventually(lambda: moment.exists() or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    return int(moment.read_text())


@pytest.mark.chance
@pytest.mark.parametrize(
    ("how", "n_jobs", "point"),
    [
        (signal.SIGINT, 1, "being read"),
        (signal.SIGINT, 2, "being read"),
        (signal.SIGINT, 2, "written in part"),
        (signal.SIGTERM, 2, "being read"),
        (signal.SIGKILL, 1, "written in part"),
        (signal.SIGKILL, 2, "being read"),
        (signal.SIGKILL, 2, "not yet moved"),
    ],
)
def test_interrupted_and_started_again(study, how, n_jobs, point):
    """After an interruption only complete files are left, and only the others are done again."""
    whole = Study(study.folder / "whole")
    whole.images, whole.masks = study.images, study.masks
    whole.run()
    process = start(study, n_jobs, stops=study.images[4].name, point=point)
    wait_for(study, process, study.images[4])
    tree = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    assert process.wait(timeout=300) != 0
    for child in tree:  # with the caller killed, a worker in the middle of an image goes on
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in child.cmdline()):
                child.kill()
    _, alive = psutil.wait_procs(tree, timeout=60)
    assert not alive, "what cleans up behind the workers does not end with them"
    process.stderr.close()
    left = study.files()
    complete = {name: content for name, content in left.items() if name.endswith(".npz")}
    assert complete.items() <= whole.files().items()
    assert "sub-04_bold.npz" not in complete
    if how == signal.SIGINT:
        assert left == complete
        table = pd.read_csv(study.output / "study.tsv", sep="\t")
        assert table.status[4] == "not done"
    table = study.run()
    expected = [f"sub-{n:02d}_bold.npz" in complete for n in range(6)]
    assert list(table.status == "skipped") == expected
    assert study.files() == whole.files()


@pytest.mark.chance
def test_a_killed_worker_stops_nothing(study):
    """The image whose worker was killed and all other images are done."""
    process = start(study, 2, stops=study.images[1].name)
    os.kill(wait_for(study, process, study.images[1]), signal.SIGKILL)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    table = pd.read_csv(study.output / "study.tsv", sep="\t")
    assert set(table.status) <= {"done", "skipped"}
    assert len(study.files()) == 6
    for image in study.images:
        assert_same(study.results(image), nifti_masker(image, study.masks))


@pytest.mark.chance
def test_an_image_that_kills_its_worker_is_named(study):
    """An image that no worker survives fails by name, and the study goes on."""
    process = start(study, 2, dies=study.images[2].name)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    table = pd.read_csv(study.output / "study.tsv", sep="\t")
    assert list(table.status == "failed") == [number == 2 for number in range(6)]
    assert table.reason[2].endswith("the worker died twice while it did this image.")
    assert len(study.files()) == 5
    for image in study.images[:2] + study.images[3:]:
        assert_same(study.results(image), nifti_masker(image, study.masks))


def test_an_engine_that_does_not_work_is_not_hidden(study, monkeypatch):
    """A broken engine is taken for a broken image, or tried for ever."""

    def broken(*args, **options):
        raise RuntimeError("no cluster")

    monkeypatch.setattr(module, "Parallel", broken)
    with pytest.raises(RuntimeError, match="no cluster"):
        study.run()
    table = pd.read_csv(study.output / "study.tsv", sep="\t")
    assert set(table.status) == {"not done"}


# Memory and workers
# ------------------


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
    data[inside != 0] = np.random.default_rng(0).normal(size=(inside.sum(), data.shape[3]))
    masks = {"a": nib.Nifti1Image(inside, np.eye(4)), "b": nib.Nifti1Image(inside, np.eye(4))}
    missing = [tmp_path / f"missing-{i}.nii.gz" for i in range(4)]
    imports = sorted(memory_of(missing, masks, 2)[1])[-2:]  # of workers, not of their helpers
    trace, workers = memory_of(images, masks, 2)
    table = trace.result()
    output_mib = 2 * inside.sum() * data.shape[3] * 4 / MIB
    assert set(table.status) == {"done"}
    assert max(workers) > max(imports) + 0.8 * output_mib  # it is the workers that are looked at
    assert max(workers) - min(imports) <= output_mib + 64
    assert max(table.peak_rss_mib) >= max(workers) - 5
