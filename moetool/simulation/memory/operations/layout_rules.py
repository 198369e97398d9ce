"""Outcomes of operations that return one new tensor, by rules for its layout.

torch works most layouts out in Python on the meta device, which takes ten times as long. A rule
returns None wherever the layout may depend on more than the rule looks at. Operations with rules
take no temporary memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from moetool.simulation.memory.cuda_kernels import needs_lt_workspace, needs_workspace
from moetool.simulation.memory.layer_events import Workspace
from moetool.simulation.memory.operations.outcomes import (
    Need,
    New,
    OperationEvent,
    OperationOutcome,
)
from moetool.simulation.meta.layouts import Layout

aten = torch.ops.aten

_Rule = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Layout | None]

# Each is one kernel, which takes its operands in the order of the arguments.
_DIRECT = (
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor),
    *(aten.neg.default, aten.cos.default, aten.sin.default, aten.rsqrt.default),
    *(aten.exp.default, aten.sigmoid.default, aten.tanh.default, aten.abs.default),
)
# On the meta device, some of them are made of others that take the operands in another order.
_INDIRECT = (
    *(aten.eq.Scalar, aten.ne.Scalar, aten.lt.Scalar, aten.le.Scalar, aten.gt.Scalar),
    *(aten.eq.Tensor, aten.ne.Tensor, aten.lt.Tensor, aten.le.Tensor, aten.gt.Tensor),
    *(aten.ge.Scalar, aten.ge.Tensor, aten.where.self, aten.masked_fill.Scalar),
    *(aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_not.default),
    *(aten.logical_and.default, aten.logical_or.default, aten.logical_not.default),
    *(aten.silu.default, aten.gelu.default, aten.relu.default, aten.clamp.default),
    *(aten.pow.Tensor_Scalar, aten.floor_divide.default, aten.div.Tensor_mode),
)


def find_layout(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Layout | None:
    """Return the layout of an operation's only result, a new tensor; None if no rule says it.

    Args:
        func: The operation: an overload of torch's dispatcher.
        args: Its positional arguments, whose tensors are on the meta device.
        kwargs: Its keyword arguments.
    """
    rule = _RULES.get(func)
    return None if rule is None else rule(func, args, kwargs)


def find_outcome(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> OperationOutcome | None:
    """Return the outcome of an operation by the rule for its layout; None if no rule says it."""
    layout = find_layout(func, args, kwargs)
    if layout is None:
        return None
    operation = func.overloadpacket
    kinds = [
        *([Workspace.CUBLAS] if needs_workspace(operation) else []),
        *([Workspace.CUBLAS_LT] if needs_lt_workspace(operation, args) else []),
    ]
    return OperationOutcome(
        events=(OperationEvent(0, layout.num_bytes, operation.__name__),),
        num_made=1,
        needs=tuple(Need(0, kind, operation.__name__) for kind in kinds),
        results=(New(0, layout),),
        container=None,
        shared=(),
    )


def _of_elementwise(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Layout | None:
    """Return the layout of a result whose elements each follow from one of every operand.

    If the operands lie in the order of their dimensions, so does the result. Else it lies in the
    order in which the first operand does, if that has the result's shape and leaves no choice.
    """
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    shape = _broadcast([tensor.shape for tensor in tensors])
    if shape is None or 0 in shape:
        return None
    strides = _stride_in_order(shape)
    if not all(tensor.stride() == _stride_in_order(tensor.shape) for tensor in tensors):
        places = tensors[0].stride()
        if func not in _DIRECT or tensors[0].shape != shape or _may_hold_images(tensors[0]):
            return None
        # Of equal strides, and those of repeated elements, other operands decide on the order.
        if 0 in places or len({*places}) < len(places):
            return None
        strides = _stride_in_places(shape, places)
        # Kernels differ in what they make of the stride of a single element.
        if 1 in shape and (strides != places or tensors[0].is_contiguous()):
            return None
    dtype = _find_dtype(func, args, kwargs)
    return None if dtype is None else Layout(shape, strides, dtype)


def _of_cat(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Layout | None:
    """Return the layout of tensors that are put one after another."""
    parts, dim = args[0], args[1] if len(args) > 1 else 0
    first = parts[0]
    num_dims = first.dim()
    if kwargs or not num_dims or _may_hold_images(first):
        return None
    dim %= num_dims
    before, after = first.shape[:dim], first.shape[dim + 1 :]
    for part in parts:
        if part.dim() != num_dims or part.dtype is not first.dtype or 0 in part.shape:
            return None
        if part.shape[:dim] != before or part.shape[dim + 1 :] != after:
            return None
    shape = torch.Size((*before, sum(part.shape[dim] for part in parts), *after))
    return Layout(shape, _stride_in_order(shape), first.dtype)


def _of_product(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Layout | None:
    """Return the layout of a product of matrices, to which a bias may be added.

    (..., num_rows, width_in) @ (..., width_in, width_out) -> (..., num_rows, width_out)
    """
    *biases, rows, matrix = args
    num_dims = 3 if func is aten.bmm.default else 2
    if kwargs or any(tensor.dtype is not rows.dtype for tensor in args):
        return None
    if rows.dim() != num_dims or matrix.dim() != num_dims or rows.shape[-1] != matrix.shape[-2]:
        return None
    shape = torch.Size((*rows.shape[:-1], matrix.shape[-1]))
    if rows.shape[:-2] != matrix.shape[:-2] or 0 in (*shape, rows.shape[-1]):
        return None
    if any(_broadcast([bias.shape, shape]) != shape for bias in biases):
        return None
    return Layout(shape, _stride_in_order(shape), rows.dtype)


def _find_dtype(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.dtype | None:
    """Return the dtype of an elementwise operation's result; None if torch refuses its operands."""
    operands = tuple(
        (value.dtype, value.dim() > 0) if isinstance(value, torch.Tensor) else (type(value), value)
        for value in args
    )
    options = tuple((name, type(value), value) for name, value in kwargs.items())
    return _learn_dtype(func, operands, options, torch.get_default_dtype())


@functools.lru_cache(maxsize=10_000)
def _learn_dtype(
    func: Any,
    operands: tuple[tuple[Any, Any], ...],
    options: tuple[tuple[str, type, Any], ...],
    _: torch.dtype,
) -> torch.dtype | None:
    """Return the dtype of a result for small operands: it depends on nothing else of their shapes.

    None if torch refuses them, as it refuses the operands themselves.

    Args:
        func: The operation.
        operands: The dtype of each tensor and whether it has dimensions; the type of each number
            and its value. Numbers that are equal may differ in type, and so may the results.
        options: Name, type and value of each keyword argument.
    """
    args = [
        torch.empty((2,) if is_or_has else (), dtype=kind, device="meta")
        if isinstance(kind, torch.dtype)
        else is_or_has
        for kind, is_or_has in operands
    ]
    try:
        result: torch.Tensor = func(*args, **{name: value for name, _, value in options})
    except (RuntimeError, ValueError):
        return None
    return result.dtype


def _may_hold_images(tensor: torch.Tensor) -> bool:
    """Return whether a tensor may be images or videos of which each point's channels lie together.

    torch keeps that order.
    """
    return tensor.dim() in (4, 5) and tensor.stride(1) <= tensor.stride(-1)


def _broadcast(shapes: Sequence[torch.Size]) -> torch.Size | None:
    """Return the shape that tensors have together; None if they don't fit."""
    longest = max(shapes, key=len)
    if all(shape == longest for shape in shapes):
        return longest
    sizes = [1] * len(longest)
    for shape in shapes:
        for dim, size in enumerate(shape, len(longest) - len(shape)):
            if size != 1:
                if sizes[dim] not in (1, size):
                    return None
                sizes[dim] = size
    return torch.Size(sizes)


@functools.lru_cache(maxsize=10_000)
def _stride_in_order(shape: torch.Size) -> tuple[int, ...]:
    """Return the strides of a tensor that lies in the order of its dimensions."""
    strides, step = [0] * len(shape), 1
    for dim in reversed(range(len(shape))):
        strides[dim] = step
        step *= shape[dim]
    return tuple(strides)


def _stride_in_places(shape: torch.Size, places: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a tensor that lies in the order of other strides, without gaps."""
    strides, step = [0] * len(shape), 1
    for dim in sorted(range(len(shape)), key=places.__getitem__):
        strides[dim] = step
        step *= shape[dim]
    return tuple(strides)


_RULES: dict[Any, _Rule] = {
    **dict.fromkeys((*_DIRECT, *_INDIRECT), _of_elementwise),
    aten.cat.default: _of_cat,
    **dict.fromkeys((aten.mm.default, aten.bmm.default, aten.addmm.default), _of_product),
}
