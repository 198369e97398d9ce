"""The weighted sum of experts' outputs, searched for among all that a block computes.

A block may norm, project or gate what goes into its experts and what comes out of them, add its input,
or route by a parameter or a function. Somewhere in it lies a tensor that holds, for every token, the sum
of its experts' outputs by weight. It is found by running the block again with experts that return
marks: vectors with one number, so large that all else is lost next to it. These runs are on the very
hidden states of the call, so every decision is made as it was made there.

Nothing is recorded that is not proven:

- the experts receive in these runs what they received in the call;
- each row that reaches a sum is that of the same token, in what the block dispatched;
- the weights are the same for marks in other columns and of other lengths;
- the weights, applied to random outputs, give the sum;
- the block's output follows from the sum: put into its place, it gives the same output when the
  experts return zeros; and outputs that have no weight change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from moetool.errors import UntraceableError
from moetool.tracing.recording.watch.decision import rank
from moetool.tracing.recording.watch.separate.block import Block, BlockCall
from moetool.tracing.recording.watch.separate.captures import (
    Capture,
    InputFinder,
    SumDetector,
    ZeroFinder,
)
from moetool.tracing.recording.watch.separate.marked_run import Mark, MarkedRun, Seen
from moetool.tracing.recording.watch.separate.own_rows import (
    check_received,
    find_weightless,
    last_of,
    list_states,
    turn,
)
from moetool.tracing.recording.watch.separate.proof import (
    OTHER_OUTPUT,
    SumInBlock,
    is_near,
    list_outputs,
)
from moetool.tracing.recording.watch.weighted_rows import (
    WEIGHTED_TWICE,
    WeightTrail,
    read_weighted,
)

# Powers of two: the length of a mark, and what no other number reaches. float16 is too narrow for that:
# there, sums are searched for among tensors that are zero when experts return zeros.
_LENGTHS = {
    torch.float64: (400, 200),
    torch.float32: (80, 40),
    torch.bfloat16: (80, 40),
    torch.float16: (0, -24),
}
# Rows are numbered in digits of this base, each of them a power of two in the length of a mark.
_BASE, _BASE_OF_FLOAT16 = 31, 8


class SumPlace(NamedTuple):
    """Where a block adds up what its experts return.

    Attributes:
        offset: How many tensors of the sum's width the block computes after it called an expert for the
            last time, and before the sum.
        is_input_computed: Whether experts receive rows of a tensor that neither the block was called
            with nor a module returned.
    """

    offset: int
    is_input_computed: bool


class SumSearch:
    """Reads the decision of one call of a block.

    Attributes:
        place: Where the sum was found, once it was.
        weighs_input: Whether the weights multiply what experts receive; known after `decide`.

    Args:
        block: Named in errors.
        call: Its call as hooks saw it.
        again: Runs it again.
        sizes: Numbers of tokens that it may have been called with, the most probable first.
    """

    def __init__(
        self, block: Block, call: BlockCall, again: MarkedRun, *, sizes: list[int]
    ) -> None:
        self.weighs_input = False
        self._block = block
        self._call = call
        self._again = again
        self._sizes = sizes
        returned = [
            call.returned[path][0].output
            for path in _iter_last(block, call)
            if call.returned.get(path)
        ]
        outputs = [value[0] if isinstance(value, tuple) else value for value in returned]
        if not all(isinstance(value, torch.Tensor) and value.dim() for value in outputs):
            raise block.unreadable("its experts do not return hidden states")
        kinds = {(value.shape[-1], value.dtype) for value in outputs}
        if len(kinds) != 1:
            raise block.unreadable(
                "none of its experts ran as a module"
                if not kinds
                else "its experts' outputs differ"
            )
        self._width, self._dtype = kinds.pop()
        if self._dtype not in _LENGTHS:
            raise block.unreadable(f"its experts return {self._dtype}, which is not read")
        length, least = _LENGTHS[self._dtype]
        self._length, self._least = 2.0**length, 2.0**least
        self._is_narrow = self._dtype == torch.float16
        self._base = _BASE_OF_FLOAT16 if self._is_narrow else _BASE
        self._eps = torch.finfo(self._dtype).eps
        # Marks lie in the first half of the columns, so that a mixture of columns shows in the others.
        self._group = max(self._width // 2, 1)
        self.place: SumPlace | None = None

    def decide(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ids and weights, largest first.

        Returns:
            Both # (num_tokens, top_k), padded with -1 and 0.

        Raises:
            UntraceableError: Nothing was found that is proven.
        """
        inputs = InputFinder(self._call.hidden)
        seen = self._see(inputs)
        turned = None if self._block.is_plain else self._again.run(order=turn)
        check_received(self._block, self._call, seen, turned)
        refusal: UntraceableError | None = None
        for num_tokens, number in self._find_sums():
            try:
                decision = self._read(number, num_tokens, inputs.found, seen)
            except UntraceableError as error:
                refusal = refusal or error
            else:
                if self._call.has_values:
                    self._check_output(self._again.run(is_repeated=True))
                return decision
        raise refusal or self._block.unreadable(
            "its experts return float16, which has no room for marks, and no tensor holds the sum of "
            "their outputs by weight alone"
            if self._is_narrow
            else "its experts' outputs are not added up by weight"
        )

    def _see(self, inputs: InputFinder) -> Seen:
        """Run the block with experts that return zeros, and look at what they receive."""
        rows = next(iter(self._call.received.values()))[0]
        width = rows.shape[-1]
        trail = WeightTrail(len(self._block.experts), width)
        finder = Capture(width, inputs.look, trail=trail)
        return self._again.run(capture=finder, on_rows=inputs.keep)

    def _find_sums(self) -> Iterator[tuple[int, int]]:
        """Yield the numbers of tokens and of tensors that may be the sum, the most probable first.

        Outputs that were only put together have a row for each of them, and a weight of 1. So the
        number of rows has to be that of the tokens.
        """
        zeros: ZeroFinder | None = None
        if self._is_narrow:
            zeros = ZeroFinder()
            self._run(None, Capture(self._width, zeros.look))
        # Marks of other experts show the sum if none of the first ones has a weight.
        for first in range(0, len(self._block.experts), self._group):
            detector = SumDetector(
                least=self._least,
                num_columns=self._group,
                among=None if zeros is None else zeros.found,
            )
            self._run(self._mark(first), Capture(self._width, detector.look))
            for size in self._sizes:
                for number in reversed(detector.found.get(size, ())):
                    yield size, number

    def _check_output(self, repeated: Seen) -> None:
        """Check that the block makes of its experts' outputs what it made of them in the call."""
        if not is_near(list_outputs(self._call.output), list_outputs(repeated.output)):
            raise self._block.unreadable("a second run of it gives another output")

    def _mark(self, first: int, *, turned: bool = False, digit: int | None = None) -> Mark:
        """Return a function that gives each expert of a group a mark in its own column."""

        def mark(index: int, before: int, rows: torch.Tensor) -> None:
            column = index - first
            if not 0 <= column < self._group:
                return
            column = self._width - 1 - column if turned else column
            rows[:, column] = self._length
            if digit is not None:
                number = torch.arange(before, before + len(rows), device=rows.device)
                factors = torch.tensor([2.0 ** (value + 1) for value in range(self._base)]).to(rows)
                rows[:, column] *= factors[number // self._base**digit % self._base]

        return mark

    def _run(self, mark: Mark | None, capture: Capture) -> Seen:
        return self._again.run(mark, capture=capture)

    def _read(
        self, number: int, num_tokens: int, inputs: list[torch.Tensor], seen: Seen
    ) -> tuple[torch.Tensor, torch.Tensor]:
        block, width = self._block, self._width
        total = SumInBlock(
            block,
            self._again,
            number=number,
            num_tokens=num_tokens,
            width=width,
            dtype=self._dtype,
        )
        num_experts = len(block.experts)
        sizes = [sum(map(_count, seen.rows.get(index, []))) for index in range(num_experts)]
        shape = (num_tokens, num_experts)
        weights: torch.Tensor | None = None
        numbers: torch.Tensor | None = None  # The row of each expert that reached each token.
        for first in range(0, num_experts, self._group):
            found, rows = self._read_group(total, first, most_rows=max(sizes))
            if weights is None or numbers is None:
                weights = found.new_zeros(shape)
                numbers = torch.zeros(shape, dtype=torch.int64, device=found.device)
            last = min(first + self._group, num_experts)
            weights[:, first:last] = found[:, : last - first]
            numbers[:, first:last] = rows[:, : last - first]
        assert weights is not None
        assert numbers is not None
        if not bool((weights != 0).any()):
            raise block.unreadable("its experts' outputs are not added up by weight")
        limits = torch.tensor(sizes, device=numbers.device)
        is_chosen = weights != 0
        if bool((is_chosen & (numbers >= limits)).any()):
            raise block.unreadable(OTHER_OUTPUT)
        total.check(weights, numbers, sizes)
        own, factors = read_weighted(seen.rows, seen.weighted)
        chosen = is_chosen | find_weightless(block, is_chosen, numbers, inputs, own)
        if factors:
            weights = self._weigh_inputs(weights, numbers, factors)
            self.weighs_input = True
            chosen &= ~chosen.all(dim=0) | (weights != 0)
        else:
            self.place = SumPlace(total.offset, self._is_input_computed(is_chosen, numbers, own))
        return rank(weights, chosen)

    def _is_input_computed(
        self,
        is_chosen: torch.Tensor,
        numbers: torch.Tensor,
        own: Mapping[int, list[torch.Tensor]],
    ) -> bool:
        try:
            find_weightless(self._block, is_chosen, numbers, list_states(self._call), own)
        except UntraceableError:
            return True
        return False

    def _weigh_inputs(
        self, weights: torch.Tensor, numbers: torch.Tensor, factors: dict[int, torch.Tensor]
    ) -> torch.Tensor:
        """Return the weights that multiplied what experts received.

        Args:
            weights: By which experts' outputs are added up. # (num_tokens, num_experts)
            numbers: The row of each expert that has the weight. # (num_tokens, num_experts)
            factors: By expert, the weights of its rows. # each (num_rows,)
        """
        weighted = weights.clone()
        for index, of_rows in factors.items():
            column = weights[:, index]
            if bool(((column != 0) & (column != 1)).any()):
                raise self._block.unreadable(WEIGHTED_TWICE)
            chosen = torch.nonzero(column).flatten()
            weighted[chosen, index] = of_rows.to(column)[numbers[chosen, index]]
        return weighted

    def _read_group(
        self, total: SumInBlock, first: int, *, most_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights and numbers of rows for the experts of a group.

        Returns:
            Both # (num_tokens, group)
        """
        other = self._block.unreadable(OTHER_OUTPUT)
        marked = total.take(self._mark(first))
        turned = total.take(self._mark(first, turned=True)).flip(1)
        is_marked = marked.abs() >= self._least
        if not torch.equal(is_marked, turned.abs() >= self._least):
            raise other
        if not torch.equal(marked[is_marked], turned[is_marked]) or not _is_clean(
            marked, self._group
        ):
            raise other
        rows = torch.zeros_like(marked, dtype=torch.int64)
        num_digits = 1
        while self._base**num_digits < most_rows:
            num_digits += 1
        for digit in range(num_digits):
            coded = total.take(self._mark(first, digit=digit))
            mantissa, exponent = torch.frexp((coded / marked)[is_marked].float())
            value = exponent - 2
            is_digit = (mantissa == 0.5) & (value >= 0) & (value < self._base)
            if not bool(is_digit.all()):
                raise self._block.unreadable(OTHER_OUTPUT)
            rows[is_marked] += value.long() * self._base**digit
        weights = torch.where(is_marked, marked / self._length, 0)
        return weights[:, : self._group], rows[:, : self._group]


def _iter_last(block: Block, call: BlockCall) -> Iterator[str]:
    for index in range(len(block.experts)):
        last = last_of(block, call, index)
        if last is not None:
            yield last


def _count(rows: torch.Tensor) -> int:
    return rows.numel() // rows.shape[-1]


def _is_clean(marked: torch.Tensor, group: int) -> bool:
    return not bool(marked.isnan().any()) and marked.shape[1] >= group
