"""Small traces with effects that every panel has something to say about, and odd ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moetool.trace.decisions import LayerDecisions, TracedTokens
from moetool.trace.metadata import RoutedLayer, TraceMetadata
from moetool.trace.rows import assignment_rows

WORDS = (
    "the",
    "Ġcat",
    "Ġsat",
    "Ġon",
    "Ġa",
    "Ġmat",
    "Ċ",
    "if",
    "Ġreturn",
    "(",
    "Ġlaw",
    "Ġcourt",
    "Ġzebra",
)


@dataclass(frozen=True)
class Shape:
    """The size of a trace; layers of a stack are numbered from 1."""

    lengths: Sequence[int] = (24,) * 12
    num_layers: int = 3
    num_experts: int = 12
    top_k: int = 2
    domains: Sequence[str] = ("code", "law", "prose")
    pieces: Sequence[str] = WORDS
    stack: str = "decoder"
    # Tokens of each prompt after these are generated.
    num_prompt_tokens: int = 20


def make_trace(shape: Shape = Shape(), *, redrawn: float = 0.0, seed: int = 0) -> pa.Table:
    """Return a trace in which each domain prefers some experts, and experts 4 and 5 go together.

    Args:
        shape: Of the trace; domains take turns.
        redrawn: Share of the decisions that is drawn again, with the same tokens.
        seed: Of everything but what is drawn again.
    """
    rng = np.random.default_rng(seed)
    num_tokens = sum(shape.lengths)
    prompt = np.repeat(np.arange(len(shape.lengths), dtype=np.int32), shape.lengths)
    position = np.concatenate([np.arange(length, dtype=np.int32) for length in shape.lengths])
    # Each piece occurs equally often, except for the last, which occurs once.
    last = len(shape.pieces) - 1
    token_id = (np.arange(num_tokens) % max(1, last)).astype(np.int32)
    token_id[-1] = last
    token_id = rng.permutation(token_id)
    tokens = TracedTokens(
        prompt_ids=[f"p{index}" for index in range(len(shape.lengths))],
        domains=[shape.domains[index % len(shape.domains)] for index in range(len(shape.lengths))],
        prompt=prompt,
        position=position,
        phase=(position >= shape.num_prompt_tokens).astype(np.int8),
        token_id=token_id,
        pieces=[shape.pieces[one] for one in sorted(set(token_id.tolist()))],
    )
    return assignment_rows(
        tokens, _draw(shape, prompt % len(shape.domains), token_id, redrawn, rng)
    )


def _draw(
    shape: Shape,
    domain: NDArray[np.int32],
    token_id: NDArray[np.int32],
    redrawn: float,
    rng: np.random.Generator,
) -> list[LayerDecisions]:
    again = np.random.default_rng(99)
    layers = []
    for number in range(shape.num_layers):
        size = (len(domain), shape.num_experts)
        pull = np.zeros(size)
        pull[np.arange(len(domain)), (domain + number) % shape.num_experts] += 2.5
        pull[np.arange(len(domain)), (token_id + 3) % shape.num_experts] += 1.0
        if shape.num_experts > 5:
            pull[rng.random(len(domain)) < 0.25, 4:6] += 4.0
        scores = pull + rng.gumbel(size=size)
        is_new = again.random(len(domain)) < redrawn
        scores[is_new] = pull[is_new] + again.gumbel(size=(int(is_new.sum()), shape.num_experts))
        experts = np.argsort(-scores, axis=1)[:, : shape.top_k]
        weights = np.exp(np.take_along_axis(scores, experts, axis=1))
        layers.append(
            LayerDecisions(
                stack=shape.stack,
                layer=number + 1,
                experts=experts.astype(np.int16),
                weights=(weights / weights.sum(axis=1, keepdims=True)).astype(np.float32),
            )
        )
    return layers


def describe(*shapes: Shape, model: str = "org/planted") -> TraceMetadata:
    """Return the metadata of a trace with the layers of all shapes."""
    return TraceMetadata(
        moetool="0.1",
        complete=True,
        model=model,
        model_type="planted_moe",
        dtype="float32",
        total_parameters=46_702_792_704,
        active_parameters=12_879_925_248,
        flops_per_token=25_640_566_784.5,
        dense_flops_per_token=93_285_515_264.0,
        flops_prompt_tokens=512,
        versions={"torch": "2.0"},
        layers=tuple(
            RoutedLayer(
                stack=shape.stack,
                layer=number + 1,
                module=f"model.layers.{number + 1}.mlp.experts",
                router=None,
                num_experts=shape.num_experts,
                num_identity_experts=0,
                top_k=shape.top_k,
            )
            for shape in shapes
            for number in range(shape.num_layers)
        ),
    )


def write_trace(
    path: Path,
    *tables: pa.Table,
    metadata: TraceMetadata | None = None,
    without: Collection[str] = (),
) -> Path:
    """Write the rows of all tables as one trace, without some columns, and return its path."""
    rows = pa.concat_tables([table.drop_columns(list(without)) for table in tables])
    footer = {} if metadata is None else metadata.to_footer()
    pq.write_table(rows.unify_dictionaries().replace_schema_metadata(footer), path)
    return path
