"""Rows that no trace has are refused or noted, whatever their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool import read_trace
from moetool.errors import InputError
from moetool.trace.metadata import TraceMetadata
from tests.trace.examples import (
    make_rows,
    traces,
)
from tests.trace.reading.frames import (
    METADATA,
    ORDERS,
    as_lists,
    change,
    count,
    make_frame,
    order,
    repeat_rows,
    write,
)


@pytest.fixture(params=[3, 1_000_000], ids=["small tables", "one table"])
def rows_per_table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a few rows at a time, so that decisions are spread over tables."""
    monkeypatch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", request.param)


@pytest.mark.usefixtures("rows_per_table")
@pytest.mark.parametrize("columns", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize(
    "dropped", [[], ["rank"], ["weight"], ["rank", "weight", "stack"]], ids=str
)
def test_a_sound_trace_has_the_same_counts_in_any_order(
    columns: list[str] | None, dropped: list[str], tmp_path: Path
) -> None:
    frame = make_frame()
    expected = as_lists(count(write(tmp_path / "expected.parquet", frame, metadata=METADATA)))
    assert expected["decisions"] == [[4, 3, 5]] * 2
    assert expected["notes"] == ()
    shuffled = order(frame, columns).drop(columns=dropped)
    path = write(tmp_path / "trace.parquet", shuffled, metadata=METADATA)
    assert as_lists(count(path)) == expected
    assert len(read_trace(path)) == len(frame)


@settings(deadline=None, max_examples=40)
@given(rows=traces(), seed=st.integers(0, 1000))
def test_a_trace_in_no_order_is_counted_as_in_order(
    rows: pa.Table, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("trace")
    shuffled = rows.take(np.random.default_rng(seed).permutation(rows.num_rows))
    for number, table in enumerate((rows, shuffled)):
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=5)
    one, other = (as_lists(count(folder / f"{number}.parquet")) for number in range(2))
    assert one == other


def test_scattered_rows_are_read_some_prompts_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = make_frame((4, 3, 5, 1, 2))
    path = write(tmp_path / "trace.parquet", order(frame, None))
    expected = as_lists(count(path))
    monkeypatch.setattr("moetool.trace.reading.decision_scan._ROWS_AT_ONCE", 17)
    assert as_lists(count(path)) == expected


@pytest.mark.parametrize("metadata", [METADATA, None])
def test_decisions_of_different_numbers_of_rows_are_refused(
    metadata: TraceMetadata | None, tmp_path: Path
) -> None:
    frame = make_frame()
    short = frame[~((frame["rank"] == 1) & (frame["position"] == 0) & (frame["layer"] == 1))]
    path = write(tmp_path / "trace.parquet", short, metadata=metadata)
    with pytest.raises(
        InputError, match="3 of 12 decisions with fewer than 2 rows in layer 1"
    ) as caught:
        count(path)
    assert caught.value.facts == ("first: prompt 'p0', layer 1, position 0",)
    counts = count(path, validate=False)
    assert [layer.decisions.tolist() for layer in counts.layers] == [[4, 3, 5]] * 2


def test_experts_that_did_not_run_and_identity_experts_are_legal(tmp_path: Path) -> None:
    frame = make_frame()
    frame.loc[frame["rank"] == 1, ["expert", "weight"]] = [-1, 0]
    layers = tuple(
        replace(layer, num_experts=2, num_identity_experts=4) for layer in METADATA.layers
    )
    path = write(tmp_path / "trace.parquet", frame, metadata=replace(METADATA, layers=layers))
    counts = count(path)
    assert counts.notes == ()
    assert [layer.num_experts for layer in counts.layers] == [6, 6]


def repeat_all(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame])


def same_expert(frame: pd.DataFrame) -> pd.DataFrame:
    return change("expert", frame["expert"].iloc[8])(frame)


def swap_ranks(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.copy()
    frame.loc[frame.index[8:10], "weight"] = [0.1, 0.9]
    return frame


# Rows 8 and 9 are the decision of p0 in layer 1 at position 0.
PLACE = "prompt 'p0', layer 1, position 0"
FAULTS: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str, str]] = {
    "rows twice": (repeat_rows, "twice for one decision", "prompt 'p0', layer 0, position 3"),
    "all rows twice": (repeat_all, "twice for one decision", "prompt 'p0', layer 0, position 0"),
    "an expert twice": (same_expert, "has expert", PLACE),
    "a rank twice": (change("rank", 0), "has rank 0 twice for one decision", PLACE),
    "a rank left out": (change("rank", 2), "has rank 2 of a decision, but not its rank 1", PLACE),
    "a rank below zero": (
        change("rank", -1),
        "has rank -1, below 0, in row 9 (counted from 0)",
        PLACE,
    ),
    "a position below zero": (
        change("position", -5),
        "has position -5, below 0, in row 9 (counted from 0)",
        "prompt 'p0', layer 1, position -5",
    ),
    "a weight below zero": (change("weight", -0.5), "has a weight of -0.5 in row 9", PLACE),
    "a weight that is missing": (change("weight", None), "there is no 'weight' in row 9", ""),
    "an infinite weight": (change("weight", float("inf")), "has a weight of inf in row 9", PLACE),
    "a first choice of less weight": (swap_ranks, "larger weight than that of rank 0, 0.1", PLACE),
    "two domains": (change("domain", "y"), "has prompt 'p0' under two domains, 'x' and 'y'", ""),
    "an expert beyond all": (
        change("expert", 6),
        "has expert 6 in row 9 (counted from 0), but its metadata lists 6 experts in layer 1",
        PLACE,
    ),
    "three rows for top-2": (
        lambda frame: pd.concat(
            [frame.iloc[:9], frame.iloc[9:10].assign(rank=2, expert=-1, weight=0), frame.iloc[9:]]
        ),
        "has up to 3 rows for a decision in layer 1, but its metadata says top-2",
        PLACE,
    ),
    "first choices only": (
        lambda frame: frame[frame["rank"] == 0],
        "has at most 1 row for a decision in layer 0, but its metadata says top-2",
        "prompt 'p0', layer 0, position 0",
    ),
}
# The counts of the rows as they are; None where the types of the columns rule the rows out.
UNCOUNTABLE = (
    "a weight that is missing",
    "a rank below zero",
    "a position below zero",
    "an expert beyond all",
)


@pytest.mark.usefixtures("rows_per_table")
@pytest.mark.parametrize("read", [count, read_trace], ids=["count", "read_trace"])
@pytest.mark.parametrize("what", FAULTS)
def test_what_no_trace_holds_is_refused_with_its_place(
    what: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    spoil, message, fact = FAULTS[what]
    path = write(tmp_path / "trace.parquet", spoil(make_frame()), metadata=METADATA)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert fact in "\n".join(caught.value.facts)


@pytest.mark.parametrize("columns", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("dropped", [[], ["rank"], ["rank", "weight", "stack"]], ids=str)
@pytest.mark.parametrize("spoil", [repeat_rows, repeat_all, same_expert])
def test_rows_twice_are_found_in_any_order(
    spoil: Callable[[pd.DataFrame], pd.DataFrame],
    columns: list[str] | None,
    dropped: list[str],
    tmp_path: Path,
) -> None:
    frame = order(spoil(make_frame()), columns).drop(columns=dropped)
    with pytest.raises(InputError, match="twice for one decision"):
        count(write(tmp_path / "trace.parquet", frame))


@pytest.mark.parametrize("what", [what for what in FAULTS if what not in UNCOUNTABLE])
def test_without_checks_the_rows_are_counted_as_they_are(what: str, tmp_path: Path) -> None:
    frame = FAULTS[what][0](make_frame())
    path = write(tmp_path / "trace.parquet", frame, metadata=METADATA)
    if "not a number" not in what:
        assert len(read_trace(path, validate=False)) == len(frame)
        counts = count(path, validate=False)
        assert (
            sum(layer.assignments.sum() for layer in counts.layers) == (frame["expert"] >= 0).sum()
        )


def test_a_weight_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    table = make_rows()
    weight = table.column("weight").to_numpy().copy()
    weight[9] = np.nan
    table = table.set_column(table.column_names.index("weight"), "weight", pa.array(weight))
    pq.write_table(table, tmp_path / "trace.parquet")
    with pytest.raises(InputError, match="has a weight of nan"):
        count(tmp_path / "trace.parquet")


def test_more_rows_than_are_compared_one_by_one(tmp_path: Path) -> None:
    """A decision of many rows is checked by sorting."""
    experts = list(range(300))
    frame = pd.DataFrame({"prompt_id": "a", "position": 0, "layer": 0, "expert": experts})
    assert count(write(tmp_path / "sound.parquet", frame)).layers[0].top_k == 300
    frame.loc[299, "expert"] = 17
    with pytest.raises(InputError, match="has expert 17 twice for one decision"):
        count(write(tmp_path / "trace.parquet", frame))
