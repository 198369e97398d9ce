"""Put the counts of a simulation into a result."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.caching.budgets import Budget
from moetool.analysis.caching.first_pass import FirstPass
from moetool.analysis.caching.result import (
    GroupResult,
    HitBaseline,
    LayerCaching,
    LayerPolicyResult,
    PhaseSize,
    PolicyBaseline,
    PolicyResult,
    Touched,
    TouchedBaseline,
)
from moetool.analysis.caching.simulation.policies import POLICIES, Policy
from moetool.analysis.caching.simulation.random_router import simulate_random_router
from moetool.analysis.caching.simulation.run import CacheCounts, CacheShape
from moetool.analysis.caching.simulation.steps import FirstSteps
from moetool.analysis.caching.touched import BATCH_SIZES, DistinctCounter, TouchedCounts
from moetool.analysis.statistics.ratios import find_ratios
from moetool.trace.decisions import PHASES

ONE_TEXT, SEVERAL_TEXTS = "one text", "several texts"


@dataclass(frozen=True)
class Simulated:
    """Everything that was counted.

    Attributes:
        shape: Layers and capacities.
        budgets: As they were asked for.
        expert_bytes: Of each layer; None if unknown.
        counts: Of each phase, the counts of the simulation that is reported for it.
        groups: Of each phase, those of each group, by index; empty without groups.
        first_steps: Of each phase, the first steps of that simulation.
        touched: Distinct experts by batch size.
        first: The load of the trace.
        policies: Those that were simulated.
        num_mixed: Tokens of another group than the first token of their step.
    """

    shape: CacheShape
    budgets: Sequence[Budget]
    expert_bytes: Sequence[int] | None
    counts: Sequence[CacheCounts]
    groups: Sequence[Mapping[int, CacheCounts]]
    first_steps: Sequence[FirstSteps]
    touched: TouchedCounts
    first: FirstPass
    policies: Collection[Policy] = POLICIES
    num_mixed: int = 0

    @property
    def is_fitted(self) -> bool:
        """Whether each half has prompts, so that static sets are scored on others."""
        return len(set(self.first.halves.tolist())) > 1

    def find_random_rates(self) -> NDArray[np.float64]:
        """Return the hit rates of a uniform random router.

        Returns:
            # (num_layers, num_phases, num_policies, num_budgets); NaN for phases without tokens
        """
        num_layers, num_budgets = self.shape.capacities.shape
        rates = np.full((num_layers, len(PHASES), len(POLICIES), num_budgets), np.nan)
        for phase, steps in enumerate(self.first_steps):
            known: dict[tuple[Any, ...], NDArray[np.float64]] = {}
            for layer, capacities in enumerate(self.shape.capacities):
                order = np.argsort(capacities, kind="stable")
                ascending = tuple(int(number) for number in capacities[order])
                shape = (self.shape.num_experts[layer], self.shape.num_ids[layer])
                sizes = steps.sizes[layer]
                # Layers of one shape and decisions of the same sizes have the same baseline.
                key = (shape, ascending, sizes.tobytes())
                if key not in known:
                    known[key] = simulate_random_router(
                        steps,
                        sizes,
                        num_experts=shape[0],
                        num_ids=shape[1],
                        capacities=ascending,
                    )
                rates[layer, phase][:, order] = known[key][phase]
        return rates


def list_policies(result: Simulated, random: NDArray[np.float64]) -> tuple[PolicyResult, ...]:
    """Return the worth of each policy, budget and phase over all layers."""
    listed = []
    for phase, counts in enumerate(result.counts):
        for policy, place, worth in _list_worths(result, counts, random, phase=phase):
            capacities = result.shape.capacities[:, place]
            gpu = _weigh(capacities, result.expert_bytes)
            listed.append(
                PolicyResult(
                    policy=policy.value,
                    budget=result.budgets[place].text,
                    phase=PHASES[phase],
                    experts_per_layer=float(capacities.mean()),
                    gpu_bytes=None if gpu is None else int(gpu),
                    **worth,
                )
            )
    return tuple(listed)


def list_groups(
    result: Simulated, random: NDArray[np.float64], *, names: Sequence[str]
) -> tuple[GroupResult, ...]:
    """Return the worth of each policy, budget and phase for the steps of each group."""
    return tuple(
        GroupResult(
            group=names[group],
            policy=policy.value,
            budget=result.budgets[place].text,
            phase=PHASES[phase],
            num_tokens=int(counts.tokens[phase]),
            **worth,
        )
        for phase, groups in enumerate(result.groups)
        for group, counts in sorted(groups.items())
        for policy, place, worth in _list_worths(result, counts, random, phase=phase)
    )


def _list_worths(
    result: Simulated, counts: CacheCounts, random: NDArray[np.float64], *, phase: int
) -> Iterator[tuple[Policy, int, dict[str, Any]]]:
    """Yield each policy and index of a budget with the fields of its worth in a phase."""
    num_tokens = int(counts.tokens[phase])
    requests, weights = counts.requests[:, phase], counts.random_requests[:, phase]
    for index, policy in enumerate(POLICIES):
        if policy not in result.policies or not num_tokens:
            continue
        is_known = policy is not Policy.STATIC or result.is_fitted
        for place in range(len(result.budgets)):
            (ratio,) = find_ratios(counts.sums[phase, index, place][None])
            # A layer without requests has no rate, and no weight either.
            rate = np.where(weights > 0, random[:, phase, index, place], 0.0)
            moved = _weigh(requests - counts.hits[:, phase, index, place], result.expert_bytes)
            random_moved = _weigh(weights * (1 - rate), result.expert_bytes)
            yield (
                policy,
                place,
                {
                    "hit_rate": ratio.value if is_known else None,
                    "hit_rate_low": ratio.low if is_known else None,
                    "hit_rate_high": ratio.high if is_known else None,
                    "bytes_per_token": None
                    if moved is None or not is_known
                    else moved / num_tokens,
                    "baseline": PolicyBaseline(
                        hit_rate=float((rate * weights).sum() / weights.sum())
                        if weights.sum()
                        else None,
                        bytes_per_token=None if random_moved is None else random_moved / num_tokens,
                    ),
                },
            )


def list_phases(result: Simulated) -> tuple[PhaseSize, ...]:
    """Return the sizes of the phases that have tokens."""
    listed = []
    for phase, counts in enumerate(result.counts):
        num_tokens = int(counts.tokens[phase])
        if num_tokens:
            moved = _weigh(counts.requests[:, phase], result.expert_bytes)
            listed.append(
                PhaseSize(
                    phase=PHASES[phase],
                    num_tokens=num_tokens,
                    num_steps=int(counts.steps[phase]),
                    requests_per_token=float(counts.requests[:, phase].sum() / num_tokens),
                    uncached_bytes_per_token=None if moved is None else moved / num_tokens,
                )
            )
    return tuple(listed)


def list_layers(result: Simulated, random: NDArray[np.float64]) -> tuple[LayerCaching, ...]:
    """Return the worth of each policy, budget and phase in each layer."""
    return tuple(
        LayerCaching(
            stack=stack,
            layer=number,
            num_experts=result.shape.num_ids[layer],
            top_k=result.shape.top_k[layer],
            num_tokens=int(result.touched.of_one[layer].number[0]),
            expert_bytes=None if result.expert_bytes is None else result.expert_bytes[layer],
            policies=tuple(_list_layer_policies(result, random, layer)),
            touched=_list_touched(result, [layer]),
        )
        for layer, (stack, number) in enumerate(result.shape.places)
    )


def list_touched(result: Simulated) -> tuple[Touched, ...]:
    """Return the distinct experts of each batch size, the mean over layers."""
    return _list_touched(result, range(len(result.shape.places)))


def _list_layer_policies(
    result: Simulated, random: NDArray[np.float64], layer: int
) -> list[LayerPolicyResult]:
    listed = []
    for phase, counts in enumerate(result.counts):
        requests = int(counts.requests[layer, phase])
        if not requests:
            continue
        for index, policy in enumerate(POLICIES):
            if policy not in result.policies:
                continue
            is_known = policy is not Policy.STATIC or result.is_fitted
            for place, budget in enumerate(result.budgets):
                hits = int(counts.hits[layer, phase, index, place])
                listed.append(
                    LayerPolicyResult(
                        policy=policy.value,
                        budget=budget.text,
                        phase=PHASES[phase],
                        num_kept=int(result.shape.capacities[layer, place]),
                        hit_rate=hits / requests if is_known else None,
                        baseline=HitBaseline(_divide(random[layer, phase, index, place], 1)),
                    )
                )
    return listed


def _list_touched(result: Simulated, layers: Sequence[int]) -> tuple[Touched, ...]:
    load = result.first.load.sum(axis=(0, 1))  # (num_layers, num_ids)
    listed = []
    for name, counters in (
        (ONE_TEXT, result.touched.of_one),
        (SEVERAL_TEXTS, result.touched.of_several),
    ):
        for index, size in enumerate(BATCH_SIZES):
            known = [layer for layer in layers if counters[layer].number[index]]
            if not known:
                continue
            listed.append(
                Touched(
                    batch_size=size,
                    of=name,
                    num_batches=int(sum(counters[layer].number[index] for layer in known)),
                    fewest_batches=int(min(counters[layer].number[index] for layer in known)),
                    experts=_mean([_mean_of(counters[layer], index) for layer in known]),
                    by_load=_mean(
                        [
                            _expect(load[layer] / result.touched.of_one[layer].number[0], size)
                            for layer in known
                        ]
                    ),
                    baseline=TouchedBaseline(
                        _mean(
                            [
                                counters[layer].random_total[index] / counters[layer].number[index]
                                for layer in known
                            ]
                        )
                    ),
                )
            )
    return tuple(listed)


def _mean_of(counter: DistinctCounter, index: int) -> float:
    return float(counter.total[index] / counter.number[index])


def _expect(shares: NDArray[np.float64], num_tokens: int) -> float:
    """Return the distinct experts that independent tokens need, given each expert's share."""
    return float((1 - (1 - shares) ** num_tokens).sum())


def _divide(number: float, by: float) -> float | None:
    """Return a ratio; None where the simulated router has no step of a phase, or its denominator is 0."""
    return float(number / by) if by and np.isfinite(number) else None


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


def _weigh(numbers: NDArray[np.generic], expert_bytes: Sequence[int] | None) -> float | None:
    """Return the bytes of a number of experts of each layer; None if their size is unknown."""
    return None if expert_bytes is None else float(numbers @ np.array(expert_bytes))
