"""The formats that can be imported, by name, and what each of them holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from moetool.errors import UsageError
from moetool.interchange.imports.engines import (
    megatron,
    sglang_loads,
    sglang_per_token,
    sglang_responses,
    tensorrt_llm,
    vllm,
)
from moetool.interchange.imports.runs import ImportFiles, LoadImport, TraceImport
from moetool.interchange.imports.shapes import GivenShapes
from moetool.interchange.imports.tools import (
    bigmoeonedge,
    esft,
    imatrix,
    mbolt,
    olmoe,
    policylang,
)
from moetool.printable import printable

Open = (
    Callable[[ImportFiles, GivenShapes], TraceImport]
    | Callable[[ImportFiles, GivenShapes], LoadImport]
)


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: As on the command line.
        title: The tool and what it writes.
        kind: Whether it becomes a trace or a load table.
        open: Starts the import.
        gives: What a trace or load table from it has, in words.
        lacks: What it doesn't have, in words.
        options: Options that it needs, as they are shown in a command.
    """

    name: str
    title: str
    kind: Literal["trace", "load table"]
    open: Open
    gives: str
    lacks: str
    options: str = ""


FORMATS: Mapping[str, Format] = {
    each.name: each
    for each in (
        Format(
            sglang_per_token.FORMAT,
            "SGLang's expert distribution recorder, mode per_token (.pt)",
            "trace",
            sglang_per_token.open_sglang_per_token,
            "token ids, phase, ranks",
            "weights, requests",
        ),
        Format(
            sglang_responses.FORMAT,
            "SGLang's responses with routed_experts (.json, .jsonl)",
            "trace",
            sglang_responses.open_sglang_responses,
            "requests, phase, ranks; token ids if the response has them",
            "weights",
            "--model MODEL",
        ),
        Format(
            vllm.FORMAT,
            "vLLM's routed_experts (.npy, or responses in .json, .jsonl)",
            "trace",
            vllm.open_vllm,
            "requests, ranks; token ids and phase with return_token_ids",
            "weights",
            "--model MODEL",
        ),
        Format(
            megatron.FORMAT,
            "Megatron-LM's router trace (router_trace_rank*.jsonl)",
            "trace",
            megatron.open_megatron,
            "steps and micro-batches; ranks and weights if logits and router state were written",
            "token ids, phase, requests; without logits the order of ranks",
            "--layer-offset 0 --num-experts N",
        ),
        Format(
            tensorrt_llm.RAW,
            "TensorRT-LLM's expert statistic, raw (rank*_raw.safetensors)",
            "trace",
            tensorrt_llm.open_tensorrt_llm_raw,
            "iterations, ranks",
            "weights, token ids, phase, requests",
        ),
        Format(
            bigmoeonedge.FORMAT,
            "BigMoeOnEdge's --route-trace (.csv)",
            "trace",
            bigmoeonedge.open_bigmoeonedge,
            "turns, phase, ranks, weights",
            "token ids",
        ),
        Format(
            mbolt.FORMAT,
            "mbolt's route trace (binary)",
            "trace",
            mbolt.open_mbolt,
            "forward passes, phase, ranks",
            "weights, token ids, requests",
        ),
        Format(
            olmoe.FORMAT,
            "OLMoE's run_moe_analysis.py (c4_results.jsonl)",
            "trace",
            olmoe.open_olmoe,
            "prompts, token ids, ranks",
            "weights",
            "--num-experts N",
        ),
        Format(
            esft.FORMAT,
            "ESFT's expert scores (expert_weights_<layer>.txt, or their folder)",
            "trace",
            esft.open_esft,
            "tasks as domains, prompts, ranks, weights of four decimals",
            "token ids",
            "--top-k K --num-experts N",
        ),
        Format(
            policylang.FORMAT,
            "moe-policylang's trace (.parquet)",
            "trace",
            policylang.open_policylang,
            "prompts, ranks, scores as weights; token ids, phase and domain if recorded",
            "exactness: the routing was computed again",
        ),
        Format(
            sglang_loads.STAT,
            "SGLang's expert distribution recorder, mode stat (.pt); KTransformers' stats",
            "load table",
            sglang_loads.open_sglang_stat,
            "counts by step",
            "tokens, top-k",
            "--top-k K",
        ),
        Format(
            sglang_loads.PER_PASS,
            "SGLang's expert distribution recorder, mode per_pass (.pt)",
            "load table",
            sglang_loads.open_sglang_per_pass,
            "counts by forward pass",
            "tokens, top-k",
            "--top-k K",
        ),
        Format(
            tensorrt_llm.COUNTS,
            "TensorRT-LLM's expert statistic (rank*.safetensors, or their folder)",
            "load table",
            tensorrt_llm.open_tensorrt_llm_counts,
            "counts by iteration",
            "tokens",
        ),
        Format(
            imatrix.FORMAT,
            "llama.cpp's importance matrix (.gguf)",
            "load table",
            imatrix.open_imatrix,
            "counts",
            "tokens, steps",
        ),
    )
}

AUTO = "auto"
# Tools with several formats: which one it is shows in the files.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    AUTO: tuple(FORMATS),
    "sglang": tuple(name for name in FORMATS if name.startswith("sglang-")),
    "tensorrt-llm": (tensorrt_llm.RAW, tensorrt_llm.COUNTS),
}
_OTHER_NAMES = {
    "bigmoe": bigmoeonedge.FORMAT,
    "gguf": imatrix.FORMAT,
    "ktransformers": sglang_loads.STAT,
    "llama-cpp": imatrix.FORMAT,
    "megatron-lm": megatron.FORMAT,
    "policylang": policylang.FORMAT,
    "tensorrt": "tensorrt-llm",
    "trt-llm": "tensorrt-llm",
    "vllm-routed-experts": vllm.FORMAT,
}


def find_format(name: str) -> tuple[str, ...]:
    """Return the formats that a name stands for: one, or those of a tool.

    Raises:
        UsageError: There is no such format.
    """
    plain = name.strip().lower().replace("_", "-").replace(".", "-").replace(" ", "-")
    plain = _OTHER_NAMES.get(plain, plain)
    if plain in FORMATS:
        return (plain,)
    if plain in FAMILIES:
        return FAMILIES[plain]
    raise UsageError(
        f"No format '{printable(name, max_length=60)}'.",
        hint=f"Name one of {', '.join(FORMATS)}; or auto, which looks at the files.",
    )
