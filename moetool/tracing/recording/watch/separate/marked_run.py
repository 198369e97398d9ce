"""Run a block again on the arguments of its call, with experts that return marks.

Everything else computes: a part that gets what it got in the call returns what it returned then, and
a part that gets something else, such as a projection of the experts' sum, runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from moetool.tracing.recording.watch.separate.block import Block, BlockCall, Part, Returned
from moetool.tracing.recording.watch.separate.captures import Capture, iter_tensors
from moetool.tracing.recording.watch.separate.random_states import restore_states
from moetool.tracing.recording.watch.separate.stand_ins import (
    as_before,
    copy_output,
    find_rows,
    kept_as_it_is,
    replaced,
    without_hooks,
)
from moetool.tracing.recording.watch.weighted_rows import WeightedRows, WeightTrail

# Given an expert's id and the number of rows that it has had before in this run, writes marks into an
# output of zeros. # (num_rows, width)
Mark = Callable[[int, int, torch.Tensor], None]


@dataclass(frozen=True)
class Seen:
    """The outcome of a marked run.

    Attributes:
        output: The block's output.
        rows: By expert, the rows of each of its calls. # each (..., width)
        weighted: By expert, what is known of weights that multiplied them before.
        last: By expert that consists of several modules, what the last of them received.
    """

    output: Any
    rows: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    weighted: dict[int, list[WeightedRows | None]] = field(default_factory=dict)
    last: dict[int, list[torch.Tensor]] = field(default_factory=dict)


class MarkedRun:
    """Runs a block again after one of its calls, as often as wanted.

    Args:
        block: It is as it was after each run.
        call: Its call as hooks saw it.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    def __init__(
        self, block: Block, call: BlockCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self._block = block
        self._call = call
        self._args = args
        self._kwargs = kwargs
        self._devices = call.devices

    def run(
        self,
        mark: Mark | None = None,
        *,
        capture: Capture | None = None,
        on_rows: Callable[[torch.Tensor], None] | None = None,
        order: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Seen:
        """Run the block on what it was called with.

        Args:
            mark: Fills the experts' outputs, which are zeros otherwise.
            capture: Looks at tensors meanwhile, and at the block's output afterwards.
            on_rows: Takes the rows of each call of an expert, as they were before weights
                multiplied them.
            order: Reorders the rows that the modules of an expert return, except the last.

        Raises:
            UntraceableError: The block can't be run again.
        """
        block, call = self._block, self._call
        seen = Seen(output=None)
        given = call.given
        again = None if given is None or call.hidden is None else call.hidden.clone()
        args = tuple(
            again if value is given and again is not None else value for value in self._args
        )
        kwargs = {
            name: again if value is given and again is not None else value
            for name, value in self._kwargs.items()
        }
        trail = None if capture is None else capture.trail
        if trail is not None:
            trail.add_scores(value for value in iter_tensors([args, kwargs]) if value is not again)
        with ExitStack() as stack:
            for index, members in enumerate(block.experts):
                for part in members:
                    forward = self._stand_in_for(
                        part,
                        index,
                        seen,
                        again,
                        mark=mark,
                        on_rows=on_rows,
                        order=order,
                        trail=trail,
                    )
                    stack.enter_context(replaced(part, _unseen(forward, capture)))
            for module in block.passed:
                stack.enter_context(without_hooks(module))
                stack.enter_context(kept_as_it_is(module))
            for part in block.parts:
                stack.enter_context(replaced(part, _unseen(self._repeat(part), capture)))
            restore_states(self._devices, call.states)
            with block.run_again():
                if capture is None:
                    output = block.module.forward(*args, **kwargs)
                else:
                    with capture:
                        output = block.module.forward(*args, **kwargs)
                    capture.show(list(iter_tensors(output)))
        return Seen(output, seen.rows, seen.weighted, seen.last)

    def _stand_in_for(
        self,
        part: Part,
        index: int,
        seen: Seen,
        given: torch.Tensor | None,
        *,
        mark: Mark | None,
        on_rows: Callable[[torch.Tensor], None] | None,
        order: Callable[[torch.Tensor], torch.Tensor] | None,
        trail: WeightTrail | None,
    ) -> Callable[..., Any]:
        block = self._block
        returned = iter(self._call.returned.get(part.path, ()))
        called = [path for path in self._call.order if path in _paths_of(block, index)]
        is_first, is_last = called[:1] == [part.path], called[-1:] == [part.path]

        def forward(*args: Any, **kwargs: Any) -> Any:
            call, rows = next(returned, None), find_rows(args, kwargs)
            if call is None or rows is None:
                raise block.unreadable("a second run sent tokens to other experts")
            restore_states(self._devices, call.states)
            weighted = None if trail is None else trail.find(rows)
            rows = as_before(rows, given, self._call.hidden)
            if is_first:
                seen.rows.setdefault(index, []).append(rows)
                seen.weighted.setdefault(index, []).append(weighted)
                if on_rows is not None:
                    on_rows(rows if weighted is None else weighted.rows)
            if not is_last:
                output = copy_output(call.output)
                return output if order is None else order(output)
            if not is_first:
                seen.last.setdefault(index, []).append(rows)
            return _fill(call, index, seen, mark)

        return forward

    def _repeat(self, part: Part) -> Callable[..., Any]:
        """Return a function that returns what a part did, as long as it gets what it got."""
        returned = iter(self._call.returned.get(part.path, ()))

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = next(returned, None)
            if call is not None and _are_same([args, kwargs], [call.args, call.kwargs]):
                restore_states(self._devices, call.states)
                return args[0] if call.is_input else copy_output(call.output)
            with ExitStack() as stack:
                for module in part.module.modules():
                    stack.enter_context(kept_as_it_is(module))
                    if module is not part.module:
                        stack.enter_context(without_hooks(module))
                return part.module.forward(*args, **kwargs)

        return forward


def _unseen(forward: Callable[..., Any], capture: Capture | None) -> Callable[..., Any]:
    if capture is None:
        return forward

    def paused(*args: Any, **kwargs: Any) -> Any:
        with capture.paused():
            output = forward(*args, **kwargs)
        if capture.trail is not None:
            capture.trail.add_scores(iter_tensors(output))
        return output

    return paused


def _paths_of(block: Block, index: int) -> list[str]:
    return [part.path for part in block.experts[index]]


def _fill(call: Returned, index: int, seen: Seen, mark: Mark | None) -> Any:
    """Return an output of an expert that holds marks."""
    values = call.output if isinstance(call.output, tuple) else (call.output,)
    outputs = [torch.zeros(value.shape, dtype=value.dtype, device=value.device) for value in values]
    rows = outputs[0].view(-1, outputs[0].shape[-1])
    if mark is not None:
        before = sum(r.numel() // r.shape[-1] for r in seen.rows.get(index, [])[:-1])
        mark(index, before, rows)
    return tuple(outputs) if isinstance(call.output, tuple) else outputs[0]


def _are_same(values: Any, others: Any) -> bool:
    """Return whether arguments are the same, tensors by their values."""
    if values is others:
        return True
    if isinstance(values, torch.Tensor) and isinstance(others, torch.Tensor):
        return (
            values.shape == others.shape
            and values.dtype == others.dtype
            and torch.equal(values, others)
        )
    if isinstance(values, list | tuple) and isinstance(others, list | tuple):
        return len(values) == len(others) and all(map(_are_same, values, others))
    if isinstance(values, dict) and isinstance(others, dict):
        return values.keys() == others.keys() and all(
            _are_same(value, others[name]) for name, value in values.items()
        )
    return (
        type(values) is type(others) and isinstance(values, int | float | str) and values == others
    )
