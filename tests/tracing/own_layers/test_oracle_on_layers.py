"""The weights of every layer are those that explain its output by what its experts return.

The oracle needs no hooks and knows no routing: experts that return twice as much change a layer's
output by the weighted sum of what they return.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.tracing.oracle import Fit, UndeterminedError, find_difference, fit_weights
from tests.tracing.own_layers.modules.layers import LAYERS, WIDTH, Tensor
from tests.tracing.own_layers.modules.models import GateInHolder
from tests.tracing.own_layers.modules.odd_layers import EXACT
from tests.tracing.own_layers.recording import make, record, states
from tests.tracing.recording.separate.exact_blocks import EXACT as BLOCKS
from tests.tracing.recording.separate.exact_blocks import HIDDEN_SIZE
from tests.tracing.recording.separate.searched_blocks import SEARCHED

TOLERANCE = 1e-6
OWN: dict[str, Callable[[], Any]] = {**LAYERS, **EXACT, "gate in a holder": GateInHolder}
# Experts of these layers return fewer numbers than there are experts.
# What is behind a bent sum is not linear in it.
PUBLISHED = {**BLOCKS, **{name: kind for name, kind in SEARCHED.items() if "bent" not in name}}
UNDETERMINED = ("one number", "more experts than hidden states are wide")
# Modules behind the sum that are taken out, because they are more than linear.
TAKEN_OUT = {"surrounded": ("proj_out", "norm_out"), "shared afterwards": ("norm",)}
# What experts receive, if it is not the layer's input.
BEFORE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "surrounded": lambda layer, hidden: layer.enter(hidden),
    "a norm within the block": lambda layer, hidden: layer.norm(hidden),
}
# What a layer makes of a part of the sum, given its input as well.
AFTERWARDS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "surrounded": lambda _, __, part: 0.5 * part,
    "adds to others": lambda _, __, part: part.roll(1, dims=-2),
    "a projection of the sum": lambda layer, _, part: part @ layer.projection.weight.T,
    "a gate of the sum": lambda layer, rows, part: layer.projection(rows).sigmoid() * part,
    "a projection of the sum and of more": lambda layer, _, part: (
        part @ layer.projection.weight[:, HIDDEN_SIZE:].T
    ),
}


class Doubled(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, rows: Tensor) -> Tensor:
        return 2 * self.module(rows)  # type: ignore[no-any-return]


def list_experts(layer: Any) -> list[tuple[str, ...]]:
    """Return, by expert, the paths of the modules that it runs through, one after the other."""
    if hasattr(layer, "lora_A"):
        return [(f"lora_A.{n}", f"lora_B.{n}") for n in range(len(layer.lora_A))]
    for name in ("experts", "ffns", "mlps", "holder.experts"):
        if all(hasattr(layer, word) for word in name.split(".")[:1]):
            return [(f"{name}.{key}",) for key, _ in layer.get_submodule(name).named_children()]
    if hasattr(layer, "fc1"):
        return [(f"fc3.{n}",) for n in range(len(layer.fc3))]
    return [(f"expert_{n}",) for n in range(layer.num_experts)]


def run_expert(layer: Any, number: int, paths: tuple[str, ...], rows: Tensor) -> Tensor:
    if hasattr(layer, "fc1"):
        output: Tensor = layer.run(number, rows)
        return output
    for path in paths:
        rows = layer.get_submodule(path)(rows)
    return rows


def run(layer: nn.Module, hidden: Tensor) -> Tensor:
    output = layer(hidden.clone())
    total: Tensor = output[0] if isinstance(output, tuple) else output
    return total.flatten(0, -2)


def fit(name: str, layer: Any, hidden: Tensor) -> Fit:
    """Return the weights that explain what a layer makes of its experts' outputs."""
    layer = copy.deepcopy(layer)
    for path in TAKEN_OUT.get(name, ()):
        layer.set_submodule(path, nn.Identity())
    experts = list_experts(layer)
    with torch.no_grad():
        received = BEFORE[name](layer, hidden) if name in BEFORE else hidden
        rows = received.flatten(0, -2)
        by_expert = torch.stack([run_expert(layer, n, p, rows) for n, p in enumerate(experts)])
        if name in AFTERWARDS:
            by_expert = AFTERWARDS[name](layer, rows, by_expert)
        before = run(layer, hidden)
        for *_, last in experts:
            layer.set_submodule(last, Doubled(layer.get_submodule(last)))
        total = run(layer, hidden) - before
    found = fit_weights(total, by_expert)
    if name == "adds to others":
        return Fit(found.weights.roll(-1, dims=0), found.unexplained)
    return found


def decide(layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
    recorded = next(each for each in record(layer, hidden.clone()) if not each.layer.block_path)
    return torch.from_numpy(recorded.experts), torch.from_numpy(recorded.weights)


def check(name: str, layer: Any, hidden: Tensor) -> None:
    if name in UNDETERMINED:
        with pytest.raises(UndeterminedError, match="more than outputs"):
            fit(name, layer, hidden)
        return
    ids, weights = decide(layer, hidden)
    found = fit(name, layer, hidden)
    assert find_difference(found, ids, weights) < TOLERANCE
    # Planted errors: other tokens' decisions, and other weights.
    assert find_difference(found, ids.roll(1, dims=0), weights.roll(1, dims=0)) > 1e-3
    assert find_difference(found, ids, 1.001 * weights) > 1e-4


@pytest.mark.parametrize("name", OWN)
def test_weights_of_own_layers_explain_their_outputs(name: str) -> None:
    check(name, make(OWN[name]).double(), states().double())


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_of_published_blocks_explain_their_outputs(name: str) -> None:
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(2, 7, HIDDEN_SIZE, generator=generator, dtype=torch.float64)
    assert HIDDEN_SIZE != WIDTH
    check(name, make(PUBLISHED[name]).double(), hidden)
