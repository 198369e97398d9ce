"""Settings of llama.cpp, chosen by options that all models have and by options about GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from moetool.checkpoint.reference import ModelKind, ModelReference
from moetool.choices import without_effect
from moetool.errors import UsageError
from moetool.tracing.llama_cpp.options import LlamaCppOptions
from moetool.tracing.options import GenerationOptions, TraceOptions

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


@dataclass(frozen=True)
class GgufOptions:
    """Options about GGUF files, by their names on the command line; None if they are not given.

    See `LlamaCppOptions` for their meaning.
    """

    n_gpu_layers: int | None = None
    threads: int | None = None
    ctx_size: int | None = None
    ubatch_size: int | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    flash_attn: str | None = None


def choose_llama_cpp(
    reference: ModelReference | None,
    own: GgufOptions,
    common: TraceOptions,
    others: Mapping[str, object],
) -> LlamaCppOptions | None:
    """Return how llama.cpp is to trace a model; None if it is not a GGUF file.

    Args:
        reference: The model; None for one in memory.
        own: Options about GGUF files.
        common: Those of all models.
        others: Further options by their flags, false or None if they are not given.

    Raises:
        UsageError: An option of the other kind of model is given, or a value is out of range.
    """
    if reference is None or reference.kind is not ModelKind.GGUF:
        _refuse_own(own)
        return None
    _refuse_foreign(common, others)
    given: dict[str, Any] = {
        "num_gpu_layers": own.n_gpu_layers,
        "num_threads": own.threads,
        "context": own.ctx_size,
        "ubatch": own.ubatch_size,
        "type_k": own.cache_type_k,
        "type_v": own.cache_type_v,
        "flash_attention": own.flash_attn,
    }
    options = LlamaCppOptions(
        max_new_tokens=common.max_new_tokens,
        max_prompt_tokens=common.max_prompt_tokens,
        special_tokens=common.special_tokens == "tokenizer",
        layers=common.layers,
    )
    return replace(options, **{name: each for name, each in given.items() if each is not None})


def _refuse_own(own: GgufOptions) -> None:
    given = [name for name, value in vars(own).items() if value is not None]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise UsageError(
            f"{flag} is about GGUF files, and no GGUF file is traced.",
            hint=f"Leave out {flag}, or name a GGUF file.",
        )


def _refuse_foreign(common: TraceOptions, others: Mapping[str, object]) -> None:
    foreign = [flag for flag, value in others.items() if value]
    foreign += _list_changed(common, TraceOptions(), _FOREIGN)
    if common.generation is not None:
        plain = GenerationOptions(common.generation.max_new_tokens)
        foreign += _list_changed(common.generation, plain, _FOREIGN_TO_GENERATION)
    if common.special_tokens == "chat template":
        foreign.append("--chat")
    if foreign:
        raise without_effect(
            {flag: flag for flag in foreign},
            because="a GGUF file runs in llama.cpp, by the options about GGUF files",
            unless="name the original checkpoint",
        )


def _list_changed(options: object, plain: object, flags: Mapping[str, str]) -> list[str]:
    """Return the flags of the fields that differ from the plain ones."""
    return [flag for name, flag in flags.items() if getattr(options, name) != getattr(plain, name)]
