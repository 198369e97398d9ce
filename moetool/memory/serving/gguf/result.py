"""Buffers that llama.cpp allocates for a GGUF file, as reports show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, get_type_hints

from moetool.memory.serving.gguf.buffers import Buffers
from moetool.plain import Tabular, make_plain
from moetool.printable import printable
from moetool.wording import format_bytes


@dataclass(frozen=True)
class Fitting:
    """Flags with which a model fits on a GPU.

    Attributes:
        num_gpu_layers: `--n-gpu-layers`.
        num_cpu_moe: `--n-cpu-moe`.
        gpu_bytes: What the GPU then holds.
        host_bytes: What the host then holds, mapped weights included.
        flags: Both as flags.
    """

    num_gpu_layers: int
    num_cpu_moe: int
    gpu_bytes: int
    host_bytes: int
    flags: str


@dataclass(frozen=True)
class GgufEstimate(Tabular):
    """The buffers of llama.cpp for a file, in bytes; unknown figures are None.

    Attributes:
        model: The file as it was asked for.
        architecture: llama.cpp's name of the family.
        file_bytes: All files, headers included.
        context: Cells of the cache, which all sequences share.
        ubatch: Tokens of a micro-batch.
        num_sequences: Sequences at once.
        type_k: The type of cached keys.
        type_v: The type of cached values.
        flags: What the figures are for, as llama.cpp's flags.
        gpu: The GPU's name; None for the CPU alone.
        gpu_memory_bytes: The whole memory of one GPU.
        overhead_bytes: The allowance that was given.
        on_gpu: The GPU's buffers, of several those of the fullest; None without one.
        on_host: The host's buffers.
        gpu_bytes: All buffers of that GPU together.
        host_bytes: All of the host's.
        fits: Whether the GPU's buffers and the allowance fit in its memory.
        short_bytes: What they exceed it by; 0 if they fit.
        fitting: The flags that put most on the GPU; None if nothing fits, or without a GPU.
        gpu_read_bytes: Weights and cache that the GPU reads for a generated token, at full context.
        host_read_bytes: The same for the host.
        notes: Remarks on the figures.
        has_flash_attention: Whether attention is one operation.
        num_gpus: GPUs that share the layers.
        on_gpus: The buffers of each.
    """

    model: str
    architecture: str
    file_bytes: int
    context: int
    ubatch: int
    num_sequences: int
    type_k: str
    type_v: str
    flags: str
    gpu: str | None
    gpu_memory_bytes: int | None
    overhead_bytes: int
    on_gpu: Buffers | None
    on_host: Buffers
    gpu_bytes: int | None
    host_bytes: int | None
    fits: bool | None
    short_bytes: int | None
    fitting: Fitting | None
    gpu_read_bytes: int | None
    host_read_bytes: int | None
    notes: tuple[str, ...]
    has_flash_attention: bool
    num_gpus: int
    on_gpus: tuple[Buffers, ...]

    _SHOWN: ClassVar[tuple[str, ...]] = (
        "context",
        "gpu",
        "fits",
        "short_bytes",
        "gpu_bytes",
        "host_bytes",
        "fitting_flags",
    )

    def __repr__(self) -> str:
        held = self.host_bytes if self.gpu is None else self.gpu_bytes
        words = "memory unknown" if held is None else f"{format_bytes(held)} on the "
        words += "" if held is None else ("CPU" if self.gpu is None else "GPU")
        if self.gpu is not None and self.fits is not None:
            short = f"doesn't fit, short by {format_bytes(self.short_bytes or 0)}"
            words += f"; {self.gpu}: {'fits' if self.fits else short}"
        name = printable(self.model, max_length=60)
        return f"<GgufEstimate {name}, {self.context:,} tokens of context: {words}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report."""
        plain: dict[str, Any] = make_plain(asdict(self))
        return plain

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the row, in order, each with the type of its values."""
        hints = get_type_hints(cls)
        nested = ("on_gpu", "on_host", "fitting", "notes", "on_gpus")
        last = ("has_flash_attention", "num_gpus")
        parts = {
            f"{place}_{name}_bytes": int | None
            for place in ("gpu", "host")
            for name in get_type_hints(Buffers)
        }
        names = [each.name for each in fields(cls)]
        kept = {name: hints[name] for name in names if name not in (*nested, *last)}
        own = {name: hints[name] for name in last}
        return {**kept, **parts, "fitting_flags": str | None, **own}

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row. Values are plain; unknown ones are None."""
        row = {name: getattr(self, name, None) for name in self.column_types()}
        for place, buffers in (("gpu", self.on_gpu), ("host", self.on_host)):
            for name in get_type_hints(Buffers):
                row[f"{place}_{name}_bytes"] = getattr(buffers, name, None)
        row["fitting_flags"] = self.fitting.flags if self.fitting else None
        return [make_plain(row)]
