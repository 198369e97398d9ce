"""The part of a graph that one GPU holds (`ggml_backend_sched_split_graph`, ggml-backend.cpp).

llama.cpp keeps the embedding, inputs and the rows that it looks up on the host. The GPU has a copy
of each of them, and everything else.
"""

from __future__ import annotations

from moetool.memory.serving.ggml.graph import Graph
from moetool.memory.serving.ggml.tensors import Tensor

_VIEWS = ("view", "reshape", "permute")


def take_gpu_part(graph: Graph) -> Graph:
    """Return the graph that a GPU runs with all layers on it.

    Args:
        graph: The whole graph, which starts with the embedding's rows. Its tensors' sources are
            replaced by the copies.
    """
    embedded, *nodes = graph.nodes
    part, copies = Graph(), dict[Tensor, Tensor]()
    for node in nodes:
        if node.operation in _VIEWS:
            continue
        for source in node.sources:
            if (source.is_input or source is embedded) and source not in copies:
                copies[source] = Tensor(source.kind, source.shape, source.strides, is_input=True)
        node.sources = tuple(copies.get(source, source) for source in node.sources)
    part.leafs = list(copies.values())
    part.nodes = nodes
    return part
