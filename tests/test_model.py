"""The predictions of the model are possible, and grow with the image, the masks and the workers."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beyond_the_masker.predict.budget import most_workers, uses_block, why_not
from beyond_the_masker.predict.imports import TYPICAL
from beyond_the_masker.predict.model import (
    DTYPES,
    METHODS,
    Image,
    as_json,
    check,
    predict,
    quantities,
)
from made_images import SHAPE

MIB = 2**20
SIDES = st.integers(1, 80)
ROUNDING = 1e-9


@st.composite
def cases(draw):
    """An image, its masks and a number of workers."""
    shape = (draw(SIDES), draw(SIDES), draw(SIDES), draw(st.integers(1, 2000)))
    image = Image(shape, draw(st.sampled_from(DTYPES)), *(draw(st.booleans()) for _ in range(3)))
    grid = math.prod(shape[:3])
    masks = draw(st.lists(st.integers(1, grid), min_size=1, max_size=8))
    return image, masks, draw(st.integers(1, 12))


methods = pytest.mark.parametrize("method", METHODS)


@methods
@given(case=cases())
def test_numbers_are_possible(method, case):
    """Low, likely and most are in this order, and the parts add up to the likely peak."""
    found = predict(method, *case, TYPICAL)
    model, n_jobs = METHODS[method], case[2]
    assert all(math.isfinite(number) for number in found[2:7])
    assert TYPICAL[f"caller {model.caller}"] <= found.low_mib <= found.peak_mib * (1 + ROUNDING)
    assert found.peak_mib <= found.most_mib * (1 + ROUNDING)
    assert sum(part.mib for part in found.parts) == pytest.approx(found.peak_mib)
    assert all(part.mib >= 0 for part in found.parts)
    parallel = model.mode == "parallel" and model.imports
    assert found.n_jobs == (n_jobs if parallel and n_jobs > 1 else 0)
    if not found.n_jobs:
        assert found.low_mib == found.peak_mib == found.most_mib
        assert {part.holder for part in found.parts} <= {"caller", "block", "file"}
    if not parallel:
        assert found == predict(method, *case[:2], n_jobs + 3, TYPICAL)


@methods
@given(case=cases())
def test_shared_memory_counts_in_full_and_mapped_files_do_not(method, case):
    """A block is the whole array, once; a mapped file is listed, and no part of any sum."""
    image, masks, _ = case
    found = predict(method, *case, TYPICAL)
    array = quantities(image, masks, "parallel")["array"] / MIB
    assert found.shm_mib in (0, array)
    assert uses_block(method) <= (found.shm_mib == array)
    if found.shm_mib:
        imports = sum(part.mib for part in found.parts if part.reason == "imports")
        assert found.low_mib >= (array + imports) * (1 - ROUNDING)
    assert sum(part.mib for part in found.parts if part.holder == "file") == 0
    assert 0 <= found.file_mib <= array
    if not image.compressed and ", path," in method:
        assert found.file_mib > 0


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].mode == "loop"])
@given(case=cases())
def test_a_loop_needs_one_call_and_the_results(method, case):
    """The peak of a loop is that of the largest mask, plus at most the others' series."""
    image, masks, n_jobs = case
    masks = sorted(masks, reverse=True)
    loop = predict(method, image, masks, n_jobs, TYPICAL)
    single = predict(method.replace("loop", "single"), image, masks, n_jobs, TYPICAL)
    results = quantities(image, masks, "loop")["results"] / MIB
    assert single.peak_mib <= loop.peak_mib * (1 + ROUNDING)
    assert loop.peak_mib <= (single.peak_mib + results) * (1 + ROUNDING)
    assert loop.file_mib == single.file_mib


@methods
@given(case=cases(), more=st.integers(1, 2000))
def test_more_does_not_need_less(method, case, more):
    """More volumes, one worker more or one mask more do not need less memory."""
    image, masks, n_jobs = case
    found = predict(method, image, masks, n_jobs, TYPICAL)
    longer = image._replace(shape=(*image.shape[:3], image.shape[3] + more))
    for before, after in zip(
        found[2:7], predict(method, longer, masks, n_jobs, TYPICAL)[2:7], strict=True
    ):
        assert after >= before * (1 - ROUNDING)
    most = found.most_mib * (1 - ROUNDING)
    assert predict(method, image, masks, n_jobs + 1, TYPICAL).most_mib >= most
    if METHODS[method].mode != "single":
        rounded = 8 if "Streaming" in method else 0  # whole volumes in a block
        more_masks = predict(method, image, [*masks, max(masks)], n_jobs, TYPICAL)
        assert more_masks.most_mib >= most - rounded


@methods
@given(case=cases(), memory=st.floats(150, 40_000), shm=st.floats(1, 40_000))
def test_most_workers_is_the_largest_that_fits(method, case, memory, shm):
    """The recommended number of workers fits, and one more would not."""
    image, masks, _ = case
    fits = [
        n
        for n in range(1, len(masks) + 1)
        if not why_not(predict(method, image, masks, n, TYPICAL), memory, shm)
    ]
    assert most_workers(method, image, masks, memory, shm, TYPICAL) == max(fits, default=0)


def test_two_copies_for_each_worker():
    """NiftiMasker needs the image twice in each worker; streaming needs less than half of it."""
    image, masks = Image((64, 64, 36, 1680)), [2000] * 20
    array = quantities(image, masks, "parallel")["array"] / MIB
    found = predict("NiftiMasker, path, parallel", image, masks, 20, TYPICAL)
    assert 40 * array < found.most_mib < 40 * array + 20 * 150 + 500
    streamed = predict("Streaming, masks, one pass", image, masks, 20, TYPICAL)
    assert streamed.most_mib < 0.5 * array


@pytest.mark.parametrize(
    ("change", "masks", "n_jobs", "message"),
    [
        *(({"shape": s}, [1], 1, f"The shape is {s}") for s in ((5, 6, 4), (5, 6, 4, 0))),
        ({"shape": (5, 6, 4, 2.5)}, [1], 1, "The shape is (5, 6, 4, 2.5)"),
        ({"dtype": "complex64"}, [1], 1, "The type is 'complex64'"),
        ({}, [], 1, "There is no mask"),
        *(({}, [5, n], 1, f"A mask has {n} voxels; from 1 to 120") for n in (0, 2.5, 121, None)),
        *(({}, [1], n, f"The number of workers is {n}") for n in (0, 1.5, math.nan, "2")),
    ],
)
def test_impossible_numbers_are_refused(change, masks, n_jobs, message):
    """Impossible shapes, types, masks and numbers of workers raise an error."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check(Image(SHAPE)._replace(**change), masks, n_jobs)
    assert str(error.value).startswith(message)


def test_unknown_method_is_refused():
    """A misspelt method raises an error that lists the methods."""
    with pytest.raises(ValueError, match="There is no method 'Magic'; there are: NiftiMasker"):
        predict("Magic", Image(SHAPE), [1], 1, TYPICAL)


def test_model_as_json():
    """The calculator gets every method, and all that their parts refer to."""
    model = json.loads(as_json(TYPICAL))
    assert list(model["methods"]) == list(METHODS)
    assert model["machine"] == TYPICAL
    assert model["dtypes"] == {name: np.dtype(name).itemsize for name in DTYPES}
    for method in model["methods"].values():
        for part in (part for moment in method["moments"] for part in moment["parts"]):
            assert part["quantity"] in quantities(Image(SHAPE), [1], "parallel")
            assert part["reason"] in model["reasons"]
