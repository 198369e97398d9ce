"""Maps of models whose layers are one tensor each, against transformers' maps of the models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.accelerate import _get_device_map

from moetool.memory.sharing.undivided import merge_undivided
from tests.simulation.skeletons import build_family_skeleton

FAMILIES = ["mixtral", "gemma4", "nllb-moe", "jamba", "lfm2_moe", "qwen3_vl_moe", "doge"]


def _sum_tensors(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _make_map(model: Any, *, budget_bytes: int, num_gpus: int) -> Mapping[str, Any]:
    max_memory = {**dict.fromkeys(range(num_gpus), budget_bytes), "cpu": 2**60}
    device_map: Mapping[str, Any] = _get_device_map(model, "auto", max_memory, None)
    return device_map


def _make_maps(model: Any, *, total_bytes: int) -> list[Mapping[str, Any]]:
    """Return maps of all of a model's outcomes: with it whole, shared, and left to the host."""
    return [
        _make_map(model, budget_bytes=total_bytes * sixths // 6, num_gpus=num_gpus)
        for num_gpus in (1, 2, 3)
        for sixths in (1, 2, 3, 4, 7)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_maps_are_those_of_the_model_itself(family: str) -> None:
    model = build_family_skeleton(family)
    merged = merge_undivided(model)
    total_bytes = _sum_tensors(model)
    maps = _make_maps(model, total_bytes=total_bytes)
    assert _make_maps(merged, total_bytes=total_bytes) == maps
    assert _sum_tensors(merged) == total_bytes
    assert len(list(merged.parameters())) < len(list(model.parameters()))


def _share_a_tensor(model: PreTrainedModel) -> None:
    layers = model.get_submodule("model.layers")
    layers[0].input_layernorm.weight = layers[2].input_layernorm.weight


def _place_a_tensor_apart(model: PreTrainedModel) -> None:
    model._no_placement_params = ["input_layernorm.weight"]


def _tie_a_tensor(model: PreTrainedModel) -> None:
    path = "model.layers.{}.input_layernorm.weight"
    model.all_tied_weights_keys = {path.format(2): path.format(0)}


@pytest.mark.parametrize("change", [_share_a_tensor, _place_a_tensor_apart, _tie_a_tensor])
def test_layers_of_which_more_counts_than_their_bytes_stay_as_they_are(change: Any) -> None:
    model = build_family_skeleton("mixtral")
    plain = _make_maps(model, total_bytes=_sum_tensors(model))
    change(model)
    total_bytes = _sum_tensors(model)
    merged = merge_undivided(model)
    assert merged.get_submodule("model.layers.0") is model.get_submodule("model.layers.0")
    maps = _make_maps(model, total_bytes=total_bytes)
    assert _make_maps(merged, total_bytes=total_bytes) == maps
    if change is not _share_a_tensor:
        assert maps != plain
