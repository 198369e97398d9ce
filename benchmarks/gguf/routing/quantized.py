"""Measure what llama.cpp's quantization does to the routing of the demonstration model.

llama.cpp's own quantizer makes the files, of the wide model (see `demo_file`), and llama.cpp runs
them as it does by default: keys and values in F16, flash attention. They are compared with F32 all
through, whose decisions are those of transformers. Needs llama-cpp-python, gguf and a folder of
llama.cpp. Prints a JSON object; with --check, only a few prompts are traced, and compared with what is
kept:

    python -m benchmarks.gguf.routing.quantized vendor/llama.cpp > quantized_routing.json
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp  # type: ignore[import-not-found]

import moetool
from benchmarks.gguf.convert_families import import_converter
from benchmarks.gguf.routing.compare import EXACTLY
from benchmarks.gguf.routing.demo_file import write_demo
from moetool.checkpoint.gguf.files import open_gguf
from moetool.inspection.gguf.facts import read_facts
from moetool.library.trace_gguf import trace_gguf
from moetool.tracing.llama_cpp.options import LlamaCppOptions
from moetool.tracing.prompts.limits import PromptLimits
from moetool.tracing.prompts.prompts import read_prompts
from tests.command import REPOSITORY

# llama.cpp's numbers of mixtures (llama.h) that need no importance matrix.
FORMATS = {
    "F32": 0,
    "F16": 1,
    "Q8_0": 7,
    "Q6_K": 18,
    "Q5_K_M": 17,
    "Q4_K_M": 15,
    "MXFP4_MOE": 38,
    "IQ4_XS": 30,
    "Q3_K_M": 12,
    "IQ3_S": 26,
    "Q2_K": 10,
}
_KEPT = Path(__file__).parents[1] / "measured" / "quantized_routing.json"
_OPTIONS = LlamaCppOptions(num_threads=1)
_EXACTLY = LlamaCppOptions(**{**vars(EXACTLY), "with_margins": False})
# CPUs with other vector instructions add up in another order.
_MOST_OFF = 0.01
_FEW = PromptLimits(per_domain=2)
_DIGITS = 5


def quantize(plain: Path, path: Path, number: int) -> None:
    """Write a file in another format, by llama.cpp's quantizer.

    Raises:
        RuntimeError: It fails.
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = number, 1
    names = (str(plain).encode(), str(path).encode())
    if llama_cpp.llama_model_quantize(*names, ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp could not write {path.name}")


def measure(source: tuple[Any, Any], limits: PromptLimits) -> dict[str, Any]:
    """Return, for each format, its types and how its routing differs from that of F32."""
    prompts = read_prompts(str(REPOSITORY / "sample_prompts"), limits=limits)
    with tempfile.TemporaryDirectory() as name:
        plain = Path(name, "f32.gguf")
        write_demo(source, plain, is_wide=True)
        reference = plain.with_suffix(".parquet")
        result = trace_gguf(plain, prompts, reference, options=_EXACTLY)
        found: dict[str, Any] = {"num_decisions": result.num_rows // 2, "formats": {}}
        for kind, number in FORMATS.items():
            path = Path(name, f"{kind}.gguf")
            quantize(plain, path, number)
            trace_gguf(path, prompts, path.with_suffix(".parquet"), options=_OPTIONS)
            compared = moetool.compare_traces(path.with_suffix(".parquet"), reference)
            facts = read_facts(open_gguf(path))
            found["formats"][kind] = {
                "types": {each.type: each.num_tensors for each in facts.types},
                "changed_decisions": compared.overall.changed_decisions,
                "first_choice_flips": compared.overall.first_choice_flips,
                "changed_tokens": compared.changed_tokens,
                "by_layer": [layer.changed_decisions for layer in compared.layers],
            }
            sys.stderr.write(f"{kind}: {found['formats'][kind]}\n")
    rounded: dict[str, Any] = json.loads(
        json.dumps(found), parse_float=lambda text: round(float(text), _DIGITS)
    )
    return rounded


def _are_alike(found: dict[str, Any], kept: dict[str, Any]) -> bool:
    """Return whether two files have the same types, and change the routing about as much."""
    return found["types"] == kept["types"] and all(
        abs(found[name] - kept[name]) <= _MOST_OFF
        for name in ("changed_decisions", "first_choice_flips")
    )


def main() -> None:
    """Print what is measured, or whether it is what is kept."""
    is_check = "--check" in sys.argv
    source = import_converter(Path(sys.argv[1]))
    few = measure(source, _FEW)
    if not is_check:
        sys.stdout.write(json.dumps({"all": measure(source, PromptLimits()), "few": few}, indent=1))
        return
    kept = json.loads(_KEPT.read_text(encoding="utf-8"))["few"]
    same = [kind for kind in FORMATS if _are_alike(few["formats"][kind], kept["formats"][kind])]
    sys.stdout.write(f"{len(same)} of {len(FORMATS)} formats change the routing as is kept\n")
    sys.exit(len(same) < len(FORMATS) or few["num_decisions"] != kept["num_decisions"])


if __name__ == "__main__":
    main()
