"""Several GPUs of one kind, and the ways in which they share a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from moetool.catalogue.gpus import Gpu
from moetool.choices import choose, take_count
from moetool.errors import UsageError
from moetool.memory.machine.local_gpu import take_gpu

_MOST_GPUS = 4096
_SEVERAL = re.compile(r"\s*(?P<number>[0-9]+)\s*[x×*]\s*(?P<gpu>.+)", re.IGNORECASE)
_MIXED = re.compile(r"[,+]")


class ParallelWay(StrEnum):
    """Ways in which several GPUs share a model.

    Attributes:
        DEVICE_MAP: `device_map="auto"`: each GPU runs some of the layers, one after another.
        TENSOR: transformers' tensor-parallel plan: each GPU runs a part of every layer.
        EXPERT: transformers' expert-parallel plan: each GPU runs some of every layer's experts.
        DATA: Each GPU runs the whole model on some of the sequences.
    """

    DEVICE_MAP = "device-map"
    TENSOR = "tensor"
    EXPERT = "expert"
    DATA = "data"


@dataclass(frozen=True)
class GpuGroup:
    """Several GPUs of one kind.

    Attributes:
        gpu: Their kind.
        num_per_node: GPUs of each machine.
        num_nodes: Machines.
        ways: The ways of sharing in question, each once.
    """

    gpu: Gpu
    num_per_node: int
    num_nodes: int
    ways: tuple[ParallelWay, ...]

    @property
    def num_gpus(self) -> int:
        """All GPUs of all machines."""
        return self.num_per_node * self.num_nodes


def take_group(
    gpu: object,
    parallel: str | Sequence[str] | None,
    *,
    num_nodes: int = 1,
    default: ParallelWay | None = None,
) -> GpuGroup | None:
    """Return the GPUs that a user names; None for one GPU, or without a way of sharing.

    Args:
        gpu: The number and kind, such as `8xh200`.
        parallel: Values of `ParallelWay`: a list, or a text with commas.
        num_nodes: Machines with that many GPUs each.
        default: The way in which several GPUs share the model if none is given.

    Raises:
        UsageError: A way or the GPU is unknown, the GPUs are of several kinds, or their number is missing.
    """
    num_nodes = take_count(num_nodes, name="number of nodes", smallest=1, largest=_MOST_GPUS)
    if parallel is None and default and isinstance(gpu, str) and _SEVERAL.fullmatch(gpu):
        parallel = [default]
    if parallel is None:
        if num_nodes > 1:
            raise UsageError(
                "Several nodes have an effect only if their GPUs share a model.",
                hint="Add --parallel tensor, or leave out --nodes.",
            )
        return None
    words = parallel.split(",") if isinstance(parallel, str) else list(parallel)
    ways = tuple(
        dict.fromkeys(
            choose(word.strip() if type(word) is str else word, ParallelWay, name="way of sharing")
            for word in words
        )
    )
    if not ways:
        raise UsageError(
            "The list of ways of sharing is empty.", hint="Give --parallel tensor, for example."
        )
    if not isinstance(gpu, str):
        named = gpu.id if isinstance(gpu, Gpu) else "h200"
        raise _lack_number(named)
    if _MIXED.search(gpu):
        first = _MIXED.split(gpu)[0].strip()
        raise UsageError(
            f"'{gpu}' names several kinds of GPU, and transformers' plans share a model evenly.",
            hint=f"Give GPUs of one kind, such as --gpu {first}.",
        )
    several = _SEVERAL.fullmatch(gpu)
    if several is None:
        raise _lack_number(take_gpu(gpu).id)
    number = take_count(
        int(several["number"][:9]), name="number of GPUs", smallest=1, largest=_MOST_GPUS
    )
    return GpuGroup(take_gpu(several["gpu"]), number, num_nodes, ways)


def _lack_number(name: str) -> UsageError:
    return UsageError(
        "--parallel needs a number of GPUs.", hint=f"Give it with the GPU: --gpu 2x{name}."
    )
