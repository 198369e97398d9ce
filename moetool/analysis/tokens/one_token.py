"""Experts that one token gets, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.tokens.first_choices import (
    NO_FIRST_CHOICE,
    find_first_choices,
    has_first_choices,
    take_token_ids,
)
from moetool.analysis.tokens.pieces import find_similar_pieces, find_token_ids
from moetool.analysis.tokens.result import UsualShare
from moetool.analysis.tokens.usual_share import expect_usual_share
from moetool.errors import UsageError
from moetool.plain import Tabular, make_plain
from moetool.printable import printable
from moetool.trace.facts import LayerFacts, TraceFacts
from moetool.trace.metadata import RoutedLayer
from moetool.trace.windows.reader import DecisionReader
from moetool.wording import number_of

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TokenExpert:
    """An expert that a token gets in one layer.

    Attributes:
        count: Occurrences of the token that choose the expert.
        first_count: Those in which it is the first choice; None if that is unknown.
        share: `count` over the token's occurrences.
        lift: `share` over the expert's share of all tokens.
    """

    expert: int
    count: int
    first_count: int | None
    share: float
    lift: float


@dataclass(frozen=True)
class TokenLayer(LayerFacts):
    """Experts that a token gets in one layer.

    Attributes:
        count: Occurrences of the token in the layer.
        usual_expert: Its most frequent first choice; None if first choices are unknown.
        usual_share: Share of its first choices that the usual expert gets.
        baseline: Under a uniform random router; None if first choices are unknown.
        loads: Under a router with the same loads of first choices that ignores the token.
        experts: Those that it gets, the most frequent first.
    """

    count: int
    usual_expert: int | None
    usual_share: float | None
    baseline: UsualShare | None
    loads: UsualShare | None
    experts: tuple[TokenExpert, ...]


@dataclass(frozen=True)
class TokenExperts(Tabular):
    """Experts that a token gets in each layer.

    Attributes:
        trace: Facts about the trace.
        token_ids: Ids of the token: several if their pieces stand for the same text.
        token: The piece of the first; None if the trace has none.
        count: Occurrences in the layer that has most of them.
        num_prompts: Prompts with the token.
        layers: In the order of stack and layer.
        notes: Warnings, what was inferred, and why a number is None: a sentence each.
    """

    trace: TraceFacts
    token_ids: tuple[int, ...]
    token: str | None
    count: int
    num_prompts: int
    layers: tuple[TokenLayer, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        name = printable(repr(self.token), max_length=40) if self.token else self.token_ids[0]
        return (
            f"<TokenExperts of {name}: {number_of(self.count, 'occurrence')}, "
            f"{number_of(len(self.layers), 'layer')}>"
        )

    @property
    def num_judged_layers(self) -> int:
        """Layers in which first choices are known."""
        return sum(layer.usual_share is not None for layer in self.layers)

    @property
    def num_fixed_layers(self) -> int:
        """Layers in which the first choice never changes."""
        return sum(layer.usual_share == 1 for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        return {item.name: make_plain(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return {
            "stack": str,
            "layer": int,
            "expert": int,
            "count": int,
            "first_count": int | None,
            "share": float,
            "lift": float,
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row for each layer and each expert that the token gets there."""
        return [
            {"stack": layer.stack, "layer": layer.layer, **make_plain(expert)}
            for layer in self.layers
            for expert in layer.experts
        ]


class _LayerTally:
    """Choices of one layer.

    Attributes:
        chosen: Decisions on the token that choose each expert. # (num_experts,)
        first: Those in which it is the first choice. # (num_experts,)
        all_chosen: Decisions of the layer that choose each expert. # (num_experts,)
        all_first: Those in which it is the first choice. # (num_experts,)
    """

    def __init__(self, layer: RoutedLayer) -> None:
        width = layer.num_experts + layer.num_identity_experts
        self.chosen, self.first, self.all_chosen, self.all_first = (
            np.zeros(width, dtype=np.int64) for _ in range(4)
        )
        self.num_tokens = self.count = 0

    def add(self, experts: Ints, first: Ints, is_token: NDArray[np.bool_]) -> None:
        """Count decisions."""
        self.num_tokens += len(experts)
        self.count += int(is_token.sum())
        width = len(self.chosen)
        for total, values in (
            (self.all_chosen, experts.ravel()),
            (self.all_first, first),
            (self.chosen, experts[is_token].ravel()),
            (self.first, first[is_token]),
        ):
            total += np.bincount(values + 1, minlength=width + 1)[1:]


def list_token_experts(
    reader: DecisionReader, *, token: str | None = None, token_id: int | None = None
) -> TokenExperts:
    """Return the experts that a token gets in each layer.

    Args:
        reader: The trace, with the columns `token_id` and, if it has them, `token` and `weight`.
        token: A piece, or the text that pieces stand for.
        token_id: The id, instead.

    Raises:
        InputError: The trace has no token ids, or a row is not one of a trace.
        UsageError: The token does not occur, or its text is asked for and the trace has no pieces.
    """
    if token is not None and "token" not in reader.columns:
        raise UsageError(
            "The trace has no column 'token' to find a text in.", hint="Give the token's id."
        )
    tallies = [_LayerTally(layer) for layer in reader.layers]
    pieces: dict[int, str] = {}
    wanted: set[int] = set() if token_id is None else {token_id}
    prompts: set[int] = set()
    for window in reader:
        new = {one: piece for one, piece in window.pieces.items() if one not in pieces}
        pieces.update(new)
        if token is not None:
            wanted.update(find_token_ids(new, token))
        ids = take_token_ids(window)
        is_token = np.isin(ids, np.array(sorted(wanted), dtype=np.int64))
        prompts.update(np.unique(window.prompt[is_token]).tolist())
        for layer, tally in zip(reader.layers, tallies, strict=True):
            choices = window.layers.get((layer.stack, layer.layer))
            if choices is not None:
                first = find_first_choices(choices, has_ranks=reader.has_ranks)
                tally.add(choices.experts, first, is_token[choices.token])
    if not any(tally.count for tally in tallies):
        raise _not_found(pieces, token, token_id)
    found = tuple(sorted(wanted))
    has_first = has_first_choices(reader)
    return TokenExperts(
        trace=reader.facts,
        token_ids=found,
        token=pieces.get(found[0]),
        count=max(tally.count for tally in tallies),
        num_prompts=len(prompts),
        layers=tuple(
            _describe(layer, tally, has_first=has_first)
            for layer, tally in zip(reader.layers, tallies, strict=True)
        ),
        notes=(*reader.notes, *(() if has_first else (NO_FIRST_CHOICE,))),
    )


def _not_found(pieces: Mapping[int, str], token: str | None, token_id: int | None) -> UsageError:
    if token is None:
        return UsageError(
            f"No token of the trace has the id {token_id}.",
            hint="List its tokens with --format csv and no --token.",
        )
    similar = find_similar_pieces(pieces.values(), token)
    shown = ", ".join(f"'{printable(piece, max_length=40)}'" for piece in similar)
    return UsageError(
        f"No token of the trace is spelled '{printable(token, max_length=60)}'.",
        hint=f"Similar ones are {shown}."
        if similar
        else "List its tokens with --format csv and no --token.",
    )


def _describe(layer: RoutedLayer, tally: _LayerTally, *, has_first: bool) -> TokenLayer:
    num_first, all_first = int(tally.first.sum()), int(tally.all_first.sum())
    usual: int | None = None
    share: float | None = None
    routers: list[UsualShare | None] = [None, None]
    if has_first and num_first:
        # Of equally frequent ones, the more popular.
        usual = max(
            range(len(tally.first)),
            key=lambda one: (int(tally.first[one]), int(tally.all_first[one]), -one),
        )
        number = np.array([num_first])
        even = np.full(len(tally.first), 1 / len(tally.first))
        share = int(tally.first[usual]) / num_first
        routers = [
            UsualShare(float(expect_usual_share(number, chance)[0]))
            for chance in (even, tally.all_first / all_first)
        ]
    order = np.lexsort((np.arange(len(tally.chosen)), -tally.chosen))
    return TokenLayer(
        stack=layer.stack,
        layer=layer.layer,
        num_experts=len(tally.chosen),
        top_k=layer.top_k,
        num_tokens=tally.num_tokens,
        count=tally.count,
        usual_expert=usual,
        usual_share=share,
        baseline=routers[0],
        loads=routers[1],
        experts=tuple(
            TokenExpert(
                expert=one,
                count=int(tally.chosen[one]),
                first_count=int(tally.first[one]) if has_first else None,
                share=int(tally.chosen[one]) / tally.count,
                lift=int(tally.chosen[one])
                / tally.count
                / (int(tally.all_chosen[one]) / tally.num_tokens),
            )
            for one in order.tolist()
            if tally.chosen[one]
        ),
    )
