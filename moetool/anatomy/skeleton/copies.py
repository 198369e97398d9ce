"""Copies of skeletons, in a fraction of the time that it takes to build or to deep-copy them."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import nn

_Model = TypeVar("_Model", bound=nn.Module)

_CONTAINERS = frozenset({dict, OrderedDict, list, set})
_UNCHANGEABLE = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, type})
_COPYING = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


def copy_skeleton(skeleton: _Model) -> _Model:
    """Return a deep copy of a model on the meta device.

    It is what `copy.deepcopy` returns, which spends most of its time on the empty dictionaries that
    each module has for hooks.
    """
    copied: _Model = _copy_module(skeleton, {})
    return copied


def _copy_module(module: Any, memo: dict[int, Any]) -> Any:
    if id(module) in memo:
        return memo[id(module)]
    kind: type = type(module)
    if not _is_copied_plainly(kind):
        return copy.deepcopy(module, memo)
    copied: Any = object.__new__(kind)
    memo[id(module)] = copied
    state = module.__getstate__()
    attributes = copied.__dict__
    attributes.update(state)
    for name, value in state.items():
        held_as = type(value)
        if held_as in _UNCHANGEABLE:
            continue
        if held_as in _CONTAINERS and not value:
            attributes[name] = held_as()
        elif held_as is dict and name in ("_parameters", "_buffers"):
            attributes[name] = {
                key: None if each is None else each.__deepcopy__(memo)
                for key, each in value.items()
            }
        elif held_as is dict and name == "_modules":
            attributes[name] = {
                key: None if each is None else _copy_module(each, memo)
                for key, each in value.items()
            }
        else:
            attributes[name] = copy.deepcopy(value, memo)
    return copied


@functools.cache
def _is_copied_plainly(kind: type) -> bool:
    """Return whether a class of modules leaves copying to Python and `nn.Module`."""
    return all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in _COPYING)
