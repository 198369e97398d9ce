"""Experts to keep when a share of each layer's experts is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.errors import UsageError


@dataclass(frozen=True)
class Drops:
    """The number of experts of a layer that are dropped.

    Attributes:
        per_group: Of each group of the router; there is one group without groups.
        num_groups: Groups of equal size, of neighbouring ids.
    """

    per_group: int
    num_groups: int

    @property
    def number(self) -> int:
        """Experts dropped from the layer."""
        return self.per_group * self.num_groups


def count_drops(
    num_experts: int,
    *,
    ratio: float,
    top_k: int,
    num_groups: int = 1,
    top_groups: int | None = None,
) -> Drops:
    """Return how many experts to drop: `int(num_experts * ratio)`, as llm-compressor and REAP.

    A router that first chooses among groups needs groups of one size, so each group loses as many:
    the number divided by that of the groups, rounded.

    Args:
        num_experts: Experts of the layer.
        ratio: Share to drop.
        top_k: Experts per decision, which must remain.
        num_groups: Groups of the router.
        top_groups: Groups that a token may choose from; None if unknown.

    Raises:
        UsageError: Nothing would be dropped, too few would remain, or the groups aren't equal.
    """
    if num_experts % num_groups:
        raise UsageError(
            f"{num_experts} experts don't divide into {num_groups} groups.",
            hint="Give the router's own number of groups, n_group in its configuration.",
        )
    drops = Drops(round(int(num_experts * ratio) / num_groups), num_groups)
    if drops.number == 0:
        raise UsageError(
            f"A ratio of {ratio:g} drops no expert of {num_experts}"
            + (f" in {num_groups} groups." if num_groups > 1 else "."),
            hint="Give a larger --prune-ratio.",
        )
    left = num_experts // num_groups - drops.per_group
    reachable = left * (num_groups if top_groups is None else top_groups)
    if reachable < top_k:
        raise UsageError(
            f"A ratio of {ratio:g} leaves {reachable} of {num_experts} experts to choose from, "
            f"and a token chooses {top_k}.",
            hint="Give a smaller --prune-ratio.",
        )
    return drops


def keep_experts(scores: Sequence[float], drops: Drops) -> list[int]:
    """Return the ids of the experts that stay, ascending.

    Those with the smallest scores are dropped; among equal ones, those with the largest ids.
    """
    size = len(scores) // drops.num_groups
    kept: list[int] = []
    for first in range(0, len(scores), size):
        group = range(first, first + size)
        order = sorted(group, key=lambda expert: scores[expert], reverse=True)
        kept += sorted(order[: size - drops.per_group])
    return kept


def drop_of_each(scores: NDArray[np.float64], drops: Drops) -> NDArray[np.bool_]:
    """Return which experts `keep_experts` doesn't keep, from each row of scores.

    Args:
        scores: # (num_rows, num_experts)
        drops: As for one row.

    Returns:
        # (num_rows, num_experts)
    """
    grouped = scores.reshape(len(scores), drops.num_groups, -1)
    order = np.argsort(-grouped, axis=2, kind="stable")
    is_dropped = np.zeros(grouped.shape, dtype=np.bool_)
    last = order[:, :, order.shape[2] - drops.per_group :]
    np.put_along_axis(is_dropped, last, True, axis=2)
    return is_dropped.reshape(scores.shape)
