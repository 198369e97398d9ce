"""An estimate of what llama.cpp allocates for a GGUF file, and what would fit on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_type_hints

from moetool.anatomy.components import Component
from moetool.anatomy.gguf.names import read_name
from moetool.anatomy.gguf.table import count_gguf
from moetool.catalogue.gpus import Gpu
from moetool.checkpoint.gguf.files import GgufModel
from moetool.checkpoint.gguf.types import TYPES_BY_NAME
from moetool.errors import UsageError
from moetool.memory.serving.ggml.allocation.scheduler import GPU
from moetool.memory.serving.gguf.buffers import Buffers, GgufRun, list_buffers
from moetool.memory.serving.gguf.placement import LayerRule, make_moves, place_tensors
from moetool.memory.serving.gguf.sizes import list_caches, read_model_sizes
from moetool.plain import Tabular, make_plain

ALL_LAYERS = 999
_NO_CACHE = (
    "The cache is unknown: what {architecture} keeps of a token is not known here; "
    "windows and states have their own rules."
)
_NO_GRAPH = (
    "The compute buffers are unknown: the graph that llama.cpp builds for {architecture} is not "
    "known here."
)
_MTP = "Layers that predict further tokens are left out: llama.cpp loads them only to draft with."
_CUDA = (
    "Not confirmed with CUDA: workspaces of its kernels, and what it keeps longer for fused "
    "operations, are left out, as is the CUDA context. Give an allowance with --engine-overhead."
)
_MAPPED = (
    "The host's weights are mapped from the file: the system reads them when they are used, and may "
    "drop them again."
)


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
        gpu_memory_bytes: The GPU's whole memory.
        overhead_bytes: The allowance that was given.
        on_gpu: The GPU's buffers; None without one.
        on_host: The host's buffers.
        gpu_bytes: All of the GPU's buffers together.
        host_bytes: All of the host's.
        fits: Whether the GPU's buffers and the allowance fit in its memory.
        short_bytes: What they exceed it by; 0 if they fit.
        fitting: The flags that put most on the GPU; None if nothing fits, or without a GPU.
        gpu_read_bytes: Weights and cache that the GPU reads for a generated token, at full context.
        host_read_bytes: The same for the host.
        notes: Remarks on the figures.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report."""
        plain: dict[str, Any] = make_plain(asdict(self))
        return plain

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the row, in order, each with the type of its values."""
        hints = get_type_hints(cls)
        nested = ("on_gpu", "on_host", "fitting", "notes")
        parts = {
            f"{place}_{name}_bytes": int | None
            for place in ("gpu", "host")
            for name in get_type_hints(Buffers)
        }
        kept = {name: kind for name, kind in hints.items() if name not in nested}
        return {**kept, **parts, "fitting_flags": str | None}

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row. Values are plain; unknown ones are None."""
        row = {name: getattr(self, name, None) for name in self.column_types()}
        for place, buffers in (("gpu", self.on_gpu), ("host", self.on_host)):
            for name in get_type_hints(Buffers):
                row[f"{place}_{name}_bytes"] = getattr(buffers, name, None)
        row["fitting_flags"] = self.fitting.flags if self.fitting else None
        return [make_plain(row)]


@dataclass(frozen=True)
class GgufQuestion:
    """A question about a file.

    Attributes:
        gpu: The GPU; None for the CPU alone.
        overhead_bytes: An allowance on the GPU.
        num_gpu_layers: `--n-gpu-layers`; None for all on a GPU.
        num_cpu_moe: `--n-cpu-moe`.
        moves: Patterns of `--override-tensor` with their devices, which come first.
        context: `--ctx-size`; None for the context that the file states.
        ubatch: `--ubatch-size`.
        num_sequences: `--parallel`.
        type_k: `--cache-type-k`.
        type_v: `--cache-type-v`.
    """

    gpu: Gpu | None = None
    overhead_bytes: int = 0
    num_gpu_layers: int | None = None
    num_cpu_moe: int = 0
    moves: tuple[tuple[str, int], ...] = ()
    context: int | None = None
    ubatch: int = 512
    num_sequences: int = 1
    type_k: str = "f16"
    type_v: str = "f16"


def estimate_gguf(name: str, model: GgufModel, question: GgufQuestion) -> GgufEstimate:
    """Return what llama.cpp allocates for a file.

    Args:
        name: The file as the user named it.
        model: Its headers.
        question: What is asked.

    Raises:
        UsageError: llama.cpp can't cache this model in these types.
    """
    gpu, context = question.gpu, question.context or model.read_count("context_length") or 4096
    layers = question.num_gpu_layers
    layers = (ALL_LAYERS if gpu is not None else 0) if layers is None else layers
    run = GgufRun(
        _make_rule(question, num_gpu_layers=layers, num_cpu_moe=question.num_cpu_moe),
        context=context,
        ubatch=question.ubatch,
        num_sequences=question.num_sequences,
        type_k=question.type_k,
        type_v=question.type_v,
        has_gpu=gpu is not None,
    )
    _check_cache_types(model, run)
    on_gpu, on_host = list_buffers(model, run)
    budget = None if gpu is None else gpu.memory_bytes - question.overhead_bytes
    short = None
    if budget is not None and on_gpu.total is not None:
        short = max(on_gpu.total - budget, 0)
    fitting = None
    if budget is not None and on_gpu.total is not None:
        fitting = _find_fitting(model, run, question, budget=budget)
    gpu_read, host_read = _list_read_bytes(model, run, on_gpu, on_host)
    return GgufEstimate(
        model=name,
        architecture=model.architecture,
        file_bytes=sum(part.file_bytes for part in model.parts),
        context=context,
        ubatch=run.ubatch,
        num_sequences=run.num_sequences,
        type_k=run.type_k,
        type_v=run.type_v,
        flags=_write_flags(run, question, layers=layers, num_cpu_moe=question.num_cpu_moe),
        gpu=None if gpu is None else gpu.title,
        gpu_memory_bytes=None if gpu is None else gpu.memory_bytes,
        overhead_bytes=question.overhead_bytes,
        on_gpu=None if gpu is None else on_gpu,
        on_host=on_host,
        gpu_bytes=None if gpu is None else on_gpu.total,
        host_bytes=on_host.total,
        fits=None if short is None else short == 0,
        short_bytes=short,
        fitting=fitting,
        gpu_read_bytes=None if gpu is None else gpu_read,
        host_read_bytes=host_read,
        notes=tuple(_list_notes(model, has_gpu=gpu is not None)),
    )


def _check_cache_types(model: GgufModel, run: GgufRun) -> None:
    """Refuse types that llama.cpp refuses for a model.

    Raises:
        UsageError: A row does not fill blocks of a type, or a latent has two types.
    """
    sizes = read_model_sizes(model)
    if sizes is not None and sizes.latent is not None and run.type_k != run.type_v:
        raise UsageError(
            f"The cache of {model.architecture} holds one latent for keys and values, in one type.",
            hint="Give --cache-type-k and --cache-type-v the same type.",
        )
    for layer in list_caches(model) or ():
        for width, kind in ((layer.keys, run.type_k), (layer.values, run.type_v)):
            if width % TYPES_BY_NAME[kind].block:
                raise UsageError(
                    f"Rows of {width} cached numbers do not fill blocks of {kind}.",
                    hint="Choose f16.",
                )


def _make_rule(question: GgufQuestion, *, num_gpu_layers: int, num_cpu_moe: int) -> LayerRule:
    return LayerRule(num_gpu_layers, (*question.moves, *make_moves(num_cpu_moe)))


def _find_fitting(
    model: GgufModel, run: GgufRun, question: GgufQuestion, *, budget: int
) -> Fitting | None:
    """Return the flags that put most on the GPU: experts go to the host first, then layers."""
    num_layers = model.read_count("block_count") or 0
    has_experts = bool(model.read_count("expert_count"))
    most_moe = num_layers if has_experts else 0

    def try_out(layers: int, num_cpu_moe: int) -> Fitting | None:
        rule = _make_rule(question, num_gpu_layers=layers, num_cpu_moe=num_cpu_moe)
        on_gpu, on_host = list_buffers(model, replace(run, rule=rule))
        if on_gpu.total is None or on_host.total is None or on_gpu.total > budget:
            return None
        flags = _write_flags(run, question, layers=layers, num_cpu_moe=num_cpu_moe)
        return Fitting(layers, num_cpu_moe, on_gpu.total, on_host.total, flags)

    found = try_out(ALL_LAYERS, 0) or try_out(ALL_LAYERS, most_moe)
    if found is not None:
        low, high = 0, found.num_cpu_moe
        while low < high:
            middle = (low + high) // 2
            tried = try_out(ALL_LAYERS, middle)
            found, low, high = (
                (tried, low, middle) if tried is not None else (found, middle + 1, high)
            )
        return found
    low, high = 0, num_layers
    best = try_out(0, most_moe)
    while best is not None and low < high:
        middle = (low + high + 1) // 2
        tried = try_out(middle, most_moe)
        best, low, high = (tried, middle, high) if tried is not None else (best, low, middle - 1)
    return best


def _write_flags(run: GgufRun, question: GgufQuestion, *, layers: int, num_cpu_moe: int) -> str:
    flags = [f"-c {run.context}", f"-ub {run.ubatch}"]
    if run.has_gpu:
        flags.insert(0, f"-ngl {layers}")
    if num_cpu_moe:
        flags.append(f"--n-cpu-moe {num_cpu_moe}")
    for pattern, device in question.moves:
        flags.append(f"-ot '{pattern}={'CUDA0' if device == GPU else 'CPU'}'")
    if run.num_sequences > 1:
        flags.append(f"-np {run.num_sequences}")
    if (run.type_k, run.type_v) != ("f16", "f16"):
        flags += ["-fa on", f"-ctk {run.type_k}", f"-ctv {run.type_v}"]
    return " ".join(flags)


def _list_read_bytes(
    model: GgufModel, run: GgufRun, on_gpu: Buffers, on_host: Buffers
) -> Sequence[int | None]:
    """Return the weights and the cache that each device reads for a token, at full context."""
    table = count_gguf(model)
    if table.active_unknown is not None or on_gpu.cache is None or on_host.cache is None:
        return [None, None]
    experts = next((number for number in table.num_experts.values() if number), 1)
    share = (table.top_k or 1, experts)
    totals = [on_gpu.cache // run.num_sequences, on_host.cache // run.num_sequences]
    for each in place_tensors(model, run.rule, repacks=not run.has_gpu):
        size = each.tensor.num_bytes
        named = read_name(each.name)
        if each.name == "token_embd.weight":
            size //= max(each.tensor.shape[0], 1)
        elif named.component is Component.ROUTED_EXPERTS:
            size = size // share[1] * share[0] if named.is_stack else size
        totals[each.device] += size
    return totals


def _list_notes(model: GgufModel, *, has_gpu: bool) -> list[str]:
    notes = []
    if list_caches(model) is None:
        notes.append(_NO_CACHE.format(architecture=model.architecture))
    if read_model_sizes(model) is None:
        notes.append(_NO_GRAPH.format(architecture=model.architecture))
    if model.read_count("nextn_predict_layers"):
        notes.append(_MTP)
    if has_gpu:
        notes.append(_CUDA)
    notes.append(_MAPPED)
    return notes
