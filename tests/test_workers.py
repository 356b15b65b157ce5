"""The study of the pages, the speed and loss of its workers, and the plan."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.testing import data_path

from beyond_the_masker.draw import figures
from beyond_the_masker.experiments import workers
from beyond_the_masker.experiments.pages import load_page
from beyond_the_masker.experiments.workers import (
    measure_runs,
    prepare_fmriprep,
    prepare_runs,
    prepare_study,
    speed_up,
    storage_rate,
)
from beyond_the_masker.inputs.synthetic import FMRI_SHAPE
from beyond_the_masker.meter import MIB
from good_figures import is_a_good_figure, nothing_overlaps
from made_images import make_image, regions_of, use_own
from small_study import write

page = load_page("plot_study_plan")


@pytest.fixture
def own_image(monkeypatch, tmp_path):
    """Choose an image of the reader's, and return its path."""
    image = Path(data_path, "example4d.nii.gz")
    regions_of(image).to_filename(tmp_path / "atlas.nii.gz")
    use_own(monkeypatch, image, tmp_path / "atlas.nii.gz")
    return image


def test_study_is_made_of_the_image(own_image):
    """The study's images are links to the build's image."""
    images, masks = prepare_study()
    assert [image.name for image in images] == [f"sub-{n:02d}_bold.nii.gz" for n in range(1, 9)]
    assert {image.resolve() for image in images} == {own_image.resolve()}
    assert len(masks) == 2
    assert prepare_study() == (images, masks)


def test_large_image_is_cut(own_image):
    """The study of a large image has only its first volumes."""
    volume_mib = np.prod(nib.load(own_image).shape[:3]) * 2 / MIB
    images, _ = prepare_study(n_images=3, most_mib=1.5 * volume_mib)
    assert len(images) == 3
    assert len({image.resolve() for image in images}) == 1
    assert nib.load(images[2]).shape == (*nib.load(own_image).shape[:3], 1)
    first = nib.load(own_image).get_fdata()[..., :1]
    np.testing.assert_array_equal(nib.load(images[2]).get_fdata(), first)


@pytest.fixture
def long_image(monkeypatch, tmp_path):
    """Choose an image of the reader's, not compressed, with enough volumes to be cleaned."""
    image, atlas = write(tmp_path, 1, (5, 6, 4, 100), ".nii"), tmp_path / "labels.nii.gz"
    make_image(data=np.arange(120).reshape(5, 6, 4) % 3, dtype="<i2").to_filename(atlas)
    use_own(monkeypatch, image, atlas)
    return image


def test_derivatives_are_links_to_a_packed_copy(long_image, tmp_path):
    """nilearn finds the confounds of a .nii.gz only; the copy has the values of the image."""
    folder, atlas = prepare_fmriprep(tmp_path / "fmriprep", n_images=2)
    images = sorted(folder.rglob("*_desc-preproc_bold.nii.gz"))
    assert len(images) == len([*folder.rglob("*_desc-confounds_timeseries.tsv")]) == 2
    assert len({image.resolve() for image in images}) == 1
    np.testing.assert_array_equal(nib.load(images[1]).dataobj, nib.load(long_image).dataobj)
    assert np.unique(nib.load(atlas).dataobj).tolist() == [0, 1, 2]


@pytest.mark.extensive
def test_short_image_is_replaced(own_image):
    """Confounds cannot be removed from two volumes: the pages go on with a made-up image."""
    (image,), atlas = prepare_runs(1, n_regions=20)
    img = nib.load(image)
    assert img.shape == FMRI_SHAPE
    assert len(np.unique(nib.load(atlas).dataobj)) == 21
    assert nib.load(atlas).shape == img.shape[:3]


def test_measured_runs(long_image):
    """The figures are those of one image."""
    found = measure_runs(*prepare_runs(3))
    assert found["shape"] == (5, 6, 4, 100)
    assert (found["n_regions"], found["n_confounds"]) == (2, 36)
    assert found["file"] == long_image.stat().st_size / MIB
    assert 0 < found["before"] < found["peak"]
    assert 0 < found["results"] < 0.1


def test_speed_is_of_complete_studies(own_image, tmp_path):
    """Ratios come sorted; a study with a failed image is no measurement."""
    images, masks = prepare_study(n_images=3)
    ratios = speed_up(images, masks, 2, 2)
    assert len(ratios) == 2
    assert ratios == sorted(ratios)
    assert min(ratios) > 0
    with pytest.raises(RuntimeError, match=r"FileNotFoundError.*none.nii"):
        workers.time_study([*images, tmp_path / "none.nii"], masks, 1)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise on this system")
def test_storage_rate_reads_the_whole_file(tmp_path, monkeypatch):
    """The rate is of the whole file."""
    (tmp_path / "file").write_bytes(bytes(3 * 2**20 + 1))
    monkeypatch.setattr(workers.time, "perf_counter", iter((0, 1)).__next__)
    assert storage_rate(tmp_path / "file") == 3 + 2**-20


@pytest.mark.chance
def test_a_worker_is_killed_in_the_middle_of_an_image(tmp_path):
    """The worker is killed when enough images are done and another one is begun."""
    (tmp_path / "sub-0").mkdir()
    (tmp_path / "sub-0" / "sub-0_timeseries.json").touch()
    (tmp_path / "sub-1_run-1_timeseries.0123.unfinished").touch()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as worker:
        lost = workers.lose_a_worker(worker.pid, tmp_path, 1)
        assert worker.wait(timeout=60) == -signal.SIGKILL
    assert lost["pid"] == worker.pid
    assert set(lost["begun"]) == {"sub-1"}


def test_figure_of_a_lost_worker():
    """Each image has a bar and its number; the description names what each worker did."""
    works = [(7, 0, 0.3), (8, 0.36, 0.02), (7, 0.3, 0.3), (8, 0.7, 0.3), (8, 0.4, 0.02)]
    rows = [
        {"image": f"sub-{n:02d}_bold.nii.gz", "pid": pid, "started": 1e9 + start, "seconds": s}
        for n, (pid, start, s) in enumerate([*works, (9, 1.2, 0.7), (9, 1.1, 0.001)])
    ]
    statuses = ["done"] * 6 + ["skipped"]  # the lost worker had done the last image
    begun = {"sub-03": 1e9 + 0.6, "sub-04": 1e9 + 0.4, "sub-06": 1e9 + 0.62}
    lost = {"pid": 7, "time": 1e9 + 0.66, "begun": begun}
    figure = figures.plot_work(pd.DataFrame(rows).assign(status=statuses), lost)
    each = "worker 1 did 1, 3, 7; worker 2 did 2, 5, 4 for the second time; worker 3 did 6."
    is_a_good_figure(figure, "1.9 seconds", "after 0.7 seconds", each)
    ax = figure.gca()
    assert len([bar for bar in ax.patches if bar.get_width()]) == 8
    assert "".join(text.get_text() for text in ax.texts) == "13472546"
    nothing_overlaps(ax.texts)


@pytest.mark.parametrize(
    ("n_nodes", "n_images", "processors", "storage"),
    [
        (1, 3600, 1, 2),
        (4, 3600, 0.25, 0.5),
        (8, 3600, 0.125, 0.5),  # all nodes share the storage
        (1, 3601, 361 / 360, 3601 / 1800),  # the last round counts in full
    ],
)
def test_hours_of_known_cases(n_nodes, n_images, processors, storage):
    """The hours are those that can be computed by hand."""
    study = {"n_images": n_images, "image_mib": 1000, "result_mib": 250, "worker_mib_s": 100}
    cluster = {"cores": 10, "node_mib_s": 625, "storage_mib_s": 2500}
    hours = page.plan(n_nodes, **study, **cluster)
    assert hours == pytest.approx({"processors": processors, "storage": storage})
