"""Declare the options of `moetool memory-estimate` about GGUF files, and read them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moetool.errors import MoetoolError, UsageError

if TYPE_CHECKING:
    from moetool.memory.scenario import Scenario
    from moetool.memory.serving.gguf.question import GgufQuestion

_PANEL = "GGUF files"
_DEFAULT_UBATCH = 512

GpuLayers = Annotated[
    int | None,
    typer.Option(
        "--n-gpu-layers",
        metavar="N",
        min=0,
        help="Layers on the GPU, the head counted as one. Default: all with --gpu.",
        rich_help_panel=_PANEL,
    ),
]
CpuMoe = Annotated[
    int | None,
    typer.Option(
        "--n-cpu-moe",
        metavar="N",
        min=0,
        help="First layers whose experts stay on the CPU.",
        rich_help_panel=_PANEL,
    ),
]
OverrideTensor = Annotated[
    str | None,
    typer.Option(
        "--override-tensor",
        metavar="PATTERN=DEVICE,...",
        help="Tensors whose names match go to CPU or GPU, as llama.cpp's -ot.",
        rich_help_panel=_PANEL,
    ),
]
ContextSize = Annotated[
    int | None,
    typer.Option(
        "--ctx-size",
        metavar="N",
        min=1,
        help="Tokens of the cache, for all sequences of --batch-size. Default: the model's.",
        rich_help_panel=_PANEL,
    ),
]
UbatchSize = Annotated[
    int | None,
    typer.Option(
        "--ubatch-size",
        metavar="N",
        min=1,
        help=f"Tokens of a micro-batch. Default: {_DEFAULT_UBATCH}.",
        rich_help_panel=_PANEL,
    ),
]
CacheTypeK = Annotated[
    str | None,
    typer.Option(
        "--cache-type-k",
        metavar="TYPE",
        help="Type of cached keys: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0 or q5_1. "
        "Default: f16.",
        rich_help_panel=_PANEL,
    ),
]
CacheTypeV = Annotated[
    str | None,
    typer.Option(
        "--cache-type-v",
        metavar="TYPE",
        help="Type of cached values, as --cache-type-k.",
        rich_help_panel=_PANEL,
    ),
]
FlashAttention = Annotated[
    str | None,
    typer.Option(
        "--flash-attn",
        metavar="MODE",
        help="Flash attention: on, off or auto. Default: auto, which is off where CUDA has no kernel.",
        rich_help_panel=_PANEL,
    ),
]
_MODES = {"on": True, "off": False, "auto": None}
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_NAMES = (
    *("num_gpu_layers", "num_cpu_moe", "moves", "context", "ubatch", "type_k", "type_v"),
    "flash_attention",
)
_GPU_NAME = re.compile(r"(gpu|cuda\d*)", re.IGNORECASE)


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


def read_question(
    values: Mapping[str, Any],
    *,
    gpu: str | None,
    overhead: str | None,
    scenarios: Sequence[Scenario],
) -> GgufQuestion:
    """Return what is asked of GGUF files.

    Raises:
        UsageError: A value has no meaning.
    """
    from moetool.catalogue.gpus import parse_memory
    from moetool.memory.machine.local_gpu import take_gpu
    from moetool.memory.serving.gguf.question import GgufQuestion

    if len(scenarios) != 1:
        raise UsageError(
            "GGUF files are estimated for one number of sequences at a time.",
            hint="Name one --batch-size.",
        )
    types = [values["type_k"] or "f16", values["type_v"] or "f16"]
    for each in types:
        if each not in _CACHE_TYPES:
            raise UsageError(
                f"'{each}' is not a type that llama.cpp caches in.",
                hint=f"Name one of {', '.join(_CACHE_TYPES)}.",
            )
    mode = values["flash_attention"] or "auto"
    if mode not in _MODES:
        raise UsageError(
            f"'{mode}' is not a mode of flash attention.", hint="Name on, off or auto."
        )
    if gpu is None and (values["num_gpu_layers"] or values["num_cpu_moe"] or values["moves"]):
        raise UsageError(
            "Layers and tensors are divided between the CPU and a GPU, and no GPU is named.",
            hint="Name a GPU with --gpu, such as rtx-4090 or 24GiB.",
        )
    return GgufQuestion(
        gpu=None if gpu is None else take_gpu(gpu),
        overhead_bytes=0 if overhead is None else parse_memory(overhead),
        num_gpu_layers=values["num_gpu_layers"],
        num_cpu_moe=values["num_cpu_moe"] or 0,
        moves=_read_moves(values["moves"]),
        context=values["context"],
        ubatch=values["ubatch"] or _DEFAULT_UBATCH,
        num_sequences=scenarios[0].batch_size,
        type_k=types[0],
        type_v=types[1],
        flash_attention=_MODES[mode],
    )


def _read_moves(text: str | None) -> tuple[tuple[str, int], ...]:
    """Return the patterns of tensors' names, each with its device."""
    from moetool.memory.serving.ggml.allocation.scheduler import GPU, HOST

    moves = []
    for part in (text or "").split(",") if text else ():
        pattern, equals, device = part.rpartition("=")
        is_gpu = _GPU_NAME.fullmatch(device) is not None
        try:
            re.compile(pattern)
        except re.error:
            equals = ""
        if not equals or not pattern or not (is_gpu or device.upper() == "CPU"):
            raise UsageError(
                f"'{part}' is not a pattern and a device.",
                hint="Write --override-tensor 'exps=CPU'.",
            )
        moves.append((pattern, GPU if is_gpu else HOST))
    return tuple(moves)
