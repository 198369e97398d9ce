"""Declare the options of `moetool memory-estimate` about GGUF files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moetool.errors import MoetoolError, UsageError

if TYPE_CHECKING:
    from moetool.memory.scenario import Scenario

DEFAULT_UBATCH = 512


# `help` and `min` are typer's names.
def gguf_option(flag: str, *, metavar: str, help: str, min: int | None = None) -> Any:
    """Return what typer is to know of an option about GGUF files."""
    return typer.Option(flag, metavar=metavar, min=min, help=help, rich_help_panel="GGUF files")


GpuLayers = Annotated[
    int | None,
    gguf_option(
        "--n-gpu-layers",
        metavar="N",
        min=0,
        help="Layers on the GPU, the head counted as one. Default: all with --gpu.",
    ),
]
CpuMoe = Annotated[
    int | None,
    gguf_option(
        "--n-cpu-moe",
        metavar="N",
        min=0,
        help="First layers whose experts stay on the CPU.",
    ),
]
OverrideTensor = Annotated[
    str | None,
    gguf_option(
        "--override-tensor",
        metavar="PATTERN=DEVICE,...",
        help="Tensors whose names match go to CPU or GPU, as llama.cpp's -ot.",
    ),
]
ContextSize = Annotated[
    int | None,
    gguf_option(
        "--ctx-size",
        metavar="N",
        min=1,
        help="Tokens of the cache, for all sequences of --batch-size. Default: the model's.",
    ),
]
UbatchSize = Annotated[
    int | None,
    gguf_option(
        "--ubatch-size",
        metavar="N",
        min=1,
        help=f"Tokens of a micro-batch. Default: {DEFAULT_UBATCH}.",
    ),
]
CacheTypeK = Annotated[
    str | None,
    gguf_option(
        "--cache-type-k",
        metavar="TYPE",
        help="Type of cached keys: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0 or q5_1. "
        "Default: f16.",
    ),
]
CacheTypeV = Annotated[
    str | None,
    gguf_option(
        "--cache-type-v",
        metavar="TYPE",
        help="Type of cached values, as --cache-type-k.",
    ),
]
FlashAttention = Annotated[
    str | None,
    gguf_option(
        "--flash-attn",
        metavar="MODE",
        help="Flash attention: on, off or auto. Default: auto, which is off where CUDA has no kernel.",
    ),
]
TensorSplit = Annotated[
    str | None,
    gguf_option(
        "--tensor-split",
        metavar="N,N",
        help="Parts of the layers for each of several GPUs. Default: equal ones.",
    ),
]
_NAMES = (
    *("num_gpu_layers", "num_cpu_moe", "moves", "context", "ubatch", "type_k", "type_v"),
    *("flash_attention", "shares"),
)


def name_values(*values: object) -> dict[str, Any]:
    """Return the values of the options above, in their order, by what they mean."""
    return dict(zip(_NAMES, values, strict=True))


def check_models(models: Sequence[str], own: Mapping[str, Any]) -> bool:
    """Return whether the models are GGUF files.

    Args:
        models: As they were named. Those that are not there are reported later.
        own: The options about GGUF files.

    Raises:
        UsageError: Only some are, or such an option is given and none is.
    """
    from moetool.checkpoint.reference import ModelKind, resolve_model

    are_gguf = []
    for model in models:
        with suppress(MoetoolError):
            kind = resolve_model(model).kind
            are_gguf.append(kind in (ModelKind.GGUF, ModelKind.HUB_GGUF))
    if any(are_gguf) and not all(are_gguf):
        raise UsageError(
            "GGUF files are estimated by llama.cpp's rules, other models by their own code.",
            hint="Name them in separate commands.",
        )
    if are_gguf and not any(are_gguf) and any(value is not None for value in own.values()):
        raise UsageError(
            "An option about GGUF files is given, and no GGUF file is named.",
            hint="Name a GGUF file. A checkpoint takes --prompt-tokens, --cache-dtype and "
            "--engine llama.cpp.",
        )
    return any(are_gguf)


def refuse_foreign(common: Scenario, others: Sequence[object], *, measure: bool) -> None:
    """Refuse options that llama.cpp doesn't have.

    Args:
        common: The options of a run of transformers.
        others: Further options that have no value by default.
        measure: Whether a measurement is asked for.

    Raises:
        UsageError: One of them is given.
    """
    from moetool.memory.scenario import Scenario

    is_default = common == Scenario(num_new_tokens=common.num_new_tokens)
    if not is_default or measure or any(value is not None for value in others):
        raise UsageError(
            "An option is given that llama.cpp doesn't have: GGUF files take --gpu, --batch-size, "
            "--engine-overhead and those of the panel 'GGUF files'.",
            hint="Leave out all others.",
        )
