"""The factor by which a block multiplies the sum of its experts after they have run."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.tracing.recording.hooks import Hooks
from moetool.tracing.recording.transfer.host_copies import HostCopy, to_numpy

# Enough tokens to tell a constant from a coincidence.
_NUM_TOKENS = 32
# Share of the block's output that may stay unexplained: bfloat16 rounds to 0.4 %.
_TOLERANCE = 0.02
# A block adds at most shared experts to its experts; with more terms, no factor is reported.
_MAX_TERMS = 2


class OutputFactorMeter:
    """Measures, in the first call, the factor between the experts' sum and the block's output.

    The block's output is fitted, token by token, by the outputs of its experts and of its other
    children. The weights that experts receive do not include this factor.
    """

    def __init__(self, model: nn.Module, layer: MoeLayer) -> None:
        # The block's output and the terms that explain it, the experts' sum first.
        self._seen: list[HostCopy] = []
        self._factor: float | None = None
        self._outputs: dict[str, torch.Tensor] = {}
        self._hooks = Hooks()
        within = layer.experts_path.removeprefix(layer.block_path).removeprefix(".")
        # The block's own child, which may wrap the experts.
        self._experts_name = within.partition(".")[0]
        block = model.get_submodule(layer.block_path)
        for name, child in block.named_children():
            self._hooks.after(child, self._keep(name))
        self._hooks.after(block, self._measure)
        self._hooks.on_removal(self._outputs.clear)

    @property
    def factor(self) -> float | None:
        """The factor, rounded to three significant digits, once a call was seen.

        It is 1 if the block adds the sum as it is, and None if it does more than multiply it.
        """
        if self._seen:
            total, *terms = (to_numpy(copy.read()).astype(np.float64) for copy in self._seen)
            self._factor = _fit_factor(total, terms)
            self._seen.clear()
        return self._factor

    def remove(self) -> None:
        """Remove every hook."""
        self._hooks.remove()

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
                # Fitted when it is asked for: a GPU does not wait for it.
                self._seen = [HostCopy(value) for value in (total, experts, *others)]
        self.remove()


def _some_tokens(hidden: torch.Tensor) -> torch.Tensor:
    """Return a copy of the first tokens, of shape `(num_tokens, hidden_size)`."""
    return hidden.detach().flatten(0, -2)[:_NUM_TOKENS].clone()


def _is_hidden(value: object) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.dim() >= 2 and value.is_floating_point()


def _fit_factor(total: NDArray[np.float64], terms: list[NDArray[np.float64]]) -> float | None:
    """Return the factor of the first term in the total, if the same factor explains all tokens.

    Args:
        total: # (num_tokens, hidden_size)
        terms: Each of the same shape.
    """
    ran = np.abs(terms[0]).max(axis=1) > 0
    columns = np.stack([term[ran] for term in terms], axis=2)  # (…, hidden_size, num_terms)
    total = total[ran][:, :, None]  # (num_tokens, hidden_size, 1)
    if not len(total):
        return None
    factors = np.linalg.pinv(columns) @ total  # (num_tokens, num_terms, 1)
    rest = np.linalg.norm(columns @ factors - total) / np.linalg.norm(total)
    found = factors[:, 0, 0]  # (num_tokens,)
    middle = np.median(found)
    if rest > _TOLERANCE or (np.abs(found - middle) > _TOLERANCE * np.abs(middle)).any():
        return None
    return float(f"{middle:.3g}")
