"""Copies between a GPU and host memory that the GPU makes while it goes on computing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# Devices whose queues of work (streams) run next to each other.
_WITH_STREAMS = ("cuda", "xpu")


def is_asynchronous(device: torch.device) -> bool:
    """Return whether a device goes on computing while it copies to host memory."""
    return device.type in _WITH_STREAMS


def allocate_pinned(like: torch.Tensor) -> torch.Tensor:
    """Return room for a tensor in pinned memory, the only kind that a GPU writes to on its own."""
    return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)


def send_to(device: torch.device, values: NDArray[Any]) -> torch.Tensor:
    """Return an array as a tensor on a device, without waiting for what a GPU is computing."""
    tensor = torch.from_numpy(values)
    if not is_asynchronous(device):
        return tensor.to(device)
    return allocate_pinned(tensor).copy_(tensor).to(device, non_blocking=True)


class HostCopy:
    """A tensor on its way to host memory.

    The copy is queued when this is made, behind all work queued before on the same stream; reading
    it waits. A tensor on any other kind of device is copied at once.

    Attributes:
        is_pinned: Whether it goes to pinned memory, of which a machine has little.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        device = tensor.device
        # Kept until it is read, or its memory would be given to the tensors that come next.
        self._source: torch.Tensor | None = tensor.detach()
        self._event: Any = None
        self.is_pinned = is_asynchronous(device)
        if self.is_pinned:
            self._target = allocate_pinned(tensor)
            self._target.copy_(self._source, non_blocking=True)
            self._event = torch.get_device_module(device).Event()
            self._event.record(torch.get_device_module(device).current_stream(device))
        else:
            self._target = self._source.cpu()

    def read(self) -> torch.Tensor:
        """Return the copy, in host memory."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        self._source = None
        return self._target


def to_numpy(tensor: torch.Tensor, *, slots: NDArray[np.int64] | None = None) -> NDArray[Any]:
    """Return a tensor in host memory, or some slots of it, as an array; bfloat16 becomes float32.

    numpy does it, not torch: in each new thread torch would start as many threads as there are
    cores, which compete with the model's own.

    Args:
        tensor: # (num_layers, num_slots, …) if slots are given
        slots: Indices of those to return.
    """
    is_bfloat16 = tensor.dtype == torch.bfloat16
    values: NDArray[Any] = (tensor.view(torch.int16) if is_bfloat16 else tensor).numpy()
    if slots is not None:
        values = values.take(slots, axis=1)
    if not is_bfloat16:
        return values
    # bfloat16 is the upper half of float32.
    bits = values.view(np.uint16).astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


class SideStreams:
    """One further queue of work for each device, for what need not hold up the model."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, Any] = {}

    @contextmanager
    def behind(self, device: torch.device) -> Iterator[None]:
        """Queue the block's work on the side, behind all that is queued on the device by now.

        On devices without streams the block runs as it is. Tensors that it reads must be kept until
        it has run.
        """
        if not is_asynchronous(device):
            yield
            return
        module: Any = torch.get_device_module(device)
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = module.Stream(device)
        stream.wait_stream(module.current_stream(device))
        with module.stream(stream):
            yield
