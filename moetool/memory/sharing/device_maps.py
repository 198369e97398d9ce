"""transformers' own maps of a model over several GPUs, with `device_map="auto"`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from transformers.integrations.accelerate import _get_device_map, expand_device_map

from moetool.anatomy.routing.walk import join_path
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.errors import InputError
from moetool.memory.answers.on_gpus import RankBytes
from moetool.memory.sharing.decoder_layers import find_decoder_layers
from moetool.memory.sharing.undivided import merge_undivided
from moetool.quantizing.kinds import Quantization

DEVICE_MAP = "device_map"

# The rest has to go somewhere; the actual size of the host's memory doesn't matter.
_HOST_BYTES = 2**60
# The part of each GPU's memory that transformers' bitsandbytes quantizers use for weights.
_BITSANDBYTES_SHARE = 0.90


def share_by_device_map(
    skeleton: RoutedSkeleton,
    *,
    gpu_memory_bytes: int,
    num_gpus: int,
    reserve_bytes: int = 0,
    quantization: Quantization = Quantization.NONE,
) -> RankBytes:
    """Return the weights on each GPU with `device_map="auto"`.

    transformers' own functions make the map. They put whole decoder layers on one GPU after
    another, spread them evenly, and keep room on the first for the largest layer, in case one has
    to come from the host. With bitsandbytes they leave a tenth of each GPU free.

    The memory is passed as `max_memory`. Without that, transformers uses the memory that it finds
    free, and only nine tenths of a single GPU.

    Args:
        skeleton: The model on the meta device, in the dtypes it is loaded in.
        gpu_memory_bytes: The memory of each GPU.
        num_gpus: The number of GPUs.
        reserve_bytes: Memory on each GPU that weights may not use.
        quantization: The storage of the weights.

    Returns:
        The bytes and layers of each GPU, with the number of layers left to the host as its reason.
    """
    maps = DeviceMaps(skeleton, quantization)
    return maps.share(budget_bytes=gpu_memory_bytes - reserve_bytes, num_gpus=num_gpus)


def _add_cache(ranks: RankBytes, cache_bytes: int) -> list[int]:
    """Return the bytes of each GPU's weights and of the cache of its layers."""
    if not ranks.num_layers or not sum(ranks.num_layers):
        return [weights_bytes + cache_bytes for weights_bytes in ranks.weights_bytes]
    num_layers = sum(ranks.num_layers)
    return [
        weights_bytes + -(-cache_bytes * num // num_layers)
        for weights_bytes, num in zip(ranks.weights_bytes, ranks.num_layers, strict=True)
    ]


class DeviceMaps:
    """transformers' maps of one model, for any kind and number of GPUs.

    Args:
        skeleton: The model on the meta device, in the dtypes it is loaded in.
        quantization: The storage of the weights.
    """

    def __init__(self, skeleton: RoutedSkeleton, quantization: Quantization) -> None:
        self._model = merge_undivided(skeleton.model)
        self._quantization = quantization
        tensors = [*self._model.named_parameters(), *self._model.named_buffers()]
        self._bytes_by_path = {path: tensor.nbytes for path, tensor in tensors}
        # The tensors of each decoder layer, by its path.
        self._layers: dict[str, list[str]] = {path: [] for path in find_decoder_layers(skeleton)}
        for path in self._bytes_by_path:
            words = path.split(".")
            for holder in accumulate(words[:-1], join_path):
                if holder in self._layers:
                    self._layers[holder].append(path)

    def count_gpus(
        self,
        *,
        gpu_memory_bytes: int,
        cache_bytes: int,
        activation_bytes: int,
        context_bytes: int,
        largest: int = 64,
    ) -> int | None:
        """Return the number of GPUs a run needs with `device_map="auto"`; None if none is enough.

        That is the smallest number with which all layers are on GPUs, and each GPU has room for

        - the weights that transformers puts there, for which it may use all memory except the
          context,
        - the cache of its layers, assuming that each layer's is of the same size,
        - all activations and the workspace: a GPU that runs some of the layers may need less, so
          the number may be too large.

        Args:
            gpu_memory_bytes: The memory of each GPU.
            cache_bytes: The cache of all layers.
            activation_bytes: Activations at the peak, with the workspace and the allocator's
                reserve beyond what is allocated.
            context_bytes: The CUDA context of each GPU.
            largest: The largest number that is tried.
        """
        room_bytes = gpu_memory_bytes - context_bytes - activation_bytes
        fewest = self._count_fewest_gpus(room_bytes=room_bytes, cache_bytes=cache_bytes)
        if fewest is None:
            return None
        for num_gpus in range(fewest, largest + 1):
            ranks = self.share(budget_bytes=gpu_memory_bytes - context_bytes, num_gpus=num_gpus)
            if ranks.reason is None and max(_add_cache(ranks, cache_bytes)) <= room_bytes:
                return num_gpus
        return None

    @cached_property
    def _layer_bytes(self) -> list[int]:
        layers = map(self._model.get_submodule, self._layers)
        return [
            sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers()))
            for layer in layers
        ]

    def share(self, *, budget_bytes: int, num_gpus: int) -> RankBytes:
        """Return the weights on each GPU if they may use this much of it."""
        device_map = self._make_map(budget_bytes=max(budget_bytes, 0), num_gpus=num_gpus)
        devices = expand_device_map(device_map, list(self._bytes_by_path))
        held = Counter[Any]()
        for path, num_bytes in self._bytes_by_path.items():
            held[devices[path]] += num_bytes
        on_gpus = range(num_gpus)
        layers = Counter(_find_device(paths, devices) for paths in self._layers.values())
        is_whole = sum(held[gpu] for gpu in on_gpus) == sum(held.values())
        num_left = len(self._layers) - sum(layers[gpu] for gpu in on_gpus)
        left = (
            f"{num_left} of {len(self._layers)} layers" if num_left else "parts outside of layers"
        )
        return RankBytes(
            way=DEVICE_MAP,
            num_gpus=num_gpus,
            weights_bytes=tuple(held[gpu] for gpu in on_gpus),
            num_layers=tuple(layers[gpu] for gpu in on_gpus) if self._layers else None,
            reason=None if is_whole else f"{left} are left to the host's memory",
        )

    def _count_fewest_gpus(self, *, room_bytes: int, cache_bytes: int) -> int | None:
        """Return a lower bound on the number of GPUs needed; None if no number is enough."""
        largest_layer = max(self._layer_bytes, default=0)
        if room_bytes <= 0 or largest_layer > room_bytes:
            return None
        num_gpus = -(-(sum(self._bytes_by_path.values()) + cache_bytes) // room_bytes)
        if largest_layer:
            num_layers = self._layer_bytes.count(largest_layer)
            num_gpus = max(num_gpus, -(-num_layers // (room_bytes // largest_layer)))
        return num_gpus

    def find_devices(self, *, budget_bytes: int, num_gpus: int) -> dict[str, int]:
        """Return the GPU of each module that the map names.

        Args:
            budget_bytes: Memory of each GPU that weights may use.
            num_gpus: The number of GPUs.

        Raises:
            InputError: Parts of the model are left to the host.
        """
        device_map = self._make_map(budget_bytes=max(budget_bytes, 0), num_gpus=num_gpus)
        if not all(type(device) is int for device in device_map.values()):
            raise InputError(
                f'device_map="auto" leaves a part of the model to the host on {num_gpus} GPUs.',
                hint="Give more GPUs.",
            )
        return device_map

    def _make_map(self, *, budget_bytes: int, num_gpus: int) -> dict[str, Any]:
        max_memory: dict[int | str, int] = dict.fromkeys(range(num_gpus), budget_bytes)
        max_memory["cpu"] = _HOST_BYTES
        is_plain = self._quantization is Quantization.NONE
        quantizer: Any = None if is_plain else _BitsAndBytesQuantizer()
        with _without_warnings():
            device_map: dict[str, Any] = _get_device_map(self._model, "auto", max_memory, quantizer)
        return device_map


def _find_device(paths: Iterable[str], devices: Mapping[str, Any]) -> Any:
    """Return where the tensors at some paths lie; None if they lie on several devices."""
    found = {devices[path] for path in paths}
    return found.pop() if len(found) == 1 else None


class _BitsAndBytesQuantizer:
    """A stand-in for transformers' quantizers, for weights that are quantized already."""

    def param_element_size(self, _model: object, _name: str, parameter: torch.Tensor) -> int:
        return parameter.element_size()

    def adjust_max_memory(self, max_memory: dict[int | str, int]) -> dict[int | str, float]:
        return {key: value * _BITSANDBYTES_SHARE for key, value in max_memory.items()}

    def validate_environment(self, **_kwargs: object) -> None:
        """Accept any map: layers that are left to the host are reported by `share`."""


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep accelerate from warning that this machine lacks the GPUs in question."""
    logger = logging.getLogger("accelerate.utils.modeling")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
