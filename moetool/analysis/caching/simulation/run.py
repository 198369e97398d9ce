"""One simulation of all caches over a trace, a window at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.caching.simulation.optimum import OptimalCaches
from moetool.analysis.caching.simulation.policies import POLICIES, Policy
from moetool.analysis.caching.simulation.replacement import OnlineCaches
from moetool.analysis.caching.simulation.steps import (
    FirstSteps,
    Requests,
    Steps,
    find_requests,
    make_steps,
)
from moetool.analysis.statistics.ratios import sum_prompts
from moetool.trace.decisions import PHASES
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.window import DecisionWindow

_NUM_SUMS = 6


@dataclass(frozen=True)
class CacheShape:
    """The layers that are simulated, and the capacities of their caches.

    Attributes:
        places: Stack and layer of each.
        num_experts: Of each layer, without identity experts.
        num_ids: Of each layer, with them.
        top_k: Of each layer.
        capacities: Experts that stay on the GPU. # (num_layers, num_budgets)
    """

    places: Sequence[Place]
    num_experts: Sequence[int]
    num_ids: Sequence[int]
    top_k: Sequence[int]
    capacities: NDArray[np.int64]


@dataclass(frozen=True)
class CacheCounts:
    """Hits and requests of a simulation so far.

    Attributes:
        hits: # (num_layers, num_phases, num_policies, num_budgets)
        requests: # (num_layers, num_phases)
        random_requests: Expected of a uniform random router. # (num_layers, num_phases)
        sums: Of hits and requests over prompts, see `sum_prompts`.
            # (num_phases, num_policies, num_budgets, 6)
        tokens: # (num_phases,)
        steps: # (num_phases,)
    """

    hits: NDArray[np.int64]
    requests: NDArray[np.int64]
    random_requests: NDArray[np.float64]
    sums: NDArray[np.float64]
    tokens: NDArray[np.int64]
    steps: NDArray[np.int64]

    @classmethod
    def empty(cls, shape: CacheShape) -> CacheCounts:
        """Return the counts before the first window."""
        num_layers, num_budgets = shape.capacities.shape
        size = (len(PHASES), len(POLICIES), num_budgets)
        return cls(
            hits=np.zeros((num_layers, *size), dtype=np.int64),
            requests=np.zeros((num_layers, len(PHASES)), dtype=np.int64),
            random_requests=np.zeros((num_layers, len(PHASES))),
            sums=np.zeros((*size, _NUM_SUMS)),
            tokens=np.zeros(len(PHASES), dtype=np.int64),
            steps=np.zeros(len(PHASES), dtype=np.int64),
        )


class CacheRun:
    """Simulates all policies at all budgets, from an empty cache on.

    Attributes:
        counts: Of the windows so far.
        first_steps: The first steps, for the baseline.

    Args:
        shape: Layers and capacities.
        static_rank: Rank of each expert in the load of the other half of the prompts.
            # (2, num_phases, num_layers, num_ids)
        halves: The half of each prompt. # (num_prompts,)
        tokens_per_batch: Consecutive tokens of a prompt that share a step; None for all.
        decodes_all: Take a step for each token, whatever its phase.
        policies: Those to simulate; the others have no hits.
    """

    def __init__(
        self,
        shape: CacheShape,
        *,
        static_rank: NDArray[np.int64],
        halves: NDArray[np.int64],
        tokens_per_batch: int | None,
        decodes_all: bool,
        policies: Collection[Policy] = POLICIES,
    ) -> None:
        self._policies = policies
        self.counts = CacheCounts.empty(shape)
        self._shape = shape
        self._static_rank, self._halves = static_rank, halves
        self._tokens_per_batch, self._decodes_all = tokens_per_batch, decodes_all
        # Policies work on capacities in ascending order: a larger cache has every hit of a smaller.
        self._order = np.argsort(shape.capacities, axis=1, kind="stable")
        self._ascending = np.take_along_axis(shape.capacities, self._order, axis=1)
        self._online = [
            OnlineCaches(number, sizes.tolist())
            for number, sizes in zip(shape.num_experts, self._ascending, strict=True)
        ]
        self._optimal = OptimalCaches(shape.num_experts, self._ascending.tolist())
        self.first_steps = FirstSteps()

    def add(
        self,
        window: DecisionWindow,
        *,
        first_token: int,
        next_uses: NDArray[np.int64],
    ) -> None:
        """Take the steps of a window.

        Args:
            first_token: Tokens before the window.
            next_uses: The first token after it that needs each expert. # (num_layers, num_ids)
        """
        steps = make_steps(
            window,
            _number_stacks(window),
            tokens_per_batch=self._tokens_per_batch,
            decodes_all=self._decodes_all,
        )
        self.first_steps.add(steps)
        layers: list[Requests | None] = [
            find_requests(
                window.layers[place],
                steps,
                first_token=first_token,
                next_uses=next_uses[index, : self._shape.num_experts[index]],
            )
            if place in window.layers
            else None
            for index, place in enumerate(self._shape.places)
        ]
        optimal: list[NDArray[np.int64]] = []
        if Policy.BELADY in self._policies:
            optimal = self._optimal.count_hits(
                layers, first_token=first_token, num_steps=len(steps)
            )
        prompts, prompt = np.unique(steps.prompt, return_inverse=True)
        num_cells = len(prompts) * len(PHASES)
        # (num_prompts * num_phases, num_policies, num_budgets), and without the last two
        hits = np.zeros((num_cells, len(POLICIES), self._ascending.shape[1]), dtype=np.int64)
        requests = np.zeros(num_cells, dtype=np.int64)
        for index, mine in enumerate(layers):
            if mine is None:
                continue
            numbers = self._find_numbers(mine, steps, index)
            if optimal:
                numbers[Policy.BELADY] = optimal[index]
            none = np.zeros(len(mine.step), dtype=np.int64)
            cell = (prompt * len(PHASES) + steps.phase)[mine.step]
            own = np.stack(
                [
                    self._count(cell, numbers.get(policy, none), num_cells, index)
                    for policy in POLICIES
                ],
                axis=1,
            )
            number = np.bincount(cell, minlength=num_cells)
            hits += own
            requests += number
            by_phase = own.reshape(len(prompts), len(PHASES), *own.shape[1:]).sum(axis=0)
            self.counts.hits[index] += by_phase
            self.counts.requests[index] += number.reshape(-1, len(PHASES)).sum(axis=0)
            self._expect_random(window, steps, index)
        shape = (len(prompts), len(PHASES))
        x = np.moveaxis(hits.reshape(*shape, *hits.shape[1:]), 0, -1)
        n = np.broadcast_to(requests.reshape(shape).T[:, None, None], x.shape)
        self.counts.sums[:] += sum_prompts(x.astype(np.float64), n.astype(np.float64))
        self.counts.tokens[:] += np.bincount(steps.phase[steps.of_token], minlength=len(PHASES))
        self.counts.steps[:] += np.bincount(steps.phase, minlength=len(PHASES))

    def _find_numbers(
        self, requests: Requests, steps: Steps, layer: int
    ) -> dict[Policy, NDArray[np.int64]]:
        """Return in how many caches a layer's requests find their expert, except for the optimum."""
        half = self._halves[steps.prompt[requests.step]]
        phase = steps.phase[requests.step]
        rank = self._static_rank[half, phase, layer, requests.expert]
        numbers = {Policy.STATIC: (rank[:, None] < self._ascending[layer]).sum(axis=1)}
        if Policy.LRU in self._policies or Policy.LFU in self._policies:
            lru, lfu = self._online[layer].count_hits(requests, len(steps))
            numbers |= {Policy.LRU: lru, Policy.LFU: lfu}
        return numbers

    def _count(
        self, cell: NDArray[np.int64], number: NDArray[np.int64], num_cells: int, layer: int
    ) -> NDArray[np.int64]:
        """Return hits by cell and budget, from the number of caches that have each hit.

        Returns:
            # (num_cells, num_budgets)
        """
        num_budgets = self._ascending.shape[1]
        counted = np.bincount(
            cell * (num_budgets + 1) + number, minlength=num_cells * (num_budgets + 1)
        ).reshape(num_cells, num_budgets + 1)
        # The smallest cache hits only if all do, the largest if any does.
        ascending = counted[:, :0:-1].cumsum(axis=1)
        hits = np.empty_like(ascending)
        hits[:, self._order[layer]] = ascending
        return hits

    def _expect_random(self, window: DecisionWindow, steps: Steps, layer: int) -> None:
        """Add the distinct experts that a random router would need: `E (1 - (1 - k/E)^B)`."""
        choices = window.layers[self._shape.places[layer]]
        sizes = np.bincount(steps.of_token[choices.token], minlength=len(steps))
        share = self._shape.top_k[layer] / self._shape.num_ids[layer]
        expected = self._shape.num_experts[layer] * (1 - (1 - share) ** sizes)
        self.counts.random_requests[layer] += np.bincount(
            steps.phase, weights=expected, minlength=len(PHASES)
        )


def _number_stacks(window: DecisionWindow) -> NDArray[np.int64]:
    """Return a number for each token's stack; 0 for a token without a decision."""
    stack = np.zeros(len(window.prompt), dtype=np.int64)
    names = sorted({name for name, _ in window.layers})
    for (name, _), choices in window.layers.items():
        stack[choices.token] = names.index(name)
    return stack
