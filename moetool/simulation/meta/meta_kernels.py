"""Operations that torch's meta device refuses, or runs differently from a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from moetool.simulation.meta.dispatch import DispatchMode
from moetool.simulation.meta.layouts import Layouts

aten = torch.ops.aten

# Of all runs: models of different shapes have many in common.
_LAYOUTS = Layouts()


class MetaKernels(DispatchMode):
    """Returns tensors of the right shape for operations that torch's meta device refuses.

    `_grouped_mm`, by which transformers multiplies each token with its experts, is refused on the
    meta device for every dtype except bfloat16 and for widths that are not a multiple of 16 bytes,
    which the CPU and the fallback for older GPUs accept. Other operations run there, but their
    results are laid out differently from those of a GPU, or they take other temporary memory.
    """

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operation's result, or a tensor of the same shape."""
        run = _KERNELS.get(func.overloadpacket)
        if run is None or args[0].device.type != "meta":
            return _LAYOUTS.run(func, args, kwargs, pass_on=self.pass_on)
        return run(*args, **kwargs)


def _run_grouped_mm(
    rows: torch.Tensor,
    weights: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return a tensor of the shape of a product of rows and the matrices of their groups.

    The backward pass multiplies rows with rows, which gives each group a matrix.
    (num_rows, width_in) @ (num_groups, width_in, width_out) -> (num_rows, width_out)
    (width_in, num_rows) @ (num_rows, width_out) -> (num_groups, width_in, width_out)
    """
    del bias
    num_groups = () if weights.dim() > 2 or offs is None else (offs.shape[0],)
    shape = (*num_groups, rows.shape[0], weights.shape[-1])
    # `new_empty` is written in Python on the meta device.
    return torch.empty(shape, dtype=out_dtype or rows.dtype, device=rows.device)


def _run_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> torch.Tensor:
    """Return a tensor of the shape of attention's output, laid out like its query.

    GPU kernels use this layout, while torch's meta device puts head after head.
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
    """Return a tensor of the shape of one-hot vectors. On a GPU, ones are written to zeros.

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
