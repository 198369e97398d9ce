"""Forward hooks on modules that are removed together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

# Part of what torch says if it may not leave hooks as they are.
KEPT_BECAUSE = "moetool's hooks read values, which code that is being compiled has not"
_NO_BACKWARD = -1

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Hooks:
    """Places hooks on modules and removes all of them at once; may be filled again afterwards."""

    def __init__(self) -> None:
        self._placed = ExitStack()

    def before(
        self, module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False
    ) -> None:
        """Run a hook before each forward of a module."""
        handle = module.register_forward_pre_hook(_as_written(hook), with_kwargs=with_kwargs)
        self._placed.callback(handle.remove)

    def after(
        self,
        module: nn.Module,
        hook: Callable[..., Any],
        *,
        with_kwargs: bool = False,
        prepend: bool = False,
    ) -> None:
        """Run a hook after each forward of a module, with `prepend` before all other hooks."""
        handle = module.register_forward_hook(
            _as_written(hook), with_kwargs=with_kwargs, prepend=prepend
        )
        self._placed.callback(handle.remove)

    def on_removal(self, forget: Callable[[], None]) -> None:
        """Call a function when the hooks are removed."""
        self._placed.callback(forget)

    def remove(self) -> None:
        """Remove every hook."""
        self._placed.close()


def _as_written(hook: Callable[Arguments, Result]) -> Callable[Arguments, Result | None]:
    """Return a hook that torch.compile leaves as it is: compiled, it would see no values.

    It does not run during a backward: modules that run then, because of a checkpoint, repeat a call.
    """

    @functools.wraps(hook)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result | None:
        if torch._C._current_graph_task_id() != _NO_BACKWARD:
            return None
        return hook(*args, **kwargs)

    disable: Callable[..., Callable[Arguments, Result | None]] = torch.compiler.disable
    return disable(run, reason=KEPT_BECAUSE)
