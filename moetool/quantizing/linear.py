"""bitsandbytes' 4-bit linear layers with less of Python around the same kernels."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes.functional
import bitsandbytes.nn
import torch
from torch import nn

_library: Any = bitsandbytes.nn


class LeanLinear4bit(_library.Linear4bit):  # type: ignore[misc]
    """A `Linear4bit` that calls the kernel of `matmul_4bit` at once where nothing else is needed.

    A weight of bitsandbytes is a subclass of a tensor, for which torch asks Python before each
    operation. While single tokens are decoded, that takes longer than the multiplication.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product, as `Linear4bit` does."""
        held: Any = self
        weight = held._parameters["weight"]
        bias = held._parameters["bias"]
        state = weight.quant_state
        is_plain = (
            x.is_cuda
            and state is not None
            and not state.nested
            and x.dtype is held.compute_dtype
            and (bias is None or bias.dtype is x.dtype)
            and not (torch.is_grad_enabled() and x.requires_grad)
            and x.numel() > 0
        )
        if not is_plain:
            if x.device.type == "cpu" and held.support_avx512bf16_for_cpu:
                self._keep_scales()
            usual: torch.Tensor = super().forward(x)
            return usual
        kept = held.__dict__.get("_plain_codes")
        if kept is None or kept[0] is not weight:
            codes = weight.detach().as_subclass(torch.Tensor).view(-1, 1)
            kept = held.__dict__["_plain_codes"] = (weight, codes)
        operations: Any = torch.ops
        product: torch.Tensor = operations.bitsandbytes.gemm_4bit.default(
            x, kept[1], state.shape, state.absmax, state.blocksize, state.quant_type, bias=bias
        )
        return product

    def _keep_scales(self) -> None:
        """Keep the scales as they are stored.

        For its kernel for some CPUs, bitsandbytes rounds them to bfloat16 and transposes them, and
        doesn't undo that when the layer is saved.
        """
        held: Any = self
        state = held.weight.quant_state
        if state is not None and not getattr(state, "packing_format_for_cpu", False):
            held.__dict__["_stored_state"] = copy.copy(state)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        weight: Any = self.weight
        if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
            functions: Any = bitsandbytes.functional
            undo = functions._convert_weight_packed_for_cpu_inverse
            weight.data, _ = undo(weight.data, weight.quant_state)
            weight.quant_state = self.__dict__.pop("_stored_state")
        super()._save_to_state_dict(destination, prefix, keep_vars)


def make_lean(model: nn.Module) -> None:
    """Have a model's 4-bit linear layers run as `LeanLinear4bit`, in place."""
    for module in model.modules():
        if type(module) is _library.Linear4bit:
            module.__class__ = LeanLinear4bit
