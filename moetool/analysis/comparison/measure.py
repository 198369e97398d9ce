"""Comparison of two traces of the same tokens, decision by decision."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.comparison.baseline import Baseline
from moetool.analysis.comparison.decisions import compare_decisions
from moetool.analysis.comparison.expected import sum_expected
from moetool.analysis.comparison.layer_sums import LayerSums
from moetool.analysis.comparison.notes import explain_comparison
from moetool.analysis.comparison.pairs.layers import LayerPair, pair_layers
from moetool.analysis.comparison.pairs.reader import PairedWindow, PairReader
from moetool.analysis.comparison.result import (
    CellAgreement,
    Comparison,
    GroupAgreement,
    LayerAgreement,
    OverallAgreement,
    PositionAgreement,
    judge,
)
from moetool.analysis.comparison.sums import MEASURES, Agreements, sum_by_prompt, sum_cells
from moetool.analysis.comparison.token_changes import (
    MostChanged,
    TokenIdSums,
    WindowChanges,
)
from moetool.analysis.statistics.ratios import Ratio, RatioSums
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.reader import DecisionReader

COLUMNS = ("weight", "token_id", "token")
_OVERALL = "all"


def compare_traces(
    first: DecisionReader,
    second: DecisionReader,
    *,
    by: str = "domain",
    is_common: bool = False,
    min_count: int = 10,
    num_listed: int = 10,
) -> Comparison:
    """Return how far two traces of the same tokens choose the same experts.

    Args:
        first: Reads one trace with `COLUMNS`, grouped by `by`.
        second: Reads the other.
        by: The column that groups the tokens of the first.
        is_common: Compare the tokens that both have, instead of refusing others.
        min_count: Occurrences that a token id needs to be listed.
        num_listed: Token ids, and single tokens, to list.

    Raises:
        InputError: The traces have different tokens or no layers in common, or fail a check.
    """
    pairing = pair_layers(first, second)
    has_ranks = first.has_ranks and second.has_ranks
    pairs = {pair.place: pair for pair in pairing.pairs}
    reader = PairReader(first, second, list(pairs), is_common=is_common)
    stacks = sorted({stack for stack, _ in pairs})
    by_key = Agreements.empty()
    of_layer = {
        place: LayerSums.empty(pair.num_experts, pair.top_k, pair.other_top_k)
        for place, pair in pairs.items()
    }
    changed_tokens = RatioSums(1)
    token_ids = TokenIdSums()
    most_changed = MostChanged(num_listed, prompts=first.prompts, stacks=stacks)
    has_ids = True
    for window in reader:
        has_ids &= window.first.token_id is not None and window.second.token_id is not None
        changes = _add_window(window, by_key, of_layer, first.groups, has_ranks=has_ranks)
        is_compared = changes.num_layers > 0
        prompt = np.unique(window.first.prompt, return_inverse=True)[1]
        changed_tokens.add(
            np.bincount(prompt, weights=changes.num_changed > 0)[None],
            np.bincount(prompt, weights=is_compared)[None],
        )
        token_ids.add(window, changes)
        most_changed.add(window, changes)
    compared = pairing.keep(by_key.count)
    layers = tuple(
        _describe_layer(pair, by_key, of_layer[pair.place], has_ranks=has_ranks)
        for pair in compared.pairs
    )
    overall = OverallAgreement(
        popularity=_average([(layer.popularity, layer.num_decisions) for layer in layers]),
        **_list_measures(by_key, _OVERALL),
    )
    return Comparison(
        trace=first.facts,
        other=second.facts,
        by=by,
        verdict=judge(overall),
        overall=overall,
        changed_tokens=changed_tokens.find_ratios()[0].value,
        layers=layers,
        groups=tuple(
            GroupAgreement(group=group, **_list_measures(by_key, ("group", group)))
            for group in sorted(first.groups)
            if by_key.count(("group", group))
        ),
        positions=_list_positions(by_key),
        cells=_list_cells(compared.pairs, by_key, sorted(first.groups)),
        min_count=min_count,
        num_token_ids=token_ids.count_frequent(min_count=min_count),
        token_ids=token_ids.find_most_changed(min_count=min_count, num_listed=num_listed),
        tokens=most_changed.list_tokens(),
        notes=explain_comparison(
            first,
            second,
            of_layers=compared.notes,
            num_left_out=reader.num_left_out,
            num_single=sum(sums.num_left_out for sums in of_layer.values()),
            has_ids=has_ids,
            has_weights=overall.weight_change is not None,
        ),
    )


def _add_window(
    window: PairedWindow,
    by_key: Agreements,
    of_layer: Mapping[Place, LayerSums],
    groups: Sequence[str],
    *,
    has_ranks: bool,
) -> WindowChanges:
    """Add a window to all sums, and return each token's change."""
    prompts, prompt = np.unique(window.first.prompt, return_inverse=True)
    codes, group = np.unique(window.first.group, return_inverse=True)
    names = [groups[code] for code in codes]
    span = find_spans(window.first.position)
    spans, span = np.unique(span, return_inverse=True)
    of_groups = np.zeros((2, len(MEASURES), len(codes), len(prompts)))
    of_spans = np.zeros((2, len(MEASURES), len(spans), len(prompts)))
    by_group = np.zeros((len(codes), len(MEASURES), 2))
    by_span = np.zeros((len(spans), len(MEASURES), 2))
    total = WindowChanges.empty(len(prompt))
    for place, sums in of_layer.items():
        if place not in window.first.layers or place not in window.second.layers:
            continue
        changes = compare_decisions(
            window.first.layers[place], window.second.layers[place], has_ranks=has_ranks
        )
        sums.add(changes)
        token = changes.token
        total.change[token] += 1 - changes.overlap
        total.num_layers[token] += 1
        total.num_changed[token] += changes.is_changed
        mine = sum_by_prompt(
            changes,
            cell=group[token],
            prompt=prompt[token],
            shape=(len(codes), len(prompts)),
        )
        num_experts = sums.first_choices.shape[1]
        expected = sum_expected(
            changes, num_experts=num_experts, cell=group[token], num_cells=len(codes)
        )
        of_groups += mine
        by_group += expected
        by_key.add([(place, name) for name in names], sum_cells(mine), expected)
        _add_total(by_key, place, mine, expected)
        of_spans += sum_by_prompt(
            changes,
            cell=span[token],
            prompt=prompt[token],
            shape=(len(spans), len(prompts)),
        )
        by_span += sum_expected(
            changes, num_experts=num_experts, cell=span[token], num_cells=len(spans)
        )
    by_key.add([("group", name) for name in names], sum_cells(of_groups), by_group)
    _add_total(by_key, _OVERALL, of_groups, by_group)
    by_key.add([("span", int(number)) for number in spans], sum_cells(of_spans), by_span)
    return total


def _add_total(
    by_key: Agreements,
    key: Hashable,
    of_cells: NDArray[np.float64],
    expected: NDArray[np.float64],
) -> None:
    """Add the sums of all cells to a key."""
    total = sum_cells(of_cells.sum(axis=2, keepdims=True))
    by_key.add([key], total, expected.sum(axis=0, keepdims=True))


def find_spans(position: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of the range of each position: 0, 1, 2 to 3, 4 to 7 and so on."""
    return np.frexp(position.astype(np.float64))[1].astype(np.int64)


def _list_positions(by_key: Agreements) -> tuple[PositionAgreement, ...]:
    spans = sorted(key[1] for key in by_key.sums if isinstance(key, tuple) and key[0] == "span")
    return tuple(
        PositionAgreement(
            first_position=0 if span == 0 else 1 << (span - 1),
            last_position=(1 << span) - 1,
            **_list_measures(by_key, ("span", span)),
        )
        for span in spans
    )


def _list_measures(by_key: Agreements, key: Hashable) -> dict[str, Any]:
    measures = by_key.find(key)
    listed: dict[str, Any] = {
        "num_decisions": by_key.count(key),
        "baseline": by_key.find_baseline(key),
    }
    for name in ("overlap", "changed_decisions", "first_choice_flips"):
        listed |= _list_limits(name, measures[name])
    for name in ("jaccard", "saturation", "weight_change"):
        listed[name] = measures[name].value
    return listed


def _list_limits(name: str, ratio: Ratio) -> dict[str, float | None]:
    return {name: ratio.value, f"{name}_low": ratio.low, f"{name}_high": ratio.high}


def _describe_layer(
    pair: LayerPair, by_key: Agreements, sums: LayerSums, *, has_ranks: bool
) -> LayerAgreement:
    stack, layer = pair.place
    num_decisions = by_key.count(pair.place)
    return LayerAgreement(
        stack=stack,
        layer=layer,
        num_experts=pair.num_experts,
        top_k=pair.top_k,
        num_tokens=num_decisions,
        other_top_k=pair.other_top_k,
        num_left_out=sums.num_left_out,
        popularity=sums.expect_popular(has_ranks=has_ranks),
        **_list_measures(by_key, pair.place),
    )


def _average(parts: Sequence[tuple[Baseline | None, int]]) -> Baseline | None:
    """Return the mean of layers' baselines, weighted by their decisions; None without any."""
    known = [(vars(baseline), number) for baseline, number in parts if baseline is not None]
    if not known:
        return None
    total = sum(number for _, number in known)
    return Baseline(
        **{
            name: None
            if any(values[name] is None for values, _ in known)
            else sum(values[name] * number for values, number in known) / total
            for name in MEASURES
        }
    )


def _list_cells(
    pairs: Sequence[LayerPair], by_key: Agreements, groups: Sequence[str]
) -> tuple[CellAgreement, ...]:
    return tuple(
        CellAgreement(
            stack=pair.place[0],
            layer=pair.place[1],
            group=group,
            num_experts=pair.num_experts,
            top_k=pair.top_k,
            other_top_k=pair.other_top_k,
            **_list_measures(by_key, (pair.place, group)),
        )
        for pair in pairs
        for group in groups
        if by_key.count((pair.place, group))
    )
