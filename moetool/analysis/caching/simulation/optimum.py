"""Belady's optimum: the most requests that any cache can find on the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.caching.simulation.steps import NEVER, Requests

# Dummies that make up for a smaller capacity are always kept.
_ALWAYS = -1


class OptimalCaches:
    """Caches of all layers, at several capacities, that know the future.

    After each step, a cache keeps the experts that are needed soonest, among those that it holds
    and those of the step (Belady 1966, IBM Systems Journal 5:78). Experts are moved only when they
    are needed; with this rule no cache of the same capacity has more hits.

    Args:
        num_experts: Of each layer.
        capacities: Of each layer, the experts that each cache keeps. # (num_layers, num_caches)
    """

    def __init__(self, num_experts: Sequence[int], capacities: Sequence[Sequence[int]]) -> None:
        self._num_caches = len(capacities[0])
        sizes = np.array(capacities, dtype=np.int64).ravel()
        # The last expert to keep has the same place in all rows.
        self._place = int(sizes.max()) - 1
        self._num_ids = max(num_experts)
        # The token that needs each expert next, as a number that no other expert has; `NEVER` if
        # the cache does not hold it. # (num_layers * num_caches, num_ids + num_dummies)
        self._state = np.full((len(sizes), self._num_ids + int(np.ptp(sizes))), NEVER)
        for row, size in enumerate(sizes):
            self._state[row, self._num_ids : self._num_ids + int(sizes.max() - size)] = _ALWAYS

    def count_hits(
        self, layers: Sequence[Requests | None], *, first_token: int, num_steps: int
    ) -> list[NDArray[np.int64]]:
        """Return in how many of the caches each request of each layer finds its expert.

        Args:
            layers: The requests of each layer in a window; None for none.
            first_token: Tokens before this window.
            num_steps: Steps of the window.
        """
        sizes = [0 if requests is None else len(requests.step) for requests in layers]
        known = [requests for requests in layers if requests is not None]
        if not known:
            return [np.zeros(0, dtype=np.int64) for _ in layers]
        step = np.concatenate([requests.step for requests in known])
        order = np.argsort(step, kind="stable")
        expert = np.concatenate([requests.expert for requests in known])[order]
        next_use = np.concatenate([requests.next_use for requests in known])[order]
        layer = np.repeat(np.arange(len(layers)), sizes)[order]
        width = self._state.shape[1]
        cell = layer * self._num_caches * width + expert
        cells = cell[:, None] + np.arange(self._num_caches) * width
        key = np.where(next_use == NEVER, NEVER, next_use * self._num_ids + expert)
        is_hit = np.empty(cells.shape, dtype=bool)
        bounds = np.searchsorted(step[order], np.arange(num_steps + 1)).tolist()
        begin = first_token * self._num_ids
        state, never = _shrink(self._state, key, begin=begin)
        small = _shift(key, begin=begin, never=never, kind=state.dtype)
        _run(state, cells, small[:, None], bounds, is_hit, place=self._place, never=never)
        self._state = np.where(
            state == never, NEVER, np.where(state < 0, _ALWAYS, state.astype(np.int64) + begin)
        )
        number = np.empty(len(order), dtype=np.int64)
        number[order] = is_hit.sum(axis=1)
        return np.split(number, np.cumsum(sizes)[:-1])


def _run(
    state: NDArray[Any],
    cells: NDArray[np.int64],
    key: NDArray[Any],
    bounds: Sequence[int],
    is_hit: NDArray[np.bool_],
    *,
    place: int,
    never: int,
) -> None:
    """Take all steps of a window: change the state, and note the hits.

    Args:
        state: # (num_rows, width)
        cells: Place of each request in the state, for each cache. # (num_requests, num_caches)
        key: The next use of the request's expert. # (num_requests, 1)
        bounds: The first request of each step, and the end of the last.
        is_hit: Takes the result. # (num_requests, num_caches)
        place: Experts and dummies that each row keeps, minus one.
        never: Value of experts that are not held.
    """
    flat = state.reshape(-1)
    is_late = np.empty(state.shape, dtype=bool)
    for start, end in pairwise(bounds):
        if start == end:
            continue
        mine = cells[start:end]
        is_hit[start:end] = flat[mine] != never
        flat[mine] = key[start:end]
        last = np.partition(state, place, axis=1)[:, place]
        np.greater(state, last[:, None], out=is_late)
        np.putmask(state, is_late, never)


def _shrink(
    state: NDArray[np.int64], key: NDArray[np.int64], *, begin: int
) -> tuple[NDArray[Any], int]:
    """Return the state counted from a window's beginning, in 32 bits if possible, and its `NEVER`."""
    largest = max(
        int(values[values != NEVER].max(initial=begin)) for values in (state.ravel(), key)
    )
    limits = [(kind, int(np.iinfo(kind).max)) for kind in (np.int32, np.int64)]
    kind, never = next(limit for limit in limits if largest - begin < limit[1])
    return _shift(state, begin=begin, never=never, kind=np.dtype(kind)), never


def _shift(
    values: NDArray[np.int64], *, begin: int, never: int, kind: np.dtype[Any]
) -> NDArray[Any]:
    shifted = np.where(values == _ALWAYS, _ALWAYS, values - begin)
    return np.where(values == NEVER, never, shifted).astype(kind)
