"""Find the tokens that two traces have in common, or say where the traces differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.printable import printable

_HINT = (
    "Trace the same prompts with the same tokenizer, or add --common-tokens "
    "(common_tokens=True in Python) to compare the tokens that both have."
)
_DECODER = "decoder"


@dataclass(frozen=True)
class TokenList:
    """Tokens of a trace, in the order of stack, prompt and position.

    Attributes:
        path: The trace.
        prompts: The names of the prompts.
        stacks: The names of the stacks.
        stack: Index into `stacks`. # (num_tokens,)
        prompt: Index into `prompts`. # (num_tokens,)
        position: # (num_tokens,)
        token_id: None if the trace has none. # (num_tokens,)
    """

    path: str
    prompts: Sequence[str]
    stacks: Sequence[str]
    stack: NDArray[np.int64]
    prompt: NDArray[np.int64]
    position: NDArray[np.int64]
    token_id: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True)
class MatchedTokens:
    """Tokens that two lists have in common.

    Attributes:
        first: Indices into the first list. # (num_matched,)
        second: Indices into the second. # (num_matched,)
        num_left_out: Of each list.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    num_left_out: tuple[int, int]


def match_tokens(first: TokenList, second: TokenList, *, is_common: bool) -> MatchedTokens:
    """Return the tokens that two lists have at the same stack, prompt and position.

    Args:
        first: Tokens of some whole prompts.
        second: Tokens of the same prompts.
        is_common: Leave out tokens that one of the lists lacks, and those of a prompt from the
            first one on whose id differs. The encoder's tokens all bear on those of the decoder: if
            one of them differs, the whole prompt is left out.

    Raises:
        InputError: The tokens differ, unless `is_common`.
    """
    mine, others = _align(first, second)
    one, other = np.flatnonzero(mine >= 0), np.flatnonzero(others >= 0)
    differs = np.zeros(len(one), dtype=bool)
    if first.token_id is not None and second.token_id is not None:
        differs = first.token_id[one] != second.token_id[other]
    if not is_common:
        _refuse_differences(first, second, mine, others, (one[differs], other[differs]))
    if differs.any():
        kept = ~_find_cut(first, one, differs)
        one, other = one[kept], other[kept]
    return MatchedTokens(one, other, (len(first) - len(one), len(second) - len(other)))


def refuse_prompt(name: str, *, has: str, lacks: str) -> NoReturn:
    """Raise the error for a prompt that only one of two traces has.

    Raises:
        InputError: Always.
    """
    raise InputError(
        f"The traces are of different tokens: '{printable(has)}' has the prompt "
        f"'{printable(name, max_length=60)}', which '{printable(lacks)}' lacks.",
        hint=_HINT,
    )


def _align(first: TokenList, second: TokenList) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each token's index in the other list; -1 for none."""
    one, other = _key(first, second), _key(second, first)
    if np.array_equal(one, other):
        index = np.arange(len(one), dtype=np.int64)
        return index, index
    return _look_up(one, other), _look_up(other, one)


def _key(tokens: TokenList, others: TokenList) -> NDArray[np.int64]:
    """Return an ascending number for each token: its stack, prompt and position."""
    width = 1 + max(int(tokens.position.max(initial=0)), int(others.position.max(initial=0)))
    return (tokens.stack * len(tokens.prompts) + tokens.prompt) * width + tokens.position


def _look_up(keys: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(among):
        return np.full(len(keys), -1, dtype=np.int64)
    index = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    return np.where(among[index] == keys, index, -1)


def _find_cut(
    tokens: TokenList, index: NDArray[np.intp], differs: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which of some tokens come after the first of their prompt that differs, or are it."""
    cut = np.full(len(tokens.prompts), np.iinfo(np.int64).max)
    prompt, position = tokens.prompt[index], tokens.position[index]
    is_decoder = np.array([name == _DECODER for name in tokens.stacks])[tokens.stack[index]]
    np.minimum.at(cut, prompt[differs], np.where(is_decoder, position, 0)[differs])
    after: NDArray[np.bool_] = position >= cut[prompt]
    return after


def _refuse_differences(
    first: TokenList,
    second: TokenList,
    mine: NDArray[np.int64],
    others: NDArray[np.int64],
    changed: tuple[NDArray[np.intp], NDArray[np.intp]],
) -> None:
    """Raise the error for the first place where two lists differ, if there is one.

    Args:
        first: One list.
        second: The other.
        mine: Index in the second of each token of the first; -1 for none.
        others: Index in the first of each token of the second; -1 for none.
        changed: Indices of the tokens with different ids in both.
    """
    one, other = (np.flatnonzero(index < 0)[:1] for index in (mine, others))
    keys = [
        *(_key(first, second)[one].tolist() or [np.inf]),
        *(_key(second, first)[other].tolist() or [np.inf]),
        *(_key(first, second)[changed[0][:1]].tolist() or [np.inf]),
    ]
    earliest = min(keys)
    if earliest == np.inf:
        return
    kind = keys.index(earliest)
    if kind == 0:
        _refuse_single(int(one[0]), has=first, lacks=second)
    if kind == 1:
        _refuse_single(int(other[0]), has=second, lacks=first)
    _refuse_ids(first, second, int(changed[0][0]), int(changed[1][0]))


def _refuse_single(token: int, *, has: TokenList, lacks: TokenList) -> NoReturn:
    raise InputError(
        f"The traces are of different tokens: '{printable(has.path)}' has "
        f"{_name_place(has, token)}{_name_id(has, token)}, which '{printable(lacks.path)}' lacks.",
        hint=_HINT,
    )


def _refuse_ids(first: TokenList, second: TokenList, one: int, other: int) -> NoReturn:
    assert first.token_id is not None
    assert second.token_id is not None
    raise InputError(
        f"The traces are of different tokens: at {_name_place(first, one)}, the token id is "
        f"{first.token_id[one]} in '{printable(first.path)}' and {second.token_id[other]} in "
        f"'{printable(second.path)}'.",
        hint=_HINT,
    )


def _name_place(tokens: TokenList, token: int) -> str:
    prompt = printable(tokens.prompts[tokens.prompt[token]], max_length=60)
    stack = tokens.stacks[tokens.stack[token]]
    within = "" if stack == _DECODER else f" of the {printable(stack, max_length=40)}"
    return f"position {tokens.position[token]} of prompt '{prompt}'{within}"


def _name_id(tokens: TokenList, token: int) -> str:
    return "" if tokens.token_id is None else f" (token id {tokens.token_id[token]})"
