"""Windows of a run, cut into pieces and batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from moetool.trace.rows import assignment_rows, probability_rows
from moetool.trace.writing.identity import RunIdentity
from moetool.trace.writing.pieces import BatchFacts, PieceFacts, TraceBatch, TracePiece
from tests.trace.examples import make_layers, make_tokens

IDENTITY = RunIdentity({"model": "tiny", "batch size": 8, "layers": None})
LENGTHS = (3, 2, 4, 1)


@dataclass(frozen=True)
class Window:
    """The rows of a few prompts.

    Attributes:
        index: Of the window in the run.
        rows: Of each prompt.
        probabilities: Of each prompt.
    """

    index: int
    rows: Sequence[pa.Table]
    probabilities: Sequence[pa.Table]

    def cut(self, num_pieces: int) -> list[TracePiece]:
        """Return the window as pieces of consecutive prompts."""
        ends = [len(self.rows) * (piece + 1) // num_pieces for piece in range(num_pieces)]
        return [
            TracePiece(
                window=self.index,
                piece=piece,
                num_pieces=num_pieces,
                facts=PieceFacts(
                    first_prompt=self.index * len(self.rows) + start,
                    num_prompts=end - start,
                    num_tokens=sum(LENGTHS[start:end]),
                    num_decisions=2 * sum(LENGTHS[start:end]),
                    num_new_tokens=end - start,
                ),
                rows=pa.concat_tables(self.rows[start:end]).unify_dictionaries(),
                probabilities=pa.concat_tables(self.probabilities[start:end]).unify_dictionaries(),
                texts=b"".join(self.text(at) for at in range(start, end)),
                saliency=f"sums of {self.index}".encode() if piece == num_pieces - 1 else None,
            )
            for piece, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
        ]

    def batch(self, index: int, prompts: tuple[int, ...]) -> TraceBatch:
        """Return some of the prompts as a batch."""
        return TraceBatch(
            window=self.index,
            batch=index,
            facts=BatchFacts(
                prompts=prompts,
                num_tokens=tuple(LENGTHS[at] for at in prompts),
                num_decisions=tuple(2 * LENGTHS[at] for at in prompts),
                num_new_tokens=tuple(1 for _ in prompts),
            ),
            rows=pa.concat_tables([self.rows[at] for at in prompts]).unify_dictionaries(),
            probabilities=pa.concat_tables(
                [self.probabilities[at] for at in prompts]
            ).unify_dictionaries(),
            texts=b"".join(map(self.text, prompts)),
            saliency=f"sums of {self.index}.{index}".encode(),
        )

    def text(self, prompt: int) -> bytes:
        """Return the line of a prompt's text."""
        return f'{{"id": "p{self.index}.{prompt}"}}\n'.encode()


def make_window(index: int) -> Window:
    """Return a window of four prompts."""
    rows, probabilities = [], []
    for prompt, length in enumerate(LENGTHS):
        tokens = make_tokens([length], prompt_ids=[f"p{index}.{prompt}"], domains=["code"])
        layers = make_layers(length, top_k=(2, 2), seed=10 * index + prompt)
        rows.append(assignment_rows(tokens, layers))
        probabilities.append(probability_rows(tokens, layers))
    return Window(index, rows, probabilities)
