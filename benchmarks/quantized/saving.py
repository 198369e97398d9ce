"""Peak memory and speed of `moetool quantize` on the CPU, for checkpoints of several lengths.

Each checkpoint has Mixtral's proportions and random weights, and is quantized in a new process. What
the process had before it began to quantize is subtracted. Linux only.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HIDDEN, INNER, NUM_EXPERTS = 1024, 3584, 8
NUM_LAYERS = (2, 6)
FORMATS: tuple[tuple[str, bool], ...] = (("nf4", False), ("nf4", True), ("int8", False))
LAYER_BYTES = NUM_EXPERTS * 3 * HIDDEN * INNER * 2


def write_checkpoint(folder: Path, num_layers: int) -> None:
    """Write a checkpoint in bfloat16, a file for each layer."""
    import torch
    from safetensors.torch import save_file
    from transformers import MixtralConfig

    config = MixtralConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_local_experts=NUM_EXPERTS,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=1024,
        dtype="bfloat16",
    )
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(folder)
    shapes = [_list_layer(number) for number in range(num_layers)]
    shapes.append(
        {
            "model.embed_tokens.weight": (1024, HIDDEN),
            "model.norm.weight": (HIDDEN,),
            "lm_head.weight": (1024, HIDDEN),
        }
    )
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shapes):
        file = f"model-{number + 1:05}-of-{len(shapes):05}.safetensors"
        tensors = {name: torch.randn(shape).bfloat16() for name, shape in names.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _list_layer(number: int) -> dict[str, tuple[int, ...]]:
    layer = f"model.layers.{number}"
    heads = {"q_proj": HIDDEN, "k_proj": HIDDEN // 4, "v_proj": HIDDEN // 4, "o_proj": HIDDEN}
    shapes: dict[str, tuple[int, ...]] = {
        f"{layer}.self_attn.{name}.weight": (width, HIDDEN) for name, width in heads.items()
    }
    shapes[f"{layer}.block_sparse_moe.gate.weight"] = (NUM_EXPERTS, HIDDEN)
    shapes[f"{layer}.input_layernorm.weight"] = (HIDDEN,)
    shapes[f"{layer}.post_attention_layernorm.weight"] = (HIDDEN,)
    for expert in range(NUM_EXPERTS):
        stem = f"{layer}.block_sparse_moe.experts.{expert}"
        shapes |= {f"{stem}.w1.weight": (INNER, HIDDEN), f"{stem}.w3.weight": (INNER, HIDDEN)}
        shapes[f"{stem}.w2.weight"] = (HIDDEN, INNER)
    return shapes


def quantize(source: str, target: str, quantization: str, is_double: bool) -> dict[str, Any]:
    """Return the growth of this process's peak memory in bytes, and the time."""
    from moetool import quantize_checkpoint

    # So that libraries are loaded.
    quantize_checkpoint("demo", f"{target}-demo", quantization)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _read("VmRSS")
    started = time.perf_counter()
    written = quantize_checkpoint(source, target, quantization, double_quant=is_double)
    return {
        "growth_bytes": _read("VmHWM") - before,
        "seconds": time.perf_counter() - started,
        "tensor_bytes": written.tensor_bytes,
        "source_bytes": written.source_tensor_bytes,
    }


def _read(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=list(NUM_LAYERS))
    options = parser.parse_args()
    print(f"layer: {LAYER_BYTES / 2**20:.0f} MiB of experts in bfloat16")
    print("| format | layers | files | written | peak above the start | in layers | MB/s |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for num_layers in options.layers:
        with tempfile.TemporaryDirectory() as place:
            source = Path(place, "source")
            source.mkdir()
            write_checkpoint(source, num_layers)
            for number, (quantization, is_double) in enumerate(FORMATS):
                arguments = (str(source), str(Path(place, str(number))), quantization, is_double)
                code = (
                    "import json; from benchmarks.quantized.saving import quantize; "
                    f"print(json.dumps(quantize(*{arguments!r})))"
                )
                run = subprocess.run(
                    [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE
                )
                seen = json.loads(run.stdout.splitlines()[-1])
                name = f"{quantization}{', double' if is_double else ''}"
                growth = seen["growth_bytes"]
                print(
                    f"| {name} | {num_layers} | {seen['source_bytes'] / 2**20:.0f} MiB "
                    f"| {seen['tensor_bytes'] / 2**20:.0f} MiB | {growth / 2**20:.0f} MiB "
                    f"| {growth / LAYER_BYTES:.2f} "
                    f"| {seen['source_bytes'] / seen['seconds'] / 1e6:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
