"""Counts of a layer's choices in two traces, and the agreement that popularity alone explains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.comparison.baseline import Baseline
from moetool.analysis.comparison.decisions import DecisionChanges


@dataclass
class LayerSums:
    """Counts of a layer's decisions that need no intervals.

    Attributes:
        sizes: Decisions by the number of experts that ran in each trace.
            # (top_k + 1, other_top_k + 1)
        load: For each trace, decisions that include each expert, by the number that ran.
            # (top_k + 1, num_experts) and (other_top_k + 1, num_experts)
        first_choices: Decisions with each expert as the first choice. # (2, num_experts)
        num_firsts: Decisions in which neither trace, one, or both ran a first choice. # (3,)
        num_left_out: Decisions that only one of the traces has.
    """

    sizes: NDArray[np.int64]
    load: tuple[NDArray[np.int64], NDArray[np.int64]]
    first_choices: NDArray[np.int64]
    num_firsts: NDArray[np.int64]
    num_left_out: int = 0

    @classmethod
    def empty(cls, num_experts: int, top_k: int, other_top_k: int) -> LayerSums:
        """Return the counts before any window is added."""
        widths = (top_k + 1, other_top_k + 1)
        first, second = (np.zeros((width, num_experts), dtype=np.int64) for width in widths)
        return cls(
            sizes=np.zeros(widths, dtype=np.int64),
            load=(first, second),
            first_choices=np.zeros((2, num_experts), dtype=np.int64),
            num_firsts=np.zeros(3, dtype=np.int64),
        )

    def add(self, changes: DecisionChanges) -> None:
        """Count a window's decisions."""
        self.num_left_out += changes.num_left_out
        num_ran = (changes.num_first, changes.num_second)
        # Only rows that were not checked can have more experts than top-k, or ids out of range.
        sizes = [
            np.minimum(each, width - 1)
            for each, width in zip(num_ran, self.sizes.shape, strict=True)
        ]
        np.add.at(self.sizes, tuple(sizes), 1)
        has_first = np.zeros(len(changes.first), dtype=np.int64)
        for side, experts in enumerate((changes.first, changes.second)):
            load = self.load[side]
            num_experts = load.shape[1]
            is_known = (experts >= 0) & (experts < num_experts)
            cell = (sizes[side][:, None] * num_experts + experts)[is_known]
            load += np.bincount(cell, minlength=load.size).reshape(load.shape)
            first = experts[is_known[:, 0], 0]
            self.first_choices[side] += np.bincount(first, minlength=num_experts)
            has_first += is_known[:, 0]
        self.num_firsts += np.bincount(has_first, minlength=3)

    def expect_popular(self, *, has_ranks: bool) -> Baseline | None:
        """Return the agreement of two routers that choose each expert as often as the traces do.

        Independently of each other and of the token, they have `sum_e p_e p'_e` experts in common,
        if they choose expert e for shares p_e and p'_e of the decisions with as many experts.

        Returns:
            None without decisions. Measures that don't follow from popularity are None.
        """
        total = int(self.sizes.sum())
        if not total:
            return None
        first, second = (
            load / np.maximum(1, self.sizes.sum(axis=1 - side))[:, None]
            for side, load in enumerate(self.load)
        )
        shared = first @ second.T * self.sizes  # (top_k + 1, other_top_k + 1)
        one, other = np.ogrid[: self.sizes.shape[0], : self.sizes.shape[1]]
        num_saturated = int(self.sizes[:, 1:].sum())
        return Baseline(
            overlap=float((shared / np.maximum(1, np.maximum(one, other))).sum() / total),
            jaccard=None,
            saturation=float((shared[:, 1:] / other[:, 1:]).sum() / num_saturated)
            if num_saturated
            else None,
            changed_decisions=None,
            first_choice_flips=self._expect_flips(total) if has_ranks else None,
            weight_change=None,
        )

    def _expect_flips(self, total: int) -> float:
        shares = self.first_choices / np.maximum(1, self.first_choices.sum(axis=1))[:, None]
        _, num_one, num_both = map(int, self.num_firsts)
        return (num_one + num_both * (1 - float(shares[0] @ shares[1]))) / total
