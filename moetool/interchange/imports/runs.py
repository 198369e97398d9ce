"""Values that every importer hands over: decisions of tokens, or counts of experts, and facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moetool.trace.loads.metadata import Precision

Place = tuple[str, int]
Column = Literal["domain", "phase", "token_id", "token", "rank", "weight"]

DECODER = "decoder"


@dataclass(frozen=True)
class LayerChoices:
    """The choices of one layer for the tokens of a run.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        experts: Logical ids of any integer type, in the order of the format; `NO_EXPERT` pads.
            # (num_tokens, top_k)
        weights: Of the same shape; None if the format has none.
        is_padded: Whether there may be `NO_EXPERT`, which is damage otherwise.
    """

    stack: str
    layer: int
    experts: NDArray[Any]
    weights: NDArray[np.float32] | None = None
    is_padded: bool = False


@dataclass(frozen=True)
class TokenRun:
    """Tokens of one prompt, and the choices of layers that all of them ran.

    Attributes:
        source: The file, and the place in it, for error messages.
        prompt_id: As in the trace's column.
        position: # (num_tokens,)
        layers: One or more.
        domain: As in the trace's column; None without one.
        phase: Index into `PHASES`; None if unknown. # (num_tokens,)
        token_id: None if unknown. # (num_tokens,)
        token: The tokenizer's own pieces; None if unknown.
    """

    source: str
    prompt_id: str
    position: NDArray[np.int64]
    layers: Sequence[LayerChoices]
    domain: str | None = None
    phase: NDArray[np.int64] | None = None
    token_id: NDArray[np.int64] | None = None
    token: Sequence[str] | None = None


@dataclass
class Facts:
    """Facts about imported files, complete only when all of them have been read.

    Attributes:
        format: As `moetool import` names it.
        model: As the files name it.
        num_experts: As the files state it, for all layers.
        top_k: As the files state it, for all layers.
        is_complete: False if a file breaks off.
        is_exact: False if the decisions may not be those that the experts carried out.
        has_weight_order: False if ranks need not be in the order of weights.
        precision: Of the counts of a load table.
        notes: Sentences that a reader should know.
        of_run: Further fields of a trace's metadata, which only a run knows.
    """

    format: str
    model: str | None = None
    num_experts: int | None = None
    top_k: int | None = None
    is_complete: bool = True
    is_exact: bool = True
    has_weight_order: bool = True
    precision: Precision = "exact"
    notes: list[str] = field(default_factory=list)
    of_run: dict[str, Any] = field(default_factory=dict)

    def note(self, sentence: str) -> None:
        """Add a note, unless it is there already."""
        if sentence not in self.notes:
            self.notes.append(sentence)


@dataclass(frozen=True)
class TraceImport:
    """Decisions that are being imported.

    Attributes:
        runs: Read as they are taken.
        columns: Optional columns that the rows will have.
        facts: Filled while the runs are taken.
    """

    runs: Iterator[TokenRun]
    columns: frozenset[Column]
    facts: Facts


@dataclass(frozen=True)
class LoadBlock:
    """Counts of one layer.

    Attributes:
        layer: As in the load table's column.
        counts: By expert. # (num_experts,)
        step: As in the load table's column.
        stack: As in the load table's column.
    """

    layer: int
    counts: NDArray[np.int64]
    step: int = 0
    stack: str = DECODER


@dataclass(frozen=True)
class LoadImport:
    """Counts that are being imported.

    Attributes:
        blocks: Read as they are taken.
        has_steps: Whether the rows are numbered by step.
        facts: Filled while the blocks are taken.
    """

    blocks: Iterator[LoadBlock]
    has_steps: bool
    facts: Facts


@dataclass(frozen=True)
class ImportFiles:
    """Files to import, as the user named them.

    Attributes:
        paths: Each a file, or a folder for the formats that write one.
        layer_offsets: For Megatron-LM, by file: what to add to the numbers of layers.
        micro_batch_size: For Megatron-LM, sequences in a micro-batch.
    """

    paths: tuple[Path, ...]
    layer_offsets: tuple[int, ...] = ()
    micro_batch_size: int | None = None
