"""Hot experts: those whose load is surely higher than any of a random router's would be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.students_t import find_quantile


@dataclass(frozen=True)
class HotExpert:
    """An expert whose load is high whichever prompts are drawn.

    Attributes:
        expert: As in the trace's column.
        load: Its assignments.
        over_mean: Its load over the mean load of the layer.
        over_mean_low: Lower limit of the 95 % interval over samples of prompts.
        over_mean_high: Upper limit.
    """

    expert: int
    load: int
    over_mean: float
    over_mean_low: float
    over_mean_high: float


class PromptSpread:
    """Sums over prompts that give the spread of each expert's share between prompts.

    With `a` a prompt's assignments to an expert and `n` to all experts of the layer.

    Attributes:
        num_prompts: Prompts in which an expert of the layer ran.
        num_choosing: Prompts that chose each expert. # (num_experts,)
    """

    def __init__(self, num_experts: int) -> None:
        self.num_prompts = 0
        self.num_choosing = np.zeros(num_experts, dtype=np.int64)
        self._load = np.zeros(num_experts)
        self._squares = np.zeros(num_experts)
        self._products = np.zeros(num_experts)
        self._total_squares = 0.0

    def add(
        self, prompt: NDArray[np.int64], expert: NDArray[np.int64], number: NDArray[np.int64]
    ) -> None:
        """Add whole prompts: how often each chose the experts that it chose at all."""
        size = len(self.num_choosing)
        a = number.astype(np.float64)
        totals = np.bincount(prompt, weights=a)
        self.num_prompts += int((totals > 0).sum())
        self.num_choosing += np.bincount(expert, minlength=size)
        self._load += np.bincount(expert, weights=a, minlength=size)
        self._squares += np.bincount(expert, weights=a * a, minlength=size)
        self._products += np.bincount(expert, weights=a * totals[prompt], minlength=size)
        self._total_squares += float((totals**2).sum())

    def find_share_variance(self) -> NDArray[np.float64] | None:
        """Return the variance of each expert's share of assignments over samples of prompts.

        That of a ratio of sums over a sample of groups (Woodruff 1971, JASA 66:411). None for fewer
        than two prompts. # (num_experts,)
        """
        if self.num_prompts < 2:
            return None
        total = self._load.sum()
        share = self._load / total
        squares = self._squares - 2 * share * self._products + share**2 * self._total_squares
        spread = self.num_prompts / (self.num_prompts - 1) / total**2
        variance: NDArray[np.float64] = np.maximum(squares, 0) * spread
        return variance

    def find_hot(self, *, above: float) -> tuple[HotExpert, ...]:
        """Return the experts whose interval lies above a load over the mean, the hottest first.

        The interval is that of a log ratio, with Student's t on as many degrees of freedom as
        prompts chose the expert, minus one, and one more prompt like those that did.
        """
        variance = self.find_share_variance()
        if variance is None:
            return ()
        total = self._load.sum()
        over_mean = self._load / total * len(self._load)
        hot = []
        for expert in np.argsort(-over_mean, kind="stable").tolist():
            if over_mean[expert] <= above:
                break
            load, share = self._load[expert], self._load[expert] / total
            unseen = (self._squares[expert] / load**2) ** 2
            deviation = float(np.sqrt(variance[expert] / share**2 + unseen))
            reach = find_quantile(int(self.num_choosing[expert]) - 1) * deviation
            low, high = over_mean[expert] * np.exp(-reach), over_mean[expert] * np.exp(reach)
            if low > above:
                hot.append(
                    HotExpert(expert, int(load), float(over_mean[expert]), float(low), float(high))
                )
        return tuple(hot)
