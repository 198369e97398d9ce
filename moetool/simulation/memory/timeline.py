"""Timelines: the births and deaths of blocks of memory during a run, and where they occur."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from moetool.simulation.loops.loop import Loop

# Stands for the place of a death.
NOWHERE = -1


class Event(NamedTuple):
    """The birth or death of a block of memory.

    Attributes:
        block: The block's number. No two blocks share one.
        num_bytes: The bytes requested; -1 for its death.
        origin: Index of its birthplace in the timeline's origins.
    """

    block: int
    num_bytes: int
    origin: int


@dataclass(frozen=True)
class Origin:
    """The place in a model where memory was requested.

    Attributes:
        layer: The path of the layer; empty outside layers.
        module: The path of the innermost module within the layer, or within the model.
        operation: The operation of torch.
        is_on_side: Whether it ran on another stream than the model, which has its own memory pools.
    """

    layer: str
    module: str
    operation: str
    is_on_side: bool = False


class Origins:
    """Numbers the places where memory is requested.

    Attributes:
        found: The places seen so far, by number.
    """

    def __init__(self) -> None:
        self.found: list[Origin] = []
        self._numbers: dict[Origin, int] = {}
        self._in_layers: dict[str, _PlacesInLayer] = {}

    def number(self, layer: str, module: str, operation: str, *, is_on_side: bool = False) -> int:
        """Return the number of a place."""
        key = Origin(layer, module, operation, is_on_side)
        number = self._numbers.setdefault(key, len(self.found))
        if number == len(self.found):
            self.found.append(key)
        return number

    def find_in(self, layer: str) -> Mapping[int, int]:
        """Return the numbers of the same places in another layer, by those of places in any layer."""
        if layer not in self._in_layers:
            self._in_layers[layer] = _PlacesInLayer(self, layer)
        return self._in_layers[layer]


class _PlacesInLayer(dict[int, int]):
    """Numbers of places in a layer, each found when it is first looked up."""

    def __init__(self, origins: Origins, layer: str) -> None:
        # That of a death, which has no place.
        super().__init__({NOWHERE: 0})
        self._origins = origins
        self._layer = layer

    def __missing__(self, place: int) -> int:
        of = self._origins.found[place]
        number = self._origins.number(
            self._layer, of.module, of.operation, is_on_side=of.is_on_side
        )
        self[place] = number
        return number


@dataclass(frozen=True)
class Call:
    """A call of the model.

    Attributes:
        first_event: Number of events before the call.
        end_event: Number of events until the end of the call.
        cache_blocks: The blocks that the cache holds after the call.
        cache_bytes: The size of those blocks.
        host_cache_bytes: The size of the cache's tensors in the host's memory.
        assistant_cache_bytes: The part of the cache that is an assistant's.
    """

    first_event: int
    end_event: int
    cache_blocks: frozenset[int]
    cache_bytes: int
    host_cache_bytes: int = 0
    assistant_cache_bytes: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether it is the one before which a run was stopped."""
        return self.first_event == self.end_event


@dataclass(frozen=True)
class Timeline:
    """A run, beginning with its inputs.

    Attributes:
        events: Births and deaths, in order.
        origins: The places where blocks were born. Timelines of one `MemoryRun` share them.
        calls: The model's calls: the prompt's first, then one per token.
        workspace_block: The block that matrix products keep; None if there were none.
        lt_workspace_block: The block that products with a bias keep; None if there were none.
        loops: Iterations of the first call that are not among the events, in order.
    """

    events: Sequence[Event]
    origins: Sequence[Origin]
    calls: tuple[Call, ...]
    workspace_block: int | None
    lt_workspace_block: int | None = None
    loops: tuple[Loop, ...] = ()


@dataclass(frozen=True)
class AllocatedParts:
    """Everything that is allocated at some moment, as torch's allocator counts it, in bytes.

    Attributes:
        weights_bytes: Parameters and buffers; None if unknown.
        cache_bytes: Keys, values and states that the cache holds.
        activation_bytes: Everything else that comes and goes.
        workspace_bytes: Memory that libraries keep for matrix products.
        gradient_bytes: Gradients, in training.
        optimizer_state_bytes: The optimizer's states, in training.
    """

    weights_bytes: int | None
    cache_bytes: int
    activation_bytes: int
    workspace_bytes: int
    gradient_bytes: int = 0
    optimizer_state_bytes: int = 0

    @property
    def allocated_bytes(self) -> int | None:
        """The sum, which `torch.cuda.memory_allocated` would show; None if unknown."""
        if self.weights_bytes is None:
            return None
        return self.weights_bytes + self.above_weights_bytes

    @property
    def above_weights_bytes(self) -> int:
        """The sum without the weights."""
        in_training = self.gradient_bytes + self.optimizer_state_bytes
        return self.cache_bytes + self.activation_bytes + self.workspace_bytes + in_training
