"""Faults of files are named: the file, the column, the row and the value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moetool import read_trace
from moetool.errors import InputError
from tests.trace.reading.frames import METADATA, make_frame, write


def refuse(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_trace(path)
    return caught.value


@pytest.mark.parametrize("rows_per_table", [5, 1_000_000])
@pytest.mark.parametrize(
    ("column", "value", "seen"),
    [
        ("expert", 0.5, "'expert' is 0.5 in row 17"),
        ("expert", 40_000, "'expert' is 40000 in row 17"),
        ("position", 2**40, "'position' is 1099511627776 in row 17"),
        ("layer", "first", "'layer' is 'first' in row 17"),
        ("layer", None, "there is no 'layer' in row 17"),
        ("prompt_id", None, "there is no 'prompt_id' in row 17"),
        ("weight", "much", "'weight' is 'much' in row 17"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_row(
    column: str,
    value: Any,
    seen: str,
    rows_per_table: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", rows_per_table)
    frame = make_frame()
    # A column of words, if one is.
    values = [str(one) if isinstance(value, str) else one for one in frame[column]]
    values[17] = value
    path = write(tmp_path / "trace.parquet", frame.assign(**{column: pd.Series(values)}))
    error = refuse(path)
    assert error.message == f"'{path}' can't be read as a trace: {seen} (counted from 0)."
    assert error.facts == ()


def test_the_part_that_is_not_of_a_trace_is_named(tmp_path: Path) -> None:
    frame = make_frame()
    write(tmp_path / "part-0.parquet", frame, metadata=METADATA)
    bad = write(tmp_path / "part-1.parquet", frame.drop(columns="position"), metadata=METADATA)
    error = refuse(tmp_path)
    assert error.message == f"'{bad}' is not a trace: it lacks the column 'position'."
    assert "moetool import --detect" in error.hint


def test_a_truncated_part_is_named(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"part-{number}.parquet", make_frame(), metadata=METADATA)
    bad = tmp_path / "part-1.parquet"
    bad.write_bytes(bad.read_bytes()[:-50])
    error = refuse(tmp_path)
    assert error.message == f"'{bad}' can't be read as a trace: its end is missing."
    assert "damaged" in error.hint


@pytest.mark.parametrize("name", ["routed.npz", "router.pt", "imatrix.gguf", "rows.jsonl"])
def test_a_file_of_another_tool_is_referred_to_import(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04")
    error = refuse(path)
    assert error.message == f"'{path}' is neither a .parquet nor a .csv file."
    assert "moetool import --detect" in error.hint
    assert "moetool import --detect" in refuse_folder(tmp_path).hint


def refuse_folder(path: Path) -> InputError:
    error = refuse(path)
    assert error.message == f"'{path}' holds no Parquet files."
    return error
