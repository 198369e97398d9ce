"""Read a sample of a trace's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.sampling.choosing import choose_prompts
from moetool.analysis.sampling.places import find_places
from moetool.analysis.sampling.result import PromptSample, SampledLayer, SampledPrompt
from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.reader import DecisionReader
from moetool.trace.windows.window import DecisionWindow

# Columns of a trace that a sample keeps.
COLUMNS = ("weight", "token_id", "token", "phase")


@dataclass
class _Kept:
    """Tokens that were kept so far, in lists with one item for each window."""

    prompt: list[NDArray[np.int64]] = field(default_factory=list)
    stack: list[NDArray[np.int64]] = field(default_factory=list)
    position: list[NDArray[np.int64]] = field(default_factory=list)
    token_id: list[NDArray[np.int64]] = field(default_factory=list)
    phase: list[NDArray[np.int8]] = field(default_factory=list)
    pieces: dict[int, str] = field(default_factory=dict)
    layers: dict[Place, list[tuple[NDArray[np.int64], ...]]] = field(default_factory=dict)
    weights: dict[Place, list[NDArray[np.float32]]] = field(default_factory=dict)
    num_tokens: int = 0


def sample_prompts(
    reader: DecisionReader,
    groups: Sequence[str],
    *,
    by: str,
    most_assignments: int,
    like: PromptSample | None = None,
) -> PromptSample:
    """Return whole prompts of a trace with all their decisions, of all groups alike.

    If even the shortest prompt is too long, its first tokens are the sample.

    Args:
        reader: Reads `COLUMNS`.
        groups: Of each of the reader's prompts.
        by: Column that the groups are from.
        most_assignments: Experts of all tokens in all layers; at least one token is kept.
        like: A sample of another trace, whose prompts are to be taken, with as many of their first
            tokens; None to choose.

    Raises:
        InputError: A check of the trace fails, or it has none of the prompts of `like`.
    """
    stacks = sorted({layer.stack for layer in reader.layers})
    if like is None:
        limits = _choose(reader, groups, stacks, most_assignments=most_assignments)
        # By group, then as in the trace.
        chosen = sorted(
            np.flatnonzero(limits.any(axis=1)).tolist(), key=lambda one: (groups[one], one)
        )
    else:
        lengths = like.count_tokens()
        limits = np.array(
            [[lengths.get((one, stack), 0) for stack in stacks] for one in reader.prompts]
        )
        index_of = {prompt: index for index, prompt in enumerate(reader.prompts)}
        chosen = [index_of[one.prompt_id] for one in like.prompts if one.prompt_id in index_of]
        if not chosen:
            raise InputError(
                f"'{printable(reader.path)}' has none of the sample's prompts.",
                hint="Give a trace of the same prompts.",
            )
    kept = _Kept()
    num_of_prompt = np.zeros(len(reader.prompts), dtype=np.int64)
    for window in reader:
        num_of_prompt += np.bincount(window.prompt, minlength=len(num_of_prompt))
        stack_of = _find_stacks(window, stacks)
        within, _ = find_places(window.prompt, stack_of)
        is_kept = within < limits[window.prompt, stack_of]
        if is_kept.any():
            _keep(kept, window, stack_of, is_kept)
    return _assemble(
        kept, reader, groups, by=by, stacks=stacks, chosen=chosen, num_of_prompt=num_of_prompt
    )


def _choose(
    reader: DecisionReader, groups: Sequence[str], stacks: Sequence[str], *, most_assignments: int
) -> NDArray[np.int64]:
    """Return how many tokens of each prompt and stack to keep.

    Returns:
        # (num_prompts, num_stacks)
    """
    num_rows = reader.num_rows_of_prompts
    limits = np.zeros((len(reader.prompts), len(stacks)), dtype=np.int64)
    chosen = choose_prompts(reader.prompts, groups, num_rows.tolist(), most_rows=most_assignments)
    if chosen:
        limits[chosen] = np.iinfo(np.int64).max
    else:
        rows_per_token = sum(layer.top_k for layer in reader.layers)
        limits[np.argmin(num_rows)] = max(1, most_assignments // rows_per_token)
    return limits


def _find_stacks(window: DecisionWindow, stacks: Sequence[str]) -> NDArray[np.int64]:
    """Return the index of each token's stack."""
    stack_of = np.zeros(len(window.prompt), dtype=np.int64)
    for (stack, _), choices in window.layers.items():
        stack_of[choices.token] = stacks.index(stack)
    return stack_of


def _keep(
    kept: _Kept, window: DecisionWindow, stack_of: NDArray[np.int64], is_kept: NDArray[np.bool_]
) -> None:
    # Index among all kept tokens, for those that are.
    new_index = np.cumsum(is_kept) - 1 + kept.num_tokens
    kept.prompt.append(window.prompt[is_kept])
    kept.stack.append(stack_of[is_kept])
    kept.position.append(window.position[is_kept])
    if window.token_id is not None:
        token_id = window.token_id[is_kept]
        kept.token_id.append(token_id)
        wanted = set(token_id.tolist())
        kept.pieces.update((one, piece) for one, piece in window.pieces.items() if one in wanted)
    if window.phase is not None:
        kept.phase.append(window.phase[is_kept])
    for place, choices in window.layers.items():
        mine = is_kept[choices.token]
        kept.layers.setdefault(place, []).append(
            (new_index[choices.token[mine]], choices.experts[mine])
        )
        if choices.weights is not None:
            kept.weights.setdefault(place, []).append(choices.weights[mine])
    kept.num_tokens += int(is_kept.sum())


def _assemble(
    kept: _Kept,
    reader: DecisionReader,
    groups: Sequence[str],
    *,
    by: str,
    stacks: Sequence[str],
    chosen: Sequence[int],
    num_of_prompt: NDArray[np.int64],
) -> PromptSample:
    prompt, stack = np.concatenate(kept.prompt), np.concatenate(kept.stack)
    position = np.concatenate(kept.position)
    rank = np.zeros(len(groups), dtype=np.int64)
    rank[chosen] = np.arange(len(chosen))
    order = np.lexsort((position, stack, rank[prompt]))
    new_place = np.empty(len(order), dtype=np.int64)
    new_place[order] = np.arange(len(order))
    num_kept = np.bincount(prompt, minlength=len(groups))
    return PromptSample(
        trace=reader.facts,
        by=by,
        prompts=tuple(
            SampledPrompt(
                prompt_id=reader.prompts[one],
                domain=groups[one],
                num_tokens=int(num_kept[one]),
                num_left_out=int(num_of_prompt[one] - num_kept[one]),
            )
            for one in chosen
        ),
        prompt=rank[prompt][order],
        stack=[stacks[one] for one in stack[order].tolist()],
        position=position[order],
        token_id=np.concatenate(kept.token_id)[order] if kept.token_id else None,
        phase=np.concatenate(kept.phase)[order] if kept.phase else None,
        pieces=kept.pieces,
        layers=tuple(
            _assemble_layer(layer, kept, new_place)
            for layer in reader.layers
            if (layer.stack, layer.layer) in kept.layers
        ),
        is_complete=kept.num_tokens == reader.facts.num_tokens,
        has_ranks=reader.has_ranks,
    )


def _assemble_layer(layer: RoutedLayer, kept: _Kept, new_place: NDArray[np.int64]) -> SampledLayer:
    place = (layer.stack, layer.layer)
    token = new_place[np.concatenate([part[0] for part in kept.layers[place]])]
    order = np.argsort(token)
    experts = np.concatenate([part[1] for part in kept.layers[place]])
    weights = kept.weights.get(place)
    return SampledLayer(
        layer=layer,
        token=token[order],
        experts=experts[order].astype(np.int16),
        weights=None if weights is None else np.concatenate(weights)[order],
    )
