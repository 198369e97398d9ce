"""Hit rates of a router that draws its experts at random, at the sample size of a trace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.caching.simulation.optimum import OptimalCaches
from moetool.analysis.caching.simulation.policies import POLICIES, Policy
from moetool.analysis.caching.simulation.replacement import OnlineCaches
from moetool.analysis.caching.simulation.steps import DECODE, NEVER, Steps, find_requests
from moetool.trace.windows.window import LayerChoices

# More steps change the rates by less than they vary from prompt to prompt.
_MOST_STEPS = 2_000
_MOST_TOKENS = 20_000
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
    an empty cache, for as many steps as a trace has, and at most 2,000.

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
    num_tokens = num_steps * tokens_per_step
    rng = np.random.default_rng(_SEED)
    draws = rng.random((num_tokens, num_ids))
    experts = np.argpartition(draws, top_k - 1, axis=1)[:, :top_k]
    steps = Steps(
        np.repeat(np.arange(num_steps), tokens_per_step),
        np.zeros(num_steps, dtype=np.int64),
        np.full(num_steps, DECODE),
    )
    requests = find_requests(
        LayerChoices(np.arange(num_tokens), experts.astype(np.int64), None),
        steps,
        first_token=0,
        next_uses=np.full(num_experts, NEVER),
    )
    lru, lfu = OnlineCaches(num_experts, capacities).count_hits(requests, num_steps)
    (optimum,) = OptimalCaches([num_experts], [capacities]).count_hits(
        [requests], first_token=0, num_steps=num_steps
    )
    rates = np.empty((len(POLICIES), len(capacities)))
    for index, policy in enumerate(POLICIES):
        for place, capacity in enumerate(capacities):
            number = {Policy.LRU: lru, Policy.LFU: lfu, Policy.BELADY: optimum}.get(policy)
            rates[index, place] = (
                capacity / num_experts
                if number is None
                else (number >= len(capacities) - place).mean()
            )
    return rates
