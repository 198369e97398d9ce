"""The question to a serving engine, and its answer as reports show it. Sizes are in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from moetool.choices import choose, take_count, take_number
from moetool.errors import UsageError

_MOST_GPUS = 1024
_MOST_BYTES = 2**50


class Engine(StrEnum):
    """Serving engines."""

    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMA_CPP = "llama.cpp"


class ServedCache(StrEnum):
    """Dtypes of an engine's cache; `auto` is the model's own, in llama.cpp f16."""

    AUTO = "auto"
    FP8 = "fp8"
    Q8_0 = "q8_0"


@dataclass(frozen=True)
class ServingOptions:
    """The engine that serves a model, and its settings.

    Attributes:
        gpu_memory_utilization: The share of the GPU's memory that vLLM takes, and SGLang's
            `--mem-fraction-static`. None for 0.9; llama.cpp has no such setting.
        tensor_parallel: The number of GPUs that share each layer; None for all that are named.
        overhead_bytes: An allowance for each GPU, for memory that only the engine's own profiling
            finds: activations, CUDA graphs, the CUDA context and NCCL. None if it is unknown.

    Raises:
        UsageError: An option has no such choice, is out of range, or has no effect in this engine.
    """

    engine: Engine
    gpu_memory_utilization: float | None = None
    kv_cache_dtype: ServedCache = ServedCache.AUTO
    tensor_parallel: int | None = None
    overhead_bytes: int | None = None

    def __post_init__(self) -> None:
        self._set("engine", choose(self.engine, Engine, name="engine"))
        cache = choose(self.kv_cache_dtype, ServedCache, name="dtype of the engine's cache")
        self._set("kv_cache_dtype", cache)
        tensor = self.tensor_parallel
        if tensor is not None:
            tensor = take_count(
                tensor, name="number of tensor-parallel GPUs", smallest=1, largest=_MOST_GPUS
            )
            self._set("tensor_parallel", tensor)
        if self.overhead_bytes is not None:
            taken = take_count(
                self.overhead_bytes, name="engine's overhead", smallest=0, largest=_MOST_BYTES
            )
            self._set("overhead_bytes", taken)
        is_llama = self.engine is Engine.LLAMA_CPP
        share = self.gpu_memory_utilization
        if share is not None:
            if is_llama:
                raise UsageError(
                    "llama.cpp has no share of the memory to set: it takes what its buffers need.",
                    hint="Leave out --gpu-memory-utilization.",
                )
            share = take_number(share, name="GPU memory utilization", smallest=0, largest=1)
            if not share:
                raise UsageError(
                    "The GPU memory utilization is 0, and it has to be above 0 and at most 1.",
                    hint="Give a share such as 0.9.",
                )
            self._set("gpu_memory_utilization", share)
        if is_llama and tensor is not None and tensor > 1:
            raise UsageError(
                "llama.cpp places whole layers on each GPU, and its other ways are not computed here.",
                hint="Leave out --tensor-parallel, or choose --engine vllm.",
            )
        if is_llama == (cache is ServedCache.FP8) and cache is not ServedCache.AUTO:
            raise UsageError(
                f"{self.engine} has no cache in {cache}.",
                hint=f"Choose --kv-cache-dtype {'q8_0' if is_llama else 'fp8'} or auto.",
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def share(self) -> float:
        """The share of each GPU's memory that the engine may use; llama.cpp uses all of it."""
        if self.engine is Engine.LLAMA_CPP:
            return 1.0
        return 0.9 if self.gpu_memory_utilization is None else self.gpu_memory_utilization


@dataclass(frozen=True)
class Capacity:
    """The tokens and sequences that a pool holds.

    Attributes:
        pool_bytes: The cache's memory on each GPU, on the one with the least of it.
        num_tokens: The tokens that it holds, if all of them are in full-attention layers.
        num_sequences: The sequences of the scenario's length that it holds at once, in each replica.
    """

    pool_bytes: int
    num_tokens: int
    num_sequences: int


@dataclass(frozen=True)
class Serving:
    """A model served by an engine, by the engine's published rules.

    Sizes are those on the GPU that holds the most.

    Attributes:
        num_gpus: All GPUs.
        tensor_parallel: Those that share each layer.
        data_parallel: Replicas, each of which serves other sequences.
        expert_parallel: GPUs between which whole experts are shared; 1 if experts are cut.
        share: The share of the GPU's memory that the engine may use.
        weights_bytes: The weights as the engine stores and shards them; None if unknown.
        cache_bytes_per_token: The cache of one token in all layers that keep every token's, and of
            sliding-window layers while the token is in their window; None if unknown.
        overhead_bytes: The allowance that was given for what only profiling finds; None if none was.
        compute_bytes: llama.cpp's compute buffer with the sequences that fit; None if unknown, and
            for other engines.
        least_compute_bytes: The part of llama.cpp's compute buffer that is known in any case: the
            logits of one micro-batch. None for other engines.
        tokens_per_sequence: Prompt and new tokens of the scenario.
        most: An upper bound: what the pool holds if the engine needs nothing else.
        with_overhead: What the pool holds next to the allowance; None without one.
        confirmed_on: What confirmed the sizes of weights and cache; None if nothing did.
        flags: The settings for the engine's command line.
        notes: What is unknown, and why, one sentence each.
        sources: The functions of the engine that state the rules.
    """

    engine: Engine
    gpu: str
    num_gpus: int
    tensor_parallel: int
    data_parallel: int
    expert_parallel: int
    kv_cache_dtype: ServedCache
    share: float
    weights_bytes: int | None
    cache_bytes_per_token: int | None
    overhead_bytes: int | None
    compute_bytes: int | None
    least_compute_bytes: int | None
    tokens_per_sequence: int
    most: Capacity | None
    with_overhead: Capacity | None
    confirmed_on: str | None
    flags: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
