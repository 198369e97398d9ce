"""Requests for experts: the distinct experts of each step that a model takes with some tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.trace.decisions import NO_EXPERT, PHASES
from moetool.trace.windows.window import DecisionWindow, LayerChoices

PREFILL, DECODE = range(len(PHASES))
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Steps:
    """The steps in which the tokens of a window pass through the model.

    Attributes:
        of_token: Ascending number of each token's step. # (num_tokens,)
        prompt: Index into the reader's prompts. # (num_steps,)
        phase: `PREFILL` or `DECODE`. # (num_steps,)
    """

    of_token: NDArray[np.int64]
    prompt: NDArray[np.int64]
    phase: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prompt)


# Steps and tokens of a simulated router: more change its rates by less than they vary by chance.
_MOST_STEPS, _MOST_TOKENS = 2_000, 20_000


class FirstSteps:
    """The first steps of a trace, in which a simulated router follows it.

    Attributes:
        of_token: Ascending number of each token's step, at most 20,000 tokens. # (num_tokens,)
        phases: `PREFILL` or `DECODE`. # (num_steps,)
        sizes: Of each layer, the experts that each token ran; 0 for a token without a decision.
            # (num_layers, num_tokens)
    """

    def __init__(self, num_layers: int) -> None:
        self.of_token = np.zeros(0, dtype=np.int64)
        self.phases = np.zeros(0, dtype=np.int64)
        self.sizes = np.zeros((num_layers, 0), dtype=np.int16)

    def add(self, steps: Steps, layers: Sequence[LayerChoices | None]) -> None:
        """Append the steps of a window, until there are enough.

        Args:
            steps: Of the window.
            layers: The choices of each layer in it; None for none.
        """
        num_steps, num_tokens = len(self.phases), len(self.of_token)
        # A step that is too long is cut, so that there is at least one.
        enough = int(np.searchsorted(steps.of_token, _MOST_STEPS - num_steps))
        number = min(enough, _MOST_TOKENS - num_tokens)
        if number <= 0:
            return
        of_token = steps.of_token[:number]
        self.of_token = np.concatenate([self.of_token, of_token + num_steps])
        self.phases = np.concatenate([self.phases, steps.phase[: int(of_token[-1]) + 1]])
        sizes = np.zeros((len(layers), number), dtype=np.int16)
        for mine, choices in zip(sizes, layers, strict=True):
            if choices is not None:
                kept = choices.token < number
                mine[choices.token[kept]] = (choices.experts[kept] != NO_EXPERT).sum(axis=1)
        self.sizes = np.concatenate([self.sizes, sizes], axis=1)


@dataclass(frozen=True)
class Requests:
    """The experts of one layer that the steps of a window need, each once a step.

    Attributes:
        step: Ascending index into the steps. # (num_requests,)
        expert: # (num_requests,)
        next_use: The token, counted from the beginning of the trace, that needs the expert next in
            a later step; `NEVER` if none does. # (num_requests,)
        uses: All uses, several by the tokens of one step: their step, by token and then by rank, the
            first choice last. # (num_uses,)
        used: The experts of these uses. # (num_uses,)
    """

    step: NDArray[np.int64]
    expert: NDArray[np.int64]
    next_use: NDArray[np.int64]
    uses: NDArray[np.int64]
    used: NDArray[np.int64]


def make_steps(
    window: DecisionWindow,
    stack: NDArray[np.int64],
    *,
    tokens_per_batch: int | None,
    decodes_all: bool,
) -> Steps:
    """Return the steps of a window's tokens.

    A generated token takes one step; the tokens of a prompt share steps of a batch each.
    Tokens whose phase is unknown are taken to be of a prompt.

    Args:
        window: Its tokens are in the order of stack, prompt and position.
        stack: A number for each token's stack. # (num_tokens,)
        tokens_per_batch: Consecutive tokens of a prompt that pass together; None for all.
        decodes_all: Take one step for each token, whatever its phase.
    """
    num_tokens = len(window.prompt)
    phase = np.zeros(num_tokens, dtype=np.int64)
    if decodes_all:
        phase[:] = DECODE
    elif window.phase is not None:
        phase[window.phase == DECODE] = DECODE
    starts = np.zeros(num_tokens, dtype=bool)
    starts[:1] = True
    for values in (window.prompt, stack, phase):
        starts[1:] |= values[1:] != values[:-1]
    if tokens_per_batch is not None:
        begin = np.maximum.accumulate(np.where(starts, np.arange(num_tokens), 0))
        starts |= (np.arange(num_tokens) - begin) % tokens_per_batch == 0
    starts |= phase == DECODE
    first = np.flatnonzero(starts)
    return Steps(np.cumsum(starts) - 1, window.prompt[first], phase[first])


def find_requests(
    choices: LayerChoices,
    steps: Steps,
    *,
    first_token: int,
    next_uses: NDArray[np.int64],
) -> Requests:
    """Return the experts of a layer that the steps of a window need.

    Args:
        choices: The layer's decisions.
        steps: The window's steps.
        first_token: Tokens before this window.
        next_uses: The token after this window that needs each expert first. # (num_experts,)
    """
    width = choices.experts.shape[1]
    # The first choice comes last: it is the most recent use.
    experts = choices.experts[:, ::-1].ravel()
    token = np.repeat(choices.token, width)
    ran = (experts != NO_EXPERT) & (experts < len(next_uses))
    if not ran.all():
        experts, token = experts[ran], token[ran]
    order = np.argsort(
        experts.astype(np.int16 if len(next_uses) < 2**15 else np.int64), kind="stable"
    )
    sorted_experts, sorted_tokens = experts[order], token[order]
    following = np.empty(len(order), dtype=np.int64)
    following[:-1] = sorted_tokens[1:] + first_token
    is_last = np.ones(len(order), dtype=bool)
    is_last[:-1] = sorted_experts[1:] != sorted_experts[:-1]
    following[is_last] = next_uses[sorted_experts[is_last]]
    next_use = np.empty(len(order), dtype=np.int64)
    next_use[order] = following
    step = steps.of_token[token]
    # Of several uses in one step, the last one knows when the expert is needed afterwards.
    within = next_use - first_token
    is_within = within < len(steps.of_token)
    later = np.full(len(step), -1, dtype=np.int64)
    later[is_within] = steps.of_token[within[is_within]]
    kept = later != step
    if kept.all():
        return Requests(step, experts, next_use, step, experts)
    return Requests(step[kept], experts[kept], next_use[kept], step, experts)
