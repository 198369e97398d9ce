"""Rules of llama.cpp: whole layers on each GPU, a cache for each sequence, and a compute buffer.

Sizes of buffers are those of `gguf_buffers` and `ggml`. Layers are divided between GPUs by
`load_tensors` (src/llama-model.cpp), here by equal memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moetool.anatomy.config_fields import find_vocab_size
from moetool.memory.serving.answer import Capacity, ServedCache
from moetool.memory.serving.geometry import CacheGeometry
from moetool.memory.serving.ggml.compute_buffer import RECENT, count_gpu_compute_bytes
from moetool.memory.serving.ggml.families import ARCHITECTURES, read_sizes
from moetool.memory.serving.ggml.gguf_buffers import (
    TYPE_BYTES,
    UBATCH_TOKENS,
    count_cache_bytes,
    count_logits_bytes,
    list_gpu_weights,
    place_layers,
)
from moetool.memory.serving.ggml.sizes import pad_cells
from moetool.memory.serving.question import Parts, Question

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SOURCES = (
    "src/llama-kv-cache.cpp: llama_kv_cache",
    "src/llama-kv-cache-iswa.cpp: llama_kv_cache_iswa",
    "src/llama-context.cpp: output_reserve, sched_reserve",
    "src/llama-graph.cpp, src/models/*.cpp: build_arch_graph",
    "src/llama-model.cpp: load_tensors",
    "ggml/src/ggml-alloc.c: ggml_gallocr_reserve_n",
    "convert_hf_to_gguf.py",
)
# Families whose buffers were compared, with matrices in f32, f16 and q8_0.
CONFIRMED_FAMILIES = tuple(ARCHITECTURES)
CONFIRMED_ON = "llama.cpp on the CPU, with llama-cpp-python 0.3.36"
_MOST_SEQUENCES = 256
_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
# The type in which the converter keeps experts, by how the files are quantized; None for that of
# all other matrices, to which it dequantizes fp8.
_CONVERTED = {None: None, "fp8": None, "mxfp4": "mxfp4"}
_AS_CONVERTED = (
    "Not confirmed: the weights are those that convert_hf_to_gguf.py would write, with matrices in "
    "{tensor_type}; a file that is quantized further is smaller."
)
_PLACEMENT = (
    "Not confirmed: that all tensors except the embedding are on the GPU, without padding, with "
    "-ngl 99."
)
_NO_GRAPH = (
    "The graph that llama.cpp builds for {family} is not known here, so its compute buffer is null: "
    "the logits of one micro-batch are the least that it holds. Give an allowance with "
    "--engine-overhead."
)
_SEVERAL_GPUS = (
    "The compute buffers of several GPUs are null: llama.cpp keeps copies of inputs for each. The "
    "logits of one micro-batch are the least that the last GPU's holds."
)
_COMPUTE = (
    "CUDA's context, and what its kernels allocate as they run, are left out: an H200 held 699 to "
    "741 MiB more than llama.cpp's buffers in 12 runs. Give an allowance with --engine-overhead."
)


@dataclass(frozen=True)
class _Buffers:
    """Buffers on each GPU, in order, in bytes.

    Attributes:
        weights: The tensors.
        caches: The cache of one sequence.
        least_compute_bytes: The least that the last GPU's compute buffer holds.
        count_compute: Counts the compute buffer for a number of sequences; None if it is unknown.
        slot_tokens: Cells of a sequence.
    """

    weights: list[int]
    caches: list[int]
    least_compute_bytes: int
    count_compute: Callable[[int], int] | None
    slot_tokens: int

    def fill(self, num_bytes: int) -> Capacity:
        """Return what each GPU's memory holds, with as many sequences as the compute buffer allows."""
        num_sequences = self._count_sequences(num_bytes, self.least_compute_bytes)
        compute_bytes = self.least_compute_bytes
        while self.count_compute is not None:
            compute_bytes = self.count_compute(max(num_sequences, 1))
            fits = self._count_sequences(num_bytes, compute_bytes)
            if fits >= num_sequences:
                break
            num_sequences = fits
        pool_bytes = max(min(self._list_free(num_bytes, compute_bytes)), 0)
        return Capacity(pool_bytes, num_sequences * self.slot_tokens, num_sequences)

    def _count_sequences(self, num_bytes: int, compute_bytes: int) -> int:
        free = self._list_free(num_bytes, compute_bytes)
        # A GPU may have the head alone, and no layer that caches.
        counts = [
            max(space, 0) // cache if cache else _MOST_SEQUENCES
            for space, cache in zip(free, self.caches, strict=True)
        ]
        return min(*counts, _MOST_SEQUENCES)

    def _list_free(self, num_bytes: int, compute_bytes: int) -> list[int]:
        free = [num_bytes - each for each in self.weights]
        free[-1] -= compute_bytes
        return free


def list_parts(question: Question) -> Parts:
    """Return the sizes that the rules give."""
    config = question.skeleton.config.get_text_config()
    notes = [_PLACEMENT]
    weights = _list_weights(question, notes)
    least = None
    vocab_size = find_vocab_size(question.skeleton.config)
    if vocab_size is not None:
        least = count_logits_bytes(vocab_size, context=question.length)
    known = Parts(None if weights is None else max(weights), least_compute_bytes=least)
    if question.geometry is None:
        return replace(known, notes=tuple(notes))
    geometry = _keep_all_tokens(question.geometry, config)
    cache_type = "f16" if question.options.kv_cache_dtype is ServedCache.AUTO else "q8_0"
    count_compute = _find_compute_buffer(question, geometry, config, notes)
    caches = [
        count_cache_bytes(part, context=question.length, num_sequences=1, cache_type=cache_type)
        for part in _divide_layers(geometry, num_gpus=question.deployment.layer_parts)
    ]
    fill = None
    if weights is not None:
        slot = pad_cells(question.length)
        fill = _Buffers(weights, caches, least or 0, count_compute, slot).fill
    is_confirmed = config.model_type in CONFIRMED_FAMILIES
    return replace(
        known,
        token_bytes=int(geometry.count_values() * geometry.num_layers * TYPE_BYTES[cache_type]),
        fill=fill,
        count_compute=count_compute,
        confirmed_on=CONFIRMED_ON if is_confirmed else None,
        notes=tuple(notes),
    )


def write_flags(question: Question, num_sequences: int | None) -> str:
    """Return the flags that the figures are for."""
    # One context is divided among the slots, each a multiple of 256 cells.
    context = pad_cells(question.length) * (num_sequences or 1)
    flags = ["-ngl 99", f"-c {context}", f"-ub {UBATCH_TOKENS}"]
    if num_sequences is not None:
        flags.append(f"-np {num_sequences}")
    if question.options.kv_cache_dtype is not ServedCache.AUTO:
        flags += ["-fa on", "-ctk q8_0", "-ctv q8_0"]
    num_gpus = question.deployment.layer_parts
    if num_gpus > 1:
        flags.append(f"--split-mode layer --tensor-split {','.join(['1'] * num_gpus)}")
    return " ".join(flags)


def _list_weights(question: Question, notes: list[str]) -> list[int] | None:
    """Return the weights of each GPU; None, with a note, if they are unknown."""
    skeleton, method = question.model.skeleton, question.published_method
    tensor_type = _TYPES.get(str(skeleton.dtype).removeprefix("torch."))
    if question.has_bitsandbytes or method not in _CONVERTED or tensor_type is None:
        notes.append("The weights are unknown: take the size of the GGUF file for quantized ones.")
        return None
    if method is not None:
        notes.append(_AS_CONVERTED.format(tensor_type=tensor_type))
    return list_gpu_weights(
        skeleton,
        tensor_type,
        expert_type=_CONVERTED[method] or tensor_type,
        num_gpus=question.deployment.layer_parts,
    )


def _keep_all_tokens(geometry: CacheGeometry, config: PretrainedConfig) -> CacheGeometry:
    """Return what llama.cpp caches: only its graph of gpt-oss has windows among those known here."""
    sizes = read_sizes(config, geometry)
    if sizes is None or sizes.window is not None:
        return geometry
    return replace(geometry, num_full=geometry.num_layers, num_sliding=0, window=None, sliding=())


def _divide_layers(geometry: CacheGeometry, *, num_gpus: int) -> list[CacheGeometry]:
    """Return what the layers of each GPU cache."""
    places = place_layers(geometry.num_layers, num_gpus=num_gpus)[:-1]
    kinds = geometry.sliding or (False,) * geometry.num_layers
    parts = []
    for number in range(num_gpus):
        sliding = tuple(kind for kind, place in zip(kinds, places, strict=True) if place == number)
        num_sliding = sum(sliding)
        num_full = len(sliding) - num_sliding
        parts.append(replace(geometry, num_full=num_full, num_sliding=num_sliding, sliding=sliding))
    return parts


def _find_compute_buffer(
    question: Question, geometry: CacheGeometry, config: PretrainedConfig, notes: list[str]
) -> Callable[[int], int] | None:
    """Return what counts the compute buffer for a number of sequences; None if it is unknown."""
    sizes = read_sizes(config, geometry)
    if question.deployment.layer_parts > 1:
        notes.append(_SEVERAL_GPUS)
        return None
    if sizes is None:
        notes.append(_NO_GRAPH.format(family=config.model_type))
        return None
    notes.append(_COMPUTE)

    def count(num_sequences: int) -> int:
        return count_gpu_compute_bytes(
            sizes,
            context=pad_cells(question.length) * num_sequences,
            ubatch=UBATCH_TOKENS,
            num_sequences=num_sequences,
            cache_type="q8_0" if question.options.kv_cache_dtype is ServedCache.Q8_0 else "f16",
            capability=RECENT,
        )

    return count
