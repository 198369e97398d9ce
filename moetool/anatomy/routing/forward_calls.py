"""Calls in the code of a module by which choices among experts are made."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from torch import nn

# Each of them chooses, or sends tokens to the chosen experts.
_ROUTING_CALLS = frozenset(
    {
        "gmm",
        "grouped_gemm",
        "grouped_mm",
        "gumbel_softmax",
        "histc",
        "index_add",
        "index_add_",
        "_grouped_mm",
        "topk",
        "topk_",
    }
)
# Whole models use these to choose tokens, or to find the last one.
_CHOICES = frozenset({"argmax", "bincount", "multinomial", "one_hot"})
# Functions that a forward calls are followed, and those that they call. No real one calls more.
_MOST_FUNCTIONS = 200
_OF_LIBRARIES = ("torch", "transformers", "builtins", "numpy", "accelerate")


@dataclass(frozen=True)
class RunCode:
    """The code that a call of a module runs.

    Attributes:
        function: The Python function.
        owner: The class that it belongs to.
        is_of_class: Whether it is the forward of the module's own class.
        name: Its name in messages.
    """

    function: FunctionType
    owner: type
    is_of_class: bool
    name: str


def find_run_code(module: nn.Module) -> RunCode | None:
    """Return the code that a module runs: the forward of its class, or a replacement for it.

    None if it is not Python code, as in modules that TorchScript compiled.
    """
    own = vars(module).get("forward")
    if hasattr(module, "_hf_hook"):
        # accelerate's hooks keep the function that they wrap.
        own = vars(module).get("_old_forward", own)
    owner = type(module)
    forward: Any = own if own is not None else getattr(owner, "forward", None)
    while isinstance(forward, functools.partial):
        forward = forward.func
    holder = getattr(forward, "__self__", None)
    if isinstance(holder, nn.Module):
        owner = type(holder)
    function = _find_function(forward)
    if function is None:
        return None
    is_of_class = function is _find_function(getattr(type(module), "forward", None))
    is_method = is_of_class or function is _find_function(getattr(owner, "forward", None))
    name = owner.__name__ if is_method else function.__name__
    return RunCode(function, owner, is_of_class, name)


def find_routing_calls(run: RunCode, *, is_whole_model: bool) -> list[str]:
    """Return the calls in a module's code by which choices among experts are made, sorted.

    Args:
        run: The code.
        is_whole_model: Leave out the calls by which whole models choose tokens.
    """
    calls = _find_calls(run.function, run.owner)
    return [call for call in calls if not (is_whole_model and call in _CHOICES)]


@functools.cache
def _find_calls(function: FunctionType, owner: type) -> tuple[str, ...]:
    found: dict[str, None] = {}
    waiting: list[FunctionType] = [function]
    seen: set[FunctionType] = set()
    while waiting and len(seen) < _MOST_FUNCTIONS:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        for name in _list_names(current.__code__):
            if name in _ROUTING_CALLS or name in _CHOICES:
                found[name] = None
            waiting += _follow(name, current, owner)
    return tuple(sorted(found))


def _list_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _list_names(constant)


def _follow(name: str, function: FunctionType, owner: type) -> Iterator[FunctionType]:
    """Yield the functions that a name may mean in a function, except those of libraries."""
    candidates = [getattr(owner, name, None), function.__globals__.get(name)]
    autograd = candidates[1]
    if isinstance(autograd, type) and not issubclass(autograd, nn.Module):
        candidates.append(getattr(autograd, "forward", None))
    for candidate in candidates:
        found = _find_function(candidate)
        if found is not None and found.__module__.partition(".")[0] not in _OF_LIBRARIES:
            yield found


def _find_function(candidate: Callable[..., Any] | None) -> FunctionType | None:
    if candidate is None or isinstance(candidate, type):
        return None
    try:
        plain = inspect.unwrap(candidate)
    except ValueError:
        return None
    plain = getattr(plain, "__func__", plain)
    return plain if isinstance(plain, FunctionType) and plain.__module__ else None
