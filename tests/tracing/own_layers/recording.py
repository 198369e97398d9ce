"""Records of small layers, as tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from moetool import RoutingRecorder
from moetool.tracing.recording.calls import RecordedLayer
from tests.tracing.own_layers.modules.layers import (
    WIDTH,
    Tensor,
)

AnyLayer = type[Any]


def make(kind: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        return kind().eval()


def states(num_rows: int = 2, num_columns: int = 7) -> Tensor:
    """Return hidden states, two of which are equal."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(num_rows, num_columns, WIDTH, generator=generator)
    hidden[-1, -1] = hidden[0, 0]
    return hidden


def as_table(recorded: RecordedLayer, num_experts: int) -> Tensor:
    """Return a weight for every expert, NaN where it did not run."""
    ids = torch.from_numpy(recorded.experts).long()
    table = torch.full((len(ids), num_experts + 1), torch.nan)
    table.scatter_(
        1, ids.masked_fill(ids < 0, num_experts), torch.from_numpy(recorded.weights).float()
    )
    return table[:, :num_experts]


def assert_is(recorded: RecordedLayer, table: Tensor, *, rtol: float = 1e-5) -> None:
    found = as_table(recorded, table.shape[1])
    torch.testing.assert_close(found, table.float(), equal_nan=True, rtol=rtol, atol=1e-7)


def record(module: nn.Module, *given: Any, **options: Any) -> list[RecordedLayer]:
    with torch.no_grad(), RoutingRecorder(module, **options) as recorder:
        module(*given)
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in module.modules())
    return [layer for call in recorder.calls for layer in call.layers]
