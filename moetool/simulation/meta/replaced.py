"""Attributes of modules and classes that are replaced for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


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
