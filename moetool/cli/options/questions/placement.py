"""Declare the options of `place`."""

from __future__ import annotations

from typing import Annotated

import typer

from moetool.cli.options.shared import MODEL_PANEL

CLUSTER_PANEL = "GPUs"


GpusOption = Annotated[
    int,
    typer.Option(
        "--gpus",
        min=2,
        max=100_000,
        metavar="N",
        help="GPUs that share the experts of every layer.",
        show_default=False,
        rich_help_panel=CLUSTER_PANEL,
    ),
]
NodesOption = Annotated[
    int,
    typer.Option(
        "--nodes",
        min=1,
        max=100_000,
        metavar="M",
        help="Nodes that share the GPUs.",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
RedundantOption = Annotated[
    int,
    typer.Option(
        "--redundant",
        min=0,
        max=30_000,
        metavar="R",
        help="Slots of each layer for replicas of busy experts.",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
GroupsOption = Annotated[
    int | None,
    typer.Option(
        "--groups",
        min=1,
        max=30_000,
        metavar="G",
        help="Groups of experts that the router limits its choice to. Default: n_group of the "
        "model's configuration, else 1.",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
TokensPerBatchOption = Annotated[
    int,
    typer.Option(
        "--tokens-per-batch",
        min=1,
        max=10_000_000,
        metavar="N",
        help="Consecutive tokens of a batch, whose busiest GPU counts.",
    ),
]
BalanceWeightOption = Annotated[
    float,
    typer.Option(
        "--balance-weight",
        min=0,
        max=1e6,
        metavar="X",
        help="Weight of even batches against traffic, in placement by co-activation.",
    ),
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", min=0, metavar="N", help="Another seed holds out other prompts."),
]
TracedModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The traced model, for its hidden size, layers and groups. Default: the one that the "
        "trace names.",
        rich_help_panel=MODEL_PANEL,
    ),
]
HiddenSizeOption = Annotated[
    int | None,
    typer.Option(
        "--hidden-size",
        min=1,
        max=10_000_000,
        metavar="N",
        help="Values of a token, for bytes of traffic.",
        rich_help_panel=MODEL_PANEL,
    ),
]
