"""Declare the options of `moetool memory-estimate` about serving engines, and read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from moetool.errors import UsageError

if TYPE_CHECKING:
    from moetool.memory.serving.answer import Engine, ServedCache, ServingOptions

_PANEL = "Serving engines"

EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="ENGINE",
        help="Also show how vllm, sglang or llama.cpp would serve the model on the GPU: weights, "
        "cache per token, and how many users fit.",
        rich_help_panel=_PANEL,
    ),
]
Utilization = Annotated[
    float | None,
    typer.Option(
        "--gpu-memory-utilization",
        metavar="SHARE",
        help="Share of the GPU's memory for vLLM; SGLang's --mem-fraction-static. Default: 0.9.",
        rich_help_panel=_PANEL,
    ),
]
ServedCacheOption = Annotated[
    str | None,
    typer.Option(
        "--kv-cache-dtype",
        metavar="DTYPE",
        help="The engine's cache: auto, fp8 (vLLM, SGLang), or q8_0 (llama.cpp). Default: auto.",
        rich_help_panel=_PANEL,
    ),
]
TensorParallel = Annotated[
    int | None,
    typer.Option(
        "--tensor-parallel",
        metavar="N",
        help="GPUs that share each layer in the engine. Default: all that --gpu names.",
        rich_help_panel=_PANEL,
    ),
]
Overhead = Annotated[
    str | None,
    typer.Option(
        "--engine-overhead",
        metavar="SIZE",
        help="Allowance on each GPU for what only the engine's profiling finds, such as 4GiB. "
        "Default: unknown, which makes the pool an upper bound.",
        rich_help_panel=_PANEL,
    ),
]


def read_engine(
    engine: str | None,
    utilization: float | None,
    kv_cache_dtype: str | None,
    tensor_parallel: int | None,
    overhead: str | None,
    *,
    gpu: str | None,
) -> ServingOptions | None:
    """Return the engine that was asked for, with its settings; None if none was.

    Raises:
        UsageError: A setting is given without an engine, an engine without a GPU, or a setting is
            out of range.
    """
    from moetool.catalogue.gpus import parse_memory
    from moetool.memory.serving.answer import ServingOptions

    settings = {
        "--gpu-memory-utilization": utilization,
        "--kv-cache-dtype": kv_cache_dtype,
        "--tensor-parallel": tensor_parallel,
        "--engine-overhead": overhead,
    }
    if engine is None:
        loose = next((name for name, value in settings.items() if value is not None), None)
        if loose is not None:
            raise UsageError(
                f"{loose} is a setting of a serving engine, and none was named.",
                hint="Add --engine vllm, sglang or llama.cpp.",
            )
        return None
    options = ServingOptions(
        engine=cast("Engine", engine.lower()),
        gpu_memory_utilization=utilization,
        kv_cache_dtype=cast("ServedCache", kv_cache_dtype or "auto"),
        tensor_parallel=tensor_parallel,
        overhead_bytes=None if overhead is None else parse_memory(overhead),
    )
    if gpu is None:
        raise UsageError(
            f"How {options.engine} serves a model depends on the GPU, and none was named.",
            hint="Name a GPU with --gpu.",
        )
    return options
