"""Experts in mxfp4 as vLLM and SGLang hold them: packed, and padded for the kernels of the GPU.

A number takes half a byte, and each 32 of them share a scale of one byte. Which padding a GPU
needs is chosen by `get_mxfp4_backend` and `Mxfp4MoEMethod.create_weights` (vLLM, layers/
quantization/mxfp4.py), and by arg_groups/model_overrides/gpt_oss.py, `FusedMoE` and
`Mxfp4MoEMethod.create_weights` (SGLang). Kernels that only environment variables turn on are left
out. What swizzling may add is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moetool.errors import InputError
from moetool.memory.serving.answer import Engine

_BLOCK = 32
_BFLOAT16_BYTES, _FLOAT_BYTES = 2, 4


@dataclass(frozen=True)
class Padding:
    """Multiples that a kernel needs, and the bytes of a number of a bias."""

    width: int
    hidden: int
    bias_bytes: int


_TRITON = Padding(64, 1, _FLOAT_BYTES)
_MARLIN = Padding(128, 256, _BFLOAT16_BYTES)
# By the major number of the compute capability.
_PADDINGS: Mapping[Engine, Mapping[int, Padding]] = {
    Engine.VLLM: {
        8: _MARLIN,
        9: _TRITON,
        10: Padding(256, 256, _FLOAT_BYTES),
        12: _MARLIN,
    },
    Engine.SGLANG: {
        9: _TRITON,
        10: Padding(128, 256, _FLOAT_BYTES),
    },
}


def choose_padding(
    engine: Engine, capability: tuple[int, int] | None, *, shares_experts: bool
) -> Padding:
    """Return the padding on a GPU.

    Args:
        engine: vLLM or SGLang.
        capability: The GPU's compute capability; None if it is unknown.
        shares_experts: Whether each GPU holds whole experts.

    Raises:
        InputError: The engine has no such kernel there, or chooses one that is not known here.
    """
    major = capability[0] if capability is not None else 0
    padding = _PADDINGS[engine].get(major)
    # SGLang takes the Triton kernels without expert parallelism only.
    if padding is None or (engine is Engine.SGLANG and padding is _TRITON and shares_experts):
        raise InputError(
            f"Which kernels {engine} runs mxfp4 with on this GPU is not known here.",
            hint="Choose another GPU.",
        )
    return padding


def count_expert_bytes(
    name: str, *, num_experts: int, hidden: int, width: int, padding: Padding
) -> int:
    """Return the bytes of one fused parameter of a layer's experts.

    Args:
        name: `gate_up_proj` or `down_proj`, or one of them with `_bias`.
        num_experts: Experts on the GPU.
        hidden: The model's hidden size.
        width: The experts' width on the GPU.
        padding: The kernel's.
    """
    width, hidden = _pad(width, padding.width), _pad(hidden, padding.hidden)
    rows, columns = (2 * width, hidden) if name.startswith("gate_up") else (hidden, width)
    if name.endswith("_bias"):
        return num_experts * rows * padding.bias_bytes
    return num_experts * rows * (columns // 2 + columns // _BLOCK)


def _pad(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
