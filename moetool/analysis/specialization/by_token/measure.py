"""Vocabulary specialization, and the most characteristic tokens of each expert."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.specialization.by_token.baseline import (
    simulate_same_loads,
    simulate_uniform,
)
from moetool.analysis.specialization.by_token.counting import (
    FrequentTokens,
    LayerTokenCounts,
    TokenCounter,
    find_frequent,
)
from moetool.analysis.specialization.by_token.result import (
    ExpertToken,
    LayerTokenUse,
    LoadsLift,
    TokenSpecialization,
    TokenVerdict,
    VocabularyShares,
)
from moetool.analysis.specialization.from_trace import SpecializationOptions
from moetool.analysis.specialization.notes import explain_unknown_first
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.reader import TraceSource
from moetool.trace.windows.reader import DecisionReader

MIN_COUNT = 10
TOKENS_OF_EXPERT = 5
# Occurrences added to each token id, which choose experts as all tokens do.
_PSEUDO_COUNT = 10
# Simulated routers behind the largest lift by chance.
_NUM_SIMULATED = 8
# An id of one prompt may be that prompt's subject.
_LEAST_PROMPTS = 2


def measure_token_specialization(
    source: TraceSource,
    options: SpecializationOptions,
    *,
    min_count: int = MIN_COUNT,
    show: Callable[[str], None] = lambda _: None,
) -> TokenSpecialization:
    """Return how far the token id decides on the expert, in each layer.

    Args:
        source: The trace.
        options: Layers, seed and shape; there are no permutations.
        min_count: Occurrences that a token id needs in a layer.
        show: Is given a word on each step.

    Raises:
        InputError: The trace lacks a column, or fails a check.
        UsageError: There is no such layer.
    """
    reader = _read(source, options, columns=("token_id", "token"))
    first_of_stack = {layer.stack: layer.layer for layer in reversed(reader.layers)}
    show("counting token ids")
    frequent = find_frequent(
        _read(source, options, columns=("token_id",), layers=set(first_of_stack.values())),
        min_count=min_count,
        num_cells=sum(layer.num_experts + layer.num_identity_experts for layer in reader.layers),
    )
    show("counting experts")
    counter = TokenCounter(frequent, reader.prompts)
    pieces: dict[int, str] = {}
    for window in reader:
        counter.add(window, reader.layers)
        pieces.update(window.pieces)
    show("simulating random routers")
    layers, tokens = [], []
    rng = np.random.default_rng([options.seed, 7])
    has_first = reader.has_ranks
    for layer in reader.layers:
        counts = counter.layers.get((layer.stack, layer.layer))
        if counts is not None:
            layers.append(_describe_layer(layer, counts, options, frequent, has_first=has_first))
            tokens += _find_characteristic(layer, counts, frequent, pieces, rng)
    return TokenSpecialization(
        layers=tuple(layers),
        tokens=tuple(tokens),
        verdict=_reach_verdict(layers),
        min_count=frequent.min_count,
        seed=options.seed,
        notes=(
            *reader.notes,
            *_explain(layers, frequent, min_count),
            *explain_unknown_first(has_ranks=has_first),
        ),
        trace=reader.facts,
    )


def _read(
    source: TraceSource,
    options: SpecializationOptions,
    *,
    columns: tuple[str, ...],
    layers: set[int] | None = None,
) -> DecisionReader:
    return DecisionReader(
        source,
        layers=options.layers if layers is None else layers,
        num_experts=options.num_experts,
        top_k=options.top_k,
        columns=columns,
        is_checked=options.is_checked,
    )


def _describe_layer(
    layer: RoutedLayer,
    counts: LayerTokenCounts,
    options: SpecializationOptions,
    frequent: FrequentTokens,
    *,
    has_first: bool,
) -> LayerTokenUse:
    is_enough = counts.occurrences >= frequent.min_count
    occurrences = counts.occurrences[is_enough]
    shares: list[VocabularyShares | None] = [None, None, None]
    if len(occurrences):
        chosen = _compare(
            counts.assignments[is_enough],
            occurrences,
            counts.decisions,
            tuple(counts.num_of_size.tolist()),
            options.seed,
        )
        firsts: tuple[float | None, ...] = (None, None, None)
        if has_first:
            firsts = _compare(
                counts.first[is_enough],
                occurrences,
                counts.decisions[:, :1],
                (counts.num_tokens - counts.num_first, counts.num_first),
                options.seed,
            )
        shares = [VocabularyShares(*pair) for pair in zip(chosen, firsts, strict=True)]
    observed, baseline, loads = shares
    return LayerTokenUse(
        layer.stack,
        layer.layer,
        len(counts.load),
        layer.top_k,
        counts.num_tokens,
        num_token_ids=int(is_enough.sum()),
        covered_share=float(occurrences.sum() / max(1, counts.num_tokens)),
        vocabulary_specialization=observed.vocabulary_specialization if observed else None,
        first_vocabulary_specialization=(
            observed.first_vocabulary_specialization if observed else None
        ),
        baseline=baseline,
        loads=loads,
    )


def _compare(
    by_token: NDArray[np.int32],
    occurrences: NDArray[np.int64],
    decisions: NDArray[np.int64],
    num_decisions: tuple[int, ...],
    seed: int,
) -> tuple[float, float, float]:
    """Return the mean share of the usual expert, under a uniform router, and with the same loads.

    Args:
        by_token: Assignments by token id and expert. # (num_ids, num_experts)
        occurrences: Of each id. # (num_ids,)
        decisions: Some of all tokens. # (num_kept, top_k)
        num_decisions: Decisions that run 0, 1, 2, … experts.
        seed: Random seed.
    """
    num_experts = by_token.shape[1]
    loads = simulate_same_loads(
        decisions, num_experts=num_experts, most=int(occurrences.max()), seed=seed
    )
    uniform = simulate_uniform(num_experts, num_decisions, seed)
    observed = float((by_token.max(axis=1) / occurrences).mean())
    return observed, uniform.mean(occurrences), loads.mean(occurrences)


def _reach_verdict(layers: Sequence[LayerTokenUse]) -> TokenVerdict | None:
    observed = [
        layer.vocabulary_specialization
        for layer in layers
        if layer.vocabulary_specialization is not None
    ]
    loads = [layer.loads.vocabulary_specialization for layer in layers if layer.loads is not None]
    if not observed:
        return None
    return TokenVerdict(len(observed), min(observed), max(observed), min(loads), max(loads))


def _find_characteristic(
    layer: RoutedLayer,
    counts: LayerTokenCounts,
    frequent: FrequentTokens,
    pieces: Mapping[int, str],
    rng: np.random.Generator,
) -> list[ExpertToken]:
    """Return the most characteristic tokens of each expert, the most so first."""
    share_of_all = counts.load / max(1, counts.num_tokens)
    is_enough = (counts.occurrences >= frequent.min_count) & (frequent.prompts >= _LEAST_PROMPTS)
    (rows,) = np.nonzero(is_enough)
    found = []
    for expert in range(len(counts.load)):
        if not counts.load[expert]:
            continue
        expected = float(share_of_all[expert])
        assignments, occurrences = counts.assignments[rows, expert], counts.occurrences[rows]
        shrunken = _shrink(assignments, occurrences, expected)
        if not len(shrunken):
            continue
        drawn = rng.binomial(
            occurrences, min(1.0, expected), size=(_NUM_SIMULATED, len(occurrences))
        )
        by_chance = float(_shrink(drawn, occurrences, expected).max(axis=1).mean())
        for index in np.argsort(-shrunken, kind="stable")[:TOKENS_OF_EXPERT]:
            if shrunken[index] <= 1:
                break
            token_id = int(frequent.ids[rows[index]])
            share = float(assignments[index] / occurrences[index])
            found.append(
                ExpertToken(
                    stack=layer.stack,
                    layer=layer.layer,
                    expert=expert,
                    token_id=token_id,
                    token=pieces.get(token_id),
                    occurrences=int(occurrences[index]),
                    prompts=int(frequent.prompts[rows[index]]),
                    assignments=int(assignments[index]),
                    share=share,
                    expert_share=expected,
                    lift=share / expected,
                    shrunken_lift=float(shrunken[index]),
                    loads=LoadsLift(by_chance),
                )
            )
    return found


def _shrink(
    assignments: NDArray[np.integer], occurrences: NDArray[np.int64], expected: float
) -> NDArray[np.float64]:
    """Return the lift of each token id, closer to 1 the fewer its occurrences."""
    added = _PSEUDO_COUNT * expected
    lift: NDArray[np.float64] = (assignments + added) / (occurrences + _PSEUDO_COUNT) / expected
    return lift


def _explain(layers: list[LayerTokenUse], frequent: FrequentTokens, min_count: int) -> list[str]:
    notes = []
    if frequent.min_count > min_count:
        notes.append(
            f"Token ids need {frequent.min_count:,} occurrences instead of {min_count:,}, because "
            "counts of more ids would not fit into memory."
        )
    if any(not layer.num_token_ids for layer in layers):
        notes.append(
            f"No token id has {frequent.min_count:,} occurrences in some layer, which therefore "
            "has no vocabulary specialization."
        )
    return notes
