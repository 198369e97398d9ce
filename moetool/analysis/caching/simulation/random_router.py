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
from moetool.trace.decisions import PHASES
from moetool.trace.windows.window import LayerChoices

# Few steps vary by chance: the mean of several such traces is more certain.
_ENOUGH_STEPS, _MOST_TRACES = 2_000, 64
_SEED = 0


def simulate_random_router(
    first_steps: FirstSteps,
    *,
    num_experts: int,
    num_ids: int,
    top_k: int,
    capacities: Sequence[int],
) -> NDArray[np.float64]:
    """Return the hit rate of each policy and capacity for a uniform random router.

    Static sets hit for a share C / E of requests, whatever they hold. The others are simulated from
    an empty cache through the first steps of the trace, prefill and decode in its order; several
    times if there are few.

    Args:
        first_steps: Steps of the trace.
        num_experts: E, those with weights.
        num_ids: Those and identity experts, which are drawn as often.
        top_k: Distinct experts of each token.
        capacities: Experts that stay on the GPU, C, in ascending order.

    Returns:
        NaN for a phase without steps. # (num_phases, num_policies, num_capacities)
    """
    sizes, phases = first_steps.sizes, first_steps.phases
    rates = np.full((len(PHASES), len(POLICIES), len(capacities)), np.nan)
    if not len(sizes):
        return rates
    num_traces = max(1, min(_MOST_TRACES, _ENOUGH_STEPS // len(sizes)))
    rng = np.random.default_rng(_SEED)
    traces: list[Requests] = []
    for _ in range(num_traces):
        draws = rng.random((int(sizes.sum()), num_ids))
        experts = np.argpartition(draws, top_k - 1, axis=1)[:, :top_k].astype(np.int64)
        traces.append(_request(experts, first_steps, num_experts=num_experts))
    online = [
        OnlineCaches(num_experts, capacities).count_hits(requests, len(sizes))
        for requests in traces
    ]
    optimal = OptimalCaches([num_experts] * num_traces, [capacities] * num_traces)
    numbers = {
        Policy.LRU: np.concatenate([lru for lru, _ in online]),
        Policy.LFU: np.concatenate([lfu for _, lfu in online]),
        Policy.BELADY: np.concatenate(
            optimal.count_hits(traces, first_token=0, num_steps=len(sizes))
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
    num_steps = len(first_steps.sizes)
    steps = Steps(
        np.repeat(np.arange(num_steps), first_steps.sizes),
        np.zeros(num_steps, dtype=np.int64),
        first_steps.phases,
    )
    return find_requests(
        LayerChoices(np.arange(len(experts)), experts, None),
        steps,
        first_token=0,
        next_uses=np.full(num_experts, NEVER),
    )
