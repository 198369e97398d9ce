"""What is run: how many tokens, of how many sequences, and by which of transformers' options."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from moetool.errors import UsageError

# Beyond any machine's; keeps a slip of the finger from running for hours.
_LARGEST_BATCH_SIZE = 2**20
_MOST_TOKENS = 2**27


class Task(StrEnum):
    """What is done with the prompts.

    Attributes:
        GENERATE: transformers' `generate`.
        FORWARD: One call of the model, with the logits of every position.
        TRACE: What `moetool route-trace` runs: a prefill without a cache whose routing is kept, or
            with new tokens `generate` with its routing.
    """

    GENERATE = "generate"
    FORWARD = "forward"
    TRACE = "trace"


class CacheKind(StrEnum):
    """Which of transformers' caches `generate` uses."""

    DYNAMIC = "dynamic"
    STATIC = "static"


class Quantization(StrEnum):
    """How bitsandbytes stores weights as they are loaded."""

    NONE = "none"
    INT8 = "int8"
    NF4 = "nf4"
    FP4 = "fp4"


class QuantizedExperts(StrEnum):
    """Which experts the figures are for, under quantization.

    Attributes:
        AS_LOADED: As transformers loads them: bitsandbytes leaves fused experts in their dtype.
        QUANTIZED: Quantized like everything else.
    """

    AS_LOADED = "as-loaded"
    QUANTIZED = "quantized"


@dataclass(frozen=True)
class Scenario:
    """One run of a model.

    Attributes:
        batch_size: Sequences at once.
        num_prompt_tokens: Tokens of each sequence's prompt.
        num_new_tokens: Tokens that each sequence is continued by.
        task: What is done.
        dtype: Of the weights as loaded: `auto` for the configuration's own.
        attention: transformers' attention implementation; None for the one it chooses.
        experts_implementation: transformers' implementation of experts; None for the one it
            chooses.
        cache: Which cache `generate` uses.
        has_padding: Whether prompts differ in length, so that masks have to hide pads.
        quantization: How bitsandbytes stores weights.
        is_double_quantized: Whether 4-bit weights' scales are quantized as well.
        experts: Which experts the figures are for, under quantization.

    Raises:
        UsageError: A size is not positive, too large, or options contradict each other.
    """

    batch_size: int = 1
    num_prompt_tokens: int = 2048
    num_new_tokens: int = 256
    task: Task = Task.GENERATE
    dtype: str = "auto"
    attention: str | None = None
    experts_implementation: str | None = None
    cache: CacheKind = CacheKind.DYNAMIC
    has_padding: bool = False
    quantization: Quantization = Quantization.NONE
    is_double_quantized: bool = False
    experts: QuantizedExperts = QuantizedExperts.AS_LOADED

    def __post_init__(self) -> None:
        for name, number, most in (
            ("batch size", self.batch_size, _LARGEST_BATCH_SIZE),
            ("number of prompt tokens", self.num_prompt_tokens, _MOST_TOKENS),
        ):
            _refuse_size(name, number, smallest=1, largest=most)
        smallest = 1 if self.task is Task.GENERATE else 0
        _refuse_size(
            "number of new tokens", self.num_new_tokens, smallest=smallest, largest=_MOST_TOKENS
        )
        if self.is_double_quantized and self.quantization not in (
            Quantization.NF4,
            Quantization.FP4,
        ):
            raise UsageError(
                f"Double quantization is of 4-bit scales: with {self.quantization} there are none.",
                hint="Leave it out, or choose nf4 or fp4.",
            )

    @property
    def num_cached_tokens(self) -> int:
        """Positions of each sequence in the cache after the last token that is run."""
        return self.num_prompt_tokens + max(self.num_new_tokens - 1, 0)


def _refuse_size(name: str, number: int, *, smallest: int, largest: int) -> None:
    if smallest <= number <= largest:
        return
    raise UsageError(
        f"The {name} can't be {number:,}.",
        hint=f"Give a whole number from {smallest} to {largest:,}.",
    )
