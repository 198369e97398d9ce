"""A sweep over models and scenarios, in as many processes as are worth their start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.checkpoint.reference import ModelReference
from moetool.errors import MoetoolError, OutOfMemoryError
from moetool.memory.fitting.workers import choose_num_processes, work_in_processes
from moetool.memory.scenario import Scenario
from moetool.memory.sweeps.worker import SweepOptions, SweepTask
from moetool.process.fork import Pausing, avoid_threads

if TYPE_CHECKING:
    from moetool.memory.result import Estimate

# Returns a model's estimates, or raises its error.
Take = Callable[[], "list[Estimate]"]

WORKER = (sys.executable, "-m", "moetool.memory.sweeps.worker")
# A process loads torch before its first estimate, which takes as long as a few of them.
_FEWEST_ESTIMATES = 4
_FEWEST_WHERE_TORCH_IS_LOADED = 12
_FEWEST_OF_A_PROCESS = 2
# Parts of a sweep differ in length: with several for each process, none waits long at the end.
_PARTS_OF_A_PROCESS = 3
_KILLED = "The process that simulated {} was killed: there may be too little memory."


def estimate_models(
    models: Sequence[tuple[str, ModelReference]],
    scenarios: Sequence[Scenario],
    options: SweepOptions,
    *,
    on_progress: Callable[[str], None],
    num_processes: int | None = None,
    pausing: Pausing | None = None,
) -> Iterator[tuple[str, Take]]:
    """Yield each model with a function that returns its estimates or raises its error, in order.

    The results are those of `estimate_memory` for one model after another, whatever the number of
    processes.

    Args:
        models: The models, each with the name that it was given.
        options: The options of all estimates. Nothing is measured side by side.
        on_progress: Receives a few words on each step.
        num_processes: Processes that work side by side; 1 for this one alone, None for as many as
            there are cores and memory for, if the sweep is long enough.
        pausing: Stops the other threads, so that a copy of this process simulates variants where
            it works alone; None if this process may not be copied.
    """
    if num_processes is None:
        num_processes = _choose_num_processes(len(models) * len(scenarios), options)
    if num_processes == 1:
        for name, reference in models:
            here = partial(_estimate_here, reference, scenarios, options, on_progress, pausing)
            yield name, here
        return
    yield from _estimate_in_processes(
        models, scenarios, options, on_progress=on_progress, num_processes=num_processes
    )


def _choose_num_processes(num_estimates: int, options: SweepOptions) -> int:
    is_loaded = "torch" in sys.modules
    fewest = _FEWEST_WHERE_TORCH_IS_LOADED if is_loaded else _FEWEST_ESTIMATES
    if options.measure or num_estimates < fewest:
        return 1
    return choose_num_processes(num_estimates // _FEWEST_OF_A_PROCESS)


def _estimate_here(
    reference: ModelReference,
    scenarios: Sequence[Scenario],
    options: SweepOptions,
    on_progress: Callable[[str], None],
    pausing: Pausing | None,
) -> list[Estimate]:
    if pausing is not None:
        avoid_threads()
    from moetool.memory.estimate import estimate_memory

    return estimate_memory(
        reference, scenarios, **vars(options), on_progress=on_progress, pausing=pausing
    )


def _estimate_in_processes(
    models: Sequence[tuple[str, ModelReference]],
    scenarios: Sequence[Scenario],
    options: SweepOptions,
    *,
    on_progress: Callable[[str], None],
    num_processes: int,
) -> Iterator[tuple[str, Take]]:
    num_parts = max(1, _PARTS_OF_A_PROCESS * num_processes // len(models))
    bounds = _divide(len(scenarios), num_parts)
    common = tuple(scenarios)
    names = [name for name, _ in models for _ in bounds]
    tasks = [
        SweepTask(reference, common, first, end, _make_portable(options))
        for _, reference in models
        for first, end in bounds
    ]
    found: dict[int, list[Estimate] | MoetoolError] = {}
    num_all, num_done = len(models) * len(common), 0
    on_progress(f"estimating {num_all:,} scenarios in {num_processes:,} processes")
    working = work_in_processes(tasks, WORKER, num_processes=num_processes)
    try:
        for index, answer in working:
            found[index] = (
                OutOfMemoryError(
                    _KILLED.format(names[index]), hint="Ask for fewer scenarios at once."
                )
                if answer is None
                else answer
            )
            num_done += tasks[index].end - tasks[index].first
            on_progress(f"{num_done:,} of {num_all:,} scenarios are estimated")
    finally:
        working.close()
    for number, (name, _) in enumerate(models):
        first = number * len(bounds)
        yield name, partial(_join, [found[first + part] for part in range(len(bounds))])


def _make_portable(options: SweepOptions) -> SweepOptions:
    """Return options for a process that may have another current folder."""
    trace = options.trace
    return replace(options, trace=None if trace is None else Path(trace).absolute())


def _divide(number: int, num_parts: int) -> list[tuple[int, int]]:
    """Return the bounds of parts that differ in length by one at most; none is empty."""
    num_parts = min(num_parts, number)
    cuts = [number * part // num_parts for part in range(num_parts + 1)]
    return list(pairwise(cuts))


def _join(parts: Sequence[list[Estimate] | MoetoolError]) -> list[Estimate]:
    """Return the estimates of all parts, or raise the error of the first part that failed."""
    estimates: list[Estimate] = []
    for part in parts:
        if isinstance(part, MoetoolError):
            raise part
        estimates += part
    return estimates
