"""A table in moetool's own order is counted and checked as one in any other order is."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from moetool.errors import InputError
from moetool.trace.reading import decision_scan, reader
from moetool.trace.reading.counts import count_experts
from moetool.trace.reading.decision_scan import DecisionScan
from moetool.trace.reading.reader import open_trace
from moetool.trace.rows import assignment_rows
from tests.trace.examples import layer_decisions, make_layers, make_tokens, traced_tokens
from tests.trace.reading.frames import ORDERS, order

# Values that a row gets instead of the right one; each is a fault in some decision.
WRONG: dict[str, list[Any]] = {
    "expert": [-2, -1, 9],
    "rank": [-1, 0, 1, 7],
    "weight": [-0.5, float("inf"), 0.0, 0.9],
    "position": [-3, 0, 1, 2, 50],
    "layer": [-1, 0, 1, 2],
    "domain": ["elsewhere"],
    "stack": ["encoder"],
}


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """The rows of a trace, mostly in order; some have a few faults."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    top_k = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    layers = make_layers(sum(lengths), top_k=top_k, seed=draw(st.integers(0, 2**16)))
    frame = pd.DataFrame(assignment_rows(make_tokens(lengths), layers).to_pydict())
    for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
        frame = spoil(
            frame,
            draw(st.sampled_from(["value", "copied", "again", "left out", "moved", "swapped"])),
            name=draw(st.sampled_from(list(WRONG))),
            row=draw(st.integers(1, len(frame) - 1)) if len(frame) > 1 else 0,
            number=draw(st.integers(0, 100)),
        ).reset_index(drop=True)
    if not draw(st.integers(0, 4)):
        frame = order(frame, draw(st.sampled_from(list(ORDERS.values()))))
    dropped = draw(st.sets(st.sampled_from(["rank", "weight", "domain", "stack"]), max_size=2))
    return frame.drop(columns=sorted(dropped)).reset_index(drop=True)


def spoil(frame: pd.DataFrame, what: str, *, name: str, row: int, number: int) -> pd.DataFrame:
    others = frame.drop(index=frame.index[row])
    place = number % (len(others) + 1)
    column = frame[name].tolist()
    if what == "value":
        column[row] = WRONG[name][number % len(WRONG[name])]
    elif what == "copied":
        column[row] = column[row - 1]
    elif what == "swapped":
        column[row], column[row - 1] = column[row - 1], column[row]
    changed: pd.DataFrame = frame.assign(**{name: column})
    if what == "again":
        changed = pd.concat([frame, frame.iloc[[row]]])
    elif what == "left out" and len(others):
        changed = others
    elif what == "moved":
        changed = pd.concat([others.iloc[:place], frame.iloc[[row]], others.iloc[place:]])
    return changed


def write_parts(folder: Path, frame: pd.DataFrame, *, num_files: int, rows: int) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    bounds = np.linspace(0, len(frame), num_files + 1).astype(int)
    for number, (start, end) in enumerate(pairwise(bounds)):
        part = table.slice(start, end - start)
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=rows)


def read(folder: Path, *, is_checked: bool) -> Any:
    """Return everything that a scan and a count say about a trace, or its error."""
    try:
        scan = DecisionScan(open_trace(folder), is_checked=is_checked)
        for _ in scan.iter_tables(["prompt_id"]):
            pass
        counts = count_experts(open_trace(folder), by="prompt_id", validate=is_checked)
    except InputError as error:
        return error.message, error.hint, error.facts
    decisions = {place: number.tolist() for place, number in scan.num_decisions.items()}
    assignments = [layer.assignments.tolist() for layer in counts.layers]
    return scan.prompts, scan.domains, decisions, scan.layers, assignments, counts.notes


@settings(deadline=None, max_examples=60)
@given(
    frame=frames(),
    num_files=st.sampled_from([1, 1, 2, 3]),
    rows=st.sampled_from([3, 16, 1000, 1000]),
    is_checked=st.sampled_from([True, True, True, False]),
)
def test_a_table_in_order_gives_what_one_in_any_order_gives(
    frame: pd.DataFrame,
    num_files: int,
    rows: int,
    is_checked: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("trace")
    write_parts(folder, frame, num_files=num_files, rows=rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_ROWS_PER_TABLE", rows)
        fast = read(folder, is_checked=is_checked)
        patch.setattr(decision_scan, "are_sound", never)
        assert fast == read(folder, is_checked=is_checked)
    event("refused" if len(fast) == 3 else "counted")


def never(*_: object, **__: object) -> bool:
    return False


def refuse(*_: object) -> None:
    raise AssertionError("the table was taken for one in another order")


@settings(deadline=None, max_examples=30)
@given(data=st.data(), rows=st.sampled_from([7, 16, 1000]))
def test_what_moetool_writes_is_never_sorted(
    data: st.DataObject, rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokens = data.draw(traced_tokens())
    table = assignment_rows(tokens, data.draw(layer_decisions(num_tokens=len(tokens.token_id))))
    path = tmp_path_factory.mktemp("trace") / "trace.parquet"
    pq.write_table(table, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_ROWS_PER_TABLE", rows)
        patch.setattr(DecisionScan, "_add", refuse)
        for _ in DecisionScan(open_trace(path)).iter_tables(["prompt_id"]):
            pass
