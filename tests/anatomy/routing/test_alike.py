"""Blocks that are alike are run once, and blocks that differ in anything are not alike."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from moetool.anatomy.routing import top_k
from moetool.anatomy.routing.moe_layers import find_experts
from moetool.anatomy.routing.top_k import describe_block
from tests.anatomy.counting import build_family_skeleton
from tests.families.tiny.sizes import HIDDEN_SIZE, TOP_K


def _change_number(block: Any) -> None:
    block.gate.top_k += 1


def _change_shape(block: Any) -> None:
    block.gate.weight = nn.Parameter(torch.empty(3, HIDDEN_SIZE, device="meta"))


def _change_dtype(block: Any) -> None:
    block.gate.weight = nn.Parameter(block.gate.weight.to(torch.float64))


def _add_module(block: Any) -> None:
    block.gate.norm = nn.Identity()


def _add_hook(block: Any) -> None:
    block.gate.register_forward_hook(lambda *_: None)


def _change_class(block: Any) -> None:
    block.gate.__class__ = type("Other", (type(block.gate),), {})


def _replace_config(block: Any) -> None:
    block.experts.config = copy.deepcopy(block.experts.config)


CHANGES = (
    _change_number,
    _change_shape,
    _change_dtype,
    _add_module,
    _add_hook,
    _change_class,
    _replace_config,
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_block_that_differs_in_anything_has_another_description(
    change: Callable[[nn.Module], None],
) -> None:
    skeleton = copy.deepcopy(build_family_skeleton("mixtral"))
    blocks = [skeleton.get_submodule(each.block_path) for each in find_experts(skeleton).layers]
    assert describe_block(blocks[0]) == describe_block(blocks[1])
    change(blocks[1])
    assert describe_block(blocks[0]) != describe_block(blocks[1])


def test_only_a_block_unlike_those_before_it_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton = copy.deepcopy(build_family_skeleton("mixtral"))
    layers = find_experts(skeleton).layers
    other = layers[2]
    _change_number(skeleton.get_submodule(other.block_path))
    run: list[str] = []

    def find_top_k(model: nn.Module, layer: Any, *, hidden_size: int) -> int | None:
        run.append(layer.block_path)
        return plainly(model, layer, hidden_size=hidden_size)

    plainly = top_k.find_top_k
    monkeypatch.setattr(top_k, "find_top_k", find_top_k)
    found = top_k.find_each_top_k(skeleton, layers, hidden_size=HIDDEN_SIZE)
    assert run == [layers[0].block_path, other.block_path]
    assert found == {layer: TOP_K + (layer is other) for layer in layers}
