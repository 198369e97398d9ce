"""Walks over a model's modules and parameters. One can leave out what is inside some modules."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

_NOT_CALLED = (nn.Module.forward, nn.ModuleList.forward, nn.ModuleDict.forward)

# The name of a module within the wrapper of its adapters.
_BASE_LAYER = "base_layer"


def walk_modules(
    module: nn.Module, *, path: str = "", closed: Collection[str] = (), is_each_once: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and all modules in it with their paths, in the order of `named_modules`.

    Models with thousands of modules for experts are why this isn't `named_modules`, which passes each
    module through one generator for each level above it.

    Args:
        module: Where to start.
        path: Its own path.
        closed: Paths of modules that are yielded without what they hold.
        is_each_once: Yield a module that has several paths only at the first.
    """
    seen: set[int] = set()
    waiting = [(path, module)]
    while waiting:
        path, current = waiting.pop()
        if is_each_once:
            if id(current) in seen:
                continue
            seen.add(id(current))
        yield path, current
        if path in closed:
            continue
        # Most modules hold none.
        if current._modules:
            prefix = join_path(path, "")
            waiting += [
                (prefix + name, child)
                for name, child in reversed(current._modules.items())
                if child is not None
            ]


def walk_parameters(
    module: nn.Module, *, path: str = "", is_each_once: bool = True
) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a module with their paths, in the order of `named_parameters`.

    Wrappers may override that, and name parameters as those of the model that they wrap.

    Args:
        module: Where to start.
        path: Its own path.
        is_each_once: Yield a parameter that has several paths only at the first.
    """
    seen: set[int] = set()
    for holder, current in walk_modules(module, path=path, is_each_once=is_each_once):
        for name, parameter in current._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            if is_each_once:
                seen.add(id(parameter))
            yield join_path(holder, name), parameter


def is_called(module: nn.Module) -> bool:
    """Return whether a module has a forward; lists and dictionaries of modules have none."""
    return getattr(type(module), "forward", None) not in _NOT_CALLED


def join_path(path: str, name: str) -> str:
    """Return the path of a module within another; the model's own path is empty."""
    return f"{path}.{name}" if path else name


def find_holder(path: str) -> str:
    """Return the path of the module that holds another, past the wrappers of its adapters."""
    return find_wrapper(path).rpartition(".")[0]


def find_wrapper(path: str) -> str:
    """Return the path of the outermost wrapper of a module; its own if no adapter wraps it.

    PEFT wraps a module whose parameters get updates of low rank, once for each of them.
    """
    while path.rpartition(".")[2] == _BASE_LAYER:
        path = path.rpartition(".")[0]
    return path
