"""CSV made by several threads, against Python's csv module and the rows it was made of."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings

from moetool.errors import UsageError
from moetool.trace.schema import TRACE_SCHEMA, plain_schema
from moetool.trace.writing.formats import csv_text
from moetool.trace.writing.formats.csv_text import csv_bytes, csv_header, join_csv
from moetool.trace.writing.parquet_files import new_parquet
from tests.trace.examples import make_rows, traces


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_text, "_ROWS_PER_BATCH", 3)


def write_parts(folder: Path, tables: list[pa.Table], *, group_size: int) -> list[Path]:
    paths = []
    for index, table in enumerate(tables):
        paths.append(folder / f"{index}.parquet")
        with new_parquet(paths[-1], TRACE_SCHEMA, footer={}) as writer:
            writer.write_table(table, row_group_size=group_size)
    return paths


def spell(value: Any) -> str:
    return f'"{value.replace(chr(34), chr(34) * 2)}"' if isinstance(value, str) else str(value)


@settings(deadline=None, max_examples=40)
@given(traces())
def test_words_are_quoted_and_numbers_are_not(table: pa.Table) -> None:
    names = [name for name in table.column_names if name != "weight"]
    lines = [",".join(map(spell, row.values())) + "\n" for row in table.select(names).to_pylist()]
    assert csv_bytes(table.select(names)).to_pybytes() == "".join(lines).encode()
    assert csv_header(table.select(names).schema) == (",".join(map(spell, names)) + "\n").encode()


@settings(deadline=None, max_examples=40)
@given(traces())
def test_the_csv_module_reads_the_same_rows(table: pa.Table) -> None:
    text = (csv_header(table.schema) + csv_bytes(table).to_pybytes()).decode()
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert header == table.column_names
    weights = pa.array([float(row[-1]) for row in rows], pa.float32())
    assert weights.equals(table.column("weight").combine_chunks())
    others = table.drop_columns("weight").to_pylist()
    assert [row[:-1] for row in rows] == [list(map(str, row.values())) for row in others]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_of_many_groups_come_in_order_whatever_the_threads(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_text, "count_cores", lambda: threads)
    tables = [make_rows((4, index), seed=index) for index in range(1, 9)]
    parts = write_parts(tmp_path, [*tables, TRACE_SCHEMA.empty_table()], group_size=5)
    join_csv(parts, tmp_path / "joined.csv", TRACE_SCHEMA)
    whole = pa.concat_tables(tables).cast(plain_schema(TRACE_SCHEMA))
    pa.csv.write_csv(whole, tmp_path / "whole.csv")
    assert (tmp_path / "joined.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_no_parts_make_a_header(tmp_path: Path) -> None:
    join_csv([], tmp_path / "joined.csv", TRACE_SCHEMA)
    assert (tmp_path / "joined.csv").read_bytes() == csv_header(TRACE_SCHEMA)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def spoil_pages(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 300 + content[304:])


@pytest.mark.parametrize("damage", [cut, spoil_pages, Path.unlink])
def test_a_part_that_was_changed_is_refused_and_nothing_stays(tmp_path: Path, damage: Any) -> None:
    parts = write_parts(tmp_path, [make_rows() for _ in range(9)], group_size=5)
    damage(parts[4])
    with pytest.raises(UsageError, match=r"'.*4\.parquet' was removed or changed during the run\."):
        join_csv(parts, tmp_path / "joined.csv", TRACE_SCHEMA)
    assert not (tmp_path / "joined.csv").exists()
