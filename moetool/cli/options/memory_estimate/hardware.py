"""Declare the options of `moetool memory-estimate` that describe the hardware."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moetool.cli.options.completion import complete_gpus
from moetool.cli.options.shared import FLAG

if TYPE_CHECKING:
    from moetool.memory.serving.answer import ServingOptions

_HARDWARE_PANEL = "Hardware"

Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="GPU",
        help="A GPU, such as h200 or rtx-4090 (see `moetool gpus`), an amount of memory, such as "
        "24GiB, or here for this machine's GPU; several with --parallel, such as 8xh200. Adds its "
        "limits, offloading and speed. Default: compare all known GPUs.",
        autocompletion=complete_gpus,
        rich_help_panel=_HARDWARE_PANEL,
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="TRACE",
        help="Bound the speed by the routing in this trace instead of uniform routing.",
        rich_help_panel=_HARDWARE_PANEL,
    ),
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure",
        metavar=FLAG,
        help="Also run the model on this machine's GPU, and compare.",
        rich_help_panel=_HARDWARE_PANEL,
    ),
]
Parallel = Annotated[
    str | None,
    typer.Option(
        "--parallel",
        metavar="WAY,...",
        help="Ways in which several GPUs share the model, each simulated on every GPU: device-map, "
        "tensor, expert, data. Needs their number, as in --gpu 8xh200. With --engine, the engine's "
        "way of sharing.",
        rich_help_panel=_HARDWARE_PANEL,
    ),
]
Nodes = Annotated[
    int,
    typer.Option(
        "--nodes",
        metavar="N",
        help="Machines with that many GPUs each, with --parallel.",
        rich_help_panel=_HARDWARE_PANEL,
    ),
]
Save = Annotated[
    Path | None,
    typer.Option(
        "--save",
        metavar="FILE",
        help="Write a receipt of what --measure found: prediction, measurement, card and versions.",
        rich_help_panel=_HARDWARE_PANEL,
    ),
]


def take_gpus(
    gpu: str | None, parallel: str | None, num_nodes: int, *, serving: ServingOptions | None
) -> dict[str, Any]:
    """Return the options of a sweep about GPUs: the one that was named, and the group of several.

    This machine's driver may be asked about its GPU.

    Raises:
        UsageError: The GPU is unknown, or the ways to share a model don't go with it.
    """
    from moetool.memory.machine.gpu_group import take_group
    from moetool.memory.machine.local_gpu import take_gpu
    from moetool.memory.serving.deployment import choose_default_way

    group = take_group(gpu, parallel, num_nodes=num_nodes, default=choose_default_way(serving))
    if group is not None:
        return {"gpu": group.gpu, "parallel": group}
    return {"gpu": None if gpu is None else take_gpu(gpu)}
