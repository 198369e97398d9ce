"""ESFT's scores and choice in plain Python, from decisions one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction

from tests.analysis.random_traces import Decision


def score_reference(
    decisions: Iterable[Decision], *, by: str, average: str, num_experts: int
) -> dict[int, list[float]]:
    """Return every layer's scores, rounded to four decimals.

    Shares are added up as fractions, so that only one rounding happens.
    """
    prompts: dict[int, dict[str, list[list[Fraction]]]] = defaultdict(lambda: defaultdict(list))
    for decision in decisions:
        row = [Fraction(0)] * num_experts
        for expert, weight in zip(decision.experts, decision.weights, strict=True):
            row[expert] += Fraction(1, len(decision.experts)) if by == "token" else Fraction(weight)
        prompts[decision.layer][decision.prompt_id].append(row)
    scores = {}
    for layer, rows_of in prompts.items():
        means = [_mean(rows) for rows in rows_of.values()]
        every = [row for rows in rows_of.values() for row in rows]
        scores[layer] = [
            round(float(score), 4)
            for score in (_mean(every) if average == "micro" else _mean(means))
        ]
    return scores


def choose_reference(scores: list[float], top_p: float) -> list[int]:
    """Return the experts by score, then id, up to the one that reaches `top_p`."""
    left = dict(enumerate(scores))
    chosen: list[int] = []
    total = 0.0
    while left and total < top_p:
        best = max(left.values())
        expert = min(expert for expert, score in left.items() if score == best)
        chosen.append(expert)
        total += left.pop(expert)
    return chosen


def _mean(rows: list[list[Fraction]]) -> list[Fraction]:
    return [sum(column, Fraction(0)) / len(rows) for column in zip(*rows, strict=True)]
