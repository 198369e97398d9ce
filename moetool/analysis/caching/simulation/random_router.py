"""Hit rates of a router that draws its experts at random, at the sample size of a trace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.caching.simulation.optimum import OptimalCaches
from moetool.analysis.caching.simulation.policies import POLICIES, Policy
from moetool.analysis.caching.simulation.replacement import OnlineCaches
from moetool.analysis.caching.simulation.steps import (
    NEVER,
    FirstSteps,
    Requests,
    Steps,
    find_requests,
)
from moetool.analysis.statistics.random_choices import draw_choices
from moetool.trace.decisions import PHASES
from moetool.trace.windows.window import LayerChoices

# Few steps vary by chance: the mean of several such traces is more certain.
_ENOUGH_STEPS, _MOST_TRACES = 2_000, 64
_SEED = 0


def simulate_random_router(
    first_steps: FirstSteps,
    sizes: NDArray[np.int16],
    *,
    num_experts: int,
    num_ids: int,
    capacities: Sequence[int],
) -> NDArray[np.float64]:
    """Return the hit rate of each policy and capacity for a uniform random router.

    Static sets hit for a share C / E of requests, whatever they hold. The others are simulated from
    an empty cache through the first steps of the trace, prefill and decode in its order; several
    times if there are few.

    Args:
        first_steps: Steps of the trace.
        sizes: Distinct experts of each of their tokens. # (num_tokens,)
        num_experts: E, those with weights.
        num_ids: Those and identity experts, which are drawn as often.
        capacities: Experts that stay on the GPU, C, in ascending order.

    Returns:
        NaN for a phase without requests. # (num_phases, num_policies, num_capacities)
    """
    phases = first_steps.phases
    # Only rows that were not checked name more experts than there are.
    drawn = np.minimum(sizes.astype(np.int64), num_ids)
    rates = np.full((len(PHASES), len(POLICIES), len(capacities)), np.nan)
    if not sizes.any():
        return rates
    num_traces = max(1, min(_MOST_TRACES, _ENOUGH_STEPS // len(phases)))
    rng = np.random.default_rng(_SEED)
    traces = [
        _request(draw_choices(rng, num_ids, drawn), first_steps, num_experts=num_experts)
        for _ in range(num_traces)
    ]
    online = [
        OnlineCaches(num_experts, capacities).count_hits(requests, len(phases))
        for requests in traces
    ]
    optimal = OptimalCaches([num_experts] * num_traces, [capacities] * num_traces)
    numbers = {
        Policy.LRU: np.concatenate([lru for lru, _ in online]),
        Policy.LFU: np.concatenate([lfu for _, lfu in online]),
        Policy.BELADY: np.concatenate(
            optimal.count_hits(traces, first_token=0, num_steps=len(phases))
        ),
    }
    phase_of = np.concatenate([phases[requests.step] for requests in traces])
    for phase in np.unique(phase_of):
        for index, policy in enumerate(POLICIES):
            for place, capacity in enumerate(capacities):
                # The smallest cache hits only if all do.
                least = len(capacities) - place
                rates[phase, index, place] = (
                    (numbers[policy][phase_of == phase] >= least).mean()
                    if policy in numbers
                    else capacity / num_experts
                )
    return rates


def _request(experts: NDArray[np.int64], first_steps: FirstSteps, *, num_experts: int) -> Requests:
    """Return the requests of a trace of one layer."""
    steps = Steps(first_steps.of_token, np.zeros_like(first_steps.phases), first_steps.phases)
    return find_requests(
        LayerChoices(np.arange(len(experts)), experts, None),
        steps,
        first_token=0,
        next_uses=np.full(num_experts, NEVER),
    )
