"""The device of each tensor of a graph, by `ggml_backend_sched_split_graph` (ggml-backend.cpp).

What reads a weight runs where the weight is, except that a GPU takes over large products with
weights of the host. Other nodes follow their neighbours, GPUs before the host. Where a node's source
is on another device, a copy of it is made at the start of the nodes that follow each other there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from moetool.checkpoint.gguf.types import TensorType
from moetool.memory.serving.ggml.allocation.cuda import (
    Capability,
    count_attention_bytes,
    keep_for_fusion,
)
from moetool.memory.serving.ggml.graph import Graph
from moetool.memory.serving.ggml.tensors import KIND_BYTES, Tensor

# GPUs are counted from 0; the host is the last of a list of devices.
GPU, HOST = 0, -1
# Copies of inputs of several GPUs, which work on as many micro-batches (`GGML_SCHED_MAX_COPIES`).
_NUM_COPIES = 4
_VIEWS = ("view", "reshape", "permute")
# Sources whose weights are too small to decide where these run.
_UNDECIDED = ("rope", "flash_attn")
# Fewer tokens are not worth the copy of a weight (`op_offload_min_batch_size` of ggml-cuda).
_FEWEST_OFFLOADED = 32
# Fewer tokens, or all layers on GPUs, bind norms to their layers (`graph_get_cb`).
_FEWEST_UNBOUND = 32


@dataclass(frozen=True)
class Devices:
    """Where weights and layers are.

    Attributes:
        place_weight: Returns the device of a weight, by its name.
        place_layer: Returns the device of a layer and its cache.
        has_all_layers: Whether the GPU has all layers and the head.
        takes_products: Whether the GPU takes over products with weights of the host.
        weight_bytes: Bytes of weights by name, for the copies that it makes then.
        cache_types: What keys and values are stored in, for copies of caches.
        repacked: Weights that the host has in another order, whose products it keeps.
        capability: The compute capability of a GPU with CUDA; None for another device.
        is_pipeline: Whether several GPUs work on several micro-batches at once.
        has_attention: Whether the GPU has a kernel of flash attention for the model; else it runs on
            the host.
    """

    place_weight: Callable[[str], int]
    place_layer: Callable[[int], int]
    has_all_layers: bool
    takes_products: bool
    weight_bytes: Mapping[str, int] = field(default_factory=dict)
    cache_types: Mapping[str, TensorType] = field(default_factory=dict)
    repacked: frozenset[str] = frozenset()
    capability: Capability | None = None
    is_pipeline: bool = False
    has_attention: bool = True


@dataclass
class ScheduledGraph:
    """A graph with the device of each tensor, copies included, in the order of allocation."""

    nodes: list[tuple[Tensor, int]] = field(default_factory=list)
    leafs: list[tuple[Tensor, int]] = field(default_factory=list)


def schedule(graph: Graph, devices: Devices, *, num_tokens: int) -> ScheduledGraph:
    """Return a graph for a GPU and the host.

    Args:
        graph: The whole graph. Sources of its tensors are replaced by copies.
        devices: Where weights and layers are.
        num_tokens: Tokens of the micro-batch.
    """
    run = _Scheduler(graph, devices, num_tokens=num_tokens)
    run.assign()
    return run.split()


class _Scheduler:
    def __init__(self, graph: Graph, devices: Devices, *, num_tokens: int) -> None:
        self._graph, self._devices = graph, devices
        self._binds_norms = devices.has_all_layers or num_tokens < _FEWEST_UNBOUND
        self._found: dict[Tensor, int] = {}
        self._uses = Counter(source for node in graph.nodes for source in node.sources)

    def assign(self) -> None:
        """Find the device of every tensor."""
        for tensor in (*self._graph.leafs, *self._graph.nodes):
            device = self._find_certain(tensor)
            if device is not None:
                self._found[tensor] = device
        nodes = [node for node in self._graph.nodes if node.operation not in _VIEWS]
        for order, skips_host in (
            (nodes, True),
            (nodes[::-1], True),
            (nodes, False),
            (nodes[::-1], False),
        ):
            self._expand(order, skips_host=skips_host)
        for node in self._graph.nodes:
            if node not in self._found and node.base is not None and node.base in self._found:
                self._found[node] = self._found[node.base]
            self._found.setdefault(node, GPU if self._can_run(node, GPU) else HOST)
            for source in node.sources:
                if source not in self._found:
                    owner = node if source.base is None else source.base
                    self._found[source] = self._found[owner]

    def _find_certain(self, tensor: Tensor) -> int | None:
        """Return the device of a tensor that doesn't depend on its neighbours."""
        devices = self._devices
        is_norm = tensor.operation in ("rms_norm", "norm")
        if is_norm and tensor.layer is not None and self._binds_norms:
            return devices.place_layer(tensor.layer)
        owner = tensor if tensor.base is None else tensor.base
        if owner.is_external:
            if owner.layer is not None:
                return devices.place_layer(owner.layer)
            return devices.place_weight(owner.weight)
        if tensor.is_input:
            return HOST
        if tensor.operation in _UNDECIDED:
            return None
        weight = next((source for source in tensor.sources if source.weight), None)
        if weight is None:
            return None
        device = devices.place_weight(weight.weight)
        is_large = _count_batch(tensor) >= _FEWEST_OFFLOADED
        may_move = devices.takes_products and weight.weight not in devices.repacked
        return GPU if device == HOST and may_move and is_large else device

    def _expand(self, nodes: list[Tensor], *, skips_host: bool) -> None:
        """Give nodes without a device that of the node before them."""
        current: int | None = None
        for node in nodes:
            device = self._found.get(node)
            if device is not None:
                current = None if skips_host and device == HOST else device
            elif current is not None and self._can_run(node, current):
                self._found[node] = current

    def _can_run(self, node: Tensor, device: int) -> bool:
        return device == HOST or node.operation != "flash_attn" or self._devices.has_attention

    def split(self) -> ScheduledGraph:
        """Return the tensors in the order of allocation, with copies between devices."""
        found, scheduled = self._found, ScheduledGraph()
        copies: dict[tuple[Tensor, int], Tensor] = {}
        is_pipeline = self._devices.is_pipeline
        kept = self._keep_inputs() if is_pipeline else []
        pending: list[tuple[Tensor, int]] = []
        num_inputs = 0
        nodes = self._graph.nodes
        current = next(found[node] for node in nodes if node.operation not in _VIEWS)

        def flush() -> None:
            scheduled.nodes += self._fuse(pending)
            pending.clear()

        inputs: list[tuple[Tensor, int]] = []
        for node in nodes:
            if node.operation in _VIEWS:
                pending.append((node, found[node]))
                continue
            device = found[node]
            needs_split = num_inputs > 0 and any(
                source.weight and found[source] != device for source in node.sources
            )
            if device != current or needs_split:
                # Views before a node belong to the part before it.
                scheduled.nodes += inputs
                flush()
                inputs, num_inputs, current = [], 0, device
            sources = []
            for source in node.sources:
                if found[source] == device:
                    sources.append(source)
                    continue
                copy = copies.get((source, device))
                if copy is None:
                    copy = copies[source, device] = self._copy(source)
                    if is_pipeline:
                        copy.is_input = copy.is_output = True
                        others = [self._copy(source) for _ in range(_NUM_COPIES - 1)]
                        kept += [(each, device) for each in (copy, *others)]
                    # It takes no memory, and keeps its source until the copy is made.
                    waiting = Tensor(source.kind, source.shape, source.strides, is_external=True)
                    waiting.sources = (source,)
                    inputs += [(waiting, found[source]), (copy, device)]
                    num_inputs += 1
                sources.append(copy)
            node.sources = tuple(sources)
            pending.append((node, device))
        scheduled.nodes += inputs
        flush()
        scheduled.leafs = kept + [(leaf, found.get(leaf, HOST)) for leaf in self._graph.leafs]
        return scheduled

    def _fuse(self, part: list[tuple[Tensor, int]]) -> list[tuple[Tensor, int]]:
        """Return the nodes of a part, with what CUDA adds if they run on a GPU."""
        capability = self._devices.capability
        device = next((d for node, d in part if node.operation not in _VIEWS), HOST)
        if capability is None or device == HOST:
            return part
        types = self._devices.cache_types
        for node, _ in part:
            if node.operation == "flash_attn":
                node.packed_bytes = count_attention_bytes(
                    node, capability, type_k=types["k"].name, type_v=types["v"].name
                )
        return [(node, device) for node in keep_for_fusion([node for node, _ in part], self._uses)]

    def _keep_inputs(self) -> list[tuple[Tensor, int]]:
        """Return the graph's inputs with their copies, which are kept until the end."""
        kept = []
        for leaf in self._graph.leafs:
            if leaf.is_input:
                leaf.is_output = True
                others = [self._copy(leaf) for _ in range(_NUM_COPIES - 1)]
                kept += [(each, HOST) for each in (leaf, *others)]
        return kept

    def _copy(self, source: Tensor) -> Tensor:
        size = self._devices.weight_bytes.get(source.weight) if source.weight else None
        kind = self._devices.cache_types.get((source.base or source).cached)
        if kind is not None:
            # A view with gaps is copied with them.
            size = kind.count_bytes(source.num_bytes // KIND_BYTES["f32"])
        return Tensor(source.kind, source.shape, source.strides, packed_bytes=size)


def _count_batch(node: Tensor) -> int:
    """Return the tokens that an operation is for (`get_op_batch_size`, ggml-cuda.cu)."""
    _, second, third, fourth = node.shape
    if node.operation == "get_rows":
        return 0
    if node.operation == "mul_mat":
        return second
    if node.operation in ("mul_mat_id", "rope"):
        return third
    return second * third * fourth
