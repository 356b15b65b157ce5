"""The plan of a study, what it is fed with, and the study that the pages make."""

import math
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.testing import data_path

from beyond_the_masker import overhead as module
from beyond_the_masker.meter import MIB
from beyond_the_masker.pages import load_page
from beyond_the_masker.workers import (
    prepare_study,
    seconds_with,
    speed_up,
    storage_rate,
    time_study,
)
from small_site import regions_of

plot_one_machine = load_page("plot_one_machine")
CLUSTER = load_page("plot_study_plan").CLUSTER
NODES = load_page("plot_study_plan").NODES
STUDY = load_page("plot_study_plan").STUDY
plan = load_page("plot_study_plan").plan

EXAMPLES = Path(module.__file__).parent
RATES = {"worker_mib_s": 200, "task_s": 0.005, "result_mib": 50}


# The plan
# --------


def test_hours_of_a_known_case():
    """An hour of the plan is no hour, or a node's cores are not counted."""
    study = {"n_images": 3600, "image_mib": 1000, "worker_mib_s": 100, "task_s": 1}
    study["result_mib"] = 250
    cluster = {"cores": 10, "node_mib_s": 625, "storage_mib_s": 2500}
    assert plan(1, **study, **cluster) == {"processors": 1, "storage": 2, "backend": 1}
    assert plan(4, **study, **cluster) == {"processors": 0.25, "storage": 0.5, "backend": 1}
    # Twice as many nodes: the shared storage gives no more.
    assert plan(8, **study, **cluster)["storage"] == 0.5


@given(nodes=st.integers(1, 500), factor=st.integers(2, 20))
def test_more_nodes_never_take_longer(nodes, factor):
    """More nodes are slower, or beat the storage or the backend."""
    few, more = (plan(n, **STUDY, **CLUSTER, **RATES) for n in (nodes, nodes * factor))
    assert all(more[part] <= few[part] for part in few)
    assert more["backend"] == few["backend"]
    moved_mib = STUDY["n_images"] * (STUDY["image_mib"] + RATES["result_mib"])
    assert more["storage"] * 3600 * CLUSTER["storage_mib_s"] >= moved_mib * (1 - 1e-9)


def test_last_round_counts_in_full():
    """One image more than workers is not one more round."""
    cluster = CLUSTER | {"cores": 8}
    times = [
        plan(1, n_images=n, image_mib=1, **cluster, **RATES)["processors"] for n in (8, 9, 16, 17)
    ]
    assert np.allclose(np.array(times) / times[0], [1, 2, 2, 3])


def test_nodes_are_those_of_the_title():
    """The page's table is of other numbers than it says."""
    assert (NODES, STUDY["n_images"]) == ((1, 10, 100), 10_000)
    assert math.isclose(STUDY["image_mib"] * MIB, 1e9)


# Empty tasks
# -----------


@pytest.mark.chance
@pytest.mark.parametrize("engine", module.ENGINES)
def test_every_task_is_done_by_itself(engine, monkeypatch, tmp_path):
    """Each task is a batch of its own, so that its cost shows."""
    batches = []
    original = module.Parallel

    class Counting(original):
        def _dispatch(self, batch):
            batches.append(len(batch))
            super()._dispatch(batch)

    monkeypatch.setattr(module, "Parallel", Counting)
    assert module.time_tasks(engine, 30) > 0
    assert batches == [1] * (10 + 30)


def test_table_has_a_row_for_each_engine(monkeypatch, tmp_path):
    """The table lacks an engine, or what it was measured on."""
    monkeypatch.setattr(module, "time_tasks", lambda engine, n_tasks: n_tasks * 0.25)
    table = module.task_overhead(tmp_path, 20)
    read = pd.read_csv(tmp_path / "task_overhead.csv")
    assert list(read.engine) == list(table.engine) == list(module.ENGINES)
    assert set(read.seconds_per_task) == {0.25}
    assert {"date", "cores", "joblib", "n_tasks"} <= set(read)
    assert [path.name for path in tmp_path.iterdir()] == ["task_overhead.csv"]


def test_a_failing_job_array_is_no_measurement(monkeypatch):
    """A job that fails is fast, and is taken for a good one."""
    false = [sys.executable, "-c", "raise SystemExit(1)"]
    popen = subprocess.Popen
    monkeypatch.setattr(module.subprocess, "Popen", lambda command, **options: popen(false))
    with pytest.raises(RuntimeError, match="failed"):
        module.time_array(2500)


# The study of the pages
# ----------------------


@pytest.fixture
def own_image(monkeypatch, tmp_path):
    """An image of the reader's."""
    image = Path(data_path, "example4d.nii.gz")
    regions_of(image).to_filename(tmp_path / "atlas.nii.gz")
    monkeypatch.setenv("FMRI", str(image))
    monkeypatch.setenv("ATLAS", str(tmp_path / "atlas.nii.gz"))
    monkeypatch.setenv("N_REGIONS", "2")
    return image


def test_study_is_made_of_the_image(own_image):
    """The study's images are not the build's image, or are copied."""
    images, masks = prepare_study()
    assert [image.name for image in images] == [f"sub-{n:02d}_bold.nii.gz" for n in range(1, 9)]
    assert {image.resolve() for image in images} == {own_image.resolve()}
    assert len(masks) == 2
    assert prepare_study() == (images, masks)


def test_large_image_is_cut(own_image):
    """A study of an image of tens of GB takes as long as eight of them."""
    volume_mib = np.prod(nib.load(own_image).shape[:3]) * 2 / MIB
    images, _ = prepare_study(n_images=3, most_mib=1.5 * volume_mib)
    assert len(images) == 3
    (cut,) = {image.resolve() for image in images}
    assert cut.parent == images[0].parent.resolve()
    assert nib.load(images[2]).shape == (*nib.load(own_image).shape[:3], 1)
    first = nib.load(own_image).get_fdata()[..., :1]
    np.testing.assert_array_equal(nib.load(images[2]).get_fdata(), first)


def test_speed_is_of_complete_studies(own_image, tmp_path):
    """A study in which images fail is no measurement."""
    images, masks = prepare_study(n_images=3)
    ratios = speed_up(images, masks, 2, 2)
    assert len(ratios) == 2
    assert ratios == sorted(ratios)
    assert min(ratios) > 0
    with pytest.raises(RuntimeError, match="No such file"):
        time_study([*images, tmp_path / "none.nii"], masks, 1)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise on this system")
@pytest.mark.parametrize("n_readers", [1, 3])
def test_storage_rate_reads_the_whole_file(tmp_path, n_readers, monkeypatch):
    """A part of the file is not read, or twice."""
    (tmp_path / "file").write_bytes(bytes(3 * 2**20 + 1))
    seen = []
    monkeypatch.setattr(
        plot_one_machine, "read_part", lambda path, start, size: seen.append((start, size))
    )
    assert storage_rate(tmp_path / "file", n_readers) > 0
    assert sorted(start for start, _ in seen) == [n * seen[0][1] for n in range(n_readers)]
    assert sum(size for _, size in seen) >= 3 * 2**20 + 1


def test_threads_of_blas_are_those_that_are_asked_for(monkeypatch):
    """What is measured runs with other threads than the page says."""
    code = "import os; print(os.environ['OPENBLAS_NUM_THREADS'])"
    monkeypatch.setattr(plot_one_machine, "MULTIPLY", code)
    assert [seconds_with(n, 2) for n in (1, 3)] == [1, 3]
