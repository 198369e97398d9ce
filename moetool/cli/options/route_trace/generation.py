"""Declare the options of `moetool route-trace` that generate tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.options.shared import make_cache_option
from moetool.memory.scenario import CacheKind

if TYPE_CHECKING:
    from moetool.tracing.options import GenerationOptions

_PANEL = "Generation"

MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Generate up to N tokens per prompt, and trace them too.",
        rich_help_panel=_PANEL,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="Sample at this temperature. Default: take the most likely token.",
        rich_help_panel=_PANEL,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Sample from the most likely tokens whose probabilities add up to P.",
        rich_help_panel=_PANEL,
    ),
]
Seed = Annotated[
    int,
    typer.Option(metavar="N", help="Random seed for sampling.", rich_help_panel=_PANEL),
]
CacheOption = Annotated[CacheKind, make_cache_option(panel=_PANEL)]
SaveText = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the generated texts to this .jsonl file.",
        rich_help_panel=_PANEL,
    ),
]


def read_generation(
    max_new_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int,
    cache: CacheKind,
) -> GenerationOptions | None:
    """Return the options for generating tokens; None if none are to be generated.

    Raises:
        UsageError: Options have no effect without new tokens, or are out of range.
    """
    from moetool.tracing.options import choose_generation

    return choose_generation(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, cache=cache
    )
