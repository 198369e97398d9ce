"""The spread of experts' shares between prompts, and what it says about an uneven load.

Let `a` be a prompt's assignments to an expert, `n` those to all experts of the layer, `N` their sum,
`h = n / N`, and `s` an expert's share of N. To first order, the covariance of shares over samples of
prompts is that of ratios of sums, with the weights that `statistics.ratios` gives reasons for

    V = sum over prompts of (a - s n)(a - s n)' / (1 - 2 h + H) / N**2,   H = sum(h**2)

An even router has shares of 1 / E on average over all prompts there are, whatever it does in a single
one. Then `sum((s - 1 / E)**2) / trace(V)` is a ratio of variances, as in an analysis of variance of
repeated measures with experts as the treatment and prompts as the subjects. It is compared with the F
distribution of f and f d degrees of freedom, where d is that of a sum of squares over the prompts, and
`f = trace(V)**2 / trace(V**2)` (Box 1954, Ann. Math. Stat. 25:290), estimated without bias from few
prompts (Huynh and Feldt 1976, J. Educ. Stat. 1:69). A random router has f = E - 1; prompts that favour
the same few experts make f small.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.f_distribution import find_f_tail
from moetool.analysis.statistics.ratios import find_degrees_of_freedom, weigh_squares

Floats = NDArray[np.float64]

# Prompts whose loads are held at a time, in cells.
_MOST_CELLS = 1 << 20
# Layers of more experts have no covariances: f is then taken to be 1, with which the test is valid
# but weak.
_MOST_EXPERTS = 512
# The weight of a prompt depends on the length of all, which is known last. The longest prompts are
# kept until then; any other has less than 1 / 256 of the assignments, so that all others may have
# the weight of the longest of them, which is less than 1 % too large.
_MOST_KEPT = 256
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
        self._lengths: list[Floats] = []
        self._longest = np.zeros((0, num_experts))
        self._others = _Sums(num_experts)

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
        self._lengths.append(totals[totals > 0].astype(np.float64))
        at_once = max(1, _MOST_CELLS // size)
        for first in range(0, len(totals), at_once):
            part = slice(*np.searchsorted(prompt, (first, first + at_once)))
            loads = np.zeros((min(at_once, len(totals) - first), size))
            loads[prompt[part] - first, expert[part]] = a[part]
            self._keep(loads[totals[first : first + at_once] > 0])

    def find_share_variance(self) -> Floats | None:
        """Return the variance of each expert's share: the diagonal of V.

        None for fewer than two prompts. # (num_experts,)
        """
        if self.num_prompts < 2:
            return None
        residuals, weight = self._weigh()
        squares = (residuals**2).sum(axis=0) + weight * self._others.find_squares(self._share)
        variance: Floats = squares / self.load.sum() ** 2
        return variance

    def find_degrees_of_freedom(self) -> float:
        """Return the degrees of freedom of these variances, for at least two prompts."""
        return find_degrees_of_freedom(self._find_shares_of_prompts())

    def find_evenness_p_value(self) -> float | None:
        """Return the chance of a load at least as uneven under an even router.

        None for fewer than three prompts.
        """
        variance = self.find_share_variance()
        if variance is None or self.num_prompts < _FEWEST_PROMPTS:
            return None
        size, trace = len(self.load), float(variance.sum())
        between = float(((self._share - 1 / size) ** 2).sum())
        if trace <= 0 or size == 1:
            return 0.0 if between > 0 and size > 1 else 1.0
        df = self.find_degrees_of_freedom()
        f = self._find_dimensions(trace, df)
        return find_f_tail(between / trace, f, f * df)

    @property
    def _share(self) -> Floats:
        share: Floats = self.load / self.load.sum()
        return share

    def _keep(self, loads: Floats) -> None:
        """Keep the longest prompts, and add up the others.

        Args:
            loads: # (num_prompts, num_experts)
        """
        loads = np.concatenate([self._longest, loads])
        order = np.argsort(-loads.sum(axis=1), kind="stable")
        self._longest = loads[order[:_MOST_KEPT]]
        if len(order) > _MOST_KEPT:
            self._others.add(loads[order[_MOST_KEPT:]])

    def _find_shares_of_prompts(self) -> Floats:
        """Return h of each prompt.

        # (num_prompts,)
        """
        shares: Floats = np.concatenate(self._lengths) / self.load.sum()
        return shares

    def _weigh(self) -> tuple[Floats, float]:
        """Return residuals of the longest prompts, times the root of their weight, and others' weight.

        Returns:
            # (num_kept, num_experts)
        """
        shares = self._find_shares_of_prompts()
        lengths = self._longest.sum(axis=1)
        h = np.append(lengths, self._others.longest) / self.load.sum()
        weights = weigh_squares(h, shares)
        residuals = self._longest - np.outer(lengths, self._share)
        return residuals * np.sqrt(weights[:-1, None]), float(weights[-1])

    def _find_dimensions(self, trace: float, df: float) -> float:
        """Return f, from 1 to E - 1."""
        most = float(len(self.load) - 1)
        # Two prompts of the same length, or fewer, don't show how many ways they differ in.
        if len(self.load) > _MOST_EXPERTS or df <= 1:
            return 1.0
        residuals, weight = self._weigh()
        crossed = residuals.T @ residuals + weight * self._others.cross(self._share)
        squared = float((crossed**2).sum()) / float(self.load.sum()) ** 4
        # The traces of V**2 and of V, squared, without their bias at this number of prompts.
        of_square = df**2 / ((df - 1) * (df + 2)) * (squared - trace**2 / df)
        if of_square <= 0:
            return most
        return min(most, max(1.0, (trace**2 - 2 * of_square / df) / of_square))


class _Sums:
    """Sums over prompts that are not kept.

    Attributes:
        longest: The largest n.
        squares: Sum of `a * a`. # (num_experts,)
        products: Sum of `a * n`. # (num_experts,)
        total_squares: Sum of `n * n`.
        crossed: Sum of the products of `a` of two experts; None for too many experts.
            # (num_experts, num_experts)
    """

    def __init__(self, num_experts: int) -> None:
        self.longest = 0.0
        self.squares = np.zeros(num_experts)
        self.products = np.zeros(num_experts)
        self.total_squares = 0.0
        self.crossed = (
            np.zeros((num_experts, num_experts)) if num_experts <= _MOST_EXPERTS else None
        )

    def add(self, loads: Floats) -> None:
        """Add prompts, at least one.

        # (num_prompts, num_experts)
        """
        lengths = loads.sum(axis=1)
        self.longest = max(self.longest, float(lengths.max()))
        self.squares += (loads**2).sum(axis=0)
        self.products += lengths @ loads
        self.total_squares += float(lengths @ lengths)
        if self.crossed is not None:
            self.crossed += loads.T @ loads

    def find_squares(self, share: Floats) -> Floats:
        """Return the sum of `(a - s n)**2` of each expert.

        # (num_experts,)
        """
        squares = self.squares - 2 * share * self.products + share**2 * self.total_squares
        return np.maximum(squares, 0)

    def cross(self, share: Floats) -> Floats:
        """Return the sum of `(a - s n)(a - s n)'`.

        # (num_experts, num_experts)
        """
        assert self.crossed is not None
        crossed = self.crossed - np.outer(share, self.products)
        crossed -= np.outer(self.products, share)
        crossed += np.outer(share, share) * self.total_squares
        return crossed
