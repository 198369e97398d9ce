"""Fit placements of experts on half of a trace's prompts, and score them on the other half."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.placement.advice import choose_settings
from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.methods.coactivation import BALANCE_WEIGHT
from moetool.analysis.placement.methods.layer_statistics import LayerStatistics, StatisticsCounter
from moetool.analysis.placement.remarks import list_notes
from moetool.analysis.placement.result import GroupShare, Placement, Split, name_layer
from moetool.analysis.placement.summary import SentBytes, describe_layers, describe_methods
from moetool.analysis.placement.trial import Trial, place_by_every_method
from moetool.analysis.statistics.halves import split_prompts
from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.reader import TraceSource
from moetool.trace.windows.prompt_groups import read_prompt_groups
from moetool.trace.windows.reader import DecisionReader
from moetool.wording import format_bytes, number_of

Place = tuple[str, int]

# Pairs of experts of all layers: half a hundred layers of a thousand experts.
_MOST_CELLS = 2**26
# Joint choices and products of loads, of both halves and of all prompts.
_CELL_BYTES = 6 * 8


@dataclass(frozen=True)
class PlacementOptions:
    """Choices of the user, next to the cluster.

    Attributes:
        by: Column whose values are spread over both halves.
        layers: Layer numbers to read; None for all.
        num_experts: Routed experts per layer, for a trace without metadata.
        top_k: Assignments per decision, for a trace without metadata.
        is_checked: Refuse rows that no trace has.
        tokens_per_batch: Consecutive tokens of a batch.
        seed: Decides which prompts are held out.
        balance_weight: Weight of balance against traffic, in placement by co-activation.
        sent: Size of a token that is sent to a GPU.
        advises_vllm: Also find settings of vLLM.
    """

    by: str = "domain"
    layers: Collection[int] | None = None
    num_experts: int | None = None
    top_k: int | None = None
    is_checked: bool = True
    tokens_per_batch: int = 512
    seed: int = 0
    balance_weight: float = BALANCE_WEIGHT
    sent: SentBytes = field(default_factory=lambda: SentBytes(None, None))
    advises_vllm: bool = False


@dataclass(frozen=True)
class _Halves:
    """The statistics of each layer in a half of the prompts and in all, and of each group.

    Attributes:
        fitted: Of the prompts that placements are fitted on to be scored on the others.
        total: Of all prompts.
    """

    fitted: Mapping[Place, LayerStatistics]
    total: Mapping[Place, LayerStatistics]
    groups: tuple[GroupShare, ...]


def measure_placement(
    source: TraceSource, cluster: Cluster, options: PlacementOptions = PlacementOptions()
) -> Placement:
    """Return how contiguous placement, EPLB's, and placement by co-activation compare.

    Scores are those of placements that were fitted on half of the prompts,
    on the other half; the placements that are returned are fitted on all prompts. A single prompt
    is both fitted and scored on.

    Raises:
        InputError: The trace fails a check, or has too many pairs of experts.
        UsageError: A layer's experts can't be shared out evenly, or there is no such column.
    """
    (placement,) = measure_placements(source, [cluster], options)
    return placement


def measure_placements(
    source: TraceSource,
    clusters: Sequence[Cluster],
    options: PlacementOptions = PlacementOptions(),
) -> list[Placement]:
    """Return the placements on several clusters, each as `measure_placement` does.

    The trace is read twice, however many they are.

    Raises:
        InputError: The trace fails a check, or has too many pairs of experts.
        UsageError: A layer's experts can't be shared out evenly, or there is no such column.
    """
    reader = DecisionReader(
        source,
        by=options.by,
        layers=options.layers,
        num_experts=options.num_experts,
        top_k=options.top_k,
        is_checked=options.is_checked,
    )
    for layer in reader.layers:
        for cluster in clusters:
            cluster.check_layer(say_layer(layer.stack, layer.layer), layer.num_experts)
    num_cells = sum(layer.num_experts**2 for layer in reader.layers)
    if num_cells > _MOST_CELLS:
        raise InputError(
            f"Counting all pairs of experts in {number_of(len(reader.layers), 'layer')} of "
            f"'{printable(source.path)}' takes more than {format_bytes(_MOST_CELLS * _CELL_BYTES)} of "
            "memory.",
            hint="Place fewer layers at a time with --layers (layers= in Python).",
        )
    groups = read_prompt_groups(source, reader.prompts, by=options.by)
    held_out = split_prompts(reader.prompts, groups=groups, seed=options.seed)
    halves = _count_halves(reader, held_out, options)
    layers = [layer for layer in reader.layers if _place(layer) in halves.fitted]
    trials = [
        Trial(
            cluster,
            layers,
            halves.fitted,
            num_prompts=len(reader.prompts),
            tokens_per_batch=options.tokens_per_batch,
            balance_weight=options.balance_weight,
            advises_vllm=options.advises_vllm,
        )
        for cluster in clusters
    ]
    _score_held_out(reader, held_out, trials)
    return [_describe(trial, halves, reader, held_out, options) for trial in trials]


def _describe(
    trial: Trial,
    halves: _Halves,
    reader: DecisionReader,
    held_out: NDArray[np.bool_],
    options: PlacementOptions,
) -> Placement:
    cluster, scorers = trial.cluster, trial.scorers
    has_held_out = not held_out.all()
    described = describe_layers(
        trial.layers,
        totals=halves.total,
        placements=trial.placements,
        scorers=scorers,
        cluster=cluster,
        tokens_per_batch=options.tokens_per_batch,
        sent=options.sent,
    )
    final = {
        name_layer(*place): place_by_every_method(
            total, cluster, balance_weight=options.balance_weight
        )
        for place, total in halves.total.items()
    }
    result = Placement(
        trace=reader.facts,
        by=options.by,
        cluster=cluster,
        tokens_per_batch=options.tokens_per_batch,
        split=Split(
            "prompt",
            int((~held_out).sum()),
            int(held_out.sum()),
            options.seed,
            tuple(compress(reader.prompts, held_out.tolist())),
        )
        if has_held_out
        else Split(None, 1, 1, options.seed),
        num_batches=min((scorer.num_batches for scorer in scorers.values()), default=0),
        groups=halves.groups,
        hidden_size=options.sent.hidden_size,
        bytes_per_value=options.sent.bytes_per_value,
        layers=described,
        methods=describe_methods(
            described,
            final,
            scored={name_layer(*place): found for place, found in trial.placements.items()}
            if has_held_out
            else None,
            by_prompt=trial.sum_by_prompt(held_out),
        ),
        notes=(),
        vllm=choose_settings(scorers.values(), cluster) if options.advises_vllm else None,
    )
    notes = list_notes(result, has_groups=options.by in reader.columns, sent=options.sent)
    return replace(result, notes=(*notes, *reader.notes))


def _count_halves(
    reader: DecisionReader, held_out: NDArray[np.bool_], options: PlacementOptions
) -> _Halves:
    sizes = {_place(layer): layer.num_experts for layer in reader.layers}
    counters: dict[Place, tuple[StatisticsCounter, StatisticsCounter]] = {}
    num_tokens = np.zeros(0, dtype=np.int64)
    num_prompts = np.zeros(0, dtype=np.int64)
    for window in reader:
        grown = len(reader.groups) - len(num_tokens)
        num_tokens, num_prompts = (np.pad(each, (0, grown)) for each in (num_tokens, num_prompts))
        num_tokens += np.bincount(window.group, minlength=len(num_tokens))
        _, first = np.unique(window.prompt, return_index=True)
        num_prompts += np.bincount(window.group[first], minlength=len(num_prompts))
        is_held_out = held_out[window.prompt]
        for place, choices in window.layers.items():
            if place not in counters:
                fitted, scored = (
                    StatisticsCounter(sizes[place], options.tokens_per_batch) for _ in range(2)
                )
                counters[place] = (fitted, scored)
            mine = is_held_out[choices.token]
            counters[place][0].add(choices.experts[~mine])
            counters[place][1].add(choices.experts[mine])
    order = np.argsort(-num_tokens, kind="stable")
    total = {place: one.statistics + other.statistics for place, (one, other) in counters.items()}
    return _Halves(
        fitted=total
        if held_out.all()
        else {place: fitted.statistics for place, (fitted, _) in counters.items()},
        total=total,
        groups=tuple(
            GroupShare(reader.groups[index], int(num_prompts[index]), int(num_tokens[index]))
            for index in order
        ),
    )


def _score_held_out(
    reader: DecisionReader, held_out: NDArray[np.bool_], trials: Sequence[Trial]
) -> None:
    for window in reader:
        is_held_out = held_out[window.prompt]
        for place, choices in window.layers.items():
            mine = is_held_out[choices.token]
            prompt, experts = window.prompt[choices.token[mine]], choices.experts[mine]
            for trial in trials:
                trial.add(place, prompt, experts)


def _place(layer: RoutedLayer) -> Place:
    return layer.stack, layer.layer


def say_layer(stack: str, layer: int) -> str:
    """Return a layer in words."""
    return f"{'' if stack == 'decoder' else f'{printable(stack, max_length=40)} '}layer {layer}"
