"""Files of other tools, written from known routing by the rules of each format."""

from __future__ import annotations

import base64
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.interchange.imports.known import Known, Prompt

# SGLang's recorder has eight columns, whatever the model's top-k.
_SGLANG_COLUMNS = 8


def encode_raw(prompt: Prompt, *, start: int = 0) -> str:
    """Return SGLang's base64 of raw int32."""
    return base64.b64encode(prompt.experts[start:].astype("<i4").tobytes()).decode()


def encode_npy(array: NDArray[Any]) -> str:
    """Return vLLM's base64 of an .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return base64.b64encode(stream.getvalue()).decode()


def sglang_response(prompt: Prompt, *, start: int = 0, has_ids: bool = True) -> dict[str, Any]:
    """Return a response of SGLang's /generate, with the prompt's log probabilities for its ids."""
    num = prompt.num_prompt_tokens
    meta: dict[str, Any] = {
        "id": prompt.prompt_id,
        "prompt_tokens": num,
        "completion_tokens": len(prompt.ids) - num,
        "routed_experts": encode_raw(prompt, start=start),
    }
    if has_ids:
        meta["input_token_logprobs"] = [[-1.5, int(each), None] for each in prompt.ids[:num]]
    return {"text": " x", "output_ids": prompt.ids[num:].tolist(), "meta_info": meta}


def vllm_response(
    prompt: Prompt, *, start: int = 0, has_ids: bool = True, dtype: str = "u1"
) -> dict[str, Any]:
    """Return a response of vLLM's /v1/completions."""
    num = prompt.num_prompt_tokens
    choice: dict[str, Any] = {
        "index": 0,
        "routed_experts": encode_npy(prompt.experts[start:].astype(dtype)),
    }
    if has_ids:
        choice["prompt_token_ids"] = prompt.ids[:num].tolist()
        choice["token_ids"] = prompt.ids[num:].tolist()
    return {"id": prompt.prompt_id, "model": "m", "choices": [choice]}


def old_vllm_response(known: Known, prompt: Prompt) -> dict[str, Any]:
    """Return a response of vLLM 0.21: two arrays, with routed layers only."""
    num = prompt.num_prompt_tokens
    experts = prompt.experts[:, list(known.routed)].astype("i2")
    return {
        "id": prompt.prompt_id,
        "prompt_routed_experts": encode_npy(experts[:num]),
        "choices": [
            {
                "prompt_token_ids": prompt.ids[:num].tolist(),
                "token_ids": prompt.ids[num:].tolist(),
                "routed_experts": encode_npy(experts[num:]),
            }
        ],
    }


def sglang_record(
    known: Known,
    rows: list[tuple[Prompt, int, int]],
    *,
    forward_pass: int,
    mode: int,
    rank: int = 0,
    physical_of: NDArray[np.int64] | None = None,
    num_padded: int = 0,
) -> dict[str, Any]:
    """Return a record of SGLang's per_token mode.

    Args:
        known: The model.
        rows: Of each sequence of the pass: the prompt, its first position and the one after its last.
        forward_pass: Number of the pass.
        mode: SGLang's ForwardMode.
        rank: Of the process.
        physical_of: Physical expert by layer and logical one.
        num_padded: Tokens at the end that pad the batch.
    """
    import torch

    num_tokens = sum(stop - start for _, start, stop in rows) + num_padded
    ids = np.full((known.num_layers, num_tokens, _SGLANG_COLUMNS), -1, dtype=np.int32)
    tokens: list[int] = []
    positions: list[int] = []
    for prompt, start, stop in rows:
        for position in range(start, stop):
            for layer in known.routed:
                experts = prompt.experts[position, layer]
                chosen = experts if physical_of is None else physical_of[layer][experts]
                ids[layer, len(tokens), : known.top_k] = chosen
            tokens.append(int(prompt.ids[position]))
            positions.append(position)
    return {
        "forward_pass_id": forward_pass,
        "rank": rank,
        "gatherer_key": "primary",
        "input_ids": tokens + [0] * num_padded,
        "positions": positions + [0] * num_padded,
        "extend_seq_lens": None if mode == 2 else [stop - start for _, start, stop in rows],
        "forward_mode": mode,
        "topk_ids_of_layer": torch.from_numpy(ids),
        "misc_objects": [],
    }


def save_dump(path: Path, records: list[dict[str, Any]], logical_of: NDArray[np.int64]) -> Path:
    """Write a dump of SGLang's recorder by pass or by token."""
    import torch

    content = {"records": records, "last_physical_to_logical_map": torch.from_numpy(logical_of)}
    torch.save(content, path)
    return path


def place_experts(known: Known, *, num_redundant: int, seed: int = 0) -> NDArray[np.int64]:
    """Return a random placement: the logical expert of each layer and physical one."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(known.num_layers):
        copies = random.integers(0, known.num_experts, num_redundant)
        rows.append(random.permutation(np.concatenate([np.arange(known.num_experts), copies])))
    return np.array(rows, dtype=np.int64)


def invert_placement(logical_of: NDArray[np.int64], num_experts: int) -> NDArray[np.int64]:
    """Return one physical expert of each layer and logical one: the last copy."""
    physical = np.zeros((len(logical_of), num_experts), dtype=np.int64)
    for layer, row in enumerate(logical_of):
        for slot, expert in enumerate(row):
            physical[layer, expert] = slot
    return physical


def megatron_lines(
    known: Known, prompt: Prompt, *, step: int, layers: tuple[int, ...], offset: int = 0
) -> list[dict[str, Any]]:
    """Return the lines of one micro-batch, whose tokens are those of a prompt."""
    return [
        {
            "step": step,
            "stage": "pre_dispatch",
            "block": "decoder",
            "layer": layer - offset,
            "rank": 0,
            "num_tokens": prompt.num_rows,
            "topk": known.top_k,
            "top_indices": np.sort(prompt.experts[:, layer], axis=1).tolist(),
        }
        for layer in layers
    ]


def write_lines(path: Path, values: list[dict[str, Any]]) -> Path:
    """Write JSON objects, one on each line."""
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values))
    return path


def write_gguf(
    path: Path, metadata: dict[str, Any], tensors: dict[str, NDArray[np.float32]]
) -> Path:
    """Write a GGUF file of version 3 with texts, uint32 and lists of texts, and float32 tensors."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += text(key)
        if isinstance(value, str):
            head += struct.pack("<I", 8) + text(value)
        elif isinstance(value, list):
            head += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        else:
            head += struct.pack("<II", 4, value)
    data = b""
    for name, tensor in tensors.items():
        data += b"\0" * (-len(data) % 32)
        head += text(name) + struct.pack("<I", tensor.ndim)
        head += struct.pack(f"<{tensor.ndim}Q", *reversed(tensor.shape))
        head += struct.pack("<IQ", 0, len(data))
        data += tensor.astype("<f4").tobytes()
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def write_imatrix(
    path: Path,
    counts: dict[int, NDArray[np.float32]],
    *,
    num_tokens: int | None = None,
    kinds: tuple[str, ...] = ("gate", "up", "down"),
) -> Path:
    """Write an importance matrix with the same counts in the tensors of each layer."""
    tensors: dict[str, NDArray[np.float32]] = {}
    for layer, of_layer in counts.items():
        for kind in kinds:
            name = f"blk.{layer}.ffn_{kind}_exps.weight"
            tensors[f"{name}.in_sum2"] = np.ones((len(of_layer), 4), dtype=np.float32)
            tensors[f"{name}.counts"] = of_layer[:, None]
        if num_tokens is not None:
            name = f"blk.{layer}.ffn_gate_inp.weight"
            tensors[f"{name}.counts"] = np.array([[num_tokens]], dtype=np.float32)
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": ["wiki.txt"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 512,
    }
    return write_gguf(path, metadata, tensors)
