"""Rows that no trace has are refused or noted, whatever their order."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from moetool.trace.reading.counts import ExpertCounts, count_experts
from moetool.trace.reading.reader import open_trace
from moetool.trace.writing.partial import partial_folder
from tests.trace.examples import (
    NUM_EXPERTS,
    break_off,
    describe_layers,
    make_rows,
    traces,
    write_trace,
)

KEY = ["prompt_id", "stack", "layer", "position", "rank"]
# Every order in which a tool may write rows, and random order.
ORDERS: dict[str, list[str] | None] = {
    "as moetool": KEY,
    "by token": ["prompt_id", "position", "stack", "layer", "rank"],
    "by layer": ["layer", "prompt_id", "position", "rank"],
    "by rank": ["rank", "prompt_id", "layer", "position"],
    "by expert": ["expert", "layer", "prompt_id", "position"],
    "by position": ["position", "prompt_id", "layer", "rank"],
    "in none": None,
}
METADATA = TraceMetadata(complete=True, layers=describe_layers())


def make_frame(lengths: Sequence[int] = (4, 3, 5), *, seed: int = 0) -> pd.DataFrame:
    """Return a sound trace of three prompts in two domains, two layers, top-2."""
    names = [f"p{number}" for number in range(len(lengths))]
    domains = ["xy"[number % 2] for number in range(len(lengths))]
    frame: pd.DataFrame = make_rows(
        lengths, seed=seed, prompt_ids=names, domains=domains
    ).to_pandas()
    return frame


def order(frame: pd.DataFrame, columns: list[str] | None) -> pd.DataFrame:
    if columns is None:
        return frame.sample(frac=1, random_state=0)
    return frame.sort_values(columns, kind="stable")


def write(
    path: Path, frame: pd.DataFrame, *, metadata: TraceMetadata | None = None, rows: int = 7
) -> Path:
    """Write a frame as it is, a few rows at a time, with metadata if given."""
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    if metadata is not None:
        table = table.replace_schema_metadata({"moetool": metadata.to_json()})
    pq.write_table(table, path, row_group_size=rows)
    return path


@pytest.fixture(params=[3, 1_000_000], ids=["small tables", "one table"])
def rows_per_table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a few rows at a time, so that decisions are spread over tables."""
    monkeypatch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", request.param)


def count(path: Path, **options: Any) -> ExpertCounts:
    return count_experts(open_trace(path), by="prompt_id", **options)


def as_lists(counts: ExpertCounts) -> dict[str, Any]:
    """Return counts in a form that does not depend on the order of their groups."""
    # Not with numpy, which ignores NULs at the end of words.
    index = sorted(range(len(counts.groups)), key=counts.groups.__getitem__)
    return {
        "groups": [(counts.groups[i], counts.domains[i]) for i in index],
        "layers": [
            (layer.stack, layer.layer, layer.top_k, layer.assignments[index].tolist())
            for layer in counts.layers
        ],
        "decisions": [layer.decisions[index].tolist() for layer in counts.layers],
        "notes": counts.notes,
    }


# Sound traces pass, in any order and with any columns left out


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


def test_a_varying_number_of_experts_is_legal_and_noted(tmp_path: Path) -> None:
    frame = make_frame()
    short = frame[~((frame["rank"] == 1) & (frame["position"] == 0) & (frame["layer"] == 1))]
    counts = count(write(tmp_path / "trace.parquet", short, metadata=METADATA))
    assert [layer.decisions.tolist() for layer in counts.layers] == [[4, 3, 5]] * 2
    (note,) = counts.notes
    assert "3 of 24 decisions have fewer rows than their layer's top-k" in note
    assert "prompt 'p0', layer 1, position 0" in note


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


# Others are refused with the place


def repeat_rows(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.iloc[6:8]])


def repeat_all(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame])


def change(column: str, value: Any, row: int = 9) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def changed(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[column].tolist()
        values[row] = value
        return frame.assign(**{column: values})

    return changed


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
    "a rank below zero": (change("rank", -1), "can't be read as a trace", "rank -1, below 0"),
    "a position below zero": (change("position", -5), "can't be read", "position -5, below 0"),
    "a weight below zero": (change("weight", -0.5), "has a weight of -0.5", PLACE),
    "a weight that is missing": (change("weight", None), "can't be read", "a row without 'weight'"),
    "an infinite weight": (change("weight", float("inf")), "has a weight of inf", PLACE),
    "a first choice of less weight": (swap_ranks, "larger weight than that of rank 0, 0.1", PLACE),
    "two domains": (change("domain", "y"), "has prompt 'p0' under two domains, 'x' and 'y'", ""),
    "an expert beyond all": (change("expert", 6), "has expert 6 in layer 1", ""),
    "three rows for top-2": (
        lambda frame: pd.concat(
            [frame.iloc[:9], frame.iloc[9:10].assign(rank=2, expert=-1, weight=0), frame.iloc[9:]]
        ),
        "has up to 3 rows for a decision in layer 1, but its metadata says top-2",
        PLACE,
    ),
    "first choices only": (
        lambda frame: frame[frame["rank"] == 0],
        "has at most 1 rows for a decision in layer 0, but its metadata says top-2",
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


# Folders of parts


def write_parts(folder: Path, *parts: tuple[pd.DataFrame, TraceMetadata | None]) -> Path:
    folder.mkdir()
    for number, (frame, metadata) in enumerate(parts):
        write(folder / f"rank-{number}.parquet", frame, metadata=metadata)
    return folder


def rename(frame: pd.DataFrame, suffix: str) -> pd.DataFrame:
    return frame.assign(prompt_id=frame["prompt_id"].astype(str) + suffix)


def test_a_part_twice_is_refused_with_both_names(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "parts", *[(make_frame(), METADATA)] * 2)
    with pytest.raises(InputError, match=r"rank-1.parquet' has expert . twice") as caught:
        count(folder)
    assert any(fact.endswith("rank-0.parquet'") for fact in caught.value.facts)
    assert "Remove the repetition" in caught.value.hint


@pytest.mark.parametrize(
    ("one", "other", "seen"),
    [
        ({"model": "a"}, {"model": "b"}, "model a and b"),
        ({"revision": "1"}, {"revision": "2"}, "revision 1 and 2"),
        ({"quantization": None}, {"quantization": "nf4"}, "quantization None and nf4"),
        (
            {},
            {"layers": describe_layers(top_k=(2, 1))},
            "top_k 2 and 1 in layer 1 of decoder",
        ),
    ],
    ids=["model", "revision", "quantization", "top-k"],
)
def test_parts_of_two_models_are_refused(
    one: dict[str, Any], other: dict[str, Any], seen: str, tmp_path: Path
) -> None:
    folder = write_parts(
        tmp_path / "parts",
        (make_frame(), replace(METADATA, **one)),
        (rename(make_frame(), "'"), replace(METADATA, **other)),
    )
    with pytest.raises(InputError, match="come from different models") as caught:
        open_trace(folder)
    assert "rank-0.parquet" in caught.value.message
    assert "rank-1.parquet" in caught.value.message
    assert caught.value.facts == (f"seen: {seen}",)


def test_parts_with_different_layers_of_a_model_are_one_trace(tmp_path: Path) -> None:
    """The case in which each process holds some of the layers."""
    frame = make_frame()
    parts = [
        (frame[frame["layer"] == number], replace(METADATA, layers=METADATA.layers[number:][:1]))
        for number in range(2)
    ]
    counts = count(write_parts(tmp_path / "parts", *parts))
    assert counts.notes == ()
    assert [layer.layer for layer in counts.layers] == [0, 1]


def test_parts_that_may_have_routed_differently_are_noted(tmp_path: Path) -> None:
    folder = write_parts(
        tmp_path / "parts",
        (make_frame(), replace(METADATA, dtype="bfloat16")),
        (rename(make_frame(), "'"), replace(METADATA, dtype="float32")),
    )
    assert count(folder).notes == ("the parts differ in dtype: bfloat16, float32",)
    assert read_trace(folder).attrs["notes"] == ["the parts differ in dtype: bfloat16, float32"]


def test_a_part_without_metadata_is_noted(tmp_path: Path) -> None:
    folder = write_parts(
        tmp_path / "parts", (make_frame(), METADATA), (rename(make_frame(), "'"), None)
    )
    assert "rank-1.parquet is without metadata" in " ".join(count(folder).notes)


# Sound traces with notes


def test_an_unfinished_trace_is_noted(tmp_path: Path) -> None:
    target = tmp_path / "trace.parquet"
    with pytest.raises(KeyboardInterrupt):
        break_off(target, make_rows(), metadata=METADATA)
    notes = count(partial_folder(target)).notes
    assert notes == ("part-00000.parquet is unfinished: its run has not ended",)


def test_an_inexact_trace_is_noted_with_its_reason(tmp_path: Path) -> None:
    metadata = replace(METADATA, exact=False, notes=("Not exact: experts drop tokens.", "Other."))
    path = write_trace(tmp_path / "trace.parquet", make_rows(), metadata=metadata)
    assert count(path).notes == ("trace.parquet is not exact: experts drop tokens.",)


def test_rows_that_were_removed_are_noted(tmp_path: Path) -> None:
    frame = make_frame()
    metadata = replace(METADATA, num_decisions=24)
    assert count(write(tmp_path / "whole.parquet", frame, metadata=metadata)).notes == ()
    part = frame[(frame["layer"] == 0) | (frame["prompt_id"] != "p1")]
    removed, uneven = sorted(
        count(write(tmp_path / "part.parquet", part, metadata=metadata)).notes
    )[::-1]
    assert removed.startswith("the metadata counts 24 decisions, but the rows hold 21")
    assert "layer 1 9, layer 0 12" in uneven


def test_a_layer_without_rows_is_noted(tmp_path: Path) -> None:
    frame = make_frame()
    path = write(tmp_path / "trace.parquet", frame[frame["layer"] == 1], metadata=METADATA)
    assert count(path).notes == ("the metadata lists layer 0, for which there are no rows",)


def test_a_layer_in_which_no_expert_ran_is_noted(tmp_path: Path) -> None:
    frame = make_frame()
    frame.loc[frame["layer"] == 1, ["expert", "weight"]] = [-1, 0]
    path = write(tmp_path / "trace.parquet", frame, metadata=METADATA)
    assert count(path).notes == ("no expert ran for any of 12 decisions in layer 1",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 4}, "--top-k says 4, but the metadata .* says 2 in layer 0"),
        ({"num_experts": 9}, "--num-experts says 9, but the metadata .* says 6 in layer 0"),
    ],
)
def test_options_that_contradict_the_metadata_are_refused(
    options: dict[str, int], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "trace.parquet", make_frame(), metadata=METADATA)
    with pytest.raises(InputError, match=message):
        count(path, **options)
    assert count(path, top_k=2, num_experts=NUM_EXPERTS).notes == ()


def test_decisions_are_counted_one_by_one_whatever_top_k_says(tmp_path: Path) -> None:
    """Rows divided by top-k would halve the tokens of a trace without metadata."""
    path = write(tmp_path / "trace.parquet", make_frame())
    counts = count(path, top_k=4, num_experts=8)
    assert [layer.decisions.tolist() for layer in counts.layers] == [[4, 3, 5]] * 2
    assert "24 of 24 decisions have fewer rows" in counts.notes[0]


def test_a_message_cannot_steer_a_terminal(tmp_path: Path) -> None:
    frame = rename(make_frame(), "\x1b[31m\n\u202e")
    for spoil in (repeat_rows, change("weight", -1.0)):
        with pytest.raises(InputError) as caught:
            count(write(tmp_path / "trace.parquet", spoil(frame)))
        for text in (caught.value.message, *caught.value.facts):
            assert text.isprintable()


def test_metadata_survives_pyarrow(tmp_path: Path) -> None:
    """The other tests write traces with pyarrow's schema, not with moetool's writer."""
    path = write(tmp_path / "trace.parquet", make_frame(), metadata=METADATA)
    assert open_trace(path).metadata == METADATA
    assert json.loads(pq.read_metadata(path).metadata[b"moetool"])["complete"]
