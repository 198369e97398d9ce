"""The cache of a model's earlier tokens, among a call's arguments or an output's fields.

It is found by what it is, and by each name that transformers has given it: `cache` since 5.24,
before that `past_key_values` or `cache_params`, and others in older models.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# Newest first. The last three are those of RWKV, XLNet and Reformer.
CACHE_NAMES = (
    "cache",
    "past_key_values",
    "cache_params",
    "state",
    "mems",
    "past_buckets_states",
)


def is_cache(value: object) -> bool:
    """Return whether a value is one of transformers' caches, or counts its tokens as they do."""
    from transformers.cache_utils import Cache

    return isinstance(value, Cache) or (
        not isinstance(value, type) and callable(getattr(value, "get_seq_length", None))
    )


def find_caches(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some named values that are a cache by their type or by their name."""
    return {
        name: value
        for name, value in named.items()
        if value is not None and (name in CACHE_NAMES or is_cache(value))
    }


def name_fields(output: Any) -> dict[str, Any]:
    """Return the fields of what a model or `generate` returned, by name or by number."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, list | tuple):
        return {str(index): value for index, value in enumerate(output)}
    return dict(vars(output)) if hasattr(output, "__dict__") else {}


def find_cache_keyword(forward: Callable[..., Any], *, also: Iterable[str] = ()) -> str | None:
    """Return the keyword under which a forward takes its cache; None if it has none.

    Args:
        forward: A model's forward.
        also: Further names to look for, such as that under which the cache was returned.
    """
    accepted = inspect.signature(forward).parameters
    return next((name for name in (*also, *CACHE_NAMES) if name in accepted), None)
