"""Whole models that packages change or wrap, with the function that each of their experts computes."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch.nn import functional as F

from tests.frameworks.layers import (
    HIDDEN_SIZE,
    INNER_SIZE,
    NUM_EXPERTS,
    TOP_K,
    VOCAB_SIZE,
    FrameworkLayer,
)

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": INNER_SIZE,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def mixlora() -> FrameworkLayer:
    """Return a dense model among whose adapters tokens choose."""
    package = importlib.import_module("mixlora")
    transformers = importlib.import_module("transformers")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZES))
    names = {
        "gate_proj": (HIDDEN_SIZE, INNER_SIZE),
        "up_proj": (HIDDEN_SIZE, INNER_SIZE),
        "down_proj": (INNER_SIZE, HIDDEN_SIZE),
    }
    config = package.MixLoraConfig.from_config(
        {
            "base_model_name_or_path": "",
            "task_type": "CAUSAL_LM",
            "peft_type": "MIXLORA",
            "r": 2,
            "lora_alpha": 4,
            "lora_dropout": 0.1,
            "target_modules": list(names),
            "routing_strategy": "mixlora",
            "num_experts": NUM_EXPERTS,
            "top_k": TOP_K,
        }
    )
    config.adapter_name_, config.dtype_, config.act_fn_ = "first", torch.float32, "silu"
    weights = {"mixlora.layers.0.mlp.moe_gate.weight": torch.randn(NUM_EXPERTS, HIDDEN_SIZE)}
    for name, (given, returned) in names.items():
        for expert in range(NUM_EXPERTS):
            prefix = f"mixlora.layers.0.mlp.{name}.experts.{expert}"
            weights[f"{prefix}.lora_A.weight"] = torch.randn(2, given)
            weights[f"{prefix}.lora_B.weight"] = torch.randn(returned, 2)
    package.inject_adapter_in_model(model, config, weights)
    updates = model.model.layers[0].mlp.mixlora_moes["first"].experts_
    for update in updates.values():
        # The model's own `eval` does not reach it, and no oracle explains its dropout.
        update.eval()

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        gate, up, down = (updates[f"experts.{expert}.{name}"] for name in names)
        output: torch.Tensor = down(F.silu(gate(rows)) * up(rows))
        return output

    return FrameworkLayer(model, run, tolerance=1e-4, dtype=torch.float32, is_model=True)


def transformer_lens() -> FrameworkLayer:
    """Return transformers' Mixtral under TransformerLens's hooks."""
    sources = importlib.import_module("transformer_lens.model_bridge.sources")
    transformers = importlib.import_module("transformers")
    config = transformers.MixtralConfig(
        **_SIZES, num_local_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K
    )
    model = transformers.MixtralForCausalLM(config)
    experts = model.model.layers[0].mlp.experts
    bridge = sources.build_bridge_from_module(model, "MixtralForCausalLM", hf_config=config)

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        gate, up = (rows @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
        output: torch.Tensor = (F.silu(gate) * up) @ experts.down_proj[expert].T
        return output

    return FrameworkLayer(bridge, run, tolerance=1e-4, dtype=torch.float32, is_model=True)
