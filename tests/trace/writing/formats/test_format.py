"""The layout of the Parquet files, which other readers rely on for speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool.trace.headers.constant_words import find_constant_words
from moetool.trace.schema import TRACE_SCHEMA
from moetool.trace.writing.parquet_files import new_parquet
from tests.trace.examples import make_rows


def write(path: Path, table: pa.Table) -> pq.FileMetaData:
    with new_parquet(path, table.schema, footer={}) as writer:
        writer.write_table(table)
    return pq.read_metadata(path)


def test_statistics_show_where_a_prompt_and_constant_words_are(tmp_path: Path) -> None:
    metadata = write(tmp_path / "trace.parquet", make_rows())
    columns = [metadata.row_group(0).column(index) for index in range(metadata.num_columns)]
    without = [column.path_in_schema for column in columns if column.statistics is None]
    assert without == ["token"]
    by_name = {column.path_in_schema: column.statistics for column in columns}
    assert (by_name["prompt_id"].min, by_name["prompt_id"].max) == ("p0", "p1")
    assert (by_name["position"].min, by_name["position"].max) == (0, 2)
    parquet = pq.ParquetFile(tmp_path / "trace.parquet")
    assert find_constant_words(parquet, TRACE_SCHEMA.names) == {
        "domain": "prose",
        "phase": "prefill",
        "stack": "decoder",
    }


def test_many_words_are_spelled_once_each(tmp_path: Path) -> None:
    words = [f"a rather long word, number {number:06d}" for number in range(60_000)]
    codes = np.arange(len(words), dtype=np.int32).repeat(5)
    tokens = pa.DictionaryArray.from_arrays(codes, words)
    column = write(tmp_path / "words.parquet", pa.table({"token": tokens})).row_group(0).column(0)
    spelled = sum(len(word) for word in words)
    assert spelled < column.total_uncompressed_size < 2 * spelled


@pytest.mark.parametrize(
    ("num_rows", "sizes"),
    [(0, [0]), (9, [9]), (14, [14]), (16, [8, 8]), (25, [13, 12]), (31, [11, 11, 9])],
)
def test_row_groups_of_a_table_are_even(
    num_rows: int, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moetool.trace.writing.parquet_files.ROWS_PER_GROUP", 10)
    table = pa.table({"layer": pa.array(range(num_rows), pa.int16())})
    metadata = write(tmp_path / "rows.parquet", table)
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert groups == sizes
