"""Compare moetool's buffers for GGUF files with those that llama.cpp printed, without llama.cpp.

python -m benchmarks.gguf.compare_buffers
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moetool.checkpoint.gguf.files import GgufModel, open_gguf
from moetool.memory.serving.gguf.buffers import (
    CUDA,
    Buffers,
    DeviceRules,
    GgufRun,
    list_buffers,
)
from moetool.memory.serving.gguf.placement import LayerRule, make_moves

_MEASURED = Path(__file__).parent / "measured"
# Runs on a CPU with the stand-in for a GPU, and runs on a GPU with CUDA.
STAND_IN, WITH_CUDA = "llama_cpp_families.jsonl", "cuda_buffers.jsonl"
# Runs on two GPUs of the same memory.
ON_TWO_GPUS = "several_gpus.jsonl"
# Printed sizes have two decimals; two halves of a cache are printed in one line each.
_ROUNDED_MIB, _TWICE_ROUNDED_MIB = 0.0051, 0.0101


@dataclass(frozen=True)
class Comparison:
    """One run.

    Attributes:
        family: Its name in the receipt.
        architecture: llama.cpp's.
        flags: The flags, and the file's types.
        differences: By buffer, the computed bytes and the printed MiB, where they are not equal.
    """

    family: str
    architecture: str
    flags: str
    differences: dict[str, tuple[int | None, float]]


def read_lines(name: str) -> list[dict[str, Any]]:
    """Return the lines of a file of receipts."""
    return [json.loads(line) for line in (_MEASURED / name).read_text().splitlines()]


def list_models(name: str, folder: Path) -> Iterator[tuple[dict[str, Any], GgufModel]]:
    """Yield each line of a file of receipts with its model.

    Args:
        name: The file; a line without a header is about the model before it.
        folder: Where files are laid down, which take no space.
    """
    path, model = folder / "model.gguf", None
    for line in read_lines(name):
        if line["header"]:
            with path.open("wb") as file:
                file.write(zlib.decompress(base64.b64decode(line["header"])))
                file.truncate(line["file_bytes"])
            model = open_gguf(path)
        assert model is not None
        yield line, model


def compare(name: str, folder: Path, *, every: int = 1) -> Iterator[Comparison]:
    """Yield the comparison of each run, or of a part of them.

    Args:
        name: The file of receipts.
        folder: Where files are laid down.
        every: How many lines there are for each that is compared.
    """
    for number, (line, model) in enumerate(list_models(name, folder)):
        if number % every == 0:
            yield _compare_line(line, model, num_gpus=2 if name == ON_TWO_GPUS else 1)


def _compare_line(line: dict[str, Any], model: GgufModel, *, num_gpus: int) -> Comparison:
    setting, has_gpu = line["setting"], line.get("has_gpu", True)
    num_gpus = 1 if setting.get("split_mode") == "none" else num_gpus
    shares = tuple(setting.get("tensor_split", (1.0,) * num_gpus))
    run = GgufRun(
        LayerRule(setting["gpu_layers"], make_moves(setting["cpu_moe"]), shares),
        context=setting["context"],
        ubatch=setting["ubatch"],
        num_sequences=setting["sequences"],
        type_k=setting["type_k"],
        type_v=setting["type_v"],
        has_gpu=has_gpu,
        has_flash_attention=bool(setting["flash"]),
    )
    takes = line.get("takes_products")
    rules = CUDA if takes is None else _imitate(takes_products=takes)
    expected = _name_buffers(list_buffers(model, run, rules), is_cuda=takes is None, run=run)
    printed = line["mib"]
    differences: dict[str, tuple[int | None, float]]
    differences = {name: (0, size) for name, size in printed.items() if name not in expected}
    for name, size in expected.items():
        slack = _TWICE_ROUNDED_MIB if name.startswith("KV") else _ROUNDED_MIB
        if size is None or abs(size / 2**20 - printed.get(name, 0)) > slack:
            differences[name] = (size, printed.get(name, 0))
    flags = f"{line['mixture']} {json.dumps(setting)}"
    return Comparison(line["family"], model.architecture, flags, differences)


def _imitate(*, takes_products: bool) -> DeviceRules:
    """Return the rules of the stand-in, whose memory is a CPU's, without pinned memory for it."""
    return DeviceRules(
        alignment=32, pads_rows=False, takes_products=takes_products, has_pinned_memory=False
    )


def _name_buffers(
    buffers: Sequence[Buffers], *, is_cuda: bool, run: GgufRun
) -> dict[str, int | None]:
    """Return sizes by llama.cpp's names of buffers."""
    *on_gpus, on_host = buffers
    host, sizes = "CUDA_Host" if is_cuda else "CPU", dict[str, int | None]()
    for number, on_gpu in enumerate(on_gpus):
        gpu = f"CUDA{number}" if is_cuda else "GPU"
        sizes |= {f"model {gpu}": on_gpu.weights, f"KV {gpu}": on_gpu.cache}
        sizes[f"compute {gpu}"] = on_gpu.compute
    # With no layer on the GPU, logits lie in plain memory.
    output = host if run.rule.num_gpu_layers else "CPU"
    return {
        **sizes,
        "model CPU_Mapped": on_host.weights,
        "model CPU_REPACK": on_host.repacked,
        "KV CPU": on_host.cache,
        f"compute {host}": on_host.compute,
        f"output {output}": on_host.output,
    }


def main() -> None:
    """Print how many runs are equal; exit with 1 if any is not."""
    num_different = 0
    for name in (STAND_IN, WITH_CUDA, ON_TWO_GPUS):
        with tempfile.TemporaryDirectory() as folder:
            found = list(compare(name, Path(folder)))
        different = [each for each in found if each.differences]
        for each in different:
            sys.stdout.write(f"{each.family} {each.flags}: {each.differences}\n")
        sys.stdout.write(f"{name}: {len(found) - len(different)} of {len(found)} runs are equal\n")
        num_different += len(different)
    sys.exit(bool(num_different))


if __name__ == "__main__":
    main()
