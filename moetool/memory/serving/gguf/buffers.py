"""The buffers that llama.cpp reserves for a GGUF file, on a GPU and on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moetool.checkpoint.gguf.files import GgufModel
from moetool.checkpoint.gguf.types import PLAIN_TYPES, TYPES_BY_NAME
from moetool.memory.serving.ggml.allocation.allocator import list_reserved_bytes
from moetool.memory.serving.ggml.allocation.cuda import Capability
from moetool.memory.serving.ggml.allocation.scheduler import HOST, Devices, schedule
from moetool.memory.serving.ggml.compute_buffer import (
    CPU_ALIGNMENT,
    CUDA_ALIGNMENT,
    RECENT,
    count_compute_bytes,
    has_cuda_attention,
    list_runs,
)
from moetool.memory.serving.ggml.models import build_graph
from moetool.memory.serving.ggml.sizes import count_output_bytes, count_window_cells, pad_cells
from moetool.memory.serving.gguf.placement import (
    LayerRule,
    PlacedTensor,
    count_device_bytes,
    count_gpu_bytes,
    count_mapped_bytes,
    count_repacked_bytes,
    index_devices,
    pad_rows,
    place_layer,
    place_tensors,
)
from moetool.memory.serving.gguf.sizes import list_caches, read_model_sizes


@dataclass(frozen=True)
class GgufRun:
    """A run of llama.cpp, as its flags describe it.

    Attributes:
        rule: Which layers and tensors are on the GPU.
        context: `--ctx-size`, which all sequences share.
        ubatch: `--ubatch-size`.
        num_sequences: `--parallel`.
        type_k: `--cache-type-k`.
        type_v: `--cache-type-v`.
        has_gpu: Whether there is a GPU at all.
        has_flash_attention: `--flash-attn`.
    """

    rule: LayerRule
    context: int
    ubatch: int = 512
    num_sequences: int = 1
    type_k: str = "f16"
    type_v: str = "f16"
    has_gpu: bool = True
    has_flash_attention: bool = True


@dataclass(frozen=True)
class DeviceRules:
    """The rules by which llama.cpp uses a kind of GPU.

    Attributes:
        alignment: Of tensors in its memory.
        pads_rows: Whether rows of quantized weights are padded.
        takes_products: Whether it takes over products with weights of the host.
        has_pinned_memory: Whether the host keeps weights for it as they are, not repacked.
        capability: The compute capability of a GPU with CUDA; None for another device.
    """

    alignment: int
    pads_rows: bool
    takes_products: bool
    has_pinned_memory: bool
    capability: Capability | None = None


CUDA = DeviceRules(
    CUDA_ALIGNMENT, pads_rows=True, takes_products=True, has_pinned_memory=True, capability=RECENT
)


def choose_rules(compute_capability: str | None) -> DeviceRules:
    """Return the rules of a GPU with CUDA.

    Args:
        compute_capability: As `major.minor`; None for that of recent GPUs.
    """
    if compute_capability is None:
        return CUDA
    major, _, minor = compute_capability.partition(".")
    return replace(CUDA, capability=(int(major), int(minor)))


@dataclass(frozen=True)
class Buffers:
    """The buffers of one device, in bytes; None where they aren't known.

    Attributes:
        weights: Of the host, those that are mapped from the file.
        repacked: Weights that the host keeps once more in another order; 0 on a GPU.
        cache: Keys and values.
        compute: Intermediate results.
        output: Logits of the last tokens; 0 on a GPU.
    """

    weights: int
    repacked: int
    cache: int | None
    compute: int | None
    output: int

    @property
    def total(self) -> int | None:
        """All of them together; None if one is unknown."""
        if self.cache is None or self.compute is None:
            return None
        return self.weights + self.repacked + self.cache + self.compute + self.output


def list_buffers(model: GgufModel, run: GgufRun, rules: DeviceRules = CUDA) -> list[Buffers]:
    """Return the buffers on each GPU, of which there are as many as shares, and on the host.

    Args:
        model: The file's headers.
        run: The flags.
        rules: Of the GPUs.
    """
    repacks = not (run.has_gpu and rules.has_pinned_memory)
    placed = place_tensors(model, run.rule, repacks=repacks)
    caches = _list_cache_bytes(model, run, rules)
    computes = _list_compute_bytes(model, run, rules, placed)
    vocab = next((t.shape[0] for t in model.tensors if t.name == "token_embd.weight"), 0)
    on_gpus = [
        Buffers(
            weights=count_gpu_bytes(
                placed, alignment=rules.alignment, pads_rows=rules.pads_rows, gpu=number
            ),
            repacked=0,
            cache=caches[number],
            compute=computes[number],
            output=0,
        )
        for number in range(len(run.rule.shares))
    ]
    on_host = Buffers(
        weights=count_mapped_bytes(model, placed),
        repacked=count_repacked_bytes(placed, alignment=CPU_ALIGNMENT),
        cache=caches[HOST],
        compute=computes[HOST],
        output=count_output_bytes(vocab, num_sequences=run.num_sequences),
    )
    return [*on_gpus, on_host]


def _list_cache_bytes(model: GgufModel, run: GgufRun, rules: DeviceRules) -> Sequence[int | None]:
    """Return the bytes of the cache on each device."""
    layers, sizes = list_caches(model), read_model_sizes(model)
    if layers is None:
        return [None] * (len(run.rule.shares) + 1)
    cells = pad_cells(pad_cells(run.context) // run.num_sequences)
    window = sizes.window if sizes is not None else None
    in_window = count_window_cells(cells, window=window or 0, ubatch=run.ubatch)
    num_layers = model.read_count("block_count") or 0
    totals = [0] * (len(run.rule.shares) + 1)
    for number, layer in enumerate(layers):
        kept = (in_window if layer.is_sliding else cells) * run.num_sequences
        place = place_layer(number, run.rule, num_layers=num_layers)
        is_padded = place != HOST and rules.pads_rows
        for width, kind in ((layer.keys, run.type_k), (layer.values, run.type_v)):
            size = TYPES_BY_NAME[kind].count_bytes(width) * kept
            if is_padded and width:
                size = pad_rows(size, TYPES_BY_NAME[kind], row=width)
            alignment = CPU_ALIGNMENT if place == HOST else rules.alignment
            totals[place] += -(-size // alignment) * alignment
    return totals


def _list_compute_bytes(
    model: GgufModel, run: GgufRun, rules: DeviceRules, placed: Sequence[PlacedTensor]
) -> Sequence[int | None]:
    """Return the bytes of the compute buffer on each device."""
    sizes, num_gpus = read_model_sizes(model), len(run.rule.shares)
    if sizes is None:
        return [None] * (num_gpus + 1)
    has_quantized_cache = run.type_k not in PLAIN_TYPES
    has_quantized_values = run.type_v not in PLAIN_TYPES
    if not run.has_gpu:
        alone = count_compute_bytes(
            sizes,
            context=run.context,
            ubatch=run.ubatch,
            num_sequences=run.num_sequences,
            has_flash_attention=run.has_flash_attention,
            has_quantized_cache=has_quantized_cache,
            has_quantized_values=has_quantized_values,
        )
        return [0] * num_gpus + [alone]
    devices = _find_devices(model, run, rules, placed)
    most = [0] * (num_gpus + 1)
    for each in list_runs(
        sizes,
        context=run.context,
        ubatch=run.ubatch,
        num_sequences=run.num_sequences,
        has_flash_attention=run.has_flash_attention,
        has_quantized_cache=has_quantized_cache,
        has_quantized_values=has_quantized_values,
    ):
        scheduled = schedule(build_graph(sizes, each), devices, num_tokens=each.num_tokens)
        found = list_reserved_bytes(scheduled, [rules.alignment] * num_gpus + [CPU_ALIGNMENT])
        most = [max(pair) for pair in zip(most, found, strict=True)]
    return most


def _find_devices(
    model: GgufModel, run: GgufRun, rules: DeviceRules, placed: Sequence[PlacedTensor]
) -> Devices:
    by_name = index_devices(placed)
    num_layers = model.read_count("block_count") or 0

    def place_of_layer(number: int) -> int:
        return place_layer(number, run.rule, num_layers=num_layers)

    def place_weight(name: str) -> int:
        each = by_name.get(name)
        if each is not None:
            return each.device
        # Norms have other names in some families, and lie with their layer.
        return place_of_layer(int(name.split(".")[1]) if name.startswith("blk.") else num_layers)

    return Devices(
        place_weight=place_weight,
        place_layer=place_of_layer,
        has_all_layers=run.rule.num_gpu_layers > num_layers,
        takes_products=rules.takes_products,
        weight_bytes={
            each.name: count_device_bytes(each.tensor, pads_rows=rules.pads_rows) for each in placed
        },
        cache_types={"k": TYPES_BY_NAME[run.type_k], "v": TYPES_BY_NAME[run.type_v]},
        repacked=frozenset(each.name for each in placed if each.is_repacked),
        capability=rules.capability,
        is_pipeline=run.rule.num_gpu_layers > num_layers
        and len(run.rule.shares) > 1
        and not run.rule.moves,
        has_attention=rules.capability is None or has_gpu_attention(model, run) is not False,
    )


def has_gpu_attention(model: GgufModel, run: GgufRun) -> bool | None:
    """Return whether CUDA has a kernel of flash attention for a model; None if it isn't known here."""
    sizes = read_model_sizes(model)
    if sizes is None:
        return None
    return has_cuda_attention(sizes, type_k=run.type_k, type_v=run.type_v)
