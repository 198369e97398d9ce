"""Record the birth and death of every tensor's memory in a forward."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from torch import nn

from moetool.simulation.caches.offloaded import SideStream
from moetool.simulation.loops.loop import Loop
from moetool.simulation.loops.shortened_loops import IterationMark
from moetool.simulation.memory.cuda_kernels import (
    Temporaries,
    find_temporaries,
    needs_lt_workspace,
    needs_workspace,
)
from moetool.simulation.memory.layer_events import LayerEvents, LayerMark, Taking, Workspace
from moetool.simulation.memory.operations.births import Births
from moetool.simulation.memory.operations.places import Places
from moetool.simulation.memory.timeline import Event, Origins
from moetool.simulation.meta.dispatch import find_local, find_tensors
from moetool.simulation.meta.generation import TooManyOperations
from moetool.simulation.repeated.repeated_layers import LayerVisit

FindTemporaries = Callable[[Any, Sequence[Any], dict[str, Any]], Temporaries | None]


class AllocationRecorder:
    """Records when the memory of each tensor on a device is taken and freed.

        with torch.inference_mode(), AllocationRecorder(model) as recorder:
            model(input_ids)
        recorder.events

    Memory is that of storages: views and in-place operations take none. Operations composed of others
    are decomposed, except those that are one kernel on a GPU; the temporary memory of such kernels is
    recorded around their results. The model's own parameters and buffers are not recorded.

    It is a `LayerObserver`: layers that `RepeatedLayers` doesn't run are recorded, too.

    Attributes:
        events: Births and deaths so far, in order.
        loops: Iterations of loops that are left out of the events.

    Args:
        origins: Numbers the places where blocks are born.
        workspace_bytes: Memory that the first matrix product takes and never frees.
        lt_workspace_bytes: Further memory that the first product with a bias takes and never frees.
        max_blocks_of_layer: The most blocks that a layer may make; None for no limit. One more
            raises `TooManyOperations`.
        device: The type of the device whose tensors are followed.
        find_temporaries: Returns the memory that an operation's kernel takes while it runs.
        stream: A stream other than the model's, on which some operations run.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        origins: Origins,
        workspace_bytes: int = 0,
        lt_workspace_bytes: int = 0,
        max_blocks_of_layer: int | None = None,
        device: str = "meta",
        find_temporaries: FindTemporaries = find_temporaries,
        stream: SideStream | None = None,
    ) -> None:
        self.events: list[Event] = []
        self.loops: list[Loop] = []
        self._workspaces: dict[Workspace, int] = {}
        self._workspace_bytes = {
            Workspace.CUBLAS: workspace_bytes,
            Workspace.CUBLAS_LT: lt_workspace_bytes,
        }
        # The first product since the layer began that needs each of them.
        self._needed: dict[Workspace, Taking] = {}
        self._max_blocks = max_blocks_of_layer
        self._num_blocks_before_layer = 0
        self._device = device
        self._find_temporaries = find_temporaries
        self._model = model
        self._places = Places(model, origins, stream)
        self._num_blocks = 0
        # The block of each storage by address, and a weak reference that notices its death. For
        # parameters and buffers: -1, and the storage itself, which keeps it alive.
        self._followed: dict[int, tuple[int, object]] = {}
        self._holders: dict[int, int] = {}
        self._bytes_of: dict[int, int] = {}
        self._deaths_put_off: set[int] | None = None
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            storage = find_local(tensor).untyped_storage()
            # Kept alive: if a layer replaced it, a storage made later could have its address.
            self._followed[storage._cdata] = (-1, storage)
        self._exit.enter_context(self._places)
        self._exit.enter_context(Births(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def workspace_block(self) -> int | None:
        """The block that matrix products keep; None before the first."""
        return self._workspaces.get(Workspace.CUBLAS)

    @property
    def lt_workspace_block(self) -> int | None:
        """The block that products with a bias keep; None before the first."""
        return self._workspaces.get(Workspace.CUBLAS_LT)

    def switch_handle(self, kept: dict[Workspace, int]) -> dict[Workspace, int]:
        """Let products use a handle of cuBLAS that kept these, and return those of the one before."""
        kept, self._workspaces = self._workspaces, dict(kept)
        return kept

    def find_block(self, tensor: torch.Tensor) -> int | None:
        """Return the block that a tensor is in; None for parameters and tensors not followed."""
        found = self._followed.get(tensor.untyped_storage()._cdata)
        return None if found is None or found[0] < 0 else found[0]

    def count_bytes(self, block: int) -> int:
        """Return the size of a live block."""
        return self._bytes_of[block]

    def describe(self, visit: LayerVisit) -> Hashable:
        """Return which of the visit's tensors share memory."""
        first_seen: dict[int | None, int] = {}
        return tuple(
            first_seen.setdefault(self.find_block(tensor), len(first_seen))
            for tensor in visit.found
        )

    def begin_layer(self, visit: LayerVisit) -> LayerMark:
        """Return a mark of the beginning of a layer."""
        self._places.layer = visit.path
        self._num_blocks_before_layer = self._num_blocks
        self._needed = {}
        positions = self._find_positions(visit)
        return LayerMark(len(self.events), self._num_blocks, len(self.loops), positions)

    def end_layer(self, mark: LayerMark, left: Sequence[torch.Tensor]) -> LayerEvents | None:
        """Return the events since a mark.

        None if the layer keeps memory alive that is in none of the tensors it left behind, or freed
        memory that it was not given.
        """
        self._places.layer = ""
        names = {block: -1 - position for block, position in mark.positions.items()}
        alive, workspaces = set[int](), set(self._workspaces.values())
        events: list[Event] = []
        # For each number of events since the mark, the number of those kept for other layers.
        num_own: list[int] = []
        for event in self.events[mark.num_events :]:
            num_own.append(len(events))
            if event.block in workspaces:
                continue
            if event.block >= mark.num_blocks:
                names[event.block] = event.block - mark.num_blocks
            if event.block not in names:
                return None
            (alive.discard if event.num_bytes < 0 else alive.add)(event.block)
            events.append(event._replace(block=names[event.block]))
        num_own.append(len(events))
        blocks = [self.find_block(tensor) for tensor in left]
        if not alive <= set(blocks) or not {b for b in blocks if b is not None} <= set(names):
            return None
        return LayerEvents(
            events=tuple(events),
            num_made=self._num_blocks - mark.num_blocks,
            left=tuple(None if block is None else names[block] for block in blocks),
            workspaces={
                kind: Taking(
                    num_own[taking.num_events - mark.num_events],
                    taking.origin,
                    None if taking.block is None else taking.block - mark.num_blocks,
                )
                for kind, taking in self._needed.items()
            },
            loops=tuple(
                loop.moved(num_own[loop.end_event - mark.num_events], -mark.num_blocks)
                for loop in self.loops[mark.num_loops :]
            ),
        )

    @contextmanager
    def repeat_layer(
        self, visit: LayerVisit, done: LayerEvents, left: Mapping[int, torch.Tensor]
    ) -> Iterator[None]:
        """Record the events of an earlier layer once more."""
        found = {-1 - position: block for block, position in self._find_positions(visit).items()}
        layer = visit.path
        # A reference held here would keep a tensor from dying when it should.
        del visit
        first, self._num_blocks = self._num_blocks, self._num_blocks + done.num_made
        self._deaths_put_off = set()
        try:
            yield
        finally:
            died, self._deaths_put_off = self._deaths_put_off, None
        # What the layer found and left in place is now held by another tensor.
        died -= {found[name] for name in done.left if name is not None and name < 0}
        takings: dict[int, list[Workspace]] = {}
        for kind, taking in done.workspaces.items():
            if kind not in self._workspaces:
                takings.setdefault(taking.num_events, []).append(kind)
        loops = {loop.end_event: loop for loop in done.loops}
        for number, (block, num_bytes, origin) in enumerate(done.events):
            if number in loops:
                self.loops.append(loops[number].moved(len(self.events), first))
            for kind in takings.get(number, ()):
                _, taker, own_block = done.workspaces[kind]
                taken = None if own_block is None else own_block + first
                self._take_workspace(kind, self._places.number_in(layer, taker), block=taken)
            is_own = block >= 0
            block = block + first if is_own else found[block]
            if num_bytes >= 0:
                self._bytes_of[block] = num_bytes
                origin = self._places.number_in(layer, origin)
            elif not is_own:
                # It lives on if something else holds it here.
                if block not in died:
                    continue
                died.discard(block)
            self.events.append(Event(block, num_bytes, origin))
        for block in sorted(died):
            self.events.append(Event(block, -1, 0))
        for number, name in enumerate(done.left):
            if name is not None and number in left:
                self._follow(left[number], name + first if name >= 0 else found[name])

    def mark_iteration(self) -> IterationMark:
        """Return a mark of the beginning of an iteration of a loop."""
        rest = (len(self._workspaces), len(self._needed))
        return IterationMark(len(self.events), self._num_blocks, rest)

    def leave_out(self, loop: Loop) -> None:
        """Record iterations that don't run."""
        self.loops.append(loop)
        self._num_blocks_before_layer -= loop.num_blocks * loop.num_left_out

    def write_out(self, loop: Loop) -> None:
        """Record iterations that don't run one by one. What lives now is what the last of them made."""
        first, num_more = loop.first_block, loop.num_blocks * loop.num_left_out
        written = self.events[loop.end_event - loop.num_events : loop.end_event]
        for more in range(loop.num_blocks, num_more + 1, loop.num_blocks):
            self.events += [event._replace(block=event.block + more) for event in written]
        born = (event for event in self.events[loop.end_event :] if event.num_bytes >= 0)
        self._bytes_of |= {block: num_bytes for block, num_bytes, _ in born}
        self._num_blocks += num_more
        for address, (block, storage) in list(self._followed.items()):
            if block >= first:
                self._followed[address] = (block + num_more, storage)
        for block in [block for block in self._holders if block >= first]:
            self._holders[block + num_more] = self._holders.pop(block)

    def follow_like(self, made: torch.Tensor, tensor: torch.Tensor, num_blocks: int) -> None:
        """Follow a tensor in a block that many before another's."""
        self._follow(made, self._followed[tensor.untyped_storage()._cdata][0] - num_blocks)

    def allow_blocks(self, num_more: int = 0) -> None:
        """Raise `TooManyOperations` if a layer would make too many blocks with some more."""
        num_blocks = self._num_blocks - self._num_blocks_before_layer + num_more
        if self._places.layer and self._max_blocks is not None and num_blocks > self._max_blocks:
            raise TooManyOperations

    def see_births(
        self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Record the memory of an operation's results and the temporary memory of its kernel."""
        new = [
            leaf
            for leaf in find_tensors([result])
            if leaf.device.type == self._device
            and leaf.untyped_storage()._cdata not in self._followed
        ]
        if not new and not (args and result is args[0]):
            return
        temporaries = self._find_temporaries(operation, args, kwargs)
        # Operations in place make nothing else.
        if not new and temporaries is None:
            return
        self.allow_blocks()
        origin = self._places.number(operation.__name__)
        if needs_workspace(operation):
            self._take_workspace(Workspace.CUBLAS, origin)
        if self._workspace_bytes[Workspace.CUBLAS_LT] and needs_lt_workspace(operation, args):
            self._take_workspace(Workspace.CUBLAS_LT, origin)
        temporaries = temporaries or Temporaries()
        taken = [self._bear(num_bytes, origin) for num_bytes in temporaries.before]
        for tensor in new:
            if tensor.untyped_storage()._cdata not in self._followed:
                self._follow(tensor, self._bear(tensor.untyped_storage().nbytes(), origin))
        taken += [self._bear(num_bytes, origin) for num_bytes in temporaries.after]
        self.events.extend(Event(block, -1, 0) for block in reversed(taken))

    def _take_workspace(self, kind: Workspace, origin: int, *, block: int | None = None) -> None:
        """Take the workspace that products keep from now on, unless it has been taken.

        Args:
            kind: The kind of workspace.
            origin: The place of the product.
            block: Its block; None for a new one.
        """
        num_events, is_new = len(self.events), kind not in self._workspaces
        if is_new:
            self._workspaces[kind] = self._bear(self._workspace_bytes[kind], origin, block=block)
        taken = self._workspaces[kind] if is_new else None
        self._needed.setdefault(kind, Taking(num_events, origin, taken))

    def _bear(self, num_bytes: int, origin: int, *, block: int | None = None) -> int:
        if block is None:
            block, self._num_blocks = self._num_blocks, self._num_blocks + 1
        self.events.append(Event(block, num_bytes, origin))
        self._bytes_of[block] = num_bytes
        return block

    def _follow(self, tensor: torch.Tensor, block: int) -> None:
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
                self.events.append(Event(block, -1, 0))

        self._followed[address] = (block, weakref.ref(storage, die))

    def _find_positions(self, visit: LayerVisit) -> dict[int, int]:
        positions: dict[int, int] = {}
        for position, tensor in enumerate(visit.found):
            block = self.find_block(tensor)
            if block is not None:
                positions.setdefault(block, position)
        return positions
