"""Put what was counted into the values of a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.balance.between_prompts.hot import find_hot
from moetool.analysis.balance.capacity.drops import FACTORS, DropCounter
from moetool.analysis.balance.capacity.expert_choice import ExpertChoiceCounter
from moetool.analysis.balance.capacity.result import LayerShare
from moetool.analysis.balance.capacity.shares import (
    divide,
    expect_batch_violation,
    make_layer_shares,
)
from moetool.analysis.balance.evenness import Evenness, measure_evenness
from moetool.analysis.balance.layer_meter import LayerMeter, PartCounter, name_phases
from moetool.analysis.balance.layer_result import Baseline, LayerBalance, PartBalance
from moetool.analysis.balance.losses import LayerLosses
from moetool.analysis.balance.random_router import expect_evenness
from moetool.analysis.balance.result import FIGURES, AcrossLayers, PartBaseline, PartSummary
from moetool.analysis.statistics.decision_sizes import Sizes, make_sizes
from moetool.analysis.statistics.discoveries import find_discoveries
from moetool.trace.reading.counts import LayerCounts

# Figures of a random router that chooses an unknown number of experts.
_UNKNOWN = Evenness(None, None, None, None, None, None, None)
_PARTS: tuple[Literal["group", "phase"], ...] = ("group", "phase")


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
    prompt_cv = None if variance is None else float(np.sqrt(len(load) * variance.sum()))
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
        hot=find_hot(spread, above=above) if load.any() else (),
        max_violation_batch=divide(drops.sum_of_violations, drops.num_violations),
        prompt_cv=prompt_cv,
        uneven_p_value=spread.find_evenness_p_value() if load.any() else None,
        is_uneven=None,
        num_prompts=num_prompts,
        prompts_choosing=_to_numbers(spread.num_choosing),
        unused_per_prompt=None
        if not num_prompts
        else meter.num_experts - float(spread.num_choosing.sum()) / num_prompts,
        dropped=() if meter.shape.is_chosen_by_experts else make_layer_shares(drops),
        expert_choice=()
        if choice is None
        else tuple(
            LayerShare(
                factor,
                divide(float(choice.num_left[index]), choice.num_tokens),
                divide(float(choice.expected_left[index]), choice.num_tokens),
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
            max_violation_batch=expect_batch_violation(drops),
            unused_per_prompt=divide(meter.expected_unused, num_prompts),
            aux_loss=losses.switch_baseline,
            mean_squared=losses.mean_squared_baseline,
        ),
    )


def make_layer_of_counts(
    counts: LayerCounts, *, losses: LayerLosses, drops: DropCounter | None
) -> LayerBalance:
    """Return the balance of a layer of which only counts are known.

    Args:
        counts: Of all batches.
        losses: Of the layer.
        drops: Of its batches; None if they are unknown.
    """
    load = counts.assignments.sum(axis=0)
    sizes = find_sizes(counts)
    expected = _UNKNOWN if sizes is None else expect_evenness(counts.num_experts, sizes)
    return LayerBalance(
        **_list_figures(measure_evenness(load)),
        stack=counts.stack,
        layer=counts.layer,
        num_experts=counts.num_experts,
        top_k=losses.top_k,
        num_tokens=losses.num_decisions,
        load=_to_numbers(load),
        dead=_find_dead(load),
        hot=(),
        max_violation_batch=None
        if drops is None
        else divide(drops.sum_of_violations, drops.num_violations),
        prompt_cv=None,
        uneven_p_value=None,
        is_uneven=None,
        num_prompts=None,
        prompts_choosing=None,
        unused_per_prompt=None,
        dropped=() if drops is None else make_layer_shares(drops),
        expert_choice=(),
        aux_loss=None,
        mean_squared=losses.mean_squared,
        z_loss=None,
        groups=(),
        phases=(),
        baseline=Baseline(
            **_list_figures(expected),
            load=float(load.mean()),
            max_violation_batch=None if drops is None else expect_batch_violation(drops),
            mean_squared=losses.mean_squared_baseline,
        ),
    )


def find_sizes(counts: LayerCounts) -> Sizes | None:
    """Return the sizes of decisions that are known to choose top-k experts; None without top-k."""
    if not counts.knows_top_k:
        return None
    return make_sizes({counts.top_k: int(counts.assignments.sum()) // counts.top_k})


def judge_layers(layers: Sequence[LayerBalance]) -> tuple[LayerBalance, ...]:
    """Return the layers with the decision on which of them are surely uneven.

    The p-values of all layers are one family: a random router of many layers has a few small ones.
    """
    p_values = [layer.uneven_p_value for layer in layers]
    found = find_discoveries(np.array([np.nan if p is None else p for p in p_values]))
    return tuple(
        layer
        if p is None or layer.cv is None or layer.baseline.cv is None
        else replace(layer, is_uneven=bool(is_found) and layer.cv > layer.baseline.cv)
        for layer, p, is_found in zip(layers, p_values, found, strict=True)
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
    """Return every group, then every phase, over the layers in which an expert ran."""
    layers = [layer for layer in layers if layer.max_violation is not None]
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
                    max_violation=_average([each.max_violation for each in mine]),
                    num_dead=sum(len(each.dead) for each in mine),
                    baseline=PartBaseline(
                        cv=_average([each.cv for each in expected]),
                        max_violation=_average([each.max_violation for each in expected]),
                        num_dead=sum(each.num_dead or 0.0 for each in expected),
                    ),
                )
            )
    return tuple(summaries)


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


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _list_figures(evenness: Evenness) -> dict[str, Any]:
    return {item.name: getattr(evenness, item.name) for item in fields(Evenness)}


def _find_dead(load: NDArray[np.int64]) -> tuple[int, ...]:
    return _to_numbers(np.flatnonzero(load == 0))


def _to_numbers(values: NDArray[Any]) -> tuple[int, ...]:
    return tuple(values.tolist())
