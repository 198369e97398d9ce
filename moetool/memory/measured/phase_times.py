"""Times of prefill and of decoding steps, read between the calls of a model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from moetool.memory.measured.measurement import PhaseTimes

if TYPE_CHECKING:
    from torch import nn

# Steps right after the prompt, which the lower bound is for.
MOST_TIMED_TOKENS = 33
_MOST_RUNS = 3
# No further run begins after that many seconds.
_PATIENCE_S = 10.0


def time_phases(
    model: nn.Module,
    run: Callable[[], object],
    *,
    synchronize: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> PhaseTimes:
    """Return medians of the times of a model's phases, over up to three runs.

    The first call of the model in a run ends its prefill, and each later call ends a step: a step
    lasts from the end of one call to the end of the next, the choice of the token included.

    Args:
        model: The model that `run` calls. Its kernels should have run before.
        run: Runs a scenario once.
        synchronize: Waits until the device has done all its work.
        clock: Returns seconds.
    """
    ends: list[float] = []

    def note_end(*_: Any) -> None:
        synchronize()
        ends.append(clock())

    prefills: list[float] = []
    steps: list[float] = []
    handle = model.register_forward_hook(note_end)
    try:
        first = clock()
        while not prefills or (len(prefills) < _MOST_RUNS and clock() - first < _PATIENCE_S):
            ends.clear()
            synchronize()
            start = clock()
            run()
            prefills.append(ends[0] - start)
            steps += [end - begin for begin, end in pairwise(ends)]
    finally:
        handle.remove()
    return PhaseTimes(
        prefill_s=statistics.median(prefills),
        decode_s_per_token=statistics.median(steps) if steps else None,
        num_prefills=len(prefills),
        num_decode_steps=len(steps),
    )
