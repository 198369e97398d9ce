"""Parquet files joined by their bytes, read by pyarrow and pandas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.errors import UsageError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.reader import open_trace
from moetool.trace.rows import probability_rows
from moetool.trace.schema import PROBABILITIES_SCHEMA, TRACE_SCHEMA
from moetool.trace.writing.formats.joined_files import join_parquet
from moetool.trace.writing.parquet_files import new_parquet
from tests.trace.examples import layer_decisions, make_rows, traced_tokens, traces

FOOTER = TraceMetadata(model="joined", complete=True).to_footer()
PART_FOOTER = TraceMetadata(model="part").to_footer()


@st.composite
def probabilities(draw: st.DrawFn) -> pa.Table:
    tokens = draw(traced_tokens())
    return probability_rows(tokens, draw(layer_decisions(num_tokens=len(tokens.token_id))))


def parts_of(tables: st.SearchStrategy[pa.Table]) -> st.SearchStrategy[list[tuple[pa.Table, int]]]:
    """A few tables, some of them empty, each with the size of its row groups."""
    sizes = st.integers(1, 40)
    empty = tables.map(lambda table: table.slice(0, 0))
    return st.lists(st.tuples(tables | empty, sizes), max_size=4)


def write_part(path: Path, table: pa.Table, *, group_size: int = 10, **options: Any) -> Path:
    if options:
        pq.write_table(table, path, row_group_size=group_size, **options)
        return path
    with new_parquet(path, table.schema, footer=PART_FOOTER) as writer:
        writer.write_table(table, row_group_size=group_size)
    return path


def join(parts: Sequence[Path], folder: Path, schema: pa.Schema = TRACE_SCHEMA) -> Path:
    target = folder / "joined.parquet"
    join_parquet(parts, target, schema, footer=FOOTER)
    return target


def chunks_of(path: Path) -> list[bytes]:
    """The bytes of each column of each row group that has rows."""
    content, metadata = path.read_bytes(), pq.read_metadata(path)
    chunks = []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns if group.num_rows else 0)):
            start = column.dictionary_page_offset or column.data_page_offset
            chunks.append(content[start : start + column.total_compressed_size])
    return chunks


def check_joined(parts: Sequence[tuple[pa.Table, int]], schema: pa.Schema) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = [
            write_part(folder / f"{index}.parquet", table, group_size=size)
            for index, (table, size) in enumerate(parts)
        ]
        before = [path.read_bytes() for path in paths]
        target = join(paths, folder, schema)
        expected = pa.concat_tables([schema.empty_table(), *(table for table, _ in parts)])
        joined = pq.read_table(target)
        assert joined.to_pylist() == expected.to_pylist()
        with new_parquet(folder / "whole.parquet", schema, footer=FOOTER) as writer:
            writer.write_table(expected)
        whole = pq.read_schema(folder / "whole.parquet")
        assert joined.schema.equals(whole, check_metadata=True)
        assert chunks_of(target) == [chunk for path in paths for chunk in chunks_of(path)]
        assert [path.read_bytes() for path in paths] == before
        groups = pq.read_metadata(target)
        sizes = [groups.row_group(index).num_rows for index in range(groups.num_row_groups)]
        assert sum(sizes) == groups.num_rows == expected.num_rows
        assert 0 not in sizes


@settings(deadline=None, max_examples=25)
@given(parts_of(traces()))
def test_the_joined_file_has_all_rows_and_the_new_footer(
    parts: list[tuple[pa.Table, int]],
) -> None:
    check_joined(parts, TRACE_SCHEMA)


@settings(deadline=None, max_examples=15)
@given(parts_of(probabilities()))
def test_columns_of_lists_are_joined_too(parts: list[tuple[pa.Table, int]]) -> None:
    check_joined(parts, PROBABILITIES_SCHEMA)


def test_pandas_sees_the_metadata_of_the_new_footer(tmp_path: Path) -> None:
    parts = [write_part(tmp_path / f"{number}.parquet", make_rows()) for number in range(2)]
    target = join(parts, tmp_path)
    frame = pd.read_parquet(target)
    assert frame.attrs["moetool"]["model"] == "joined"
    assert frame["expert"].tolist() == make_rows().column("expert").to_pylist() * 2
    metadata = open_trace(target).metadata
    assert metadata is not None
    assert metadata.model == "joined"


def test_each_row_group_can_be_read_alone(tmp_path: Path) -> None:
    tables = [make_rows((3,), seed=seed) for seed in range(3)]
    parts = [
        write_part(tmp_path / f"{number}.parquet", table) for number, table in enumerate(tables)
    ]
    with pq.ParquetFile(join(parts, tmp_path)) as file:
        # Row groups of ten rows and of two.
        last = [file.read_row_group(index, columns=["weight"]) for index in (1, 3, 5)]
    assert [group.column(0).to_pylist() for group in last] == [
        table.column("weight").to_pylist()[10:] for table in tables
    ]


def test_page_indexes_and_checksums_of_the_parts_mislead_nobody(tmp_path: Path) -> None:
    tables = [make_rows((5, 40), seed=seed) for seed in range(2)]
    parts = [
        write_part(
            tmp_path / f"{number}.parquet",
            table,
            group_size=150,
            write_page_index=True,
            write_page_checksum=True,
            data_page_size=1,
            write_batch_size=8,
        )
        for number, table in enumerate(tables)
    ]
    target = join(parts, tmp_path)
    found = pq.read_table(target, page_checksum_verification=True, filters=[("position", ">", 30)])
    assert found.num_rows == 2 * 9 * 4
    assert not pq.read_metadata(target).row_group(0).column(3).has_offset_index


def test_more_row_groups_than_can_be_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moetool.trace.writing.formats.joined_files._LARGEST_ORDINAL", 1)
    part = write_part(tmp_path / "part.parquet", make_rows(), group_size=2)
    target = join([part, part], tmp_path)
    assert pq.read_metadata(target).num_row_groups == 20
    assert pq.read_table(target).num_rows == 40


def with_other_columns(path: Path) -> None:
    write_part(path, make_rows().drop_columns("phase"))


def with_other_types(path: Path) -> None:
    table = make_rows()
    wide = table.column("expert").cast(pa.int64())
    write_part(path, table.set_column(table.column_names.index("expert"), "expert", wide))


def without_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def without_middle(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:100] + content[300:])


def with_damaged_footer(path: Path) -> None:
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    content[-8 - length : -8 - length + 20] = b"\xff" * 20
    path.write_bytes(content)


def as_text(path: Path) -> None:
    path.write_text("prompt_id,position\n" * 9, encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        with_other_columns,
        with_other_types,
        without_end,
        without_middle,
        with_damaged_footer,
        as_text,
        Path.unlink,
    ],
)
def test_a_part_that_was_changed_is_refused_and_nothing_stays(tmp_path: Path, damage: Any) -> None:
    parts = [write_part(tmp_path / f"{number}.parquet", make_rows()) for number in range(2)]
    if damage in (with_other_columns, with_other_types):
        parts[1].unlink()
    damage(parts[1])
    with pytest.raises(UsageError, match=r"'.*1\.parquet' was removed or changed during the run\."):
        join(parts, tmp_path)
    assert not (tmp_path / "joined.parquet").exists()
    assert parts[0].exists()


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "joined.parquet").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError):
        join([], tmp_path)
    assert (tmp_path / "joined.parquet").read_text(encoding="utf-8") == "mine"
