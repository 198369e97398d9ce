"""Run prompts through llama.cpp, and write each layer's decisions to stdout.

This is the program of another process (`python -m moetool.tracing.llama_cpp.worker`), so that a crash
of llama.cpp leaves the trace alone. It reads a JSON object from stdin. It writes a line of JSON with
the routed layers. Then, for each prompt, it writes another line, and after it, for each layer, ids as
int32, weights as float32, and margins as float32 if they are wanted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moetool.tracing.llama_cpp.faults import WorkerError
from moetool.tracing.llama_cpp.library import VERSIONS, Ggml
from moetool.tracing.llama_cpp.model import GgufRun


def run(job: dict[str, Any], output: BinaryIO) -> None:
    """Run all prompts of a job.

    Raises:
        WorkerError: The file can't be loaded or traced, has no tokenizer, or a prompt can't be run.
    """
    llama_cpp = _load_package()
    version = llama_cpp.__version__
    if version not in VERSIONS:
        raise WorkerError(
            f"llama-cpp-python {version} is not known",
            hint=f"Install {' or '.join(VERSIONS)}: pip install 'moetool[gguf]'.",
        )
    ggml = Ggml(_find_libraries(llama_cpp))
    if ggml.version != VERSIONS[version]:
        raise WorkerError(
            f"llama-cpp-python {version} runs with ggml {ggml.version}, not its own",
            hint="Unset LLAMA_CPP_LIB_PATH, or install llama-cpp-python again.",
        )
    loaded = GgufRun(llama_cpp, ggml, job)
    prompts = [loaded.tokenize(number, prompt) for number, prompt in enumerate(job["prompts"], 1)]
    layers = loaded.open([tokens for tokens, _ in prompts])
    opened = {
        "layers": [[each.layer, each.top_k, each.num_experts] for each in layers.values()],
        "routed": loaded.routed_layers,
    }
    _write_line(output, opened)
    for number, (tokens, is_cut) in enumerate(prompts, 1):
        found = loaded.evaluate(number, tokens)
        line = {
            "tokens": found.tokens,
            "texts": loaded.list_texts(found.tokens),
            "num_prompt_tokens": len(tokens),
            "num_new_tokens": found.num_new_tokens,
            "is_cut": is_cut,
        }
        _write_line(output, line)
        for decisions in found.decisions.values():
            output.write(np.ascontiguousarray(decisions.experts, dtype="<i4").tobytes())
            output.write(np.ascontiguousarray(decisions.weights, dtype="<f4").tobytes())
            output.write(np.ascontiguousarray(decisions.margins, dtype="<f4").tobytes())
        output.flush()


def _load_package() -> Any:
    try:
        import llama_cpp  # type: ignore[import-not-found]
    except Exception as error:
        raise WorkerError(
            f"llama-cpp-python can't be loaded: {type(error).__name__}: {error}",
            hint="Install it again: pip install --force-reinstall 'moetool[gguf]'.",
        ) from error
    return llama_cpp


def _find_libraries(llama_cpp: Any) -> Path:
    given = os.environ.get("LLAMA_CPP_LIB_PATH")
    return Path(llama_cpp.__file__).parent / "lib" if given is None else Path(given)


def _write_line(output: BinaryIO, line: dict[str, Any]) -> None:
    output.write(json.dumps(line).encode() + b"\n")
    output.flush()


def main() -> None:
    """Run the job on stdin; a line of JSON with `error` ends the output if it fails."""
    # What a library prints must not come between the results.
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)
        try:
            run(json.load(sys.stdin), output)
        except WorkerError as error:
            fault = {
                "error": error.message,
                "hint": error.hint,
                "is_untraceable": error.is_untraceable,
            }
            _write_line(output, fault)


if __name__ == "__main__":
    main()
