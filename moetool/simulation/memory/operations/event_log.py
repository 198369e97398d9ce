"""Events so far, in columns: a layer that doesn't run adds hundreds of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np

from moetool.simulation.memory.steps.event_table import EventTable, make_event
from moetool.simulation.memory.timeline import Event


class EventColumns(NamedTuple):
    """Some events.

    Attributes:
        blocks: The block of each.
        num_bytes: The bytes requested; -1 for deaths.
        origins: The index of each birthplace.
    """

    blocks: list[int]
    num_bytes: list[int]
    origins: list[int]

    def cut(self, start: int, end: int | None) -> EventColumns:
        """Return the events from `start` to `end`."""
        return EventColumns(*(column[start:end] for column in self))


class EventLog(Sequence[Event]):
    """A sequence of events, to which more are added."""

    def __init__(self) -> None:
        self._columns = EventColumns([], [], [])
        # Looked up once: of some simulations, most of the time goes into this.
        self._blocks, self._num_bytes, self._origins = self._columns

    def add(self, block: int, num_bytes: int, origin: int) -> None:
        """Add an event."""
        self._blocks.append(block)
        self._num_bytes.append(num_bytes)
        self._origins.append(origin)

    def extend(self, events: EventColumns) -> None:
        """Add several events."""
        for column, further in zip(self._columns, events, strict=True):
            column += further

    def cut(self, start: int, end: int | None = None) -> EventColumns:
        """Return the events from `start` to `end`, in columns."""
        return self._columns.cut(start, end)

    def make_table(self, end: int) -> EventTable:
        """Return the events from the first to `end`."""
        return EventTable(*(np.array(column[:end], dtype=np.int64) for column in self._columns))

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...

    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        if isinstance(index, slice):
            columns = [column[index] for column in self._columns]
            return list(map(make_event, zip(*columns, strict=True)))
        return Event(*(column[index] for column in self._columns))

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[Event]:
        return map(make_event, zip(*self._columns, strict=True))
