"""Declare the options of `moetool route-trace` about GGUF files, and read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from moetool.choices import without_effect
from moetool.cli.options.memory_estimate.gguf import gguf_option
from moetool.errors import UsageError

if TYPE_CHECKING:
    from moetool.tracing.llama_cpp.options import LlamaCppOptions
    from moetool.tracing.options import TraceOptions

GpuLayers = Annotated[
    int | None,
    gguf_option(
        "--n-gpu-layers",
        metavar="N",
        min=0,
        help="Layers on the GPU, the head counted as one. Default: all, if there is a GPU.",
    ),
]
Threads = Annotated[
    int | None,
    gguf_option(
        "--threads",
        metavar="N",
        min=1,
        help="Threads of the CPU. Default: one for each CPU.",
    ),
]
ContextSize = Annotated[
    int | None,
    gguf_option(
        "--ctx-size",
        metavar="N",
        min=1,
        help="Tokens of the cache. Default: as many as the longest prompt needs.",
    ),
]
FlashAttention = Annotated[
    str | None,
    gguf_option(
        "--flash-attn",
        metavar="CHOICE",
        help="Flash attention: on, off, or auto (the default: on where it can be).",
    ),
]
_OWN = (
    *("--n-gpu-layers", "--threads", "--ctx-size", "--ubatch-size"),
    *("--cache-type-k", "--cache-type-v", "--flash-attn"),
)
# What transformers has and llama.cpp doesn't, by the names of the fields.
_FOREIGN = {
    "revision": "--revision",
    "trust_remote_code": "--trust-remote-code",
    "dtype": "--dtype",
    "device": "--device",
    "device_map": "--device-map",
    "parallel": "--parallel",
    "quantization": "--quantization",
    "batch_size": "--batch-size",
    "max_batch_tokens": "--max-batch-tokens",
    "with_probabilities": "--probabilities",
    "with_saliency": "--saliency",
    "allow_inexact": "--allow-inexact",
}
_FOREIGN_TO_GENERATION = {"temperature": "--temperature", "top_p": "--top-p", "cache": "--cache"}


def name_values(*values: object) -> dict[str, object]:
    """Return the values of the options about GGUF files by their flags, which are in this order."""
    return dict(zip(_OWN, values, strict=True))


def refuse_own(own: Mapping[str, object]) -> None:
    """Refuse options about GGUF files where none is traced.

    Raises:
        UsageError: One is given.
    """
    given = [flag for flag, value in own.items() if value is not None]
    if given:
        raise UsageError(
            f"{given[0]} is about GGUF files, and no GGUF file is traced.",
            hint=f"Leave out {given[0]}, or name a GGUF file.",
        )


def read_options(
    own: Mapping[str, object], common: TraceOptions, others: Mapping[str, object]
) -> LlamaCppOptions:
    """Return how llama.cpp is to run.

    Args:
        own: The options about GGUF files by their flags, None if they are not given.
        common: Those of all models.
        others: Further options by their flags, false or None if they are not given.

    Raises:
        UsageError: One is given that llama.cpp doesn't have, or a value is out of range.
    """
    from moetool.tracing.llama_cpp.options import UBATCH, LlamaCppOptions
    from moetool.tracing.options import GenerationOptions, TraceOptions

    generation = common.generation
    plain = TraceOptions()
    foreign = [flag for flag, value in others.items() if value]
    foreign += [
        flag for name, flag in _FOREIGN.items() if getattr(common, name) != getattr(plain, name)
    ]
    if generation is not None:
        default = GenerationOptions(generation.max_new_tokens)
        foreign += [
            flag
            for name, flag in _FOREIGN_TO_GENERATION.items()
            if getattr(generation, name) != getattr(default, name)
        ]
    if common.special_tokens == "chat template":
        foreign.append("--chat")
    if foreign:
        raise without_effect(
            {flag: flag for flag in foreign},
            because="a GGUF file runs in llama.cpp, by the options of the panel 'GGUF files'",
            unless="name the original checkpoint",
        )
    options = LlamaCppOptions(
        max_new_tokens=common.max_new_tokens,
        max_prompt_tokens=common.max_prompt_tokens,
        special_tokens=common.special_tokens == "tokenizer",
        layers=common.layers,
    )
    fields = {
        "num_gpu_layers": own["--n-gpu-layers"],
        "num_threads": own["--threads"],
        "context": own["--ctx-size"],
        "ubatch": own["--ubatch-size"] or UBATCH,
        "type_k": own["--cache-type-k"] or options.type_k,
        "type_v": own["--cache-type-v"] or options.type_v,
        "flash_attention": own["--flash-attn"] or options.flash_attention,
    }
    return replace(options, **fields)  # type: ignore[arg-type]
