"""Run a few iterations of a loop whose iterations are alike, and leave the others out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import nn

from moetool.anatomy.structure.model_modules import ModelModules
from moetool.simulation.loops.loop import Loop
from moetool.simulation.loops.loop_bodies import TORCH_NAMES, LoopBody, find_loop_body
from moetool.simulation.meta.known_values import KnownValues
from moetool.simulation.meta.replaced import find_code, replaced

# With fewer iterations, there is little to leave out.
_FEWEST_ITERATIONS = 8
_TORCHS = (torch, torch.nn.functional)
_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)
_MISSING = object()


class IterationMark(NamedTuple):
    """The beginning of an iteration.

    Attributes:
        num_events: Number of events before it.
        num_blocks: Number of blocks before it.
        rest: Whatever else must be equal for two iterations to do the same.
    """

    num_events: int
    num_blocks: int
    rest: Hashable


class LoopObserver(Protocol):
    """Records the work of iterations, including those that don't run."""

    def mark_iteration(self) -> IterationMark:
        """Return a mark of the beginning of an iteration."""

    def find_block(self, tensor: torch.Tensor) -> int | None:
        """Return the block that a tensor is in; None for those not followed."""

    def allow_blocks(self, num_further: int) -> None:
        """Raise an error if a layer may not make that number of further blocks."""

    def leave_out(self, loop: Loop) -> None:
        """Record iterations that don't run, all of whose blocks die in them or in the next one."""

    def write_out(self, loop: Loop) -> None:
        """Record iterations that don't run one by one. What lives now is what the last of them made."""

    def follow_like(self, made: torch.Tensor, tensor: torch.Tensor, num_blocks: int) -> None:
        """Follow a tensor in a block that many before another's."""


class ShortenedLoops:
    """Lets loops over `range` in a model's code run a few of their iterations.

        with ShortenedLoops(model, observer, known, lambda: True):
            model(input_ids)

    A layer that goes through a prompt in chunks does the same to each of them. Two things make sure
    of that for a loop that is shortened:

    1. Its body is a straight line of operations on tensors, and its number does nothing except choose
       one position of a tensor (`find_loop_body`). What it does to tensors without data is thus
       decided by the shapes of those it reads, and by which of them share memory.
    2. These are the same before two iterations that follow each other, if blocks of memory are
       counted from the beginning of the iteration before. So the next iteration does what the last
       one did, and leaves the same behind for the one after it.

    The first iterations run until the second holds, and so does the last one of all. The others are
    left to the observer. What they would have appended to lists are stand-ins, if nothing except
    these iterations' own memory is appended.

    Args:
        model: The model, on the meta device, or its modules if they are known.
        observer: Records what iterations do.
        known: Knows which values were read. An iteration that reads any may depend on more than
            shapes.
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
        stand_in = _Ranges(self)
        for code in find_code(self._modules.by_path.values()):
            if "range" not in vars(code):
                self._exit.enter_context(replaced(code, {"range": stand_in}))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def iterate(self, numbers: range, frame: FrameType) -> Iterable[int]:
        """Return the numbers that a loop goes through, which may be fewer."""
        if len(numbers) < _FEWEST_ITERATIONS or not self._is_active():
            return numbers
        body = find_loop_body(frame.f_code, frame.f_lineno)
        if (
            body is None
            or TORCH_NAMES & {*frame.f_code.co_varnames}
            or any(frame.f_globals.get(name) not in (None, *_TORCHS) for name in TORCH_NAMES)
        ):
            return numbers
        return self._shorten(numbers, frame, body)

    def _shorten(self, numbers: range, frame: FrameType, body: LoopBody) -> Iterator[int]:
        before: IterationMark | None = None
        state: Hashable = None
        lengths: tuple[int, ...] = ()
        for position, number in enumerate(numbers):
            mark, state_before = self._observer.mark_iteration(), state
            state = self._describe(frame, body, mark, before)
            if state is None:
                yield from numbers[position:]
                return
            num_more = len(numbers) - 1 - position
            if before is not None and num_more > 0 and state == state_before:
                loop = Loop(
                    end_event=mark.num_events,
                    num_events=mark.num_events - before.num_events,
                    first_block=before.num_blocks,
                    num_blocks=mark.num_blocks - before.num_blocks,
                    num_left_out=num_more,
                )
                self._observer.allow_blocks(loop.num_blocks * num_more)
                if self._leave_out(loop, _find_lists(frame, body), lengths):
                    yield numbers[-1]
                else:
                    yield from numbers[position:]
                return
            lengths = tuple(map(len, _find_lists(frame, body)))
            yield number
            before = mark

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
        self, frame: FrameType, body: LoopBody, mark: IterationMark, before: IterationMark | None
    ) -> Hashable:
        """Return all that decides on what an iteration does; None if that isn't known."""
        values = frame.f_locals
        try:
            if not all(type(values.get(name)) is list for name in body.appended):
                return None
            found = tuple(
                self._describe_value(values[name], is_indexed=name in body.indexed, since=before)
                if name in values
                else _MISSING
                for name in body.names
            )
        finally:
            # Before Python 3.13 it is a copy, which would keep tensors alive.
            if isinstance(values, dict):
                values.clear()
        if None in found:
            return None
        num_made = None if before is None else mark.num_blocks - before.num_blocks
        return (found, num_made, mark.rest, self._known.num_reads)

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


def _find_lists(frame: FrameType, body: LoopBody) -> list[list[Any]]:
    """Return the lists that a loop appends to."""
    values = frame.f_locals
    try:
        return [values[name] for name in sorted(body.appended)]
    finally:
        if isinstance(values, dict):
            values.clear()


class _Ranges:
    """Stands for `range` in the code of a model."""

    def __init__(self, loops: ShortenedLoops) -> None:
        self._loops = loops

    def __call__(self, *limits: Any) -> Iterable[int]:
        return self._loops.iterate(range(*limits), sys._getframe(1))

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, range)
