"""Sums of the agreement that two uniform random routers would have in a trace's decisions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.comparison.baseline import expect_uniform
from moetool.analysis.comparison.decisions import DecisionChanges
from moetool.analysis.comparison.sums import MEASURES
from moetool.trace.decisions import NO_EXPERT

# Decisions of a window and layer whose weights are compared with those of another token.
_MOST_PAIRS = 4096


def sum_expected(
    changes: DecisionChanges, *, num_experts: int, cell: NDArray[np.int64], num_cells: int
) -> NDArray[np.float64]:
    """Return the sum of each measure's expectation, and the number of its values, by cell.

    Args:
        changes: Decisions of a layer.
        num_experts: Experts of the layer.
        cell: What each decision is counted for. # (num_decisions,)
        num_cells: Number of cells.

    Returns:
        # (num_cells, num_measures, 2)
    """
    first_ran, second_ran = (each[:, 0] != NO_EXPERT for each in (changes.first, changes.second))
    width = changes.second.shape[1] + 1
    code = ((changes.num_first * width + changes.num_second) * 2 + first_ran) * 2 + second_ran
    codes = np.flatnonzero(np.bincount(code))
    table = np.array(
        [
            _expect(int(each), width=width, num_experts=num_experts, has_ranks=changes.has_ranks)
            for each in codes
        ]
    ).reshape(len(codes), len(MEASURES))
    index = np.zeros(int(codes[-1]) + 1 if len(codes) else 0, dtype=np.int64)
    index[codes] = np.arange(len(codes))
    number = np.bincount(cell * len(codes) + index[code], minlength=num_cells * len(codes))
    number = number.reshape(num_cells, len(codes))
    sums = np.stack([number @ np.nan_to_num(table), number @ np.isfinite(table)], axis=-1)
    if changes.first_weights is not None and changes.second_weights is not None:
        one, moved, stands_for = pair_weights(changes)
        of_pair = cell[one]
        sums[:, MEASURES.index("weight_change")] = np.stack(
            [
                np.bincount(of_pair, weights=moved * stands_for, minlength=num_cells),
                np.bincount(of_pair, weights=stands_for, minlength=num_cells),
            ],
            axis=-1,
        )
    return sums


def pair_weights(
    changes: DecisionChanges,
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Return how much weight would move if decisions had another token's weights in random order.

    Each decision with the same set in both traces, the ones whose weights are compared, goes with
    another token's of them with as many experts: its weights of the first trace with the other's of
    the second. Over all orders of w', the mean of `sum_i |w_i - w'_i|` for n experts is
    `sum_ij |w_i - w'_j| / n`.

    Returns:
        Index of decisions, the share of weight that moved, and how many decisions each stands for.
        # (num_pairs,) each
    """
    assert changes.first_weights is not None
    assert changes.second_weights is not None
    found: list[NDArray[np.intp]] = []
    shares: list[NDArray[np.float64]] = []
    numbers: list[NDArray[np.float64]] = []
    is_equal = ~changes.is_changed
    for size in np.unique(changes.num_first[is_equal]):
        has_size = changes.num_first == size
        mine = np.flatnonzero(is_equal & has_size)
        other = np.roll(mine, len(mine) // 2)
        if len(mine) == 1:
            # No other set of this size is the same: any weights of another one.
            others = np.flatnonzero(has_size & (changes.num_second == size))
            other = others[others != mine][:1]
            if not len(other):
                continue
        step = -(-len(mine) // _MOST_PAIRS)
        one, other = mine[::step], other[::step]
        first = _take_ran(changes.first[one], changes.first_weights[one], int(size))
        second = _take_ran(changes.second[other], changes.second_weights[other], int(size))
        moved = np.zeros(len(one))
        for weight in first.T:
            moved += np.abs(weight[:, None] - second).sum(axis=1)
        total = size * (first.sum(axis=1) + second.sum(axis=1))
        is_known = total > 0
        found.append(one[is_known])
        shares.append(moved[is_known] / total[is_known])
        numbers.append(np.full(int(is_known.sum()), len(mine) / len(one)))
    if not found:
        return np.zeros(0, dtype=np.intp), np.zeros(0), np.zeros(0)
    return np.concatenate(found), np.concatenate(shares), np.concatenate(numbers)


def _take_ran(
    experts: NDArray[np.int64], weights: NDArray[np.float32], size: int
) -> NDArray[np.float64]:
    """Return the weights of experts that ran, of decisions with equally many."""
    ran: NDArray[np.float64] = weights[experts != NO_EXPERT].reshape(-1, size).astype(np.float64)
    return ran


def _expect(code: int, *, width: int, num_experts: int, has_ranks: bool) -> list[float]:
    code, second_ran = divmod(code, 2)
    code, first_ran = divmod(code, 2)
    # Only rows that were not checked can have more experts than there are.
    num_first, num_second = (min(size, num_experts) for size in divmod(code, width))
    expected = expect_uniform(num_experts, num_first, num_second)
    flips = float("nan")
    if has_ranks:
        # Where neither ran a first choice, none differs.
        both = 1 - 1 / num_experts
        flips = both if first_ran and second_ran else float(first_ran != second_ran)
    values = {**vars(expected), "first_choice_flips": flips}
    return [float("nan") if values[name] is None else values[name] for name in MEASURES]
