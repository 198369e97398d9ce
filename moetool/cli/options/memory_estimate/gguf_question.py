"""Read what `moetool memory-estimate` is asked of GGUF files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from moetool.cli.options.memory_estimate.gguf import DEFAULT_UBATCH, GgufValues
from moetool.errors import UsageError
from moetool.wording import number_of

if TYPE_CHECKING:
    from moetool.memory.scenario import Scenario
    from moetool.memory.serving.gguf.question import GgufQuestion

_MODES = {"on": True, "off": False, "auto": None}
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_GPU_NAME = re.compile(r"(gpu|cuda)(?P<number>\d{0,3})", re.IGNORECASE)
# llama.cpp's CUDA devices.
_MOST_GPUS = 16


def read_question(
    values: GgufValues,
    *,
    gpu: str | None,
    overhead: str | None,
    scenarios: Sequence[Scenario],
) -> GgufQuestion:
    """Return what is asked of GGUF files.

    Raises:
        UsageError: A value has no meaning.
    """
    from moetool.catalogue.gpus import parse_memory
    from moetool.memory.machine.gpu_group import ParallelWay, take_group
    from moetool.memory.machine.local_gpu import take_gpu
    from moetool.memory.serving.gguf.question import GgufQuestion

    if len(scenarios) != 1:
        raise UsageError(
            "GGUF files are estimated for one number of sequences at a time.",
            hint="Name one --batch-size.",
        )
    types = [values.type_k or "f16", values.type_v or "f16"]
    for each in types:
        if each not in _CACHE_TYPES:
            raise UsageError(
                f"'{each}' is not a type that llama.cpp caches in.",
                hint=f"Name one of {', '.join(_CACHE_TYPES)}.",
            )
    mode = values.flash_attention or "auto"
    if mode not in _MODES:
        raise UsageError(
            f"'{mode}' is not a mode of flash attention.", hint="Name on, off or auto."
        )
    if gpu is None and (values.num_gpu_layers or values.num_cpu_moe or values.moves):
        raise UsageError(
            "Layers and tensors are divided between the CPU and a GPU, and no GPU is named.",
            hint="Name a GPU with --gpu, such as rtx-4090 or 24GiB.",
        )
    group = take_group(gpu, None, num_nodes=1, default=ParallelWay.DEVICE_MAP)
    kind, num_gpus = None if gpu is None else take_gpu(gpu) if group is None else group.gpu, 1
    if group is not None:
        num_gpus = group.num_gpus
    if num_gpus > _MOST_GPUS:
        raise UsageError(
            f"llama.cpp uses {_MOST_GPUS} GPUs at most, and {num_gpus} are named.",
            hint=f"Name {_MOST_GPUS} or fewer.",
        )
    return GgufQuestion(
        gpu=kind,
        num_gpus=num_gpus,
        shares=_read_shares(values.shares, num_gpus=num_gpus),
        overhead_bytes=0 if overhead is None else parse_memory(overhead),
        num_gpu_layers=values.num_gpu_layers,
        num_cpu_moe=values.num_cpu_moe or 0,
        moves=_read_moves(values.moves, num_gpus=num_gpus),
        context=values.context,
        ubatch=values.ubatch or DEFAULT_UBATCH,
        num_sequences=scenarios[0].batch_size,
        type_k=types[0],
        type_v=types[1],
        flash_attention=_MODES[mode],
    )


def _read_shares(text: str | None, *, num_gpus: int) -> tuple[float, ...]:
    """Return the part of each GPU; nothing for equal ones."""
    if text is None:
        return ()
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != num_gpus or not all(0 <= share < inf for share in shares) or not any(shares):
        raise UsageError(
            f"'{text}' is not a part for each of {number_of(num_gpus, 'GPU')}.",
            hint="Name several GPUs, and a part for each: --gpu 2xrtx-3090 --tensor-split 3,1.",
        )
    return shares


def _read_moves(text: str | None, *, num_gpus: int) -> tuple[tuple[str, int], ...]:
    """Return the patterns of tensors' names, each with its device."""
    from moetool.memory.serving.ggml.allocation.scheduler import HOST

    moves = []
    for part in (text or "").split(",") if text else ():
        pattern, equals, device = part.rpartition("=")
        named = _GPU_NAME.fullmatch(device)
        number = 0 if named is None else int(named["number"] or 0)
        is_gpu = named is not None and number < num_gpus
        try:
            re.compile(pattern)
        except re.error:
            equals = ""
        if not equals or not pattern or not (is_gpu or device.upper() == "CPU"):
            raise UsageError(
                f"'{part}' is not a pattern and a device.",
                hint="Write --override-tensor 'exps=CPU'.",
            )
        moves.append((pattern, number if is_gpu else HOST))
    return tuple(moves)
