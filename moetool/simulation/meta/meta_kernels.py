"""Operations that torch's meta device refuses to run, or runs otherwise than a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from moetool.simulation.meta.dispatch import DispatchMode

aten = torch.ops.aten


class MetaKernels(DispatchMode):
    """Answers for operations that torch's own meta device refuses, with tensors of their shape.

    `_grouped_mm`, by which transformers multiplies each token with its experts, is refused on the
    meta device for any dtype but bfloat16 and for widths that are no multiple of 16 bytes,
    which the CPU and the fallback for older GPUs take. Others it takes, but lays out their results
    or takes memory on the way otherwise than a GPU does.
    """

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operation's result, or a tensor like it."""
        run = _KERNELS.get(func.overloadpacket)
        if run is None or args[0].device.type != "meta":
            run = func
        return run(*args, **kwargs)


def _run_grouped_mm(
    rows: torch.Tensor,
    weights: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return a tensor of the shape of a product of rows and the matrices of their groups.

    (num_rows, width_in) @ (num_groups, width_in, width_out)
    """
    del offs, bias
    return rows.new_empty((rows.shape[0], weights.shape[-1]), dtype=out_dtype or rows.dtype)


def _run_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> torch.Tensor:
    """Return a tensor of the shape of attention's output, laid out as its query is.

    So do the kernels of GPUs, where torch's meta device puts head after head.
    (..., num_heads, num_queries, width) -> (..., num_heads, num_queries, width_out)
    """
    del key
    if query.shape[-1] == value.shape[-1]:
        return torch.empty_like(query)
    order = sorted(range(query.dim()), key=query.stride, reverse=True)
    shape = (*query.shape[:-1], value.shape[-1])
    laid_out = query.new_empty([shape[dim] for dim in order])
    return laid_out.permute([order.index(dim) for dim in range(query.dim())])


def _run_one_hot(numbers: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    """Return a tensor of the shape of one-hot vectors: on a GPU, zeros that ones are written to.

    (...) -> (..., num_classes)
    """
    if num_classes < 0:
        num_classes = int(numbers.max().item()) + 1
    return numbers.new_empty((*numbers.shape, num_classes))


_KERNELS: dict[Any, Callable[..., torch.Tensor]] = {
    aten._grouped_mm: _run_grouped_mm,
    aten.scaled_dot_product_attention: _run_attention,
    aten.one_hot: _run_one_hot,
}
