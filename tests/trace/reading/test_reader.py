"""Written traces are read back, and so are traces of other tools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from moetool import read_trace
from moetool.errors import InputError
from moetool.trace.companions import sidecar_path
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.reader import open_trace
from moetool.trace.schema import REQUIRED_COLUMNS, TRACE_SCHEMA, plain_schema
from tests.trace.examples import (
    HOSTILE_WORDS,
    WORD_COLUMNS,
    columns_of,
    describe_layers,
    make_rows,
    traces,
    write_trace,
)

SUFFIXES = (".parquet", ".csv")
METADATA = TraceMetadata(
    complete=True, model="org/größe", layers=describe_layers(), notes=('"quoted", é\n',)
)
FOREIGN = pd.DataFrame(
    {
        "prompt_id": ["a", "a", "b", "b"],
        "position": [0, 0, 0, 0],
        "layer": [0, 0, 0, 0],
        "expert": [1, 2, 1, 0],
    }
)


# Round trips


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None, max_examples=60)
@given(rows=traces())
def test_every_column_survives_writing_and_reading(
    suffix: str, rows: pa.Table, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("trace") / f"trace{suffix}"
    assert columns_of(read_trace(write_trace(path, rows))) == rows.to_pydict()


@settings(deadline=None, max_examples=60)
@given(rows=traces())
def test_pandas_reads_the_csv_to_the_same_rows(
    rows: pa.Table, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_trace(tmp_path_factory.mktemp("trace") / "trace.csv", rows)
    frame = pd.read_csv(
        path, keep_default_na=False, dtype={**dict.fromkeys(WORD_COLUMNS, "str"), "weight": "f4"}
    )
    assert columns_of(frame) == rows.to_pydict()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("word", HOSTILE_WORDS, ids=ascii)
def test_a_hostile_token_is_read_back_as_it_was(suffix: str, word: str, tmp_path: Path) -> None:
    rows = make_rows((1,), pieces=[word], prompt_ids=[word], domains=[word])
    frame = read_trace(write_trace(tmp_path / f"trace{suffix}", rows))
    for column in ("token", "prompt_id", "domain"):
        assert set(frame[column]) == {word}


def test_a_csv_of_several_blocks_is_read_whole(tmp_path: Path) -> None:
    rows = make_rows([100] * 60, pieces=[f'{n}\n"{n}"\r,' for n in range(6000)])
    path = write_trace(tmp_path / "trace.csv", rows)
    assert path.stat().st_size > 1_000_000, "one block only"
    assert columns_of(read_trace(path)) == rows.to_pydict()


def test_memory_does_not_grow_with_the_tables_that_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", 80_000)
    path = tmp_path / "trace.parquet"
    rows = make_rows((20_000,))  # A float of full precision is not compressed.
    weight = np.random.default_rng(0).random(rows.num_rows).astype(np.float32)
    rows = rows.set_column(rows.column_names.index("weight"), "weight", pa.array(weight))
    with pq.ParquetWriter(path, rows.schema) as writer:
        for _ in range(20):
            writer.write_table(rows)
    tables = open_trace(path).iter_tables(["prompt_id", "weight"])
    held = [pa.total_allocated_bytes() for _ in tables]
    assert max(held) - min(held) < path.stat().st_size / 4


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_two_ids_may_share_a_piece(suffix: str, tmp_path: Path) -> None:
    rows = make_rows((3,), pieces=["", "x", ""])
    frame = read_trace(write_trace(tmp_path / f"trace{suffix}", rows))
    assert frame["token"].tolist() == rows.column("token").to_pylist()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_words_are_read_as_categoricals_and_numbers_as_narrow_as_written(
    suffix: str, tmp_path: Path
) -> None:
    frame = read_trace(write_trace(tmp_path / f"trace{suffix}", make_rows()))
    kinds = {str(name): str(kind) for name, kind in frame.dtypes.items()}
    plain = {field.name: str(field.type) for field in plain_schema(TRACE_SCHEMA)}
    expected = dict.fromkeys(WORD_COLUMNS, "category")
    expected |= {name: kind for name, kind in plain.items() if name not in WORD_COLUMNS}
    assert kinds == expected | {"weight": "float32"}


def test_a_folder_named_like_a_partition_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "layer=7"
    folder.mkdir()
    rows = make_rows()
    frame = read_trace(write_trace(folder / "trace.parquet", rows))
    assert columns_of(frame) == rows.to_pydict()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_path_may_be_a_string(suffix: str, tmp_path: Path) -> None:
    path = write_trace(tmp_path / f"trace{suffix}", make_rows())
    pd.testing.assert_frame_equal(read_trace(str(path)), read_trace(path))


# Metadata


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_is_read_back(suffix: str, tmp_path: Path) -> None:
    path = write_trace(tmp_path / f"trace{suffix}", make_rows(), metadata=METADATA)
    assert open_trace(path).metadata == METADATA


def test_a_csv_has_its_metadata_beside_it(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace.csv", make_rows(), metadata=METADATA)
    sidecar = tmp_path / "trace.csv.meta.json"
    assert sidecar.read_text(encoding="utf-8") == METADATA.to_json()
    sidecar.unlink()
    assert open_trace(path).metadata is None


def test_a_parquet_file_has_its_metadata_in_the_footer(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace.parquet", make_rows(), metadata=METADATA)
    assert pq.read_metadata(path).metadata[b"moetool"].decode() == METADATA.to_json()


def test_a_newer_trace_is_refused(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace.csv", make_rows())
    sidecar_path(path).write_text('{"schema": "moetool.trace/2"}', encoding="utf-8")
    with pytest.raises(InputError, match="newer moetool"):
        open_trace(path)


# Folders of parts


def test_a_folder_of_parquet_parts_reads_as_one_trace(tmp_path: Path) -> None:
    tables = [make_rows(seed=seed, prompt_ids=[f"{seed}a", f"{seed}b"]) for seed in range(3)]
    for number, table in enumerate(tables):
        write_trace(tmp_path / f"rank-{number}.parquet", table, metadata=METADATA)
    (tmp_path / "README.txt").write_text("not a part", encoding="utf-8")
    assert columns_of(read_trace(tmp_path)) == pa.concat_tables(tables).to_pydict()
    assert open_trace(tmp_path).metadata == METADATA


@pytest.mark.parametrize("unfinished", [0, 1])
def test_a_folder_is_complete_only_if_every_part_is(unfinished: int, tmp_path: Path) -> None:
    for number in range(2):
        metadata = replace(METADATA, complete=number != unfinished)
        write_trace(tmp_path / f"rank-{number}.parquet", make_rows(), metadata=metadata)
    merged = open_trace(tmp_path).metadata
    assert merged is not None
    assert not merged.complete


def test_parts_that_lack_a_column_of_others_are_refused(tmp_path: Path) -> None:
    FOREIGN.assign(domain="prose").to_parquet(tmp_path / "a.parquet")
    FOREIGN.to_parquet(tmp_path / "b.parquet")
    message = r"b\.parquet' has no column 'domain', unlike 'a\.parquet' next to it"
    with pytest.raises(InputError, match=message):
        open_trace(tmp_path)


def test_a_column_that_the_format_lacks_and_a_part_too_is_noted(tmp_path: Path) -> None:
    FOREIGN.assign(topic="prose").to_parquet(tmp_path / "a.parquet")
    FOREIGN.to_parquet(tmp_path / "b.parquet")
    source = open_trace(tmp_path)
    assert source.columns == REQUIRED_COLUMNS
    assert source.notes == ("The column 'topic' can't be used: b.parquet lacks it.",)
    assert source.lacking == {"topic": tmp_path / "b.parquet"}


# Traces of other tools


def write_foreign(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_foreign_trace_needs_four_columns_only(suffix: str, tmp_path: Path) -> None:
    path = write_foreign(FOREIGN, tmp_path / f"foreign{suffix}")
    source = open_trace(path)
    assert source.columns == REQUIRED_COLUMNS
    assert source.metadata is None
    assert columns_of(read_trace(path)) == columns_of(FOREIGN)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_foreign_columns_may_come_in_any_order_among_others(suffix: str, tmp_path: Path) -> None:
    frame = FOREIGN.assign(loss=0.5, token="é")[["loss", "expert", "token", *REQUIRED_COLUMNS[:3]]]
    path = write_foreign(frame, tmp_path / f"foreign{suffix}")
    expected = columns_of(FOREIGN.assign(token="é"))
    assert columns_of(read_trace(path)) == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_foreign_prompt_ids_may_be_numbers(suffix: str, tmp_path: Path) -> None:
    path = write_foreign(FOREIGN.assign(prompt_id=[7, 7, 8, 8]), tmp_path / f"foreign{suffix}")
    assert read_trace(path)["prompt_id"].tolist() == ["7", "7", "8", "8"]


@pytest.mark.parametrize(
    "types",
    [
        {"prompt_id": pa.dictionary(pa.int8(), pa.large_string())},
        {"prompt_id": pa.large_string()},
        {"position": pa.uint8(), "layer": pa.int8(), "expert": pa.uint64()},
        {"position": pa.float64()},
    ],
    ids=["categorical", "large strings", "other integers", "whole floats"],
)
def test_foreign_types_are_taken_if_their_values_fit(
    types: dict[str, pa.DataType], tmp_path: Path
) -> None:
    table = pa.Table.from_pandas(FOREIGN, preserve_index=False)
    schema = pa.schema([(field.name, types.get(field.name, field.type)) for field in table.schema])
    pq.write_table(table.cast(schema), tmp_path / "foreign.parquet")
    assert columns_of(read_trace(tmp_path / "foreign.parquet")) == columns_of(FOREIGN)


def test_a_csv_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "foreign.csv"
    text = "\r\n".join(FOREIGN.to_csv(index=False).splitlines())
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert columns_of(read_trace(path)) == columns_of(FOREIGN)


# Files that are not traces


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_trace(path)
    return caught.value


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("column", REQUIRED_COLUMNS)
def test_a_table_without_a_required_column_is_no_trace(
    suffix: str, column: str, tmp_path: Path
) -> None:
    path = write_foreign(FOREIGN.drop(columns=column), tmp_path / f"foreign{suffix}")
    assert f"lacks the column '{column}'" in refusal(path).message


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("expert", [0.5, "first", 2**20], ids=["fraction", "word", "too large"])
def test_an_expert_that_is_no_small_integer_is_refused(
    suffix: str, expert: float | str, tmp_path: Path
) -> None:
    path = write_foreign(FOREIGN.assign(expert=expert), tmp_path / f"foreign{suffix}")
    assert str(path) in refusal(path).message


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_not_of_its_suffix_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"foreign{suffix}"
    path.write_bytes(b"")
    assert "can't be read as a trace" in refusal(path).message


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace.parquet", make_rows())
    path.write_bytes(path.read_bytes()[:-20])
    assert "can't be read as a trace" in refusal(path).message


def test_a_parquet_file_with_damaged_pages_is_refused(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace.parquet", make_rows())
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(60) + data[64:])
    assert "can't be read as a trace" in refusal(path).message


@pytest.mark.parametrize("column", ["Wörter", "token"], ids=["in the header", "in a value"])
def test_a_csv_that_is_not_utf8_is_refused(column: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign.csv"
    path.write_bytes(FOREIGN.assign(**{column: "ö"}).to_csv(index=False).encode("latin-1"))
    assert "can't be read as a trace" in refusal(path).message


def test_a_path_without_a_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "trace.json").touch()
    assert "no such file or folder" in refusal(tmp_path / "missing.parquet").message
    assert "holds no Parquet files" in refusal(tmp_path / "empty").message
    assert "neither a .parquet nor a .csv file" in refusal(tmp_path / "trace.json").message


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    source = open_trace(write_foreign(FOREIGN, tmp_path / "foreign.parquet"))
    with pytest.raises(InputError, match="no column 'weight'"):
        list(source.iter_tables(["expert", "weight"]))
