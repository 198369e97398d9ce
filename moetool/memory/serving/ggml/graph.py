"""The order of a graph's tensors, as ggml's `ggml_build_forward_expand` makes it."""

from __future__ import annotations

from moetool.memory.serving.ggml.tensors import Tensor


class Graph:
    """Tensors in the order in which they are computed.

    Attributes:
        nodes: Computed tensors and views, each after its sources.
        leafs: Inputs and tensors that are stored elsewhere, in the order in which they are met.
    """

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leafs: list[Tensor] = []
        self._seen: set[int] = set()

    def expand(self, tensor: Tensor) -> Tensor:
        """Add a tensor, after all that it is computed from and that isn't there yet.

        Returns:
            The tensor.
        """
        if id(tensor) in self._seen:
            return tensor
        self._seen.add(id(tensor))
        for source in tensor.sources:
            self.expand(source)
        (self.leafs if tensor.operation == "none" else self.nodes).append(tensor)
        return tensor
