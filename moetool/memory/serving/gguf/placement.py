"""The device of each tensor of a GGUF file, by `load_tensors` (src/llama-model.cpp).

The embedding stays on the host, and so do all tensors of layers before the first one on the GPU.
The head counts as the last layer. Patterns that move tensors come first. On a host without a GPU's
pinned memory, some types are repacked for its vector instructions, which takes them out of the
mapped file (`ggml_repack_get_optimal_repack_type`, here for AVX2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from moetool.checkpoint.gguf.files import GgufModel
from moetool.checkpoint.gguf.header import GgufTensor
from moetool.checkpoint.gguf.types import PLAIN_TYPES, TensorType
from moetool.memory.serving.ggml.allocation.scheduler import GPU, HOST
from moetool.memory.serving.gguf.styles import count_layers

_LAYER = re.compile(r"blk\.(\d+)\.")
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_INPUTS = (_EMBEDDING, "per_layer_token_embd.weight", "position_embd.weight", "token_types.weight")
_REPACKED = ("q4_0", "q4_K", "iq4_nl", "mxfp4")
_REPACKED_ROWS = 8
# A row of quantized numbers on a CUDA GPU ends at a multiple of it.
_CUDA_ROW = 512


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor on a device.

    Attributes:
        tensor: As the header describes it.
        name: Its name, or that of the head for an embedding that is the head too.
        device: `GPU` or `HOST`.
        is_repacked: Whether the host repacks it.
    """

    tensor: GgufTensor
    name: str
    device: int
    is_repacked: bool


@dataclass(frozen=True)
class LayerRule:
    """The layers, and the tensors, that are on the GPU.

    Attributes:
        num_gpu_layers: `--n-gpu-layers`; 0 without a GPU.
        moves: Patterns of names with the device of tensors that match; the first that does counts.
        shares: `--tensor-split`: what each GPU has of the layers, in any unit.
    """

    num_gpu_layers: int
    moves: tuple[tuple[str, int], ...] = ()
    shares: tuple[float, ...] = (1.0,)


def make_moves(num_cpu_moe: int) -> tuple[tuple[str, int], ...]:
    """Return the patterns of `--n-cpu-moe`: the experts of the first layers stay on the host."""
    return tuple(
        (rf"blk\.{number}\.ffn_(up|down|gate|gate_up)_(ch|)exps", HOST)
        for number in range(num_cpu_moe)
    )


def place_layer(number: int, rule: LayerRule, *, num_layers: int) -> int:
    """Return the device of a layer and its cache; the head is the layer after the last one.

    Shares are added up, and compared, as numbers of 32 bits, as llama.cpp does.
    """
    first = max(num_layers + 1 - rule.num_gpu_layers, 0)
    if number < first:
        return HOST
    reached = np.cumsum(np.array(rule.shares, np.float32))
    part = np.float32(number - first) / np.float32(min(rule.num_gpu_layers, num_layers + 1))
    return int(np.searchsorted(reached / reached[-1], part, side="right"))


def place_tensors(model: GgufModel, rule: LayerRule, *, repacks: bool) -> list[PlacedTensor]:
    """Return every tensor that llama.cpp loads, with its device.

    Args:
        model: The file's headers.
        rule: What the flags say.
        repacks: Whether the host repacks types for its vector instructions.
    """
    num_layers = model.read_count("block_count") or 0
    names = {tensor.name for tensor in model.tensors}
    last = count_layers(model) or 0
    patterns = [(re.compile(words), device) for words, device in rule.moves]
    placed = []
    for tensor, name in _list_uses(model.tensors, names):
        layer = _LAYER.match(name)
        if layer is not None and int(layer[1]) >= last:
            continue
        if name in _INPUTS:
            device = HOST
        else:
            number = int(layer[1]) if layer else num_layers
            device = place_layer(number, rule, num_layers=num_layers)
        # An embedding that is the head too is matched by its own name.
        moved = next((to for words, to in patterns if words.search(tensor.name)), None)
        device = device if moved is None else moved
        is_repacked = repacks and device == HOST and _is_repacked(tensor, name)
        placed.append(PlacedTensor(tensor, name, device, is_repacked))
    return placed


def count_gpu_bytes(
    placed: Iterable[PlacedTensor], *, alignment: int, pads_rows: bool, gpu: int = GPU
) -> int:
    """Return the bytes of a GPU's model buffer.

    Args:
        placed: All tensors.
        alignment: Of the device.
        pads_rows: Whether rows of quantized numbers are padded, as with CUDA.
        gpu: The GPU's number.
    """
    total = 0
    for each in placed:
        if each.device == gpu:
            size = count_device_bytes(each.tensor, pads_rows=pads_rows)
            total += -(-size // alignment) * alignment
    return total


def count_device_bytes(tensor: GgufTensor, *, pads_rows: bool) -> int:
    """Return the bytes that a tensor takes on a GPU, without alignment."""
    row = tensor.shape[-1] if tensor.shape else 1
    return pad_rows(tensor.num_bytes, tensor.type, row=row) if pads_rows else tensor.num_bytes


def pad_rows(num_bytes: int, kind: TensorType, *, row: int) -> int:
    """Return the bytes of a tensor on a CUDA GPU, where its last row is padded if it is quantized."""
    if kind.name in PLAIN_TYPES or row % _CUDA_ROW == 0:
        return num_bytes
    return num_bytes + kind.count_bytes(_CUDA_ROW - row % _CUDA_ROW)


def count_mapped_bytes(model: GgufModel, placed: Iterable[PlacedTensor]) -> int:
    """Return the bytes of the files that are mapped for the host: from its first tensor to its last."""
    on_host = {each.tensor.name for each in placed if each.device == HOST and not each.is_repacked}
    total = 0
    for part in model.parts:
        ends = [(t.offset, t.offset + t.num_bytes) for t in part.tensors if t.name in on_host]
        if ends:
            total += max(end for _, end in ends) - min(start for start, _ in ends)
    return total


def count_repacked_bytes(placed: Iterable[PlacedTensor], *, alignment: int) -> int:
    """Return the bytes of weights that the host repacks."""
    sizes = [each.tensor.num_bytes for each in placed if each.is_repacked]
    return sum(-(-size // alignment) * alignment for size in sizes)


def index_devices(placed: Iterable[PlacedTensor]) -> Mapping[str, PlacedTensor]:
    """Return tensors by the names under which a graph uses them."""
    return {each.name: each for each in placed}


def _list_uses(tensors: Iterable[GgufTensor], names: set[str]) -> list[tuple[GgufTensor, str]]:
    """Return tensors with their names, and an embedding that is the head too a second time."""
    uses = [(tensor, tensor.name) for tensor in tensors]
    if _HEAD not in names:
        uses += [(tensor, _HEAD) for tensor in tensors if tensor.name == _EMBEDDING]
    return uses


def _is_repacked(tensor: GgufTensor, name: str) -> bool:
    if tensor.type.name not in _REPACKED or name in _INPUTS or name.endswith(".bias"):
        return False
    num_dimensions = 3 if "_exps." in name else 2
    return len(tensor.shape) == num_dimensions and tensor.shape[-2] % _REPACKED_ROWS == 0
