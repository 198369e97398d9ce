"""From a window's tokens and decisions to the rows of the trace, and the figures of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

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
    """Makes rows window by window, and counts them.

    Attributes:
        num_windows: So far, as the following.
        num_rows: Assignments.
        num_tokens: Tokens, in an encoder-decoder those of both stacks.
        num_decisions: Tokens times the layers that routed them.
        top_k: The most experts that each layer chose for a token.

    Args:
        tokenizer: Spells the tokens.
        with_probabilities: Make the rows of the routers' probabilities as well.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, with_probabilities: bool) -> None:
        self.num_windows, self.num_rows, self.num_tokens, self.num_decisions = 0, 0, 0, 0
        self.top_k: dict[MoeLayer, int] = {}
        self._tokenizer = tokenizer
        self._with_probabilities = with_probabilities
        # What turns scores into probabilities is found once a layer.
        self._score_functions: dict[MoeLayer, ScoreFunction] = {}

    @property
    def score_function(self) -> str | None:
        """What turned the routers' scores into probabilities; None if they were not asked for."""
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
        self.num_windows += 1
        self.num_rows += rows.num_rows
        return rows, merge_by_prompt(probabilities) if probabilities else None

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
        place = recorded.place
        self.top_k[place] = max(self.top_k.get(place, 0), recorded.experts.shape[1])
        decisions = LayerDecisions(
            stack=place.stack,
            layer=place.layer,
            experts=recorded.experts,
            weights=recorded.weights,
        )
        if not self._with_probabilities:
            return decisions
        if place not in self._score_functions:
            self._score_functions[place] = find_score_function(recorded)
        assert recorded.scores is not None
        probabilities = self._score_functions[place].apply(recorded.scores)
        return replace(decisions, probabilities=probabilities)
