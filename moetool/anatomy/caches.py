"""Caches of earlier tokens among the arguments of a call or the fields of an output.

They are found by their type, and by each name that transformers has given them: `cache` since 5.24,
before that `past_key_values` or `cache_params`, and others in older models.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any

# Newest first. The last three are from RWKV, XLNet and Reformer.
CACHE_NAMES = (
    "cache",
    "past_key_values",
    "cache_params",
    "state",
    "mems",
    "past_buckets_states",
)

# Words in the name, or in the class's name, of an argument that may hold earlier tokens.
_NAME = re.compile(r"(^|_)(past|caches?|mems?|kv)(_|$)")
_CLASS = re.compile(r"(Caches?|Mems?|InferenceParams)$")
# `cache_position` and its masks have no more dimensions than this; keys and values have more.
_MOST_DIMS_OF_POSITIONS = 2


def is_cache(value: object) -> bool:
    """Return whether a value is a transformers cache, or counts its tokens as those do."""
    from transformers.cache_utils import Cache

    return isinstance(value, Cache) or (
        not isinstance(value, type) and callable(getattr(value, "get_seq_length", None))
    )


def find_caches(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the named values that are caches by their type or by their name."""
    return {
        name: value
        for name, value in named.items()
        if value is not None and (name in CACHE_NAMES or is_cache(value))
    }


def name_fields(output: Any) -> dict[str, Any]:
    """Return the fields of an output of a model or of `generate`, by name or by number."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, list | tuple):
        return {str(index): value for index, value in enumerate(output)}
    return dict(vars(output)) if hasattr(output, "__dict__") else {}


def find_cache_keyword(forward: Callable[..., Any], *, also: Iterable[str] = ()) -> str | None:
    """Return the keyword by which a forward takes its cache; None if it has none.

    Args:
        forward: A model's forward.
        also: Further names to look for, such as the one under which a cache was returned.
    """
    accepted = inspect.signature(forward).parameters
    return next((name for name in (*also, *CACHE_NAMES) if name in accepted), None)


def looks_like_cache(name: str, value: object) -> bool:
    """Return whether an argument may hold earlier tokens without being a known cache.

    Its name or its class suggests it, and it is more than a switch or a number.
    """
    import torch

    if value is None or isinstance(value, bool | int | float | str | type):
        return False
    if isinstance(value, torch.Tensor):
        return value.dim() > _MOST_DIMS_OF_POSITIONS and bool(_NAME.search(name))
    if isinstance(value, Sized) and not len(value):
        return False
    return (
        name in CACHE_NAMES or bool(_NAME.search(name)) or bool(_CLASS.search(type(value).__name__))
    )


def count_cached(inputs: Mapping[str, Any]) -> int | None:
    """Return how many tokens of each row are in the cache of a call; None if they can't be counted.

    Args:
        inputs: The arguments of the call, by name.
    """
    counts: set[int | None] = set()
    for name, value in inputs.items():
        if is_cache(value):
            counts.add(_count_tokens(value))
        elif looks_like_cache(name, value):
            counts.add(None)
    return counts.pop() if len(counts) == 1 else (None if counts else 0)


def _count_tokens(cache: Any) -> int | None:
    try:
        return int(cache.get_seq_length())
    except (ValueError, TypeError, NotImplementedError):
        # A cache of state-space layers keeps no tokens, only whether there were any.
        layers = getattr(cache, "layers", None)
        if not layers or any(_holds_tensors(vars(layer)) for layer in layers):
            return None
        return 0


def _holds_tensors(value: Any) -> bool:
    import torch

    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    return isinstance(value, torch.Tensor)
