"""Traces made by hand, for tests that write, read and count them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import strategies as st

from moetool.trace.decisions import LayerDecisions, TracedTokens
from moetool.trace.metadata import RoutedLayer, TraceMetadata
from moetool.trace.rows import assignment_rows
from moetool.trace.schema import TRACE_SCHEMA
from moetool.trace.writing.writer import TraceFile

NUM_EXPERTS = 6
WORD_COLUMNS = [field.name for field in TRACE_SCHEMA if pa.types.is_dictionary(field.type)]

# Known before the first batch of a run.
BEFORE = TraceMetadata(model="demo")

# Words that CSV readers tend to misread.
HOSTILE_WORDS = (
    *("null", "NULL", "NA", "NaN", "None", "#N/A", "true", "007", "1e5", "-", ""),
    *('"', '""', "'", ",", ";", "\\", "\t", "\n", "\r", "\r\n", "a\nb", 'a"b', "a,b"),
    *(" ", "  leading", "trailing  ", "\x00", "\ufeff", "\u2028", "é", "日本", "🙂", "</script>"),
)


def hostile_words() -> st.SearchStrategy[str]:
    return st.sampled_from(HOSTILE_WORDS) | st.text(max_size=4)


@st.composite
def traced_tokens(draw: st.DrawFn) -> TracedTokens:
    """A few prompts of a few tokens each, with hostile words only."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    num_prompts, num_tokens = len(lengths), sum(lengths)
    token_id = draw(st.lists(st.integers(0, 5), min_size=num_tokens, max_size=num_tokens))
    num_ids = len(set(token_id))
    phase = draw(st.lists(st.integers(0, 1), min_size=num_tokens, max_size=num_tokens))
    return make_tokens(
        lengths,
        prompt_ids=draw(
            st.lists(hostile_words(), min_size=num_prompts, max_size=num_prompts, unique=True)
        ),
        domains=draw(st.lists(hostile_words(), min_size=num_prompts, max_size=num_prompts)),
        token_id=token_id,
        pieces=draw(st.lists(hostile_words(), min_size=num_ids, max_size=num_ids)),
        phase=phase,
    )


@st.composite
def layer_decisions(draw: st.DrawFn, *, num_tokens: int) -> list[LayerDecisions]:
    """A few layers, each with a different top-k; unordered ids, and weights that are often tied."""
    top_k = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    seed = draw(st.integers(0, 2**16))
    return make_layers(num_tokens, top_k=top_k, seed=seed)


@st.composite
def traces(draw: st.DrawFn) -> pa.Table:
    """The rows of a whole trace."""
    tokens = draw(traced_tokens())
    return assignment_rows(tokens, draw(layer_decisions(num_tokens=len(tokens.token_id))))


def make_tokens(
    lengths: Sequence[int],
    *,
    prompt_ids: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    token_id: Sequence[int] | None = None,
    pieces: Sequence[str] | None = None,
    phase: Sequence[int] | None = None,
) -> TracedTokens:
    """Return prompts of the given lengths; other values are filled in."""
    num_tokens = sum(lengths)
    token_id = range(num_tokens) if token_id is None else token_id
    return TracedTokens(
        prompt_ids=prompt_ids or [f"p{index}" for index in range(len(lengths))],
        domains=domains or ["prose"] * len(lengths),
        prompt=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        position=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        phase=np.array(phase or [0] * num_tokens, dtype=np.int8),
        token_id=np.array(token_id, dtype=np.int32),
        pieces=pieces or [f"t{number}" for number in sorted(set(token_id))],
    )


def make_layers(
    num_tokens: int, *, top_k: Sequence[int] = (2,), seed: int = 0
) -> list[LayerDecisions]:
    """Return layers 0, 1, … with random decisions and probabilities, one top-k each."""
    rng = np.random.default_rng(seed)
    everyone = np.tile(np.arange(NUM_EXPERTS, dtype=np.int16), (num_tokens, 1))
    return [
        LayerDecisions(
            stack="decoder",
            layer=number,
            experts=rng.permuted(everyone, axis=1)[:, :k],
            weights=rng.choice([0.1, 0.25, 0.7], size=(num_tokens, k)).astype(np.float32),
            probabilities=rng.random((num_tokens, NUM_EXPERTS)).astype(np.float16),
        )
        for number, k in enumerate(top_k)
    ]


def make_rows(lengths: Sequence[int] = (3, 2), *, seed: int = 0, **words: Any) -> pa.Table:
    """Return the rows of a trace of two layers, top-2."""
    tokens = make_tokens(lengths, **words)
    return assignment_rows(tokens, make_layers(sum(lengths), top_k=(2, 2), seed=seed))


def describe_layers(*, top_k: Sequence[int] = (2, 2)) -> tuple[RoutedLayer, ...]:
    """Return the metadata of the layers that `make_layers` makes."""
    return tuple(
        RoutedLayer(
            stack="decoder",
            layer=number,
            module=f"model.layers.{number}.mlp.experts",
            router=None,
            num_experts=NUM_EXPERTS,
            num_identity_experts=0,
            top_k=k,
        )
        for number, k in enumerate(top_k)
    )


def find_top_k(tables: Sequence[pa.Table]) -> list[int]:
    """Return the top-k of layers 0, 1, … in rows; 2 for each of two layers without rows."""
    frame = pd.concat(
        [
            pd.DataFrame({"layer": [0, 1], "rank": 1})[: 0 if tables else 2],
            *(table.select(["layer", "rank"]).to_pandas() for table in tables),
        ]
    )
    return [int(rank) + 1 for rank in frame.groupby("layer")["rank"].max()]


def write_trace(
    target: Path,
    *tables: pa.Table,
    metadata: TraceMetadata | None = None,
    replace_existing: bool = False,
) -> Path:
    """Write a complete trace and return its path; by default the metadata has the top-k of the rows."""
    if metadata is None:
        metadata = TraceMetadata(complete=True, layers=describe_layers(top_k=find_top_k(tables)))
    with TraceFile(target, metadata=metadata, replace_existing=replace_existing) as sink:
        for table in tables:
            sink.write(table)
        sink.finish(metadata)
    return target


def break_off(
    target: Path,
    *tables: pa.Table,
    metadata: TraceMetadata = BEFORE,
    replace_existing: bool = False,
) -> NoReturn:
    """Write tables and press Ctrl-C before the end."""
    with TraceFile(target, metadata=metadata, replace_existing=replace_existing) as sink:
        for table in tables:
            sink.write(table)
        raise KeyboardInterrupt


def columns_of(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a frame's values as plain Python lists, as `pa.Table.to_pydict` does."""
    return {str(name): frame[name].tolist() for name in frame.columns}
