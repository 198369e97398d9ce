"""Whole matrices of pairs: every pair of a layer, or of a layer and the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.coactivation.pair_counts import LayerPairs, LayerTransitions
from moetool.analysis.coactivation.same_loads import expect_pairs
from moetool.analysis.coactivation.significance import SMALLEST_P_VALUE, find_spread
from moetool.analysis.statistics.discoveries import find_discoveries

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PairMatrix:
    """Every pair, each array with one entry for each; NaN and None are unknown.

    Attributes:
        expert_i: Of a pair of one layer, the smaller id. # (num_pairs,)
        expert_j: The larger id; across layers, the expert of the next layer. # (num_pairs,)
        count: Decisions that choose both. # (num_pairs,)
        probability: Their share of all decisions. # (num_pairs,)
        given_i: Probability of the second expert if the first is chosen; NaN if it never is.
            # (num_pairs,)
        given_j: Probability of the first expert if the second is chosen. # (num_pairs,)
        lift: NaN if one of the experts is never chosen. # (num_pairs,)
        expected_lift: Lift of a router with the same loads. # (num_pairs,)
        lift_low: # (num_pairs,)
        lift_high: # (num_pairs,)
        p_value: At least `SMALLEST_P_VALUE`. # (num_pairs,)
        expected: Decisions that would choose both at the expected lift. # (num_pairs,)
        is_significant: None if pairs were not tested. # (num_pairs,)
        is_fitted: Whether a router with the same loads was found.
    """

    expert_i: NDArray[np.int16]
    expert_j: NDArray[np.int16]
    count: Ints
    probability: Floats
    given_i: Floats
    given_j: Floats
    lift: Floats
    expected_lift: Floats
    lift_low: Floats
    lift_high: Floats
    p_value: Floats
    expected: Floats
    is_significant: NDArray[np.bool_] | None
    is_fitted: bool = True

    @property
    def is_tested(self) -> NDArray[np.bool_]:
        """Return which pairs are significant: none if they were not tested."""
        untested = np.zeros(len(self), dtype=bool)
        return untested if self.is_significant is None else self.is_significant

    @property
    def over_expected(self) -> Floats:
        """Return each lift over that of a router with the same loads; NaN if one is unknown."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio: Floats = np.where(self.expected_lift > 0, self.lift / self.expected_lift, np.nan)
        return ratio

    def take(self, index: Ints) -> PairMatrix:
        """Return the pairs at an index."""
        taken: dict[str, Any] = {
            item.name: getattr(self, item.name)[index]
            for item in fields(self)
            if isinstance(getattr(self, item.name), np.ndarray)
        }
        return replace(self, **taken)

    def __len__(self) -> int:
        return len(self.count)

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        """Yield each pair as plain values by name; unknown ones are None."""
        tested = [None] * len(self) if self.is_significant is None else self.is_significant.tolist()
        columns = {
            **{name: getattr(self, name).tolist() for name in ("expert_i", "expert_j", "count")},
            **{name: _list_known(getattr(self, name)) for name in FLOAT_COLUMNS},
            "is_significant": tested,
        }
        names = list(columns)
        for row in zip(*columns.values(), strict=True):
            yield dict(zip(names, row, strict=True))

    def choose_strongest(self, most: int) -> Ints:
        """Return the index of the strongest pairs: those with the largest lifts.

        A pair that occurs a few times may have a large lift by chance. Pairs that are significant,
        or, if pairs were not tested, that should occur ten times, are therefore chosen first, and
        others only if these are fewer than asked for. Pairs that never occur are left out.
        """
        (known,) = np.nonzero(self.count > 0)
        is_sure = self.expected >= _ENOUGH if self.is_significant is None else self.is_significant
        by_lift = known[np.lexsort((-self.count[known], -self.lift[known]))]
        sure = is_sure[by_lift]
        chosen = np.concatenate([by_lift[sure], by_lift[~sure]])[:most]
        ordered: Ints = chosen[np.lexsort((chosen, -self.count[chosen], -self.lift[chosen]))]
        return ordered


FLOAT_COLUMNS = (
    *("probability", "given_i", "given_j", "lift", "expected_lift"),
    *("lift_low", "lift_high", "p_value"),
)
_ENOUGH = 10


def make_layer_matrix(counts: LayerPairs) -> PairMatrix:
    """Return the pairs of decisions, with the test of each that occurs.

    Pairs are untested where sums over prompts were left out.
    """
    i, j = _list_pairs(counts.num_experts if counts.top_k > 1 else 0)
    total = max(1, counts.num_decisions)
    matrix = _make_untested(i, j, counts.pairs[i, j], counts.loads[i], counts.loads[j], total)
    if not len(matrix) or not counts.num_decisions:
        return matrix
    pairs = expect_pairs(counts.loads / total, counts.sizes)
    if pairs is None:
        return replace(matrix, is_fitted=False)
    both = counts.loads[i].astype(np.float64) * counts.loads[j]
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = np.where(both > 0, pairs[i, j] * float(total) ** 2 / both, np.nan)
    matrix = replace(matrix, expected=pairs[i, j] * total, expected_lift=lift)
    if counts.moments is None:
        return matrix
    spread = find_spread(counts)
    low, high = spread.find_limits(matrix.lift)
    p_value = spread.find_p_values(matrix.lift, matrix.expected_lift)
    return replace(
        matrix,
        lift_low=low,
        lift_high=high,
        p_value=np.maximum(p_value, SMALLEST_P_VALUE),
        is_significant=find_discoveries(p_value),
    )


def make_group_matrix(counts: LayerPairs) -> PairMatrix:
    """Return the pairs of decisions without the lift that loads explain, which takes time."""
    i, j = _list_pairs(counts.num_experts)
    return _make_untested(
        i, j, counts.pairs[i, j], counts.loads[i], counts.loads[j], counts.num_decisions
    )


def make_transition_matrix(counts: LayerTransitions) -> PairMatrix:
    """Return the pairs of a layer and the next, untested."""
    i, j = (axis.ravel().astype(np.int16) for axis in np.indices(counts.pairs.shape))
    matrix = _make_untested(
        i, j, counts.pairs.ravel(), counts.loads[i], counts.next_loads[j], counts.num_tokens
    )
    # A token that runs fewer experts may do so in both layers: of a random router the lift is then
    # above 1, because all pairs are from the other tokens.
    both = int(counts.loads.sum()) * int(counts.next_loads.sum())
    expected = int(counts.pairs.sum()) * counts.num_tokens / both if both else np.nan
    return replace(matrix, expected_lift=np.where(np.isnan(matrix.lift), np.nan, expected))


def _list_pairs(num_experts: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    i, j = np.triu_indices(num_experts, 1)
    return i.astype(np.int16), j.astype(np.int16)


def _make_untested(
    i: NDArray[np.int16], j: NDArray[np.int16], count: Ints, one: Ints, other: Ints, total: int
) -> PairMatrix:
    expected = one * (other / max(1, total))
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = np.where(expected > 0, count / expected, np.nan)
        given_i, given_j = (np.where(each > 0, count / each, np.nan) for each in (one, other))
    # An array of one value, without memory for each pair.
    unknown = np.broadcast_to(np.float64(np.nan), len(count))
    return PairMatrix(
        expert_i=i,
        expert_j=j,
        count=count,
        probability=count / max(1, total),
        given_i=given_i,
        given_j=given_j,
        lift=lift,
        expected_lift=unknown,
        lift_low=unknown,
        lift_high=unknown,
        p_value=unknown,
        expected=expected,
        is_significant=None,
    )


def _list_known(values: Floats) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
