"""Placements as YAML for TensorRT-LLM's expert-parallel load balancer."""

from __future__ import annotations

from moetool.interchange.exports.slots import SlotPlan


def render(plan: SlotPlan) -> bytes:
    """Return the file of `moe_config.load_balancer`; it refuses any other key.

    Weights stay where they are placed: the balancer moves none while it serves.
    """
    rows = [
        f"  {layer}: [{', '.join(map(str, slots))}]\n"
        for layer, slots in zip(plan.layers, plan.slots, strict=True)
    ]
    text = (
        "initial_global_assignments:\n"
        f"{''.join(rows)}"
        "layer_updates_per_iter: 0\n"
        f"num_slots: {plan.num_slots}\n"
    )
    return text.encode()


def explain(plan: SlotPlan, name: str) -> str:
    """Return what uses the file: an entry of the YAML given to `trtllm-serve --config`."""
    return (
        f"moe_config: {{load_balancer: {name}}} in the YAML of trtllm-serve --config, "
        f"with --ep_size {plan.num_gpus}"
    )
