"""A routed layer of Megatron-Core, without TransformerEngine."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def build_moe_layer(
    dispatcher: str,
    *,
    hidden_size: int,
    inner_size: int,
    num_experts: int,
    top_k: int,
    dtype: torch.dtype,
    **options: Any,
) -> nn.Module:
    """Return a `MoELayer` of gated experts, in groups of processes that are there already.

    Args:
        dispatcher: Name of the dispatcher of tokens.
        hidden_size: Of the layer.
        inner_size: Of each expert.
        num_experts: Of the layer.
        top_k: Experts per token.
        dtype: Of the parameters.
        options: Further fields of its configuration.
    """
    config = importlib.import_module("megatron.core.transformer").TransformerConfig(
        num_layers=1,
        hidden_size=hidden_size,
        num_attention_heads=2,
        ffn_hidden_size=inner_size,
        moe_ffn_hidden_size=inner_size,
        num_moe_experts=num_experts,
        moe_router_topk=top_k,
        moe_token_dispatcher_type=dispatcher,
        moe_router_load_balancing_type="none",
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        use_cpu_initialization=True,
        params_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        **options,
    )
    # Version 0.16 asks for this name without TransformerEngine too.
    utilities = importlib.import_module("megatron.core.transformer.moe.moe_utils")
    vars(utilities).setdefault("te_general_gemm", None)
    specs = importlib.import_module("megatron.core.models.gpt.moe_module_specs")
    spec = specs.get_moe_module_spec(use_te=False, num_experts=num_experts, moe_grouped_gemm=False)
    build = importlib.import_module("megatron.core.transformer.spec_utils").build_module
    block: nn.Module = build(spec, config=config)
    return block
