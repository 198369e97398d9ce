"""Values that are large, and so computed only when something that depends on them is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch

from moetool.simulation.meta.dispatch import flatten, map_only
from moetool.simulation.meta.generation import CantSimulate


class DeferredCall:
    """An operation on CPU tensors that runs when one of its results is read.

    Attributes:
        results: Its results; empty if it hasn't run or can't run.

    Args:
        func: The operation.
        args: Its positional arguments. `DeferredValue` stands for tensors that aren't computed yet.
        kwargs: Its keyword arguments.
        num_bytes: Size of the results, except those that share memory with an argument.
        most_bytes: Limit for that size; reading a result beyond it raises `CantSimulate`.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        num_bytes: int,
        most_bytes: int,
    ) -> None:
        self._func = func
        self._given: tuple[Any, Any] | None = (args, kwargs or {})
        self._num_bytes = num_bytes
        self._most_bytes = most_bytes
        self.results: list[Any] = []
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
                self.results = self._compute(*given)
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

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if self._num_bytes > self._most_bytes:
            raise CantSimulate(
                f"it reads values that depend on {self._num_bytes:,} bytes of masks or positions, and "
                f"moetool computes no more than {self._most_bytes:,} at once"
            )
        args, kwargs = map_only(DeferredValue, DeferredValue.compute, (args, kwargs))
        with torch._C._DisableTorchDispatch():
            return flatten(self._func(*args, **kwargs))


@dataclass(frozen=True)
class DeferredValue:
    """One of the results of a deferred operation.

    Attributes:
        call: The operation.
        index: The index of this result.
    """

    call: DeferredCall
    index: int = 0

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


def write_to_copy(func: Any, written: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Return what an operation would have left in its first argument, which stays as it is."""
    copy = written.clone()
    func(copy, *args, **kwargs)
    return copy
