"""Run a few iterations of a loop whose iterations are alike, and leave the others out."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

import torch
from torch import nn

from moetool.anatomy.structure.model_modules import ModelModules
from moetool.simulation.loops.loop import Loop
from moetool.simulation.loops.loop_bodies import LoopBody, find_loop_body
from moetool.simulation.loops.observer import IterationMark, LoopObserver
from moetool.simulation.loops.row_bodies import find_row_loop_body
from moetool.simulation.loops.straight_lines import means_torch
from moetool.simulation.meta.known_values import KnownValues
from moetool.simulation.meta.replaced import find_code, replaced

# With fewer iterations, there is little to leave out.
_FEWEST_ITERATIONS = 8
# What rows choose has to be found out first, and how many are left out follows no rule by which
# longer prompts could be expected from shorter ones.
_FEWEST_ROWS = 16
_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)
_MISSING = object()


@dataclass(frozen=True)
class _Iterations:
    """The iterations of a loop.

    Attributes:
        frame: The function that the loop is in.
        body: What each iteration does.
        values: What the loop goes through.
        ends: For each, the end of those that do the same in equal states.
        num_reads: For each, the number of values that it reads.
    """

    frame: FrameType
    body: LoopBody
    values: Sequence[Any]
    ends: Sequence[int]
    num_reads: Sequence[int]


class ShortenedLoops:
    """Lets loops in a model's code run a few of their iterations.

        with ShortenedLoops(model, observer, known, lambda: True):
            model(input_ids)

    A layer that goes through a prompt in chunks does the same to each of them, and one that goes
    through its experts does the same to those that got the same number of tokens. Two things make
    sure of that for a loop that is shortened:

    1. Its body is a straight line of operations on tensors. In a loop over `range`, the number does
       nothing except choose one position of a tensor (`find_loop_body`). In one over the rows of a
       tensor with known values, the body begins with statements that choose what to work on, which
       run in advance for each row (`find_row_loop_body`); it reads no other values. What it does to
       tensors without data is thus decided by the shapes of what is chosen and of those it reads,
       and by which of them share memory.
    2. These are the same before two iterations that follow each other, if blocks of memory are
       counted from the beginning of the iteration before. So the next iteration that chooses alike
       does what the last one did, and leaves the same behind for the one after it.

    The first iterations run until the second holds, and so does the last one of those that choose
    alike. The others are left to the observer. What they would have appended to lists are stand-ins,
    if nothing except these iterations' own memory is appended. The values of what an iteration changes
    are unknown, so nothing can depend on how often that was.

    Args:
        model: The model, on the meta device, or its modules if they are known.
        observer: Records what iterations do.
        known: Knows which values were read. An iteration that reads others than those that were
            foretold may depend on more than shapes.
        is_active: Whether a loop that begins now may be shortened.
    """

    def __init__(
        self,
        model: nn.Module | ModelModules,
        observer: LoopObserver,
        known: KnownValues,
        is_active: Callable[[], bool],
    ) -> None:
        self._modules = ModelModules.of(model)
        self._observer = observer
        self._known = known
        self._is_active = is_active
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        codes = find_code(self._modules.by_path.values())
        stand_in = _Ranges(self)
        for code in codes:
            if "range" not in vars(code):
                self._exit.enter_context(replaced(code, {"range": stand_in}))
        rows = _stand_in_for_rows(self, {code.__name__ for code in codes})
        self._exit.enter_context(replaced(torch.Tensor, {"__iter__": rows}))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def iterate(self, numbers: range, frame: FrameType) -> Iterable[int]:
        """Return the numbers that a loop goes through, which may be fewer."""
        num_values = len(numbers)
        if num_values < _FEWEST_ITERATIONS or not self._is_active():
            return numbers
        body = find_loop_body(frame.f_code, frame.f_lineno)
        if body is None or not means_torch(frame.f_code, frame.f_globals):
            return numbers
        ends, num_reads = [num_values] * num_values, [0] * num_values
        return self._shorten(_Iterations(frame, body, numbers, ends, num_reads))

    def iterate_rows(
        self, rows: torch.Tensor, values: Sequence[torch.Tensor], frame: FrameType
    ) -> Iterator[torch.Tensor]:
        """Return the rows of a tensor that a loop goes through, which may be fewer.

        Args:
            rows: The tensor.
            values: All of its rows.
            frame: The function that the loop is in.
        """
        if (
            len(values) < _FEWEST_ROWS
            or not self._is_active()
            or not self._known.count_known([rows])
        ):
            return iter(values)
        iterations = self._choose_by_rows(rows, values, frame)
        return iter(values) if iterations is None else self._shorten(iterations)

    def _choose_by_rows(
        self, rows: torch.Tensor, values: Sequence[torch.Tensor], frame: FrameType
    ) -> _Iterations | None:
        """Return the iterations of a loop over rows; None if more may decide on what they do."""
        body = find_row_loop_body(frame.f_code, frame.f_lineno)
        if body is None or not means_torch(frame.f_code, frame.f_globals):
            return None
        module, own, *given = _find_values(frame, ("self", body.rows, *body.given))
        if (
            not isinstance(module, nn.Module)
            or own is not rows
            or not body.self_use.is_straight(module)
        ):
            return None
        known = self._find_known((rows, *given))
        if known is None:
            return None
        foretold = body.foretell(known[0], known[1:], module)
        ends: list[int] = []
        for _, alike in itertools.groupby(foretold):
            num_alike = len(list(alike))
            ends += [len(ends) + num_alike] * num_alike
        return _Iterations(frame, body, values, ends, [each.num_reads for each in foretold])

    def _find_known(self, values: Iterable[object]) -> list[Any] | None:
        """Return plain values, and those of tensors on the CPU; None if any is something else."""
        found: list[Any] = []
        for value in values:
            known = self._known.find_value(value) if isinstance(value, torch.Tensor) else value
            if not isinstance(known, torch.Tensor if known is not value else _PLAIN):
                return None
            found.append(known)
        return found

    def _shorten(self, iterations: _Iterations) -> Iterator[Any]:
        frame, body, values = iterations.frame, iterations.body, iterations.values
        before: IterationMark | None = None
        state: Hashable = None
        lengths: tuple[int, ...] = ()
        position = num_foretold = 0
        while position < len(values):
            mark, state_before = self._observer.mark_iteration(), state
            state = self._describe(iterations, position, mark, before, num_foretold)
            if state is None:
                yield from values[position:]
                return
            num_more = iterations.ends[position] - 1 - position
            if before is not None and num_more > 0 and state == state_before:
                loop = Loop(
                    end_event=mark.num_events,
                    num_events=mark.num_events - before.num_events,
                    first_block=before.num_blocks,
                    num_blocks=mark.num_blocks - before.num_blocks,
                    num_left_out=num_more,
                )
                self._observer.allow_blocks(loop.num_blocks * num_more)
                if not self._leave_out(loop, _find_values(frame, sorted(body.appended)), lengths):
                    yield from values[position:]
                    return
                # The next one begins anew: it is compared with none of those before.
                position, state = iterations.ends[position] - 1, None
                mark = self._observer.mark_iteration()
            lengths = tuple(map(len, _find_values(frame, sorted(body.appended))))
            yield values[position]
            num_foretold += iterations.num_reads[position]
            position, before = position + 1, mark

    def _leave_out(self, loop: Loop, lists: Sequence[list[Any]], lengths: Sequence[int]) -> bool:
        """Leave iterations out; return False if that can't be done.

        Args:
            loop: The iterations.
            lists: The lists that they append to.
            lengths: Their lengths before the iteration that ran last.
        """
        if not lists:
            if loop.num_events:
                self._observer.leave_out(loop)
            return True
        appended = [values[length:] for values, length in zip(lists, lengths, strict=True)]
        if len({*map(id, lists)}) < len(lists) or not all(
            self._is_own(value, loop) for values in appended for value in values
        ):
            return False
        self._observer.write_out(loop)
        for values, length, last in zip(lists, lengths, appended, strict=True):
            # What was appended last is now what the last iteration left out would have appended.
            values[length:length] = [
                self._make_like(value, number * loop.num_blocks)
                for number in range(loop.num_left_out, 0, -1)
                for value in last
            ]
        return True

    def _make_like(self, tensor: torch.Tensor, num_blocks: int) -> torch.Tensor:
        """Return a tensor like another, in a block that many before that one's."""
        # Making stand-ins is not the model's work.
        with torch._C._DisableTorchDispatch():
            made = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
            )
        self._observer.follow_like(made, tensor, num_blocks)
        return made

    def _is_own(self, value: object, loop: Loop) -> bool:
        """Return whether a value is a tensor of unknown values in memory of the last iteration."""
        if not isinstance(value, torch.Tensor) or self._known.count_known([value]):
            return False
        block = self._observer.find_block(value)
        return block is not None and block >= loop.first_block

    def _describe(
        self,
        iterations: _Iterations,
        position: int,
        mark: IterationMark,
        before: IterationMark | None,
        num_foretold: int,
    ) -> Hashable:
        """Return all that decides on what an iteration does; None if that isn't known."""
        body = iterations.body
        if not all(type(value) is list for value in _find_values(iterations.frame, body.appended)):
            return None
        values = dict(zip(body.names, _find_values(iterations.frame, body.names), strict=True))
        found = tuple(
            value
            if value is _MISSING
            else self._describe_value(value, is_indexed=name in body.indexed, since=before)
            for name, value in values.items()
        )
        if None in found:
            return None
        changed = [values[name] for name in body.changed]
        is_known = self._known.count_known(
            [value for value in changed if isinstance(value, torch.Tensor)]
        )
        return (
            found,
            None if before is None else mark.num_blocks - before.num_blocks,
            mark.rest,
            iterations.ends[position],
            self._known.num_reads - num_foretold,
            # If values are known, it matters how often they change: no state equals this one.
            object() if is_known else None,
        )

    def _describe_value(
        self, value: object, *, is_indexed: bool, since: IterationMark | None
    ) -> Hashable:
        if isinstance(value, torch.Tensor):
            block = self._observer.find_block(value)
            place: Hashable = block
            if block is not None and since is not None and block >= since.num_blocks:
                place = ("since", block - since.num_blocks)
            return (tuple(value.shape), value.stride(), value.dtype, value.device.type, place)
        is_plain = isinstance(value, _PLAIN) and not is_indexed
        return (type(value), value) if is_plain else None


def _find_values(frame: FrameType, names: Iterable[str]) -> list[Any]:
    """Return the values of a function's variables; `_MISSING` for those that are not set."""
    values = frame.f_locals
    try:
        return [values.get(name, _MISSING) for name in names]
    finally:
        # Before Python 3.13 it is a copy, which would keep tensors alive.
        if isinstance(values, dict):
            values.clear()


def _stand_in_for_rows(loops: ShortenedLoops, codes: set[str]) -> Callable[..., Any]:
    """Return what stands for going through a tensor's rows, in the Python modules of a model."""
    iterate: Any = torch.Tensor.__iter__

    def iterate_rows(rows: torch.Tensor) -> Iterator[torch.Tensor]:
        frame = sys._getframe(1)
        values: Iterator[torch.Tensor] = iterate(rows)
        if not rows.is_meta or frame.f_globals.get("__name__") not in codes:
            return values
        return loops.iterate_rows(rows, tuple(values), frame)

    return iterate_rows


class _Ranges:
    """Stands for `range` in the code of a model."""

    def __init__(self, loops: ShortenedLoops) -> None:
        self._loops = loops

    def __call__(self, *limits: Any) -> Iterable[int]:
        return self._loops.iterate(range(*limits), sys._getframe(1))

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, range)
