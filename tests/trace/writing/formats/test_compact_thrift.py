"""Thrift's compact protocol: bytes of other writers, and trees of every type."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.trace.writing.formats.compact_thrift import (
    Fields,
    Items,
    Kind,
    Pairs,
    Value,
    read_struct,
    write_struct,
)

LEAVES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.BYTE: st.binary(min_size=1, max_size=1),
    Kind.I16: st.integers(-(2**15), 2**15 - 1),
    Kind.I32: st.integers(-(2**31), 2**31 - 1),
    Kind.I64: st.integers(-(2**63), 2**63 - 1),
    Kind.DOUBLE: st.binary(min_size=8, max_size=8),
    Kind.BINARY: st.binary(max_size=200),
    Kind.UUID: st.binary(min_size=16, max_size=16),
}
NESTED = (Kind.LIST, Kind.SET, Kind.MAP, Kind.STRUCT)


@st.composite
def contents(draw: st.DrawFn, kind: Kind, *, depth: int) -> Any:
    """The content of a value of a kind."""
    if kind in LEAVES:
        return draw(LEAVES[kind])
    if kind is Kind.STRUCT:
        return draw(structs(depth=depth))
    if kind is Kind.MAP:
        keys, values = draw(element_kinds(depth)), draw(element_kinds(depth))
        pair = st.tuples(contents(keys, depth=depth), contents(values, depth=depth))
        pairs = draw(st.lists(pair, max_size=2))
        return Pairs(keys, values, pairs) if pairs else Pairs(None, None, [])
    if kind in (Kind.TRUE, Kind.FALSE):
        return draw(st.booleans())
    element = draw(element_kinds(depth))
    # Lists from 15 elements on have another head.
    return Items(element, draw(st.lists(contents(element, depth=depth), max_size=17)))


def element_kinds(depth: int) -> st.SearchStrategy[Kind]:
    return st.sampled_from([*LEAVES, Kind.TRUE, *(NESTED if depth else ())])


@st.composite
def structs(draw: st.DrawFn, depth: int = 2) -> Fields:
    """A struct with fields in any order; far numbers are written in full."""
    numbers = draw(st.lists(st.integers(1, 40), unique=True, max_size=4))
    fields: Fields = {}
    for number in numbers:
        kind = draw(st.sampled_from([*LEAVES, *(NESTED if depth else ())]))
        fields[number] = Value(kind, draw(contents(kind, depth=depth - 1)))
        if draw(st.booleans()):
            is_true = draw(st.booleans())
            fields[number + 40] = Value(Kind.TRUE if is_true else Kind.FALSE, is_true)
    return fields


@settings(deadline=None)
@given(structs())
def test_a_tree_survives_being_written_and_read(fields: Fields) -> None:
    read = read_struct(write_struct(fields))
    assert read == fields
    assert list(read) == list(fields)


def test_bytes_are_those_that_the_protocol_prescribes() -> None:
    fields = {
        1: Value(Kind.I32, -3),
        2: Value(Kind.TRUE, content=True),
        20: Value(Kind.BINARY, b"ab"),
        21: Value(Kind.LIST, Items(Kind.I16, [1, 300])),
    }
    # Zigzag numbers; the step from 2 to 20 is too large for half a byte; 0 ends the struct.
    assert write_struct(fields).hex() == "1505110828026162192402d80400"
    assert read_struct(write_struct(fields)) == fields


def footer_of(table: pa.Table, **options: Any) -> bytes:
    written = pa.BufferOutputStream()
    pq.write_table(table, written, **options)
    content: bytes = written.getvalue().to_pybytes()
    length = int.from_bytes(content[-8:-4], "little")
    return content[-8 - length : -8]


@pytest.mark.parametrize("options", [{}, {"write_page_index": True}, {"compression": "none"}])
def test_a_footer_of_another_writer_is_written_as_the_same_bytes(options: dict[str, Any]) -> None:
    table = pa.table({"a": [1, 2, None], "b": ["x", "y", "z"], "c": [[1.5], [], None]})
    sorting = [pq.SortingColumn(0)]
    footer = footer_of(table, row_group_size=1, sorting_columns=sorting, **options)
    assert write_struct(read_struct(footer)) == footer


def test_no_struct_is_read_from_a_part_of_its_bytes() -> None:
    footer = footer_of(pa.table({"a": [1, 2]}))
    for length in range(len(footer)):
        with pytest.raises(ValueError, match="end within a struct"):
            read_struct(footer[:length])


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"\x1f\0", id="unknown type"),
        pytest.param(b"\x16" + b"\xff" * 11 + b"\0", id="endless number"),
    ],
)
def test_bytes_that_mean_nothing_are_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r"no type|too many bytes"):
        read_struct(damaged)
