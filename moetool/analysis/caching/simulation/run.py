"""One simulation of all caches over a trace, a window at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
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
from moetool.trace.decisions import NO_EXPERT, PHASES
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.window import DecisionWindow, LayerChoices

_NUM_SUMS = 6


@dataclass(frozen=True)
class CacheShape:
    """The layers that are simulated, and the capacities of their caches.

    Attributes:
        places: Stack and layer of each.
        num_experts: Of each layer, without identity experts.
        num_ids: Of each layer, with them.
        top_k: Of each layer, at most.
        capacities: Experts that stay on the GPU. # (num_layers, num_budgets)
    """

    places: Sequence[Place]
    num_experts: Sequence[int]
    num_ids: Sequence[int]
    top_k: Sequence[int]
    capacities: NDArray[np.int64]


@dataclass(frozen=True)
class CacheCounts:
    """Hits and requests of a simulation, or of some of its tokens.

    Attributes:
        hits: # (num_layers, num_phases, num_policies, num_budgets)
        requests: # (num_layers, num_phases)
        random_requests: Expected of a uniform random router, of which each token chooses as many
            experts. # (num_layers, num_phases)
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
        groups: The same of each group of steps; empty unless steps have groups.
        num_mixed: Tokens of another group than the first token of their step.
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
        self.groups: dict[int, CacheCounts] = {}
        self.num_mixed = 0
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
        self.first_steps = FirstSteps(len(shape.places))

    def add(
        self,
        window: DecisionWindow,
        *,
        first_token: int,
        next_uses: NDArray[np.int64],
        group: NDArray[np.int64] | None = None,
    ) -> None:
        """Take the steps of a window.

        Args:
            first_token: Tokens before the window.
            next_uses: The first token after it that needs each expert. # (num_layers, num_ids)
            group: Of each token; a step is of the group of its first token. None not to count
                groups. # (num_tokens,)
        """
        steps = make_steps(
            window,
            _number_stacks(window),
            tokens_per_batch=self._tokens_per_batch,
            decodes_all=self._decodes_all,
        )
        choices = [window.layers.get(place) for place in self._shape.places]
        self.first_steps.add(steps, choices)
        layers = [
            None
            if mine is None
            else find_requests(
                mine,
                steps,
                first_token=first_token,
                next_uses=next_uses[index, : self._shape.num_experts[index]],
            )
            for index, mine in enumerate(choices)
        ]
        optimal: list[NDArray[np.int64]] = []
        if Policy.BELADY in self._policies:
            optimal = self._optimal.count_hits(
                layers, first_token=first_token, num_steps=len(steps)
            )
        parts = _divide_steps(steps, group)
        if group is not None and parts.group is not None:
            of_step = parts.group[parts.of_step]
            self.num_mixed += int((of_step[steps.of_token] != group).sum())
        num_cells = len(parts.prompt) * len(PHASES)
        cell_of_step = parts.of_step * len(PHASES) + steps.phase
        # (num_parts * num_phases, num_policies, num_budgets), and without the last two
        hits = np.zeros((num_cells, len(POLICIES), self._ascending.shape[1]), dtype=np.int64)
        requests = np.zeros(num_cells, dtype=np.int64)
        for index, mine in enumerate(layers):
            of_layer = choices[index]
            if mine is None or of_layer is None:
                continue
            numbers = self._find_numbers(mine, steps, index)
            if optimal:
                numbers[Policy.BELADY] = optimal[index]
            none = np.zeros(len(mine.step), dtype=np.int64)
            cell = cell_of_step[mine.step]
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
            expected = np.bincount(
                cell_of_step,
                weights=self._expect_random(of_layer, steps, index),
                minlength=num_cells,
            )
            for counts, mask in self._choose_counts(parts):
                shape = (-1, len(PHASES))
                counts.hits[index] += own.reshape(*shape, *own.shape[1:])[mask].sum(axis=0)
                counts.requests[index] += number.reshape(shape)[mask].sum(axis=0)
                counts.random_requests[index] += expected.reshape(shape)[mask].sum(axis=0)
        self._add_sums(parts, hits, requests)
        tokens, taken = (
            np.bincount(cell, minlength=num_cells).reshape(-1, len(PHASES))
            for cell in (cell_of_step[steps.of_token], cell_of_step)
        )
        for counts, mask in self._choose_counts(parts):
            counts.tokens[:] += tokens[mask].sum(axis=0)
            counts.steps[:] += taken[mask].sum(axis=0)

    def _choose_counts(self, parts: _Parts) -> Iterator[tuple[CacheCounts, NDArray[np.bool_]]]:
        """Yield the counts of the whole and of each group, with the parts that belong to them."""
        yield self.counts, np.ones(len(parts.prompt), dtype=bool)
        if parts.group is not None:
            for group in np.unique(parts.group).tolist():
                if group not in self.groups:
                    self.groups[group] = CacheCounts.empty(self._shape)
                yield self.groups[group], parts.group == group

    def _add_sums(
        self, parts: _Parts, hits: NDArray[np.int64], requests: NDArray[np.int64]
    ) -> None:
        """Add the sums over prompts.

        Args:
            hits: # (num_parts * num_phases, num_policies, num_budgets)
            requests: # (num_parts * num_phases,)
        """
        x = hits.reshape(-1, len(PHASES), *hits.shape[1:]).astype(np.float64)
        n = requests.reshape(-1, len(PHASES)).astype(np.float64)
        for counts, mask in self._choose_counts(parts):
            # Parts of one prompt stand together, and are one value of the sample.
            starts = np.flatnonzero(np.diff(parts.prompt[mask], prepend=-1))
            of_prompt = np.moveaxis(np.add.reduceat(x[mask], starts), 0, -1)
            number = np.add.reduceat(n[mask], starts).T[:, None, None]
            counts.sums[:] += sum_prompts(of_prompt, np.broadcast_to(number, of_prompt.shape))

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

    def _expect_random(
        self, choices: LayerChoices, steps: Steps, layer: int
    ) -> NDArray[np.float64]:
        """Return the distinct experts that a random router is expected to need in each step.

        `E (1 - prod(1 - s / E'))` over tokens that choose s of E' ids, of which E have weights.
        """
        size = (choices.experts != NO_EXPERT).sum(axis=1)
        left = 1 - np.minimum(size / self._shape.num_ids[layer], 1)
        with np.errstate(divide="ignore"):
            log = np.bincount(
                steps.of_token[choices.token], weights=np.log(left), minlength=len(steps)
            )
        expected: NDArray[np.float64] = self._shape.num_experts[layer] * -np.expm1(log)
        return expected


@dataclass(frozen=True)
class _Parts:
    """The parts of prompts that are of one group.

    Attributes:
        of_step: Index of each step's part. # (num_steps,)
        prompt: Ascending. # (num_parts,)
        group: None without groups. # (num_parts,)
    """

    of_step: NDArray[np.int64]
    prompt: NDArray[np.int64]
    group: NDArray[np.int64] | None


def _divide_steps(steps: Steps, group: NDArray[np.int64] | None) -> _Parts:
    if group is None:
        prompt, of_step = np.unique(steps.prompt, return_inverse=True)
        return _Parts(of_step, prompt, None)
    first = np.searchsorted(steps.of_token, np.arange(len(steps)))
    num_groups = int(group.max()) + 1
    keys, of_step = np.unique(steps.prompt * num_groups + group[first], return_inverse=True)
    return _Parts(of_step, keys // num_groups, keys % num_groups)


def _number_stacks(window: DecisionWindow) -> NDArray[np.int64]:
    """Return a number for each token's stack; 0 for a token without a decision."""
    stack = np.zeros(len(window.prompt), dtype=np.int64)
    names = sorted({name for name, _ in window.layers})
    for (name, _), choices in window.layers.items():
        stack[choices.token] = names.index(name)
    return stack
