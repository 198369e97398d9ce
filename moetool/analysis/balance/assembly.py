"""Put what was counted into the values of a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.balance.capacity.drops import (
    FACTORS,
    NUM_DECILES,
    POLICIES,
    DropCounter,
    expect_dropped,
    find_decile,
)
from moetool.analysis.balance.capacity.expert_choice import ExpertChoiceCounter
from moetool.analysis.balance.evenness import Evenness, measure_evenness
from moetool.analysis.balance.layer_meter import LayerMeter, PartCounter, name_phases
from moetool.analysis.balance.losses import LayerLosses
from moetool.analysis.balance.random_router import Sizes, expect_evenness, make_sizes
from moetool.analysis.balance.result import (
    FIGURES,
    AcrossLayers,
    Baseline,
    CapacityShare,
    DroppedBaseline,
    ExpertChoice,
    LayerBalance,
    LayerShare,
    PartBalance,
    PartSummary,
)
from moetool.trace.reading.counts import LayerCounts

# Distinct sizes of batches for which an expectation is computed; more are represented by as many.
_MOST_SIZES_OF_LOADS = 48
_MOST_SIZES_OF_DROPS = 512
_PARTS: tuple[Literal["group", "phase"], ...] = ("group", "phase")


@dataclass(frozen=True)
class ExpectedDrops:
    """The assignments that a uniform random router would drop of some batches.

    Attributes:
        num_assignments: # (10,), by position decile, like the following.
        by_position: Dropped if tokens come in the order of the batch. # (num_factors, 10)
        by_probability: Dropped if they come in any other order. # (num_factors, 10)
    """

    num_assignments: NDArray[np.float64]
    by_position: NDArray[np.float64]
    by_probability: NDArray[np.float64]


def make_layer(
    meter: LayerMeter,
    *,
    groups: Sequence[str],
    losses: LayerLosses,
    choice: ExpertChoiceCounter | None,
) -> LayerBalance:
    """Return the balance of one layer.

    Args:
        meter: After its last batch.
        groups: Names of the groups.
        losses: Of the layer.
        choice: Of the layer; None without probabilities.
    """
    load = meter.groups.assignments.sum(axis=0)
    sizes = make_sizes(meter.groups.num_decisions.sum(axis=0))
    evenness, expected = measure_evenness(load), expect_evenness(meter.num_experts, sizes)
    spread, drops = meter.spread, meter.drops
    num_prompts = spread.num_prompts
    variance = spread.find_share_variance() if load.any() else None
    above = 1 + (expected.max_violation or 0.0)
    mean_load = float(load.mean())
    return LayerBalance(
        **_list_figures(evenness),
        stack=meter.shape.stack,
        layer=meter.shape.layer,
        num_experts=meter.num_experts,
        top_k=meter.shape.top_k,
        num_tokens=int(meter.groups.num_decisions.sum()),
        load=_to_numbers(load),
        dead=_find_dead(load),
        hot=spread.find_hot(above=above) if load.any() else (),
        max_violation_batch=_divide(drops.sum_of_violations, drops.num_violations),
        prompt_cv=None if variance is None else float(np.sqrt(len(load) * variance.sum())),
        num_prompts=num_prompts,
        prompts_choosing=_to_numbers(spread.num_choosing),
        unused_per_prompt=None
        if not num_prompts
        else meter.num_experts - float(spread.num_choosing.sum()) / num_prompts,
        dropped=_make_dropped(drops, meter),
        expert_choice=()
        if choice is None
        else tuple(
            LayerShare(
                factor,
                _divide(float(choice.num_left[index]), choice.num_tokens),
                _divide(float(choice.expected_left[index]), choice.num_tokens),
            )
            for index, factor in enumerate(FACTORS)
        ),
        aux_loss=losses.switch,
        mean_squared=losses.mean_squared,
        z_loss=losses.z_loss,
        groups=_make_parts(meter.groups, list(enumerate(groups)) if len(groups) > 1 else []),
        phases=_make_phases(meter),
        baseline=Baseline(
            **_list_figures(expected),
            load=mean_load,
            max_violation_batch=_expect_batch_violation(drops, meter),
            unused_per_prompt=_divide(meter.expected_unused, num_prompts),
        ),
    )


def make_layer_of_counts(counts: LayerCounts, *, losses: LayerLosses) -> LayerBalance:
    """Return the balance of a layer of which only counts are known."""
    load = counts.assignments.sum(axis=0)
    evenness = measure_evenness(load)
    expected = expect_evenness(counts.num_experts, find_sizes(counts))
    return LayerBalance(
        **_list_figures(evenness),
        stack=counts.stack,
        layer=counts.layer,
        num_experts=counts.num_experts,
        top_k=counts.top_k,
        num_tokens=int(counts.decisions.sum()),
        load=_to_numbers(load),
        dead=_find_dead(load),
        hot=(),
        max_violation_batch=None,
        prompt_cv=None,
        num_prompts=None,
        prompts_choosing=None,
        unused_per_prompt=None,
        dropped=(),
        expert_choice=(),
        aux_loss=None,
        mean_squared=losses.mean_squared,
        z_loss=None,
        groups=(),
        phases=(),
        baseline=Baseline(**_list_figures(expected), load=float(load.mean())),
    )


def find_sizes(counts: LayerCounts) -> Sizes:
    """Return the sizes of decisions that are known to choose top-k experts."""
    return make_sizes({counts.top_k: int(counts.assignments.sum()) // counts.top_k})


def make_capacity(
    meters: Sequence[LayerMeter], *, tokens_per_batch: int | None
) -> tuple[CapacityShare, ...]:
    """Return the shares that all layers together would drop."""
    total = np.sum([meter.drops.num_assignments for meter in meters], axis=0)  # (10,)
    dropped = np.sum([meter.drops.num_dropped for meter in meters], axis=0)
    expected = [_expect_drops(meter.drops, meter) for meter in meters]
    expected_total = np.sum([each.num_assignments for each in expected], axis=0)
    shares = []
    for index, policy in enumerate(POLICIES):
        # How many are dropped is the same in any order; which ones takes weights.
        is_known = policy == "position" or all(meter.drops.has_weights for meter in meters)
        by_policy = np.sum(
            [
                each.by_position if policy == "position" else each.by_probability
                for each in expected
            ],
            axis=0,
        )
        for number, factor in enumerate(FACTORS):
            shares.append(
                CapacityShare(
                    factor=factor,
                    policy=policy,
                    tokens_per_batch=tokens_per_batch or mean_batch(meters),
                    dropped_share=_divide(float(dropped[0, number].sum()), total.sum()),
                    by_position=_divide_all(dropped[index, number], total) if is_known else None,
                    baseline=DroppedBaseline(
                        _divide(float(by_policy[number].sum()), expected_total.sum()),
                        _divide_all(by_policy[number], expected_total),
                    ),
                )
            )
    return tuple(shares)


def make_expert_choice(
    counters: Sequence[ExpertChoiceCounter], *, tokens_per_batch: float | None
) -> tuple[ExpertChoice, ...]:
    """Return the tokens that expert choice leaves without an expert, over all layers."""
    num_tokens = sum(counter.num_tokens for counter in counters)
    return tuple(
        ExpertChoice(
            factor,
            tokens_per_batch,
            _divide(float(sum(counter.num_left[index] for counter in counters)), num_tokens),
            _divide(float(sum(counter.expected_left[index] for counter in counters)), num_tokens),
        )
        for index, factor in enumerate(FACTORS)
        if num_tokens
    )


def summarize_layers(layers: Sequence[LayerBalance]) -> tuple[AcrossLayers, ...]:
    """Return the percentiles of every figure over layers."""
    across = []
    for figure in FIGURES:
        values = [getattr(layer, figure) for layer in layers]
        known = [value for value in values if value is not None]
        if known:
            percentiles = np.percentile(known, [50, 75, 90, 95]).tolist()
            across.append(AcrossLayers(figure, *percentiles))
    return tuple(across)


def summarize_parts(layers: Sequence[LayerBalance]) -> tuple[PartSummary, ...]:
    """Return every group, then every phase, over all layers."""
    summaries = []
    for part in _PARTS:
        found: dict[str, list[PartBalance]] = {}
        for layer in layers:
            for each in layer.groups if part == "group" else layer.phases:
                found.setdefault(each.name, []).append(each)
        for name, mine in found.items():
            expected = [each.baseline for each in mine]
            summaries.append(
                PartSummary(
                    part=part,
                    name=name,
                    num_tokens=max(each.num_tokens for each in mine),
                    cv=_average([each.cv for each in mine]),
                    random_cv=_average([each.cv for each in expected]),
                    max_violation=_average([each.max_violation for each in mine]),
                    random_max_violation=_average([each.max_violation for each in expected]),
                    num_dead=sum(len(each.dead) for each in mine),
                    random_num_dead=sum(each.num_dead for each in expected),
                )
            )
    return tuple(summaries)


def mean_batch(meters: Sequence[LayerMeter]) -> float | None:
    """Return the mean number of tokens of a batch."""
    num_batches = sum(meter.drops.num_batches for meter in meters)
    num_tokens = sum(
        size * number for meter in meters for size, number in meter.drops.sizes.items()
    )
    return _divide(num_tokens, num_batches)


def _make_phases(meter: LayerMeter) -> tuple[PartBalance, ...]:
    phases = [] if meter.phases is None else name_phases(meter.phases)
    if meter.phases is None or len(phases) < 2:
        return ()
    return _make_parts(meter.phases, phases)


def _make_parts(counter: PartCounter, parts: Sequence[tuple[int, str]]) -> tuple[PartBalance, ...]:
    made = []
    num_experts = counter.assignments.shape[1]
    for index, name in parts:
        if index >= len(counter.num_decisions) or not counter.num_decisions[index].any():
            continue
        load = counter.assignments[index]
        expected = expect_evenness(num_experts, make_sizes(counter.num_decisions[index]))
        made.append(
            PartBalance(
                **_list_figures(measure_evenness(load)),
                name=name,
                num_tokens=int(counter.num_decisions[index].sum()),
                load=_to_numbers(load),
                dead=_find_dead(load),
                baseline=Baseline(**_list_figures(expected), load=float(load.mean())),
            )
        )
    return tuple(made)


def _make_dropped(drops: DropCounter, meter: LayerMeter) -> tuple[LayerShare, ...]:
    expected = _expect_drops(drops, meter)
    total, expected_total = drops.num_assignments.sum(), expected.num_assignments.sum()
    return tuple(
        LayerShare(
            factor,
            _divide(float(drops.num_dropped[0, number].sum()), total),
            _divide(float(expected.by_position[number].sum()), expected_total),
        )
        for number, factor in enumerate(FACTORS)
    )


def _expect_drops(drops: DropCounter, meter: LayerMeter) -> ExpectedDrops:
    sizes = _thin(drops.sizes, _MOST_SIZES_OF_DROPS)
    return _expect_drops_of(
        tuple(sorted(sizes.items())), top_k=meter.shape.top_k, num_experts=meter.num_experts
    )


@lru_cache(maxsize=256)
def _expect_drops_of(
    sizes: tuple[tuple[int, int], ...], *, top_k: int, num_experts: int
) -> ExpectedDrops:
    total = np.zeros(NUM_DECILES)
    by_position, by_probability = np.zeros((2, len(FACTORS), NUM_DECILES))
    for size, number in sizes:
        decile = find_decile(np.arange(size), np.full(size, size))
        share = np.bincount(decile, minlength=NUM_DECILES) / size
        total += number * size * top_k * share
        for index, factor in enumerate(FACTORS):
            dropped, by_decile = expect_dropped(factor, size, top_k=top_k, num_experts=num_experts)
            by_position[index] += number * by_decile
            by_probability[index] += number * dropped * share
    return ExpectedDrops(total, by_position, by_probability)


def _expect_batch_violation(drops: DropCounter, meter: LayerMeter) -> float | None:
    """Return the mean violation of a random router over batches of these sizes."""
    sizes = _thin(drops.sizes, _MOST_SIZES_OF_LOADS)
    total = 0.0
    for size, number in sizes.items():
        expected = expect_evenness(meter.num_experts, ((meter.shape.top_k, size),))
        total += number * (expected.max_violation or 0.0)
    return _divide(total, sum(sizes.values()))


def _thin(sizes: Mapping[int, int], most: int) -> dict[int, int]:
    """Return no more than a number of sizes, each for its neighbours; counts keep their sum."""
    if len(sizes) <= most:
        return dict(sizes)
    thinned: dict[int, int] = {}
    for part in np.array_split(np.array(sorted(sizes)), most):
        numbers = np.array([sizes[size] for size in part.tolist()])
        typical = round(float((part * numbers).sum() / numbers.sum()))
        thinned[typical] = thinned.get(typical, 0) + int(numbers.sum())
    return thinned


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _list_figures(evenness: Evenness) -> dict[str, Any]:
    return {item.name: getattr(evenness, item.name) for item in fields(Evenness)}


def _find_dead(load: NDArray[np.int64]) -> tuple[int, ...]:
    return _to_numbers(np.flatnonzero(load == 0))


def _to_numbers(values: NDArray[Any]) -> tuple[int, ...]:
    return tuple(values.tolist())


def _divide(number: float, by: float) -> float | None:
    return float(number / by) if by else None


def _divide_all(numbers: NDArray[Any], by: NDArray[Any]) -> tuple[float | None, ...]:
    return tuple(_divide(one, other) for one, other in zip(numbers, by, strict=True))
