"""All figures of a skeleton rest on the same routed experts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moetool.anatomy.components import Component
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.skeleton.placement import Placement
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.anatomy.skeleton.table import count_skeleton
from tests.anatomy.counting import build_family_skeleton, count_family
from tests.families.tiny.sizes import HIDDEN_SIZE


def test_experts_that_no_rule_reads_are_placed_as_experts() -> None:
    skeleton = build_family_skeleton.__wrapped__("mixtral")
    # Without a router next to them, nothing shows how they are chosen.
    skeleton.model.layers[1].mlp = nn.ModuleDict(
        {"experts": nn.ModuleList(nn.Linear(HIDDEN_SIZE, 8, device="meta") for _ in range(4))}
    )
    routed = RoutedSkeleton.of(skeleton)

    assert routed.experts.unreadable == ("model.layers.1.mlp.experts",)
    place = routed.placement.place("model.layers.1.mlp.experts.0.weight")
    assert place.component is Component.ROUTED_EXPERTS
    (row,) = (
        row
        for row in count_skeleton(routed, dtype=torch.float32).rows
        if (row.layer, row.component) == (1, Component.ROUTED_EXPERTS)
    )
    assert row.active is None


@pytest.mark.parametrize("name", ["switch_transformers", "mixtral", "nllb-moe", "diffusion_gemma"])
def test_parameters_of_experts_have_the_place_of_their_layer(name: str) -> None:
    """Places are looked up by experts, which must agree with a lookup of each parameter alone."""
    family = count_family(name)

    for path, _ in family.skeleton.named_parameters():
        alone = Placement(family.skeleton, family.layers).place(path)
        assert family.routed.placement.place(path) == alone
        layer = _find_layer(path, family.layers)
        if layer is not None:
            assert alone.component is Component.ROUTED_EXPERTS
            assert (alone.stack, alone.layer) == (layer.stack, layer.layer)


def _find_layer(path: str, layers: tuple[MoeLayer, ...]) -> MoeLayer | None:
    return next((each for each in layers if path.startswith(f"{each.experts_path}.")), None)
