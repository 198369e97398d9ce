"""The memory that ggml's graph allocator reserves for a graph (ggml/src/ggml-alloc.c).

Leafs and inputs are placed first. Each node then takes the memory of a source that nothing else
needs, where its operation can run in place and their layouts are equal; else the smallest free
block that is large enough, the last of equal ones; else the memory behind all others. What
nothing needs any more is freed and merged with free neighbours. Outputs are never freed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from moetool.memory.serving.ggml.allocation.scheduler import ScheduledGraph
from moetool.memory.serving.ggml.graph import Graph
from moetool.memory.serving.ggml.tensors import Tensor

# Operations that may write over a source (`ggml_op_can_inplace`).
_IN_PLACE = frozenset(
    ("fill", "scale", "add", "add_id", "mul", "div", "unary", "rope", "rms_norm", "clamp")
) | {"soft_max"}
# The memory behind everything that was placed is not limited.
_ENDLESS = 2**63


@dataclass
class Memory:
    """Free blocks, as offset and size in the order of their offsets, and the most that was used."""

    alignment: int
    free: list[tuple[int, int]] = field(default_factory=lambda: [(0, _ENDLESS)])
    most: int = 0

    def pad(self, size: int) -> int:
        """Return a size as a multiple of the alignment."""
        return -(-size // self.alignment) * self.alignment

    def take(self, size: int) -> int:
        """Take memory and return its offset."""
        size = self.pad(size)
        last = len(self.free) - 1
        best = last
        for number, (_, free) in enumerate(self.free[:last]):
            if free >= size and (best == last or free <= self.free[best][1]):
                best = number
        offset, free = self.free[best]
        self.free[best : best + 1] = [(offset + size, free - size)] if free > size else []
        self.most = max(self.most, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Give memory back."""
        size = self.pad(size)
        position = sum(start < offset for start, _ in self.free)
        if position < len(self.free) and offset + size == self.free[position][0]:
            size += self.free.pop(position)[1]
        if position and sum(self.free[position - 1]) == offset:
            position -= 1
            offset, before = self.free.pop(position)
            size += before
        self.free.insert(position, (offset, size))


class _Reservation:
    """The state of one reservation: who holds memory, and what is still needed."""

    def __init__(self, graph: ScheduledGraph, alignments: Sequence[int]) -> None:
        self.memories = [Memory(alignment) for alignment in alignments]
        self._graph = graph
        # The device and the place there.
        self._offsets: dict[Tensor, tuple[int, int]] = {}
        self._held: set[Tensor] = set()
        self._num_children: Counter[Tensor] = Counter()
        self._num_views: Counter[Tensor] = Counter()

    def run(self) -> None:
        """Place and free everything, in the order of the graph."""
        for leaf, device in self._graph.leafs:
            self._place(leaf, device)
        for node, _ in self._graph.nodes:
            if node.base is not None:
                self._num_views[node.base] += 1
            for source in node.sources:
                self._num_children[source] += 1
        for node, device in self._graph.nodes:
            for source in node.sources:
                self._place(source, device)
            self._place(node, device)
            for source in node.sources:
                self._num_children[source] -= 1
                self._release(source)

    def _place(self, tensor: Tensor, device: int) -> None:
        if tensor.is_external or tensor.base is not None or tensor in self._held:
            return
        self._held.add(tensor)
        if tensor.operation not in _IN_PLACE or not self._reuse_source(tensor):
            self._offsets[tensor] = (device, self.memories[device].take(tensor.num_bytes))

    def _reuse_source(self, tensor: Tensor) -> bool:
        """Put a tensor into a source's memory if it can be; return whether it was."""
        for source in tensor.sources:
            # Views are never marked as held, so they are not reused.
            if (
                source not in self._held
                or source.is_output
                or self._num_children[source] != 1
                or self._num_views[source]
                or not tensor.has_layout_of(source)
            ):
                continue
            self._held.discard(source)
            self._offsets[tensor] = self._offsets[source]
            return True
        return False

    def _release(self, source: Tensor) -> None:
        """Free a source, or what a view shows, once nothing needs it."""
        if self._num_children[source] or self._num_views[source]:
            return
        owner = source
        if source.base is not None:
            owner = source.base
            self._num_views[owner] -= 1
            if self._num_views[owner] or self._num_children[owner]:
                return
        if owner in self._held and not owner.is_output:
            device, offset = self._offsets[owner]
            self.memories[device].give(offset, owner.num_bytes)
            self._held.discard(owner)


def count_reserved_bytes(graph: Graph, *, alignment: int) -> int:
    """Return the bytes of the buffer that a graph needs on one device.

    Args:
        graph: Its tensors, in the order in which they are computed.
        alignment: The device's; sizes are multiples of it. 32 on the CPU, 128 with CUDA.
    """
    scheduled = ScheduledGraph(
        nodes=[(node, 0) for node in graph.nodes], leafs=[(leaf, 0) for leaf in graph.leafs]
    )
    return list_reserved_bytes(scheduled, [alignment])[0]


def list_reserved_bytes(graph: ScheduledGraph, alignments: Sequence[int]) -> list[int]:
    """Return the bytes of the buffer that a graph needs on each device.

    Args:
        graph: Its tensors and their devices, in the order of allocation.
        alignments: Of each device.
    """
    reservation = _Reservation(graph, alignments)
    reservation.run()
    return [memory.most for memory in reservation.memories]
