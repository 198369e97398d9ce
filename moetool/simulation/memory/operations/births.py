"""The mode that records the memory of every operation, working out each kind of call once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import nn

from moetool.simulation.memory.cuda_kernels import is_one_kernel
from moetool.simulation.memory.operations.layout_rules import find_outcome
from moetool.simulation.memory.operations.outcomes import OperationOutcome
from moetool.simulation.memory.operations.repeats import OperationRepeats
from moetool.simulation.meta.deferred_values import is_view
from moetool.simulation.meta.dispatch import DispatchMode, find_tensors
from moetool.simulation.meta.known_values import KnownValues, passes_unknown
from moetool.simulation.meta.layouts import is_plain
from moetool.simulation.meta.meta_kernels import MetaKernels

if TYPE_CHECKING:
    from moetool.simulation.memory.allocations import AllocationRecorder

# Some MB. A run takes a few hundred.
_MOST_KEPT = 10_000
_NUMBERS = (type(None), bool, int, float, str)
_SETTINGS = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_PLAIN = frozenset({*_NUMBERS, *_SETTINGS})


class _Kind(NamedTuple):
    """An operation, and whether its outcomes may be kept.

    Attributes:
        number: Stands for the operation in keys: torch takes long to hash an operation.
        is_kept: Whether it does the same in each call on tensors of the same layouts.
        is_composed: Whether it runs as other operations.
        is_view: Whether it only returns other tensors in the memory of those that it is given.
        func: The operation, kept alive: kinds are found by its identity.
    """

    number: int
    is_kept: bool
    is_composed: bool
    is_view: bool
    func: Any


# Of all runs: models of different shapes have many in common.
_OUTCOMES: dict[Hashable, OperationOutcome] = {}
_KINDS: dict[int, _Kind] = {}


class Births(DispatchMode):
    """Passes every operation that is one kernel on a GPU to a recorder.

    An operation without effects always returns tensors of the same layouts and takes the same memory,
    which depend only on the layouts of what it is given and on its other arguments. That also holds
    for one that is composed of others. All this is found once, and only recorded from then on; views
    take no memory. Of tensors whose values are known, results are known as well: what is composed
    then runs, part by part. Where other modes see operations, all run.

    Args:
        recorder: Records memory.
        repeats: Records operations that do the same as an earlier one; None to run all.
    """

    def __init__(self, recorder: AllocationRecorder, repeats: OperationRepeats | None) -> None:
        super().__init__()
        self._recorder = recorder
        self._repeats = repeats
        # Finds which tensors have known values; None if no outcomes can be kept.
        self._known: KnownValues | None = None
        # Operations so far that do something else in a call like an earlier one.
        self._num_not_kept = 0

    def __enter__(self) -> Self:
        super().__enter__()
        modes = self.list_modes()
        if self._repeats is not None and torch.is_inference_mode_enabled():
            is_usual = [type(mode) for mode in modes[1:]] == [KnownValues, MetaKernels]
            self._known = modes[1] if is_usual else None  # type: ignore[assignment]
        return self

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operation's result and record its memory."""
        repeats = self._repeats
        if self._known is None or repeats is None:
            return self._run(func, args, kwargs)
        kind = _KINDS.get(id(func)) or _find_kind(func)
        if kind.is_view and (viewed := _find_viewed(args, kwargs)) is not None:
            result = func(*args, **kwargs)
            self._recorder.see_births(func.overloadpacket, args, kwargs, result)
            if self._known.count_known(viewed) == len(viewed):
                self._known.keep(func, args, kwargs, result)
            return result
        given: list[torch.Tensor] = []
        key = self._describe(kind, args, kwargs, given) if kind.is_kept else None
        if key is None:
            self._num_not_kept += not kind.is_kept
            return self._run(func, args, kwargs)
        outcome = _OUTCOMES.get(key)
        if outcome is None and not kind.is_composed:
            outcome = find_outcome(func, args, kwargs)
            _keep(key, outcome)
        if outcome is not None and self._recorder.can_repeat(outcome, given):
            result = repeats.repeat(outcome, given)
            if self._known.count_known(given) == len(given):
                self._known.keep(func, args, kwargs, result)
            return result
        mark, num_not_kept = repeats.begin(), self._num_not_kept
        result = self._run(func, args, kwargs)
        # What is composed may return a value that one of its parts knows.
        is_known = kind.is_composed and self._known.count_known(find_tensors([result])) > 0
        if self._num_not_kept == num_not_kept and not is_known:
            _keep(key, repeats.end(mark, given, result))
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not is_one_kernel(func):
            return self.run_parts(func, args, kwargs)
        result = self.pass_on(func, args, kwargs)
        self._recorder.see_births(func.overloadpacket, args, kwargs, result)
        return result

    def _describe(
        self,
        kind: _Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[torch.Tensor],
    ) -> Hashable | None:
        """Return all that an operation's outcome depends on, and list the tensors that it is given.

        None if it may depend on more.
        """
        described: list[Hashable] = []
        if not _describe_values(args, described, given):
            return None
        if kwargs:
            described.append(tuple(kwargs))
            if not _describe_values(kwargs.values(), described, given):
                return None
        # Of what is composed, a part may depend on known values alone.
        if kind.is_composed and (
            not given or self._known is None or self._known.count_known(given)
        ):
            return None
        # A product of integers with a fraction has the default dtype.
        return (kind.number, torch.get_default_dtype(), *described)


def _find_kind(func: Any) -> _Kind:
    schema = func._schema
    is_pure = func.namespace == "aten" and not schema.is_mutable
    is_kept = is_pure and passes_unknown(func.overloadpacket)
    is_composed = not is_one_kernel(func)
    kind = _Kind(
        number=len(_KINDS),
        is_kept=is_kept,
        is_composed=is_composed,
        is_view=is_kept and not is_composed and is_view(func),
        func=func,
    )
    return _KINDS.setdefault(id(func), kind)


def _keep(key: Hashable, outcome: OperationOutcome | None) -> None:
    """Keep an outcome if there is one."""
    if outcome is not None:
        if len(_OUTCOMES) >= _MOST_KEPT:
            _OUTCOMES.clear()
        _OUTCOMES[key] = outcome


def _find_viewed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor] | None:
    """Return the tensors that a view is given; None if it may be more than a view of them."""
    given = find_tensors((*args, *kwargs.values()))
    return given if given and all(map(is_plain, given)) else None


def _describe_values(
    values: Iterable[object], described: list[Hashable], given: list[torch.Tensor]
) -> bool:
    """Append what a result may depend on, and the tensors; return whether that is all."""
    for value in values:
        kind = type(value)
        if kind is torch.Tensor or kind is nn.Parameter:
            tensor: Any = value
            if not tensor.is_meta or tensor.layout is not torch.strided or tensor.is_complex():
                return False
            given.append(tensor)
            described.append(
                (
                    *(tensor.shape, tensor.stride(), tensor.dtype, tensor.storage_offset()),
                    # torch multiplies some matrices that require gradients in another way.
                    tensor.requires_grad,
                )
            )
        elif kind in _PLAIN:
            # Numbers that are equal may differ in type, and so may the results.
            described.append((kind, value))
        elif kind is list or kind is tuple:
            described.append(len(value))  # type: ignore[arg-type]
            if not _describe_values(value, described, given):  # type: ignore[arg-type]
                return False
        else:
            return False
    return True
