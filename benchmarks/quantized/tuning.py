"""Time the decode kernels with several sizes of a program.

python -m benchmarks.quantized.tuning [--seconds 60]
"""

from __future__ import annotations

import argparse
import itertools
import time

import torch

from moetool.quantizing.kernels import launch
from moetool.quantizing.kinds import Quantization
from moetool.quantizing.packing import ExpertMatrix, Packing

# Name, experts, outputs, inputs, tokens, experts of each.
_SHAPES = (
    ("Mixtral up, batch 1", 8, 28672, 4096, 1, 2),
    ("Mixtral up, batch 8", 8, 28672, 4096, 8, 2),
    ("Mixtral down, batch 8", 8, 4096, 14336, 8, 2),
    ("OLMoE up, batch 1", 64, 2048, 2048, 1, 8),
    ("OLMoE down, batch 8", 64, 2048, 1024, 8, 8),
    ("Qwen3 up, batch 8", 128, 1536, 2048, 8, 8),
    ("Qwen3 down, batch 1", 128, 2048, 768, 1, 8),
)
_SIZES = tuple(itertools.product((4, 8, 16, 32), (128, 256, 512), (2, 4, 8)))
_NUM_RUNS = 20


def main() -> None:
    """Print the times of a few programs for each shape, the fastest first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="no shape begins after them")
    end = time.monotonic() + parser.parse_args().seconds
    packing = Packing(Quantization.NF4)
    for name, num_experts, out_features, in_features, num_tokens, top_k in _SHAPES:
        if time.monotonic() > end:
            return
        matrix = ExpertMatrix("w", num_experts, out_features, in_features, is_transposed=False)
        tensors = {
            key: torch.randint(0, 255, shape, device="cuda", dtype=torch.uint8)
            if dtype is torch.uint8
            else torch.rand(shape, device="cuda", dtype=dtype)
            for key, (shape, dtype) in packing.list_tensors(matrix).items()
        }
        rows = torch.randn(num_tokens, in_features, device="cuda", dtype=torch.bfloat16)
        ids = torch.rand(num_tokens, num_experts, device="cuda").argsort(1)[:, :top_k].reshape(-1)
        times = {}
        for tile, span, warps in _SIZES:
            launch._TILE, launch._SPAN, launch._NUM_WARPS = tile, span, warps
            launch._prepare.cache_clear()
            try:
                times[tile, span, warps] = _time(rows, ids, tensors, matrix, packing)
            except Exception as error:  # noqa: BLE001 - one size must not end the others
                print(f"{name} {tile, span, warps}: {error}", flush=True)
        hit = len(set(ids.tolist())) * matrix.num_weights * 0.5625
        best = sorted(times.items(), key=lambda item: item[1])
        shown = ", ".join(f"{size} {t * 1e3:.0f} us" for size, t in [*best[:4], best[-1]])
        print(f"{name}: reading {hit / 1e6:.0f} MB; {shown}", flush=True)


def _time(
    rows: torch.Tensor,
    ids: torch.Tensor,
    tensors: dict[str, torch.Tensor],
    matrix: ExpertMatrix,
    packing: Packing,
) -> float:
    """Return milliseconds of one call."""
    for _ in range(3):
        launch.multiply_each(rows, ids, tensors, matrix, packing, bias=None)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(_NUM_RUNS):
        launch.multiply_each(rows, ids, tensors, matrix, packing, bias=None)
    stop.record()
    torch.cuda.synchronize()
    elapsed: float = start.elapsed_time(stop)
    return elapsed / _NUM_RUNS


if __name__ == "__main__":
    main()
