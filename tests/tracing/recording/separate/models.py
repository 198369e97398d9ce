"""Small models around one block with separate experts, and records of their calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moetool import RoutingRecorder
from moetool.anatomy.routing.rules import RoutingRule
from tests.tracing.recording.separate.exact_blocks import HIDDEN_SIZE, Block, call

VOCAB_SIZE = 64


class Model(nn.Module):
    """A block between an embedding and a head."""

    def __init__(self, block: Block, *, is_flat: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE)
        self.mlp = block
        self.head = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE)
        self.is_flat = is_flat

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden_states = call(self.embedding, input_ids)
        if self.is_flat:
            hidden_states = hidden_states.flatten(0, 1)
        output = self.mlp(hidden_states)
        output = output[0] if isinstance(output, tuple) else output
        return call(self.head, hidden_states + output)


def build(make: Callable[[], Block], *, is_flat: bool = False) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        model = Model(make(), is_flat=is_flat)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.6)
    return model.eval()


def tokens(num_rows: int = 2, num_columns: int = 9) -> torch.Tensor:
    """Return every token once: without positions, equal tokens would give equal rows."""
    return torch.arange(3, 3 + num_rows * num_columns).view(num_rows, num_columns)


@dataclass(frozen=True)
class Layer:
    experts_path: str = "mlp.experts"


@dataclass(frozen=True)
class Recorded:
    """One recorded call and its outputs.

    Attributes:
        ids: # (num_tokens, top_k)
        weights: # (num_tokens, top_k)
    """

    ids: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor | None
    output: torch.Tensor
    router: str | None


def record(model: Model, input_ids: torch.Tensor, **options: Any) -> Recorded:
    with RoutingRecorder(model, **options) as recorder, torch.no_grad():
        output = call(model, input_ids)
    ((layer,),) = (call.layers for call in recorder.calls)
    assert layer.layer.rule is RoutingRule.SEPARATE_EXPERTS
    return Recorded(
        ids=torch.from_numpy(layer.experts).long(),
        weights=torch.from_numpy(layer.weights),
        scores=None if layer.scores is None else torch.from_numpy(layer.scores),
        output=output,
        router=recorder.find_router(layer.layer),
    )


def run(model: Model, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return call(model, input_ids)


def as_table(ids: torch.Tensor, weights: torch.Tensor, *, num_experts: int) -> torch.Tensor:
    """Return a decision as a weight for every expert, NaN where it was not chosen."""
    table = torch.full((len(ids), num_experts + 1), torch.nan)
    table.scatter_(1, ids.masked_fill(ids < 0, num_experts), weights.float())
    return table[:, :num_experts]


def assert_decision_is_the_blocks(recorded: Recorded, block: Block) -> None:
    assert block.decision is not None
    tables = [
        as_table(ids, weights, num_experts=block.num_experts)
        for ids, weights in ((recorded.ids, recorded.weights), block.decision)
    ]
    torch.testing.assert_close(*tables, equal_nan=True, rtol=1e-6, atol=0)
