"""The spread of experts' shares between prompts, and what it says about an uneven load.

Let `a` be a prompt's assignments to an expert, `n` those to all experts of the layer, `N` their sum
over P prompts, and `s` an expert's share of N. To first order, the covariance of shares over samples
of prompts is that of ratios of sums (Woodruff 1971, JASA 66:411)

    V = Q / (Q - 1) * sum over prompts of (a - s n)(a - s n)' / N**2,   Q = N**2 / sum(n**2)

where Q is the number of equally long prompts that are as informative: P if all are as long.

An even router has shares of 1 / E on average over all prompts there are, whatever it does in a single
one. Then `sum((s - 1 / E)**2) / trace(V)` is a ratio of variances, as in an analysis of variance of
repeated measures with experts as the treatment and prompts as the subjects. It is compared with the F
distribution of f and f (Q - 1) degrees of freedom, with `f = trace(V)**2 / trace(V**2)` (Box 1954,
Ann. Math. Stat. 25:290), estimated without bias from few prompts (Huynh and Feldt 1976, J. Educ.
Stat. 1:69). A random router has f = E - 1; prompts that favour the same few experts make f small.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.f_distribution import find_f_tail

# Prompts whose loads are held at a time, in cells.
_MOST_CELLS = 1 << 20
# Layers of more experts have no covariances: f is then taken to be 1, with which the test is valid
# but weak.
_MOST_EXPERTS = 512
_FEWEST_PROMPTS = 3


class PromptSpread:
    """Sums over prompts that give the spread of each expert's share between prompts.

    Attributes:
        num_prompts: Prompts in which an expert of the layer ran.
        num_choosing: Prompts that chose each expert. # (num_experts,)
        load: Assignments of each expert. # (num_experts,)
        squares: Sum of `a * a`. # (num_experts,)
    """

    def __init__(self, num_experts: int) -> None:
        self.num_prompts = 0
        self.num_choosing = np.zeros(num_experts, dtype=np.int64)
        self.load = np.zeros(num_experts)
        self.squares = np.zeros(num_experts)
        self._products = np.zeros(num_experts)  # of a and n
        self._total_squares = 0.0
        self._crossed: NDArray[np.float64] | None = None
        if num_experts <= _MOST_EXPERTS:
            self._crossed = np.zeros((num_experts, num_experts))

    def add(
        self, prompt: NDArray[np.int64], expert: NDArray[np.int64], number: NDArray[np.int64]
    ) -> None:
        """Add whole prompts: how often each chose the experts that it chose at all.

        Args:
            prompt: In ascending order, from 0. # (num_pairs,)
            expert: # (num_pairs,)
            number: Assignments of the prompt to the expert. # (num_pairs,)
        """
        if not len(prompt):
            return
        size = len(self.load)
        a = number.astype(np.float64)
        totals = np.bincount(prompt, weights=a)
        self.num_prompts += int((totals > 0).sum())
        self.num_choosing += np.bincount(expert, minlength=size)
        self.load += np.bincount(expert, weights=a, minlength=size)
        self.squares += np.bincount(expert, weights=a * a, minlength=size)
        self._products += np.bincount(expert, weights=a * totals[prompt], minlength=size)
        self._total_squares += float((totals**2).sum())
        if self._crossed is None:
            return
        at_once = max(1, _MOST_CELLS // size)
        for first in range(0, len(totals), at_once):
            part = slice(*np.searchsorted(prompt, (first, first + at_once)))
            loads = np.zeros((min(at_once, len(totals) - first), size))
            loads[prompt[part] - first, expert[part]] = a[part]
            self._crossed += loads.T @ loads

    @property
    def num_effective(self) -> float:
        """Equally long prompts that are as informative: Q."""
        return float(self.load.sum() ** 2 / self._total_squares) if self._total_squares else 0.0

    def find_share_variance(self) -> NDArray[np.float64] | None:
        """Return the variance of each expert's share: the diagonal of V.

        None for fewer than two prompts. # (num_experts,)
        """
        if self.num_prompts < 2:
            return None
        total = self.load.sum()
        share = self.load / total
        squares = self.squares - 2 * share * self._products + share**2 * self._total_squares
        variance: NDArray[np.float64] = np.maximum(squares, 0) * self._find_factor()
        return variance

    def find_evenness_p_value(self) -> float | None:
        """Return the chance of a load at least as uneven under an even router.

        None for fewer than three prompts.
        """
        variance = self.find_share_variance()
        if variance is None or self.num_prompts < _FEWEST_PROMPTS:
            return None
        size, trace = len(self.load), float(variance.sum())
        between = float(((self.load / self.load.sum() - 1 / size) ** 2).sum())
        if trace <= 0 or size == 1:
            return 0.0 if between > 0 and size > 1 else 1.0
        f = self._find_degrees_of_freedom(trace)
        return find_f_tail(between / trace, f, f * (self.num_effective - 1))

    def _find_degrees_of_freedom(self, trace: float) -> float:
        """Return f, from 1 to E - 1."""
        df, most = self.num_effective - 1, float(len(self.load) - 1)
        # Two prompts of the same length, or fewer, don't show how many ways they differ in.
        if self._crossed is None or df <= 1:
            return 1.0
        share = self.load / self.load.sum()
        crossed = self._crossed - np.outer(share, self._products)
        crossed -= np.outer(self._products, share)
        crossed += np.outer(share, share) * self._total_squares
        squared = float((crossed**2).sum()) * self._find_factor() ** 2
        # The traces of V**2 and of V, squared, without their bias at this number of prompts.
        of_square = df**2 / ((df - 1) * (df + 2)) * (squared - trace**2 / df)
        if of_square <= 0:
            return most
        return min(most, max(1.0, (trace**2 - 2 * of_square / df) / of_square))

    def _find_factor(self) -> float:
        effective = self.num_effective
        return float(effective / (effective - 1) / self.load.sum() ** 2)
