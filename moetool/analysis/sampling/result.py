"""Prompts of a trace with all their decisions, as arrays."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moetool.trace.decisions import PHASES
from moetool.trace.facts import TraceFacts
from moetool.trace.metadata import RoutedLayer

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt of the sample.

    Attributes:
        prompt_id: As in the trace's column.
        domain: Value of the column that groups prompts.
        num_tokens: Tokens in the sample, of all stacks.
        num_left_out: Its other tokens, where it was too long for the sample.
    """

    prompt_id: str
    domain: str
    num_tokens: int
    num_left_out: int


@dataclass(frozen=True)
class SampledLayer:
    """The decisions of one layer.

    Attributes:
        layer: What the trace's metadata, or its rows, say of the layer.
        token: Ascending index into the sample's tokens. # (num_decisions,)
        experts: In order of rank if the trace has ranks; -1 where fewer ran.
            # (num_decisions, top_k)
        weights: Of these experts, 0 where none ran; None if the trace has none.
            # (num_decisions, top_k)
    """

    layer: RoutedLayer
    token: NDArray[np.int64]
    experts: NDArray[np.int16]
    weights: NDArray[np.float32] | None


@dataclass(frozen=True)
class PromptSample:
    """Some prompts of a trace, with every decision of each of their tokens.

    Tokens are in the order of prompts, stacks and positions.

    Attributes:
        trace: Facts about the whole trace.
        by: Column that groups prompts.
        prompts: By group, then in the order of the trace.
        prompt: Index into `prompts`. # (num_tokens,)
        stack: Stack of the layers that the token went through. # (num_tokens,)
        position: As in the trace's column. # (num_tokens,)
        token_id: None if the trace has none. # (num_tokens,)
        phase: Index into `PHASES`, -1 for other words; None if the trace has none. # (num_tokens,)
        pieces: The tokenizer's piece of each token id; empty if the trace has none.
        layers: In the order of stack and layer.
        is_complete: Whether it holds the whole trace.
        has_ranks: Whether the first expert of a decision is the router's first choice.
    """

    trace: TraceFacts
    by: str
    prompts: tuple[SampledPrompt, ...]
    prompt: NDArray[np.int64]
    stack: Sequence[str]
    position: NDArray[np.int64]
    token_id: NDArray[np.int64] | None
    phase: NDArray[np.int8] | None
    pieces: Mapping[int, str]
    layers: tuple[SampledLayer, ...]
    is_complete: bool
    has_ranks: bool

    @property
    def num_tokens(self) -> int:
        """Tokens in the sample, of all stacks."""
        return len(self.prompt)

    def __repr__(self) -> str:
        return (
            f"<PromptSample: {len(self.prompts):,} of {self.trace.num_prompts:,} prompts, "
            f"{self.num_tokens:,} of {self.trace.num_tokens:,} tokens>"
        )

    def count_tokens(self) -> dict[tuple[str, str], int]:
        """Return the number of tokens by prompt id and stack."""
        ids = [prompt.prompt_id for prompt in self.prompts]
        return Counter(zip((ids[one] for one in self.prompt.tolist()), self.stack, strict=True))

    def has_tokens_of(self, other: PromptSample) -> bool:
        """Return whether two samples have the same tokens of the same prompts."""
        names = ([prompt.prompt_id for prompt in each.prompts] for each in (self, other))
        return (
            operator.eq(*names)
            and np.array_equal(self.prompt, other.prompt)
            and np.array_equal(self.position, other.position)
            and list(self.stack) == list(other.stack)
        )

    def list_pieces(self) -> list[str | None]:
        """Return the piece of each token; None where the trace has none."""
        if self.token_id is None:
            return [None] * self.num_tokens
        return [self.pieces.get(one) for one in self.token_id.tolist()]

    def to_frame(self) -> pd.DataFrame:
        """Return the sample's rows: one for each expert that ran, as a trace has them.

        Rows are in the order of layers and tokens. Columns that the trace lacks are left out, except
        for `rank`, which counts the experts of a decision as they are ordered here.
        """
        import pandas as pd

        return pd.concat([self._tabulate(layer) for layer in self.layers], ignore_index=True)

    def _tabulate(self, layer: SampledLayer) -> pd.DataFrame:
        import pandas as pd

        decision, rank = np.nonzero(layer.experts >= 0)
        token = layer.token[decision]
        prompts = np.array([(one.prompt_id, one.domain) for one in self.prompts], dtype=object)
        columns: dict[str, Any] = {
            "prompt_id": prompts[self.prompt[token], 0],
            self.by: prompts[self.prompt[token], 1],
            "stack": layer.layer.stack,
            "position": self.position[token],
        }
        if self.token_id is not None:
            columns["token_id"] = self.token_id[token]
            if self.pieces:
                columns["token"] = np.array(self.list_pieces(), dtype=object)[token]
        if self.phase is not None:
            # -1 stands for other words.
            columns["phase"] = np.array([*PHASES, None], dtype=object)[self.phase[token]]
        columns |= {
            "layer": layer.layer.layer,
            "rank": rank,
            "expert": layer.experts[decision, rank],
        }
        if layer.weights is not None:
            columns["weight"] = layer.weights[decision, rank]
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """Return what the sample holds, without its decisions, as plain values."""
        return {
            "by": self.by,
            "is_complete": self.is_complete,
            "num_tokens": self.num_tokens,
            "prompts": [vars(prompt) for prompt in self.prompts],
        }
