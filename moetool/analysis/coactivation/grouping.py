"""Groups of experts in which every pair is chosen together more often than loads explain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def group_experts(
    strength: NDArray[np.float64], is_linked: NDArray[np.bool_]
) -> list[tuple[int, ...]]:
    """Return disjoint groups of two or more experts, in the order of their smallest ids.

    Complete linkage: each expert begins as a group. The two groups whose weakest pair across is
    the strongest are merged, as long as every pair across is linked. Of equally strong ones, those
    with the smallest ids are merged first, so the answer depends on nothing else.

    Args:
        strength: Of each pair; symmetric. # (num_experts, num_experts)
        is_linked: Whether two experts may be in one group; symmetric. # (num_experts, num_experts)

    Returns:
        Ascending ids of each group.
    """
    weakest = np.where(is_linked, strength, -np.inf)
    np.fill_diagonal(weakest, -np.inf)
    members: dict[int, tuple[int, ...]] = {expert: (expert,) for expert in range(len(weakest))}
    while len(weakest):
        first, second = map(int, np.unravel_index(np.argmax(weakest), weakest.shape))
        if weakest[first, second] == -np.inf:
            break
        members[first] = tuple(sorted(members[first] + members.pop(second)))
        joined = np.minimum(weakest[first], weakest[second])
        weakest[first, :] = weakest[:, first] = joined
        weakest[second, :] = weakest[:, second] = -np.inf
        weakest[first, first] = -np.inf
    return sorted(group for group in members.values() if len(group) > 1)
