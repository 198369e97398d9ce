"""Proof that a tensor which a block computes is the weighted sum of its experts' outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from moetool.tracing.recording.watch.separate.block import Block
from moetool.tracing.recording.watch.separate.captures import Capture, Taker, iter_tensors
from moetool.tracing.recording.watch.separate.marked_run import Mark, MarkedRun, Seen

# Roundings by which a sum may be off at least, and by which outputs of two equal runs may.
_SUM_TOLERANCE = 32
_OUTPUT_TOLERANCE = 8
_GPU_TOLERANCE, _MOST_TOLERANCE = 1024, 0.02
NOT_FROM_SUM = "its output does not follow from the sum of its experts' outputs"
OTHER_OUTPUT = "it does more with its experts' outputs than weight them"


class SumRun(NamedTuple):
    """A run of a block in which the sum was looked at.

    Attributes:
        total: The sum, or what was put into its place. # (num_tokens, width)
        before: The sum before something was put into its place. # (num_tokens, width)
        output: What the block returns for its tokens.
        seen: Everything else.
    """

    total: torch.Tensor
    before: torch.Tensor
    output: list[torch.Tensor]
    seen: Seen


class SumInBlock:
    """A tensor that a block computes each time that it runs.

    Attributes:
        offset: How many tensors of its width the block has computed after it called an expert for the
            last time, and before this one; negative if there was another call. Known after a run.

    Args:
        block: Named in errors.
        again: Runs it again.
        number: Number of the tensor among those of its width.
        num_tokens: Its rows.
        width: Its columns.
        dtype: Of what experts return, which may be another one.
    """

    def __init__(
        self,
        block: Block,
        again: MarkedRun,
        *,
        number: int,
        num_tokens: int,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        self._block = block
        self._again = again
        self._number = number
        self._num_tokens = num_tokens
        self._width = width
        self._dtype = dtype
        self.offset = 0

    def take(self, mark: Mark | None) -> torch.Tensor:
        """Return the tensor in a marked run. # (num_tokens, width)."""
        return self.run(mark).total

    def run(
        self,
        mark: Mark | None,
        *,
        put: torch.Tensor | None = None,
        order: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> SumRun:
        """Run the block, and take the tensor or put another one into its place."""
        taker = Taker(self._number, put=put)
        capture = Capture(self._width, taker.look)
        seen = self._again.run(mark, capture=capture, order=order)
        if taker.taken is None or taker.before is None or len(taker.taken) != self._num_tokens:
            raise self._block.unreadable("it computes in another way each time that it runs")
        self.offset = self._number - capture.number_then
        return SumRun(taker.taken, taker.before, list_outputs(seen.output), seen)

    def check(self, weights: torch.Tensor, numbers: torch.Tensor, sizes: list[int]) -> None:
        """Check that weights give the sum of random outputs, and that the block's output follows.

        Args:
            weights: # (num_tokens, num_experts)
            numbers: The row of each expert that has the weight. # (num_tokens, num_experts)
            sizes: The number of rows of each expert.

        Raises:
            UntraceableError: They don't.
        """
        block = self._block
        outputs = make_outputs(sizes, self._width, weights.device, self._dtype)
        has_weight = []
        for index, size in enumerate(sizes):
            mask = torch.zeros(size, 1, dtype=torch.bool, device=weights.device)
            mask[numbers[weights[:, index] != 0, index]] = True
            has_weight.append(mask)

        def mark(index: int, before: int, rows: torch.Tensor) -> None:
            part = slice(before, before + len(rows))
            rows.copy_(outputs[index][part].masked_fill(~has_weight[index][part], 0))

        def mark_all(index: int, before: int, rows: torch.Tensor) -> None:
            rows.copy_(outputs[index][before : before + len(rows)])

        first, nothing = self.run(mark), self.run(None)
        total, output, empty = first.total, first.output, nothing.total
        if not explains(total, empty, outputs, weights, numbers):
            raise block.unreadable(OTHER_OUTPUT)
        put = self.run(None, put=total)
        if are_equal(output, nothing.output) or not are_equal(output, put.output):
            raise block.unreadable(NOT_FROM_SUM)
        self.check_tokens(weights, total, output)
        if not all(bool(mask.all()) for mask in has_weight):
            again = self.run(mark_all)
            is_same = explains(again.total, empty, outputs, weights, numbers)
            if not is_same or not are_equal(again.output, output):
                raise block.unreadable("outputs of experts without a weight change its output")

    def check_tokens(
        self, weights: torch.Tensor, total: torch.Tensor, output: list[torch.Tensor]
    ) -> None:
        """Check that rows are tokens where weights say nothing, because all of them are 1.

        Args:
            weights: # (num_tokens, num_experts)
            total: The sum in a run. # (num_tokens, width)
            output: What that run returned.

        Raises:
            UntraceableError: They may be something else.
        """
        is_single = (weights.count_nonzero(dim=1) <= 1).all()
        if bool(is_single) and bool(((weights == 0) | (weights == 1)).all()):
            self._check_rows_are_tokens(total, output)

    def _check_rows_are_tokens(self, total: torch.Tensor, output: list[torch.Tensor]) -> None:
        """Check that rows which have no weights but 1 concern one token each.

        In a soft mixture of experts they may be slots, whose outputs go to all tokens.
        """
        generator = torch.Generator().manual_seed(2)
        is_other = torch.rand(len(total), generator=generator, device="cpu").to(total.device) < 0.5
        is_other[0], is_other[-1] = False, True
        changed = torch.where(is_other[:, None], 2 * total + 1, total)
        others = self.run(None, put=changed)
        for before, now in zip(output, others.output, strict=True):
            if before.numel() % len(total) == 0:
                is_changed = before.ne(now).reshape(len(total), -1).any(dim=1)
                # Others, such as a router's scores, don't change at all.
                if bool(is_changed.any()) and not bool((is_changed & ~is_other).any()):
                    return
        raise self._block.unreadable("its experts run on rows that are not its tokens")


def make_outputs(
    sizes: list[int], width: int, device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Return random outputs of experts, for their numbers of rows. # each (num_rows, width)."""
    generator = torch.Generator().manual_seed(1)
    made = (torch.randn(size, width, generator=generator, device="cpu") for size in sizes)
    return [rows.to(device, dtype) for rows in made]


def explains(
    total: torch.Tensor,
    empty: torch.Tensor,
    outputs: list[torch.Tensor],
    weights: torch.Tensor,
    numbers: torch.Tensor,
) -> bool:
    """Return whether a sum is what weights make of outputs, as far as it was rounded.

    A product is off by half a rounding, and each of the additions of a token's k experts by half a
    rounding of a part of the sum: together by at most (k + 1) / 2 roundings of the sum of all absolute
    values. What a weight is multiplied by on its way, such as a scale, adds half a rounding each.

    Args:
        total: The sum. # (num_tokens, width)
        empty: The sum when experts return zeros. # (num_tokens, width)
        outputs: By expert. # each (num_rows, width)
        weights: # (num_tokens, num_experts)
        numbers: The row of each expert that has the weight. # (num_tokens, num_experts)
    """
    expected, extent = empty.to(torch.float64, copy=True), empty.double().abs()
    for index, returned in enumerate(outputs):
        chosen = torch.nonzero(weights[:, index]).flatten()
        own = returned[numbers[chosen, index]].double()
        added = weights[chosen, index, None].double() * own
        expected[chosen] += added
        extent[chosen] += added.abs()
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (empty, *outputs))
    num_terms = weights.count_nonzero(dim=1)[:, None]  # (num_tokens, 1)
    is_near = (total.double() - expected).abs() <= num_terms.clamp(
        min=_SUM_TOLERANCE
    ) * eps * extent
    # Experts may return numbers that are not finite.
    return bool((is_near | ~expected.isfinite()).all())


def is_near(output: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Return whether a second run gave the output of a call.

    Vectorized code may round elements differently in other places of memory.
    """
    if len(output) != len(other):
        return False
    for value, now in zip(output, other, strict=True):
        if value.shape != now.shape:
            return False
        if not _is_equal(value, now):
            before, after = value.nan_to_num().double(), now.nan_to_num().double()
            eps = torch.finfo(value.dtype).eps if value.is_floating_point() else 0
            if bool((before - after).abs().max() > _OUTPUT_TOLERANCE * eps * before.abs().max()):
                return False
    return True


def list_outputs(output: Any) -> list[torch.Tensor]:
    """Return what a block returns for its tokens; numbers alone, such as losses, are left out."""
    tensors = [t for t in iter_tensors(output) if t.is_floating_point() and t.numel() > 1] or list(
        iter_tensors(output)
    )
    return [tensor.detach().clone() for tensor in tensors]


def are_equal(outputs: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    """Return whether two second runs gave the same output; on a GPU, nearly the same."""
    return len(outputs) == len(others) and all(map(_is_equal, outputs, others))


def _is_equal(output: torch.Tensor, other: torch.Tensor) -> bool:
    output, other = output.nan_to_num(), other.nan_to_num()
    if output.shape != other.shape or not output.is_floating_point() or not output.is_cuda:
        return torch.equal(output, other)
    # On a GPU sums may be added up in any order.
    tolerance = min(_GPU_TOLERANCE * torch.finfo(output.dtype).eps, _MOST_TOLERANCE)
    error = (output.double() - other.double()).abs().max()
    return bool(error <= tolerance * other.double().abs().max())
