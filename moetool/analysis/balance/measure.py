"""Measure how evenly the experts of each layer share the work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.balance.assembly import (
    find_sizes,
    judge_layers,
    make_layer,
    make_layer_of_counts,
    summarize_layers,
    summarize_parts,
)
from moetool.analysis.balance.capacity.drops import DropCounter
from moetool.analysis.balance.capacity.shares import (
    make_capacity,
    make_expert_choice,
    mean_batch,
)
from moetool.analysis.balance.layer_meter import LayerMeter
from moetool.analysis.balance.layer_result import LayerBalance
from moetool.analysis.balance.losses import LayerLosses, summarize_losses
from moetool.analysis.balance.probabilities import ProbabilityReading, read_probabilities
from moetool.analysis.balance.random_router import expect_largest_violation, expect_squared_cv
from moetool.analysis.balance.result import Balance, LargestBaseline
from moetool.analysis.statistics.decision_sizes import Sizes, make_sizes
from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.facts import TraceFacts
from moetool.trace.reading.counts import ExpertCounts
from moetool.trace.reading.probabilities import ProbabilitySource
from moetool.trace.windows.reader import DecisionReader
from moetool.wording import number_of

Place = tuple[str, int]

# Columns that a reader needs for all figures.
COLUMNS = ("weight", "phase")
# Values of a result's groups, of 250 bytes each while JSON is written: half a gibibyte. Every group
# of a layer has its loads, and as many other values.
_MOST_VALUES = 2**21
_OTHER_VALUES = 60


def measure_balance(
    reader: DecisionReader,
    *,
    by: str = "domain",
    tokens_per_batch: int | None = None,
    probabilities: ProbabilitySource | None = None,
    why_no_probabilities: str = "",
) -> Balance:
    """Return how evenly the experts of each layer share the work.

    Args:
        reader: With `COLUMNS`, grouping by the column `by`.
        by: As the result names it.
        tokens_per_batch: Tokens of a batch, consecutive in the order of the trace and of whatever
            prompts. By default each prompt is a batch: a trace doesn't record which ran together.
        probabilities: Those of the trace; None if they were not recorded.
        why_no_probabilities: Why there are none, if the reason is another one.

    Raises:
        InputError: A row is not one of a trace, or there are far too many groups.
    """
    meters: dict[Place, LayerMeter] = {
        (shape.stack, shape.layer): LayerMeter(shape, tokens_per_batch=tokens_per_batch)
        for shape in reader.layers
    }
    num_experts = sum(meter.num_experts for meter in meters.values())
    num_values = num_experts + _OTHER_VALUES * len(meters)
    for window in reader:
        if len(reader.groups) * num_values > _MOST_VALUES:
            raise InputError(
                f"{len(reader.groups):,} groups of '{printable(by, max_length=60)}' and "
                f"{number_of(len(meters), 'layer')} of {num_experts:,} experts together are too many "
                "to count.",
                hint="Group by a column with fewer values, or analyse fewer layers at a time.",
            )
        for place, choices in window.layers.items():
            meters[place].add(window, choices)
    for meter in meters.values():
        meter.finish()
    seen = {place: meter for place, meter in meters.items() if meter.groups.num_decisions.any()}
    reading = read_probabilities(
        probabilities, seen, tokens_per_batch=tokens_per_batch, why_none=why_no_probabilities
    )
    losses = {place: _make_losses(meter, reading, place) for place, meter in seen.items()}
    layers = judge_layers(
        [
            make_layer(
                meter,
                groups=reader.groups,
                losses=losses[place],
                choice=reading.choices.get(place),
            )
            for place, meter in seen.items()
        ]
    )
    drops = [meter.drops for meter in seen.values() if not meter.shape.is_chosen_by_experts]
    mean = tokens_per_batch or mean_batch(drops)
    return Balance(
        trace=reader.facts,
        by=by,
        layers=layers,
        across_layers=summarize_layers(layers),
        parts=summarize_parts(layers),
        losses=summarize_losses(list(losses.values())),
        batches="prompt" if tokens_per_batch is None else "tokens",
        capacity=make_capacity(drops, tokens_per_batch=tokens_per_batch) if drops else (),
        expert_choice=make_expert_choice(list(reading.choices.values()), tokens_per_batch=mean),
        baseline=_expect_largest(
            [
                (meter.num_experts, make_sizes(meter.groups.num_decisions.sum(axis=0)))
                for meter in seen.values()
            ]
        ),
        notes=(
            *reader.notes,
            *_explain_expert_choice(seen),
            *_explain_batches(tokens_per_batch, mean),
            *_explain_unknown(layers, seen),
            *reading.notes,
        ),
    )


def measure_balance_of_counts(
    counts: ExpertCounts,
    *,
    facts: TraceFacts,
    steps: Mapping[Place, NDArray[np.int64]] | None = None,
) -> Balance:
    """Return the part of a balance that needs only how often each expert was chosen.

    Args:
        counts: Of all tokens; their groups are taken together.
        facts: About the table that holds them.
        steps: By stack and layer, the load of each expert in every step, each of which is a batch:
            (num_steps, num_experts). None if steps are unknown.
    """
    losses = [
        LayerLosses(
            load=layer.assignments.sum(axis=0),
            num_decisions=int(layer.decisions.sum()) if layer.knows_top_k else None,
            top_k=layer.top_k if layer.knows_top_k else None,
            mean_squared_baseline=_expect_mean_squared(layer.num_experts, find_sizes(layer)),
            mean_probability=None,
            z_loss=None,
        )
        for layer in counts.layers
    ]
    drops: dict[Place, DropCounter] = {}
    for layer in counts.layers:
        place = (layer.stack, layer.layer)
        if steps is not None and place in steps:
            drops[place] = DropCounter(
                num_experts=layer.num_experts, top_k=layer.top_k if layer.knows_top_k else None
            )
            drops[place].add_loads(steps[place])
    layers = tuple(
        make_layer_of_counts(layer, losses=each, drops=drops.get((layer.stack, layer.layer)))
        for layer, each in zip(counts.layers, losses, strict=True)
    )
    unknown = ["groups", "phases", "prompts", *([] if drops else ["batches", "capacity"])]
    return Balance(
        trace=facts,
        by=None,
        layers=layers,
        across_layers=summarize_layers(layers),
        parts=(),
        losses=summarize_losses(losses),
        batches="step" if drops else None,
        capacity=make_capacity(list(drops.values()), tokens_per_batch=None) if drops else (),
        expert_choice=(),
        baseline=_expect_largest(
            [(layer.num_experts, find_sizes(layer)) for layer in counts.layers]
        ),
        notes=(
            *counts.notes,
            f"A load table has counts but no tokens: {', '.join(unknown)} and losses of "
            "probabilities are unknown.",
            *(
                ["Each step is taken as a batch; which places in it are dropped is unknown."]
                if drops
                else []
            ),
        ),
    )


def _make_losses(meter: LayerMeter, reading: ProbabilityReading, place: Place) -> LayerLosses:
    sizes = make_sizes(meter.groups.num_decisions.sum(axis=0))
    probabilities = reading.meters.get(place)
    mean = None if probabilities is None else probabilities.find_mean()
    if mean is not None:
        # Identity experts may have no probability.
        mean = np.pad(mean, (0, meter.num_experts - len(mean)))
    # Losses even out what tokens choose, as many experts each.
    chooses = not meter.shape.is_chosen_by_experts
    return LayerLosses(
        load=meter.groups.assignments.sum(axis=0),
        num_decisions=int(meter.groups.num_decisions.sum()) if chooses else None,
        top_k=meter.shape.top_k if chooses else None,
        mean_squared_baseline=_expect_mean_squared(meter.num_experts, sizes),
        mean_probability=mean,
        z_loss=None if probabilities is None else probabilities.find_z_loss(),
    )


def _expect_mean_squared(num_experts: int, sizes: Sizes | None) -> float | None:
    squared_cv = None if sizes is None else expect_squared_cv(num_experts, sizes)
    return None if squared_cv is None else squared_cv / num_experts**2


def _expect_largest(layers: Sequence[tuple[int, Sizes | None]]) -> LargestBaseline:
    known = [(num_experts, sizes) for num_experts, sizes in layers if sizes is not None]
    return LargestBaseline(expect_largest_violation(known) if len(known) == len(layers) else None)


def _explain_batches(tokens_per_batch: int | None, mean: float | None) -> Iterator[str]:
    if tokens_per_batch is None and mean is not None:
        yield (
            f"Each prompt is taken as a batch, of {mean:,.0f} tokens on average: a trace doesn't "
            "record which prompts ran together. --tokens-per-batch sets a size."
        )


def _explain_expert_choice(meters: Mapping[Place, LayerMeter]) -> Iterator[str]:
    chosen = sum(meter.shape.is_chosen_by_experts for meter in meters.values())
    if chosen:
        where = "" if chosen == len(meters) else f" of {number_of(chosen, 'layer')}"
        yield (
            f"Experts choose tokens: the load{where} is as even as they make it, and capacity and "
            "the losses that even out choices of tokens are left out."
        )


def _explain_unknown(
    layers: Sequence[LayerBalance], meters: Mapping[Place, LayerMeter]
) -> Iterator[str]:
    num_idle = sum(layer.cv is None for layer in layers)
    if num_idle:
        yield f"{number_of(num_idle, 'layer')} ran no expert: no figure of evenness is known there."
    if any(layer.prompt_cv is None and layer.cv is not None for layer in layers):
        yield (
            "There are fewer than two prompts: prompt_cv and hot experts, which need the spread "
            "between prompts, are unknown."
        )
    if any(layer.is_uneven is None and layer.cv is not None for layer in layers):
        yield "Whether a load is surely uneven is unknown with fewer than three prompts."
    if not all(meter.drops.has_weights for meter in meters.values()):
        yield (
            "Which assignments are dropped in order of probability is unknown, because the trace "
            "has no weights; how many is the same in any order."
        )
