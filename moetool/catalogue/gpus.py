"""GPUs as data: their memory, its bandwidth, and how fast they multiply."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from moetool.errors import UsageError

_BYTES_PER_UNIT = {
    "B": 1,
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
    "TB": 10**12,
    "TiB": 2**40,
}
_UNITS = {unit.lower(): unit for unit in _BYTES_PER_UNIT}
_SIZE = re.compile(r"(?P<number>-?[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[a-z]+)", re.IGNORECASE)
_LARGEST_BYTES = 100 * 2**40


class MemoryIs(StrEnum):
    """The source of a GPU's amount of memory.

    Attributes:
        REPORTED: nvidia-smi or rocm-smi. A CUDA program sees a few hundred MiB less, which the
            driver reserves.
        NOMINAL: The vendor's advertised figure.
        GIVEN: The user, who named a size and no GPU.
    """

    REPORTED = "reported by the driver"
    NOMINAL = "nominal"
    GIVEN = "given"


@dataclass(frozen=True)
class Gpu:
    """A GPU, or only an amount of memory.

    Peaks are those of tensor cores (AMD: matrix cores) for dense matrices, with sums in fp32.
    Datasheets often print twice as much, for sparse ones. A figure is None if the source doesn't
    give it or the GPU has no such operation.

    Attributes:
        id: The name to type, in lower case.
        title: The name as its vendor writes it.
        aliases: Further names, such as the one its driver reports.
        vendor: Its maker. None for an amount of memory.
        architecture: Its generation, in lower case: `hopper`. None for an amount of memory.
        compute_capability: CUDA's `major.minor`. None if it has none.
        memory_bytes: Its whole memory, including what the driver reserves.
        memory_is: The source of that figure.
        bandwidth_bytes_per_s: The memory's peak.
        bf16_flops_per_s: The peak in bf16. None also without bf16 tensor cores.
        fp16_flops_per_s: The peak in fp16.
        fp8_flops_per_s: The peak in fp8. None also without fp8 tensor cores.
        pcie_bytes_per_s: The peak from the host in one direction; the notes say if it isn't PCIe.
        source: The document with the figures and its address. A driver's report of memory is not
            from there.
        notes: Remarks on the figures.
    """

    id: str
    title: str
    aliases: tuple[str, ...]
    vendor: str | None
    architecture: str | None
    compute_capability: str | None
    memory_bytes: int
    memory_is: MemoryIs
    bandwidth_bytes_per_s: float | None
    bf16_flops_per_s: float | None
    fp16_flops_per_s: float | None
    fp8_flops_per_s: float | None
    pcie_bytes_per_s: float | None
    source: str | None
    notes: str | None


@cache
def read_gpus() -> Mapping[str, Gpu]:
    """Return the known GPUs by id, in alphabetical order."""
    file = files("moetool.catalogue").joinpath("gpus.json")
    entries = json.loads(file.read_text(encoding="utf-8"))
    return MappingProxyType({name: _as_gpu(name, entry) for name, entry in entries.items()})


def find_gpu(text: str) -> Gpu:
    """Return the GPU of that name, or a custom one with that much memory.

    Args:
        text: An id, title or alias, with or without its vendor; case, spaces, hyphens and
            underscores don't matter. Or a size: `24GiB`, `80 GB`.

    Raises:
        UsageError: It is neither the name of a GPU nor a size, or the size is not at least one byte
            and below 100 TiB.
    """
    gpu = _gpus_by_spelling().get(_as_spelling(text))
    if gpu is not None:
        return gpu
    size = _SIZE.fullmatch(text.strip())
    if size is not None and size["unit"].lower() in _UNITS:
        return _as_custom_gpu(text, number=size["number"], unit=_UNITS[size["unit"].lower()])
    raise UsageError(
        f"There is no GPU called '{text}'.",
        hint=f"Give a size, such as 24GiB, or one of: {', '.join(read_gpus())}.",
    )


@cache
def _gpus_by_spelling() -> Mapping[str, Gpu]:
    return {spelling: gpu for gpu in read_gpus().values() for spelling in _spellings(gpu)}


def _spellings(gpu: Gpu) -> Iterator[str]:
    for name in (gpu.id, gpu.title, *gpu.aliases):
        yield _as_spelling(name)


def _as_spelling(text: str) -> str:
    letters = re.sub(r"[\s_-]+", "", text).lower()
    return letters.removeprefix("nvidia").removeprefix("amd")


def _as_custom_gpu(text: str, *, number: str, unit: str) -> Gpu:
    memory_bytes = Decimal(number) * _BYTES_PER_UNIT[unit]
    if not 1 <= memory_bytes < _LARGEST_BYTES:
        raise UsageError(
            f"A GPU can't have '{text}' of memory.",
            hint="Give a size of at least one byte and below 100 TiB, such as 24GiB.",
        )
    return Gpu(
        id=_as_spelling(text),
        title=f"custom GPU of {number} {unit}",
        aliases=(),
        vendor=None,
        architecture=None,
        compute_capability=None,
        memory_bytes=int(memory_bytes),
        memory_is=MemoryIs.GIVEN,
        bandwidth_bytes_per_s=None,
        bf16_flops_per_s=None,
        fp16_flops_per_s=None,
        fp8_flops_per_s=None,
        pcie_bytes_per_s=None,
        source=None,
        notes=None,
    )


def _as_gpu(name: str, entry: dict[str, Any]) -> Gpu:
    number, unit = entry.pop("memory").split()
    aliases = tuple(entry.pop("aliases"))
    memory_is = MemoryIs(entry.pop("memory_is"))
    memory_bytes = int(number) * _BYTES_PER_UNIT[unit]
    return Gpu(id=name, memory_bytes=memory_bytes, memory_is=memory_is, aliases=aliases, **entry)
