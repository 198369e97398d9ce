"""Backward passes reuse the memory that they reuse without a mode, on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import silu
from torch.profiler import ProfilerActivity, profile

from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.timeline import Origins
from moetool.simulation.training.reused_gradients import ReusedGradients

_ROWS = 64
_BYTES = 4 * _ROWS * _ROWS
Compute = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def profile_cpu(compute: Compute) -> list[int]:
    """Return the sizes of the allocations of real passes and, below zero, of frees."""
    given, weights = torch.randn(_ROWS, _ROWS), torch.randn(_ROWS, _ROWS, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        compute(given, weights).backward()
    assert seen.profiler is not None
    events = seen.profiler.kineto_results.events()
    return [each.nbytes() for each in events if each.name() == "[memory]"]


def simulate(compute: Compute) -> list[int]:
    module = nn.Linear(_ROWS, _ROWS, bias=False, device="meta")
    recorder = AllocationRecorder(module, origins=Origins())
    with ReusedGradients() as reused, recorder:
        reused.calibrate()
        given = torch.empty(_ROWS, _ROWS, device="meta")
        start = len(recorder.events)
        compute(given, module.weight).backward()
        events = tuple(recorder.events)
    sizes = {event.block: event.num_bytes for event in events if event.num_bytes >= 0}
    return [
        event.num_bytes if event.num_bytes >= 0 else -sizes[event.block] for event in events[start:]
    ]


def use_twice(given: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    hidden = given * weights
    return (hidden * 2.0 + hidden * 3.0).sum()


def use_where_the_gradient_is_shared(given: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    hidden = given * weights
    return ((hidden + hidden @ weights) * given).sum()


def use_three_times(given: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    hidden = given * weights
    return ((hidden * hidden.cos() + hidden @ weights) * given).sum()


def gate(given: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    hidden = given @ weights
    return (silu(hidden) * hidden * given).sum()


def choose_rows(given: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    hidden = given @ weights
    return (
        hidden[torch.zeros(3, dtype=torch.long, device=given.device)].sum() + (hidden * given).sum()
    )


def choose_largest(given: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    hidden = given @ weights
    return hidden.topk(3).values.sum() + (hidden * 2.0).sum()


@pytest.mark.parametrize(
    "compute",
    [
        use_twice,
        use_where_the_gradient_is_shared,
        use_three_times,
        gate,
        choose_rows,
        choose_largest,
    ],
)
def test_backward_passes_take_and_free_what_a_cpu_does(compute: Compute) -> None:
    real = [size for size in profile_cpu(compute) if abs(size) == _BYTES]
    assert [size for size in simulate(compute) if abs(size) == _BYTES] == real
    assert real
