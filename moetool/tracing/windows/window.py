"""Rows of the trace, made from the tokens and decisions of a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.trace.decisions import LayerDecisions, TracedTokens
from moetool.trace.rows import assignment_rows, merge_by_prompt, probability_rows
from moetool.trace.writing.pieces import TraceBatch
from moetool.trace.writing.unfinished.finished import FinishedWindow
from moetool.tracing.prompts.tokens import TokenizedPrompt, spell_tokens
from moetool.tracing.recording.calls import RecordedLayer
from moetool.tracing.windows.collect import CollectedScope
from moetool.tracing.windows.probabilities import ScoreFunction, find_score_function

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RowMaker:
    """Makes rows window by window, and counts them.

    Attributes:
        num_rows: Assignments.
        num_tokens: Tokens; in an encoder-decoder, of both stacks.
        num_decisions: Tokens times the layers that routed them.
        num_new_tokens: Generated tokens.
        top_k: Largest number of experts that each layer chose for a token.

    Args:
        tokenizer: Spells the tokens.
        with_probabilities: Make rows of the routers' probabilities as well.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, with_probabilities: bool) -> None:
        self.num_rows, self.num_tokens, self.num_decisions, self.num_new_tokens = 0, 0, 0, 0
        self.top_k: dict[MoeLayer, int] = {}
        self._tokenizer = tokenizer
        self._with_probabilities = with_probabilities
        # Found once per layer.
        self._score_functions: dict[MoeLayer, ScoreFunction] = {}

    @property
    def score_function(self) -> str | None:
        """Name of the function from scores to probabilities; None if these were not asked for."""
        return next((function.name for function in self._score_functions.values()), None)

    def make_rows(
        self, window: Sequence[TokenizedPrompt], scopes: Sequence[CollectedScope]
    ) -> tuple[pa.Table, pa.Table | None]:
        """Return a window's rows and, if asked for, those of the probabilities."""
        tables, probabilities = [], []
        for scope in scopes:
            tokens = self._name_tokens(window, scope)
            decisions = [self._decide(layer) for layer in scope.layers]
            tables.append(assignment_rows(tokens, decisions))
            if self._with_probabilities:
                probabilities.append(probability_rows(tokens, decisions))
            self.num_tokens += len(scope.token_id)
            self.num_decisions += len(scope.token_id) * len(decisions)
        rows = merge_by_prompt(tables)
        self.num_rows += rows.num_rows
        return rows, merge_by_prompt(probabilities) if probabilities else None

    def add_finished(self, finished: FinishedWindow) -> None:
        """Count a window whose rows are on disk."""
        facts = finished.facts
        self.num_rows += finished.num_rows
        self.num_tokens += facts.num_tokens
        self.num_decisions += facts.num_decisions
        self.num_new_tokens += facts.num_new_tokens

    def add_batch(self, batch: TraceBatch) -> None:
        """Count a batch whose rows are on disk."""
        self.num_rows += batch.rows.num_rows
        self.num_tokens += sum(batch.facts.num_tokens)
        self.num_decisions += sum(batch.facts.num_decisions)
        self.num_new_tokens += sum(batch.facts.num_new_tokens)

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
            pieces=spell_tokens(scope.token_id, self._tokenizer),
        )

    def _decide(self, recorded: RecordedLayer) -> LayerDecisions:
        layer = recorded.layer
        self.top_k[layer] = max(self.top_k.get(layer, 0), recorded.experts.shape[1])
        decisions = LayerDecisions(
            stack=layer.stack,
            layer=layer.layer,
            experts=recorded.experts,
            weights=recorded.weights,
        )
        if not self._with_probabilities:
            return decisions
        if layer not in self._score_functions:
            self._score_functions[layer] = find_score_function(recorded)
        assert recorded.scores is not None
        probabilities = self._score_functions[layer].apply(recorded.scores)
        return replace(decisions, probabilities=probabilities)
