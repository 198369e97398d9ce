"""Rows of the trace, made from the tokens and decisions of a window."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.trace.decisions import LayerDecisions, TracedTokens
from moetool.trace.rows import assignment_rows, merge_by_prompt, probability_rows
from moetool.tracing.prompts.tokens import TokenizedPrompt, spell_tokens
from moetool.tracing.recording.calls import RecordedLayer
from moetool.tracing.windows.collect import CollectedScope
from moetool.tracing.windows.probabilities import ScoreFunction, find_score_function

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RowMaker:
    """Makes rows, in any number of threads.

    Attributes:
        widths: Rows of a decision of each layer: the fewest, and the most, which is the largest
            number of experts that it chose for a token.

    Args:
        tokenizer: Spells the tokens.
        with_probabilities: Make rows of the routers' probabilities as well.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, with_probabilities: bool) -> None:
        self.widths: dict[MoeLayer, tuple[int, int]] = {}
        self._tokenizer = tokenizer
        self._with_probabilities = with_probabilities
        # Found once per layer.
        self._score_functions: dict[MoeLayer, ScoreFunction] = {}
        # Guards everything above.
        self._mutex = threading.Lock()

    @property
    def score_function(self) -> str | None:
        """Name of the function from scores to probabilities; None if these were not asked for."""
        return next((function.name for function in self._score_functions.values()), None)

    def note_layers(self, scopes: Sequence[CollectedScope]) -> None:
        """Learn from decisions what `widths` and `score_function` state.

        Raises:
            UntraceableError: Probabilities are asked for, and don't follow from a router's scores.
        """
        with self._mutex:
            for recorded in (layer for scope in scopes for layer in scope.layers):
                layer, width = recorded.layer, recorded.experts.shape[1]
                fewest, most = self.widths.get(layer, (width, width))
                self.widths[layer] = min(fewest, width), max(most, width)
                if self._with_probabilities and layer not in self._score_functions:
                    self._score_functions[layer] = find_score_function(recorded)

    def make_rows(
        self, window: Sequence[TokenizedPrompt], scopes: Sequence[CollectedScope]
    ) -> tuple[pa.Table, pa.Table | None]:
        """Return the rows of some prompts and, if asked for, those of the probabilities.

        Args:
            window: The prompts.
            scopes: Their decisions, which `note_layers` has seen.
        """
        tables, probabilities = [], []
        for scope in scopes:
            tokens = self._name_tokens(window, scope)
            decisions = [self._decide(layer) for layer in scope.layers]
            tables.append(assignment_rows(tokens, decisions))
            if self._with_probabilities:
                probabilities.append(probability_rows(tokens, decisions))
        return merge_by_prompt(tables), merge_by_prompt(probabilities) if probabilities else None

    def _name_tokens(
        self, window: Sequence[TokenizedPrompt], scope: CollectedScope
    ) -> TracedTokens:
        return TracedTokens(
            prompt_ids=[item.prompt.prompt_id for item in window],
            domains=[item.prompt.domain for item in window],
            prompt=scope.prompt,
            position=scope.position,
            phase=scope.phase,
            token_id=scope.token_id,
            pieces=self._spell(scope.token_id),
        )

    def _decide(self, recorded: RecordedLayer) -> LayerDecisions:
        layer = recorded.layer
        decisions = LayerDecisions(
            stack=layer.stack,
            layer=layer.layer,
            experts=recorded.experts,
            weights=recorded.weights,
        )
        if not self._with_probabilities:
            return decisions
        assert recorded.scores is not None
        probabilities = self._score_functions[layer].apply(recorded.scores)
        return replace(decisions, probabilities=probabilities)

    def _spell(self, token_ids: NDArray[np.int32]) -> Sequence[str]:
        # A tokenizer need not stand several threads.
        with self._mutex:
            return spell_tokens(token_ids, self._tokenizer)
