"""Attributes of modules and classes that are replaced for a while, and where a model's code is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn


@contextmanager
def replaced(holder: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Replace attributes, and put them back afterwards; those that the holder lacked go again."""
    own = vars(holder)
    # Looked up on a class, a static method would come back as a method of instances.
    before = {
        name: own[name] if name in own else getattr(holder, name)
        for name in values
        if hasattr(holder, name)
    }
    try:
        for name, value in values.items():
            setattr(holder, name, value)
        yield
    finally:
        for name in values:
            if name in before:
                setattr(holder, name, before[name])
            else:
                delattr(holder, name)


@contextmanager
def replacing_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let calls of a module call another function instead of its forward."""
    # Without torch's own way of setting attributes, which looks for modules and parameters first.
    attributes = vars(module)
    own = attributes.get("forward")
    attributes["forward"] = forward
    try:
        yield
    finally:
        del attributes["forward"]
        if own is not None:
            attributes["forward"] = own


def find_code(modules: Iterable[nn.Module]) -> list[ModuleType]:
    """Return the Python modules in which the classes of a model's modules are, without torch's own."""
    names = {type(module).__module__ for module in modules}
    return [sys.modules[name] for name in sorted(names) if not name.startswith("torch.")]
