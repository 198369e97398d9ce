"""Copies of skeletons are those that `copy.deepcopy` makes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from moetool.anatomy.skeleton.copies import copy_skeleton
from tests.families.tiny.models import available
from tests.simulation.skeletons import build_family_skeleton


def _describe(value: Any, seen: dict[int, int]) -> Any:
    """Return all that a value holds, with a number for each object that says where it recurs."""
    if isinstance(value, torch.Tensor | nn.Module) or hasattr(value, "__dict__"):
        if id(value) in seen:
            return ("seen", seen[id(value)])
        seen[id(value)] = len(seen)
    if isinstance(value, torch.Tensor):
        return (type(value), value.shape, value.stride(), value.dtype, value.requires_grad)
    if isinstance(value, dict):
        return (type(value), [(key, _describe(each, seen)) for key, each in value.items()])
    if isinstance(value, list | tuple):
        return (type(value), [_describe(each, seen) for each in value])
    if hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        return (type(value), _describe(vars(value), seen))
    if isinstance(value, nn.Module):
        return (type(value), _describe(vars(value), seen))
    return (type(value), repr(value))


def _walk_objects(model: nn.Module) -> Iterator[object]:
    for module in model.modules():
        yield module
        yield from (each for each in vars(module).values() if isinstance(each, dict | list | set))
        yield from (each for each in module._parameters.values() if each is not None)
        yield from (each for each in module._buffers.values() if each is not None)
        if hasattr(module, "config"):
            yield module.config


@pytest.mark.parametrize("family", available()[::6])
def test_a_copy_is_the_deep_copy(family: str) -> None:
    model = build_family_skeleton(family)
    copied = copy_skeleton(model)
    assert _describe(copied, {}) == _describe(copy.deepcopy(model), {})


def test_a_copy_shares_nothing_that_can_change_with_its_original() -> None:
    model = build_family_skeleton("mixtral")
    own = {id(each) for each in _walk_objects(model)}
    assert not own & {id(each) for each in _walk_objects(copy_skeleton(model))}


class _Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> _Counted:
        copied = _Counted()
        copied.num_copies = self.num_copies + 1
        return copied


def test_modules_that_say_how_to_copy_them_are_asked() -> None:
    model = nn.ModuleDict({"counted": _Counted(), "plain": nn.Identity()})
    model.register_forward_hook(print)
    tied = nn.Parameter(torch.empty(2, device="meta"))
    model["plain"].first, model["plain"].second = tied, tied
    copied = copy_skeleton(model)
    assert copied["counted"].num_copies == 1
    assert list(copied._forward_hooks.values()) == [print]
    assert copied["plain"].first is copied["plain"].second
    assert copied["plain"].first is not tied
