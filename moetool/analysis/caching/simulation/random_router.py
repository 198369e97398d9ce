"""Hit rates of a router that draws its experts at random, at the sample size of a trace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.caching.simulation.optimum import OptimalCaches
from moetool.analysis.caching.simulation.policies import POLICIES, Policy
from moetool.analysis.caching.simulation.replacement import OnlineCaches
from moetool.analysis.caching.simulation.steps import (
    DECODE,
    NEVER,
    Requests,
    Steps,
    find_requests,
)
from moetool.trace.windows.window import LayerChoices

# More steps change the rates by less than they vary from prompt to prompt.
_MOST_STEPS = 2_000
_MOST_TOKENS = 20_000
_MOST_TRACES = 64
_SEED = 0


def simulate_random_router(
    *,
    num_experts: int,
    num_ids: int,
    top_k: int,
    tokens_per_step: int,
    num_steps: int,
    capacities: Sequence[int],
) -> NDArray[np.float64]:
    """Return the hit rate of each policy and capacity for a uniform random router.

    Static sets hit for a share C / E of requests, whatever they hold. The others are simulated from
    an empty cache, for as many steps as a trace has, and at most 2,000; several times if they are
    few.

    Args:
        num_experts: E, those with weights.
        num_ids: Those and identity experts, which are drawn as often.
        top_k: Distinct experts of each token.
        tokens_per_step: Tokens that pass through the model together.
        num_steps: Steps of the trace.
        capacities: Experts that stay on the GPU, C, in ascending order.

    Returns:
        # (num_policies, num_capacities)
    """
    most = max(1, min(_MOST_STEPS, _MOST_TOKENS // tokens_per_step))
    num_steps = min(num_steps, most)
    # Few steps vary by chance: the mean of several such traces is the same, and more certain.
    num_traces = max(1, min(_MOST_TRACES, most // num_steps))
    rng = np.random.default_rng(_SEED)
    traces: list[Requests] = []
    for _ in range(num_traces):
        draws = rng.random((num_steps * tokens_per_step, num_ids))
        experts = np.argpartition(draws, top_k - 1, axis=1)[:, :top_k].astype(np.int64)
        traces.append(_request(experts, num_steps=num_steps, num_experts=num_experts))
    numbers: dict[Policy, NDArray[np.int64]] = {}
    online = [
        OnlineCaches(num_experts, capacities).count_hits(requests, num_steps) for requests in traces
    ]
    numbers[Policy.LRU] = np.concatenate([lru for lru, _ in online])
    numbers[Policy.LFU] = np.concatenate([lfu for _, lfu in online])
    optimal = OptimalCaches([num_experts] * num_traces, [capacities] * num_traces)
    numbers[Policy.BELADY] = np.concatenate(
        optimal.count_hits(traces, first_token=0, num_steps=num_steps)
    )
    rates = np.empty((len(POLICIES), len(capacities)))
    for index, policy in enumerate(POLICIES):
        for place, capacity in enumerate(capacities):
            # The smallest cache hits only if all do.
            least = len(capacities) - place
            rates[index, place] = (
                (numbers[policy] >= least).mean() if policy in numbers else capacity / num_experts
            )
    return rates


def _request(experts: NDArray[np.int64], *, num_steps: int, num_experts: int) -> Requests:
    """Return the requests of a trace of one layer, with steps of equal numbers of tokens."""
    num_tokens = len(experts)
    steps = Steps(
        np.repeat(np.arange(num_steps), num_tokens // num_steps),
        np.zeros(num_steps, dtype=np.int64),
        np.full(num_steps, DECODE),
    )
    return find_requests(
        LayerChoices(np.arange(num_tokens), experts, None),
        steps,
        first_token=0,
        next_uses=np.full(num_experts, NEVER),
    )
