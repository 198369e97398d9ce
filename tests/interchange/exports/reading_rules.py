"""Rules by which engines read a placement, as they document and check them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import torch
import yaml

# Experts of each GPU, by layer.
Held = dict[int, list[list[int]]]


def read_sglang(
    content: bytes, *, num_hidden_layers: int, num_experts: int, num_redundant: int, ep_size: int
) -> Held:
    """Return what `--init-expert-location` loads: its keys become arguments of a function."""
    arguments = json.loads(content)
    assert set(arguments) == {"physical_to_logical_map"}
    rows = torch.tensor(arguments["physical_to_logical_map"])
    num_physical = num_experts + num_redundant
    assert rows.shape == (num_hidden_layers, num_physical)
    assert num_physical % ep_size == 0
    for row in rows.tolist():
        assert set(row) == set(range(num_experts))
    return {layer: _split(row, ep_size) for layer, row in enumerate(rows.tolist())}


def read_tensorrt_llm(content: bytes, *, moe_layers: Sequence[int], ep_size: int) -> Held:
    """Return what `moe_config.load_balancer` loads: a strict model, and a list for each layer."""
    config = yaml.safe_load(content)
    assert set(config) == {"initial_global_assignments", "layer_updates_per_iter", "num_slots"}
    assert config["layer_updates_per_iter"] == 0
    assert config["num_slots"] % ep_size == 0
    held = {}
    for layer in moe_layers:
        slots = config["initial_global_assignments"][layer]
        assert len(slots) == config["num_slots"]
        held[layer] = _split(slots, ep_size)
    return held


def read_vllm_ascend(content: bytes) -> Held:
    """Return what `expert_map_path` loads, by the ordinal of the layer."""
    data = json.loads(content)
    held: Held = {}
    assert len(data["layer_list"]) == data["moe_layer_count"]
    for ordinal, layer in enumerate(data["layer_list"]):
        assert layer["layer_id"] == ordinal
        devices = layer["device_list"]
        assert len(devices) == layer["device_count"]
        assert [device["device_id"] for device in devices] == list(range(len(devices)))
        held[ordinal] = [device["device_expert"] for device in devices]
        # An expert has one slot on a device; the first device's experts are the slots of each.
        assert all(len(set(experts)) == len(experts) for experts in held[ordinal])
    # All devices and layers go into one tensor.
    torch.tensor(list(held.values()))
    return held


def read_eplb(content: bytes, *, num_gpus: int) -> Held:
    """Return the slots of DeepSeek's three tensors, by ordinal, after checking that they agree."""
    tensors: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    phy2log, log2phy, logcnt = (tensors[name] for name in ("phy2log", "log2phy", "logcnt"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.int64}
    assert log2phy.shape == (*logcnt.shape, int(logcnt.max()))
    for layer, row in enumerate(phy2log.tolist()):
        for expert, number in enumerate(logcnt[layer].tolist()):
            slots = log2phy[layer, expert].tolist()
            assert sorted(slots[:number]) == [i for i, held in enumerate(row) if held == expert]
            assert set(slots[number:]) <= {-1}
    return {layer: _split(row, num_gpus) for layer, row in enumerate(phy2log.tolist())}


def read_ktransformers(
    content: bytes, *, num_hidden_layers: int, num_experts: int, num_gpu_experts: int
) -> list[tuple[int, int]]:
    """Return the layers and experts that `--kt-num-gpu-experts` keeps, the busiest first."""
    loaded: Any = torch.load(io.BytesIO(content), weights_only=True)
    counts = loaded["logical_count"] if isinstance(loaded, dict) else loaded
    assert counts.dtype == torch.int32
    assert counts.dim() == 3
    assert counts.shape[1:] == (num_hidden_layers, num_experts)
    total = counts.sum(dim=0)
    busiest = total.flatten().sort(descending=True, stable=True).indices[:num_gpu_experts]
    return [divmod(int(cell), num_experts) for cell in busiest]


def _split(slots: Sequence[int], num_gpus: int) -> list[list[int]]:
    """Return the experts of each GPU, which owns a contiguous block of slots."""
    size = len(slots) // num_gpus
    return [list(slots[gpu * size : (gpu + 1) * size]) for gpu in range(num_gpus)]
