"""Faults of CSV files are named with their line, and empty columns count as absent."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool import read_trace
from moetool.errors import InputError
from moetool.trace.reading.reader import open_trace

HEADER = "prompt_id,position,layer,expert,token\n"
ROWS = [
    "a,0,0,1,x",
    'a,1,0,2,"two\nlines, quoted"',
    "",
    'b,0,0,3,"a ""quotation"""',
    "b,1,0,1,ü",
    "b,2,0,0,",
]


def refuse(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_trace(path)
    return caught.value


def write(path: Path, rows: list[str]) -> Path:
    path.write_bytes(
        (HEADER + "".join(f"{row}\n" for row in rows)).encode(errors="surrogateescape")
    )
    return path


# The row that is spoiled begins in line 6: there are a line break and a blank line before it.
SPOILED = 4
LINE = 6


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("b,1,0,1", f"line {LINE + 1} has 4 values, but the header names 5 columns"),
        ("b,1,0,1,ü,9", f"line {LINE + 1} has 6 values, but the header names 5 columns"),
        ("b,1,0,1.5,ü", f"'expert' is '1.5' in line {LINE + 1}"),
        ("b,1,zero,1,ü", f"'layer' is 'zero' in line {LINE + 1}"),
        ("b,1,40000,1,ü", f"'layer' is 40000, out of range, in line {LINE + 1}"),
        (
            f"b,{'9' * 5000},0,1,ü",
            f"'position' is {'9' * 5000}, out of range, in line {LINE + 1}",
        ),
        ("b,1,0,1,\udcff", f"'token' isn't UTF-8 text in line {LINE + 1}"),
        ('"b,1,0,1,ü', f"a quotation mark in line {LINE + 1} isn't closed"),
        ("b,,0,1,ü", f"there is no 'position' in line {LINE + 1}"),
    ],
)
def test_a_fault_is_named_with_the_line_of_its_row(row: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "trace.csv", [*ROWS[:SPOILED], row, *ROWS[SPOILED + 1 :]])
    error = refuse(path)
    assert error.message == f"'{path}' can't be read as a trace: {words}."
    assert error.facts == ()


def test_numbers_out_of_range_are_named_with_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.csv", [*ROWS, "b,3,0,-7,x"])
    error = refuse(path)
    assert error.message == f"'{path}' has expert -7, below -1, in line 9."
    assert error.facts == ("seen: prompt 'b', layer 0, position 3",)


@settings(deadline=None, max_examples=60)
@given(
    row=st.integers(0, len(ROWS) - 1),
    at=st.integers(0, 30),
    spoil=st.sampled_from([",", '"', "x", "-", "\udcff", "\n", ",,", "9" * 12, ".", " "]),
)
def test_the_line_named_is_the_first_that_cannot_be_read(
    row: int, at: int, spoil: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = ROWS[row]
    rows = [*ROWS[:row], text[:at] + spoil + text[at:], *ROWS[row + 1 :]]
    path = write(tmp_path_factory.mktemp("trace") / "trace.csv", rows)
    message = try_reading(path)
    found = re.search(r"line (\d+)", message)
    if found is None:
        # A repetition, or a decision without a row, is not a fault of a line.
        assert "can't be read" not in message
        return
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: int(found[1]) - 1]))
    assert "line" not in try_reading(path)


def try_reading(path: Path) -> str:
    """Return why a trace is refused; nothing if it isn't."""
    try:
        read_trace(path)
    except InputError as error:
        return error.message
    return ""


def test_an_unclosed_quotation_mark_of_a_long_file_is_named(tmp_path: Path) -> None:
    rows = ["a,0,0,1,x", 'b,0,0,1,"x', *(f"c{number},0,0,1,x" for number in range(20_000))]
    error = refuse(write(tmp_path / "trace.csv", rows))
    assert "a quotation mark in line 3 isn't closed" in error.message


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("column", ["weight", "rank", "stack"])
def test_a_column_without_values_counts_as_absent(column: str, suffix: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"prompt_id": ["a", "b"], "position": 0, "layer": 0, "expert": [1, 0], column: None}
    )
    path = tmp_path / f"trace{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    source = open_trace(path)
    assert source.columns == ("prompt_id", "position", "layer", "expert")
    assert source.notes == (f"The column {column!r} holds no value, so it counts as absent.",)
    assert list(read_trace(path).columns) == list(source.columns)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_with_its_only_value_at_the_end_is_not_empty(suffix: str, tmp_path: Path) -> None:
    number = 100_000
    frame = pd.DataFrame(
        {
            "prompt_id": [f"a prompt with the number {index}" for index in range(number)],
            "position": 0,
            "layer": 0,
            "expert": 1,
            "weight": [None] * (number - 1) + [0.5],
        }
    )
    path = tmp_path / f"trace{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(
        path, row_group_size=number // 2
    )
    assert "weight" in open_trace(path).columns
    first = "line 2" if suffix == ".csv" else "row 0 (counted from 0)"
    assert refuse(path).message.endswith(f": there is no 'weight' in {first}.")


def test_a_table_without_rows_has_no_empty_columns(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("prompt_id,position,layer,expert,weight\n", encoding="utf-8")
    assert "weight" in open_trace(path).columns
    assert open_trace(path).notes == ()
