"""Tensors that a model's cache keeps, whatever the class of the cache, and their memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from moetool.anatomy.caches import find_caches, name_fields
from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.repeated.fingerprints import PLAIN_CLASSES


def find_cache_tensors(output: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of the cache in a model's or `generate`'s output."""
    return _find_tensors(list(find_caches(name_fields(output)).values()), is_in_cache=True)


def find_cache_blocks(output: Any, recorder: AllocationRecorder) -> dict[int, int]:
    """Return the size of each recorded block that an output's cache holds."""
    blocks: dict[int, int] = {}
    for tensor in find_cache_tensors(output):
        block = recorder.find_block(tensor)
        if block is not None:
            blocks[block] = recorder.count_bytes(block)
    return blocks


def _find_tensors(value: Any, *, is_in_cache: bool = False) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        parts = _find_parts(value)
        yield from _find_tensors(parts) if parts else [value]
    elif isinstance(value, list | tuple):
        for item in value:
            kind = type(item)
            # Nearly all that a cache holds, looked at before and after each step.
            if kind is torch.Tensor:
                yield item
            elif kind not in PLAIN_CLASSES:
                yield from _find_tensors(item, is_in_cache=is_in_cache)
    elif isinstance(value, dict):
        yield from _find_tensors(list(value.values()), is_in_cache=is_in_cache)
    elif isinstance(value, Cache) or (is_in_cache and _keeps_state(value)):
        # A cache's layers are of several classes, some of them families' own.
        yield from _find_tensors(list(vars(value).values()), is_in_cache=True)


def _find_parts(tensor: torch.Tensor) -> list[Any]:
    """Return the tensors that a quantized tensor of a library is made of; empty for a plain one."""
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    return [] if flatten is None else [getattr(tensor, name) for name in flatten()[0]]


def _keeps_state(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, type | PreTrainedConfig | nn.Module)
