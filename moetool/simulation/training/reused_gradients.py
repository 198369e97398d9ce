"""Gradients that autograd writes into memory which nothing else holds, as on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from moetool.simulation.meta.meta_kernels import MetaKernels

aten = torch.ops.aten

# Formulas of backward passes fill zeros by them, and under a mode fill a copy (`FunctionsManual.cpp`,
# `areAnyTensorSubclassLike`).
_FILLING = frozenset({aten.index_put, aten.scatter, aten.scatter_add, aten.index_add})


class ReusedGradients(MetaKernels):
    """Lets autograd add to gradients in place, which it never does under a mode.

    Everything else runs as under `MetaKernels`, which one mode less does faster. Where a tensor is used twice, autograd adds the second gradient to the first in place, if it holds
    the only reference to that, and if that is dense (`InputBuffer::accumulate`).
    """

    def __init__(self) -> None:
        super().__init__()
        # References to a gradient that only autograd holds, and to its storage.
        self._alone: tuple[int | None, int] | None = None
        self._is_calibrating = False

    def calibrate(self) -> None:
        """Count the references to a gradient that nothing else holds, with the modes entered now."""
        self._is_calibrating = True
        given = torch.zeros(2, device="meta", requires_grad=True)
        # The product's gradients are new tensors.
        result: Any = given * 1.0 + given * 1.0
        result.backward(torch.empty(2, device="meta"))
        self._is_calibrating = False

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operation's result, or its first argument where autograd reuses that."""
        operation = func.overloadpacket
        is_sum = operation is aten.add
        if not is_sum and operation not in _FILLING:
            return super().run(func, args, kwargs)
        # Checkpointed layers that run again in the backward pass have gradients enabled.
        is_in_backward = (
            not torch.is_grad_enabled() and torch._C._current_autograd_node() is not None
        )
        if not is_in_backward or args[0].device.type != "meta":
            return super().run(func, args, kwargs)
        if is_sum and not self._is_reused(*args[:2]):
            return super().run(func, args, kwargs)
        return args[0]

    def _is_reused(self, gradient: torch.Tensor, other: Any) -> bool:
        held = (_count_references(gradient), _count_references_to_storage(gradient))
        if self._is_calibrating:
            self._alone = held
        return (
            isinstance(other, torch.Tensor)
            and held[0] is not None
            and held == self._alone
            and _is_dense(gradient)
        )


def _count_references(tensor: torch.Tensor) -> int | None:
    """Return the number of references; None in versions of torch that don't count them."""
    count: Callable[[], int] | None = getattr(tensor, "_use_count", None)
    return None if count is None else count()


def _count_references_to_storage(tensor: torch.Tensor) -> int:
    count: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return count


def _is_dense(tensor: torch.Tensor) -> bool:
    """Return whether a tensor's values lie next to each other in some order, each once."""
    distance = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != distance:
                return False
            distance *= size
    return True
