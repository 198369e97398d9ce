"""Recompute an experts module's output by a plain loop over experts: the recorder's referee.

Independent of moetool and of transformers' experts implementations: it reads the raw expert
weights, and takes nothing from the model but the experts module's input.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

GPT_OSS_LIMIT = 7.0
GPT_OSS_ALPHA = 1.702


def apply_decisions(
    experts: nn.Module,
    hidden_states: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Return `sum_j weights[t, j] * FFN_{ids[t, j]}(hidden_states[t])` in float64.

    Args:
        experts: Holds `gate_up_proj` and `down_proj`, stacked by expert.
        hidden_states: What the experts module received. # (num_tokens, hidden_size)
        ids: # (num_tokens, top_k)
        weights: # (num_tokens, top_k)

    Returns:
        # (num_tokens, hidden_size)
    """
    output = torch.zeros_like(hidden_states, dtype=torch.float64)
    inputs = hidden_states.double()
    for token in range(ids.shape[0]):
        for slot in range(ids.shape[1]):
            expert = int(ids[token, slot])
            output[token] += weights[token, slot].double() * _expert(experts, expert, inputs[token])
    return output


def _expert(experts: nn.Module, expert: int, x: torch.Tensor) -> torch.Tensor:
    parameters = {name: p.detach()[expert].double() for name, p in experts.named_parameters()}
    gate_up, down = parameters["gate_up_proj"], parameters["down_proj"]
    if "gate_up_proj_bias" in parameters:
        return _gpt_oss_expert(parameters, x)
    gate, up = (gate_up @ x).chunk(2)
    return down @ (F.silu(gate) * up)


def _gpt_oss_expert(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """gpt-oss stacks transposed matrices, interleaves gate and up, clamps, and has biases."""
    gate_up = x @ parameters["gate_up_proj"] + parameters["gate_up_proj_bias"]
    gate = gate_up[0::2].clamp(max=GPT_OSS_LIMIT)
    up = gate_up[1::2].clamp(min=-GPT_OSS_LIMIT, max=GPT_OSS_LIMIT)
    activated = (up + 1) * gate * torch.sigmoid(GPT_OSS_ALPHA * gate)
    return activated @ parameters["down_proj"] + parameters["down_proj_bias"]
