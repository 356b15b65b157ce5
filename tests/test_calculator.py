"""The calculator page: the same numbers as Python gives, and clear words for what is wrong.

The page is built once, in a small project of its own with the site's theme and style.
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from beyond_the_masker.budget import Row, most_workers, recommend, why_not
from beyond_the_masker.headers import read_header
from beyond_the_masker.imports import TYPICAL
from beyond_the_masker.model import (
    DTYPES,
    METHODS,
    REASONS,
    Image,
    as_json,
    check,
    predict,
    quantities,
)
from beyond_the_masker.options import parse_memory
from made_images import make_image, make_masks, save_all

ROOT = Path(__file__).parent.parent
CONF = f"""
import sys
sys.path[:0] = [{str(ROOT / "doc" / "_ext")!r}, {str(ROOT / "examples")!r}]
project = html_title = "Beyond the masker"
extensions = ["calculator"]
html_theme = "pydata_sphinx_theme"
html_static_path = [{str(ROOT / "doc" / "_static")!r}]
html_css_files = ["custom.css"]
html_favicon = {str(ROOT / "doc" / "_static" / "favicon.svg")!r}
html_theme_options = {{"navbar_end": ["theme-switcher"]}}
html_context = {{"default_mode": "auto"}}
"""
FIELDS = ("x", "y", "z", "t", "dtype", "compressed", "scaling", "masks", "voxels", "workers")
FIELDS += ("memory", "shm")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The folder with the page, and another page."""
    folder = tmp_path_factory.mktemp("calculator")
    source = folder / "source"
    source.mkdir()
    (source / "conf.py").write_text(CONF)
    (source / "index.rst").write_text("Other\n=====\n\n.. toctree::\n\n   calculator\n")
    (source / "calculator.rst").write_text((ROOT / "doc" / "calculator.rst").read_text())
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", str(source), str(folder / "html")],
        env=os.environ | {"MASKER_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert built.returncode == 0, built.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def address(html, serve):
    """The page, served on this machine."""
    return serve(html)


@pytest.fixture(scope="module")
def contexts():
    """Browser contexts by their options: pages of one context share what was loaded."""
    found = {}
    yield found
    for context in found.values():
        context.close()


@pytest.fixture
def open_page(browser, address, contexts):
    """A function that opens the page; in the end nothing may have gone wrong on any."""
    pages, problems = [], []

    def start(ending="", **options):
        key = json.dumps(options)
        if key not in contexts:
            contexts[key] = browser.new_context(**options)
            contexts[key].set_default_timeout(300_000)
        page = contexts[key].new_page()
        pages.append(page)
        page.on(
            "request",
            lambda r: r.url.startswith((address, "data:", "blob:")) or problems.append(r.url),
        )
        page.on("response", lambda r: r.status < 400 or problems.append(f"{r.status}: {r.url}"))
        page.on("console", lambda m: m.type in ("error", "warning") and problems.append(m.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{address}/calculator.html{ending}")
        return page

    yield start
    for page in pages:
        page.close()
    assert problems == []


@pytest.fixture
def page(open_page):
    """The page on a wide screen."""
    return open_page(viewport={"width": 1200, "height": 900})


def fill(page, **entries):
    """Fill in entries."""
    for field, text in entries.items():
        control = page.locator(f"#calc-{field}")
        if field in ("dtype", "compressed", "scaling"):
            control.select_option(text)
        else:
            control.fill(text)


def entries_of(page):
    """What the entries hold, as texts."""
    return {field: page.locator(f"#calc-{field}").input_value() for field in FIELDS}


def shown(page):
    """The likely peak of each method, as shown."""
    texts = page.locator(".calc-method").all_inner_texts()
    return {
        re.match(r"[^\n]+", text)[0]: re.search(r"likely ([\d,]+ MiB)", text)[1] for text in texts
    }


def expected(image, masks, n_jobs):
    """The likely peak of each method, as Python computes it, as text."""
    found = {m: predict(m, image, masks, n_jobs, TYPICAL).peak_mib for m in METHODS}
    return {method: f"{mib:,.0f} MiB" for method, mib in found.items()}


def assert_refused(page, group, *words):
    """Nothing is shown as a result; the message stands where it belongs, and says the value."""
    message = page.locator(f"#calc-{group}-error")
    message.filter(has_text=words[0]).wait_for()
    for word in words:
        assert word in message.inner_text()
        assert word in page.locator("#calc-message").inner_text()
    assert not page.locator("#calc-results").is_visible()
    invalid = page.locator('[aria-invalid="true"]')
    assert invalid.count() >= 1
    for control in invalid.all():
        described = control.get_attribute("aria-describedby").split()
        texts = [page.locator(f"#{name}") for name in described]
        live = [one for one in texts if one.get_attribute("aria-live") == "polite"]
        assert any(one.inner_text() for one in live)


# -- The same numbers ------------------------------------------------------------------------


def random_cases(number):
    """Inputs of all kinds: from a few voxels to many GiB, and from no room to enough."""
    rng = np.random.default_rng(11)
    cases = []
    for i in range(number):
        shape = [int(n) for n in rng.integers(2, 130, 3)] + [int(10 ** rng.uniform(0, 4))]
        grid = int(np.prod(shape[:3]))
        n_masks = int(rng.choice([1, 2, 3, 6, 12, 40], p=[0.1, 0.1, 0.3, 0.3, 0.15, 0.05]))
        masks = [int(n) for n in np.clip(grid * 10 ** rng.uniform(-4, 0, n_masks), 1, grid)]
        cases.append(
            {
                "shape": shape,
                "dtype": DTYPES[i % len(DTYPES)],
                "compressed": bool(rng.integers(2)),
                "slope": bool(rng.integers(2)),
                "inter": bool(rng.integers(2)),
                "masks": masks,
                "n_jobs": int(rng.choice([1, 2, 3, 8, 20, 64])),
                "memory": float(10 ** rng.uniform(2.3, 5.5)),
                "shm": float(10 ** rng.uniform(2, 5)),
            }
        )
    return cases


IN_JAVASCRIPT = """cases => {
    const c = window.memoryCalculator, machine = c.MODEL.machine;
    return cases.map(one => {
        const {masks, n_jobs, memory, shm} = one;
        const rows = c.budget(one, masks, n_jobs, memory, shm, machine);
        return {
            recommendation: c.recommend(rows, memory),
            amounts: ["single", "parallel"].map(
                mode => c.quantities(one, masks, mode, Math.min(n_jobs, masks.length))),
            methods: Object.fromEntries(rows.map(row => [row.prediction.method, {
                ...row.prediction, reason: row.reason,
                most: c.mostWorkers(row.prediction.method, one, masks, memory, shm, machine),
                fits: c.fitsText(row),
            }])),
        };
    });
}"""


def test_the_page_computes_what_python_computes(page):
    """Every number, moment, part and verdict of 310 inputs is the same in both."""
    cases = random_cases(310)
    results = page.evaluate(IN_JAVASCRIPT, cases)
    seen = {"moments": set(), "verdicts": set(), "limits": set()}
    for case, result in zip(cases, results, strict=True):
        image = Image(*(case[key] for key in ("shape", "dtype", "compressed", "slope", "inter")))
        masks, n_jobs, memory, shm = (case[key] for key in ("masks", "n_jobs", "memory", "shm"))
        for mode, found in zip(("single", "parallel"), result["amounts"], strict=True):
            wanted = quantities(image, masks, mode, min(n_jobs, len(masks)))
            assert list(found) == list(wanted)
            assert list(found.values()) == pytest.approx(list(wanted.values()), rel=1e-9, abs=1e-3)
        assert list(result["methods"]) == list(METHODS)
        rows = []
        for method, found in result["methods"].items():
            wanted = predict(method, image, masks, n_jobs, TYPICAL)
            numbers = ("peakMib", "lowMib", "mostMib", "shmMib", "fileMib")
            there = [found[key] for key in numbers]
            assert there == pytest.approx(list(wanted[2:7]), abs=0.49, rel=0), (method, case)
            assert found["moment"] == wanted.moment
            assert found["nJobs"] == wanted.n_jobs
            assert len(found["parts"]) == len(wanted.parts)
            for there, part in zip(found["parts"], wanted.parts, strict=True):
                assert [there["holder"], there["reason"]] == [part.holder, part.reason]
                assert there["mib"] == pytest.approx(part.mib, abs=0.49, rel=0)
            reason = why_not(wanted, memory, shm)
            assert found["reason"] == reason
            most = most_workers(method, image, masks, memory, shm, TYPICAL)
            assert found["most"] == most
            rows.append(Row(wanted, reason, most))
            parallel = METHODS[method].mode == "parallel" and METHODS[method].imports
            several = f"with {most} at most" if parallel and most else "no"
            assert found["fits"] == (several if reason else "yes")
            seen["moments"].add((method, wanted.moment))
            seen["verdicts"].add(re.sub(r"\d+", "n", found["fits"]))
            seen["limits"].add("shm" if "/dev/shm" in reason else bool(reason))
        assert result["recommendation"] == recommend(rows, memory)
    assert seen["verdicts"] == {"yes", "no", "with n at most"}
    assert seen["limits"] == {True, False, "shm"}
    assert {name for name, _ in seen["moments"]} == set(METHODS)
    assert len(seen["moments"]) > 2 * len(METHODS)


def test_sizes_and_thousands_are_written_and_read_as_in_python(page):
    """Sizes of memory have one grammar; numbers are rounded in one way."""
    sizes = ["16G", "1.5 TiB", "900M", "512", ".5g", "7kb", " 3 GB ", "2.", "1e3"]
    sizes += ["", "0", "-1G", "16 X", "G", "inf", "9" * 400, "1,5G", "0.0T", "16GiBi"]
    found = page.evaluate(
        """sizes => sizes.map(size => {
            try { return window.memoryCalculator.parseMemory(size); } catch { return null; }
        })""",
        sizes,
    )
    for size, mib in zip(sizes, found, strict=True):
        try:
            assert mib == pytest.approx(parse_memory(size), rel=1e-15)
        except ValueError:
            assert mib is None, size
    numbers = [0, 0.5, 1.5, 2.5, 999.5, 1000.5, 1234567.49, 1e9 + 0.5]
    written = page.evaluate("numbers => numbers.map(window.memoryCalculator.grouped)", numbers)
    assert written == [f"{number:,.0f}" for number in numbers]


def test_the_page_holds_the_model_of_python(html):
    """The JSON is that of the table; the script is on this page and no other."""
    text = (html / "calculator.html").read_text()
    model = re.search(r'<script type="application/json" id="memory-model">(.*?)</script>', text)
    assert json.loads(model[1]) == json.loads(as_json(TYPICAL))
    assert "is typical, measured on a machine with two cores" in text
    assert "calculator.js" in text
    assert "calculator.js" not in (html / "index.html").read_text()


def test_what_was_measured_is_named(monkeypatch):
    """With numbers that were measured by the build, the page says so, and with what."""
    import calculator

    said = calculator.machine_text(TYPICAL | {"measured": "linux, Python 3.11 & <numpy> 2"})
    assert "measured on the machine that built this page" in said
    assert "linux, Python 3.11 &amp; &lt;numpy&gt; 2" in said


# -- Files -----------------------------------------------------------------------------------


def write_image(path, dtype="int16", shape=(9, 8, 7, 30), kind=nib.Nifti1Image, **header):
    """Write an image with nibabel; then set fields of the header as they stand in the file."""
    data = np.zeros(shape, np.dtype(dtype).newbyteorder("="))
    img = kind(data, np.eye(4), dtype=data.dtype)
    img.header.set_data_dtype(data.dtype)
    if np.dtype(dtype).byteorder == ">":
        img = kind(data, np.eye(4), img.header.as_byteswapped(">"))
    raw = bytearray(img.to_bytes())
    fields = kind.header_class(bytes(raw[: kind.header_class.template_dtype.itemsize]))
    for name, number in {"scl_slope": 1, "scl_inter": 0, **header}.items():
        fields.structarr[name] = number
    block = fields.structarr.tobytes()
    raw[: len(block)] = block
    path.write_bytes(gzip.compress(raw) if path.suffix.lower() == ".gz" else raw)
    return path


def bgzip(path, plain, size=60000):
    """Compress as bgzip does: in parts, each with an extra field."""
    parts = []
    for start in range(0, len(plain), size):
        part = plain[start : start + size]
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = packer.compress(part) + packer.flush()
        head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0"
        head += (len(packed) + 25).to_bytes(2, "little")
        ends = zlib.crc32(part).to_bytes(4, "little") + len(part).to_bytes(4, "little")
        parts.append(head + packed + ends)
    path.write_bytes(b"".join(parts))
    return path


NAN = float("nan")
FILES = {
    "int16, slope": ("a.nii.gz", {"scl_slope": 0.5}),
    "int16, slope and intercept": ("a b.nii", {"scl_slope": 0.5, "scl_inter": -3}),
    "int16, intercept": ("a.NII.GZ", {"scl_inter": 2}),
    "slope 0": ("a.nii", {"scl_slope": 0, "scl_inter": 5}),
    "slope not a number": ("a.nii.gz", {"scl_slope": NAN, "scl_inter": NAN}),
    "big-endian": ("a.nii", {"dtype": ">i2", "scl_slope": 0.5}),
    "big-endian, compressed": ("a.nii.gz", {"dtype": ">f4"}),
    "NIfTI-2": ("a.nii", {"kind": nib.Nifti2Image, "scl_slope": 3}),
    "NIfTI-2, compressed": ("a.nii.gz", {"kind": nib.Nifti2Image, "dtype": "float64"}),
    "NIfTI-2, big-endian": ("a.nii.gz", {"kind": nib.Nifti2Image, "dtype": ">u2"}),
    "float64": ("a.nii.gz", {"dtype": "float64", "shape": (20, 20, 20, 100)}),
    "int64": ("a.nii", {"dtype": "int64"}),
    "uint8": ("a.nii.gz", {"dtype": "uint8", "shape": (64, 64, 30, 200)}),
    "offset": ("a.nii", {"vox_offset": 352.7}),
}


@pytest.fixture(scope="module")
def one_page(browser, address):
    """A page for many files, one after the other."""
    page = browser.new_page()
    page.set_default_timeout(300_000)
    page.goto(f"{address}/calculator.html")
    yield page
    page.close()


def assert_read(page, path):
    """The entries and the results are those of Python's reading."""
    page.set_input_files("#calc-file", path)
    page.locator("#calc-file-status").filter(has_text=path.name).wait_for()
    image = read_header(path)
    there = entries_of(page)
    assert [int(there[name]) for name in "xyzt"] == list(image.shape)
    assert there["dtype"] == image.dtype
    assert there["compressed"] == ("yes" if image.compressed else "no")
    scaling = {(False, False): "none", (True, False): "slope", (False, True): "intercept"}
    assert there["scaling"] == scaling.get((image.slope, image.inter), "both")
    assert shown(page) == expected(image, [90, 100, 504], 3)
    return image


@pytest.mark.parametrize("name", FILES)
def test_a_header_is_read_as_nibabel_reads_it(one_page, tmp_path, name):
    """Shape, type, compression and scale factors of a real file, and the results from them."""
    file, options = FILES[name]
    path = write_image(tmp_path / file, **options)
    fill(one_page, masks="3", voxels="90, 100,504", workers="3")
    fill(one_page, x="33", dtype="uint64", scaling="both")  # not what any file has
    image = assert_read(one_page, path)
    assert image.slope == ("slope" in name and options["scl_slope"] not in (0, 1, NAN)) or (
        options.get("scl_slope") in (0.5, 3)
    )


def test_a_file_in_parts_and_one_larger_than_the_slice_are_read(one_page, tmp_path):
    """Only the beginning of a gzip file is decompressed, and bgzip's first part is enough."""
    fill(one_page, masks="3", voxels="90, 100,504", workers="3")
    noise = np.random.default_rng(0).integers(0, 30000, (20, 20, 20, 50)).astype("int16")
    img = nib.Nifti1Image(noise, np.eye(4))
    nib.save(img, tmp_path / "noise.nii.gz")
    assert (tmp_path / "noise.nii.gz").stat().st_size > 5 * 2**16
    assert_read(one_page, tmp_path / "noise.nii.gz")
    for name, data in (("parts.nii.gz", noise), ("one.nii.gz", noise[..., :2])):
        plain = nib.Nifti1Image(data, np.eye(4)).to_bytes()
        assert_read(one_page, bgzip(tmp_path / name, plain))
    # A header alone promises many GiB; a sparse file has them.
    big = write_image(tmp_path / "big.nii", dim=[4, 200, 200, 150, 1000, 1, 1, 1])
    os.truncate(big, 352 + 2 * 200 * 200 * 150 * 1000)
    assert_read(one_page, big)


def damaged(tmp_path, name):
    """Write a file that is no image to work with."""
    promise = {"dim": [4, 90, 90, 90, 30000, 1, 1, 1]}
    if name == "not NIfTI.nii":
        (tmp_path / name).write_text("nothing of the kind " * 100)
    elif name == "not NIfTI.nii.gz":
        (tmp_path / name).write_bytes(gzip.compress(b"nothing of the kind " * 100))
    elif name == "not gzip.nii.gz":
        write_image(tmp_path / "x.nii").rename(tmp_path / name)
    elif name == "empty.nii":
        (tmp_path / name).touch()
    elif name == "short.nii":
        (tmp_path / name).write_bytes(write_image(tmp_path / "x.nii").read_bytes()[:300])
    elif name == "cut.nii":
        (tmp_path / name).write_bytes(write_image(tmp_path / "x.nii").read_bytes()[:-1])
    elif name == "cut.nii.gz":
        (tmp_path / name).write_bytes(write_image(tmp_path / "x.nii.gz").read_bytes()[:-20])
    elif name.startswith("promise"):
        write_image(tmp_path / name, **promise)
    elif name.startswith("3D"):
        write_image(tmp_path / name, shape=(9, 8, 7))
    elif name.startswith("5D"):
        write_image(tmp_path / name, shape=(3, 3, 3, 3, 2))
    elif name == "zero.nii":
        write_image(tmp_path / name, dim=[4, 9, 0, 7, 30, 1, 1, 1])
    elif name == "complex.nii.gz":
        write_image(tmp_path / name, dtype="complex64")
    elif name == "code.nii":
        write_image(tmp_path / name, datatype=3)
    elif name == "intercept.nii":
        write_image(tmp_path / name, scl_slope=2, scl_inter=np.inf)
    elif name == "offset.nii":
        write_image(tmp_path / name, vox_offset=100)
    elif name == "line ends.nii":
        write_image(tmp_path / name, kind=nib.Nifti2Image, eol_check=[1, 2, 3, 4])
    elif name == "name.txt":
        write_image(tmp_path / "x.nii").rename(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        *("not NIfTI.nii", "not NIfTI.nii.gz", "not gzip.nii.gz", "empty.nii", "short.nii"),
        *("cut.nii", "cut.nii.gz", "promise.nii", "promise.nii.gz"),
        *("3D.nii", "3D.nii.gz", "5D.nii", "zero.nii", "complex.nii.gz", "code.nii"),
        *("intercept.nii", "offset.nii", "line ends.nii", "name.txt"),
    ],
)
def test_a_file_that_cannot_be_is_refused_as_in_python(one_page, tmp_path, name):
    """Both refuse it, in the same words where the numbers are what is wrong."""
    path = damaged(tmp_path, name)
    with pytest.raises(ValueError, match=re.escape(name)) as raised:
        read_header(path)
    one_page.set_input_files("#calc-file", path)
    assert_refused(one_page, "file", name)
    message = one_page.locator("#calc-file-error").inner_text()
    words = str(raised.value).replace(str(path), name)
    if "NIfTI image that can be read" in words:
        assert message.split(" (")[0] == words.split(" (")[0]
    elif re.search(r" is a \w+ of shape", words):
        assert message == re.sub(r" is a \w+ of shape", " is of shape", words)
    else:
        assert message == words
    if name.startswith(("cut", "promise")):
        assert "it should hold" in message
    # An entry of the image by hand takes the place of the file.
    fill(one_page, x="10", y="10", z="10", t="20", dtype="int16", scaling="none")
    fill(one_page, masks="1", voxels="9", workers="1")
    assert one_page.locator("#calc-results").is_visible()
    assert one_page.locator("#calc-file-error").inner_text() == ""


def test_a_file_can_be_dropped(page, tmp_path):
    """A dropped file is read as a chosen one; of several, none."""
    path = write_image(tmp_path / "dropped.nii", shape=(11, 12, 13, 14))
    drop = """([bytes, n]) => {
        const data = new DataTransfer();
        for (let i = 0; i < n; i++) {
            data.items.add(new File([new Uint8Array(bytes)], "dropped.nii"));
        }
        document.getElementById("calc-drop").dispatchEvent(
            new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(drop, [list(path.read_bytes()), 1])
    page.locator("#calc-file-status").filter(has_text="dropped.nii").wait_for()
    assert [entries_of(page)[name] for name in "xyzt"] == ["11", "12", "13", "14"]
    page.evaluate(drop, [list(path.read_bytes()), 2])
    assert_refused(page, "file", "2 files")


# -- Entries ---------------------------------------------------------------------------------


def test_entries_give_the_results_of_python(page):
    """What is entered by hand is what is computed; the verdict is there as text."""
    fill(page, x="91", y="109", z="91", t="1200", dtype="int16", compressed="no", scaling="both")
    fill(page, masks="4", voxels="200, 3000,50 ,1", workers="7", memory="32G", shm="1000M")
    image = Image((91, 109, 91, 1200), "int16", False, True, True)
    masks = [200, 3000, 50, 1]
    assert shown(page) == expected(image, masks, 7)
    for item, method in zip(page.locator(".calc-method").all(), METHODS, strict=True):
        prediction = predict(method, image, masks, 7, TYPICAL)
        reason = why_not(prediction, parse_memory("32G"), 1000)
        text = item.inner_text()
        assert ("Fits" in text) == (not reason)
        assert ("Does not fit" in text) == bool(reason)
        assert reason in text
        low, most = (f"{mib:,.0f}" for mib in (prediction.low_mib, prediction.most_mib))
        assert (f", from {low} to {most} MiB" in text) == (low != most)
        shm, file = (f"{mib:,.0f} MiB" for mib in (prediction.shm_mib, prediction.file_mib))
        assert (f", {shm} of it in /dev/shm" in text) == bool(prediction.shm_mib)
        assert (f"may map up to {file} of a file" in text) == bool(prediction.file_mib)
        item.locator("summary").click()
        lines = item.locator("details li").all_inner_texts()
        assert len(lines) == len(prediction.parts)
        for line, part in zip(lines, prediction.parts, strict=True):
            why, source = REASONS[part.reason]
            counted = "not counted" if part.holder == "file" else f"{part.mib:,.0f} MiB"
            assert line.startswith(f"{counted}, ")
            assert f"{why} ({source.split(', ', 1)[-1].removeprefix('https://')})" in line


def test_no_room_given_is_half_the_memory(page):
    """If no space in /dev/shm is given, it is half the memory."""
    fill(page, t="8000", memory="8G", shm="")
    empty = page.locator("#calc-results").inner_text()
    fill(page, shm="4096")
    assert page.locator("#calc-results").inner_text() == empty
    assert "in /dev/shm 4,096 MiB" in empty
    fill(page, shm="3G")
    assert page.locator("#calc-results").inner_text() != empty


@pytest.mark.parametrize(
    ("field", "text", "group"),
    [
        ("workers", "0", "workers"),
        ("workers", "-3", "workers"),
        ("workers", "2.5", "workers"),
        ("workers", "", "workers"),
        ("memory", "-4G", "memory"),
        ("memory", "much", "memory"),
        ("memory", "0", "memory"),
        ("shm", "-1", "shm"),
        ("z", "0", "shape"),
        ("t", "1e3", "shape"),
        ("x", "<b>", "shape"),
        ("masks", "0", "masks"),
        ("masks", "1001", "masks"),
        ("voxels", "0", "voxels"),
        ("voxels", "1000000", "voxels"),
        ("voxels", "5,,5", "voxels"),
        ("voxels", "5,6", "voxels"),
    ],
)
def test_nonsense_is_refused_with_its_value(one_page, field, text, group):
    """A message beside the field, and no result, until it is right again."""
    page = one_page
    fill(page, x="50", y="59", z="50", t="1680", masks="20", voxels="2000", workers="20")
    before = page.locator("#calc-results").inner_text()
    good = page.locator(f"#calc-{field}").input_value()
    fill(page, **{field: text})
    named = {"5,,5": "''", "5,6": "2 numbers of voxels", "": "''"}.get(text, text)
    assert_refused(page, group, named)
    assert re.search(r"allowed|can be", page.locator(f"#calc-{group}-error").inner_text())
    fill(page, **{field: good})
    assert page.locator("#calc-results").inner_text() == before
    assert page.locator("#calc-message").inner_text() == ""
    assert page.locator('[aria-invalid="true"]').count() == 0


def test_python_refuses_the_same_nonsense():
    """What the page refuses, Python does."""
    image = Image((50, 59, 50, 1680))
    wrong = [
        (image, [9], 0),
        (image, [9], -3),
        (image, [0], 1),
        (image, [10**6], 1),
        (image, [], 1),
    ]
    wrong += [(Image((50, 59, 0, 9)), [9], 1), (Image((5, 5, 5)), [9], 1)]
    for arguments in wrong:
        with pytest.raises(ValueError, match=r"needed|can be"):
            check(*arguments)
    for size in ("-4G", "much", "0", "-1"):
        with pytest.raises(ValueError, match="not a positive size"):
            parse_memory(size)


def test_all_wrong_entries_are_named_at_once(page):
    """Two mistakes give two messages."""
    fill(page, x="0", t="-1", workers="many", memory="?")
    assert page.locator("#calc-shape-error").inner_text().count("allowed") == 2
    assert_refused(page, "workers", "'many'")
    assert_refused(page, "memory", "'?'")
    assert page.locator('[aria-invalid="true"]').count() == 4


def test_a_huge_image_does_not_flatten_the_others(page):
    """A bar that goes far beyond the memory is cut off and says how far it goes."""
    fill(page, t="400000", workers="20", memory="64G")
    breaks = page.locator(".calc-break").all_inner_texts()
    assert breaks
    for text in breaks:
        assert float(re.search(r"[\d,]+", text)[0].replace(",", "")) > 2 * 64 * 1024
    for bar in page.locator(".calc-stack").all():
        inside = bar.bounding_box()
        for part in bar.locator(".calc-part").all():
            box = part.bounding_box()
            assert box["x"] + box["width"] <= inside["x"] + inside["width"] + 1


def test_much_memory_does_not_flatten_the_bars(page):
    """Where all is far below the memory, the scale is that of the methods."""
    fill(page, memory="50T")
    assert page.locator(".calc-line").count() == 0
    assert "memory 52,428,800 MiB →" in page.locator("#calc-axis").inner_text()
    widths = [box.bounding_box()["width"] for box in page.locator(".calc-range").all()]
    assert max(widths) > 400


def test_a_bar_is_the_likely_peak_and_a_line_its_range(page):
    """Bar and line have the lengths of their numbers, the bar without mapped files."""
    fill(page, t="400", compressed="no", masks="6", workers="6", memory="4G")
    image, masks = Image((50, 59, 50, 400), compressed=False), [2000] * 6
    found = {method: predict(method, image, masks, 6, TYPICAL) for method in METHODS}
    end = max(1.05 * max(one.most_mib for one in found.values()), 1.15 * 4096)
    for item, prediction in zip(page.locator(".calc-bar").all(), found.values(), strict=True):
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


# -- Address, keyboard, screens --------------------------------------------------------------


def test_the_address_keeps_the_entries(page, open_page):
    """Opening the address again gives the same entries and the same results."""
    fill(
        page, x="64", y="65", z="30", t="444", dtype="uint16", compressed="no", scaling="intercept"
    )
    fill(page, masks="3", voxels="10, 20,30", workers="2", memory="1.5 TiB", shm="7G")
    page.wait_for_function("location.hash.includes('shm=7G')")
    again = open_page("#" + page.url.split("#")[1])
    assert entries_of(again) == entries_of(page)
    results = page.locator("#calc-results").inner_text()
    assert again.locator("#calc-results").inner_text() == results
    # An address that is put into an open page counts as well.
    again.evaluate("location.hash = 'workers=5&shape=9x9x9x9&voxels=3'")
    again.wait_for_function("document.getElementById('calc-workers').value === '5'")
    assert entries_of(again)["masks"] == "20"
    assert shown(again) == expected(Image((9, 9, 9, 9)), [3] * 20, 5)


@pytest.mark.parametrize(
    ("ending", "group", "word"),
    [
        ("workers=0", "workers", "'0'"),
        ("dtype=float80", "dtype", "'float80'"),
        ("compressed=perhaps", "compressed", "'perhaps'"),
        ("scaling=", "scaling", "''"),
        ("memory=-16G", "memory", "'-16G'"),
        ("shape=5x5x5", "address", "'5x5x5'"),
        ("shape=5x5x5x5x5", "address", "'5x5x5x5x5'"),
        ("shape=5x5xax5", "shape", "'a'"),
        ("worker=3", "address", "'worker'"),
    ],
)
def test_a_bad_address_is_reported(open_page, ending, group, word):
    """What an address has wrong is said, with its value; a correction brings the results."""
    page = open_page(f"#{ending}")
    assert word in page.locator(f"#calc-{group}-error").inner_text()
    assert word in page.locator("#calc-message").inner_text()
    assert not page.locator("#calc-results").is_visible()
    fill(page, x="50", y="59", z="50", t="100", dtype="int16", compressed="no", scaling="none")
    fill(page, workers="3", memory="16G")
    assert page.locator("#calc-results").is_visible()
    assert page.locator("#calc-message").inner_text() == ""


def test_an_anchor_is_no_entry(open_page):
    """The address of a heading gives the page as it is."""
    page = open_page("#how-to-read-it")
    assert page.locator("#calc-results").is_visible()


def test_the_keyboard_is_enough(page):
    """Tab goes through all entries in order, with a visible focus; keys change the results."""
    page.locator("#calc-file").focus()
    order = []
    for _ in range(len(FIELDS) + 2):
        order.append(page.evaluate("document.activeElement.id"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", order[-1]
        page.keyboard.press("Tab")
    assert order == ["calc-file", *(f"calc-{field}" for field in FIELDS), "calc-copy"]
    before = shown(page)
    page.locator("#calc-shape-error").evaluate("() => document.getElementById('calc-t').focus()")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("300")
    page.keyboard.press("Tab")
    page.keyboard.type("int16")
    assert page.locator("#calc-dtype").input_value() == "int16"
    assert shown(page) == expected(Image((50, 59, 50, 300), "int16"), [2000] * 20, 20) != before
    page.keyboard.press("Enter")  # sends nothing anywhere
    details = page.locator(".calc-method details").first
    details.locator("summary").focus()
    page.keyboard.press("Enter")
    assert details.locator("li").first.is_visible()
    page.locator("#calc-workers").focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("2")
    assert details.locator("li").first.is_visible()  # it stays open


def test_every_control_has_a_label(page):
    """Each entry has a name that is read out, and messages that belong to it."""
    for control in page.locator("#calculator-form :is(input, select)").all():
        labels = control.evaluate("control => [...control.labels].map(one => one.innerText)")
        assert labels, control
        for name in control.get_attribute("aria-describedby").split():
            assert page.locator(f"#{name}").count() == 1


@pytest.mark.parametrize("allowed", [True, False])
def test_the_call_can_be_copied(page, allowed, tmp_path):
    """The button copies the recommended call, which runs, also without the clipboard."""
    page.evaluate(
        """allowed => {
            window.copied = [];
            const write = async text => {
                if (!allowed) throw new Error("not allowed");
                window.copied.push(text);
            };
            Object.defineProperty(navigator, "clipboard", {value: {writeText: write}});
            document.addEventListener("copy", event =>
                window.copied.push(document.activeElement.value));
        }""",
        allowed,
    )
    page.locator("#calc-copy").click()
    page.locator("#calc-copied").filter(has_text="Copied.").wait_for()
    call = page.locator("#calc-snippet").inner_text()
    assert page.evaluate("window.copied") == [call]
    assert "stream_masks(fmri_path, mask_paths)" in call
    save_all(tmp_path, make_image(), [])
    (tmp_path / "fmri.nii.gz").rename(tmp_path / "image.nii.gz")
    (tmp_path / "masks").mkdir()
    save_all(tmp_path / "masks", make_image(), make_masks(make_image()))
    (tmp_path / "masks" / "fmri.nii.gz").unlink()
    shutil.copy(ROOT / "examples" / "plot_stream_masks.py", tmp_path)
    subprocess.run([sys.executable, "-W", "error", "-c", call], cwd=tmp_path, check=True)
    fill(page, memory="200M")
    call = page.locator("#calc-snippet").inner_text()
    assert "out=names" in call
    subprocess.run([sys.executable, "-W", "error", "-c", call], cwd=tmp_path, check=True)
    assert len(list(tmp_path.glob("region_*.npy"))) == 4
    assert page.locator("#calc-copied").inner_text() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 1440])
def test_the_page_fits_the_screen(open_page, width, scheme):
    """No sideways scrolling, nothing outside, with results, details and with messages."""
    page = open_page(
        "#shape=91x109x91x12000&masks=3&voxels=200000,300,1&workers=300&scaling=both",
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    for summary in page.locator(".calc-method summary").all():
        summary.evaluate("one => one.parentElement.open = true")
    fits = """() => {
        const outside = [...document.querySelectorAll("#calculator-form *")].filter(one => {
            const box = one.getBoundingClientRect();
            return !one.closest("pre, .calc-bar") && (box.right > innerWidth + 1 || box.left < -1);
        });
        return [document.documentElement.scrollWidth <= innerWidth, outside.map(one => one.id)];
    }"""
    assert page.locator("#calc-results").is_visible()
    assert page.evaluate(fits) == [True, []]
    # The labels of the axis do not lie on each other, wherever the memory is on the scale.
    for memory in ("1G", "64G", "9999999M", "1000T"):
        fill(page, memory=memory)
        boxes = [one.bounding_box() for one in page.locator("#calc-axis span").all()]
        boxes.sort(key=lambda box: box["x"])
        for left, right in pairwise(boxes):
            assert left["x"] + left["width"] < right["x"], memory
    fill(page, x="0" * 60, workers="x" * 200, memory="y" * 200, voxels="1," * 90)
    assert page.evaluate(fits) == [True, []]
    assert not page.locator("#calc-results").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_have_contrast(open_page, scheme):
    """Verdicts, hints and messages have a contrast of 4.5 to 1 with the page at least."""
    page = open_page(color_scheme=scheme)
    colours = page.evaluate(
        """() => {
            document.getElementById("calc-workers-error").textContent = "wrong";
            const back = getComputedStyle(document.body).backgroundColor;
            const words = ".calc-verdict, .calc-hint, .calc-error, .calc-numbers, .calc-label";
            return [...document.querySelectorAll(words)].map(
                one => [getComputedStyle(one).color, back]);
        }"""
    )

    def luminance(colour):
        parts = np.array([float(n) for n in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    assert len(colours) > 30
    for pair in colours:
        dark, bright = sorted(luminance(colour) for colour in pair)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, pair


def test_without_javascript_the_command_line_is_named(open_page):
    """Who has no JavaScript sees no dead form, but what to do instead."""
    page = open_page(java_script_enabled=False)
    text = page.locator("main").inner_text()
    assert "needs JavaScript" in text
    assert "python memory_budget.py image.nii.gz masks/*.nii.gz" in text
    assert not page.locator("#calculator-form").is_visible()
