"""Proof that a tensor which a block computes is the weighted sum of its experts' outputs."""

from __future__ import annotations

from typing import Any

import torch

from moetool.tracing.recording.watch.separate.block import Block
from moetool.tracing.recording.watch.separate.captures import Capture, Taker, iter_tensors
from moetool.tracing.recording.watch.separate.marked_run import Mark, MarkedRun

_SUM_TOLERANCE = 32
_GPU_TOLERANCE, _MOST_TOLERANCE = 1024, 0.02
OTHER_OUTPUT = "it does more with its experts' outputs than weight them"


class SumInBlock:
    """A tensor that a block computes each time that it runs.

    Args:
        block: Named in errors.
        again: Runs it again.
        number: Number of the tensor among those of its width.
        num_tokens: Its rows.
        width: Its columns.
    """

    def __init__(
        self, block: Block, again: MarkedRun, *, number: int, num_tokens: int, width: int
    ) -> None:
        self._block = block
        self._again = again
        self._number = number
        self._num_tokens = num_tokens
        self._width = width

    def take(self, mark: Mark | None) -> torch.Tensor:
        """Return the tensor in a marked run. # (num_tokens, width)."""
        return self._run(mark)[0]

    def _run(
        self, mark: Mark | None, *, put: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the tensor, or put another one into its place, and the block's outputs."""
        taker = Taker(self._number, put=put)
        seen = self._again.run(mark, capture=Capture(self._width, taker.look))
        if taker.taken is None or len(taker.taken) != self._num_tokens:
            raise self._block.unreadable("it computes in another way each time that it runs")
        return taker.taken, _list_outputs(seen.output)

    def check(self, weights: torch.Tensor, numbers: torch.Tensor, sizes: list[int]) -> None:
        """Check that weights give the sum of random outputs, and that the block's output follows.

        Args:
            weights: # (num_tokens, num_experts)
            numbers: The row of each expert that has the weight. # (num_tokens, num_experts)
            sizes: The number of rows of each expert.

        Raises:
            UntraceableError: They don't.
        """
        block, eps = self._block, torch.finfo(weights.dtype).eps
        generator = torch.Generator().manual_seed(1)
        made = [torch.randn(size, self._width, generator=generator) for size in sizes]
        outputs = [rows.to(weights) for rows in made]
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

        total, output = self._run(mark)
        empty, nothing = self._run(None)
        expected, extent = empty.double(), empty.double().abs()
        for index, returned in enumerate(outputs):
            chosen = torch.nonzero(weights[:, index]).flatten()
            own = returned[numbers[chosen, index]].double()
            added = weights[chosen, index, None].double() * own
            expected[chosen] += added
            extent[chosen] += added.abs()
        tolerance = _SUM_TOLERANCE * eps * extent
        if bool(((total.double() - expected).abs() > tolerance).any()):
            raise block.unreadable(OTHER_OUTPUT)
        _, put = self._run(None, put=total)
        if _are_equal(output, nothing) or not _are_equal(output, put):
            raise block.unreadable(
                "its output does not follow from the sum of its experts' outputs"
            )
        if bool((weights.count_nonzero(dim=1) <= 1).all()) and bool(
            ((weights == 0) | (weights == 1)).all()
        ):
            self._check_rows_are_tokens(total, output)
        if not all(bool(mask.all()) for mask in has_weight):
            again, all_output = self._run(mark_all)
            is_same = (again.double() - total.double()).abs() <= tolerance
            if not bool(is_same.all()) or not _are_equal(all_output, output):
                raise block.unreadable("outputs of experts without a weight change its output")

    def _check_rows_are_tokens(self, total: torch.Tensor, output: list[torch.Tensor]) -> None:
        """Check that rows which have no weights but 1 concern one token each.

        In a soft mixture of experts they may be slots, whose outputs go to all tokens.
        """
        generator = torch.Generator().manual_seed(2)
        is_other = torch.rand(len(total), generator=generator).to(total.device) < 0.5
        is_other[0], is_other[-1] = False, True
        changed = torch.where(is_other[:, None], 2 * total + 1, total)
        _, others = self._run(None, put=changed)
        for before, now in zip(output, others, strict=True):
            if before.numel() % len(total) == 0:
                is_changed = before.ne(now).reshape(len(total), -1).any(dim=1)
                # Others, such as a router's scores, don't change at all.
                if bool(is_changed.any()) and not bool((is_changed & ~is_other).any()):
                    return
        raise self._block.unreadable("its experts run on rows that are not its tokens")


def _list_outputs(output: Any) -> list[torch.Tensor]:
    """Return what a block returns for its tokens; numbers alone, such as losses, are left out."""
    tensors = [t for t in iter_tensors(output) if t.is_floating_point() and t.numel() > 1] or list(
        iter_tensors(output)
    )
    return [tensor.detach().clone() for tensor in tensors]


def _are_equal(outputs: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(outputs) == len(others) and all(map(_is_equal, outputs, others))


def _is_equal(output: torch.Tensor, other: torch.Tensor) -> bool:
    output, other = output.nan_to_num(), other.nan_to_num()
    if output.shape != other.shape or not output.is_floating_point() or not output.is_cuda:
        return torch.equal(output, other)
    # On a GPU sums may be added up in any order.
    tolerance = min(_GPU_TOLERANCE * torch.finfo(output.dtype).eps, _MOST_TOLERANCE)
    error = (output.double() - other.double()).abs().max()
    return bool(error <= tolerance * other.double().abs().max())
