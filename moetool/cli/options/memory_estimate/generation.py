"""Declare the options of `moetool memory-estimate` that describe `generate`: its cache and its search."""

from __future__ import annotations

from typing import Annotated

import typer

from moetool.cli.options.completion import complete_models
from moetool.cli.options.values import parse_attention
from moetool.memory.scenario import Attention, CacheDtype, CacheKind

_GENERATION_PANEL = "Attention, cache and search"

AttentionOption = Annotated[
    Attention | None,
    typer.Option(
        metavar="NAME",
        parser=parse_attention,
        help="Attention implementation: eager, sdpa, flash_attention_2 (or flash), flash_attention_3 or "
        "flex_attention (or flex). Default: transformers' choice.",
        rich_help_panel=_GENERATION_PANEL,
    ),
]
CacheOption = Annotated[
    CacheKind,
    typer.Option(
        metavar="KIND",
        case_sensitive=False,
        help="KV cache used for generation: dynamic, static, offloaded, offloaded_static or quantized.",
        rich_help_panel=_GENERATION_PANEL,
    ),
]
CacheDtypeOption = Annotated[
    CacheDtype | None,
    typer.Option(
        "--cache-dtype",
        metavar="DTYPE",
        case_sensitive=False,
        help="Quantize the cache: fp8 by transformers itself, int8 by hqq, int4 or int2 by "
        "optimum-quanto.",
        rich_help_panel=_GENERATION_PANEL,
    ),
]
NumBeams = Annotated[
    int,
    typer.Option(
        "--num-beams",
        metavar="N",
        help="Search with this many beams for each prompt.",
        rich_help_panel=_GENERATION_PANEL,
    ),
]
Assistant = Annotated[
    str | None,
    typer.Option(
        "--assistant",
        metavar="MODEL",
        help="A second model that drafts tokens, named as models are: generate(assistant_model=...).",
        rich_help_panel=_GENERATION_PANEL,
        autocompletion=complete_models,
    ),
]
NumReturnSequences = Annotated[
    int,
    typer.Option(
        "--num-return-sequences",
        metavar="N",
        help="Sequences returned for each prompt: the best beams, or samples if there are no beams.",
        rich_help_panel=_GENERATION_PANEL,
    ),
]
