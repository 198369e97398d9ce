"""Count the floating-point operations of a forward's products as they are dispatched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import flop_registry

from moetool.simulation.meta.dispatch import DispatchMode, is_composite, run_composite
from moetool.simulation.meta.generation import TooManyOperations
from moetool.simulation.repeated.observers import LayerVisit

aten = torch.ops.aten


def _count_grouped_mm(rows: torch.Tensor, weights: torch.Tensor, *_: Any, **__: Any) -> int:
    """Return the FLOPs of each row times one matrix of a stack.

    (num_rows, width_in) @ (num_groups, width_in, width_out)
    """
    return 2 * rows.shape[0] * weights.shape[-2] * weights.shape[-1]


def _count_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> int:
    """Return the FLOPs of attention: scores and weighted values, of every query and key.

    query (…, num_heads, num_queries, width), key (…, num_kv_heads, num_keys, width),
    value (…, num_kv_heads, num_keys, width_out). Heads that share keys and values each compute with
    them, which torch's own formula takes into account only since 2.13.
    """
    num_scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return 2 * num_scores * (query.shape[-1] + value.shape[-1])


def _count_triangular_solve(matrix: torch.Tensor, right: torch.Tensor, *_: Any, **__: Any) -> int:
    """Return the FLOPs of solving a triangular system by substitution.

    That is half the multiply-adds of a product with the matrix. (…, n, n), (…, n, num_columns)
    """
    return right.numel() * matrix.shape[-1]


# In addition to torch's formulas: operations that its counter leaves out, and attention before torch
# has chosen a kernel for it, which is how the dispatcher sees it in inference mode.
_FORMULAS: dict[Any, Any] = {
    aten._grouped_mm: _count_grouped_mm,
    torch.ops.transformers.grouped_mm_fallback: _count_grouped_mm,
    aten.scaled_dot_product_attention: _count_attention,
    aten.linalg_solve_triangular: _count_triangular_solve,
}


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of some operations: two per multiply-add of a product.

    Attributes:
        total: FLOPs of all operations.
        in_experts: FLOPs of those in routed experts.
    """

    total: int
    in_experts: int

    def __add__(self, other: FlopCount) -> FlopCount:
        return FlopCount(self.total + other.total, self.in_experts + other.in_experts)

    def __sub__(self, other: FlopCount) -> FlopCount:
        return FlopCount(self.total - other.total, self.in_experts - other.in_experts)


class FlopCounter:
    """Counts the FLOPs of all products of matrices, attention and convolutions while it is entered.

        with torch.inference_mode(), FlopCounter(expert_modules) as counter:
            model(input_ids)
        counter.count

    It is a `LayerObserver`: layers that `RepeatedLayers` doesn't run are counted, too.

    Attributes:
        count: The FLOPs so far.
        uncounted: Operations seen that have no formula and aren't part of one that has.

    Args:
        expert_modules: The modules in which routed experts compute.
        max_operations_of_layer: The most operations that a layer may take; None for no limit. One
            more raises `TooManyOperations`.
    """

    def __init__(
        self,
        expert_modules: Iterable[nn.Module] = (),
        *,
        max_operations_of_layer: int | None = None,
    ) -> None:
        self.count = FlopCount(0, 0)
        self.uncounted: set[Any] = set()
        # Kept, so that no other module gets the address of one of them.
        self._experts = {id(module): module for module in expert_modules}
        self._max_operations = max_operations_of_layer
        self._num_operations = 0
        self._num_experts_entered = 0
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        # Hooks on each module would take seconds in models with thousands of experts.
        self._exit.callback(register_module_forward_pre_hook(self._enter_module).remove)
        self._exit.callback(register_module_forward_hook(self._leave_module).remove)
        self._exit.enter_context(_Products(self._see))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def describe(self, visit: LayerVisit) -> None:
        """Return nothing: FLOPs depend only on shapes and dtypes."""

    def begin_layer(self, visit: LayerVisit) -> FlopCount:
        """Return the FLOPs so far."""
        del visit
        self._num_operations = 0
        return self.count

    def end_layer(self, mark: FlopCount, left: Sequence[torch.Tensor]) -> FlopCount:
        """Return the FLOPs since a mark."""
        del left
        return self.count - mark

    def repeat_layer(
        self, visit: LayerVisit, done: FlopCount, left: Mapping[int, torch.Tensor]
    ) -> AbstractContextManager[object]:
        """Count the FLOPs of an earlier layer once more."""
        del visit, left
        self.count += done
        return nullcontext()

    def _see(self, operation: Any, flops: int | None) -> None:
        """Count an operation. Its FLOPs are None if there is no formula for it."""
        self._num_operations += 1
        if self._max_operations is not None and self._num_operations > self._max_operations:
            raise TooManyOperations
        if flops is None:
            self.uncounted.add(operation)
        else:
            self.count += FlopCount(flops, flops if self._num_experts_entered else 0)

    def _enter_module(self, module: nn.Module, *_: object) -> None:
        self._num_experts_entered += id(module) in self._experts

    def _leave_module(self, module: nn.Module, *_: object) -> None:
        self._num_experts_entered -= id(module) in self._experts


class _Products(DispatchMode):
    """Reports every operation that has a formula or is not composed of others.

    Args:
        see: Called with the operation, and with its FLOPs or None.
    """

    def __init__(self, see: Callable[[Any, int | None], None]) -> None:
        super().__init__()
        self._see = see

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operation's result and report it."""
        operation = func.overloadpacket
        is_formula_known = operation in _FORMULAS or operation in flop_registry
        if not is_formula_known and is_composite(func):
            with self:
                return run_composite(func, args, kwargs)
        result = self.pass_on(func, args, kwargs)
        if operation in _FORMULAS:
            self._see(operation, _FORMULAS[operation](*args, **kwargs))
        elif is_formula_known:
            self._see(operation, flop_registry[operation](*args, **kwargs, out_val=result))
        else:
            self._see(operation, None)
        return result
