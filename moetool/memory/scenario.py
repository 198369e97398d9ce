"""A scenario: the sizes of a run, and the options of transformers that it uses."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import cast

from moetool.choices import choose, take_count, take_flag, take_path, take_text, without_effect
from moetool.errors import UsageError
from moetool.memory.generating import refuse_generating
from moetool.memory.training.frozen_parts import FrozenPart
from moetool.memory.training.refusals import refuse_training
from moetool.quantizing.kinds import Quantization, QuantizedExperts
from moetool.simulation.caches.kinds import CacheDtype as CacheDtype
from moetool.simulation.caches.kinds import CacheKind as CacheKind
from moetool.simulation.caches.kinds import CachePlan
from moetool.simulation.training.optimizer_kinds import Optimizer

# Sizes that a model's context limits.
SIZES_IN_CONTEXT = ("num_prompt_tokens", "num_new_tokens")
# The number of tokens that `generate` writes by default.
NUM_NEW_TOKENS = 256
# Beyond any machine's, so that a typo doesn't run for hours.
_LARGEST_BATCH_SIZE = 2**20
_MOST_TOKENS = 2**27
# Without one, transformers or the task chooses.
_OPTIONAL = ("attention", "experts_implementation", "cache_dtype", "optimizer")
_MOST_BEAMS = 2**10
_HIGHEST_RANK = 2**16


class Task(StrEnum):
    """The way in which prompts are used.

    Attributes:
        GENERATE: transformers' `generate`.
        FORWARD: One call of the model, with the logits of every position.
        TRACE: The same as `moetool route-trace`, which keeps the routing: a prefill without a
            cache, or `generate` if there are new tokens.
        TRAIN: A step of training: forward with labels, backward, optimizer.
    """

    GENERATE = "generate"
    FORWARD = "forward"
    TRACE = "trace"
    TRAIN = "train"


class Dtype(StrEnum):
    """Dtypes that weights are loaded in; `auto` is the configuration's own dtype.

    Their usual abbreviations are understood too: `bf16`, `fp16`, `half`, `fp32`.
    """

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @classmethod
    def _missing_(cls, value: object) -> Dtype | None:
        name = _ABBREVIATED_DTYPES.get(value.lower()) if isinstance(value, str) else None
        return cls(name) if name else None


_ABBREVIATED_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
}


class Attention(StrEnum):
    """transformers' implementations of attention; `flash` and `flex` are understood too."""

    EAGER = "eager"
    SDPA = "sdpa"
    FLASH_2 = "flash_attention_2"
    FLASH_3 = "flash_attention_3"
    FLEX = "flex_attention"

    @classmethod
    def _missing_(cls, value: object) -> Attention | None:
        name = _ABBREVIATED_ATTENTION.get(value.lower()) if isinstance(value, str) else None
        return cls(name) if name else None


_ABBREVIATED_ATTENTION = {
    "flash": "flash_attention_2",
    "flash2": "flash_attention_2",
    "fa2": "flash_attention_2",
    "flash3": "flash_attention_3",
    "fa3": "flash_attention_3",
    "flex": "flex_attention",
}


class ExpertsImplementation(StrEnum):
    """transformers' implementations of experts."""

    EAGER = "eager"
    GROUPED_MM = "grouped_mm"
    BATCHED_MM = "batched_mm"


@dataclass(frozen=True)
class LoadingOptions:
    """The options of a scenario that decide how its model is loaded, named as in `Scenario`.

    Scenarios that share them differ only in sizes and in how the loaded model is run.
    """

    task: Task
    dtype: str
    attention: str | None
    experts_implementation: str | None
    quantization: Quantization
    is_double_quantized: bool
    experts: QuantizedExperts
    cache_dtype: CacheDtype | None = None


@dataclass(frozen=True)
class Scenario:
    """One run of a model. Options may be given as members of their enums or as their values.

    Attributes:
        batch_size: Sequences at once.
        num_prompt_tokens: Tokens of each sequence's prompt.
        num_new_tokens: Tokens generated for each sequence; by default 256 with the task generate,
            none with the others.
        task: The way in which prompts are used.
        dtype: The dtype that weights are loaded in; `auto` for the configuration's own.
        attention: transformers' attention implementation; None for the one it chooses.
        experts_implementation: transformers' implementation of experts; None for the one it
            chooses.
        cache: The cache that `generate` uses.
        has_padding: Whether prompts differ in length, so that masks have to hide pads.
        quantization: The format in which bitsandbytes stores weights.
        is_double_quantized: Whether the scales of 4-bit weights are quantized too.
        experts: The experts that the figures are for, with quantization.
        optimizer: The optimizer of training; None for AdamW, or without training.
        has_checkpointing: Whether training runs layers again instead of keeping their activations.
        frozen: The part that training leaves as it is.
        cache_dtype: The format of a quantized cache; None for others.
        num_beams: Beams of each sequence; 1 for the most likely token.
        num_return_sequences: Sequences generated for each prompt: of the beams, or sampled.
        assistant: The model that drafts tokens for `generate`, named as models are; None without one.
        lora_rank: The rank of adapters, which are then all that is trained; None for none.
        lora_targets: The names of the layers that get adapters, with commas in between; None for
            the ones that PEFT chooses, else attention's.
        trained_experts: The path of ESFT's file of the experts that are trained; None for all.

    Raises:
        UsageError: An option has no such choice, a size is not a positive whole number or is too
            large, or options contradict each other.
    """

    batch_size: int = 1
    num_prompt_tokens: int = 2048
    # None until the task is known.
    num_new_tokens: int = cast("int", None)
    task: Task = Task.GENERATE
    dtype: str = Dtype.AUTO
    attention: str | None = None
    experts_implementation: str | None = None
    cache: CacheKind = CacheKind.DYNAMIC
    has_padding: bool = False
    quantization: Quantization = Quantization.NONE
    is_double_quantized: bool = False
    experts: QuantizedExperts = QuantizedExperts.AS_LOADED
    optimizer: Optimizer | None = None
    has_checkpointing: bool = False
    frozen: FrozenPart = FrozenPart.NONE
    cache_dtype: CacheDtype | None = None
    num_beams: int = 1
    num_return_sequences: int = 1
    assistant: str | None = None
    lora_rank: int | None = None
    lora_targets: str | None = None
    trained_experts: str | None = None

    def __post_init__(self) -> None:
        # Options are compared by identity everywhere, so each value becomes its enum's member.
        for field, kind, name in (
            ("task", Task, "task"),
            ("dtype", Dtype, "dtype"),
            ("attention", Attention, "attention"),
            ("experts_implementation", ExpertsImplementation, "experts implementation"),
            ("cache", CacheKind, "cache"),
            ("quantization", Quantization, "quantization"),
            ("experts", QuantizedExperts, "choice of experts"),
            ("optimizer", Optimizer, "optimizer"),
            ("frozen", FrozenPart, "frozen part"),
            ("cache_dtype", CacheDtype, "cache dtype"),
        ):
            value = getattr(self, field)
            if value is not None or field not in _OPTIONAL:
                self._set(field, choose(value, kind, name=name))
        for field in ("has_padding", "is_double_quantized", "has_checkpointing"):
            self._set(field, take_flag(getattr(self, field), name=field))
        generates = self.task is Task.GENERATE
        given: int | None = self.num_new_tokens
        if given is None:
            self._set("num_new_tokens", NUM_NEW_TOKENS if generates else 0)
        for field, name, smallest, largest in (
            ("batch_size", "batch size", 1, _LARGEST_BATCH_SIZE),
            ("num_prompt_tokens", "number of prompt tokens", 1, _MOST_TOKENS),
            ("num_new_tokens", "number of new tokens", 1 if generates else 0, _MOST_TOKENS),
            ("num_beams", "number of beams", 1, _MOST_BEAMS),
            ("num_return_sequences", "number of returned sequences", 1, _MOST_BEAMS),
        ):
            value = getattr(self, field)
            number = take_count(value, name=name, smallest=smallest, largest=largest)
            self._set(field, number)
        rank = take_count(
            self.lora_rank, name="LoRA rank", smallest=1, largest=_HIGHEST_RANK, is_optional=True
        )
        self._set("lora_rank", rank)
        if self.lora_targets is not None:
            self._set("lora_targets", take_text(self.lora_targets, name="adapted layers"))
        if self.trained_experts is not None:
            path = take_path(self.trained_experts, name="file of chosen experts")
            self._set("trained_experts", str(path))
        if self.cache is CacheKind.DYNAMIC and self.cache_dtype is not None:
            self._set("cache", CacheKind.QUANTIZED)
        elif self.cache is CacheKind.QUANTIZED and self.cache_dtype is None:
            # transformers' default.
            self._set("cache_dtype", CacheDtype.INT4)
        if self.assistant is not None:
            self._set("assistant", take_text(self.assistant, name="assistant"))
        self._refuse_contradictions()

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    def _refuse_contradictions(self) -> None:
        refuse_training(self)
        if self.task is Task.FORWARD and self.num_new_tokens:
            raise UsageError(
                "A forward pass makes no new tokens.",
                hint="Leave out --new-tokens, or choose --task generate.",
            )
        refuse_generating(self)
        if self.is_double_quantized and not _has_scales(self.quantization):
            raise without_effect(
                {"--double-quantization": "double quantization"},
                because="only nf4 and fp4 have scales that it quantizes",
                unless="choose --quantization nf4 or fp4",
            )

    @property
    def loading(self) -> LoadingOptions:
        """The options that decide how the model is loaded."""
        return LoadingOptions(
            task=self.task,
            dtype=self.dtype,
            attention=self.attention,
            experts_implementation=self.experts_implementation,
            quantization=self.quantization,
            is_double_quantized=self.is_double_quantized,
            experts=self.experts,
            cache_dtype=self.cache_dtype,
        )

    @property
    def cache_plan(self) -> CachePlan:
        """The cache that `generate` uses."""
        return CachePlan(self.cache, self.cache_dtype)

    @property
    def num_sequences(self) -> int:
        """Sequences that run at once: all beams, or all samples, of all prompts."""
        return self.batch_size * max(self.num_beams, self.num_return_sequences)

    @property
    def is_on_one_gpu(self) -> bool:
        """Whether it is only estimated for one GPU that holds all of it."""
        return self.task is Task.TRAIN or self.assistant is not None

    @property
    def num_cached_tokens(self) -> int:
        """Positions of each sequence in the cache after the last token that is run."""
        return self.num_prompt_tokens + max(self.num_new_tokens - 1, 0)

    def clip(self, context: int, *, sizes: Collection[str]) -> Scenario:
        """Return the same scenario with some sizes reduced so that it is within a context.

        The same scenario if it is within the context already, or if reducing them isn't enough. Where
        both sizes may be reduced, new tokens keep up to half of the context, or what the prompt
        leaves of it if that is more.

        Args:
            context: The most tokens of a sequence.
            sizes: Those of `SIZES_IN_CONTEXT` that may be reduced.
        """
        num_prompt_tokens, num_new_tokens = self.num_prompt_tokens, self.num_new_tokens
        if num_prompt_tokens + num_new_tokens <= context:
            return self
        is_prompt_free = "num_prompt_tokens" in sizes
        if "num_new_tokens" in sizes and num_new_tokens:
            most = context - num_prompt_tokens
            if is_prompt_free:
                most = max(most, context // 2)
            num_new_tokens = min(num_new_tokens, most)
        if is_prompt_free:
            num_prompt_tokens = min(num_prompt_tokens, context - num_new_tokens)
        is_possible = num_prompt_tokens > 0 and (num_new_tokens > 0 or not self.num_new_tokens)
        if not is_possible or num_prompt_tokens + num_new_tokens > context:
            return self
        return replace(self, num_prompt_tokens=num_prompt_tokens, num_new_tokens=num_new_tokens)

    def quantized(self, quantization: Quantization) -> Scenario:
        """Return the same scenario with its weights stored in another format."""
        return replace(
            self,
            quantization=quantization,
            is_double_quantized=self.is_double_quantized and _has_scales(quantization),
        )


def take_scenarios(scenarios: object) -> list[Scenario]:
    """Return a sequence of scenarios as a list; the default one for None.

    Raises:
        UsageError: It is something else.
    """
    if scenarios is None:
        return [Scenario()]
    if isinstance(scenarios, Sequence) and all(isinstance(each, Scenario) for each in scenarios):
        return list(scenarios)
    raise UsageError(
        "The scenarios have to be a list of Scenario.",
        hint="Give a list such as [Scenario(batch_size=8)].",
    )


def _has_scales(quantization: Quantization) -> bool:
    """Return whether a format has scales that can be quantized too."""
    return quantization in (Quantization.NF4, Quantization.FP4)
