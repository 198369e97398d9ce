"""Damaged and made-up traces are either read, or refused in a short printable sentence."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moetool import read_trace
from moetool.errors import InputError
from moetool.trace.companions import sidecar_path
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading import counts as counts_module
from moetool.trace.reading.counts import GroupColumn, count_experts
from moetool.trace.reading.reader import open_trace
from moetool.trace.schema import TRACE_SCHEMA
from tests.trace.examples import describe_layers, make_rows

METADATA = TraceMetadata(complete=True, layers=describe_layers(), num_decisions=10)
ROWS = make_rows(domains=["x", "y"])
ODD_NUMBERS = (None, -1, 0, 7, 2**15, 2**31, 2**63 - 1, -(2**63), 0.5, 1e300, float("nan"))
ODD_WORDS = (None, "", "x", "\x1b[2J", "\u202e", "1.0", "a" * 100_000)
ODD_KINDS = (
    *(pa.bool_(), pa.uint64(), pa.float16(), pa.float64(), pa.large_string(), pa.string_view()),
    *(pa.date32(), pa.duration("s"), pa.decimal128(22, 2), pa.null(), pa.binary()),
    *(pa.list_(pa.int32()), pa.struct([("a", pa.int32())]), pa.dictionary(pa.int8(), pa.string())),
)


def check(path: Path) -> None:
    """Read a trace in every way; each way succeeds or ends in a readable refusal."""
    for read in (
        lambda: count_experts(open_trace(path), by="prompt_id"),
        lambda: count_experts(open_trace(path), by="domain", validate=False),
        lambda: read_trace(path),
    ):
        try:
            read()
        except InputError as error:
            for text in (error.message, error.hint, *error.facts):
                assert text.isprintable()
                assert len(text) < 700


def write(path: Path, table: pa.Table, metadata: bytes | None) -> Path:
    if path.suffix == ".csv":
        table.to_pandas().to_csv(path, index=False)
        if metadata is not None:
            sidecar_path(path).write_bytes(metadata)
    else:
        footer = None if metadata is None else {"moetool": metadata}
        pq.write_table(table.replace_schema_metadata(footer), path, row_group_size=7)
    return path


many = settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
suffixes = st.sampled_from([".parquet", ".csv"])
odd_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@many
@given(suffix=suffixes, data=st.data())
def test_a_file_with_changed_bytes(suffix: str, data: st.DataObject, tmp_path: Path) -> None:
    path = write(tmp_path / f"trace{suffix}", ROWS, METADATA.to_json().encode())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        # The end of a Parquet file describes the rest.
        place = data.draw(
            st.integers(0, len(content) - 1) | st.integers(len(content) * 3 // 4, len(content) - 1)
        )
        content[place : place + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    path.write_bytes(content)
    check(path)


@many
@given(place=st.integers(0, 20_000), byte=st.integers(0, 255))
# pyarrow 26 ends the process where it is asked for columns or statistics of these.
@example(place=1268, byte=16)
@example(place=1690, byte=66)
@example(place=1943, byte=67)
@example(place=2484, byte=52)
def test_a_footer_with_a_changed_byte(place: int, byte: int, tmp_path: Path) -> None:
    path = write(tmp_path / "trace.parquet", ROWS, METADATA.to_json().encode())
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    content[len(content) - 8 - length + place % length] = byte
    path.write_bytes(content)
    check(path)


@many
@given(
    suffix=suffixes, field=st.sampled_from(sorted(json.loads(METADATA.to_json()))), value=odd_json
)
def test_metadata_with_a_changed_field(suffix: str, field: str, value: Any, tmp_path: Path) -> None:
    text = json.dumps(json.loads(METADATA.to_json()) | {field: value})
    check(write(tmp_path / f"trace{suffix}", ROWS, text.encode()))


@many
@given(
    suffix=suffixes,
    field=st.sampled_from(sorted(json.loads(METADATA.to_json())["layers"][0])),
    value=odd_json,
)
def test_metadata_with_a_changed_layer(suffix: str, field: str, value: Any, tmp_path: Path) -> None:
    raw = json.loads(METADATA.to_json())
    raw["layers"][1][field] = value
    check(write(tmp_path / f"trace{suffix}", ROWS, json.dumps(raw).encode()))


@many
@given(
    suffix=suffixes,
    name=st.sampled_from(TRACE_SCHEMA.names),
    values=st.lists(st.sampled_from([*ODD_NUMBERS, *ODD_WORDS]), min_size=1, max_size=3),
    kind=st.none() | st.sampled_from(ODD_KINDS),
    with_metadata=st.booleans(),
)
def test_a_column_of_odd_values(
    suffix: str,
    name: str,
    values: list[Any],
    kind: pa.DataType | None,
    with_metadata: bool,
    tmp_path: Path,
) -> None:
    old = ROWS.column(name).to_pylist()
    try:
        column = pa.array(
            [*values, *old[len(values) :]] if kind is None else values * len(old), kind
        )
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        column = pa.array([str(value) for value in values] * len(old))
    table = ROWS.set_column(TRACE_SCHEMA.names.index(name), name, column.slice(0, len(old)))
    check(
        write(
            tmp_path / f"trace{suffix}",
            table,
            METADATA.to_json().encode() if with_metadata else None,
        )
    )


@pytest.mark.parametrize(
    "words",
    [["x", "x", "y"], [str(n) for n in range(100_000)]],
    ids=["twice", "many"],
)
def test_a_dictionary_that_is_odd_is_read_by_its_words(words: list[str], tmp_path: Path) -> None:
    index = pa.array([n % 3 for n in range(ROWS.num_rows)], pa.int32())
    column = pa.DictionaryArray.from_arrays(index, pa.array(words))
    table = ROWS.set_column(1, "domain", column).drop_columns(["prompt_id"])
    table = table.append_column("prompt_id", pa.array([str(n) for n in range(ROWS.num_rows)]))
    path = write(tmp_path / "trace.parquet", table.drop_columns(["rank", "weight"]), None)
    counts = count_experts(open_trace(path), by="domain")
    expected = column.to_pylist()
    assert {
        group: sum(int(layer.assignments[number].sum()) for layer in counts.layers)
        for number, group in enumerate(counts.groups)
    } == {word: expected.count(word) for word in expected}


def test_a_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    raw = pa.array([b"\xff\xfe"] * ROWS.num_rows, pa.binary()).view(pa.string())
    path = write(tmp_path / "trace.parquet", ROWS.set_column(0, "prompt_id", raw), None)
    with pytest.raises(InputError, match="can't be read as a trace"):
        count_experts(open_trace(path), by="prompt_id")


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = ROWS.append_column("expert", ROWS.column("expert"))
    with pytest.raises(InputError, match="has the column 'expert' more than once"):
        open_trace(write(tmp_path / "trace.parquet", table, None))
    names = io.StringIO(ROWS.to_pandas().to_csv(index=False))
    text = names.read().replace("weight", "expert")
    (tmp_path / "trace.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="has the column 'expert' more than once"):
        open_trace(tmp_path / "trace.csv")


def test_layers_and_experts_far_apart_take_no_memory_in_between(tmp_path: Path) -> None:
    """Tables over all stacks, layers, prompts and experts would take petabytes."""
    number = 2000
    table = pa.table(
        {
            "prompt_id": [str(n) for n in range(number)],
            "position": [0] * number,
            "stack": [f"stack {n % 30}" for n in range(number)],
            "layer": [(n % 60) * 500 for n in range(number)],
            "expert": [n % 8 for n in range(number)],
        }
    )
    counts = count_experts(open_trace(write(tmp_path / "trace.parquet", table, None)), by="domain")
    assert sum(layer.assignments.sum() for layer in counts.layers) == number


@pytest.mark.parametrize("by", ["prompt_id", "domain"])
def test_prompts_that_each_have_their_own_layer_take_no_memory_for_the_others(
    by: GroupColumn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 10 prompts and 32,768 columns, three layers fit into these cells.
    monkeypatch.setattr(counts_module, "_MOST_CELLS_OF_FEW_ROWS", 2**20)
    number = list(range(10))
    words = pa.array([str(each) for each in number])
    table = pa.table(
        {
            "prompt_id": words,
            "domain": words,
            "position": number,
            "layer": number,
            "expert": [32_766] * 10,
        }
    )
    path = write(tmp_path / "a.parquet", table, None)
    with pytest.raises(InputError, match=r"Counting 10 rows takes more than 10\.0 MiB of memory"):
        count_experts(open_trace(path), by=by)


def test_prompts_of_a_token_each_take_no_memory_for_experts_that_no_model_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts_module, "_MOST_CELLS_OF_FEW_ROWS", 0)
    table = make_rows((1,) * 50)
    experts = pa.array([32_766] * table.num_rows, pa.int16())
    table = table.set_column(table.column_names.index("expert"), "expert", experts)
    path = write(tmp_path / "a.parquet", table, None)
    with pytest.raises(InputError, match=r"and 32,767 experts, in \d or more layers"):
        count_experts(open_trace(path), by="prompt_id", validate=False)


def test_a_trace_whose_prompts_have_all_layers_is_counted_however_few_rows_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts_module, "_MOST_CELLS_OF_FEW_ROWS", 0)
    path = write(tmp_path / "a.parquet", make_rows((1,) * 50), None)
    counted = count_experts(open_trace(path), by="prompt_id")
    assert [int(layer.assignments.sum()) for layer in counted.layers] == [100, 100]


def test_more_layers_than_any_model_has_are_refused(tmp_path: Path) -> None:
    number = 5000
    table = pa.table(
        {
            "prompt_id": [str(n) for n in range(number)],
            "position": [0] * number,
            "layer": list(range(number)),
            "expert": [0] * number,
        }
    )
    with pytest.raises(InputError, match="more than 4,096 layers"):
        count_experts(open_trace(write(tmp_path / "trace.parquet", table, None)), by="domain")
