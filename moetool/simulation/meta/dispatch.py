"""torch's mode that sees every dispatched operation, with type annotations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    _pop_mode,
    _push_mode,
)

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class DispatchMode(TorchDispatchMode):
    """Sees every operation while it is entered. Subclasses define `run`.

    A mode that is entered inside another one passes operations on to it itself, because the way
    through torch's dispatcher takes longer than what modes do.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The mode that was entered before this one.
        self._next: DispatchMode | None = None
        # For each time it was entered, the mode that is put back when it is left.
        self._replaced: list[DispatchMode | None] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch would wrap each call, which takes a tenth of a simulation's time. It keeps
        # its compiler away from modes anyway.
        return False

    def __enter__(self) -> Self:
        current: Any = _get_current_dispatch_mode()
        replaced = current if isinstance(current, DispatchMode) else None
        self._replaced.append(replaced)
        if replaced is not None:
            self._next = replaced
            _pop_mode()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *reason: object) -> None:
        super().__exit__(*reason)  # type: ignore[no-untyped-call]
        replaced = self._replaced.pop()
        if replaced is not None:
            self._next = None
            _push_mode(replaced)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # DTensor comes first then, and this mode sees the operations on its shards.
        if types and any(_is_sharded(each) for each in types):
            return NotImplemented
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operation's result.

        Args:
            func: The operation: an overload of torch's dispatcher.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
        """
        raise NotImplementedError

    def list_modes(self) -> list[DispatchMode]:
        """Return the modes that operations pass through, from this one to the last before torch."""
        return [self] if self._next is None else [self, *self._next.list_modes()]

    def run_parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of an operation that torch defines by others, each of which is run here.

        While an operation runs, torch has taken this mode off its stack. Entering it again would do
        the same, and take longer.
        """
        _push_mode(self)
        try:
            return run_composite(func, args, kwargs)
        finally:
            _pop_mode()

    def pass_on(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operation's result from the mode that was entered before, or from torch."""
        if self._next is not None:
            return self._next.run(func, args, kwargs)
        return func(*args, **kwargs)


@functools.cache
def is_composite(func: Any) -> bool:
    """Return whether torch defines an operation by others, as it does for every device."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE))


def run_composite(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the result of an operation that torch defines by others, which it runs one by one.

    In inference mode such operations arrive whole: `linear` hides its product. torch's `decompose`
    may take a decomposition for tracing, in Python, which is slow and makes extra copies.
    """
    return func._op_dk(_COMPOSITE, *args, **kwargs)


def _is_sharded(kind: type) -> bool:
    # By name, because most runs have no use for torch's module of sharded tensors.
    return kind.__module__.startswith("torch.distributed.tensor")


def find_local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the shard of a tensor that this process holds; an unsharded tensor itself."""
    local = getattr(tensor, "_local_tensor", None)
    return tensor if local is None else local


# An operation is given, and returns, no containers other than these. torch's functions for any
# containers take ten times as long.


def find_tensors(values: Iterable[object]) -> list[torch.Tensor]:
    """Return the tensors among an operation's arguments or results, in order, also those in lists."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += find_tensors(value)
    return found


def flatten(value: object) -> list[Any]:
    """Return the items of tuples and lists in order, down to whatever is neither."""
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in flatten(item)]
    return [value]


def map_only(kind: type, function: Callable[[Any], Any], value: Any) -> Any:
    """Return a value with a function applied to all of one type in it, also in tuples, lists, dicts."""
    if isinstance(value, kind):
        return function(value)
    if type(value) in (tuple, list):
        return type(value)(map_only(kind, function, item) for item in value)
    if type(value) is dict:
        return {name: map_only(kind, function, item) for name, item in value.items()}
    return value
