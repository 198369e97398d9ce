"""The finder recognises routed layers by what their experts receive, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import find_moe_layers, select_layers
from moetool.anatomy.skeleton.build import build_skeleton, find_auto_class
from moetool.errors import DenseModelError, UntraceableError, UsageError
from tests.tiny_models import DENSE_FAMILY, FAMILIES, build_config, build_model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_skeleton_shows_the_same_layers_as_the_model(family: str) -> None:
    skeleton = build_skeleton(build_config(family))
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert find_moe_layers(skeleton) == find_moe_layers(build_model(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_routed_layers_carry_the_models_own_numbers(family: str) -> None:
    layers = find_moe_layers(build_skeleton(build_config(family)))
    first_routed = 1 if family == "deepseek_v3" else 0
    assert [layer.layer for layer in layers] == list(range(first_routed, 3))
    assert {layer.num_experts for layer in layers} == {8}
    assert {layer.num_identity_experts for layer in layers} == {0}
    assert {layer.stack for layer in layers} == {"decoder"}


def test_a_dense_model_has_none() -> None:
    with pytest.raises(DenseModelError):
        find_moe_layers(build_skeleton(build_config(DENSE_FAMILY)))


class Experts(nn.Module):
    """Experts as transformers 5 makes them."""

    def __init__(self, *, num_gate_up: int = 4) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(num_gate_up, 6, 3))
        self.down_proj = nn.Parameter(torch.zeros(4, 3, 3))

    def forward(
        self, hidden_states: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        del ids, weights
        return hidden_states


class PositionTable(nn.Module):
    """A vision tower's position table: three inputs and one three-dimensional parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 3, 3))

    def forward(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        del rows, columns
        return x


def nest(path: str, module: nn.Module) -> nn.Module:
    """Return a module that holds another at a dotted path."""
    for name in reversed(path.split(".")):
        parent = nn.Module()
        parent.add_module(name, module)
        module = parent
    return module


def join(*modules: nn.Module) -> nn.Module:
    root = nn.Module()
    for index, module in enumerate(modules):
        root.add_module("part" + "abcdef"[index], module)
    return root


@pytest.mark.parametrize(
    ("path", "stack", "layer"),
    [
        ("model.layers.7.mlp.experts", "decoder", 7),
        ("encoder.block.3.layer.1.mlp.experts", "encoder", 3),
        ("model.vision_tower.encoder.layers.2.mlp.experts", "vision", 2),
        ("model.layers.2.experts", "decoder", 2),
        ("talker.model.layers.5.mlp.experts", "talker", 5),
    ],
)
def test_stack_and_layer_come_from_the_path(path: str, stack: str, layer: int) -> None:
    (found,) = find_moe_layers(nest(path, Experts()))
    assert (found.stack, found.layer, found.experts_path) == (stack, layer, path)


@pytest.mark.parametrize(
    ("blocks", "stacks"),
    [
        (("self_attn", "mlp"), ["decoder.attention", "decoder"]),
        (("early", "late"), ["decoder.early", "decoder.late"]),
    ],
)
def test_two_routings_in_one_layer_are_named_by_their_blocks(
    blocks: tuple[str, str], stacks: list[str]
) -> None:
    layer = nn.Module()
    for block in blocks:
        layer.add_module(block, nest("experts", Experts()))
    assert [found.stack for found in find_moe_layers(nest("layers.0", layer))] == stacks


def test_routings_whose_blocks_have_the_same_name_are_told_apart_by_their_paths() -> None:
    twins = join(*(nest("layers.0.mlp.experts", Experts()) for _ in range(2)))
    found = find_moe_layers(twins)
    assert [layer.stack for layer in found] == [
        f"decoder.mlp.{layer.experts_path}" for layer in found
    ]
    assert len({layer.stack for layer in found}) == 2


def test_identity_experts_are_those_beyond_the_smaller_stack() -> None:
    (found,) = find_moe_layers(nest("layers.0.mlp.experts", Experts(num_gate_up=6)))
    assert (found.num_experts, found.num_identity_experts) == (4, 2)


def test_a_position_table_is_not_an_experts_module() -> None:
    with pytest.raises(DenseModelError):
        find_moe_layers(nest("vision.embeddings", PositionTable()))


def test_experts_of_another_kind_next_to_known_ones_are_refused_not_skipped() -> None:
    others = nest("layers.1.mlp.experts", nn.ModuleList([nn.Linear(3, 3) for _ in range(4)]))
    with pytest.raises(UntraceableError, match="no rule reads the routing"):
        find_moe_layers(join(nest("layers.0.mlp.experts", Experts()), others))


def test_layers_are_selected_by_the_models_own_numbers() -> None:
    layers = find_moe_layers(build_skeleton(build_config("deepseek_v3")))
    assert select_layers(layers, None) == tuple(layers)
    assert [layer.layer for layer in select_layers(layers, {2})] == [2]
    with pytest.raises(UsageError, match=r"^Layer 0 .* these have: \[1, 2\]"):
        select_layers(layers, {0, 2})


def test_a_configuration_without_language_model_is_refused() -> None:
    from transformers import ViTConfig

    with pytest.raises(UntraceableError, match="no language-model class"):
        find_auto_class(ViTConfig())
