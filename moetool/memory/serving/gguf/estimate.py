"""An estimate of what llama.cpp allocates for a GGUF file, and what would fit on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moetool.anatomy.components import Component
from moetool.anatomy.gguf.names import read_name
from moetool.anatomy.gguf.table import count_gguf
from moetool.checkpoint.gguf.files import GgufModel
from moetool.checkpoint.gguf.types import PLAIN_TYPES, TYPES_BY_NAME
from moetool.errors import UsageError
from moetool.memory.serving.ggml.allocation.scheduler import GPU, HOST
from moetool.memory.serving.gguf.buffers import (
    Buffers,
    DeviceRules,
    GgufRun,
    choose_rules,
    has_gpu_attention,
    list_buffers,
)
from moetool.memory.serving.gguf.notes import list_notes
from moetool.memory.serving.gguf.placement import LayerRule, make_moves, place_tensors
from moetool.memory.serving.gguf.question import GgufQuestion
from moetool.memory.serving.gguf.result import Fitting, GgufEstimate
from moetool.memory.serving.gguf.sizes import list_caches, read_model_sizes

ALL_LAYERS = 999
_DEFAULT_CONTEXT = 4096


def estimate_gguf(name: str, model: GgufModel, question: GgufQuestion) -> GgufEstimate:
    """Return what llama.cpp allocates for a file.

    Args:
        name: The file as the user named it.
        model: Its headers.
        question: What is asked.

    Raises:
        UsageError: llama.cpp can't cache this model in these types.
    """
    gpu = question.gpu
    rules = choose_rules(None if gpu is None else gpu.compute_capability)
    run = _make_run(model, question)
    _check_cache_types(model, run)
    *on_gpus, on_host = list_buffers(model, run, rules)
    on_gpu = _find_fullest(on_gpus)
    budget = None if gpu is None else gpu.memory_bytes - question.overhead_bytes
    short = None
    if budget is not None and on_gpu.total is not None:
        short = max(on_gpu.total - budget, 0)
    fitting = None
    if budget is not None and on_gpu.total is not None:
        fitting = _find_fitting(model, run, question, rules, budget=budget)
    gpu_read, host_read = _list_read_bytes(model, run, on_gpus, on_host)
    flags = _write_flags(
        run, question, layers=run.rule.num_gpu_layers, num_cpu_moe=question.num_cpu_moe
    )
    return GgufEstimate(
        model=name,
        architecture=model.architecture,
        file_bytes=sum(part.file_bytes for part in model.parts),
        context=run.context,
        ubatch=run.ubatch,
        num_sequences=run.num_sequences,
        type_k=run.type_k,
        type_v=run.type_v,
        flags=flags,
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
        notes=tuple(list_notes(model, run, question)),
        has_flash_attention=run.has_flash_attention,
        num_gpus=0 if gpu is None else question.num_gpus,
        on_gpus=() if gpu is None else tuple(on_gpus),
    )


def _find_fullest(on_gpus: Sequence[Buffers]) -> Buffers:
    """Return the buffers of the GPU that holds most; if totals are unknown, most weights."""
    return max(on_gpus, key=lambda each: (each.total or 0, each.weights))


def _make_run(model: GgufModel, question: GgufQuestion) -> GgufRun:
    """Return the run that is asked for, with the flash attention that llama.cpp chooses."""
    has_gpu, layers = question.gpu is not None, question.num_gpu_layers
    if layers is None:
        layers = ALL_LAYERS if has_gpu else 0
    run = GgufRun(
        _make_rule(question, num_gpu_layers=layers, num_cpu_moe=question.num_cpu_moe),
        context=question.context or model.read_count("context_length") or _DEFAULT_CONTEXT,
        ubatch=question.ubatch,
        num_sequences=question.num_sequences,
        type_k=question.type_k,
        type_v=question.type_v,
        has_gpu=has_gpu,
    )
    is_on = question.flash_attention
    if is_on is None:
        # Where a layer is on the GPU, and its attention would not be, it is turned off.
        is_on = not has_gpu or layers == 0 or has_gpu_attention(model, run) is not False
    return replace(run, has_flash_attention=is_on)


def _check_cache_types(model: GgufModel, run: GgufRun) -> None:
    """Refuse types that llama.cpp refuses for a model.

    Raises:
        UsageError: A row does not fill blocks of a type, a latent has two types, or values are
            quantized without flash attention.
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
    if run.type_v not in PLAIN_TYPES and not run.has_flash_attention:
        raise UsageError(
            f"llama.cpp caches values in {run.type_v} with flash attention only, which is off.",
            hint="Choose f16, or leave out --flash-attn off if it is given.",
        )


def _make_rule(question: GgufQuestion, *, num_gpu_layers: int, num_cpu_moe: int) -> LayerRule:
    moves = (*question.moves, *make_moves(num_cpu_moe))
    shares = question.shares or (1.0,) * question.num_gpus
    return LayerRule(num_gpu_layers, moves, shares)


def _find_fitting(
    model: GgufModel,
    run: GgufRun,
    question: GgufQuestion,
    rules: DeviceRules,
    *,
    budget: int,
) -> Fitting | None:
    """Return the flags that put most on the GPU: experts go to the host first, then layers."""
    num_layers = model.read_count("block_count") or 0
    has_experts = bool(model.read_count("expert_count"))
    most_moe = num_layers if has_experts else 0

    def try_out(layers: int, num_cpu_moe: int) -> Fitting | None:
        rule = _make_rule(question, num_gpu_layers=layers, num_cpu_moe=num_cpu_moe)
        *on_gpus, on_host = list_buffers(model, replace(run, rule=rule), rules)
        on_gpu = _find_fullest(on_gpus)
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
        flags.append(f"-ot '{pattern}={'CPU' if device == HOST else f'CUDA{device}'}'")
    if question.shares:
        flags.append(f"-ts {','.join(f'{share:g}' for share in question.shares)}")
    if run.num_sequences > 1:
        flags.append(f"-np {run.num_sequences}")
    are_other = (run.type_k, run.type_v) != ("f16", "f16")
    if question.flash_attention is not None or are_other:
        flags.append(f"-fa {'on' if run.has_flash_attention else 'off'}")
    if are_other:
        flags += [f"-ctk {run.type_k}", f"-ctv {run.type_v}"]
    return " ".join(flags)


def _list_read_bytes(
    model: GgufModel, run: GgufRun, on_gpus: Sequence[Buffers], on_host: Buffers
) -> Sequence[int | None]:
    """Return the weights and the cache that GPUs and the host read for a token, at full context."""
    table = count_gguf(model)
    caches = [each.cache for each in on_gpus if each.cache is not None]
    if table.active_unknown is not None or len(caches) < len(on_gpus) or on_host.cache is None:
        return [None, None]
    experts = next((number for number in table.num_experts.values() if number), 1)
    share = (table.top_k or 1, experts)
    totals = [sum(caches) // run.num_sequences, on_host.cache // run.num_sequences]
    for each in place_tensors(model, run.rule, repacks=not run.has_gpu):
        size = each.tensor.num_bytes
        named = read_name(each.name)
        if each.name == "token_embd.weight":
            size //= max(each.tensor.shape[0], 1)
        elif named.component is Component.ROUTED_EXPERTS:
            size = size // share[1] * share[0] if named.is_stack else size
        totals[HOST if each.device == HOST else GPU] += size
    return totals
