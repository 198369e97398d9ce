"""Each chosen expert's own output, recomputed by the model's own code.

Implementations of fused experts differ in how they group rows, and none returns a single expert's
output. So after a call the experts run again, on a row for each assignment, with its expert alone
and a weight of 1: what comes out is the output of that expert, by the code that made the sum. The
results are added up by weight and compared with what the call returned; experts that do anything
else with their weights are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moetool.errors import UntraceableError

# Share of the summed norms that rounding may leave unexplained, in units of the dtype's precision.
_ROUNDINGS = 16
_LEAST_TOLERANCE = 1e-5


@dataclass(frozen=True)
class ExpertsCall:
    """One call of an experts module, with its result.

    Attributes:
        path: Module path of the experts.
        module: The experts.
        args: As it was called.
        kwargs: As it was called.
        ids: Among the arguments. # (num_slots, top_k)
        weights: Among the arguments. # (num_slots, top_k)
        output: What it returned.
    """

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ids: torch.Tensor
    weights: torch.Tensor
    output: Any

    def iter_outputs(self, slots: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the chosen experts' outputs for some slots, one place of the decision at a time.

        Args:
            slots: # (num_tokens,)

        Raises:
            UntraceableError: Their sum by weight is not what the call returned.
        """
        weights = self.weights[slots]  # (num_tokens, top_k)
        outputs = self._run_apart(slots)  # (num_tokens, top_k, hidden_size)
        total: torch.Tensor | float = 0.0
        size: torch.Tensor | float = 0.0
        for place in range(self.ids.shape[1]):
            output = _widen(outputs[:, place])  # (num_tokens, hidden_size)
            scale = weights[:, place, None].to(output.dtype)
            total = total + scale * output
            size = size + scale.abs().squeeze(1) * torch.linalg.vector_norm(output, dim=1)
            yield output
        self._check_sum(total, size, slots)

    def _run_apart(self, slots: torch.Tensor) -> torch.Tensor:
        """Return every chosen expert's output.

        Returns:
            # (num_tokens, top_k, hidden_size)
        """
        ids = self.ids[slots]  # (num_tokens, top_k)
        alone = ids.reshape(-1, 1)
        try:
            rows = self._run(slots, alone)
        except (IndexError, ValueError):
            # LongCat-Flash's experts squeeze away a single place. The second one gets weight 0.
            if ids.shape[1] == 1:
                raise
            other = ids.roll(1, dims=1).reshape(-1, 1)
            rows = self._run(slots, torch.cat([alone, other], dim=1))
        if rows is None or rows.shape[0] != ids.numel():
            raise self._refuse("running one expert at a time does not give one row for each")
        return rows.view(*ids.shape, -1)

    def _run(self, slots: torch.Tensor, ids: torch.Tensor) -> torch.Tensor | None:
        """Return what the experts make of a row for each assignment of some slots.

        Args:
            slots: # (num_tokens,)
            ids: Experts of each row, of which the first has weight 1, and others weight 0.
                # (num_tokens * top_k, 1 or 2)
        """
        num_slots, top_k = self.ids.shape
        weights = torch.zeros_like(ids, dtype=self.weights.dtype)
        weights[:, 0] = 1

        def swap(value: Any) -> Any:
            if value is self.ids:
                return ids
            if value is self.weights:
                return weights
            if isinstance(value, torch.Tensor) and value.dim() >= 2:
                rows = value.flatten(0, -2)
                if rows.shape[0] == num_slots:
                    return rows[slots.repeat_interleave(top_k)]
            return value

        # `forward` runs no hooks, but what accelerate puts around it to bring weights.
        forward: Callable[..., Any] = self.module.forward
        with torch.no_grad():
            output = forward(
                *(swap(value) for value in self.args),
                **{name: swap(value) for name, value in self.kwargs.items()},
            )
        return _take_rows(output)

    def _check_sum(
        self, total: torch.Tensor | float, size: torch.Tensor | float, slots: torch.Tensor
    ) -> None:
        rows = _take_rows(self.output)
        if rows is None or rows.shape[0] != self.ids.shape[0]:
            raise self._refuse("its output does not have one row for each token")
        precision = torch.finfo(rows.dtype).eps
        tolerance = max(_LEAST_TOLERANCE, _ROUNDINGS * precision)
        error = torch.linalg.vector_norm(_widen(rows[slots]) - total, dim=1)
        # Written so that NaN, which compares as False, is refused.
        if not bool((error <= tolerance * size).all()):
            raise self._refuse(
                "what its experts return one at a time, added up by weight, is not what it returns"
            )

    def _refuse(self, because: str) -> UntraceableError:
        return UntraceableError(
            f"Can't record the saliency of {self.path} ({type(self.module).__name__}): {because}.",
            hint="Leave out --saliency: the decisions themselves can be recorded.",
        )


def run_separate_experts(
    experts: list[nn.Module], hidden: torch.Tensor, ids: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Yield the outputs of experts that are modules, one place of the decision at a time.

    Args:
        experts: By id.
        hidden: # (num_tokens, hidden_size)
        ids: -1 where none ran, for which the output is 0. # (num_tokens, top_k)
    """
    for place in range(ids.shape[1]):
        output: torch.Tensor | None = None
        chosen = ids[:, place]
        for expert in set(chosen[chosen >= 0].tolist()):
            tokens = torch.nonzero(chosen == expert).flatten()
            with torch.no_grad():
                rows = _take_rows(experts[expert].forward(hidden[tokens]))
            assert rows is not None
            if output is None:
                output = rows.new_zeros(len(ids), rows.shape[1])
            output[tokens] = rows.to(output.device)
        yield _widen(hidden.new_zeros(len(ids), 1) if output is None else output)


def _take_rows(output: Any) -> torch.Tensor | None:
    """Return what a module returned as one row for each token, if it is that."""
    tensor = output[0] if isinstance(output, tuple) else output
    if not isinstance(tensor, torch.Tensor) or tensor.dim() < 2 or not tensor.is_floating_point():
        return None
    return tensor.detach().flatten(0, -2)


def _widen(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype is torch.float64 else values.float()
