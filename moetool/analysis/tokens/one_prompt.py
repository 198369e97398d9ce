"""The tokens of one prompt, and the experts that each got in every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, get_type_hints

import numpy as np

from moetool.errors import UsageError
from moetool.plain import Tabular, make_plain
from moetool.printable import printable
from moetool.trace.decisions import NO_EXPERT, PHASES
from moetool.trace.excerpt import RoutedToken, StackExcerpt, take_ends
from moetool.trace.facts import LayerFacts, TraceFacts
from moetool.trace.metadata import RoutedLayer
from moetool.trace.windows.reader import DecisionReader
from moetool.trace.windows.window import DecisionWindow
from moetool.wording import number_of

_PROMPTS_NAMED = 5
# Prompts among which similar ids are looked for.
_MOST_COMPARED = 10_000


@dataclass(frozen=True)
class TokenDecision:
    """The experts of one token in one layer.

    Attributes:
        layer: As in the trace's column.
        experts: Their ids, in order of rank if the trace has ranks; empty where none ran.
        weights: Their weights; None if the trace has none.
    """

    layer: int
    experts: tuple[int, ...]
    weights: tuple[float, ...] | None


@dataclass(frozen=True)
class PromptToken:
    """A token of a prompt.

    Attributes:
        token_id: None if the trace has none; `token` and `phase`, too.
        token: The tokenizer's piece.
        phase: `prefill` or `decode`.
        decisions: One for each layer that decided.
    """

    stack: str
    position: int
    token_id: int | None
    token: str | None
    phase: str | None
    decisions: tuple[TokenDecision, ...]


@dataclass(frozen=True)
class _Row:
    """A row of the CSV report: an assignment."""

    stack: str
    position: int
    token_id: int | None
    token: str | None
    phase: str | None
    layer: int
    rank: int
    expert: int
    weight: float | None


@dataclass(frozen=True)
class PromptRouting(Tabular):
    """A prompt as a table of tokens and layers.

    Attributes:
        trace: Facts about the trace.
        prompt_id: As in the trace's column.
        domain: As in the trace's column.
        layers: Facts about each, with the tokens of the prompt as `num_tokens`.
        tokens: In the order of stack and position.
        notes: Warnings and what was inferred, a sentence each.
        routed_layers: The layers as the metadata describes them.
    """

    trace: TraceFacts
    prompt_id: str
    domain: str
    layers: tuple[LayerFacts, ...]
    tokens: tuple[PromptToken, ...]
    notes: tuple[str, ...]
    routed_layers: tuple[RoutedLayer, ...] = field(repr=False)

    def __repr__(self) -> str:
        return (
            f"<PromptRouting of {printable(self.prompt_id, max_length=60)}: "
            f"{number_of(len(self.tokens), 'token')}, {number_of(len(self.layers), 'layer')}>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        return {
            item.name: make_plain(getattr(self, item.name)) for item in fields(self) if item.repr
        }

    def excerpt(self, *, num_listed: int) -> tuple[StackExcerpt, ...]:
        """Return each stack's first and last tokens of the prompt, and again those written.

        Args:
            num_listed: Number of tokens of the prompt to keep, and again of those written.
        """
        stacks = dict.fromkeys(token.stack for token in self.tokens)
        return tuple(self._excerpt_stack(stack, num_listed) for stack in stacks)

    def _excerpt_stack(self, stack: str, num_listed: int) -> StackExcerpt:
        mine = [token for token in self.tokens if token.stack == stack]
        layers = sorted({each.layer for token in mine for each in token.decisions})
        kept: set[int] = set()
        for is_new in (False, True):
            positions = [one.position for one in mine if (one.phase == PHASES[1]) == is_new]
            kept.update(take_ends(np.array(positions), num_listed).tolist())
        return StackExcerpt(
            stack=stack,
            layers=tuple(layers),
            tokens=tuple(
                RoutedToken(
                    position=token.position,
                    piece=str(token.token_id if token.token is None else token.token),
                    is_new=token.phase == PHASES[1],
                    experts=_list_experts(token, layers),
                )
                for token in mine
                if token.position in kept
            ),
        )

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return get_type_hints(_Row)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row for each assignment of the prompt."""
        return [
            make_plain(
                _Row(
                    stack=token.stack,
                    position=token.position,
                    token_id=token.token_id,
                    token=token.token,
                    phase=token.phase,
                    layer=decision.layer,
                    rank=rank,
                    expert=expert,
                    weight=None if decision.weights is None else decision.weights[rank],
                )
            )
            for token in self.tokens
            for decision in token.decisions
            for rank, expert in enumerate(decision.experts)
        ]


def _list_experts(token: PromptToken, layers: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the experts of a token in each layer, `NO_EXPERT` where none ran."""
    chosen = {decision.layer: decision.experts for decision in token.decisions}
    return tuple(chosen.get(layer) or (NO_EXPERT,) for layer in layers)


def tabulate_prompt(reader: DecisionReader, prompt_id: str) -> PromptRouting:
    """Return the experts of each token of a prompt.

    Args:
        reader: The trace, with the columns `token_id`, `token`, `weight` and `phase` that it has.
        prompt_id: As in the trace's column.

    Raises:
        InputError: A row is not one of a trace.
        UsageError: The trace has no such prompt.
    """
    if prompt_id not in reader.prompts:
        raise _not_found(reader.prompts, prompt_id)
    number = reader.prompts.index(prompt_id)
    found: list[PromptToken] = []
    sizes: dict[tuple[str, int], int] = {}
    for window in reader:
        for token in _list_tokens(window, number):
            found.append(token)
            for decision in token.decisions:
                place = (token.stack, decision.layer)
                sizes[place] = sizes.get(place, 0) + 1
    return PromptRouting(
        trace=reader.facts,
        prompt_id=prompt_id,
        domain=reader.domains[number],
        layers=tuple(
            LayerFacts(
                stack=layer.stack,
                layer=layer.layer,
                num_experts=layer.num_experts + layer.num_identity_experts,
                top_k=layer.top_k,
                num_tokens=sizes.get((layer.stack, layer.layer), 0),
            )
            for layer in reader.layers
        ),
        tokens=tuple(found),
        notes=reader.notes,
        routed_layers=reader.layers,
    )


def _list_tokens(window: DecisionWindow, prompt: int) -> list[PromptToken]:
    """Return the tokens of a prompt in a window."""
    (index,) = (window.prompt == prompt).nonzero()
    if not len(index):
        return []
    stack_of: dict[int, str] = {}
    decisions: dict[int, list[TokenDecision]] = {int(one): [] for one in index}
    for (stack, layer), choices in window.layers.items():
        rows = (window.prompt[choices.token] == prompt).nonzero()[0].tolist()
        for row in rows:
            token = int(choices.token[row])
            ran = choices.experts[row] != NO_EXPERT
            weights = choices.weights
            decisions[token].append(
                TokenDecision(
                    layer=layer,
                    experts=tuple(choices.experts[row][ran].tolist()),
                    weights=None if weights is None else tuple(weights[row][ran].tolist()),
                )
            )
            stack_of[token] = stack
    tokens = []
    for one, mine in decisions.items():
        token_id = None if window.token_id is None else int(window.token_id[one])
        phase = -1 if window.phase is None else int(window.phase[one])
        tokens.append(
            PromptToken(
                stack=stack_of[one],
                position=int(window.position[one]),
                token_id=token_id,
                token=None if token_id is None else window.pieces.get(token_id),
                phase=PHASES[phase] if phase >= 0 else None,
                decisions=tuple(mine),
            )
        )
    return tokens


def _not_found(prompts: list[str], prompt_id: str) -> UsageError:
    similar = get_close_matches(prompt_id, prompts[:_MOST_COMPARED], n=_PROMPTS_NAMED, cutoff=0.5)
    named = similar or prompts[:_PROMPTS_NAMED]
    shown = ", ".join(f"'{printable(one, max_length=60)}'" for one in named)
    return UsageError(
        f"The trace has no prompt '{printable(prompt_id, max_length=60)}'.",
        hint=f"{'Similar ids are' if similar else 'Its prompts are'} {shown}"
        f"{'' if similar or len(prompts) <= _PROMPTS_NAMED else ', …'}.",
    )
