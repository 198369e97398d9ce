"""Later calls of a block in which the weighted sum was found before, proven in as few runs as that takes.

An earlier call has shown where the block adds up what its experts return. That is taken for a guess,
not for a fact: all that counts is proven again, of the decisions of this very call.

- Experts return what they returned in the call: the block's output must be that of the call, and its
  experts must receive what they received there.
- Experts return marks in some columns and random numbers in the others. Marks of several lengths give
  the weights and the rows of tokens, and these must give the sum of the random numbers, and that of
  the experts' own outputs in the first run.
- Experts return zeros, and the sum of the first run is put into the place of theirs: the output must be
  the same. What experts without a weight return thus changes nothing.

If anything is not as it was, the search starts anew.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from moetool.tracing.recording.watch.decision import rank
from moetool.tracing.recording.watch.separate.block import Block, BlockCall
from moetool.tracing.recording.watch.separate.captures import Capture, InputFinder
from moetool.tracing.recording.watch.separate.marked_run import Mark, MarkedRun, Seen
from moetool.tracing.recording.watch.separate.own_rows import (
    check_received,
    find_weightless,
    last_of,
    list_states,
    turn,
)
from moetool.tracing.recording.watch.separate.proof import (
    NOT_FROM_SUM,
    OTHER_OUTPUT,
    SumInBlock,
    are_equal,
    explains,
    list_outputs,
    make_outputs,
)
from moetool.tracing.recording.watch.separate.search import SumPlace, SumSearch
from moetool.tracing.recording.watch.weighted_rows import WeightTrail, read_weighted

# Columns that hold random numbers, at least.
_LEAST_RANDOM = 4


class Weights(NamedTuple):
    """The weights of a group of experts, read from marks.

    Attributes:
        values: # (num_tokens, group)
        numbers: The row of each expert that has the weight. # (num_tokens, group)
    """

    values: torch.Tensor
    numbers: torch.Tensor


class KnownSum(SumSearch):
    """Reads the decision of a later call.

    Args:
        block: Named in errors.
        call: Its call as hooks saw it.
        again: Runs it again.
        sizes: Numbers of tokens that it may have been called with.
        place: Where the sum was in an earlier call.
    """

    def __init__(
        self,
        block: Block,
        call: BlockCall,
        again: MarkedRun,
        *,
        sizes: list[int],
        place: SumPlace,
    ) -> None:
        super().__init__(block, call, again, sizes=sizes)
        self.place: SumPlace = place

    def decide(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ids and weights, largest first.

        Returns:
            Both # (num_tokens, top_k), padded with -1 and 0.

        Raises:
            UntraceableError: It is not proven that the sum is where it was.
        """
        block = self._block
        repeated, number, own_total, inputs = self._repeat()
        if len(own_total) not in self._sizes:
            raise block.unreadable("its experts run on rows that are not its tokens")
        self._check_output(repeated)
        own, factors = read_weighted(repeated.rows, repeated.weighted)
        if factors:
            raise block.unreadable("weights multiply what goes into its experts")
        output = list_outputs(repeated.output)
        total = SumInBlock(
            block,
            self._again,
            number=number,
            num_tokens=len(own_total),
            width=self._width,
            dtype=self._dtype,
        )
        put = total.run(None, put=own_total, order=None if block.is_plain else turn)
        check_received(block, self._call, repeated, None if block.is_plain else put.seen)
        if not are_equal(output, put.output):
            raise block.unreadable(NOT_FROM_SUM)
        sizes = [
            sum(rows.numel() // rows.shape[-1] for rows in repeated.rows.get(index, []))
            for index in range(len(block.experts))
        ]
        weights, numbers = self._read_all(total, put.before, output, sizes)
        self._compare(
            own_total, put.before, self._list_own(sizes, own_total.device), weights, numbers
        )
        total.check_tokens(weights, own_total, output)
        is_chosen = weights != 0
        return rank(
            weights,
            is_chosen | find_weightless(block, is_chosen, numbers, inputs, own),
        )

    def _repeat(self) -> tuple[Seen, int, torch.Tensor, list[torch.Tensor]]:
        """Run the block with the outputs that its experts returned in the call.

        Returns:
            The run, the sum with its number, and the tensors whose rows experts may receive.
        """
        num_calls, place = len(self._call.order), self.place
        width = next(iter(self._call.received.values()))[0].shape[-1]
        taken: list[tuple[int, torch.Tensor]] = []
        inputs = InputFinder(self._call.hidden)

        def look(value: torch.Tensor, number: int) -> None:
            if place.is_input_computed:
                inputs.look(value, number)
            is_last = capture.num_experts_called == num_calls
            if is_last and number == capture.number_then + place.offset:
                taken.append((number, value.detach().reshape(-1, self._width).clone()))

        trail = WeightTrail(len(self._block.experts), width)
        capture = Capture(self._width, look, trail=trail)
        seen = self._again.run(
            capture=capture,
            on_rows=inputs.keep if place.is_input_computed else None,
            is_repeated=True,
        )
        if not taken:
            raise self._block.unreadable("it computes in another way each time that it runs")
        return seen, *taken[0], [*list_states(self._call), *inputs.found]

    def _list_own(self, sizes: list[int], device: torch.device) -> list[torch.Tensor]:
        """Return what experts returned in the call. # each (num_rows, width)."""
        found = []
        for index, size in enumerate(sizes):
            path = last_of(self._block, self._call, index) or ""
            calls = (each.output for each in self._call.returned.get(path, ()))
            values = [value[0] if isinstance(value, tuple) else value for value in calls]
            rows = [value.reshape(-1, self._width).to(device) for value in values]
            none = torch.zeros(0, self._width, dtype=self._dtype, device=device)
            found.append(torch.cat(rows) if rows else none)
            if len(found[-1]) != size:
                raise self._block.unreadable(OTHER_OUTPUT)
        return found

    def _read_all(
        self, total: SumInBlock, empty: torch.Tensor, output: list[torch.Tensor], sizes: list[int]
    ) -> Weights:
        """Return the weights of all experts, after checking them with random outputs."""
        block, num_experts = self._block, len(self._block.experts)
        num_digits = 1
        while self._base**num_digits < max(sizes):
            num_digits += 1
        group = min((self._width - _LEAST_RANDOM) // (1 + num_digits), num_experts)
        if group < 1 or (self._is_narrow and bool(empty.any())):
            raise block.unreadable("there is no room for marks and random numbers")
        outputs = make_outputs(sizes, self._width, empty.device, self._dtype)
        read: list[Weights] = []
        totals: list[torch.Tensor] = []
        for first in range(0, num_experts, group):
            run = total.run(self._mark_columns(first, group, num_digits, outputs))
            if are_equal(run.output, output):
                raise block.unreadable(NOT_FROM_SUM)
            read.append(self._read_columns(run.total, group, num_digits))
            totals.append(run.total)
        values, numbers = (
            torch.cat(parts, dim=1)[:, :num_experts] for parts in zip(*read, strict=True)
        )
        limits = torch.tensor(sizes, device=numbers.device)
        if bool(((values != 0) & (numbers >= limits)).any()) or not bool((values != 0).any()):
            raise block.unreadable(OTHER_OUTPUT)
        used = (1 + num_digits) * group
        for marked in totals:
            rest = [rows[:, used:] for rows in outputs]
            self._compare(marked[:, used:], empty[:, used:], rest, values, numbers)
        return Weights(values, numbers)

    def _mark_columns(
        self, first: int, group: int, num_digits: int, outputs: list[torch.Tensor]
    ) -> Mark:
        """Return a function that gives each expert marks in its own columns, and random numbers.

        There is a column for the weight and one for each digit of the row's number.
        """
        factors = torch.tensor([2.0 ** (value + 1) for value in range(self._base)])

        def mark(index: int, before: int, rows: torch.Tensor) -> None:
            rows.copy_(outputs[index][before : before + len(rows)])
            rows[:, : (1 + num_digits) * group] = 0
            column = index - first
            if not 0 <= column < group:
                return
            rows[:, column] = self._length
            number = torch.arange(before, before + len(rows), device=rows.device)
            for digit in range(num_digits):
                value = number // self._base**digit % self._base
                place = (1 + digit) * group + column
                rows[:, place] = self._length * factors.to(rows)[value]

        return mark

    def _read_columns(self, marked: torch.Tensor, group: int, num_digits: int) -> Weights:
        """Return the weights and row numbers that marks spell."""
        columns = marked[:, : (1 + num_digits) * group].view(len(marked), 1 + num_digits, group)
        is_marked = columns.abs() >= self._least
        mantissas, exponents = torch.frexp(
            (columns[:, 1:] / columns[:, :1]).double().where(is_marked[:, :1], 2.0)
        )
        digits = exponents - 2
        is_digit = (mantissas == 0.5) & (digits >= 0) & (digits < self._base)
        if (
            not bool(columns.isfinite().all())
            or not bool((is_marked == is_marked[:, :1]).all())
            or not bool(is_digit.all())
        ):
            raise self._block.unreadable(OTHER_OUTPUT)
        scale = self._base ** torch.arange(num_digits, device=marked.device)
        numbers = (digits.long() * scale[:, None]).sum(dim=1)
        return Weights(torch.where(is_marked[:, 0], columns[:, 0] / self._length, 0), numbers)

    def _compare(
        self,
        total: torch.Tensor,
        empty: torch.Tensor,
        outputs: list[torch.Tensor],
        weights: torch.Tensor,
        numbers: torch.Tensor,
    ) -> None:
        """Check that weights give a sum."""
        if not explains(total, empty, outputs, weights, numbers):
            raise self._block.unreadable(OTHER_OUTPUT)
