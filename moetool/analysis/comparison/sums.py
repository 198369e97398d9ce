"""Sums of the agreement over layers, groups and positions, kept while windows are read."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.comparison.baseline import Baseline
from moetool.analysis.comparison.decisions import DecisionChanges
from moetool.analysis.statistics.ratios import UNKNOWN_RATIO, Ratio, find_ratios, sum_prompts

# In the order of the sums.
MEASURES = (
    "overlap",
    "jaccard",
    "saturation",
    "changed_decisions",
    "first_choice_flips",
    "weight_change",
)


@dataclass(frozen=True)
class Agreements:
    """Sums over prompts for each measure, by any keys.

    Attributes:
        sums: As `sum_prompts` makes them, by key. # (num_measures, 6) each
        expected: As `sum_expected` makes them, by key. # (num_measures, 2) each
    """

    sums: dict[Hashable, NDArray[np.float64]]
    expected: dict[Hashable, NDArray[np.float64]]

    @classmethod
    def empty(cls) -> Agreements:
        """Return the sums before anything is added."""
        return cls({}, {})

    def add(
        self,
        keys: Sequence[Hashable],
        sums: NDArray[np.float64],
        expected: NDArray[np.float64],
    ) -> None:
        """Add whole prompts to the sums of some keys.

        Args:
            keys: One for each row.
            sums: # (num_keys, num_measures, 6)
            expected: Of two random routers. # (num_keys, num_measures, 2)
        """
        for key, own, random in zip(keys, sums, expected, strict=True):
            if key in self.sums:
                self.sums[key] += own
                self.expected[key] += random
            elif own[0, 1]:
                self.sums[key] = own.copy()
                self.expected[key] = random.copy()

    def find(self, key: Hashable) -> dict[str, Ratio]:
        """Return each measure of a key, with its interval."""
        if key not in self.sums:
            return dict.fromkeys(MEASURES, UNKNOWN_RATIO)
        return dict(zip(MEASURES, find_ratios(self.sums[key]), strict=True))

    def find_baseline(self, key: Hashable) -> Baseline:
        """Return each measure of a key for two uniform random routers."""
        expected = self.expected.get(key, np.zeros((len(MEASURES), 2)))
        return Baseline(
            **{
                name: float(total / number) if number else None
                for name, (total, number) in zip(MEASURES, expected, strict=True)
            }
        )

    def count(self, key: Hashable) -> int:
        """Return the number of decisions of a key."""
        return int(self.sums[key][0, 1]) if key in self.sums else 0


def sum_by_prompt(
    changes: DecisionChanges,
    *,
    cell: NDArray[np.int64],
    prompt: NDArray[np.int64],
    shape: tuple[int, int],
) -> NDArray[np.float64]:
    """Return the sum of each measure, and the number of its values, by cell and prompt.

    Args:
        changes: Decisions of a layer.
        cell: What each decision is counted for. # (num_decisions,)
        prompt: # (num_decisions,)
        shape: Number of cells and of prompts.

    Returns:
        # (2, num_measures, num_cells, num_prompts)
    """
    num_cells, num_prompts = shape
    key = cell * num_prompts + prompt
    size = num_cells * num_prompts
    sums = np.zeros((2, len(MEASURES), size))
    number = np.bincount(key, minlength=size)
    for index, name in enumerate(MEASURES):
        values = _find_values(changes, name)
        if values is None:
            continue
        known = np.isfinite(values) if values.dtype == np.float64 else None
        if known is None or known.all():
            sums[0, index] = np.bincount(key, weights=values, minlength=size)
            sums[1, index] = number
        else:
            sums[0, index] = np.bincount(key[known], weights=values[known], minlength=size)
            sums[1, index] = np.bincount(key[known], minlength=size)
    return sums.reshape(2, len(MEASURES), num_cells, num_prompts)


def sum_cells(by_prompt: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sums over prompts of what `sum_by_prompt` gives.

    Returns:
        # (num_cells, num_measures, 6)
    """
    x, n = by_prompt
    return sum_prompts(x, n).swapaxes(0, 1)


def _find_values(
    changes: DecisionChanges, name: str
) -> NDArray[np.float64] | NDArray[np.bool_] | None:
    if name == "changed_decisions":
        return changes.is_changed
    if name == "first_choice_flips":
        return changes.is_flipped
    values: NDArray[np.float64] | None = getattr(changes, name)
    return values
