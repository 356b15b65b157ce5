"""Write series and matrices as tables that read back exactly, each with a record beside it.

The record, a ``.json`` file with the table's name, is moved into place last: a table without one is
not complete. `read_table` reads a table, and so does, but for the type of the numbers,
``pandas.read_csv(file, sep="\\t", na_values="n/a")``, before pandas 3 with
``float_precision="round_trip"``.
"""

import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np

from beyond_the_masker.files import file_named, moved_into_place, sha256_of

__all__ = ["read_table"]


def write_pair(file, header, rows, record, first=()):
    """Write a table and then its record, to which checksums of both are added."""
    beside = file.with_suffix(".json")
    with moved_into_place(file) as unfinished:
        sha256, size = write_lines(unfinished, as_lines(header, rows, first))
        beside.unlink(missing_ok=True)
    record = record | {"Sha256": sha256, "Size": size}
    record["RecordSha256"] = sha256_of_record(record)
    with moved_into_place(beside) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return record


def sha256_of_record(record):
    """Return the SHA-256 of all entries of a record but this one."""
    others = {name: record[name] for name in record if name != "RecordSha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def remove_pair(file):
    """Remove a table and its record, the record first."""
    file.with_suffix(".json").unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def as_lines(header, rows, first=()):
    """Yield the lines of a table; `first` is its first column, of text, if it has one."""
    yield as_line(header)
    starts = [as_line([name])[:-1] + "\t" for name in first] or [""] * len(rows)
    for start, row in zip(starts, rows, strict=True):
        yield start + "\t".join(as_texts(row)) + "\n"


def as_line(names):
    """Return names as a line of a table; those with a tab or a quote are quoted."""
    line = io.StringIO()
    csv.writer(line, delimiter="\t", lineterminator="\n").writerow(names)
    return line.getvalue()


def as_texts(row):
    """Return the shortest texts that read back as the numbers of an array, in its own type."""
    values = row.tolist() if row.dtype != np.float32 else row
    return ["n/a" if value != value else str(value) for value in values]


def write_lines(path, lines):
    """Write lines into a file; return its SHA-256 and its size."""
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for line in lines:
            content = line.encode(errors="surrogateescape")
            digest.update(content)
            size += file.write(content)
    return digest.hexdigest(), size


def is_whole(file, record, verify=False):
    """Return whether a table has the size, or if `verify` is set the checksum, of its record."""
    try:
        if file.stat().st_size != record.get("Size"):
            return False
        return not verify or sha256_of(file) == record.get("Sha256")
    except OSError:
        return False


def read_record(file):
    """Return the record beside a table: empty if it is missing or damaged."""
    try:
        with file_named(file.with_suffix(".json")):
            record = json.loads(file.with_suffix(".json").read_text())
        is_sound = record["RecordSha256"] == sha256_of_record(record)
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return {}
    return record if is_sound else {}


def read_table(file):
    """Return a table of series as a DataFrame, with exactly the numbers that were written.

    It has a column for each region and a row for each kept volume, and NaN where the file has
    ``n/a``. The ``.json`` beside the file has the type of the numbers, such as float32.
    """
    file = Path(file)
    frame = read_exactly(file, keep_default_na=False, encoding_errors="surrogateescape")
    return frame.astype(read_record(file).get("DataType", "float64"))


def read_exactly(file, **how):
    """Return a table of any origin as a DataFrame; each number is the one nearest to its text."""
    import pandas as pd  # here: most workers do not need it

    how = {"sep": "\t", "na_values": "n/a"} | how
    if int(pd.__version__.split(".")[0]) < 3:  # from 3 on, all are read so
        how["float_precision"] = "round_trip"
    with file_named(file):
        return pd.read_csv(file, **how)
