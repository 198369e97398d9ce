"""The metadata of a trace is where pandas and pyarrow look, and frames are read as traces."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool import read_trace
from moetool.errors import InputError, UsageError
from moetool.trace.metadata import FOOTER_KEY, TraceMetadata, parse_metadata
from moetool.trace.reading.counts import count_experts
from moetool.trace.reading.frames import open_frame
from moetool.trace.reading.reader import open_trace
from moetool.trace.schema import TRACE_SCHEMA
from tests.trace.examples import NUM_EXPERTS, break_off, describe_layers, make_rows, write_trace

METADATA = TraceMetadata(
    complete=True,
    model="org/größe",
    layers=describe_layers(),
    notes=('"quoted", é\n',),
    num_decisions=10,
)
PLAIN = METADATA.to_dict()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "trace.parquet", make_rows(), metadata=METADATA)


def test_pandas_finds_the_metadata_in_attrs(trace: Path) -> None:
    attrs = pd.read_parquet(trace).attrs
    assert attrs == {"moetool": PLAIN}
    assert attrs["moetool"]["layers"][0]["num_experts"] == NUM_EXPERTS


def test_the_metadata_is_in_the_schema_and_in_the_footer(trace: Path) -> None:
    schema = pq.read_schema(trace).metadata
    footer = pq.read_metadata(trace).metadata
    assert schema[FOOTER_KEY] == footer[FOOTER_KEY]
    assert parse_metadata(schema[FOOTER_KEY], source="schema") == METADATA


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_read_trace_puts_the_metadata_into_attrs(suffix: str, tmp_path: Path) -> None:
    path = write_trace(tmp_path / f"trace{suffix}", make_rows(), metadata=METADATA)
    frame = read_trace(path)
    assert frame.attrs == {"moetool": PLAIN, "notes": []}
    assert type(frame.attrs["moetool"]) is dict
    assert json.loads(json.dumps(frame.attrs)) == frame.attrs


def test_metadata_with_half_a_character_is_in_attrs_too(tmp_path: Path) -> None:
    metadata = replace(METADATA, model="caf\udce9")
    path = write_trace(tmp_path / "trace.parquet", make_rows(), metadata=metadata)
    assert read_trace(path).attrs["moetool"]["model"] == "caf\udce9"
    assert pd.read_parquet(path).attrs["moetool"]["model"] == "caf\udce9"


def test_a_trace_without_metadata_has_none_in_attrs(tmp_path: Path) -> None:
    path = tmp_path / "foreign.csv"
    make_rows().to_pandas().to_csv(path, index=False)
    assert read_trace(path).attrs == {"notes": []}


def test_an_old_trace_with_metadata_in_its_footer_alone_reads_the_same(
    trace: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.parquet"
    with pq.ParquetWriter(old, TRACE_SCHEMA) as writer:
        writer.write_table(make_rows())
        writer.add_key_value_metadata({FOOTER_KEY: METADATA.to_json().encode()})
    assert pq.read_schema(old).metadata is None
    frame = read_trace(old)
    pd.testing.assert_frame_equal(frame, read_trace(trace))
    assert frame.attrs == read_trace(trace).attrs


def test_attrs_survive_what_is_done_to_a_frame(trace: Path) -> None:
    frame = read_trace(trace)
    for result in (
        frame.copy(),
        frame[frame["layer"] == 1],
        frame.query("expert == 0"),
        pd.concat([frame, read_trace(trace)]),
        frame.assign(half=0.5),
    ):
        assert result.attrs == frame.attrs
    copy = frame.copy()
    copy.attrs["moetool"]["model"] = "other"
    assert frame.attrs["moetool"]["model"] == METADATA.model
    both = pd.concat([frame, copy])
    assert len(both) == 2 * len(frame)
    assert both.attrs == {}


def test_parts_of_an_unfinished_trace_show_pandas_that_it_is_unfinished(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        break_off(tmp_path / "trace.parquet", make_rows(), metadata=METADATA)
    (part,) = (tmp_path / "trace.parquet.partial").glob("*.parquet")
    assert pd.read_parquet(part).attrs["moetool"]["complete"] is False


@pytest.mark.parametrize("validate", [True, False])
def test_a_frame_is_counted_as_its_file_is(trace: Path, validate: bool) -> None:
    stored = count_experts(open_trace(trace), by="prompt_id", validate=validate)
    for frame in (read_trace(trace), pd.read_parquet(trace)):
        counted = count_experts(open_frame(frame), by="prompt_id", validate=validate)
        assert counted.groups == stored.groups
        assert counted.notes == stored.notes == ()
        for mine, other in zip(counted.layers, stored.layers, strict=True):
            assert mine.num_experts == other.num_experts == NUM_EXPERTS
            assert mine.assignments.tolist() == other.assignments.tolist()
            assert mine.decisions.tolist() == other.decisions.tolist()


def test_categories_that_no_row_has_are_not_counted(trace: Path) -> None:
    frame = read_trace(trace)
    counts = count_experts(open_frame(frame[frame["prompt_id"] == "p1"]), by="prompt_id")
    assert counts.groups == ("p1",)


def test_a_frame_of_another_tool_needs_four_columns_of_any_type() -> None:
    frame = pd.DataFrame(
        {
            "expert": [1.0, 2.0, 0.0],
            "layer": [0, 0, 0],
            "position": pd.array([0, 1, 0], dtype="Int64"),
            "prompt_id": pd.Categorical([7, 7, 8]),
            "extra": [object(), None, 3],
        },
        index=[5, 5, 5],
    )
    counts = count_experts(open_frame(frame), by="prompt_id")
    assert counts.groups == ("7", "8")
    assert counts.layers[0].assignments.tolist() == [[0, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="expert"), "The frame is not a trace: it lacks"),
        (
            lambda frame: frame.assign(expert="x"),
            "'frame' can't be read as a trace: 'expert' is 'x'",
        ),
        (
            lambda frame: frame.assign(expert=0.5),
            "'frame' can't be read as a trace: 'expert' is 0.5",
        ),
        (
            lambda frame: frame.assign(expert=None),
            "'frame' can't be read as a trace: the column 'expert' holds no value",
        ),
        (
            lambda frame: frame.assign(prompt_id=[object()] * len(frame)),
            "The frame's column 'prompt_id' can't be read",
        ),
        (lambda frame: pd.concat([frame, frame]), "'frame' has expert"),
        (
            lambda frame: pd.concat([frame, frame[["layer"]]], axis=1),
            "The frame has the column 'layer' more than once.",
        ),
        (lambda frame: frame.assign(weight=-1.0), "'frame' has a weight of -1.0 in row 0"),
        (lambda frame: frame[frame["rank"] == 0], "'frame' has at most 1 row "),
    ],
)
def test_a_frame_that_is_not_a_trace_is_refused(change: object, message: str, trace: Path) -> None:
    assert callable(change)
    with pytest.raises(InputError) as caught:
        count_experts(open_frame(change(read_trace(trace))), by="prompt_id")
    assert caught.value.message.startswith(message)


def test_without_attrs_the_shape_is_inferred_from_the_rows_that_are_left(trace: Path) -> None:
    frame = read_trace(trace)
    first = frame[frame["rank"] == 0]
    with pytest.raises(InputError) as caught:
        count_experts(open_frame(first), by="prompt_id")
    assert caught.value.hint.startswith("Clear frame.attrs")
    first.attrs.clear()
    assert count_experts(open_frame(first), by="prompt_id").layers[0].top_k == 1


@pytest.mark.parametrize("value", [{"schema": 3}, {1: object()}, "text"])
def test_attrs_that_are_not_metadata_are_refused(value: object, trace: Path) -> None:
    frame = read_trace(trace)
    frame.attrs["moetool"] = value
    with pytest.raises(InputError, match="metadata"):
        open_frame(frame)


def test_another_column_can_hold_the_domains(trace: Path) -> None:
    frame = read_trace(trace).assign(language=lambda frame: "l" + frame["prompt_id"].astype(str))
    counts = count_experts(open_frame(frame, by="language"), by="domain")
    assert counts.groups == ("lp0", "lp1")
    with pytest.raises(UsageError, match="no column 'lang' to group by"):
        open_frame(frame, by="lang")


def test_the_rows_of_a_frame_are_those_of_its_table(trace: Path) -> None:
    rows = pa.concat_tables(open_frame(read_trace(trace)).iter_tables(TRACE_SCHEMA.names))
    assert rows.to_pydict() == make_rows().to_pydict()
