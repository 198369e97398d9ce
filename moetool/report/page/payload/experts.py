"""Single experts: the tokens that are characteristic of each, and its strongest partners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moetool.analysis.coactivation.matrices import PairMatrix
from moetool.analysis.coactivation.result import Coactivation, LayerCoactivation
from moetool.analysis.specialization.by_token.result import TokenSpecialization
from moetool.report.page.payload.alignment import align, place_of
from moetool.report.page.payload.values.names import show_piece
from moetool.report.page.payload.values.numbers import shorten, shorten_all
from moetool.trace.facts import LayerFacts

# The whole matrix of a layer with more experts would fill the page.
_MOST_EXPERTS_OF_MATRIX = 64
_NUM_TRANSITIONS = 10

# A layer that was not measured.
_UNKNOWN_LAYER: dict[str, Any] = {
    "num_pairs": 0,
    "num_above": 0,
    "num_below": 0,
    "pairs": [],
    "groups": [],
    "partners": [],
    "matrix": None,
    "next": None,
}


def make_tokens(
    result: TokenSpecialization | None, layers: Sequence[LayerFacts], *, most_tokens: int
) -> dict[str, Any] | None:
    """Return the most characteristic tokens of every expert; None if there are none to show.

    Args:
        result: None if it is unknown, or texts are left out.
        layers: Of the page.
        most_tokens: Of an expert.
    """
    if result is None:
        return None
    lists: list[list[list[Any]]] = [[[] for _ in range(layer.num_experts)] for layer in layers]
    index_of = {(layer.stack, layer.layer): index for index, layer in enumerate(layers)}
    for each in result.tokens:
        if (each.stack, each.layer) not in index_of:
            continue
        mine = lists[index_of[each.stack, each.layer]][each.expert]
        if len(mine) < most_tokens:
            text = show_piece(each.token)
            mine.append(
                [
                    f"id {each.token_id}" if text is None else text,
                    each.assignments,
                    each.occurrences,
                    shorten(each.lift),
                    each.is_beyond_chance,
                ]
            )
    return {"min_count": result.min_count, "experts": lists}


def make_togetherness(
    result: Coactivation | None,
    layers: Sequence[LayerFacts],
    *,
    most_partners: int,
    most_pairs: int,
) -> dict[str, Any] | None:
    """Return partners, groups, pairs and transitions of every layer; None if unknown.

    Args:
        result: None if there is none.
        layers: Of the page.
        most_partners: Of an expert.
        most_pairs: Of a layer.
    """
    if result is None:
        return None
    return {
        "hit_rate": shorten(result.hit_rate),
        "popularity": shorten(result.popularity),
        "random": shorten(result.baseline.hit_rate) if result.baseline else None,
        "layers": [
            _make_layer(layer, most_partners=most_partners, most_pairs=most_pairs)
            if layer
            else _UNKNOWN_LAYER
            for layer in align(layers, ((place_of(layer), layer) for layer in result.layers))
        ],
    }


def _make_layer(layer: LayerCoactivation, *, most_partners: int, most_pairs: int) -> dict[str, Any]:
    return {
        "num_pairs": layer.num_pairs,
        "num_above": layer.num_above,
        "num_below": layer.num_below,
        "pairs": [
            [
                *pair.experts,
                pair.count,
                shorten(pair.lift),
                shorten(pair.expected_lift),
                shorten(pair.lift_low),
                shorten(pair.lift_high),
                pair.is_significant,
            ]
            for pair in layer.pairs[:most_pairs]
        ],
        "groups": [
            {
                "experts": list(group.experts),
                "share": shorten(group.share_of_pairs),
                "expected_share": shorten(group.loads.share_of_pairs),
                "random_share": shorten(group.baseline.share_of_pairs),
            }
            for group in layer.expert_groups
        ],
        "partners": _list_partners(layer.matrix, layer.num_experts, most=most_partners),
        "matrix": _make_matrix(layer),
        "next": _make_transition(layer),
    }


def _list_partners(matrix: PairMatrix, num_experts: int, *, most: int) -> list[list[Any]]:
    """Return each expert's partners, their lift and the expected one, the strongest first."""
    partners: list[list[Any]] = [[] for _ in range(num_experts)]
    order = matrix.choose_strongest(len(matrix))
    names = ("expert_i", "expert_j", "lift", "expected_lift")
    columns = (getattr(matrix, name)[order].tolist() for name in names)
    for i, j, lift, expected in zip(*columns, strict=True):
        for one, other in ((i, j), (j, i)):
            if len(partners[one]) < most:
                partners[one].append([other, shorten(lift), shorten(expected)])
    return partners


def _make_matrix(layer: LayerCoactivation) -> dict[str, Any] | None:
    """Return the lift of each pair i < j, row by row; None for a layer with many experts."""
    matrix = layer.matrix
    if not len(matrix) or layer.num_experts > _MOST_EXPERTS_OF_MATRIX:
        return None
    return {
        "lift": shorten_all(matrix.lift.tolist()),
        "over_expected": shorten_all(matrix.over_expected.tolist()),
        "is_significant": matrix.is_tested.astype(int).tolist(),
    }


def _make_transition(layer: LayerCoactivation) -> dict[str, Any] | None:
    following = layer.next_layer
    if following is None:
        return None
    prediction = following.prediction
    return {
        "layer": following.layer,
        "pairs": [
            [*pair.experts, pair.count, shorten(pair.lift), shorten(pair.given_i)]
            for pair in following.pairs[:_NUM_TRANSITIONS]
        ],
        "hit_rate": shorten(prediction.hit_rate) if prediction else None,
        "popularity": shorten(prediction.popularity) if prediction else None,
        "random": shorten(prediction.baseline.hit_rate) if prediction else None,
    }
