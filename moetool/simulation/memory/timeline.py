"""What happened to memory during a run, and what of it belongs to what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Event(NamedTuple):
    """A block of memory comes to life, or dies.

    Attributes:
        block: Its number: none is given twice.
        num_bytes: The bytes asked for; -1 for its death.
        origin: Where it was born: index in a timeline's origins.
    """

    block: int
    num_bytes: int
    origin: int


@dataclass(frozen=True)
class Origin:
    """Where in a model memory was asked for.

    Attributes:
        layer: The path of the layer; empty outside of layers.
        module: The path of the innermost module within the layer, or within the model.
        operation: The operation of torch.
    """

    layer: str
    module: str
    operation: str


class Origins:
    """Places where memory is asked for, each with a number.

    Attributes:
        found: The places so far, by their number.
    """

    def __init__(self) -> None:
        self.found: list[Origin] = []
        self._numbers: dict[tuple[str, str, str], int] = {}

    def number(self, layer: str, module: str, operation: str) -> int:
        """Return the number of a place."""
        key = (layer, module, operation)
        number = self._numbers.setdefault(key, len(self.found))
        if number == len(self.found):
            self.found.append(Origin(*key))
        return number


@dataclass(frozen=True)
class Call:
    """A call of the model.

    Attributes:
        first_event: Number of events before it.
        end_event: Number of events until its end.
        cache_blocks: The blocks that the cache holds after it.
        cache_bytes: What those take.
    """

    first_event: int
    end_event: int
    cache_blocks: frozenset[int]
    cache_bytes: int


@dataclass(frozen=True)
class Timeline:
    """A run from its inputs on.

    Attributes:
        events: What happened, in order.
        origins: Where blocks were born. Timelines of one skeleton have theirs in common.
        calls: The model's calls: the prompt's first, then one a token.
        workspace_block: The block that products of matrices keep; None if there were none.
        lt_workspace_block: The block that products with a bias keep; None if there were none.
    """

    events: tuple[Event, ...]
    origins: Sequence[Origin]
    calls: tuple[Call, ...]
    workspace_block: int | None
    lt_workspace_block: int | None = None
