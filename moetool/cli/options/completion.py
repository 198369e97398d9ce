"""Complete the names of models and GPUs in a shell.

A shell completes paths itself where nothing is returned. Where it is offered names, it offers
nothing else, so folders that might be meant are among them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from moetool.catalogue.gpus import read_gpus
from moetool.catalogue.names import DEMO
from moetool.catalogue.published import PublishedModel, read_published_models, read_reported_systems
from moetool.memory.machine.local_gpu import HERE
from moetool.wording import format_bytes

# A value, and what a shell may show next to it.
Completion = tuple[str, str]

_DEMO_HELP = "the demonstration model"
_IN_PATHS = ("/", "\\")
_STARTS_OF_PATHS = (".", "~")


def complete_models(incomplete: str) -> Iterator[Completion]:
    """Yield the models that begin with some letters: of the catalogue, `demo`, and folders."""
    if _is_path(incomplete):
        return
    yield from complete_checkpoints(incomplete)
    start = incomplete.lower()
    for model in read_published_models().values():
        if model.name.startswith(start):
            yield model.name, _describe(model)
    for system in read_reported_systems().values():
        if system.name.startswith(start):
            yield system.name, f"{system.title}, reported"


def complete_checkpoints(incomplete: str) -> Iterator[Completion]:
    """Yield the models with weights that begin with some letters: `demo`, and folders."""
    if _is_path(incomplete):
        return
    if DEMO.startswith(incomplete):
        yield DEMO, _DEMO_HELP
    if incomplete:
        for name in _list_folder():
            if name.startswith(incomplete) and (
                os.path.isdir(name) or name.endswith("config.json")
            ):
                yield name, "here"


def complete_gpus(incomplete: str) -> Iterator[Completion]:
    """Yield the ids of GPUs that begin with some letters."""
    if HERE.startswith(incomplete.lower()):
        yield HERE, "this machine's GPU"
    for gpu in read_gpus().values():
        if gpu.id.startswith(incomplete.lower()):
            yield gpu.id, f"{gpu.title}, {format_bytes(gpu.memory_bytes)}"


def _list_folder() -> list[str]:
    try:
        return sorted(os.listdir())
    except OSError:
        return []


def _is_path(incomplete: str) -> bool:
    return incomplete.startswith(_STARTS_OF_PATHS) or any(part in incomplete for part in _IN_PATHS)


def _describe(model: PublishedModel) -> str:
    total_b = model.vendor.total_b
    return model.title if total_b is None else f"{model.title}, {total_b}B"
