"""Descriptions of blocks. Equal ones do the same on the meta device."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import nn

from moetool.anatomy.routing.walk import walk_modules

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, type)


def describe_block(block: nn.Module) -> Hashable:
    """Return the classes of a block and all modules in it, and everything that they hold.

    Tensors without data are described by their shapes. Whatever isn't a plain value or a container
    of such equals only itself, such as a configuration that all layers share. So a description is
    only comparable with others while the blocks exist.
    """
    return tuple(
        (path, type(module), tuple(module._modules), _describe(vars(module), without="_modules"))
        for path, module in walk_modules(block, is_each_once=False)
    )


def _describe(value: object, *, without: str | None = None) -> Hashable:
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, torch.Tensor) and value.is_meta:
        return (type(value), value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return (type(value), *map(_describe, value))
    if isinstance(value, set):
        return (type(value), frozenset(map(_describe, value)))
    if isinstance(value, dict):
        items = value.items()
        # Most of what a module holds are empty collections of hooks.
        return (type(value), *((k, _describe(v)) for k, v in items if k != without))
    return (type(value), id(value))
