"""The births and deaths of blocks so far, and the blocks that storages are in."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable
from itertools import compress

import torch

from moetool.simulation.loops.loop import Loop
from moetool.simulation.memory.operations.event_log import EventColumns, EventLog


class Ledger:
    """Writes down when blocks are born, and notices when the storages in them die.

    Attributes:
        events: Births and deaths so far, in order.
        num_blocks: Number of blocks so far.
    """

    def __init__(self) -> None:
        self.events = EventLog()
        self.num_blocks = 0
        # The block of each storage by address, and a weak reference that notices its death. For
        # storages to be left out: -1, and the storage itself, which keeps it alive.
        self._followed: dict[int, tuple[int, object]] = {}
        self._holders: dict[int, int] = {}
        self._bytes_of: dict[int, int] = {}
        self._deaths_put_off: set[int] | None = None

    def leave_out(self, tensor: torch.Tensor) -> None:
        """Record nothing of a tensor's memory.

        The memory is kept alive: if a layer replaced it, a storage made later could have its address.
        """
        storage = tensor.untyped_storage()
        self._followed[storage._cdata] = (-1, storage)

    def is_followed(self, tensor: torch.Tensor) -> bool:
        """Return whether the memory that a tensor is in is known, or left out."""
        return tensor.untyped_storage()._cdata in self._followed

    def find_block(self, tensor: torch.Tensor) -> int | None:
        """Return the block that a tensor is in; None for those left out or not followed."""
        found = self._followed.get(tensor.untyped_storage()._cdata)
        return None if found is None or found[0] < 0 else found[0]

    def count_bytes(self, block: int) -> int:
        """Return the size of a live block."""
        return self._bytes_of[block]

    def note_bytes(self, block: int, num_bytes: int) -> None:
        """Note the size of a block whose birth is written down in another way."""
        self._bytes_of[block] = num_bytes

    def number_blocks(self, num_blocks: int) -> int:
        """Number further blocks, and return the number of the first."""
        first, self.num_blocks = self.num_blocks, self.num_blocks + num_blocks
        return first

    def bear(self, num_bytes: int, origin: int, *, block: int | None = None) -> int:
        """Write down a birth, and return the block: a new one unless it has a number."""
        if block is None:
            block = self.number_blocks(1)
        self.events.add(block, num_bytes, origin)
        self._bytes_of[block] = num_bytes
        return block

    def free(self, blocks: Iterable[int]) -> None:
        """Write down the deaths of blocks."""
        for block in blocks:
            self.events.add(block, -1, 0)

    def extend(self, events: EventColumns, *, living: Collection[int] = ()) -> None:
        """Write down events, except deaths of blocks that live on."""
        if living:
            are_kept = [block not in living for block in events.blocks]
            events = EventColumns(*(list(compress(column, are_kept)) for column in events))
        self.events.extend(events)

    def write_out(self, loop: Loop) -> None:
        """Write down iterations that don't run. What lives now is what the last of them made."""
        first, num_further = loop.first_block, loop.num_blocks * loop.num_left_out
        written = self.events.cut(loop.end_event - loop.num_events, loop.end_event)
        for further in range(loop.num_blocks, num_further + 1, loop.num_blocks):
            moved = [block + further for block in written.blocks]
            self.events.extend(written._replace(blocks=moved))
        born = (event for event in self.events[loop.end_event :] if event.num_bytes >= 0)
        self._bytes_of |= {block: num_bytes for block, num_bytes, _ in born}
        self.num_blocks += num_further
        for address, (block, storage) in list(self._followed.items()):
            if block >= first:
                self._followed[address] = (block + num_further, storage)
        for block in [block for block in self._holders if block >= first]:
            self._holders[block + num_further] = self._holders.pop(block)

    def put_off_deaths(self) -> None:
        """Write down no deaths until they are taken."""
        self._deaths_put_off = set()

    def take_deaths(self) -> set[int]:
        """Return the blocks that died since deaths were put off, and write down deaths again."""
        died, self._deaths_put_off = self._deaths_put_off, None
        return died or set()

    def follow(self, tensor: torch.Tensor, block: int) -> None:
        """Record the death of a block when the storage of its tensor dies, or the last of several."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        self._holders[block] = self._holders.get(block, 0) + 1

        def die(_: object) -> None:
            # The block may have another number by now.
            block = self._followed.pop(address)[0]
            self._holders[block] -= 1
            if self._holders[block]:
                return
            del self._holders[block]
            if self._deaths_put_off is not None:
                self._deaths_put_off.add(block)
            else:
                self.events.add(block, -1, 0)

        self._followed[address] = (block, weakref.ref(storage, die))
