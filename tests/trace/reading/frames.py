"""Small traces as frames, in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.counts import ExpertCounts, count_experts
from moetool.trace.reading.reader import open_trace
from tests.trace.examples import (
    describe_layers,
    make_rows,
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


def repeat_rows(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.iloc[6:8]])


def change(column: str, value: Any, row: int = 9) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def changed(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[column].tolist()
        values[row] = value
        return frame.assign(**{column: values})

    return changed
