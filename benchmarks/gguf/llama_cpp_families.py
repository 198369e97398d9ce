"""Load files of further families, and of known ones under further flags, as `llama_cpp_devices` does.

Prints a JSON line for each file and setting:

    python -m benchmarks.gguf.llama_cpp_families > benchmarks/gguf/measured/llama_cpp_families.jsonl
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gguf.family_headers import FAMILIES, write_family
from benchmarks.gguf.llama_cpp_devices import SETTINGS, StandIn, measure_flags, stand_in
from benchmarks.gguf.loading import Setting
from benchmarks.gguf.mixtures import write_mixture
from moetool.checkpoint.gguf.header import read_gguf_header

_MIXTURES = ("f16", "q4_K_M")
_KNOWN = Path(__file__).parent / "measured" / "llama_cpp_devices.jsonl"
# Flags, whether there is a GPU, and whether it takes over products with weights of the host.
Run = tuple[Setting, bool, bool]


def list_runs(*, is_known: bool) -> list[Run]:
    """Return the runs of a family: for one whose other runs are known, those without flash attention."""
    runs: list[Run] = []
    for layers, cpu_moe, context, ubatch, sequences, type_k, type_v, takes in SETTINGS:
        flags = Setting(max(layers, 0), cpu_moe, context, ubatch, sequences, type_k, type_v)
        if not is_known:
            runs.append((flags, layers >= 0, takes))
        if type_v == "f16":
            # Quantized values need flash attention.
            runs.append((replace(flags, flash=0), layers >= 0, takes))
    return runs


def list_files(folder: Path, wanted: list[str]) -> Iterator[tuple[str, str, Path, bool]]:
    """Yield the family, the mixture and a file of each, and whether other runs of it are known."""
    plain, path = folder / "plain.gguf", folder / "model.gguf"
    for family in FAMILIES:
        if wanted and family not in wanted:
            continue
        for mixture in _MIXTURES:
            write_mixture(read_gguf_header(write_family(family, plain)), path, mixture)
            yield family, mixture, path, False
    for line in map(json.loads, _KNOWN.read_text(encoding="utf-8").splitlines()):
        is_wanted = not wanted or line["family"] in wanted
        if line["header"] and line["mixture"] == "q4_K_M" and is_wanted:
            with path.open("wb") as file:
                file.write(zlib.decompress(base64.b64decode(line["header"])))
                file.truncate(line["file_bytes"])
            yield line["family"], line["mixture"], path, True


def main() -> None:
    """Print a line for each file and setting; arguments name families."""
    with tempfile.TemporaryDirectory() as folder, stand_in() as device:
        for family, mixture, path, is_known in list_files(Path(folder), sys.argv[1:]):
            header = read_gguf_header(path)
            with path.open("rb") as file:
                content = file.read(header.header_bytes)
            packed = base64.b64encode(zlib.compress(content, 9)).decode()
            for line in _measure(path, list_runs(is_known=is_known), device):
                named = {"family": family, "mixture": mixture, "file_bytes": header.file_bytes}
                sys.stdout.write(json.dumps({**named, "header": packed, **line}) + "\n")
                sys.stdout.flush()
                packed = ""


def _measure(path: Path, runs: list[Run], device: StandIn) -> Iterator[dict[str, Any]]:
    for flags, has_gpu, takes in runs:
        try:
            sizes = measure_flags(path, flags, device, has_gpu=has_gpu, takes_products=takes)
        except (RuntimeError, OSError) as error:
            sys.stderr.write(f"{path} {flags}: {error}\n")
            continue
        yield {
            "llama_cpp_python": version("llama-cpp-python"),
            "setting": flags.to_dict(),
            "has_gpu": has_gpu,
            "takes_products": takes,
            "mib": sizes,
        }


if __name__ == "__main__":
    main()
