"""Pieces of a window's rows, as the tracer makes them and as sinks take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa


@dataclass(frozen=True)
class PieceFacts:
    """The prompts of a piece, and sums over them.

    Attributes:
        first_prompt: Index of its first prompt in the run.
        num_tokens: Tokens; in an encoder-decoder, of both stacks.
        num_decisions: Tokens times the layers that routed them.
        num_new_tokens: Generated tokens.
    """

    first_prompt: int
    num_prompts: int
    num_tokens: int
    num_decisions: int
    num_new_tokens: int = 0

    def __add__(self, other: PieceFacts) -> PieceFacts:
        """Return the facts of two pieces together."""
        return PieceFacts(
            first_prompt=min(self.first_prompt, other.first_prompt),
            num_prompts=self.num_prompts + other.num_prompts,
            num_tokens=self.num_tokens + other.num_tokens,
            num_decisions=self.num_decisions + other.num_decisions,
            num_new_tokens=self.num_new_tokens + other.num_new_tokens,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the facts in a part's footer.

        Raises:
            KeyError: One is missing.
        """
        return cls(**{name: int(values[name]) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class TracePiece:
    """Consecutive rows of a window that end where a prompt ends.

    Attributes:
        window: Index of the window in the run.
        piece: Index of the piece in the window.
        num_pieces: Pieces of the window.
        facts: Of this piece.
        rows: With `TRACE_SCHEMA`.
        probabilities: With `PROBABILITIES_SCHEMA`, if the run records them.
        texts: The lines of the prompts' generated texts, if the run keeps them.
        saliency: Sums of the experts' outputs over the whole window, on its last piece, if the run
            keeps them.
    """

    window: int
    piece: int
    num_pieces: int
    facts: PieceFacts
    rows: pa.Table
    probabilities: pa.Table | None = None
    texts: bytes | None = None
    saliency: bytes | None = None

    @property
    def is_last(self) -> bool:
        """Whether it ends its window."""
        return self.piece == self.num_pieces - 1


@dataclass(frozen=True)
class EncodedPiece:
    """A piece in the form of its sink, ready for `commit`.

    Attributes:
        window: Index of the window in the run.
        piece: Index of the piece in the window.
        num_pieces: Pieces of the window.
        num_rows: Its assignments.
        content: Bytes that are still to be written.
        kept: The piece itself, where the sink keeps rows in memory.
    """

    window: int
    piece: int
    num_pieces: int
    num_rows: int
    content: bytes | pa.Buffer = b""
    kept: TracePiece | None = None

    @property
    def is_last(self) -> bool:
        """Whether it ends its window."""
        return self.piece == self.num_pieces - 1


@dataclass(frozen=True)
class BatchFacts:
    """The prompts of a batch, and a number for each.

    Attributes:
        prompts: Index of each prompt in the window, ascending.
        num_tokens: See `PieceFacts`.
        num_decisions: See `PieceFacts`.
        num_new_tokens: See `PieceFacts`.
    """

    prompts: tuple[int, ...]
    num_tokens: tuple[int, ...]
    num_decisions: tuple[int, ...]
    num_new_tokens: tuple[int, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the facts in a part's footer.

        Raises:
            KeyError: One is missing.
        """
        return cls(**{name: tuple(map(int, values[name])) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class TraceBatch:
    """The rows of one batch of a window that has not ended.

    Attributes:
        window: Index of the window in the run.
        batch: Index of the batch in the window.
        facts: Of its prompts.
        rows: With `TRACE_SCHEMA`, ordered by prompt.
        probabilities: With `PROBABILITIES_SCHEMA`, if the run records them.
        texts: A line for each prompt, if the run keeps generated texts.
        saliency: Sums of the experts' outputs over the batch, if the run keeps them.
    """

    window: int
    batch: int
    facts: BatchFacts
    rows: pa.Table
    probabilities: pa.Table | None = None
    texts: bytes | None = None
    saliency: bytes | None = None


def encode_as(piece: TracePiece, **form: Any) -> EncodedPiece:
    """Return a piece in the form of a sink, given by the last fields of `EncodedPiece`."""
    return EncodedPiece(
        window=piece.window,
        piece=piece.piece,
        num_pieces=piece.num_pieces,
        num_rows=piece.rows.num_rows,
        **form,
    )
