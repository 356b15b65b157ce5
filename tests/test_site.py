"""The site as a reader gets it: built for an image that the project has never seen.

One copy of the project is built four times: prose only, interrupted, to the end, and once
more without any change. The image is a real int16 one from nibabel's own tests.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from nibabel.testing import data_path

ROOT = Path(__file__).parent.parent
N_REGIONS = 2
N_METHODS = 14  # the nine ways of the three methods, three more in memory, two that stream
SVG_TEXT = re.compile(r"<text[^>]*>(.*?)</text>")


class Site:
    """A copy of the project, with its own options."""

    def __init__(self, folder):
        self.folder = folder
        ignore = shutil.ignore_patterns("_build", "auto_examples", "measured", "__pycache__")
        for name in ("doc", "examples"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        shutil.copy(ROOT / "conf.py", folder)
        self.fmri = shutil.copy(Path(data_path, "example4d.nii.gz"), folder / "a real image.nii.gz")
        self.atlas = folder / "labels.nii.gz"
        img = nib.load(self.fmri)
        labels = np.zeros(img.shape[:3], "uint8")
        labels[40:60, 40:50, 8:12], labels[70:80, 30:60, 10:12] = 3, 8
        nib.Nifti1Image(labels, img.affine).to_filename(self.atlas)
        self.html = folder / "doc" / "_build" / "html"
        self.measured = folder / "doc" / "measured"
        self.options = {
            "FMRI": str(self.fmri),
            "ATLAS": str(self.atlas),
            "N_REGIONS": str(N_REGIONS),
            "PAUSE": "0.1",
            "MASKER_CACHE": str(folder / "cache"),
            "MEASURED": str(self.measured),
        }

    def start(self, *arguments):
        """Start a strict build in the background, its messages in a file."""
        command = [sys.executable, "-m", "sphinx", "-c", ".", "-W", "--keep-going"]
        with open(self.folder / "messages.txt", "w") as messages:
            return subprocess.Popen(
                [*command, *arguments, "doc", str(self.html)],
                cwd=self.folder,
                env=os.environ | self.options,
                stdout=messages,
                stderr=subprocess.STDOUT,
                # Also where the tests run in the background, which ignores Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def messages(self):
        """What the last build said."""
        return (self.folder / "messages.txt").read_text()

    def build(self, *arguments):
        """Build to the end; give the messages."""
        code = self.start(*arguments).wait(timeout=400)
        assert code == 0, self.messages()
        return self.messages()

    def rows(self):
        """The rows of summary.csv."""
        with open(self.measured / "summary.csv", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    """A site of prose only: nothing has been measured."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.build("-D", "plot_gallery=0")
    return site


@pytest.fixture(scope="module")
def placeholders(prose):
    """The chapter as it is before anything was measured."""
    return (prose.html / "masker_memory_usage.html").read_text()


def left_in_shared_memory(before):
    """What is new there and stays, but for what belongs to other tests' living processes."""
    deadline = time.monotonic() + 20
    while True:
        new = set(os.listdir("/dev/shm")) - before
        new = {name for name in new if not any(map(psutil.pid_exists, pids_in(name)))}
        if not new or time.monotonic() > deadline:
            return new
        time.sleep(0.1)


def pids_in(name):
    """The numbers in the name of a block or a folder that loky or joblib made."""
    return [int(number) for number in re.findall(r"(?<=[-_])\d+(?=[-_])", name)]


@pytest.fixture(scope="module")
def interrupted(prose, placeholders):
    """What is left when Ctrl-C comes between two measurements."""
    shared_before = set(os.listdir("/dev/shm"))
    build = prose.start()
    deadline = time.monotonic() + 120
    while not (prose.measured / "summary.csv").exists():
        assert build.poll() is None, prose.messages()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    tree = psutil.Process(build.pid).children(recursive=True)
    build.send_signal(signal.SIGINT)
    code = build.wait(timeout=60)
    _, alive = psutil.wait_procs(tree, timeout=20)
    files = [path for path in prose.measured.rglob("*") if path.is_file()]
    return {
        "code": code,
        "alive": alive,
        "shared": left_in_shared_memory(shared_before),
        "unfinished": [path for path in files if "unfinished" in path.name],
        "prepared": [path.name for path in (prose.folder / "cache").iterdir()],
        "rows": prose.rows(),
        "checksums": {path.name for path in prose.folder.glob("doc/auto_examples/*.md5")},
    }


@pytest.fixture(scope="module")
def site(prose, interrupted):
    """The site, built to its end after the interrupted build."""
    prose.build()
    return prose


def test_prose_alone_has_placeholders_instead_of_numbers(placeholders):
    """`make html-noplot` works on a fresh clone, and shows no number that was not measured."""
    assert "[not measured yet]" in placeholders
    assert not re.search(r"\d MiB</", placeholders)


def test_an_interrupted_build_leaves_nothing_behind(interrupted):
    """Ctrl-C ends workers and shared memory and leaves no half-written file."""
    assert interrupted["code"] != 0
    assert interrupted["alive"] == []
    assert interrupted["shared"] == set()
    assert interrupted["unfinished"] == []
    assert not [name for name in interrupted["prepared"] if name.startswith("unfinished")]


def test_an_interrupted_example_is_not_trusted(interrupted):
    """The example that was running has no checksum, so that the next build runs it."""
    assert len(interrupted["rows"]) < N_METHODS
    assert "plot_memory_over_time.py.md5" not in interrupted["checksums"]
    assert "plot_nifti_masker.py.md5" not in interrupted["checksums"]


def test_all_methods_are_measured_and_identical(site):
    """The table has every method's run, each with the arrays of NiftiMasker."""
    rows = site.rows()
    assert len({(row["method"], row["mode"]) for row in rows}) == len(rows) == N_METHODS
    assert {row["identical"] for row in rows} == {"true"}
    image = nib.load(site.fmri)
    mib = np.asanyarray(image.dataobj).nbytes / 2**20
    for row in rows:
        assert float(row["image_mib"]) == pytest.approx(mib, abs=0.05)
        assert int(row["n_masks"]) == (1 if row["mode"] == "single" else N_REGIONS)
        assert 0 < float(row["before_mib"]) <= float(row["peak_pss_mib"])
        assert float(row["peak_pss_mib"]) <= float(row["peak_rss_mib"]) + 1
    assert len(list((site.measured / "traces").glob("*.dat"))) == N_METHODS


def test_an_unchanged_build_runs_nothing(site):
    """A second build executes no example and measures nothing."""
    before = (site.measured / "summary.csv").stat().st_mtime_ns
    messages = site.build()
    assert "executed 0 out of 0" in messages
    assert (site.measured / "summary.csv").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("helper", {"plot_large_image", "plot_nifti_masker", "plot_memory_over_time"}),
        ("method", {"plot_shared_memory", "plot_nifti_masker"}),
        ("meter", {"peak_memory", "plot_numpy_indexing"}),
        ("N_REGIONS", {"plot_large_image", "plot_nifti_masker"}),
        ("PAUSE", {"plot_memory_over_time"}),
        ("image", {"plot_large_image", "plot_shared_memory"}),
    ],
)
def test_a_change_reruns_what_depends_on_it(tmp_path, monkeypatch, change, again):
    """A page is run again after a change of a helper, a method, an option, or the image."""
    import rerun

    site = Site(tmp_path)
    for name, value in site.options.items():
        monkeypatch.setenv(name, value)
    pages = [*site.folder.glob("examples/plot_*.py"), site.folder / "examples/peak_memory.py"]
    before = {page.stem: rerun.fingerprint(page) for page in pages}
    assert before == {page.stem: rerun.fingerprint(page) for page in pages}
    files = {"helper": "synthetic_data", "method": "plot_shared_memory", "meter": "peak_memory"}
    if change in files:
        with open(site.folder / "examples" / f"{files[change]}.py", "a") as file:
            file.write("\nCHANGED = True\n")
    elif change == "image":
        os.utime(site.fmri, (1, 1))
    else:
        monkeypatch.setenv(change, "1")
    changed = {page.stem for page in pages if rerun.fingerprint(page) != before[page.stem]}
    assert again <= changed
    if change != "meter":
        assert "peak_memory" not in changed
    if change == "PAUSE":
        assert changed == again


# -- In the browser --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(site, serve):
    """The built site, served on this machine."""
    return serve(site.html)


def all_pages(site):
    """Every page of the site, relative to its root."""
    names = (str(path.relative_to(site.html)) for path in site.html.rglob("*.html"))
    return sorted(name for name in names if not name.startswith("_"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_every_page_is_sound(browser, address, site, width, scheme):
    """No page has an error, a foreign request, a broken picture, or runs out of the screen."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    problems = []
    context.on("request", lambda r: r.url.startswith((address, "data:")) or problems.append(r.url))
    # The browser gives up what it is still fetching, an icon for instance, when the next page
    # is opened. That is not the page's failure; whatever was answered with one is seen here.
    context.on(
        "requestfailed",
        lambda r: r.failure == "net::ERR_ABORTED" or problems.append(f"{r.failure}: {r.url}"),
    )
    context.on("response", lambda r: r.status < 400 or problems.append(f"{r.status}: {r.url}"))
    context.on("console", lambda m: m.type == "error" and problems.append(m.text))
    context.on("weberror", lambda error: problems.append(str(error.error)))
    page = context.new_page()
    for name in all_pages(site):
        page.goto(f"{address}/{name}")
        assert page.evaluate(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        ), f"{name} is wider than the screen"
        # The pictures in the list of examples are decoration: the titles stand below them.
        for image in page.locator("main img:not(.sphx-glr-thumbcontainer img)").all():
            state = image.evaluate(
                """async img => {
                    if (getComputedStyle(img).display == "none") return null;
                    img.loading = "eager";
                    await img.decode();
                    return [img.naturalWidth, img.alt];
                }"""
            )
            assert state is None or (state[0] > 0 and state[1]), f"{name}: {image}"
    context.close()
    assert problems == []


@pytest.fixture
def chapter(browser, address):
    """The chapter, opened on a wide screen."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(f"{address}/masker_memory_usage.html")
    yield page
    page.close()


def test_the_chapters_figure_names_every_method(chapter, site):
    """The annotated figure is shown with alt text, and labels each phase with its peak."""
    visible = [
        image for image in chapter.locator("figure.measured-figure img").all() if image.is_visible()
    ]
    assert len(visible) == 3
    rows = site.rows()
    highest = max(
        (row for row in rows if row["mode"] != "single"), key=lambda r: float(r["peak_pss_mib"])
    )
    for image in visible:
        alt = image.get_attribute("alt")
        assert "NiftiMasker" in alt or "RSS" in alt
    assert highest["method"] in visible[0].get_attribute("alt")
    assert f"{float(highest['peak_pss_mib']):,.0f} MiB" in visible[0].get_attribute("alt")
    for layout in ("wide", "tall"):
        for metric in ("pss", "rss"):
            drawing = (site.measured / f"memory_over_time_{metric}_{layout}.svg").read_text()
            texts = " ".join(SVG_TEXT.findall(drawing))
            for row in rows:
                for word in (*row["method"].replace(" image", "").split(", "), row["mode"]):
                    assert word in texts
            assert len(re.findall(r"[\d,]+ MiB(?! \()", texts)) == N_METHODS


@pytest.mark.parametrize(("width", "layout"), [(1200, "wide"), (400, "tall")])
def test_the_figure_fits_the_screen(chapter, width, layout):
    """A phone gets the tall drawing, a desktop the wide one; its letters are not tiny."""
    chapter.set_viewport_size({"width": width, "height": 900})
    shown = [
        (image.get_attribute("src"), image.bounding_box()["width"])
        for image in chapter.locator("figure.measured-figure img").all()
        if image.is_visible() and "memory_over_time" in image.get_attribute("src")
    ]
    assert [layout in source for source, _ in shown] == [True, True]
    points_wide = 72 * {"wide": 9.2, "tall": 4.2}[layout]
    for _, pixels in shown:
        assert 10 * pixels / points_wide >= 8 * 96 / 72


def test_numbers_in_the_text_are_those_of_the_summary(chapter, site):
    """Each number of the prose and of the table is the one in summary.csv."""
    rows = site.rows()
    source = (site.folder / "doc" / "masker_memory_usage.rst").read_text()
    keys = re.findall(r":measured:`([^`]+)`", source)
    shown = chapter.locator("main .measured").all_inner_texts()
    assert len(shown) == len(keys) >= 25
    peaks = {(r["method"], r["mode"]): float(r["peak_pss_mib"]) for r in rows}
    every = sorted(value for (_, mode), value in peaks.items() if mode != "single")
    peaks |= {("highest", "all masks"): every[-1], ("lowest", "all masks"): every[0]}
    checked = 0
    for key, text in zip(keys, shown, strict=True):
        *way, name = key.split(" / ")
        if name == "peak_pss_mib":
            assert text == f"{peaks[tuple(way)]:,.0f} MiB", key
            checked += 1
        elif way == ["ratio", "highest"]:
            ratio = every[-1] / every[0]
            assert text == (f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}")
            checked += 1
    assert checked >= 8
    cells = chapter.locator("table.measured-table tbody tr").all()
    assert len(cells) == N_METHODS
    for line, row in zip(cells, rows, strict=True):
        shown = line.locator("td").all_inner_texts()
        assert shown[:3] == [row["method"], row["mode"], row["n_jobs"]]
        for place, name in ((3, "before_mib"), (4, "peak_pss_mib"), (5, "peak_rss_mib")):
            assert shown[place] == f"{float(row[name]):,.0f} MiB"
        assert shown[7] == "yes"


def test_the_text_is_about_the_readers_image(chapter, site):
    """Name, shape, type and size of the image in the prose are those of the reader's file."""
    text = chapter.locator("main").inner_text()
    image = nib.load(site.fmri)
    assert "a real image.nii.gz" in text
    assert " × ".join(map(str, image.shape)) in text
    assert str(np.asanyarray(image.dataobj).dtype) in text
    assert f"{np.asanyarray(image.dataobj).nbytes / 2**20:,.0f} MiB in memory" in text
    described = json.loads((site.measured / "experiment.json").read_text())["image"]
    assert described["stored_dtype"] == str(np.asanyarray(image.dataobj).dtype)


def test_the_page_on_the_limit_shows_this_builds_times(browser, address, site):
    """Each method's ratio on the page is the median of the pairs that the build measured."""
    with open(site.measured / "benchmark.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["question"] == "methods"]
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(f"{address}/auto_examples/plot_limit.html")
    tables = page.locator("div.sphx-glr-script-out").all_inner_texts()
    page.close()
    names = {row["what"] for row in rows}
    assert len(names) >= N_METHODS + 6
    for what in names:
        pairs = [row for row in rows if row["what"] == what]
        assert len(pairs) >= 5
        ratios = [float(row["seconds"]) / float(row["limit_seconds"]) for row in pairs]
        line = next(line for line in tables[0].splitlines() if line.startswith(what + " "))
        seconds, ratio = line[len(what) :].split()[:2]
        assert float(ratio) == pytest.approx(np.median(ratios), abs=0.006)
        assert float(seconds) == pytest.approx(
            np.median([float(row["seconds"]) for row in pairs]), abs=6e-4
        )


def test_every_parameter_of_the_maskers_is_in_the_table(browser, address):
    """The page on maskers says of each parameter what becomes of it."""
    from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker, NiftiSpheresMasker

    page = browser.new_page()
    page.goto(f"{address}/auto_examples/plot_stream_masker.html")
    shown = page.locator("table.dataframe tbody th").all_inner_texts()
    page.close()
    for kind in (NiftiMasker, NiftiLabelsMasker, NiftiMapsMasker, NiftiSpheresMasker):
        assert set(kind().get_params()) <= set(shown), kind


def test_links_inside_the_site_lead_somewhere(site):
    """No link of the site points to a page, a file or an anchor that is not there."""
    pattern = re.compile(r'(?:href|src)="([^"]+)"')
    missing = []
    for name in all_pages(site):
        path = site.html / name
        for link in pattern.findall(path.read_text()):
            if link.startswith(("http", "mailto:", "data:")):
                continue
            target, _, anchor = link.partition("#")
            file = (path.parent / target.split("?")[0]) if target else path
            if not file.exists() or (
                anchor and file.suffix == ".html" and f'id="{anchor}"' not in file.read_text()
            ):
                missing.append((name, link))
    assert missing == []
