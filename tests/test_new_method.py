"""A new method takes one page and one entry in METHODS, as CONTRIBUTING.md explains."""

import json
import re
import runpy
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Text
from nibabel.testing import data_path

from beyond_the_masker.draw.figures import plot_peaks
from beyond_the_masker.experiments import pages
from beyond_the_masker.experiments.experiment import read_summary
from beyond_the_masker.experiments.methods import all_methods, find_method
from beyond_the_masker.experiments.report import write_report
from beyond_the_masker.predict import model
from beyond_the_masker.predict.model import METHODS, as_json
from made_images import keep_typical_imports, regions_of, use_own

ROOT = Path(__file__).parent.parent
NAME, MODE = "NumPy indexing, union of masks", "one pass"
TITLE = f"{NAME}, {MODE}"


def code_blocks():
    """Return the Python code in CONTRIBUTING.md: a page, and an entry of the table."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```$", text, flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in blocks]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page of the new method, which is in METHODS."""
    page, entry = code_blocks()
    path, find = tmp_path / "plot_union.py", pages.page_path
    path.write_text(page)
    monkeypatch.setattr(pages, "page_path", lambda name: path if name == path.stem else find(name))
    ((title, method),) = eval(f"{{{entry}}}", vars(model)).items()
    monkeypatch.setitem(METHODS, title, method)
    all_methods.cache_clear()
    yield path
    all_methods.cache_clear()
    plt.close("all")


@pytest.mark.chance
def test_it_is_measured_and_shown(page, tmp_path, monkeypatch):
    """Its page runs, and its values are NiftiMasker's; chart, table and calculator show it."""
    fmri_path = Path(data_path, "example4d.nii.gz")
    regions_of(fmri_path).to_filename(tmp_path / "labels.nii.gz")
    use_own(monkeypatch, fmri_path, tmp_path / "labels.nii.gz")
    monkeypatch.setenv("MEMORY", "unlimited")
    keep_typical_imports()
    runpy.run_path(str(page))
    (row,) = read_summary()
    assert (row["method"], row["mode"], row["function"]) == (NAME, MODE, "numpy_masker_union")
    assert (row["status"], row["identical"], row["n_masks"]) == ("measured", "true", "2")
    assert 0 < float(row["before_mib"]) <= float(row["peak_mib"])
    chart = [text.get_text() for text in plot_peaks([row]).findobj(Text)]
    assert sum(text.startswith(f"{TITLE}: ") for text in chart) == 1
    assert TITLE in json.loads(as_json({}))["methods"]
    write_report(tmp_path / "measured", tmp_path / "_report")
    assert f"{float(row['peak_mib']):,.0f}" in (tmp_path / "_report" / "table.rst").read_text()


@pytest.mark.parametrize(
    ("title", "change", "message"),
    [
        (TITLE, {"module": "plot_lop"}, "there is no module plot_lop"),
        (TITLE, {"function": "stream_mask"}, "streaming has no function 'stream_mask'"),
        (TITLE, {"mode": "two passes"}, "mode 'two passes'; use one of single, loop"),
        (NAME, {}, "must end with its mode: ', one pass'"),
    ],
    ids=["no page", "no function", "mode", "name without mode"],
)
def test_a_wrong_entry_is_named(title, change, message):
    """A mistake in the table raises an error that names the entry."""
    model = METHODS["Streaming, masks, one pass"]._replace(**change)
    with pytest.raises(ValueError, match=message) as raised:
        find_method(title, model)
    assert f"METHODS of model.py has {title!r}" in str(raised.value)
