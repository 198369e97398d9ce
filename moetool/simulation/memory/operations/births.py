"""Operations that are one kernel on a GPU, passed to whoever records their memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from moetool.simulation.memory.cuda_kernels import is_one_kernel
from moetool.simulation.meta.dispatch import DispatchMode, run_composite


class BirthObserver(Protocol):
    """Records the memory of operations."""

    def see_births(
        self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Record the memory of an operation's results and the temporary memory of its kernel."""


class Births(DispatchMode):
    """Passes every operation that is one kernel on a GPU to an observer."""

    def __init__(self, observer: BirthObserver) -> None:
        super().__init__()
        self._observer = observer

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operation's result and record its memory."""
        if not is_one_kernel(func):
            with self:
                return run_composite(func, args, kwargs)
        result = self.pass_on(func, args, kwargs)
        self._observer.see_births(func.overloadpacket, args, kwargs, result)
        return result
