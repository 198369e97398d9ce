"""Options of a traced run: loading, reading prompts and continuing them.

Options may be given as members of their enums or as their values, as in
`TraceOptions(dtype="bfloat16")`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import get_args

from moetool.choices import (
    choose,
    choose_word,
    take_count,
    take_flag,
    take_number,
    take_numbers,
    take_text,
    without_effect,
)
from moetool.errors import UsageError
from moetool.memory.scenario import CacheKind, Dtype
from moetool.quantizing.choice import QuantizationChoice
from moetool.tracing.plans import ParallelPlan
from moetool.tracing.prompts.encoding import SpecialTokens

# Logits divided by much less are no longer finite.
_LOWEST_TEMPERATURE = 1e-6
# torch's generators take seeds of 64 bits.
_NUM_SEEDS = 1 << 64
# The batch size where neither it nor a number of tokens is given.
_BATCH_SIZE = 8
# Larger than any machine can hold.
_LARGEST_NUMBER = 2**27

_GREEDY_HINT = "or leave it out to take the most likely token."


@dataclass(frozen=True)
class GenerationOptions:
    """Options for continuing each prompt.

    Attributes:
        max_new_tokens: Limit for each prompt.
        temperature: Divides the logits before sampling; None takes the most likely token.
        top_p: Sample among the most likely tokens that together have this probability.
        seed: Random seed of the sampling.
        cache: transformers' cache for keys and values, `dynamic` or `static`.

    Raises:
        UsageError: A number is out of range, or there is no such cache.
    """

    max_new_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    cache: str = CacheKind.DYNAMIC

    def __post_init__(self) -> None:
        take_count(
            self.max_new_tokens,
            name="number of new tokens",
            smallest=1,
            largest=_LARGEST_NUMBER,
        )
        _take_number(
            self.temperature,
            name="temperature",
            smallest=_LOWEST_TEMPERATURE,
            largest=sys.float_info.max,
            hint=f"Give a finite number of at least {_LOWEST_TEMPERATURE:g}, {_GREEDY_HINT}",
        )
        _take_number(
            self.top_p,
            name="top-p",
            smallest=sys.float_info.min,
            largest=1.0,
            hint=f"Give a probability above 0 and up to 1, {_GREEDY_HINT}",
        )
        take_count(self.seed, name="seed", smallest=0, largest=_NUM_SEEDS - 1)
        names = [CacheKind.DYNAMIC.value, CacheKind.STATIC.value]
        cache = CacheKind(choose_word(self.cache, names, name="cache"))
        object.__setattr__(self, "cache", cache)

    @property
    def is_greedy(self) -> bool:
        """Whether every token is the most likely one."""
        return self.temperature is None and self.top_p is None


@dataclass(frozen=True)
class TraceOptions:
    """Options for loading and tracing a model.

    Attributes:
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Run the repository's own code.
        dtype: Convert the weights to it; None keeps the checkpoint's own.
        device: Device to run on; None takes a GPU if there is one.
        device_map: Spreads the model over several devices instead, see `choose_device_map`.
        quantization: Quantize weights by bitsandbytes while they load, see `choose_quantization`.
        parallel: The plan under which the processes share one model; None if each has its own.
        batch_size: Most prompts that go through the model together; None for no limit if there is
            one of their tokens, and 8 otherwise.
        max_batch_tokens: Most tokens that go through the model together, pads and new tokens
            included; a single prompt may have more. None for no limit.
        layers: Record only these layer numbers.
        special_tokens: Who adds special tokens to the prompts.
        max_prompt_tokens: Truncate prompts to this length.
        with_probabilities: Record the routers' probabilities as well.
        with_saliency: Run each chosen expert once more, and record the norms of their outputs.
        allow_inexact: Trace models whose experts do not carry out the recorded decisions exactly.
        generation: Continue each prompt, and record this too.

    Raises:
        UsageError: A value is not one of the choices or out of range, or options exclude each
            other.
    """

    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str | None = None
    device: str | None = None
    device_map: str | None = None
    quantization: QuantizationChoice | None = None
    parallel: ParallelPlan | None = None
    batch_size: int | None = None
    max_batch_tokens: int | None = None
    layers: frozenset[int] | None = None
    special_tokens: SpecialTokens = "tokenizer"
    max_prompt_tokens: int | None = None
    with_probabilities: bool = False
    with_saliency: bool = False
    allow_inexact: bool = False
    generation: GenerationOptions | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None:
            object.__setattr__(self, "dtype", choose(self.dtype, Dtype, name="dtype"))
        choose_word(self.special_tokens, get_args(SpecialTokens), name="special tokens")
        for name in ("revision", "device", "device_map"):
            value = getattr(self, name)
            if value is not None:
                take_text(value, name=name.replace("_", " "))
        if self.device is not None and self.device_map is not None:
            raise UsageError(
                "A device and a device map exclude each other.",
                hint="Leave out --device, or --device-map.",
            )
        self._check_parallel()
        for name in ("trust_remote_code", "with_probabilities", "with_saliency", "allow_inexact"):
            take_flag(getattr(self, name), name=name)
        if self.batch_size is None and self.max_batch_tokens is None:
            object.__setattr__(self, "batch_size", _BATCH_SIZE)
        take_count(
            self.batch_size,
            name="batch size",
            smallest=1,
            largest=_LARGEST_NUMBER,
            is_optional=True,
        )
        take_count(
            self.max_batch_tokens,
            name="limit of a batch's tokens",
            smallest=1,
            largest=_LARGEST_NUMBER,
            is_optional=True,
        )
        take_count(
            self.max_prompt_tokens,
            name="limit of a prompt's tokens",
            smallest=1,
            largest=_LARGEST_NUMBER,
            is_optional=True,
        )
        layers = take_numbers(self.layers, name="layer", largest=_LARGEST_NUMBER)
        object.__setattr__(self, "layers", layers)
        if self.generation is not None and not isinstance(self.generation, GenerationOptions):
            raise UsageError(
                f"The generation options can't be of type {type(self.generation).__name__}.",
                hint="Give GenerationOptions, or None.",
            )

    def _check_parallel(self) -> None:
        if self.parallel is None:
            return
        object.__setattr__(self, "parallel", choose(self.parallel, ParallelPlan, name="plan"))
        if self.quantization is not None:
            raise UsageError(
                "Processes can't share a model that bitsandbytes quantizes.",
                hint="Leave out --quantization, or use --device-map auto instead of --parallel.",
            )
        for option, value in (("--device", self.device), ("--device-map", self.device_map)):
            if value is not None:
                raise UsageError(
                    f"{option} and --parallel exclude each other: each process has its own GPU.",
                    hint=f"Leave out {option}, or --parallel.",
                )
        if self.with_saliency:
            raise UsageError(
                "The outputs of single experts can't be measured while processes share a model.",
                hint="Leave out --saliency, or use --device-map auto instead of --parallel.",
            )

    @property
    def max_new_tokens(self) -> int:
        """The most tokens that a prompt is continued by; 0 if prompts are only read."""
        return self.generation.max_new_tokens if self.generation else 0


def choose_generation(
    *,
    max_new_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int,
    cache: str,
) -> GenerationOptions | None:
    """Return the options; None if no text is to be generated.

    Raises:
        UsageError: Options have no effect without new tokens, or are out of range.
    """
    if max_new_tokens is not None:
        options = GenerationOptions(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            cache=cache,
        )
        if options.is_greedy and seed != GenerationOptions.seed:
            raise without_effect(
                {"--seed": "seed"},
                because="the most likely token is always taken",
                unless="sample with --temperature",
            )
        return options
    is_given = {
        "temperature": temperature is not None,
        "top-p": top_p is not None,
        "seed": seed != GenerationOptions.seed,
        "cache": cache != GenerationOptions.cache,
    }
    useless = {f"--{name}": name for name, given in is_given.items() if given}
    if useless:
        raise without_effect(useless, because="no text is generated", unless="add --max-new-tokens")
    return None


def _take_number(
    value: object, *, name: str, smallest: float, largest: float, hint: str
) -> float | None:
    try:
        return take_number(value, name=name, smallest=smallest, largest=largest)
    except UsageError as error:
        raise UsageError(error.message, hint=hint) from None
