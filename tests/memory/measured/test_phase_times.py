"""Times of phases: against a clock that the test moves, and on a real generation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moetool.memory.measured.phase_times import time_phases
from tests.families.tiny.models import build_family


class Ticking:
    """A device and a clock: each piece of work takes its time once it is waited for."""

    def __init__(self) -> None:
        self.now = self.waiting = 0.0

    def work(self, seconds: float) -> None:
        self.waiting += seconds

    def synchronize(self) -> None:
        self.now += self.waiting
        self.waiting = 0.0


class Slow(nn.Module):
    def __init__(self, device: Ticking) -> None:
        super().__init__()
        self.device = device

    def forward(self, seconds: float) -> None:
        self.device.work(seconds)


def test_the_first_call_is_the_prefill_and_each_other_one_a_step() -> None:
    device = Ticking()
    model = Slow(device)
    prefills = iter((5.0, 1.0, 2.0))

    def run() -> None:
        model(next(prefills))
        for seconds in (0.1, 0.3, 0.5):
            device.now += 0.01
            model(seconds)

    times = time_phases(model, run, synchronize=device.synchronize, clock=lambda: device.now)
    assert (times.prefill_s, times.num_prefills) == (2.0, 3)
    assert times.num_decode_steps == 9
    assert times.decode_s_per_token is not None
    assert abs(times.decode_s_per_token - 0.31) < 1e-9


def test_no_further_run_begins_after_ten_seconds() -> None:
    device = Ticking()
    model = Slow(device)
    times = time_phases(
        model, lambda: model(11.0), synchronize=device.synchronize, clock=lambda: device.now
    )
    assert (times.num_prefills, times.decode_s_per_token) == (1, None)


def test_a_generation_has_a_prefill_and_a_step_for_each_further_token() -> None:
    model: Any = build_family("mixtral")
    ids = torch.arange(5, 13).reshape(2, 4)
    times = time_phases(
        model,
        lambda: model.generate(ids, min_new_tokens=5, max_new_tokens=5),
        synchronize=lambda: None,
    )
    assert times.num_decode_steps == 4 * times.num_prefills
    assert not model._forward_hooks
