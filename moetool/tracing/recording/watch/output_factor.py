"""By what a block multiplies the sum of its experts after they have run."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.tracing.recording.compiled import as_written

# Enough tokens to tell a constant from a coincidence.
_NUM_TOKENS = 32
# Of the block's output, what a factor may leave unexplained: bfloat16 rounds to 0.4 %.
_TOLERANCE = 0.02
# A block has shared experts at most next to its experts; where more add up, nothing is told.
_MAX_TERMS = 2


class OutputFactorMeter:
    """Measures, in the first call, the factor between the experts' sum and the block's output.

    The block's output is fitted, token by token, by the experts' output and those of the block's
    other children. The weights that experts receive do not hold this factor.

    Attributes:
        factor: Three significant digits; 1 where the block adds the sum as it is, None where it
            does more than multiply it, or was not seen.
    """

    def __init__(self, model: nn.Module, layer: MoeLayer) -> None:
        self.factor: float | None = None
        self._outputs: dict[str, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._experts_name = layer.experts_path.rpartition(".")[2]
        block = model.get_submodule(layer.block_path)
        for name, child in block.named_children():
            self._handles.append(child.register_forward_hook(as_written(self._keep(name))))
        self._handles.append(block.register_forward_hook(as_written(self._measure)))

    def remove(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._outputs.clear()

    def _keep(self, name: str) -> Any:
        def hook(_child: nn.Module, _args: object, output: object) -> None:
            if _is_hidden(output):
                # A copy: blocks add to such tensors in place.
                self._outputs[name] = _some_tokens(output)

        return hook

    def _measure(self, _block: nn.Module, _args: object, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        experts = self._outputs.pop(self._experts_name, None)
        if experts is not None and _is_hidden(tensor):
            total = _some_tokens(tensor)
            others = [value for value in self._outputs.values() if value.shape == total.shape]
            if experts.shape == total.shape and len(others) < _MAX_TERMS:
                self.factor = _fit_factor(total, [experts, *others])
        self.remove()


def _some_tokens(hidden: torch.Tensor) -> torch.Tensor:
    return hidden.detach().flatten(0, -2)[:_NUM_TOKENS].to(torch.float64, copy=True)


def _is_hidden(value: object) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.dim() >= 2 and value.is_floating_point()


def _fit_factor(total: torch.Tensor, terms: list[torch.Tensor]) -> float | None:
    """Return the factor of the first term in the total, if one explains all tokens."""
    ran = terms[0].abs().amax(dim=1) > 0
    columns = torch.stack([term[ran] for term in terms], dim=2).cpu()  # (tokens, hidden, terms)
    total = total[ran].cpu().unsqueeze(2)
    if not len(total):
        return None
    factors = torch.linalg.pinv(columns) @ total  # (tokens, terms, 1)
    rest = (columns @ factors - total).norm() / total.norm()
    found = factors[:, 0, 0]
    middle = found.median()
    if rest > _TOLERANCE or ((found - middle).abs() > _TOLERANCE * middle.abs()).any():
        return None
    return float(f"{float(middle):.3g}")
