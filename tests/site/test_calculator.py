"""The calculator: Python's numbers, a clear answer, and clear words for wrong entries."""

import gzip
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from beyond_the_masker.options import parse_memory
from beyond_the_masker.predict.budget import Row, most_workers, recommend, sbatch_lines, why_not
from beyond_the_masker.predict.headers import read_header
from beyond_the_masker.predict.imports import TYPICAL
from beyond_the_masker.predict.model import DTYPES, METHODS, REASONS, Image, predict, quantities
from made_images import make_image, make_masks, save_all

ROOT = Path(__file__).parent.parent.parent
LISTS = ("dtype", "compressed", "scaling")
FIELDS = ("x", "y", "z", "t", *LISTS, "masks", "voxels", "workers", "memory", "shm")
STREAMING = "Streaming, masks, one pass"


@pytest.fixture
def page(open_page):
    """The page as it is when it is opened."""
    return open_page("calculator.html")


def fill(page, **entries):
    """Fill in entries."""
    for field, text in entries.items():
        control = page.locator(f"#calc-{field}")
        (control.select_option if field in LISTS else control.fill)(text)


def entries_of(page):
    """Return what the entries hold, as texts."""
    return {field: page.locator(f"#calc-{field}").input_value() for field in FIELDS}


def text_of(page, name):
    """Return the text of a part of the page."""
    return page.locator(f"#calc-{name}").inner_text()


def size(mib):
    """Write a size as the page does."""
    if round(mib) < 1024:
        return f"{mib:,.0f} MiB"
    return f"{mib / 1024:.3g} GiB" if mib < 99.95 * 1024 else f"{mib / 1024:,.0f} GiB"


def shown(page):
    """Return the likely peak of each method, as shown."""
    texts = page.locator(".calc-method").all_inner_texts()
    return {t.splitlines()[0]: re.search(r"likely ([\d,.]+ [MG]iB)", t)[1] for t in texts}


def expected(image, masks, n_jobs):
    """Return the likely peak of each method, as Python computes it, as text."""
    return {m: size(predict(m, image, masks, n_jobs, TYPICAL).peak_mib) for m in METHODS}


def assert_rejected(page, group, *words):
    """Assert that a message with these words stands at its field and on top, and no result."""
    page.locator(f"#calc-{group}-error").filter(has_text=words[0]).wait_for()
    for word in words:
        assert word in text_of(page, f"{group}-error")
        assert word in text_of(page, "answer")
    assert text_of(page, "answer").startswith("No result.")
    assert not page.locator("#calc-results").is_visible()


def assert_results(page):
    """Assert that there are results, and no message."""
    assert page.locator("#calc-results").is_visible()
    assert page.locator('[aria-invalid="true"]').count() == 0
    assert not any(page.locator(".calc-error").all_inner_texts())


# -- The same numbers ------------------------------------------------------------------------


def random_cases(number):
    """Return inputs of all kinds: from a few voxels to many GiB, from no space to enough."""
    rng = np.random.default_rng(11)
    cases = []
    for i in range(number):
        shape = [int(n) for n in rng.integers(2, 130, 3)] + [int(10 ** rng.uniform(0, 4))]
        grid = math.prod(shape[:3])
        n_masks = int(rng.choice([1, 2, 3, 6, 12, 40], p=[0.1, 0.1, 0.3, 0.3, 0.15, 0.05]))
        masks = [int(n) for n in np.clip(grid * 10 ** rng.uniform(-4, 0, n_masks), 1, grid)]
        cases.append(
            {"shape": shape, "dtype": DTYPES[i % len(DTYPES)], "masks": masks}
            | {name: bool(rng.integers(2)) for name in ("compressed", "slope", "inter")}
            | {"n_jobs": int(rng.choice([1, 2, 3, 8, 20, 64]))}
            | {"memory": float(10 ** rng.uniform(2.3, 5.5)), "shm": float(10 ** rng.uniform(2, 5))}
        )
    return cases


IN_JAVASCRIPT = """cases => {
    const c = window.memoryCalculator, machine = c.MODEL.machine;
    return cases.map(one => {
        const {masks, n_jobs, memory, shm} = one;
        const rows = c.budget(one, masks, n_jobs, memory, shm, machine);
        const streaming = rows.find(row => row.prediction.method.startsWith("Streaming, masks"));
        return {
            recommendation: c.recommend(rows, memory),
            sbatch: c.sbatchLines(one, streaming.prediction),
            amounts: ["single", "parallel"].map(
                mode => c.quantities(one, masks, mode, Math.min(n_jobs, masks.length))),
            methods: Object.fromEntries(rows.map(row => [row.prediction.method, {
                ...row.prediction, reason: row.reason, most: row.mostWorkers,
            }])),
        };
    });
}"""


def test_the_page_computes_what_python_computes(page):
    """Every number, moment, part and verdict of 310 inputs is the same in both."""
    cases, moments, limits, fitting = random_cases(310), set(), set(), set()
    for case, result in zip(cases, page.evaluate(IN_JAVASCRIPT, cases), strict=True):
        image = Image(*(case[key] for key in ("shape", "dtype", "compressed", "slope", "inter")))
        masks, n_jobs, memory, shm = (case[key] for key in ("masks", "n_jobs", "memory", "shm"))
        for mode, found in zip(("single", "parallel"), result["amounts"], strict=True):
            wanted = quantities(image, masks, mode, min(n_jobs, len(masks)))
            assert found == pytest.approx(wanted, rel=1e-9, abs=1e-3)
        assert list(result["methods"]) == list(METHODS)
        rows = {}
        for method, found in result["methods"].items():
            wanted = predict(method, image, masks, n_jobs, TYPICAL)
            numbers = ("peakMib", "lowMib", "mostMib", "shmMib", "fileMib")
            there = [found[key] for key in numbers]
            assert there == pytest.approx(list(wanted[2:7]), abs=0.49, rel=0), (method, case)
            assert (found["moment"], found["nJobs"]) == (wanted.moment, wanted.n_jobs)
            for there, part in zip(found["parts"], wanted.parts, strict=True):
                assert [there["holder"], there["reason"]] == [part.holder, part.reason]
                assert there["mib"] == pytest.approx(part.mib, abs=0.49, rel=0)
            reason = why_not(wanted, memory, shm)
            most = most_workers(method, image, masks, memory, shm, TYPICAL)
            assert (found["reason"], found["most"]) == (reason, most)
            rows[method] = Row(wanted, reason, most)
            moments.add((method, wanted.moment))
            limits.add("shm" if "/dev/shm" in reason else bool(reason))
            fitting.add(min(most, 2))
        assert result["recommendation"] == recommend(rows.values(), memory)
        assert result["sbatch"] == sbatch_lines(image, rows[STREAMING].prediction)
    assert (limits, fitting) == ({True, False, "shm"}, {0, 1, 2})
    assert {name for name, _ in moments} == set(METHODS)
    assert len(moments) > 2 * len(METHODS)


def test_sizes_and_thousands_are_written_and_read_as_in_python(page):
    """Sizes of memory have one grammar; numbers are rounded in one way."""
    sizes = ["16G", "1.5 TiB", "900M", "512m", ".5g", "7kb", " 3 GB ", "2.M"]
    found = page.evaluate("sizes => sizes.map(window.memoryCalculator.parseMemory)", sizes)
    assert found == pytest.approx([parse_memory(text) for text in sizes], rel=1e-15)
    refused = """size => {
        try { return window.memoryCalculator.parseMemory(size); } catch { return null; }
    }"""
    for text in ("", "0M", "512", "-1G", "16 X", "G", "inf", "9" * 400, "1,5G", "0.0T", "16GiBi"):
        assert page.evaluate(refused, text) is None
        with pytest.raises(ValueError, match="is not a positive size of memory"):
            parse_memory(text)
    numbers = [0, 0.5, 1.5, 2.5, 999.5, 1000.5, 1234567.49, 1e9 + 0.5]
    written = page.evaluate("numbers => numbers.map(window.memoryCalculator.grouped)", numbers)
    assert written == [f"{number:,.0f}" for number in numbers]


# -- Files -----------------------------------------------------------------------------------


def write_image(path, dtype="int16", shape=(9, 8, 7, 30), kind=nib.Nifti1Header, **fields):
    """Write an image of zeros, with fields of the header as they shall stand in the file."""
    dtype = np.dtype(dtype)
    header = kind(endianness=">" if dtype.byteorder == ">" else "<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    offset = kind.single_vox_offset
    for name, number in {"vox_offset": offset, "scl_slope": 1, "scl_inter": 0, **fields}.items():
        header[name] = number
    raw = header.binaryblock.ljust(offset + math.prod(shape) * dtype.itemsize, b"\0")
    path.write_bytes(gzip.compress(raw) if path.suffix.lower() == ".gz" else raw)
    return path


FILES = {
    "a b.nii": {"scl_slope": 0.5, "scl_inter": -3},
    "a.NII.GZ": {"scl_inter": 2},
    "slope 0.nii": {"scl_slope": 0, "scl_inter": 5},
    "slope not a number.nii.gz": {"scl_slope": np.nan, "scl_inter": np.nan},
    "big-endian.nii": {"dtype": ">i2", "scl_slope": 0.5},
    "NIfTI-2.nii": {"kind": nib.Nifti2Header, "dtype": "int64", "scl_slope": 3},
    "NIfTI-2, big-endian.nii.gz": {"kind": nib.Nifti2Header, "dtype": ">f8"},
    "uint8.nii.gz": {"dtype": "uint8", "shape": (64, 64, 30, 200)},
    "offset.nii": {"vox_offset": 352.7},
    "large.nii": {"dim": [4, 200, 200, 150, 1000, 1, 1, 1]},
}


def noise(path):
    """Write an image that hardly compresses; return its path."""
    data = np.random.default_rng(0).integers(0, 30000, (20, 20, 20, 50)).astype("int16")
    nib.Nifti1Image(data, np.eye(4)).to_filename(path)
    return path


@pytest.mark.extensive
def test_a_header_is_read_as_nibabel_reads_it(page, tmp_path):
    """Shape, type, compression and scale factors of a file are Python's, and so are the results."""
    fill(page, masks="3", voxels="90, 100,504", workers="3")
    scaling = {(False, False): "none", (True, False): "slope", (False, True): "intercept"}
    paths = [write_image(tmp_path / name, **options) for name, options in FILES.items()]
    os.truncate(tmp_path / "large.nii", 352 + 2 * 200 * 200 * 150 * 1000)
    for path in (*paths, noise(tmp_path / "noise.nii.gz")):
        fill(page, x="33", dtype="uint64", scaling="both")  # unlike any of the files
        page.set_input_files("#calc-file", path)
        page.locator("#calc-file-status").filter(has_text=path.name).wait_for()
        image, there = read_header(path), entries_of(page)
        assert [int(there[name]) for name in "xyzt"] == list(image.shape)
        assert there["dtype"] == image.dtype
        assert there["compressed"] == ("yes" if image.compressed else "no")
        assert there["scaling"] == scaling.get((image.slope, image.inter), "both")
        assert shown(page) == expected(image, [90, 100, 504], 3)


NO_IMAGES = {  # name: options of write_image, or a function of the bytes of a good file
    "not NIfTI.nii.gz": lambda good: gzip.compress(b"nothing of the kind " * 100),
    "not gzip.nii.gz": lambda good: good,
    "short.nii": lambda good: good[:300],
    "cut.nii": lambda good: good[:-1],
    "name.txt": lambda good: good,
    "promise.nii.gz": {"dim": [4, 90, 90, 90, 30000, 1, 1, 1]},
    "3D.nii.gz": {"shape": (9, 8, 7)},
    "zero.nii": {"dim": [4, 9, 0, 7, 30, 1, 1, 1]},
    "complex.nii.gz": {"dtype": "complex64"},
    "intercept.nii": {"scl_slope": 2, "scl_inter": np.inf},
    "offset.nii": {"vox_offset": 100},
}


def test_a_file_that_cannot_be_used_is_rejected_as_in_python(page, tmp_path):
    """Both reject it, in the same words where the numbers are what is wrong."""
    good = write_image(tmp_path / "good.nii").read_bytes()
    for name, how in NO_IMAGES.items():
        path = tmp_path / name
        if callable(how):
            path.write_bytes(how(good))
        else:
            write_image(path, **how)
        with pytest.raises((ValueError, OSError), match=re.escape(name)) as raised:
            read_header(path)
        page.set_input_files("#calc-file", path)
        assert_rejected(page, "file", name)
        words, message = str(raised.value).replace(str(path), name), text_of(page, "file-error")
        if name.startswith(("cut", "promise")):
            assert message == words
            assert "it should hold" in message
        elif name in ("3D.nii.gz", "zero.nii"):
            (shape,) = re.findall(r"the shape (\(.*?\))", words)
            assert message == f"{name} is of shape {shape}; a 4D NIfTI image is needed."
    # An entry of the image by hand takes the place of the file.
    fill(page, x="10")
    assert_results(page)


def test_a_compressed_file_that_may_be_cut_off(page, tmp_path):
    """What does not end with its length is taken, with a warning; what does has none."""
    content = noise(tmp_path / "whole.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(content[:-20])
    fill(page, masks="3", voxels="90")
    for name, doubtful in (("whole.nii.gz", False), ("cut.nii.gz", True)):
        page.set_input_files("#calc-file", tmp_path / name)
        page.locator("#calc-file-status").filter(has_text=name).wait_for()
        assert ("may be cut off" in text_of(page, "file-status")) is doubtful
        assert_results(page)


# -- The answer and the entries ----------------------------------------------------------------


def test_the_first_line_answers(page):
    """The answer names workers, memory, how many workers fit, and what streaming needs."""
    streaming = predict(STREAMING, Image((50, 59, 50, 1680)), [2000] * 20, 1, TYPICAL)
    assert text_of(page, "answer").startswith("Example: 20 NiftiMasker workers in ")
    for workers, memory, words, fits in (
        ("20", "64G", "20 NiftiMasker workers in 64 GiB: yes.", "yes"),
        ("20", "16G", "20 NiftiMasker workers in 16 GiB: no; 7 fit.", "yes"),
        ("20", "3G", "20 NiftiMasker workers in 3 GiB: no; 1 fits.", "yes"),
        ("1", "1.5 GiB", "1 NiftiMasker worker in 1.5 GiB: no; not even 1 fits.", "yes"),
        ("2", "200M", "2 NiftiMasker workers in 200 MiB: no; not even 1 fits.", "no"),
    ):
        fill(page, workers=workers, memory=memory)
        ending = f"One pass of stream_masks: {fits}, {size(streaming.most_mib)}."
        assert text_of(page, "answer") == f"{words} {ending}"


def test_the_summary_says_what_the_results_are_based_on(page):
    """/dev/shm has half the memory, int16 with scale factors is float64, masks may overlap."""
    assert "Available: 16 GiB; in /dev/shm 8 GiB." in text_of(page, "summary")
    half = text_of(page, "results")
    fill(page, shm="3G")
    assert text_of(page, "results") != half
    fill(page, shm="8192M")
    assert text_of(page, "results") == half
    fill(page, dtype="int16")
    assert "as int16, the time series" in text_of(page, "summary")
    fill(page, scaling="slope")
    assert "1.85 GiB in memory as float64, because of" in text_of(page, "summary")
    assert "voxels together" not in text_of(page, "summary")
    fill(page, voxels="10000")
    assert "200,000 voxels together, more than the 147,500 of the grid" in text_of(page, "summary")


def test_entries_give_the_results_of_python(page):
    """What is entered is what is computed; verdict and parts are text; opened parts stay open."""
    fill(page, x="91", y="109", z="91", t="1200", dtype="int16", compressed="no", scaling="both")
    fill(page, masks="4", voxels="200, 3000,50 ,1", workers="7", memory="32G", shm="1000M")
    image, masks = Image((91, 109, 91, 1200), "int16", False, True, True), [200, 3000, 50, 1]
    assert shown(page) == expected(image, masks, 7)
    for item, method in zip(page.locator(".calc-method").all(), METHODS, strict=True):
        prediction, text = predict(method, image, masks, 7, TYPICAL), item.inner_text()
        reason = why_not(prediction, parse_memory("32G"), 1000)
        assert ("Fits" in text, "Does not fit" in text) == (not reason, bool(reason))
        for words in ("It may need", "It needs"):
            assert (words in text) == reason.startswith(words)
        low, most = size(prediction.low_mib), size(prediction.most_mib)
        varies = f"{prediction.low_mib:,.0f}" != f"{prediction.most_mib:,.0f}"
        assert (f", from {low} to {most}" in text) == varies
        shm, file = size(prediction.shm_mib), size(prediction.file_mib)
        assert (f", {shm} of it in /dev/shm" in text) == bool(prediction.shm_mib)
        assert (f"may map up to {file} of a file" in text) == bool(prediction.file_mib)
        item.locator("summary").click()
        lines = item.locator("details li").all_inner_texts()
        for line, part in zip(lines, prediction.parts, strict=True):
            counted = "not counted" if part.holder == "file" else size(part.mib)
            assert line.startswith(f"{counted}, ")
            assert REASONS[part.reason][0] in line
    fill(page, workers="2")
    assert page.locator(".calc-method details[open]").count() == len(METHODS)


WRONG = [  # field, text, words of the message, group of fields
    *(("workers", text, f"'{text}'", "workers") for text in ("0", "2.5", "")),
    *(("memory", text, f"'{text}'", "memory") for text in ("-4G", "16")),
    *(("masks", text, f"'{text}'", "masks") for text in ("0", "10001")),
    *(("t", text, f"'{text}'", "shape") for text in ("0", "1e3", "<b>", "")),
    ("t", "99999999999999", "99999999999999", "shape"),
    ("shm", "-1", "'-1'", "shm"),
    *(("voxels", "0", "'0'", "voxels"), ("voxels", "1000000", "1000000", "voxels")),
    *(("voxels", "5,,5", "''", "voxels"), ("voxels", "5,6", "2 numbers of voxels", "voxels")),
    *((field, text, f"'{text}'", field) for field in LISTS for text in ("perhaps", "")),
]


def test_a_wrong_entry_is_rejected_with_its_value(page):
    """There is a message beside the field, and no result, until it is right again."""
    fill(page, workers="19")  # no longer the example
    before, good = text_of(page, "results"), entries_of(page)
    for field, text, words, group in WRONG:
        page.evaluate("entry => { location.hash = new URLSearchParams([entry]); }", [field, text])
        assert_rejected(page, group, words)
        assert "allowed" in text_of(page, f"{group}-error")
        fill(page, **{field: good[field], "workers": "19"})
        assert_results(page)
        assert text_of(page, "results") == before
    page.evaluate("location.hash = 'worker=3'")
    assert_rejected(page, "address", "'worker'")
    fill(page, x="0", t="-1", workers="many")
    assert text_of(page, "shape-error").count("allowed") == 2
    assert_rejected(page, "workers", "'many'")


# -- Bars, the address, keyboard, screens --------------------------------------------------------


@pytest.mark.extensive
def test_a_bar_is_the_likely_peak_and_a_line_its_range(page):
    """Bar and line have the lengths of their numbers, the bar without mapped files."""
    fill(page, t="400", compressed="no", masks="6", workers="6", memory="4G")
    image, masks = Image((50, 59, 50, 400), compressed=False), [2000] * 6
    found = [predict(method, image, masks, 6, TYPICAL) for method in METHODS]
    end = max(1.05 * max(one.most_mib for one in found), 1.15 * 4096)
    for item, prediction in zip(page.locator(".calc-bar").all(), found, strict=True):
        stack, line = item.locator(".calc-stack").bounding_box(), item.locator(".calc-range")
        mib = end / stack["width"]
        parts = sum(one.bounding_box()["width"] for one in item.locator(".calc-part").all())
        assert parts * mib == pytest.approx(prediction.peak_mib, abs=4 * mib)
        assert line.count() == (prediction.low_mib < prediction.most_mib)
        if line.count():
            box = line.bounding_box()
            left, right = box["x"] - stack["x"], box["x"] + box["width"] - stack["x"]
            assert left * mib == pytest.approx(prediction.low_mib, abs=4 * mib)
            assert right * mib == pytest.approx(prediction.most_mib, abs=8 * mib)


def test_the_address_keeps_the_entries(page, open_page):
    """Opening the address gives the same entries and the same results."""
    fill(page, x="64", y="65", z="30", t="444", dtype="uint16", compressed="no", scaling="both")
    fill(page, masks="3", voxels="10, 20,30", workers="2", memory="1.5 TiB", shm="7G")
    page.wait_for_function("location.hash.includes('shm=7G')")
    other = open_page("calculator.html#" + page.url.split("#")[1])
    assert entries_of(other) == entries_of(page)
    assert text_of(other, "results") == text_of(page, "results")
    # An address that is put into an open page counts as well.
    other.evaluate("location.hash = 'workers=5&x=9&y=9&z=9&t=9&voxels=3'")
    other.wait_for_function("document.getElementById('calc-workers').value === '5'")
    assert entries_of(other)["masks"] == "20"
    assert shown(other) == expected(Image((9, 9, 9, 9)), [3] * 20, 5)
    assert_results(open_page("calculator.html#how-to-read-it"))  # a heading


def test_the_call_runs(page, tmp_path):
    """The recommended call runs, with arrays or with files, and can be copied."""
    masks = tmp_path / "masks"
    masks.mkdir()
    save_all(masks, make_image(), make_masks(make_image()))
    (masks / "fmri.nii.gz").rename(tmp_path / "image.nii.gz")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "examples")}
    for memory, words in (("16G", "stream_masks(fmri_path, mask_paths)"), ("200M", "out=names")):
        fill(page, memory=memory)
        call = text_of(page, "snippet")
        assert words in call
        command = [sys.executable, "-W", "error", "-c", call]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert len(list(tmp_path.glob("region_*.npy"))) == 4
    assert page.locator(".calc-copy button.copybtn").count() == 2


@pytest.mark.extensive
def test_the_page_fits_a_phone(open_page):
    """It does not scroll sideways, with results, open details and messages."""
    large = "x=91&y=109&z=91&t=12000&masks=3&voxels=200000,300,1&workers=300&scaling=both"
    page = open_page(f"calculator.html#{large}", width=320)
    page.evaluate("document.querySelectorAll('.calc details').forEach(one => { one.open = true; })")
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert_results(page)
    assert page.evaluate(fits)
    # The labels of the axis do not overlap, wherever the memory is on the scale.
    for memory in ("1G", "64G", "9999999M", "1000T"):
        fill(page, memory=memory)
        boxes = [one.bounding_box() for one in page.locator("#calc-axis span").all()]
        boxes.sort(key=lambda box: box["x"])
        for left, right in pairwise(boxes):
            assert left["x"] + left["width"] < right["x"], memory
    fill(page, x="0" * 60, workers="x" * 200, memory="y" * 200, voxels="1," * 90)
    assert page.evaluate(fits)


def test_the_page_names_the_command_line_and_its_tolerance(open_page):
    """Without JavaScript there is no dead form, but the command to run instead."""
    page = open_page("calculator.html", java_script_enabled=False)
    assert "What each method needs" in page.locator("nav.page-toc").inner_text()
    text = page.locator("main").inner_text()
    assert "needs JavaScript" in text
    assert "beyond-the-masker budget image.nii.gz masks/*.nii.gz" in text
    assert not page.locator("#calculator-form").is_visible()
    assert re.search(r"\d+ of \d+ measured peaks .* 10% or 30 MiB outside", page.content())
