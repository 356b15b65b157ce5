"""Tables read back exactly, and their records are written last."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from beyond_the_masker.studies.tables import (
    is_whole,
    read_exactly,
    read_record,
    read_table,
    write_pair,
)
from made_images import changed

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"))
VALUES = st.sampled_from(["f4", "f8", "i4"]).flatmap(
    lambda dtype: arrays.arrays(dtype, st.tuples(st.integers(1, 4), st.integers(1, 5)))
)


@given(values=VALUES, data=st.data())
def test_values_read_back_exactly(tmp_path_factory, values, data):
    """All numbers, NaN and infinity read back, also with pandas alone; and so do all names."""
    file = tmp_path_factory.mktemp("tables") / "a_timeseries.tsv"
    n_columns = values.shape[1]
    names = data.draw(st.lists(NAMES, min_size=n_columns, max_size=n_columns, unique=True))
    names = [f"region {name}" for name in names]
    write_pair(file, names, values, {"DataType": values.dtype.name})
    frame = read_table(file)
    np.testing.assert_array_equal(frame.to_numpy(), values)
    assert set(frame.dtypes) == {values.dtype}
    assert list(frame) == names
    plain = read_exactly(file).to_numpy().astype(values.dtype)
    np.testing.assert_array_equal(plain, values)
    assert np.signbit(plain[values == 0]).tolist() == np.signbit(values[values == 0]).tolist()


def test_a_record_is_written_last(tmp_path, monkeypatch):
    """A table that is replaced has no record until it is complete."""
    file, seen = tmp_path / "a_timeseries.tsv", []
    write_pair(file, ["a"], np.zeros((2, 1)), {})
    replace = Path.replace

    def spy(path, to):
        seen.append((Path(to).suffix, file.with_suffix(".json").exists()))
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", spy)
    write_pair(file, ["a"], np.ones((2, 1)), {})
    assert seen == [(".tsv", False), (".json", False)]
    assert json.loads(file.with_suffix(".json").read_text()) == read_record(file)


@pytest.mark.parametrize("verify", [False, True])
def test_damage_is_found(tmp_path, verify):
    """A table that is missing or was cut is no whole one; with `verify`, neither a changed one."""
    file = tmp_path / "a_timeseries.tsv"
    record = write_pair(file, ["a"], np.zeros((2, 1)), {})
    assert is_whole(file, record, verify)
    file.write_bytes(file.read_bytes().replace(b"0.0", b"1.0"))
    assert is_whole(file, record, verify) == (not verify)
    file.write_bytes(file.read_bytes()[:-1])
    assert not is_whole(file, record, verify)
    file.unlink()
    assert not is_whole(file, record, verify)
    assert not is_whole(file, {}, verify)


@pytest.mark.parametrize("share", np.linspace(0, 0.99, 15))
def test_a_damaged_record_is_none(tmp_path, share):
    """A record of which a bit is changed, or the end is missing, is not believed."""
    file = tmp_path / "a_timeseries.tsv"
    record = write_pair(file, ["a"], np.zeros((2, 1)), {"Coverage": {"a": 0.25, "b": None}})
    beside, texts = file.with_suffix(".json"), ["[]", "1", "{}", '{"RecordSha256": 1}']
    sound, place = beside.read_text(), int(share * beside.stat().st_size)
    assert read_record(file) == record
    beside.write_bytes(changed(sound.encode(), place, 1))
    assert read_record(file) in ({}, record)  # white space may be another one
    for text in (sound[:place], *texts):
        beside.write_text(text)
        assert read_record(file) == {}
