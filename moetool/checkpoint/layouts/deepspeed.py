"""Checkpoints of DeepSpeed-MoE: a file for each expert, and one for everything else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from moetool.checkpoint.headers.tensor_headers import TensorHeaders, join_headers
from moetool.checkpoint.headers.weight_files import list_some
from moetool.checkpoint.layouts.found import FoundCheckpoint
from moetool.checkpoint.layouts.kinds import DEEPSPEED, list_names
from moetool.checkpoint.pickled.torch_file import read_torch_file
from moetool.errors import InputError

_EXPERT_FILE = re.compile(r"(?:layer_(\d+)_)?expert_(\d+)_mp_rank_(\d+)_model_states\.pt")
_OTHER_FILE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_SPLIT_FILE = re.compile(r"(zero|bf16_zero)_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_EXPERT = re.compile(r"deepspeed_experts\.(\d+)\.")


def read_deepspeed(folder: Path) -> FoundCheckpoint:
    """Return the tensors of a checkpoint of DeepSpeed-MoE.

    Raises:
        InputError: A file is missing or broken, or tensors are split among several GPUs.
    """
    names = list_names(folder)
    experts = [name for name in names if _EXPERT_FILE.fullmatch(name)]
    others = [name for name in names if _OTHER_FILE.fullmatch(name)]
    _check_whole(names, [*experts, *others], folder=folder)
    _check_complete(experts, folder=folder)
    if not others:
        raise InputError(
            f"'{folder}' holds the experts of DeepSpeed-MoE, and not the rest of the model.",
            hint="Copy mp_rank_00_model_states.pt too.",
        )
    parts = [read_torch_file(folder / name, file=name).headers for name in (*others, *experts)]
    for part in parts[len(others) :]:
        _check_expert(part, folder=folder)
    empty = [tensor.name for part in parts for tensor in part.tensors if not tensor.num_elements]
    if empty:
        raise _split(folder, seen=f"no elements in {list_some(empty)}")
    headers = join_headers(parts, weight_map=None, label=str(folder))
    return FoundCheckpoint(DEEPSPEED, headers)


def _check_whole(names: Iterable[str], held: Iterable[str], *, folder: Path) -> None:
    """Refuse tensors that are split among the GPUs of tensor parallelism or ZeRO."""
    ranks = {found[1] for name in held for found in [re.search(r"mp_rank_(\d+)", name)] if found}
    if len(ranks) > 1:
        raise _split(folder, seen=f"{len(ranks)} ranks")
    zero = [name for name in names if _SPLIT_FILE.fullmatch(name)]
    if zero:
        raise _split(folder, seen=list_some(zero))


def _split(folder: Path, *, seen: str) -> InputError:
    return InputError(
        f"'{folder}' holds {DEEPSPEED.name} whose tensors are split among GPUs.",
        hint="Join them with DeepSpeed's zero_to_fp32.py, or save without tensor parallelism.",
        facts=[f"seen: {seen}"],
    )


def _check_expert(part: TensorHeaders, *, folder: Path) -> None:
    """Check that a file of one expert holds the tensors of that expert, in one layer."""
    (file,) = part.file_bytes
    found = _EXPERT_FILE.fullmatch(file)
    numbers = {each[1] for t in part.tensors for each in [_EXPERT.search(t.name)] if each}
    if found is None or numbers != {found[2]}:
        raise InputError(
            f"'{folder / file}' does not hold the tensors of the expert that it is named by.",
            hint="Copy the checkpoint again.",
            facts=[f"seen: {list_some([tensor.name for tensor in part.tensors])}"],
        )


def _check_complete(experts: Iterable[str], *, folder: Path) -> None:
    """Check that each layer has files of the same experts, numbered from 0."""
    held: dict[str, set[int]] = {}
    for name in experts:
        found = _EXPERT_FILE.fullmatch(name)
        assert found is not None
        held.setdefault(found[1] or "", set()).add(int(found[2]))
    lacking = [
        f"layer_{layer}" for layer, numbers in held.items() if numbers != set(range(len(numbers)))
    ]
    if lacking:
        raise InputError(
            f"'{folder}' lacks experts of {len(lacking)} layers.",
            hint="Copy all files of the checkpoint.",
            facts=[f"seen: gaps in {list_some(lacking)}"],
        )
