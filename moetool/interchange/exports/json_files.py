"""Placements as JSON: for SGLang, and for vLLM on Ascend."""

from __future__ import annotations

import json
import shlex

from moetool.errors import UsageError
from moetool.interchange.exports.slots import SlotPlan, fill_rows


def render_sglang(plan: SlotPlan) -> bytes:
    """Return the file of `--init-expert-location`: a row for every hidden layer, and no other key.

    Raises:
        UsageError: The number of hidden layers is unknown, or too small for the trace.
    """
    rows = fill_rows(plan, plan.require_hidden_layers(engine="SGLang"))
    return _dump({"physical_to_logical_map": rows})


def explain_sglang(plan: SlotPlan, name: str) -> str:
    """Return the options of `sglang.launch_server` that use the file."""
    options = [f"--ep-size {plan.num_gpus}"]
    if plan.num_redundant_experts:
        options.append(f"--ep-num-redundant-experts {plan.num_redundant_experts}")
        # Scores are those of replicas chosen at random; its default is the nearest.
        options.append("--ep-dispatch-algorithm dynamic")
    return " ".join([*options, f"--init-expert-location {shlex.quote(name)}"])


def render_vllm_ascend(plan: SlotPlan) -> bytes:
    """Return the file of `expert_map_path`: the experts of each device, by ordinal of the layer.

    Raises:
        UsageError: A device would hold two replicas of an expert. vLLM on Ascend maps each expert
            to one slot of a device, and finds the slots of other devices by counting those.
    """
    for layer, slots in zip(plan.layers, plan.slots, strict=True):
        for device, experts in enumerate(plan.split_by_gpu(slots)):
            repeated = [expert for expert in experts if experts.count(expert) > 1]
            if repeated:
                raise UsageError(
                    f"Two replicas of expert {repeated[0]} of layer {layer} are on GPU {device}, and "
                    "vLLM on Ascend loads one replica of an expert for each device.",
                    hint="Give --method coactivation, which keeps replicas apart, or another --redundant.",
                )
    layers = [
        {
            "layer_id": number,
            "device_count": plan.num_gpus,
            "device_list": [
                {"device_id": device, "device_expert": experts}
                for device, experts in enumerate(plan.split_by_gpu(slots))
            ],
        }
        for number, slots in enumerate(plan.slots)
    ]
    return _dump({"moe_layer_count": len(layers), "layer_list": layers})


def explain_vllm_ascend(_: SlotPlan, name: str) -> str:
    """Return the options of `vllm serve` that use the file."""
    config = json.dumps({"eplb_config": {"expert_map_path": name}})
    return f"--enable-expert-parallel --additional-config {shlex.quote(config)}"


def _dump(value: object) -> bytes:
    return f"{json.dumps(value)}\n".encode()
