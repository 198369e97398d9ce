"""Products in which rows meet the weights of experts, whatever the layout of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import GradientEdge

from moetool.tracing.recording.watch.operations.labels import Label, all_equal, name_of
from moetool.tracing.recording.watch.weighted_rows import WeightedRows

# By name of an operation: the positions of the factors of its matrix product.
FACTORS = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "_grouped_mm": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
}
# The number of rows beyond the last group of a grouped product.
NO_EXPERT = -1

Layout = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Product:
    """One product of rows and weights.

    Attributes:
        number: Running number in the run.
        inner: Numbers of the products that its rows are made of; empty if they come from outside.
        roots: Numbers of the parameters that it took part of.
        edge: Where gradients leave the rows that went in; None if they don't.
        rows: The rows themselves. # (num_incoming, width_of_rows)
        weighted: What they were before weights multiplied them, and the weights; None if none did.
            # both (num_incoming, width_of_rows)
        experts: The expert of each outgoing row. # (num_rows,)
        to_rows: Brings a tensor of the shape of the output into outgoing rows.
            # → (num_rows, width)
        incoming: The experts that each row of `rows` met. # (num_incoming, num_met)
        to_incoming: Brings incoming rows into the layout of `rows`.
        shape: Of the output.
        num_summands: Experts whose outputs one product adds up at once, each for a row.
        factors: What incoming rows had been multiplied by, of outgoing rows; None for 1.
            # (num_rows,)
    """

    number: int
    inner: frozenset[int]
    roots: frozenset[int]
    edge: GradientEdge | None
    rows: torch.Tensor
    weighted: WeightedRows | None
    experts: torch.Tensor
    to_rows: Layout
    incoming: torch.Tensor
    to_incoming: Layout
    shape: torch.Size
    num_summands: int
    factors: torch.Tensor | None


@dataclass(frozen=True)
class ProductLayout:
    """Fields of a `Product` that follow from the labels of its weights alone."""

    experts: torch.Tensor
    to_rows: Layout
    incoming: torch.Tensor
    to_incoming: Layout
    rows: torch.Tensor
    read_factors: Callable[[torch.Tensor], torch.Tensor | None]
    num_summands: int = 1


def lay_out(operation: Any, args: Any, weight: int, label: Label) -> ProductLayout | None:
    """Return the layout of a matrix product; None if it mixes experts in one sum.

    Args:
        operation: One of `FACTORS`.
        args: Its arguments.
        weight: Which of the two factors is the weight.
        label: The label of the weight.
    """
    positions = FACTORS[name_of(operation)]
    rows = args[positions[1 - weight]]
    experts = label.experts
    if name_of(operation) == "_grouped_mm":
        return _lay_out_groups(args, rows, experts) if weight == 1 else None
    if weight == 0:
        # Weights from the left: the same product transposed.
        experts, rows = experts.mT, rows.mT
    if experts.dim() == 2:
        experts, rows = experts[None], rows[None]
    if not all_equal(experts, -2):
        return _lay_out_sum(rows, experts, is_batch=args[positions[0]].dim() == 3, weight=weight)
    columns = experts[:, 0, :]  # (num_batches, width)
    num_batches, num_rows = rows.shape[:2]

    def upright(values: torch.Tensor) -> torch.Tensor:
        values = values.mT if weight == 0 else values
        return values if values.dim() == 3 else values[None]

    def back(incoming: torch.Tensor) -> torch.Tensor:
        values = incoming.view(num_batches, num_rows, incoming.shape[1])
        values = values if args[positions[0]].dim() == 3 else values[0]
        return values.mT if weight == 0 else values

    def read(factors: torch.Tensor) -> torch.Tensor | None:
        values = upright(factors)
        return values[..., 0] if all_equal(values, -1) else None  # (num_batches, num_rows)

    if all_equal(columns, -1):
        of_rows = columns[:, :1].expand(num_batches, num_rows).reshape(-1)
        return ProductLayout(
            experts=of_rows,
            to_rows=lambda values: upright(values).flatten(0, 1),
            incoming=of_rows[:, None],
            to_incoming=back,
            rows=rows.flatten(0, 1),
            read_factors=lambda factors: _flat(read(factors)),
        )
    # One product for several experts side by side, as in "td,edf->tef".
    order = columns.argsort(dim=-1, stable=True)  # (num_batches, width)
    widths = {int(size) for batch in columns for size in torch.bincount(batch) if size}
    if len(widths) != 1:
        return None
    width = widths.pop()
    met = columns.gather(1, order)[:, ::width]  # (num_batches, num_met)
    met = met[:, None].expand(-1, num_rows, -1)  # (num_batches, num_rows, num_met)

    def split(values: torch.Tensor) -> torch.Tensor:
        values = upright(values)
        sorted_ = values.gather(2, order[:, None].expand(-1, num_rows, -1))
        return sorted_.reshape(-1, width)

    return ProductLayout(
        experts=met.reshape(-1),
        to_rows=split,
        incoming=met.flatten(0, 1),
        to_incoming=back,
        rows=rows.flatten(0, -2),
        read_factors=lambda factors: _repeat(read(factors), met.shape[-1]),
    )


def _lay_out_sum(
    rows: torch.Tensor, experts: torch.Tensor, *, is_batch: bool, weight: int
) -> ProductLayout | None:
    """Return the layout of one sum over several experts, as in "tef,efd->td".

    Each outgoing row then stands for one summand. Rows go in weighted, or all weights are equal.

    Args:
        rows: # (num_batches, num_rows, num_inner)
        experts: # (num_batches, num_inner, width)
        is_batch: Whether the product has batches.
        weight: Which of the two factors is the weight.
    """
    if not all_equal(experts, -1):
        return None
    inner = experts[..., 0]  # (num_batches, num_inner)
    order = inner.argsort(dim=-1, stable=True)
    widths = {int(size) for batch in inner for size in torch.bincount(batch) if size}
    if len(widths) != 1:
        return None
    width, num_rows = widths.pop(), rows.shape[1]
    met = inner.gather(1, order)[:, None, ::width].expand(-1, num_rows, -1)

    def upright(values: torch.Tensor) -> torch.Tensor:
        values = values.mT if weight == 0 else values
        return values if is_batch else values[None]

    def read(factors: torch.Tensor) -> torch.Tensor | None:
        columns = order[:, None].expand(-1, num_rows, -1)
        values = upright(factors).gather(2, columns).view(*met.shape, width)
        return values[..., 0].reshape(-1) if all_equal(values, -1) else None

    return ProductLayout(
        experts=met.reshape(-1),
        to_rows=lambda values: upright(values).flatten(0, 1).repeat_interleave(met.shape[2], dim=0),
        incoming=met.flatten(0, 1),
        to_incoming=lambda values: values,
        rows=rows.flatten(0, 1),
        read_factors=read,
        num_summands=met.shape[2],
    )


def _flat(values: torch.Tensor | None) -> torch.Tensor | None:
    return None if values is None else values.reshape(-1)


def _repeat(values: torch.Tensor | None, times: int) -> torch.Tensor | None:
    return None if values is None else values.reshape(-1).repeat_interleave(times)


def _lay_out_groups(args: Any, rows: torch.Tensor, experts: torch.Tensor) -> ProductLayout | None:
    """Return the layout of a product of rows in groups, one group for each matrix."""
    offsets = args[2] if len(args) > 2 else None
    if offsets is None or rows.dim() != 2 or experts.dim() != 3:
        return None
    flat = experts.flatten(1)
    if not all_equal(flat, 1):
        return None
    of_groups = torch.cat([flat[:, 0], flat.new_full((1,), NO_EXPERT)])
    numbers = torch.arange(len(rows), device=rows.device, dtype=offsets.dtype)
    of_rows = of_groups[torch.searchsorted(offsets, numbers, right=True)]  # (num_rows,)
    return ProductLayout(
        experts=of_rows,
        to_rows=lambda values: values,
        incoming=of_rows[:, None],
        to_incoming=lambda values: values,
        rows=rows.flatten(0, -2),
        read_factors=lambda factors: factors[:, 0] if all_equal(factors, 1) else None,
    )
