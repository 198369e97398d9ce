"""Tokens that one expert gets, each with an example of its context."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.halves import hash_prompts
from moetool.analysis.tokens.expert_tokens import ExpertTokens, GroupUse, TokenContext
from moetool.analysis.tokens.expert_use import ExpertUse
from moetool.analysis.tokens.first_choices import (
    NO_FIRST_CHOICE,
    find_first_choices,
    has_first_choices,
    take_token_ids,
)
from moetool.errors import UsageError
from moetool.printable import printable
from moetool.trace.decisions import NO_EXPERT
from moetool.trace.windows.reader import DecisionReader
from moetool.trace.windows.window import DecisionWindow, LayerChoices

Ints = NDArray[np.int64]

# Tokens of a context, before and after.
_NUM_AROUND = 8
_TOKENS_OF_GROUP = 5
# Columns of the table of contexts: id, prompt, position, then the ids around, of which there are
# as many before as after.
_AROUND = 3
# No token has this id.
_NO_TOKEN = np.iinfo(np.int64).min


class _Tally:
    """Counts of an expert by token id, and a context of each.

    Attributes:
        uses: Of the layer, by group.
        contexts: See `_AROUND`. # (num_ids, 3 + 2 * _NUM_AROUND)
        priority: Of each context; the largest is kept. # (num_ids,)
        weight: # (num_ids,)
    """

    def __init__(self, reader: DecisionReader, expert: int) -> None:
        self._reader, self._expert = reader, expert
        self._hashes = hash_prompts(reader.prompts)
        self.uses: dict[int, ExpertUse] = {}
        self.pieces: dict[int, str] = {}
        self.contexts = np.zeros((0, _AROUND + 2 * _NUM_AROUND), dtype=np.int64)
        self.priority = np.zeros(0)
        self.weight = np.zeros(0)

    def add(self, window: DecisionWindow, choices: LayerChoices) -> None:
        """Count the decisions of a window."""
        self.pieces.update(window.pieces)
        token_id = take_token_ids(window)
        row, column = np.nonzero(choices.experts == self._expert)
        first = find_first_choices(choices, has_ranks=self._reader.has_ranks)[row]
        token = choices.token[row]
        key = token_id[token] * 2 + (first == self._expert)
        num_chosen = (choices.experts != NO_EXPERT).sum(axis=1)
        group = window.group[choices.token]
        for one in np.unique(group).tolist():
            mine = group == one
            self.uses.setdefault(one, ExpertUse()).add(
                token_id[choices.token[mine]], key[mine[row]], int(num_chosen[mine].sum())
            )
        if len(row):
            weight = None if choices.weights is None else choices.weights[row, column].astype(float)
            self._keep_contexts(window, token, weight)

    def _keep_contexts(
        self, window: DecisionWindow, token: Ints, weight: NDArray[np.float64] | None
    ) -> None:
        """Keep the context of largest priority of each id."""
        token_id = take_token_ids(window)
        prompt, position = window.prompt[token], window.position[token]
        # Without weights, any order that does not depend on that of the prompts.
        mixed = self._hashes[prompt] ^ (position.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        chance = mixed.astype(np.float64) / 2.0**64
        priority = chance if weight is None else weight
        ids = token_id[token]
        order = np.lexsort((chance, priority, ids))
        last = order[np.append(np.flatnonzero(np.diff(ids[order])), len(order) - 1)]
        best = token[last]
        around = [
            _shift(window, best, distance)
            for distance in (*range(-_NUM_AROUND, 0), *range(1, _NUM_AROUND + 1))
        ]
        found = np.stack([ids[last], prompt[last], position[last], *around], axis=1)
        contexts = np.concatenate([self.contexts, found])
        known = np.zeros(len(last)) if weight is None else weight[last]
        priorities = np.concatenate([self.priority, priority[last]])
        weights = np.concatenate([self.weight, known])
        rank = self._hashes[contexts[:, 1]]
        order = np.lexsort((contexts[:, 2], rank, priorities, contexts[:, 0]))
        same = np.flatnonzero(np.diff(contexts[order, 0]))
        kept = order[np.append(same, len(order) - 1)]
        self.contexts, self.priority, self.weight = contexts[kept], priorities[kept], weights[kept]


def list_expert_tokens(
    reader: DecisionReader,
    *,
    layer: int,
    expert: int,
    stack: str | None = None,
    by: str = "domain",
    num_listed: int = 20,
    num_contexts: int = 10,
) -> ExpertTokens:
    """Return the tokens that an expert gets, and contexts of some.

    Args:
        reader: The layer of a trace, with the columns `token_id` and, if it has them, `token` and
            `weight`.
        layer: As in the trace's column.
        expert: Its id.
        stack: As in the trace's column; by default the only one with such a layer, or `decoder`.
        by: The column that the reader groups tokens by.
        num_listed: Tokens that are listed; rows hold all.
        num_contexts: Contexts that are listed.

    Raises:
        InputError: The trace has no token ids, or a row is not one of a trace.
        UsageError: There is no such layer or expert.
    """
    place = choose_stack(reader, layer=layer, stack=stack)
    (shape,) = (item for item in reader.layers if (item.stack, item.layer) == place)
    num_experts = shape.num_experts + shape.num_identity_experts
    if not 0 <= expert < num_experts:
        raise UsageError(
            f"Layer {layer} has no expert {expert}.",
            hint=f"Its experts are 0 to {num_experts - 1}.",
        )
    tally = _Tally(reader, expert)
    for window in reader:
        if place in window.layers:
            tally.add(window, window.layers[place])
    has_first = has_first_choices(reader)
    whole = ExpertUse()
    for use in tally.uses.values():
        whole.join(use)
    tokens = whole.list_tokens(tally.pieces, has_first=has_first)
    contexts = _list_contexts(reader, tally)
    by_id = {context.token_id: context for context in contexts}
    return ExpertTokens(
        stack=place[0],
        layer=layer,
        num_experts=num_experts,
        top_k=shape.top_k,
        num_tokens=whole.num_tokens,
        trace=reader.facts,
        expert=expert,
        count=whole.count,
        share=whole.count / max(1, whole.num_tokens),
        baseline=whole.expect_share(num_experts),
        num_token_ids=len(tokens),
        num_layer_ids=whole.num_layer_ids,
        tokens=tokens[:num_listed],
        contexts=contexts[:num_contexts],
        notes=(*reader.notes, *(() if has_first else (NO_FIRST_CHOICE,))),
        by=by,
        by_group=_list_groups(reader, tally, num_experts=num_experts, has_first=has_first),
        all_tokens=tokens,
        all_contexts=tuple(by_id[token.token_id] for token in tokens),
    )


def _list_groups(
    reader: DecisionReader, tally: _Tally, *, num_experts: int, has_first: bool
) -> tuple[GroupUse, ...]:
    """Return the use by each group in the order of names; none if there is one group."""
    if len(reader.groups) < 2:
        return ()
    return tuple(
        GroupUse(
            group=reader.groups[group],
            num_tokens=use.num_tokens,
            count=use.count,
            share=use.count / use.num_tokens,
            baseline=use.expect_share(num_experts),
            tokens=use.list_tokens(tally.pieces, has_first=has_first)[:_TOKENS_OF_GROUP],
        )
        for group, use in sorted(tally.uses.items(), key=lambda item: reader.groups[item[0]])
    )


def choose_stack(reader: DecisionReader, *, layer: int, stack: str | None) -> tuple[str, int]:
    """Return the stack and layer that are meant.

    Raises:
        UsageError: There is no such layer, or there are several.
    """
    stacks = [item.stack for item in reader.layers if item.layer == layer]
    if stack is None and (len(stacks) == 1 or "decoder" in stacks):
        return ("decoder" if len(stacks) > 1 else stacks[0]), layer
    if stack is None or stack not in stacks:
        known = ", ".join(printable(one, max_length=40) for one in stacks[:12])
        raise UsageError(
            f"Layer {layer} is in several stacks."
            if stack is None
            else f"The stack '{printable(stack, max_length=60)}' has no layer {layer}.",
            hint=f"Name one of the stacks with it: {known}.",
        )
    return stack, layer


def _list_contexts(reader: DecisionReader, tally: _Tally) -> tuple[TokenContext, ...]:
    """Return the context of each token id, that of the largest priority first."""
    has_weights = "weight" in reader.columns
    order = np.lexsort((tally.contexts[:, 0], -tally.priority))
    contexts = []
    for row, weight in zip(tally.contexts[order].tolist(), tally.weight[order], strict=True):
        before = row[_AROUND : _AROUND + _NUM_AROUND]
        after = row[_AROUND + _NUM_AROUND :]
        contexts.append(
            TokenContext(
                prompt_id=reader.prompts[row[1]],
                position=row[2],
                token_id=row[0],
                weight=float(weight) if has_weights else None,
                before=tuple(tally.pieces.get(one) for one in before if one != _NO_TOKEN),
                token=tally.pieces.get(row[0]),
                after=tuple(tally.pieces.get(one) for one in after if one != _NO_TOKEN),
            )
        )
    return tuple(contexts)


def _shift(window: DecisionWindow, index: Ints, distance: int) -> Ints:
    """Return the ids that stand at a distance from tokens, `_NO_TOKEN` outside of the prompt."""
    ids, prompt, position = take_token_ids(window), window.prompt, window.position
    there = np.clip(index + distance, 0, len(ids) - 1)
    # A prompt of another stack, which may be the neighbour, begins at its first position.
    is_further = (position[there] - position[index]) * distance > 0
    is_same = (there == index + distance) & (prompt[there] == prompt[index])
    shifted: Ints = np.where(is_same & is_further, ids[there], _NO_TOKEN)
    return shifted
