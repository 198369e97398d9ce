"""Excerpts of a trace: the experts of a prompt's first and last tokens, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.trace.decisions import PHASES

# Prompts whose excerpts are made unasked, if a run has no more.
_FEW_PROMPTS = 3
# Tokens of an excerpt that the prompt gave, and tokens that the model wrote. Where there are
# several excerpts, each is shorter, but never below the least.
_MOST_TOKENS = 24
_LEAST_TOKENS = 8


@dataclass(frozen=True)
class RoutedToken:
    """One token and the experts that it went to.

    Attributes:
        position: As in the trace's column.
        piece: The tokenizer's own piece.
        is_new: Whether the model wrote it.
        experts: For each layer the chosen ids, that of the largest weight first; -1 where none ran.
    """

    position: int
    piece: str
    is_new: bool
    experts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class StackExcerpt:
    """The experts of one stack for the first and last tokens of a prompt.

    Attributes:
        stack: As in the trace's column.
        layers: As in the trace's column, in its order.
        tokens: In order. Where positions are missing, the tokens in between are left out.
    """

    stack: str
    layers: tuple[int, ...]
    tokens: tuple[RoutedToken, ...]


@dataclass(frozen=True)
class PromptExcerpt:
    """One prompt, what the model wrote after it, and where the tokens of both went.

    Attributes:
        prompt_id: As in the trace's column.
        domain: As in the trace's column.
        prompt: The prompt's text.
        written: The text that the model wrote; None if it only read the prompt.
        stacks: In the order of the trace.
    """

    prompt_id: str
    domain: str
    prompt: str
    written: str | None
    stacks: tuple[StackExcerpt, ...]


def choose_num_excerpts(asked: int | None, *, num_prompts: int) -> int:
    """Return the number of prompts to show: as asked, else every prompt of a run of a few."""
    if asked is None:
        return num_prompts if num_prompts <= _FEW_PROMPTS else 0
    return min(asked, num_prompts)


def choose_excerpt_tokens(num_excerpts: int) -> int:
    """Return how many tokens of a prompt, and again of those written, each excerpt holds."""
    return max(_LEAST_TOKENS, _MOST_TOKENS // max(num_excerpts, 1))


def excerpt_rows(rows: pa.Table, prompt_id: str, *, most_tokens: int) -> tuple[StackExcerpt, ...]:
    """Return the experts of one prompt's first and last tokens, by stack.

    Args:
        rows: Rows of a trace, see `TRACE_SCHEMA`; those of one prompt stand together.
        most_tokens: Number of tokens of the prompt to keep, and again of those written: half of
            them the first ones, the others the last.
    """
    own = _slice_prompt(rows, prompt_id)
    stack = _codes(own, "stack")
    # In the order of the trace, not of the codes.
    _, first = np.unique(stack, return_index=True)
    return tuple(
        _excerpt_stack(own.filter(pa.array(stack == stack[at])), most_tokens=most_tokens)
        for at in np.sort(first)
    )


def _slice_prompt(rows: pa.Table, prompt_id: str) -> pa.Table:
    ids = _words(rows, "prompt_id")
    (at,) = np.nonzero(_codes(rows, "prompt_id") == ids.index(prompt_id))
    return rows.slice(at[0], len(at))


def _excerpt_stack(rows: pa.Table, *, most_tokens: int) -> StackExcerpt:
    position = rows.column("position").to_numpy()  # (num_rows,)
    phases = np.array(_words(rows, "phase"), dtype=object)
    is_new = np.equal(phases, PHASES[1])[_codes(rows, "phase")]
    kept = np.concatenate(
        [take_ends(np.unique(position[is_new == phase]), most_tokens) for phase in (False, True)]
    )
    short = rows.filter(pa.array(np.isin(position, kept)))
    pieces: dict[int, tuple[str, bool]] = {}
    experts: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row in short.select(["position", "token", "phase", "layer", "rank", "expert"]).to_pylist():
        pieces[row["position"]] = (row["token"], row["phase"] == PHASES[1])
        chosen = experts.setdefault((row["position"], row["layer"]), [])
        chosen.append((row["rank"], row["expert"]))
    layers = tuple(dict.fromkeys(layer for _, layer in experts))
    return StackExcerpt(
        stack=_words(rows, "stack")[_codes(rows, "stack")[0]],
        layers=layers,
        tokens=tuple(
            RoutedToken(
                position=number,
                piece=piece,
                is_new=new,
                experts=tuple(
                    tuple(expert for _, expert in sorted(experts[number, layer]))
                    for layer in layers
                ),
            )
            for number, (piece, new) in sorted(pieces.items())
        ),
    )


def take_ends(positions: NDArray[Any], most: int) -> NDArray[Any]:
    """Return the first and the last of some positions, `most` in all."""
    if len(positions) <= most:
        return positions
    num_last = most // 2
    return np.concatenate([positions[: most - num_last], positions[len(positions) - num_last :]])


def _codes(rows: pa.Table, name: str) -> NDArray[Any]:
    codes: NDArray[Any] = rows.column(name).combine_chunks().indices.to_numpy()
    return codes


def _words(rows: pa.Table, name: str) -> Sequence[str]:
    words: Sequence[str] = rows.column(name).combine_chunks().dictionary.to_pylist()
    return words
