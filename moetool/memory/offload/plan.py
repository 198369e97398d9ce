"""Routed experts in the host's memory: the layers that have to go there, and the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.memory.answers.on_gpus import Offload
from moetool.memory.offload.expert_bytes import LayerExperts, list_layer_experts
from moetool.memory.offload.offload_maps import make_offload_map, write_offload_map
from moetool.quantizing.kinds import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRANSFORMERS = "transformers"
LLAMA_CPP = "llama.cpp"
LLAMA_CPP_BY_NAME = "llama.cpp (-ot)"


def plan_offload(
    skeleton: RoutedSkeleton,
    *,
    gpu_memory_bytes: int,
    total_bytes: int,
    batch_size: int,
    choices: Mapping[MoeLayer, int] | None,
    quantization: Quantization = Quantization.NONE,
) -> Offload | None:
    """Return which routed experts have to leave a GPU so that the rest fits; None without experts.

    With transformers the experts of the last layers go first, as with `device_map="auto"`;
    accelerate moves them to the GPU when their layer runs, one module after another, and they are
    assumed to be there at the peak. Experts that are one module per layer move as a whole, whichever
    are chosen; separate experts move only if they are chosen, at most one for each choice.

    llama.cpp's `--n-cpu-moe N` takes the experts of the first N layers of the model, counting those
    without experts, and computes them on the host. N assumes that llama.cpp needs the same memory
    for everything else and stores weights in the same way; a quantized GGUF file needs less.

    Args:
        skeleton: The model on the meta device, in the dtypes it is loaded in.
        gpu_memory_bytes: The GPU's memory.
        total_bytes: Memory that the run needs on the device with everything on it.
        batch_size: Sequences that are decoded at once.
        choices: The number of experts a token chooses in each routed layer; None if unknown.
        quantization: The storage of the weights.
    """
    experts = list_layer_experts(skeleton)
    if not experts:
        return None
    moved = _take(
        experts[::-1],
        total_bytes=total_bytes,
        memory_bytes=gpu_memory_bytes,
        count_left=_leave_room,
    )
    computed = _take(
        experts, total_bytes=total_bytes, memory_bytes=gpu_memory_bytes, count_left=_leave_nothing
    )
    gpu_bytes = _leave_room(total_bytes, moved)
    host_computed_bytes = _leave_nothing(total_bytes, computed)
    flags: dict[str, str] = {}
    if moved and gpu_bytes <= gpu_memory_bytes:
        flags[TRANSFORMERS] = _write_transformers(skeleton.model, moved, quantization)
    if computed and host_computed_bytes <= gpu_memory_bytes:
        flags.update(_write_llama_cpp(computed))
    return Offload(
        num_offloaded_layers=len(moved),
        num_moe_layers=len(experts),
        gpu_bytes=gpu_bytes,
        host_bytes=sum(layer.num_bytes for layer in moved),
        transfer_bytes_per_token=_count_transfer(moved, choices, batch_size=batch_size),
        computed_on_host_bytes_per_token=_count_read(computed, choices),
        flags=flags,
        fits=gpu_bytes <= gpu_memory_bytes,
        num_host_computed_layers=len(computed),
        fits_computed_on_host=host_computed_bytes <= gpu_memory_bytes,
    )


def _take(
    experts: Sequence[LayerExperts],
    *,
    total_bytes: int,
    memory_bytes: int,
    count_left: Callable[[int, Sequence[LayerExperts]], int],
) -> Sequence[LayerExperts]:
    """Return the fewest layers, from the first, whose experts have to go; all if none is enough."""
    for num_layers in range(len(experts) + 1):
        taken = experts[:num_layers]
        if count_left(total_bytes, taken) <= memory_bytes:
            return taken
    return experts


def _leave_room(total_bytes: int, taken: Sequence[LayerExperts]) -> int:
    """Return the GPU's share without some layers' experts, except those that are at work."""
    moved_bytes = max((layer.moved_bytes for layer in taken), default=0)
    return _leave_nothing(total_bytes, taken) + moved_bytes


def _leave_nothing(total_bytes: int, taken: Sequence[LayerExperts]) -> int:
    """Return the GPU's share without some layers' experts."""
    return total_bytes - sum(layer.num_bytes for layer in taken)


def _count_transfer(
    moved: Sequence[LayerExperts], choices: Mapping[MoeLayer, int] | None, *, batch_size: int
) -> int:
    """Return the bytes that cross the bus in a decoding step, per token, rounded up."""
    per_step = sum(
        layer.count_moved_bytes(
            num_experts=batch_size * choices[layer.layer] if choices else layer.layer.num_experts
        )
        for layer in moved
    )
    return -(-per_step // batch_size)


def _count_read(
    computed: Sequence[LayerExperts], choices: Mapping[MoeLayer, int] | None
) -> int | None:
    """Return the bytes of the experts that one token chooses; None if that is unknown."""
    if choices is None:
        return None
    return sum(layer.count_read_bytes(num_experts=choices[layer.layer]) for layer in computed)


def _write_transformers(
    skeleton: PreTrainedModel, moved: Sequence[LayerExperts], quantization: Quantization
) -> str:
    on_host = {path for layer in moved for path in layer.paths}
    written = write_offload_map(make_offload_map(skeleton, on_host=on_host))
    if quantization is Quantization.NONE:
        return f"device_map={written}"
    # Without this flag, transformers refuses a device map that includes the host.
    return f"device_map={written}, and in BitsAndBytesConfig: llm_int8_enable_fp32_cpu_offload=True"


def _write_llama_cpp(computed: Sequence[LayerExperts]) -> Mapping[str, str]:
    """Return the flags for the first layers' experts; none for layers that llama.cpp doesn't have."""
    layers = [layer.layer for layer in computed]
    numbers = sorted({layer.layer for layer in layers})
    if len(numbers) < len(layers) or any(layer.stack != "decoder" for layer in layers):
        return {}
    blocks = "|".join(str(number) for number in numbers)
    return {
        LLAMA_CPP: f"-ngl 999 --n-cpu-moe {numbers[-1] + 1}",
        LLAMA_CPP_BY_NAME: rf'-ngl 999 -ot "blk\.({blocks})\.ffn_.*_exps\.=CPU"',
    }
