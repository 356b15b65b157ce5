"""The memory of imports is measured once on a machine, and kept."""

import json

import pytest

from beyond_the_masker.predict.budget import predict_peak, print_budget
from beyond_the_masker.predict.imports import (
    TYPICAL,
    calibrate,
    machine_path,
    this_machine,
    versions,
)
from made_images import make_image

IMAGE = "fmri.nii"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """Work in a folder with an image."""
    monkeypatch.chdir(tmp_path)
    make_image().to_filename(IMAGE)


@pytest.mark.chance
def test_imports_are_measured_once(tmp_path, capsys):
    """What was measured is kept and used; the more a process imports, the more it takes."""
    assert this_machine() is TYPICAL
    machine = calibrate()
    assert machine_path() == tmp_path / "masker_cache" / "machine.json"
    assert [path.name for path in machine_path().parent.iterdir()] == ["machine.json"]
    assert machine.keys() == TYPICAL.keys()
    assert this_machine() == machine == json.loads(machine_path().read_text())
    assert "numpy" in machine["measured"]
    assert 5 < machine["numpy"] < machine["nibabel"] < machine["nilearn"]
    assert 5 < machine["caller nibabel"] < machine["caller nilearn"]
    assert 0 < machine["helpers"] < 100
    print_budget(IMAGE, [5])
    assert "imports: measured here" in capsys.readouterr().out
    found = predict_peak("NumPy indexing, path, single", IMAGE, [5])
    assert found.parts[0].mib == machine["caller nibabel"]
    found = predict_peak("NiftiMasker, path, single", IMAGE, [5])
    assert found.parts[0].mib == machine["caller nilearn"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"measured": "SAME"}', "\ud800", json.dumps(TYPICAL | {"measured": "Python 2.7"})],
)
def test_damaged_or_foreign_measurement_is_ignored(text, capsys):
    """A file that is damaged, or of other versions, is not used."""
    machine_path().parent.mkdir()
    text = text.replace("SAME", versions())
    machine_path().write_bytes(text.encode("utf-8", "surrogatepass"))
    assert this_machine() is TYPICAL
    print_budget(IMAGE, [5])
    assert "imports: typical" in capsys.readouterr().out
