"""Hot experts: those whose load is surely higher than any of a random router's would be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moetool.analysis.balance.between_prompts.spread import PromptSpread
from moetool.analysis.statistics.students_t import interpolate_quantile


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


def find_hot(spread: PromptSpread, *, above: float) -> tuple[HotExpert, ...]:
    """Return the experts whose interval lies above a load over the mean, the hottest first.

    The interval is that of a log ratio, with one more prompt like those that chose the expert.
    Student's t has the degrees of freedom of the variance, but no more than one fewer than prompts
    chose the expert.
    """
    variance = spread.find_share_variance()
    if variance is None:
        return ()
    total = spread.load.sum()
    over_mean = spread.load / total * len(spread.load)
    df = spread.find_degrees_of_freedom()
    hot = []
    for expert in np.argsort(-over_mean, kind="stable").tolist():
        if over_mean[expert] <= above:
            break
        if spread.num_choosing[expert] < 2:
            continue
        load, share = spread.load[expert], spread.load[expert] / total
        unseen = (spread.squares[expert] / load**2) ** 2
        deviation = float(np.sqrt(variance[expert] / share**2 + unseen))
        reach = interpolate_quantile(min(df, int(spread.num_choosing[expert]) - 1)) * deviation
        low, high = over_mean[expert] * np.exp(-reach), over_mean[expert] * np.exp(reach)
        if low > above:
            hot.append(
                HotExpert(expert, int(load), float(over_mean[expert]), float(low), float(high))
            )
    return tuple(hot)
