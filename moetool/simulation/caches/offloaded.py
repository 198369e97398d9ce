"""Offloaded caches on the meta device: copies to the host and back, and the stream they are made on.

transformers moves a layer's keys and values to the host once the layer has used them, and fetches
those of the next layer on another stream. Memory that torch's allocator takes on another stream comes
from other pools.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils.weak import WeakIdKeyDictionary
from transformers.cache_utils import Cache, EncoderDecoderCache

from moetool.simulation.meta.dispatch import DispatchMode

aten = torch.ops.aten


class SideStream:
    """The stream on which an offloaded cache fetches keys and values.

    Attributes:
        is_current: Whether work goes to it now.
    """

    def __init__(self) -> None:
        self.is_current = False

    def __enter__(self) -> Self:
        self.is_current = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.is_current = False

    def __deepcopy__(self, memo: object) -> SideStream:
        return self


class HostCopies(DispatchMode):
    """Lets tensors without data be copied to the host and back. There they take no memory."""

    def __init__(self) -> None:
        super().__init__()
        # Their values mean nothing, and nothing may be computed with them.
        self._on_host: Any = WeakIdKeyDictionary()

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operation's result. For copies from or to the host, it has its shape alone."""
        packet = func.overloadpacket
        if packet is aten._to_copy and _is_to_host(args[0], kwargs):
            return self._put_on_host(args[0].shape, args[0].dtype)
        if not args or not isinstance(args[0], torch.Tensor) or args[0] not in self._on_host:
            return self.pass_on(func, args, kwargs)
        if packet is aten._to_copy:
            with torch._C._DisableTorchDispatch():
                return torch.empty(args[0].shape, dtype=args[0].dtype, device="meta")
        if packet is aten.index_select:
            shape = list(args[0].shape)
            shape[args[1]] = args[2].numel()
            return self._put_on_host(torch.Size(shape), args[0].dtype)
        return self.pass_on(func, args, kwargs)

    def _put_on_host(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        with torch._C._DisableTorchDispatch():
            tensor = torch.empty(1, dtype=dtype).expand(shape)
        self._on_host[tensor] = None
        return tensor


def offload(cache: Cache, stream: SideStream) -> Cache:
    """Return the same cache, which now keeps its layers in the host's memory.

    Args:
        cache: An empty cache.
        stream: The stream on which it fetches them.
    """
    if isinstance(cache, EncoderDecoderCache):
        for part in (cache.self_attention_cache, cache.cross_attention_cache):
            offload(part, stream)
        return cache
    kind = type(cache)
    default = inspect.signature(kind.__init__).parameters["offload_only_non_sliding"].default
    moved: Any = cache
    moved.__class__ = type(f"Offloaded{kind.__name__}", (_Offloaded, kind), {})
    moved.only_non_sliding = default
    moved.prefetch_stream = stream
    return cache


def count_host_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the size of the tensors on the host."""
    return sum(
        tensor.numel() * tensor.element_size() for tensor in tensors if tensor.device.type == "cpu"
    )


class _Offloaded(Cache):
    """Fetches and puts away layers as an offloaded cache does, without waiting for streams."""

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's keys and values."""
        self.prefetch(layer_idx + 1, self.only_non_sliding)
        result = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self.offload(layer_idx, self.only_non_sliding)
        return result


def _is_to_host(tensor: Any, kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return (
        device is not None
        and torch.device(device).type == "cpu"
        and bool(kwargs.get("non_blocking"))
        and tensor.device.type == "meta"
    )
