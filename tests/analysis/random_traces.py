"""Traces of simulated routers, and their decisions as plain Python values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from moetool.trace.decisions import LayerDecisions, TracedTokens
from moetool.trace.metadata import RoutedLayer, TraceMetadata
from moetool.trace.reading.frames import open_table
from moetool.trace.reading.reader import TraceSource
from moetool.trace.rows import assignment_rows


@dataclass(frozen=True)
class Decision:
    """One token in one routed layer, as a row-by-row reading of a trace sees it."""

    prompt_id: str
    domain: str
    phase: str
    position: int
    token_id: int
    stack: str
    layer: int
    experts: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Router:
    """A simulated router: each token draws distinct experts, by weight and independent of the rest.

    Attributes:
        popularity: Relative chance of each expert in the first draw; even if empty.
    """

    num_experts: int = 8
    top_k: int = 2
    num_layers: int = 3
    first_layer: int = 0
    popularity: Sequence[float] = field(default_factory=tuple)


def make_random_trace(
    lengths: Sequence[int] = (5, 3, 7, 4),
    *,
    router: Router = Router(),
    domains: Sequence[str] = ("code", "prose"),
    num_prompt_tokens: int | None = None,
    num_token_ids: int = 11,
    seed: int = 0,
) -> pa.Table:
    """Return a trace with a prompt of each length; domains take turns.

    Args:
        num_prompt_tokens: Tokens of each prompt in the prefill; those after it are decoded.
    """
    rng = np.random.default_rng(seed)
    num_tokens = sum(lengths)
    token_id = rng.integers(0, num_token_ids, size=num_tokens).astype(np.int32)
    position = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    limit = max(lengths) if num_prompt_tokens is None else num_prompt_tokens
    tokens = TracedTokens(
        prompt_ids=[f"p{index}" for index in range(len(lengths))],
        domains=[domains[index % len(domains)] for index in range(len(lengths))],
        prompt=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        position=position,
        phase=(position >= limit).astype(np.int8),
        token_id=token_id,
        pieces=[f"t{one}" for one in sorted(set(token_id.tolist()))],
    )
    return assignment_rows(tokens, _draw_layers(router, num_tokens, rng))


def describe_router(router: Router) -> TraceMetadata:
    """Return the metadata of a trace that the router makes."""
    return TraceMetadata(
        complete=True,
        layers=tuple(
            RoutedLayer(
                stack="decoder",
                layer=router.first_layer + number,
                module=f"model.layers.{router.first_layer + number}.mlp.experts",
                router=None,
                num_experts=router.num_experts,
                num_identity_experts=0,
                top_k=router.top_k,
            )
            for number in range(router.num_layers)
        ),
    )


def open_rows(table: pa.Table, *, router: Router = Router()) -> TraceSource:
    """Return rows as the trace of a router."""
    return open_table(table, metadata=describe_router(router))


def list_decisions(table: pa.Table) -> list[Decision]:
    """Return the decisions of rows, in the order of prompts, stacks, layers and positions."""
    rows: dict[tuple[str, str, int, int], list[dict[str, object]]] = {}
    prompts: dict[str, int] = {}
    for row in table.to_pylist():
        prompts.setdefault(row["prompt_id"], len(prompts))
        key = (row["prompt_id"], row["stack"], row["layer"], row["position"])
        rows.setdefault(key, []).append(row)
    decisions = []
    for (prompt_id, stack, layer, position), mine in sorted(
        rows.items(), key=lambda item: (prompts[item[0][0]], *item[0][1:])
    ):
        ordered: list[dict[str, object]] = sorted(mine, key=lambda row: row["rank"])  # type: ignore[arg-type, return-value]
        decisions.append(
            Decision(
                prompt_id=prompt_id,
                domain=str(mine[0]["domain"]),
                phase=str(mine[0]["phase"]),
                position=position,
                token_id=int(str(mine[0]["token_id"])),
                stack=stack,
                layer=layer,
                experts=tuple(int(str(row["expert"])) for row in ordered),
                weights=tuple(float(str(row["weight"])) for row in ordered),
            )
        )
    return decisions


def _draw_layers(router: Router, num_tokens: int, rng: np.random.Generator) -> list[LayerDecisions]:
    chance = np.asarray(router.popularity or [1.0] * router.num_experts, dtype=np.float64)
    layers = []
    for number in range(router.num_layers):
        # The k largest of log chance plus Gumbel noise are k draws without replacement.
        noise = rng.gumbel(size=(num_tokens, router.num_experts))
        scores = np.log(chance) + noise  # (num_tokens, num_experts)
        experts = np.argsort(-scores, axis=1)[:, : router.top_k]
        chosen = np.exp(np.take_along_axis(scores, experts, axis=1))
        layers.append(
            LayerDecisions(
                stack="decoder",
                layer=router.first_layer + number,
                experts=experts.astype(np.int16),
                weights=(chosen / chosen.sum(axis=1, keepdims=True)).astype(np.float32),
            )
        )
    return layers
