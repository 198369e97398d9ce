"""Options about GGUF files, by llama.cpp's names, and the question that they make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from moetool.catalogue.gpus import Gpu, parse_memory
from moetool.choices import take_count, take_text
from moetool.errors import UsageError
from moetool.memory.machine.gpu_group import ParallelWay, take_group
from moetool.memory.machine.local_gpu import take_gpu
from moetool.memory.scenario import Scenario
from moetool.memory.serving.ggml.allocation.scheduler import HOST
from moetool.memory.serving.gguf.question import GgufQuestion
from moetool.wording import number_of

_MODES = {"on": True, "off": False, "auto": None}
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_GPU_NAME = re.compile(r"(gpu|cuda)(?P<number>\d{0,3})", re.IGNORECASE)
# llama.cpp's CUDA devices.
_MOST_GPUS = 16
# llama.cpp's numbers are of 32 bits.
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class GgufOptions:
    """Options about GGUF files, by their names on the command line; None if they are not given.

    See `GgufQuestion` for their meaning. Of other models, `engine_overhead` is a setting of engines.
    """

    n_gpu_layers: int | None = None
    n_cpu_moe: int | None = None
    override_tensor: str | None = None
    ctx_size: int | None = None
    ubatch_size: int | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    flash_attn: str | None = None
    tensor_split: str | None = None
    engine_overhead: str | None = None

    def refuse(self) -> None:
        """Refuse them for models that are not GGUF files.

        Raises:
            UsageError: One of them is given.
        """
        if any(value is not None for value in vars(self).values()):
            raise UsageError(
                "An option about GGUF files is given, and no GGUF file is named.",
                hint="Name a GGUF file. A checkpoint takes --prompt-tokens, --cache-dtype and "
                "--engine llama.cpp.",
            )


def refuse_foreign(
    common: Scenario, others: Sequence[object], *, flags: Sequence[object] = ()
) -> None:
    """Refuse options that llama.cpp doesn't have.

    Args:
        common: The options of a run of transformers.
        others: Further options that have no value by default.
        flags: Further options that are off by default.

    Raises:
        UsageError: One of them is given.
    """
    is_plain = common == Scenario(batch_size=common.batch_size)
    if not is_plain or any(flags) or any(value is not None for value in others):
        raise UsageError(
            "An option is given that llama.cpp doesn't have: GGUF files take --gpu, --batch-size, "
            "--engine-overhead and those of the panel 'GGUF files'.",
            hint="Leave out all others.",
        )


def make_question(
    options: GgufOptions, *, gpu: str | Gpu | None, num_sequences: int
) -> GgufQuestion:
    """Return what is asked of GGUF files.

    Args:
        options: Those about GGUF files.
        gpu: The GPU, or several of a kind as in `2xrtx-3090`.
        num_sequences: Sequences at once.

    Raises:
        UsageError: A value has no meaning.
    """
    types = [_take_type(each or "f16") for each in (options.cache_type_k, options.cache_type_v)]
    mode = take_text(options.flash_attn or "auto", name="mode of flash attention")
    if mode not in _MODES:
        raise UsageError(
            f"'{mode}' is not a mode of flash attention.", hint="Name on, off or auto."
        )
    if gpu is None and (options.n_gpu_layers or options.n_cpu_moe or options.override_tensor):
        raise UsageError(
            "Layers and tensors are divided between the CPU and a GPU, and no GPU is named.",
            hint="Name a GPU with --gpu, such as rtx-4090 or 24GiB.",
        )
    kind, num_gpus = _take_gpus(gpu)
    overhead = options.engine_overhead
    num_cpu_moe = _take_number(options.n_cpu_moe, name="number of layers on the CPU")
    ubatch = _take_number(options.ubatch_size, name="size of a micro-batch", smallest=1)
    return GgufQuestion(
        gpu=kind,
        overhead_bytes=0
        if overhead is None
        else parse_memory(take_text(overhead, name="overhead")),
        num_gpu_layers=_take_number(options.n_gpu_layers, name="number of layers on the GPU"),
        num_cpu_moe=num_cpu_moe or 0,
        moves=_read_moves(options.override_tensor, num_gpus=num_gpus),
        context=_take_number(options.ctx_size, name="size of the context", smallest=1),
        ubatch=ubatch or GgufQuestion.ubatch,
        num_sequences=num_sequences,
        type_k=types[0],
        type_v=types[1],
        flash_attention=_MODES[mode],
        num_gpus=num_gpus,
        shares=_read_shares(options.tensor_split, num_gpus=num_gpus),
    )


def _take_number(value: object, *, name: str, smallest: int = 0) -> int | None:
    return take_count(value, name=name, smallest=smallest, largest=_LARGEST, is_optional=True)


def _take_type(name: object) -> str:
    if name not in _CACHE_TYPES:
        raise UsageError(
            f"'{name}' is not a type that llama.cpp caches in.",
            hint=f"Name one of {', '.join(_CACHE_TYPES)}.",
        )
    return str(name)


def _take_gpus(gpu: str | Gpu | None) -> tuple[Gpu | None, int]:
    """Return the kind of the GPUs, and their number."""
    group = take_group(gpu, None, num_nodes=1, default=ParallelWay.DEVICE_MAP)
    if group is None:
        named = gpu if gpu is None or isinstance(gpu, Gpu) else take_gpu(take_text(gpu, name="GPU"))
        return named, 1
    if group.num_gpus > _MOST_GPUS:
        raise UsageError(
            f"llama.cpp uses {_MOST_GPUS} GPUs at most, and {group.num_gpus} are named.",
            hint=f"Name {_MOST_GPUS} or fewer.",
        )
    return group.gpu, group.num_gpus


def _read_shares(text: str | None, *, num_gpus: int) -> tuple[float, ...]:
    """Return the part of each GPU; nothing for equal ones."""
    if text is None:
        return ()
    try:
        shares = tuple(float(part) for part in take_text(text, name="split").split(","))
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
    moves = []
    for part in take_text(text, name="pattern of tensors").split(",") if text else ():
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
