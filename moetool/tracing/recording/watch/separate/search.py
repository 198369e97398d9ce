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

from collections.abc import Iterator

import torch

from moetool.errors import UntraceableError
from moetool.tracing.recording.watch.separate.block import Block, BlockCall
from moetool.tracing.recording.watch.separate.captures import (
    Capture,
    InputFinder,
    SumDetector,
)
from moetool.tracing.recording.watch.separate.marked_run import Mark, MarkedRun, Seen
from moetool.tracing.recording.watch.separate.own_rows import find_weightless
from moetool.tracing.recording.watch.separate.proof import OTHER_OUTPUT, SumInBlock
from moetool.tracing.recording.watch.weighted_rows import (
    WEIGHTED_TWICE,
    WeightTrail,
    read_weighted,
)

# Powers of two: the length of a mark, and what no other number reaches. float16 is too narrow.
_LENGTHS = {torch.float64: (400, 200), torch.float32: (80, 40), torch.bfloat16: (80, 40)}
# Rows are numbered in digits of this base, each of them a power of two in the length of a mark.
_BASE = 31
_SUM_TOLERANCE = 32


class SumSearch:
    """Reads the decision of one call of a block.

    Attributes:
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
        self._width, dtype = kinds.pop()
        if dtype not in _LENGTHS:
            raise block.unreadable(
                f"this kind of block is read in bfloat16 or float32, and its experts return {dtype}"
            )
        length, least = _LENGTHS[dtype]
        self._length, self._least = 2.0**length, 2.0**least
        self._eps = torch.finfo(dtype).eps
        # Marks lie in the first half of the columns, so that a mixture of columns shows in the others.
        self._group = max(self._width // 2, 1)

    def decide(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ids and weights, largest first.

        Returns:
            Both # (num_tokens, top_k), padded with -1 and 0.

        Raises:
            UntraceableError: Nothing was found that is proven.
        """
        inputs = InputFinder(self._call.hidden)
        found, seen = self._detect(inputs)
        self._check_rows(seen)
        refusal: UntraceableError | None = None
        for num_tokens, number in self._order(found):
            try:
                return self._read(number, num_tokens, inputs.found, seen)
            except UntraceableError as error:
                refusal = refusal or error
        raise refusal or self._block.unreadable("its experts' outputs are not added up by weight")

    def _detect(self, inputs: InputFinder) -> tuple[dict[int, list[int]], Seen]:
        """Return the numbers of tensors that may be the sum, by their numbers of tokens."""
        rows = next(iter(self._call.received.values()))[0]
        width = rows.shape[-1]
        trail = WeightTrail(len(self._block.experts), width)
        finder = Capture(width, inputs.look, trail=trail)
        seen = self._again.run(capture=finder, on_rows=inputs.keep)
        for first in range(0, len(self._block.experts), self._group):
            detector = SumDetector(least=self._least, num_columns=self._group)
            self._run(self._mark(first), Capture(self._width, detector.look))
            if detector.found:
                return detector.found, seen
        return {}, seen

    def _order(self, found: dict[int, list[int]]) -> Iterator[tuple[int, int]]:
        """Yield numbers of tokens and of tensors, the most probable first.

        Outputs that were only put together have a row for each of them, and a weight of 1. So the
        number of rows has to be that of the tokens.
        """
        for size in self._sizes:
            for number in reversed(found.get(size, ())):
                yield size, number

    def _check_rows(self, seen: Seen) -> None:
        """Check that the experts receive what they received in the call."""
        for index, members in enumerate(self._block.experts):
            received = [self._call.received.get(part.path, []) for part in members]
            now = seen.rows.get(index, [])
            first = next((calls for calls in received if calls), [])
            if len(members) > 1:
                first = self._find_first(index)
                last = self._call.received.get(_last_of(self._block, self._call, index) or "", [])
                _same(last, seen.last.get(index, []), self._block)
            _same(first, now, self._block)
        if not self._block.is_plain:
            self._check_chain(seen)

    def _find_first(self, index: int) -> list[torch.Tensor]:
        paths = [part.path for part in self._block.experts[index]]
        called = [path for path in self._call.order if path in paths]
        return self._call.received.get(called[0], []) if called else []

    def _check_chain(self, seen: Seen) -> None:
        """Check that the last module of an expert gets the rows of the first, in the same order."""

        def turn(output: torch.Tensor) -> torch.Tensor:
            return output.roll(1, dims=0) if output.dim() == 2 else output

        turned = self._again.run(order=turn)
        for index, calls in seen.last.items():
            for rows, others in zip(map(turn, calls), turned.last.get(index, []), strict=True):
                # Vectorized code may round elements differently in other places of memory.
                error = (rows - others).abs().max() if rows.numel() else 0
                if error > _SUM_TOLERANCE * self._eps * rows.abs().max():
                    raise self._block.unreadable("its experts mix the rows of different tokens")

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
                factors = torch.tensor([2.0 ** (value + 1) for value in range(_BASE)]).to(rows)
                rows[:, column] *= factors[number // _BASE**digit % _BASE]

        return mark

    def _run(self, mark: Mark | None, capture: Capture) -> Seen:
        return self._again.run(mark, capture=capture)

    def _read(
        self, number: int, num_tokens: int, inputs: list[torch.Tensor], seen: Seen
    ) -> tuple[torch.Tensor, torch.Tensor]:
        block, width = self._block, self._width
        total = SumInBlock(block, self._again, number=number, num_tokens=num_tokens, width=width)
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
        return _rank(weights, chosen)

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
        while _BASE**num_digits < most_rows:
            num_digits += 1
        for digit in range(num_digits):
            coded = total.take(self._mark(first, digit=digit))
            mantissa, exponent = torch.frexp((coded / marked)[is_marked].float())
            value = exponent - 2
            is_digit = (mantissa == 0.5) & (value >= 0) & (value < _BASE)
            if not bool(is_digit.all()):
                raise self._block.unreadable(OTHER_OUTPUT)
            rows[is_marked] += value.long() * _BASE**digit
        weights = torch.where(is_marked, marked / self._length, 0)
        return weights[:, : self._group], rows[:, : self._group]


def _iter_last(block: Block, call: BlockCall) -> Iterator[str]:
    for index in range(len(block.experts)):
        last = _last_of(block, call, index)
        if last is not None:
            yield last


def _last_of(block: Block, call: BlockCall, index: int) -> str | None:
    """Return the path of the last module of an expert that ran; None if it did not run."""
    paths = [part.path for part in block.experts[index]]
    return next((path for path in reversed(call.order) if path in paths), None)


def _same(rows: list[torch.Tensor], others: list[torch.Tensor], block: Block) -> None:
    if len(rows) != len(others) or not all(map(torch.equal, rows, others)):
        raise block.unreadable("a second run sent tokens to other experts")


def _count(rows: torch.Tensor) -> int:
    return rows.numel() // rows.shape[-1]


def _is_clean(marked: torch.Tensor, group: int) -> bool:
    return not bool(marked.isnan().any()) and marked.shape[1] >= group


def _rank(weights: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(int(chosen.sum(dim=1).max()), 1)
    ranked = weights.float().masked_fill(~chosen, -torch.inf)
    ids = ranked.argsort(dim=1, descending=True, stable=True)[:, :width]
    none = ~chosen.gather(1, ids)
    return ids.masked_fill(none, -1), weights.gather(1, ids).masked_fill(none, 0)
