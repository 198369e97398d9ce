"""Packed experts run on the meta device as on a GPU: what they make, and for how long."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from moetool.quantizing import experts as running
from moetool.quantizing import unpacking
from moetool.quantizing.kinds import Quantization
from moetool.quantizing.layout import find_matrices
from moetool.quantizing.on_meta.experts import pack_on_meta
from moetool.quantizing.packing import Packing
from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.timeline import Origins
from moetool.simulation.meta.known_values import KnownValues
from moetool.simulation.meta.meta_kernels import MetaKernels
from tests.simulation.skeletons import build_skeleton_of
from tests.tiny_models import build_config

NF4, INT8 = Packing(Quantization.NF4), Packing(Quantization.INT8)
NESTED = Packing(Quantization.NF4, is_double_quantized=True)
NUM_EXPERTS, TOP_K = 8, 2
# Bytes of one expert's matrices in bfloat16, and of its scales in float32.
UP, DOWN, UP_SCALES = 256 * 64 * 2, 64 * 128 * 2, 256 * 64 // 64 * 4
# Three experts in one chunk.
CHUNK_BYTES = 3 * UP


def pack(packing: Packing, **overrides: Any) -> Any:
    options = {"intermediate_size": 128, **overrides}
    model: Any = build_skeleton_of(build_config("mixtral", **options)).bfloat16()
    module = model.model.layers[0].mlp.experts
    pack_on_meta(module, find_matrices(module) or (), packing)
    return module


def record(module: nn.Module, num_tokens: int) -> list[tuple[str, int]]:
    """Return what is made and freed while experts run in turns, by operation; frees are negative."""
    origins = Origins()
    known = KnownValues(token_id=0)
    holder = nn.Sequential(module)
    with (
        torch.inference_mode(),
        MetaKernels(),
        known,
        AllocationRecorder(holder, origins=origins, workspace_bytes=8) as recorder,
    ):
        x = torch.empty((num_tokens, 64), dtype=torch.bfloat16, device="meta")
        ids = torch.empty((num_tokens, TOP_K), dtype=torch.long, device="meta")
        known.know(ids, torch.arange(ids.numel()).view(ids.shape) % NUM_EXPERTS)
        weights = torch.empty((num_tokens, TOP_K), dtype=torch.bfloat16, device="meta")
        first = len(recorder.events)
        result = module(x, ids, weights)
        assert result.shape == x.shape
        events = [e for e in recorder.events[first:] if e.block != recorder.workspace_block]
    born = {e.block: e for e in events if e.num_bytes >= 0}
    return [
        (origins.found[born[e.block].origin].operation, e.num_bytes)
        if e.num_bytes >= 0
        else (origins.found[born[e.block].origin].operation, -born[e.block].num_bytes)
        for e in events
        if e.block in born
    ]


# For each product, where codes or scales are looked up.
TABLES = {NF4: [16 * 4], NESTED: [16 * 4, 256 * 4], INT8: []}
NUM_ROWS = 3 * TOP_K


@pytest.mark.parametrize("packing", TABLES)
def test_few_tokens_are_multiplied_by_two_kernels(packing: Packing) -> None:
    made = [num_bytes for _, num_bytes in record(pack(packing), 3) if num_bytes > 0]

    tables = TABLES[packing]
    # Gated products of all experts, and each token's sum.
    assert made == [NUM_ROWS * 128 * 2, *tables, 3 * 64 * 2, *tables]


@pytest.mark.parametrize("packing", TABLES)
def test_an_activation_that_hooks_wait_for_runs_by_itself(packing: Packing) -> None:
    module = pack(packing)
    module.act_fn.register_forward_hook(lambda *_: None)

    made = [num_bytes for _, num_bytes in record(module, 3) if num_bytes > 0]

    tables = TABLES[packing]
    assert made == [
        *(NUM_ROWS * 256 * 2, *tables),
        # The activation, and its product with the other half.
        *(NUM_ROWS * 128 * 2, NUM_ROWS * 128 * 2),
        *(NUM_ROWS * 64 * 2, *tables),
        # Summed up by their weights.
        3 * 64 * 2,
    ]


def test_many_tokens_are_multiplied_with_chunks_of_matrices_one_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "CHUNK_BYTES", (CHUNK_BYTES, CHUNK_BYTES))

    chunks = [event for event in record(pack(NF4), 40) if event[0] == "dequantize_4bit"]

    sizes = [count * num_bytes for count in (3, 3, 2) for num_bytes in (UP, DOWN)]
    assert [num_bytes for _, num_bytes in chunks] == [
        signed for size in sizes for signed in (size, -size)
    ]


def test_nested_scales_are_dequantized_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "CHUNK_BYTES", (CHUNK_BYTES, CHUNK_BYTES))

    scales = [event for event in record(pack(NESTED), 40) if event[0] == "embedding"]

    sizes = [count * UP_SCALES // part for count in (3, 3, 2) for part in (1, 2)]
    assert [num_bytes for _, num_bytes in scales] == [
        signed for size in sizes for signed in (size, -size)
    ]


def test_int8_is_dequantized_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "CHUNK_BYTES", (CHUNK_BYTES, CHUNK_BYTES))

    events = record(pack(INT8), 40)

    assert max(num_bytes for _, num_bytes in events) == 3 * UP


def test_widths_that_cut_blocks_are_multiplied_with_matrices_however_few_tokens() -> None:
    events = record(pack(NF4, intermediate_size=96), 3)

    assert [num_bytes for name, num_bytes in events if name == "dequantize_4bit"] != []


def test_neither_bitsandbytes_nor_triton_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.functional", "triton"):
        monkeypatch.setitem(sys.modules, name, None)

    for packing in (NF4, NESTED, INT8):
        for num_tokens in (3, 40):
            record(pack(packing), num_tokens)


def test_kernels_are_back_in_place_afterwards() -> None:
    record(pack(NF4), 3)

    assert not unpacking.is_on_gpu(torch.empty(1, device="meta"))
