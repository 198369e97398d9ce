"""Counts of small tables, and what they are compared by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.counts import ExpertCounter, ExpertCounts, GroupColumn
from tests.trace.examples import (
    describe_layers,
)

BY: tuple[GroupColumn, ...] = ("domain", "prompt_id")


def layers_of(frame: pd.DataFrame) -> list[RoutedLayer]:
    """Return the metadata that the trace should have had."""
    top_k = frame.groupby("layer")["rank"].max() + 1
    return list(describe_layers(top_k=[int(k) for k in top_k]))


def to_plain_frame(table: pa.Table) -> pd.DataFrame:
    return pd.DataFrame(table.to_pydict())


def count_tables(
    tables: Sequence[pa.Table], layers: Sequence[RoutedLayer], *, by: GroupColumn
) -> ExpertCounts:
    counter = ExpertCounter(by=by)
    for table in tables:
        counter.add(table)
    return counter.counts(layers)


def cut(table: pa.Table, *, num_rows: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, num_rows):
        yield table.slice(start, num_rows)


def assignments_of(counts: ExpertCounts) -> dict[tuple[Any, ...], int]:
    """Return how often each (group, layer, expert) occurs, without those that do not."""
    return {
        (counts.groups[group], layer.layer, int(expert)): int(layer.assignments[group, expert])
        for layer in counts.layers
        for group, expert in np.argwhere(layer.assignments)
    }


def decisions_of(counts: ExpertCounts) -> dict[tuple[Any, ...], int]:
    return {
        (group, layer.layer): int(decisions)
        for layer in counts.layers
        for group, decisions in zip(counts.groups, layer.decisions, strict=True)
    }


def assert_same_counts(left: ExpertCounts, right: ExpertCounts) -> None:
    assert left.groups == right.groups
    assert left.domains == right.domains
    for one, other in zip(left.layers, right.layers, strict=True):
        assert (one.stack, one.layer, one.top_k) == (other.stack, other.layer, other.top_k)
        assert one.assignments.tolist() == other.assignments.tolist()
        assert one.decisions.tolist() == other.decisions.tolist()
