"""Windows hold what a plain reading of the rows gives, however a trace is written."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.trace.decisions import PHASES
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.reader import open_trace
from moetool.trace.rows import assignment_rows
from moetool.trace.windows import prompt_order, reader, window_rows
from moetool.trace.windows.reader import DecisionReader
from tests.trace.examples import describe_layers, make_layers, make_tokens
from tests.trace.reading.frames import ORDERS, order

Row = dict[str, Any]
Key = tuple[str, str, int, int]


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """A trace of an encoder and a decoder, whose layers have different top-k, in any order."""
    parts = []
    prompts = draw(st.integers(1, 5))
    for stack in draw(st.sampled_from([["decoder"], ["decoder", "encoder"]])):
        lengths = draw(st.lists(st.integers(1, 6), min_size=prompts, max_size=prompts))
        top_k = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        layers = make_layers(sum(lengths), top_k=top_k, seed=draw(st.integers(0, 2**16)))
        tokens = make_tokens(
            lengths,
            domains=["xyz"[index % 3] for index in range(prompts)],
            phase=draw(st.lists(st.integers(0, 1), min_size=sum(lengths), max_size=sum(lengths))),
        )
        rows = assignment_rows(tokens, [replace(layer, stack=stack) for layer in layers])
        parts.append(pd.DataFrame(rows.to_pydict()))
    frame = pd.concat(parts, ignore_index=True)
    if len(frame) > 1 and draw(st.booleans()):
        frame = frame.drop(index=draw(st.integers(0, len(frame) - 1)))
        frame["rank"] = frame.groupby(["prompt_id", "stack", "layer", "position"]).cumcount()
    columns = draw(st.sampled_from([["prompt_id"], *ORDERS.values()]))
    frame = order(frame, columns)
    dropped = draw(st.sets(st.sampled_from(["rank", "weight", "phase", "token", "domain"])))
    return frame.drop(columns=sorted(dropped)).reset_index(drop=True)


def read_plainly(frame: pd.DataFrame) -> dict[Key, list[Row]]:
    """Return the rows of each decision, in order of rank if there are ranks."""
    found: dict[Key, list[Row]] = {}
    records: list[Any] = frame.to_dict("records")
    for row in records:
        key = (row["prompt_id"], row["stack"], row["layer"], row["position"])
        found.setdefault(key, []).append(row)
    for rows in found.values():
        rows.sort(key=lambda row: row.get("rank", 0))
    return found


def write(folder: Path, frame: pd.DataFrame, *, cuts: list[int]) -> None:
    bounds = sorted({0, len(frame), *(cut % len(frame) for cut in cuts)})
    for number, (start, end) in enumerate(pairwise(bounds)):
        table = pa.Table.from_pandas(frame.iloc[start:end], preserve_index=False)
        pq.write_table(table.replace_schema_metadata(None), folder / f"{number}.parquet")


@settings(deadline=None, max_examples=60)
@given(
    frame=frames(),
    cuts=st.lists(st.integers(0, 1000), max_size=3),
    rows_per_table=st.sampled_from([3, 20, 1000]),
    rows_per_window=st.sampled_from([1, 20, 1000]),
    rows_at_once=st.sampled_from([5, 50, 1000]),
    long_run=st.sampled_from([0, 48]),
)
def test_windows_hold_the_decisions_of_a_plain_reading(
    frame: pd.DataFrame,
    cuts: list[int],
    rows_per_table: int,
    rows_per_window: int,
    rows_at_once: int,
    long_run: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("trace")
    write(folder, frame, cuts=cuts)
    expected = read_plainly(frame)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", rows_per_table)
        patch.setattr(reader, "_ROWS_PER_WINDOW", rows_per_window)
        patch.setattr(prompt_order, "_ROWS_AT_ONCE", rows_at_once)
        patch.setattr(window_rows, "_LONG_RUN", long_run)
        rows = DecisionReader(
            open_trace(folder), columns=["weight", "token_id", "phase", "token"], is_checked=False
        )
        for window in rows:
            take_window(window, rows, expected)
    assert not expected


def take_window(window: Any, rows: DecisionReader, expected: dict[Key, list[Row]]) -> None:
    """Compare a window with what is expected, and remove its prompts from that."""
    prompts = {rows.prompts[index] for index in window.prompt}
    for (stack, layer), choices in window.layers.items():
        assert (np.diff(choices.token) > 0).all()
        for number, token in enumerate(choices.token):
            prompt = rows.prompts[window.prompt[token]]
            mine = expected.pop((prompt, stack, layer, int(window.position[token])))
            ran = choices.experts[number] >= 0
            assert choices.experts[number][ran].tolist() == [row["expert"] for row in mine]
            if "weight" in mine[0]:
                assert choices.weights[number][ran].tolist() == pytest.approx(
                    [row["weight"] for row in mine]
                )
            else:
                assert choices.weights is None
            assert window.token_id[token] == mine[0]["token_id"]
            assert rows.groups[window.group[token]] == mine[0].get("domain", "(none)")
            if "phase" in mine[0]:
                assert PHASES[window.phase[token]] == mine[0]["phase"]
            if "token" in mine[0]:
                assert window.pieces[int(window.token_id[token])] == mine[0]["token"]
    assert not prompts & {prompt for prompt, *_ in expected}


def test_one_huge_prompt_among_small_ones_is_one_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", 50)
    monkeypatch.setattr(reader, "_ROWS_PER_WINDOW", 20)
    lengths = (2, 300, 2, 2)
    table = assignment_rows(make_tokens(lengths), make_layers(sum(lengths), top_k=(2, 3)))
    text = TraceMetadata(complete=True, layers=describe_layers(top_k=(2, 3))).to_json()
    pq.write_table(table.replace_schema_metadata({"moetool": text}), tmp_path / "trace.parquet")
    windows = list(DecisionReader(open_trace(tmp_path / "trace.parquet")))
    prompts = np.concatenate([np.unique(window.prompt) for window in windows])
    assert sorted(prompts.tolist()) == [0, 1, 2, 3]
    assert sum(len(window.prompt) for window in windows) == sum(lengths)


def test_a_missing_token_id_or_phase_is_marked(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "prompt_id": ["a"] * 4,
            "position": [0, 0, 1, 1],
            "layer": 0,
            "expert": [0, 1, 2, 3],
            "token_id": [5, 5, None, None],
            "phase": ["prefill", "prefill", None, None],
        }
    )
    write(tmp_path, frame, cuts=[])
    rows = DecisionReader(open_trace(tmp_path), by="phase", columns=["token_id", "phase"])
    (window,) = rows
    assert window.token_id is not None
    assert window.phase is not None
    assert window.token_id.tolist() == [5, -1]
    assert window.phase.tolist() == [0, -1]
    assert [rows.groups[group] for group in window.group] == ["prefill", "(none)"]
