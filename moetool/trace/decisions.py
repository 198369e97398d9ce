"""Values that a tracer hands over: tokens, and what each routed layer chose for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PHASES = ("prefill", "decode")
NO_DOMAIN = "(none)"
NO_EXPERT = -1


@dataclass(frozen=True)
class TracedTokens:
    """The real tokens of some prompts, ordered by prompt, then position.

    Attributes:
        prompt_ids: # (num_prompts,)
        domains: The prompts' labels. # (num_prompts,)
        prompt: Index into `prompt_ids`. # (num_tokens,)
        position: Index among the real tokens of the sequence. # (num_tokens,)
        phase: Index into `PHASES`. # (num_tokens,)
        token_id: # (num_tokens,)
        pieces: The tokenizer's piece for each distinct id in `token_id`, in ascending order of
            ids.
    """

    prompt_ids: Sequence[str]
    domains: Sequence[str]
    prompt: NDArray[np.int32]
    position: NDArray[np.int32]
    phase: NDArray[np.int8]
    token_id: NDArray[np.int32]
    pieces: Sequence[str]


@dataclass(frozen=True)
class LayerDecisions:
    """The choices of one routed layer for the tokens of a `TracedTokens`, in their order.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        experts: Chosen ids in the router's order. # (num_tokens, top_k)
        weights: Their routing weights. # (num_tokens, top_k)
        probabilities: The router's, if they are recorded. # (num_tokens, num_experts)
    """

    stack: str
    layer: int
    experts: NDArray[np.int16]
    weights: NDArray[np.float32]
    probabilities: NDArray[np.float16] | None = None
