"""Record the birth and death of every tensor's memory in a forward."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import itemgetter
from typing import Any, Self

import torch
from torch import nn

from moetool.anatomy.routing.walk import walk_modules
from moetool.simulation.caches.offloaded import SideStream
from moetool.simulation.loops.loop import Loop
from moetool.simulation.loops.observer import IterationMark
from moetool.simulation.memory.cuda_kernels import (
    Temporaries,
    find_temporaries,
    needs_lt_workspace,
    needs_workspace,
)
from moetool.simulation.memory.layer_events import LayerEvents, LayerMark, Taking, Workspace
from moetool.simulation.memory.operations.births import Births
from moetool.simulation.memory.operations.ledger import Ledger
from moetool.simulation.memory.operations.outcomes import OperationOutcome
from moetool.simulation.memory.operations.places import Places
from moetool.simulation.memory.operations.repeats import OperationRepeats
from moetool.simulation.memory.operations.workspaces import Workspaces
from moetool.simulation.memory.timeline import Event, Origins
from moetool.simulation.meta.dispatch import find_local, find_tensors
from moetool.simulation.meta.generation import TooManyOperations
from moetool.simulation.repeated.repeated_layers import LayerVisit

_NO_TEMPORARIES = Temporaries()
_USUAL_TEMPORARIES = find_temporaries
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
        self.loops: list[Loop] = []
        self._ledger = Ledger()
        self._workspaces = Workspaces(
            self._ledger,
            {Workspace.CUBLAS: workspace_bytes, Workspace.CUBLAS_LT: lt_workspace_bytes},
        )
        self._max_blocks = max_blocks_of_layer
        self._num_blocks_before_layer = 0
        self._device = device
        self._find_temporaries = find_temporaries
        self._may_repeat = device == "meta" and find_temporaries is _USUAL_TEMPORARIES
        self._model = model
        self._places = Places(model, origins, stream)
        self._repeats = OperationRepeats(self._ledger, self._places, self._workspaces)
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        for _, module in walk_modules(self._model):
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self._ledger.leave_out(find_local(tensor))
        self._exit.enter_context(self._places)
        repeats = self._repeats if self._may_repeat else None
        self._exit.enter_context(Births(self, repeats))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def events(self) -> list[Event]:
        """Births and deaths so far, in order."""
        return self._ledger.events

    @property
    def workspace_block(self) -> int | None:
        """The block that matrix products keep; None before the first."""
        return self._workspaces.taken.get(Workspace.CUBLAS)

    @property
    def lt_workspace_block(self) -> int | None:
        """The block that products with a bias keep; None before the first."""
        return self._workspaces.taken.get(Workspace.CUBLAS_LT)

    def switch_handle(self, kept: dict[Workspace, int]) -> dict[Workspace, int]:
        """Let products use a handle of cuBLAS that kept these, and return those of the one before."""
        workspaces = self._workspaces
        kept, workspaces.taken = workspaces.taken, dict(kept)
        return kept

    def find_block(self, tensor: torch.Tensor) -> int | None:
        """Return the block that a tensor is in; None for parameters and tensors not followed."""
        return self._ledger.find_block(tensor)

    def count_bytes(self, block: int) -> int:
        """Return the size of a live block."""
        return self._ledger.count_bytes(block)

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
        self._num_blocks_before_layer = self._ledger.num_blocks
        self._workspaces.needed = {}
        num_blocks = self._num_blocks_before_layer
        positions = self._find_positions(visit)
        return LayerMark(len(self.events), num_blocks, len(self.loops), positions)

    def end_layer(self, mark: LayerMark, left: Sequence[torch.Tensor]) -> LayerEvents | None:
        """Return the events since a mark.

        None if the layer keeps memory alive that is in none of the tensors it left behind, or freed
        memory that it was not given.
        """
        self._places.layer = ""
        names = {block: -1 - position for block, position in mark.positions.items()}
        alive, workspaces = set[int](), set(self._workspaces.taken.values())
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
            num_made=self._ledger.num_blocks - mark.num_blocks,
            left=tuple(None if block is None else names[block] for block in blocks),
            workspaces={
                kind: Taking(
                    num_own[taking.num_events - mark.num_events],
                    taking.origin,
                    None if taking.block is None else taking.block - mark.num_blocks,
                )
                for kind, taking in self._workspaces.needed.items()
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
        first = self._ledger.number_blocks(done.num_made)
        self._ledger.put_off_deaths()
        try:
            yield
        finally:
            died = self._ledger.take_deaths()
        # What the layer found and left in place is now held by another tensor.
        died -= {found[name] for name in done.left if name is not None and name < 0}
        freed = {found[name] for name in done.freed}
        # It lives on if something else holds it here.
        living, died = freed - died, died - freed
        moved = {place: self._places.number_in(layer, place) for place in done.birthplaces}
        place = partial(done.place, first=first, found=found, moved=moved)
        start = 0
        stops: list[tuple[int, Loop | Workspace]] = [
            *((loop.end_event, loop) for loop in done.loops),
            *((taking.num_events, kind) for kind, taking in done.workspaces.items()),
        ]
        for end, stop in sorted(stops, key=itemgetter(0)):
            self._ledger.extend(place(start, end), living=living)
            start = end
            if isinstance(stop, Loop):
                self.loops.append(stop.moved(len(self.events), first))
            elif stop not in self._workspaces.taken:
                _, taker, own_block = done.workspaces[stop]
                block = None if own_block is None else own_block + first
                origin = self._places.number_in(layer, taker)
                self._workspaces.take(stop, origin, block=block)
        self._ledger.extend(place(start, len(done.events)), living=living)
        for made, num_bytes in done.sizes_left.items():
            self._ledger.note_bytes(made + first, num_bytes)
        self._ledger.free(sorted(died))
        for number, name in enumerate(done.left):
            if name is not None and number in left:
                self._ledger.follow(left[number], name + first if name >= 0 else found[name])

    def mark_iteration(self) -> IterationMark:
        """Return a mark of the beginning of an iteration of a loop."""
        rest = (len(self._workspaces.taken), len(self._workspaces.needed))
        return IterationMark(len(self.events), self._ledger.num_blocks, rest)

    def leave_out(self, loop: Loop) -> None:
        """Record iterations that don't run, all of whose blocks die in them or in the next one."""
        self.loops.append(loop)
        self._num_blocks_before_layer -= loop.num_blocks * loop.num_left_out

    def write_out(self, loop: Loop) -> None:
        """Record iterations that don't run one by one. What lives now is what the last of them made."""
        self._ledger.write_out(loop)

    def follow_like(self, made: torch.Tensor, tensor: torch.Tensor, num_blocks: int) -> None:
        """Follow a tensor in a block that many before another's."""
        block = self.find_block(tensor)
        assert block is not None
        self._ledger.follow(made, block - num_blocks)

    def allow_blocks(self, num_further: int) -> None:
        """Raise `TooManyOperations` if a layer makes too many blocks, with a number of further ones."""
        if self._makes_too_many(num_further):
            raise TooManyOperations

    def see_births(
        self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Record the memory of an operation's results and the temporary memory of its kernel."""
        new = [
            leaf
            for leaf in find_tensors([result])
            if leaf.device.type == self._device and not self._ledger.is_followed(leaf)
        ]
        if not new and not (args and result is args[0]):
            return
        temporaries = self._find_temporaries(operation, args, kwargs)
        # Operations in place make nothing else.
        if not new and temporaries is None:
            return
        self.allow_blocks(0)
        origin = self._places.number(operation.__name__)
        if needs_workspace(operation):
            self._workspaces.need(Workspace.CUBLAS, operation.__name__, origin)
        if needs_lt_workspace(operation, args):
            self._workspaces.need(Workspace.CUBLAS_LT, operation.__name__, origin)
        temporaries = temporaries or _NO_TEMPORARIES
        ledger = self._ledger
        taken = [ledger.bear(num_bytes, origin) for num_bytes in temporaries.before]
        for tensor in new:
            if not ledger.is_followed(tensor):
                ledger.follow(tensor, ledger.bear(tensor.untyped_storage().nbytes(), origin))
        taken += [ledger.bear(num_bytes, origin) for num_bytes in temporaries.after]
        ledger.free(reversed(taken))

    def can_repeat(self, done: OperationOutcome, given: Sequence[torch.Tensor]) -> bool:
        """Return whether an operation has the outcome of an earlier one, and is within the limit."""
        return not self._makes_too_many(done.num_made) and self._repeats.can_repeat(done, given)

    def _makes_too_many(self, num_further: int) -> bool:
        """Return whether a layer makes too many blocks, with a number of further ones."""
        if self._max_blocks is None or not self._places.layer:
            return False
        num_blocks = self._ledger.num_blocks + num_further - self._num_blocks_before_layer
        return num_blocks > self._max_blocks

    def _find_positions(self, visit: LayerVisit) -> dict[int, int]:
        positions: dict[int, int] = {}
        for position, tensor in enumerate(visit.found):
            block = self.find_block(tensor)
            if block is not None:
                positions.setdefault(block, position)
        return positions
