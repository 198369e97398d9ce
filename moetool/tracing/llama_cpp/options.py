"""Settings of llama.cpp for a traced run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moetool.choices import choose_word, take_count
from moetool.errors import UsageError

# Types of cached keys and values, with ggml's numbers (ggml.h).
CACHE_TYPES: Mapping[str, int] = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}
# With llama.cpp's numbers (llama.h).
FLASH_ATTENTION: Mapping[str, int] = {"auto": -1, "off": 0, "on": 1}
UBATCH = 512
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class LlamaCppOptions:
    """Settings of llama.cpp for a run.

    Attributes:
        max_new_tokens: Limit for each prompt of the tokens that continue it, each the most likely
            one; 0 to read prompts only.
        max_prompt_tokens: Truncate prompts to this length.
        special_tokens: Let the file's tokenizer add its own, such as `<s>`.
        layers: Record only these layer numbers.
        num_gpu_layers: `--n-gpu-layers`; None for all, if there is a GPU.
        num_threads: `--threads`; None for the CPUs that the process may use.
        context: `--ctx-size`; None for what the longest prompt and its continuation need.
        ubatch: `--ubatch-size`, tokens that are evaluated together.
        type_k: `--cache-type-k`.
        type_v: `--cache-type-v`.
        flash_attention: `--flash-attn`; `auto` is `on` where a device has it.
        with_margins: Also keep by how much each last chosen expert was ahead of the next one.

    Raises:
        UsageError: A value is out of range, or not a type.
    """

    max_new_tokens: int = 0
    max_prompt_tokens: int | None = None
    special_tokens: bool = True
    layers: frozenset[int] | None = None
    num_gpu_layers: int | None = None
    num_threads: int | None = None
    context: int | None = None
    ubatch: int = UBATCH
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: str = "auto"
    with_margins: bool = False

    def __post_init__(self) -> None:
        for name, value, smallest in (
            ("number of new tokens", self.max_new_tokens, 0),
            ("limit of a prompt's tokens", self.max_prompt_tokens, 1),
            ("number of GPU layers", self.num_gpu_layers, 0),
            ("number of threads", self.num_threads, 1),
            ("size of the context", self.context, 1),
            ("size of a micro-batch", self.ubatch, 1),
        ):
            take_count(value, name=name, smallest=smallest, largest=_LARGEST, is_optional=True)
        for cache_type in (self.type_k, self.type_v):
            choose_word(cache_type, list(CACHE_TYPES), name="cache type")
        choose_word(self.flash_attention, list(FLASH_ATTENTION), name="flash attention")
        if self.layers is not None and not self.layers:
            raise UsageError("There are no layers to record.", hint="Name some, or leave them out.")
