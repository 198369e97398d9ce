"""The batches of a window, kept one by one where the window takes long, and joined at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.trace.schema import PROBABILITIES_SCHEMA, TRACE_SCHEMA
from moetool.trace.writing.pieces import BatchFacts, PieceFacts, TraceBatch
from moetool.tracing.windows.collect import CollectedScope


@dataclass(frozen=True)
class WindowSums:
    """Numbers of each prompt of a window.

    Attributes:
        num_tokens: Tokens; in an encoder-decoder, of both stacks. # (num_prompts,)
        num_decisions: Tokens times the layers that routed them. # (num_prompts,)
        num_new_tokens: Generated tokens. # (num_prompts,)
    """

    num_tokens: NDArray[np.int64]
    num_decisions: NDArray[np.int64]
    num_new_tokens: NDArray[np.int64]

    @classmethod
    def empty(cls, num_prompts: int) -> WindowSums:
        """Return the numbers of prompts of which nothing is known yet."""
        return cls(*np.zeros((3, num_prompts), dtype=np.int64))

    def add_scopes(self, scopes: Sequence[CollectedScope]) -> None:
        """Add the tokens and decisions of some prompts."""
        for scope in scopes:
            tokens = np.bincount(scope.prompt, minlength=len(self.num_tokens))
            self.num_tokens[:] += tokens
            self.num_decisions[:] += tokens * len(scope.layers)

    def add_batch(self, facts: BatchFacts) -> None:
        """Add the prompts of a batch that was kept."""
        prompts = list(facts.prompts)
        self.num_tokens[prompts] += facts.num_tokens
        self.num_decisions[prompts] += facts.num_decisions
        self.num_new_tokens[prompts] += facts.num_new_tokens

    def describe(self, start: int, prompts: range) -> PieceFacts:
        """Return the sums over consecutive prompts.

        Args:
            start: Index of the window's first prompt in the run.
            prompts: Of the window.
        """
        chosen = slice(prompts.start, prompts.stop)
        return PieceFacts(
            first_prompt=start + prompts.start,
            num_prompts=len(prompts),
            num_tokens=int(self.num_tokens[chosen].sum()),
            num_decisions=int(self.num_decisions[chosen].sum()),
            num_new_tokens=int(self.num_new_tokens[chosen].sum()),
        )

    def describe_batch(self, prompts: Sequence[int]) -> BatchFacts:
        """Return the numbers of some prompts, in ascending order."""
        chosen = sorted(prompts)
        return BatchFacts(
            prompts=tuple(chosen),
            num_tokens=tuple(self.num_tokens[chosen].tolist()),
            num_decisions=tuple(self.num_decisions[chosen].tolist()),
            num_new_tokens=tuple(self.num_new_tokens[chosen].tolist()),
        )


@dataclass(frozen=True)
class JoinedBatches:
    """All batches of a window, as one table in the order of its prompts.

    Attributes:
        rows: With `TRACE_SCHEMA`.
        probabilities: With `PROBABILITIES_SCHEMA`, if the run records them.
        texts: The line of each prompt, if the run keeps generated texts.
        saliency: The packed sums of each batch, if the run keeps them.
    """

    rows: pa.Table
    probabilities: pa.Table | None
    texts: list[bytes] | None
    saliency: list[bytes] = field(default_factory=list)


def join_batches(batches: Sequence[TraceBatch], prompt_ids: Sequence[str]) -> JoinedBatches:
    """Return batches that hold each prompt of a window once, as if the window had been one batch.

    Args:
        batches: At least one, in the order in which they ran.
        prompt_ids: Of the window, in order; no two are equal.
    """
    probabilities = [each.probabilities for each in batches if each.probabilities is not None]
    lines = {
        prompt: line
        for batch in batches
        if batch.texts is not None
        for prompt, line in zip(
            batch.facts.prompts, batch.texts.splitlines(keepends=True), strict=True
        )
    }
    return JoinedBatches(
        rows=_join([each.rows for each in batches], prompt_ids, TRACE_SCHEMA),
        probabilities=_join(probabilities, prompt_ids, PROBABILITIES_SCHEMA)
        if probabilities
        else None,
        texts=[lines[prompt] for prompt in sorted(lines)] if lines else None,
        saliency=[each.saliency for each in batches if each.saliency is not None],
    )


def _join(tables: Sequence[pa.Table], prompt_ids: Sequence[str], schema: pa.Schema) -> pa.Table:
    table = pa.concat_tables([each.cast(schema) for each in tables]).unify_dictionaries()
    prompts = table.column("prompt_id").combine_chunks()
    place = {prompt: index for index, prompt in enumerate(prompt_ids)}
    places = np.array([place[word] for word in prompts.dictionary.to_pylist()], dtype=np.int64)
    order = np.argsort(places[prompts.indices.to_numpy()], kind="stable")
    return table.take(pa.array(order))
