"""Loops of small layers, recorded with and without iterations left out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from moetool.simulation.loops.shortened_loops import ShortenedLoops
from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.timeline import Call, Origins, Timeline
from moetool.simulation.meta.dispatch import DispatchMode
from moetool.simulation.meta.known_values import KnownValues
from moetool.simulation.repeated.repeated_layers import RepeatedLayers

NUM_ROWS = 12


class Looping(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer])

    def forward(self, rows: torch.Tensor, state: torch.Tensor) -> Any:
        return self.layers[0](rows, state)


def record(
    scan: nn.Module,
    *,
    is_shortened: bool,
    max_blocks: int | None = None,
    num_rows: int = NUM_ROWS,
) -> Timeline:
    """Return what a layer does to some rows."""
    model = Looping(scan)
    origins, known = Origins(), KnownValues(token_id=0)
    recorder = AllocationRecorder(
        model, origins=origins, workspace_bytes=2**20, max_blocks_of_layer=max_blocks
    )
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(known)
        stack.enter_context(RepeatedLayers(model, observers=[recorder]))
        if is_shortened:
            stack.enter_context(ShortenedLoops(model, recorder, known, lambda: True))
        stack.enter_context(recorder)
        rows = torch.empty(num_rows, 4, 4, device="meta")
        result = model(rows, torch.empty(4, 4, device="meta"))
        end = len(recorder.events)
        del result, rows
    return Timeline(
        events=tuple(recorder.events),
        origins=origins.found,
        calls=(Call(0, end, frozenset(), 0),),
        workspace_block=recorder.workspace_block,
        loops=tuple(recorder.loops),
    )


class Count(DispatchMode):
    """Counts the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.number += 1
        return self.pass_on(func, args, kwargs)


def name_events(timeline: Timeline) -> list[tuple[int, int, str, str]]:
    """Return the events with their modules and operations."""
    named: list[tuple[int, int, str, str]] = []
    for block, size, at in timeline.events:
        origin = timeline.origins[at]
        path = ".".join(part for part in (origin.layer, origin.module) if part)
        named.append((block, size, "", "") if size < 0 else (block, size, path, origin.operation))
    return named


def find_first_line(function: Callable[..., Any]) -> int:
    """Return the line of a function's first loop."""
    lines, first = inspect.getsourcelines(function)
    starts = (number for number, line in enumerate(lines) if line.lstrip().startswith("for "))
    return first + next(starts)
