"""GPUs as data: their memory, its bandwidth, and how fast they multiply."""

from __future__ import annotations

import difflib
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
from moetool.wording import join_words

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
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_NUMBER_WITH_G = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*g(?:ig(?:abyte)?s?|i)?", re.IGNORECASE
)
_SEVERAL = (
    re.compile(r"(?P<number>[0-9]+)\s*[x×*]\s*(?P<gpu>.+)", re.IGNORECASE),
    re.compile(r"(?P<gpu>.+?)\s*[x×*]\s*(?P<number>[0-9]+)", re.IGNORECASE),
)
# Names that begin like the text, or are close to it, are listed up to this many.
_MOST_NAMES = 6
_MOST_CLOSE = 3
_LONGEST_NAME = 100
# Drivers report a little less than the size that a card is sold with.
_SHARE_OF_SOLD = 0.99


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
    """A GPU or TPU, or only an amount of memory.

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

    @property
    def is_tpu(self) -> bool:
        """Whether it is a TPU, for which CUDA's allocator and kernels say nothing."""
        return self.architecture is not None and self.architecture.startswith("tpu-")


@cache
def read_gpus() -> Mapping[str, Gpu]:
    """Return the known GPUs by id, in alphabetical order."""
    return _read("gpus.json")


@cache
def read_tpus() -> Mapping[str, Gpu]:
    """Return the known TPUs by id, in alphabetical order. A run on one is not a run on CUDA."""
    return _read("tpus.json")


def _read(name: str) -> Mapping[str, Gpu]:
    file = files("moetool.catalogue").joinpath(name)
    entries = json.loads(file.read_text(encoding="utf-8"))
    return MappingProxyType({name: _as_gpu(name, entry) for name, entry in entries.items()})


def list_gpus(*, vendor: str | None = None, min_memory_bytes: int = 0) -> list[Gpu]:
    """Return the known GPUs and TPUs, those with the least memory first.

    Args:
        vendor: The maker of those to return, in any case; None for all.
        min_memory_bytes: The least memory of those to return. A card that is sold with as much
            counts, although its driver reports up to 1 % less.

    Raises:
        UsageError: No known GPU is made by that vendor.
    """
    known = (*read_gpus().values(), *read_tpus().values())
    gpus = sorted(known, key=lambda gpu: (gpu.memory_bytes, gpu.id))
    vendors = sorted({gpu.vendor for gpu in gpus if gpu.vendor is not None})
    if vendor is not None and vendor.lower() not in map(str.lower, vendors):
        raise UsageError(
            f"No known GPU is made by '{vendor}'.", hint=f"Choose {join_words(vendors, last='or')}."
        )
    return [
        gpu
        for gpu in gpus
        if (vendor is None or (gpu.vendor or "").lower() == vendor.lower())
        and gpu.memory_bytes >= _SHARE_OF_SOLD * min_memory_bytes
    ]


def parse_memory(text: str) -> int:
    """Return the bytes of a size such as `24GiB`.

    Raises:
        UsageError: It is not a size, or not at least one byte and below 100 TiB.
    """
    size = _read_size(text)
    if size is None:
        raise UsageError(f"'{text}' is not an amount of memory.", hint="Write it as in 24GiB.")
    return size.memory_bytes


def find_gpu(text: str) -> Gpu:
    """Return the GPU of that name, or a custom one with that much memory.

    Args:
        text: An id, title or alias, with or without its vendor; case, spaces, hyphens and
            underscores don't matter. Or a size: `24GiB`, `80 GB`.

    Raises:
        UsageError: It is neither the name of a GPU nor a size, or the size is not at least one byte
            and below 100 TiB.
    """
    gpu = _find(text)
    if gpu is None:
        raise _refuse(text)
    return gpu


def find_named_like(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs that have a name which begins with a text, in alphabetical order.

    Drivers give variants with different memory the same name.
    """
    start = _as_spelling(text)
    if not start:
        return ()
    return tuple(
        gpu
        for gpu in (*read_gpus().values(), *read_tpus().values())
        if any(spelling.startswith(start) for spelling in _spellings(gpu))
    )


def _find(text: str) -> Gpu | None:
    gpu = _gpus_by_spelling().get(_as_spelling(text))
    if gpu is not None:
        return gpu
    return _read_size(text)


def _read_size(text: str) -> Gpu | None:
    """Return a custom GPU for a size; None for anything else."""
    size = _SIZE.fullmatch(text.strip())
    if size is None or size["unit"].lower() not in _UNITS:
        return None
    return _as_custom_gpu(text, number=size["number"], unit=_UNITS[size["unit"].lower()])


def _refuse(text: str) -> UsageError:
    """Return the error for a text that is neither a name nor a size, with what was likely meant."""
    stripped = text.strip()
    message = f"There is no GPU called '{text}'."
    anything = "a size, such as 24GiB, or a name that `moetool gpus` lists"
    if len(stripped) > _LONGEST_NAME:
        return UsageError(message, hint=f"Give {anything}.")
    if _NUMBER.fullmatch(stripped):
        return UsageError(
            f"'{text}' is an amount of memory without a unit.", hint=f"Write {stripped}GiB."
        )
    with_g = _NUMBER_WITH_G.fullmatch(stripped)
    if with_g is not None:
        return UsageError(
            f"'{text}' has an unknown unit of memory.", hint=f"Write {with_g['number']}GiB."
        )
    for pattern in _SEVERAL:
        several = pattern.fullmatch(stripped)
        if several is not None and (gpu := _find(several["gpu"])) is not None:
            one = several["gpu"] if gpu.vendor is None else gpu.id
            return UsageError(
                f"'{text}' names several GPUs, and an estimate is for one.",
                hint=f"Give {one}. `moetool memory-estimate MODEL --gpu {one}` shows how many of "
                "them a model needs, and what each of several holds.",
            )
    alike = [gpu.id for gpu in find_named_like(text)]
    if len(alike) > 1 and len(alike) <= _MOST_NAMES:
        return UsageError(
            f"The names of several GPUs begin with '{text}'.",
            hint=f"Choose {join_words(alike, last='or')}.",
        )
    if not 1 <= len(alike) <= _MOST_NAMES:
        alike = _find_close(text)
    if not alike:
        return UsageError(message, hint=f"Give {anything}.")
    return UsageError(message, hint=f"Choose {join_words(alike, last='or')}, or give {anything}.")


def _find_close(text: str) -> list[str]:
    """Return the ids of the GPUs with the closest names, the closest first."""
    known = _gpus_by_spelling()
    close = difflib.get_close_matches(_as_spelling(text), known, n=4 * _MOST_CLOSE)
    return list(dict.fromkeys(known[spelling].id for spelling in close))[:_MOST_CLOSE]


@cache
def _gpus_by_spelling() -> Mapping[str, Gpu]:
    known = (*read_gpus().values(), *read_tpus().values())
    return {spelling: gpu for gpu in known for spelling in _spellings(gpu)}


def _spellings(gpu: Gpu) -> Iterator[str]:
    for name in (gpu.id, gpu.title, *gpu.aliases):
        yield _as_spelling(name)


def _as_spelling(text: str) -> str:
    letters = re.sub(r"[\s_-]+", "", text).lower()
    return letters.removeprefix("nvidia").removeprefix("amd").removeprefix("google")


def _as_custom_gpu(text: str, *, number: str, unit: str) -> Gpu:
    memory_bytes = Decimal(number) * _BYTES_PER_UNIT[unit]
    if not 1 <= memory_bytes < _LARGEST_BYTES:
        raise UsageError(
            f"A GPU can't have '{text}' of memory.",
            hint="Give a size of at least one byte and below 100 TiB, such as 24GiB.",
        )
    return make_custom_gpu(
        f"{number}{unit}",
        title=f"custom GPU of {number} {unit}",
        memory_bytes=int(memory_bytes),
        memory_is=MemoryIs.GIVEN,
    )


def make_custom_gpu(
    gpu_id: str,
    *,
    title: str,
    memory_bytes: int,
    memory_is: MemoryIs,
    compute_capability: str | None = None,
) -> Gpu:
    """Return a GPU of which nothing else is known."""
    return Gpu(
        id=gpu_id,
        title=title,
        aliases=(),
        vendor=None,
        architecture=None,
        compute_capability=compute_capability,
        memory_bytes=memory_bytes,
        memory_is=memory_is,
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
