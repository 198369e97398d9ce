"""Values that are large, and so computed only when something that depends on them is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch._ops import OpOverload

from moetool.simulation.meta.dispatch import flatten, map_only
from moetool.simulation.meta.generation import CantSimulate
from moetool.simulation.meta.uniform_values import (
    LaterValue,
    find_element,
    find_result,
    is_reduction,
)


class DeferredCall:
    """An operation on CPU tensors that runs when one of its results is read.

    Attributes:
        results: Its results; empty if it hasn't run or can't run.
        shapes: The shapes of its results.

    Args:
        func: The operation.
        args: Its positional arguments. `DeferredValue` stands for tensors that aren't computed yet.
        kwargs: Its keyword arguments.
        shapes: The shapes of its results.
        num_bytes: Size of the results, except those that share memory with an argument.
        most_bytes: Limit for that size; reading a result beyond it raises `CantSimulate`.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        shapes: Sequence[torch.Size] = (),
        num_bytes: int,
        most_bytes: int,
    ) -> None:
        self.shapes = shapes
        self._func: Callable[..., Any] = func
        self._given: tuple[Any, Any] | None = (args, kwargs or {})
        self._num_bytes = num_bytes
        self._most_bytes = most_bytes
        self.results: list[Any] = []
        self._element: torch.Tensor | None = None
        self._error: tuple[type[Exception], tuple[Any, ...]] | None = None

    @property
    def is_pending(self) -> bool:
        """Whether it has not run yet."""
        return self._given is not None

    def run(self) -> list[Any]:
        """Return the operation's results, computed at the first call.

        Raises:
            CantSimulate: They exceed the limit.
            NotImplementedError: The CPU can't compute them.
        """
        if self._given is not None:
            given, self._given = self._given, None
            try:
                self.results = self._reduce(*given) or self._compute(*given)
            except (CantSimulate, NotImplementedError) as error:
                # Kept apart from the error, whose traceback would keep alive all tensors of the
                # model's functions that are at work.
                self._error = (type(error), error.args)
        if self._error is not None:
            kind, arguments = self._error
            raise kind(*arguments)
        return self.results

    def settle(self) -> None:
        """Run before an argument changes. Results that can't be computed then stay unknown."""
        try:
            self.run()
        except (CantSimulate, NotImplementedError):
            return

    def depends_on(self, address: int) -> bool:
        """Return whether one of its arguments is in the storage at an address."""
        args, kwargs = self._given or ((), {})
        return any(
            tensor.untyped_storage()._cdata == address
            for leaf in flatten((*args, *kwargs.values()))
            if (tensor := leaf.find() if isinstance(leaf, DeferredValue) else leaf) is not None
            and isinstance(tensor, torch.Tensor)
        )

    def find_element(self, index: int) -> torch.Tensor | None:
        """Return the only number in a result, in as many dimensions of size 1.

        None if it may hold several.

        Raises:
            CantSimulate: They exceed the limit.
            NotImplementedError: The CPU can't compute them.
        """
        if self._given is None:
            return find_element(self.results[index]) if self.results else None
        if self._element is not None:
            return self._element
        self._refuse_too_many_bytes()
        if len(self.shapes) != 1 or not isinstance(self._func, OpOverload):
            return None
        with torch._C._DisableTorchDispatch():
            element = find_result(self._func, *self._given, shape=self.shapes[0])
            if element is not None and not is_view(self._func):
                # What it followed from is not needed any more. A view has to share its memory.
                self._element = element.clone()
                self._func, self._given = _fill, ((self._element, self.shapes[0]), {})
        return element

    def _reduce(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Return the result of a reduction of equal numbers; nothing if it isn't one."""
        self._refuse_too_many_bytes()
        if not is_reduction(self._func):
            return []
        shape = self.shapes[0]
        with torch._C._DisableTorchDispatch():
            element = find_result(self._func, args, kwargs, shape=shape)
            return [] if element is None else [_fill(element, shape)]

    def _refuse_too_many_bytes(self) -> None:
        if self._num_bytes > self._most_bytes:
            raise CantSimulate(
                f"it reads values that depend on {self._num_bytes:,} bytes of masks or positions, and "
                f"moetool computes no more than {self._most_bytes:,} at once"
            )

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        args, kwargs = map_only(DeferredValue, DeferredValue.compute, (args, kwargs))
        with torch._C._DisableTorchDispatch():
            return flatten(self._func(*args, **kwargs))


@dataclass(frozen=True)
class DeferredValue(LaterValue):
    """One of the results of a deferred operation.

    Attributes:
        call: The operation.
        index: The index of this result.
    """

    call: DeferredCall
    index: int = 0

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return self.call.shapes[self.index]

    def find_element(self) -> torch.Tensor | None:
        """Return its only number, in as many dimensions of size 1; None if it may have several.

        Raises:
            CantSimulate: It exceeds the limit.
            NotImplementedError: The CPU can't compute it.
        """
        return self.call.find_element(self.index)

    def compute(self) -> torch.Tensor:
        """Return the value.

        Raises:
            CantSimulate: It exceeds the limit.
            NotImplementedError: The CPU can't compute it.
        """
        value: torch.Tensor = self.call.run()[self.index]
        return value

    def find(self) -> torch.Tensor | None:
        """Return the value if it has been computed."""
        return self.call.results[self.index] if self.call.results else None


class PendingCalls:
    """The operations that have not run yet, while something may still read their results."""

    def __init__(self) -> None:
        self._calls: WeakSet[DeferredCall] = WeakSet()

    def add(self, call: DeferredCall) -> None:
        """Add an operation that has not run yet."""
        self._calls.add(call)

    def settle(self, written: torch.Tensor) -> None:
        """Run all that depend on a CPU tensor that is about to be written to."""
        address = written.untyped_storage()._cdata
        # A view that has run is a further tensor of the same storage that others may depend on.
        while found := list(self._find_dependent(address)):
            for call in found:
                call.settle()

    def _find_dependent(self, address: int) -> Iterator[DeferredCall]:
        return (call for call in list(self._calls) if call.is_pending and call.depends_on(address))


def is_view(func: Any) -> bool:
    """Return whether an operation's results share memory with its arguments."""
    return any(returned.alias_info is not None for returned in func._schema.returns)


def find_written(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[torch.Tensor]:
    """Yield the tensors that an operation writes to."""
    if not func._schema.is_mutable:
        return
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        if isinstance(value, torch.Tensor):
            yield value


def _fill(element: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return element.expand(shape).clone()


def write_to_copy(func: Any, written: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Return what an operation would have left in its first argument, which stays as it is."""
    copy = written.clone()
    func(copy, *args, **kwargs)
    return copy
