"""Results of operations on tensors that hold one number throughout, found from one element of each.

A batch of prompts has millions of tokens, all alike. `generate` asks of them, several times, whether
any is a pad, and of the masks that it makes of them whether all are ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

aten = torch.ops.aten

_FILLED = (aten.full.default, aten.ones.default, aten.zeros.default)
_VIEWS = (aten.select.int, aten.slice.Tensor, aten.unsqueeze.default, aten.expand.default)
# Of equal numbers, they return one.
_CHOICES = (
    *(aten.all.default, aten.all.dim, aten.any.default, aten.any.dim),
    *(aten.max.default, aten.min.default),
)
_REDUCTIONS = (*_CHOICES, aten.sum.default)
# It takes longer to look at larger tensors than to compute with them.
_MOST_ELEMENTS = 2**15


class LaterValue(ABC):
    """A tensor that is not computed yet."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Its shape."""

    @abstractmethod
    def find_element(self) -> torch.Tensor | None:
        """Return its only number, as `find_element` does."""


def find_element(value: torch.Tensor | LaterValue) -> torch.Tensor | None:
    """Return a tensor's only number, in as many dimensions of size 1; None if it may have several."""
    if isinstance(value, LaterValue):
        return value.find_element()
    if not 0 < value.numel() <= _MOST_ELEMENTS:
        return None
    first = value[(slice(0, 1),) * value.dim()]
    return first if value.numel() == 1 or bool((value == first).all()) else None


def is_reduction(func: Any) -> bool:
    """Return whether an operation's result follows from the only number in its argument."""
    return func in _REDUCTIONS


def find_result(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, shape: torch.Size
) -> torch.Tensor | None:
    """Return the only number in an operation's result, in as many dimensions of size 1.

    None if there may be several.

    Args:
        func: The operation.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        shape: The result's shape.
    """
    if 0 in shape or any(isinstance(value, torch.Tensor | LaterValue) for value in kwargs.values()):
        return None
    ones = (1,) * len(shape)
    if func in _FILLED:
        filled: torch.Tensor = func(ones, *args[1:], **kwargs)
        return filled
    if func is aten.cat.default:
        return _find_common([find_element(part) for part in args[0]])
    # A number among several that are looked for is found or not wherever it stands.
    num_looked_at = 1 if func is aten.isin.Tensor_Tensor else len(args)
    elements: list[Any] = []
    for value in args[:num_looked_at]:
        if isinstance(value, tuple | list) and not all(isinstance(each, int) for each in value):
            return None
        is_tensor = isinstance(value, torch.Tensor | LaterValue)
        element = find_element(value) if is_tensor else value
        if is_tensor and element is None:
            return None
        elements.append(element)
    rest = args[num_looked_at:]
    if not elements or any(isinstance(value, LaterValue) for value in rest):
        return None
    result: torch.Tensor | None = None
    if func in _VIEWS:
        result = elements[0].reshape(ones)
    elif func is aten.sum.default:
        # Only of integers is the sum that of any order.
        if not (kwargs or elements[0].is_floating_point() or elements[0].is_complex()):
            result = func(*elements) * args[0].shape.numel()
    elif func in _CHOICES or _is_elementwise(func):
        result = func(*elements, *rest, **kwargs)
    return result


def _is_elementwise(func: Any) -> bool:
    is_tagged = torch.Tag.pointwise in func.tags
    return is_tagged or func in (aten._to_copy.default, aten.isin.Tensor_Tensor)


def _find_common(elements: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Return the first of several tensors of one number if all are the same; else None."""
    first = elements[0]
    if first is None:
        return None
    for other in elements[1:]:
        if other is None or other.dtype is not first.dtype or not torch.equal(other, first):
            return None
    return first
