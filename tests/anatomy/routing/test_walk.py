"""Modules are walked in torch's own order, and separate experts are not entered for nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import find_experts
from moetool.anatomy.routing.walk import walk_modules
from tests.anatomy.counting import build_family_skeleton

FAMILIES = ("mixtral", "switch_transformers", "diffusion_gemma", "jetmoe", "nllb-moe")


@pytest.mark.parametrize("name", FAMILIES)
def test_modules_come_in_the_order_of_named_modules(name: str) -> None:
    skeleton = build_family_skeleton(name)

    assert list(walk_modules(skeleton)) == list(skeleton.named_modules())


def test_modules_that_two_modules_share_come_once() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared, shared)})

    assert list(walk_modules(model)) == list(model.named_modules())


def test_closed_modules_are_yielded_without_their_inside() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))

    paths = [path for path, _ in walk_modules(model, path="model", closed={"model.0"})]

    assert paths == ["model", "model.0", "model.1"]


class _Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 4
        self.gate_up_proj = nn.Parameter(torch.zeros(4, 6, 3))
        self.down_proj = nn.Parameter(torch.zeros(4, 3, 3))

    def forward(
        self, hidden_states: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        del ids, weights
        return hidden_states


def test_layers_that_route_within_separate_experts_are_all_found() -> None:
    experts = nn.ModuleList(nn.ModuleDict({"inner": _Experts()}) for _ in range(3))
    block = nn.ModuleDict({"gate": nn.Linear(3, 3, bias=False), "experts": experts})
    model = nn.ModuleDict({"layers": nn.ModuleList([block])})

    found = [layer.experts_path for layer in find_experts(model).layers]

    assert found == [
        "layers.0.experts",
        *(f"layers.0.experts.{number}.inner" for number in range(3)),
    ]
