"""The usual expert's share by chance: that of routers that ignore the token.

The largest of several counts grows with their number and falls with the occurrences: of 10
occurrences, even a fair router gives some expert 4. There is no simple formula, so routers are
simulated: each run is a series of decisions, and the largest count after n of them is that of a
token id with n occurrences.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.random_choices import draw_choices
from moetool.trace.decisions import NO_EXPERT

Ints = NDArray[np.int64]

_NUM_RUNS = 200
# Beyond these occurrences, what chance adds falls with their square root.
_MOST_SIMULATED = 512
# Decisions times experts that are drawn at a time.
_CELLS_AT_ONCE = 2**22


class UsualShares:
    """The expected share of the usual expert, by occurrences.

    Args:
        experts: Decisions of several runs; negative experts did not run.
            # (num_runs, num_occurrences, top_k)
        num_experts: Larger than each id.
        limit: The share for infinitely many occurrences.
    """

    def __init__(self, experts: NDArray[np.integer], *, num_experts: int, limit: float) -> None:
        self._limit = limit
        num_runs, length = experts.shape[:2]
        run = np.arange(num_runs)[:, None]
        # The last column takes those that did not run.
        column = np.where(experts < 0, num_experts, experts)
        counts = np.zeros((num_runs, num_experts + 1), dtype=np.int64)
        largest = np.zeros((num_runs, length), dtype=np.int64)
        for step in range(length):
            counts[run, column[:, step]] += 1
            counts[:, num_experts] = 0
            # Counts only grow, so the largest is a new one or the one before.
            largest[:, step] = np.maximum(
                largest[:, step - 1], counts[run, column[:, step]].max(axis=1)
            )
        self._shares = largest.mean(axis=0) / np.arange(1, length + 1)

    def mean(self, occurrences: Ints) -> float:
        """Return the mean over token ids with these occurrences, at least one each."""
        length = len(self._shares)
        shares = self._shares[np.minimum(occurrences, length) - 1]
        beyond = np.sqrt(np.minimum(1, length / occurrences))
        return float((self._limit + (shares - self._limit) * beyond).mean())


def simulate_same_loads(decisions: Ints, *, num_experts: int, most: int, seed: int) -> UsualShares:
    """Return the shares of a router that draws each decision from those of all tokens.

    Args:
        decisions: To draw from; negative experts did not run. # (num_decisions, top_k)
        num_experts: Larger than each id.
        most: The largest number of occurrences that is asked for.
        seed: Random seed.
    """
    length = max(1, min(most, _MOST_SIMULATED))
    rng = np.random.default_rng([seed, 6])
    index = rng.integers(0, len(decisions), size=(_NUM_RUNS, length))
    use = np.bincount(decisions[decisions >= 0], minlength=num_experts) / len(decisions)
    return UsualShares(decisions[index], num_experts=num_experts, limit=float(use.max()))


@lru_cache(maxsize=512)
def simulate_uniform(num_experts: int, num_decisions: tuple[int, ...], seed: int) -> UsualShares:
    """Return the shares of a uniform random router, simulated once for all layers alike.

    Args:
        num_experts: Experts of the layer.
        num_decisions: Decisions that run 0, 1, 2, … experts; the random router runs as few.
        seed: Random seed.
    """
    top_k = len(num_decisions) - 1
    chance = np.array(num_decisions) / sum(num_decisions)
    experts = _draw_uniform(num_experts, top_k, seed)
    if chance[top_k] < 1:
        rng = np.random.default_rng([seed, 10])
        size = rng.choice(top_k + 1, size=experts.shape[:2], p=chance)
        experts = np.where(np.arange(top_k) < size[..., None], experts, NO_EXPERT)
    limit = float(chance @ np.arange(top_k + 1)) / num_experts
    return UsualShares(experts, num_experts=num_experts, limit=limit)


@lru_cache(maxsize=8)
def _draw_uniform(num_experts: int, top_k: int, seed: int) -> NDArray[np.int16]:
    """Return decisions of a router that always runs top-k experts.

    Returns:
        # (_NUM_RUNS, _MOST_SIMULATED, top_k)
    """
    rng = np.random.default_rng([seed, 6])
    total = _NUM_RUNS * _MOST_SIMULATED
    step = max(1, _CELLS_AT_ONCE // num_experts)
    parts = [
        draw_choices(rng, num_experts, np.full(min(step, total - start), top_k)).astype(np.int16)
        for start in range(0, total, step)
    ]
    experts = np.concatenate(parts)
    # All callers share it.
    experts.setflags(write=False)
    return experts.reshape(_NUM_RUNS, _MOST_SIMULATED, top_k)
