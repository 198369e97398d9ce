"""Compare the decisions of llama.cpp with those of transformers, for the demonstration model in F32.

Needs llama-cpp-python and a folder of llama.cpp (see `convert_families`), whose converter writes the
file. The decisions of a prompt that differ first must be near ties:

    python -m benchmarks.gguf.check_routing vendor/llama.cpp
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.gguf.convert_families import convert
from moetool.catalogue.names import demo_folder
from moetool.library.trace_gguf import trace_gguf
from moetool.trace.reading.reader import open_trace
from moetool.tracing.llama_cpp.record import LlamaCppOptions, record_prompts
from moetool.tracing.prompts.prompts import Prompt
from tests.command import REPOSITORY

_NUM_PROMPTS, _MOST_TOKENS = 12, 96
_FEWEST_EQUAL = 0.999
# Of router probabilities, between the last chosen expert and the first that was not.
_NEAR_TIE = 1e-3
_NUM_BYTES = 256


def add_byte_vocabulary(writer: Any, vocab_size: int) -> None:
    """Give a file a tokenizer of single bytes, and fill its vocabulary."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(_NUM_BYTES))]
    tokens += [f"<filler{number}>" for number in range(vocab_size - len(tokens))]
    # Unknown, control, byte and unused tokens.
    types = [2, 3, 3, *[6] * _NUM_BYTES, *[5] * (vocab_size - 3 - _NUM_BYTES)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * vocab_size)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def main() -> None:
    """Print how many decisions are equal, and the margins of the others."""
    source = Path(sys.argv[1])
    sys.path += [str(source), str(source / "gguf-py")]
    import conversion  # type: ignore[import-not-found]
    import gguf  # type: ignore[import-not-found]

    folder = Path(demo_folder())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = [
        json.loads(line)
        for path in sorted((REPOSITORY / "sample_prompts").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    texts = [line["text"] for line in lines[:: max(len(lines) // _NUM_PROMPTS, 1)]][:_NUM_PROMPTS]
    prompts = [tokenizer(text)["input_ids"][:_MOST_TOKENS] for text in texts]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "demo.gguf")
        convert(conversion, gguf, folder, path, "f32")
        options = LlamaCppOptions(cache_type="f32", num_threads=2)
        equal, total, margins = 0, 0, list[float]()
        for ids, found in zip(prompts, record_prompts(path, prompts, options), strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([ids]), output_router_logits=True).router_logits
            is_first = True
            for layer, scores in zip(found.layers, logits, strict=True):
                shares = scores.softmax(-1).numpy()
                top_k = layer.experts.shape[1]
                best = np.sort(np.argsort(-shares, axis=1)[:, :top_k], axis=1)
                same = (best == np.sort(layer.experts, axis=1)).all(axis=1)
                ranked = -np.sort(-shares, axis=1)
                # Once one differs, later layers of the prompt read other values.
                if is_first:
                    margins += (ranked[~same, top_k - 1] - ranked[~same, top_k]).tolist()
                is_first = is_first and bool(same.all())
                equal, total = equal + int(same.sum()), total + len(same)
        check_whole_trace(path.with_name("bytes.gguf"), source=(conversion, gguf), texts=texts)
    sys.stdout.write(
        f"{equal} of {total} decisions are equal; largest margin of those that differ "
    )
    sys.stdout.write(f"first in their prompt: {max(margins, default=0):.2g}\n")
    sys.exit(equal < _FEWEST_EQUAL * total or max(margins, default=0) > _NEAR_TIE)


def check_whole_trace(path: Path, *, source: tuple[Any, Any], texts: list[str]) -> None:
    """Trace texts with the file's own tokenizer, and check how many rows there are."""
    convert(*source, Path(demo_folder()), path, "f32", add_vocabulary=add_byte_vocabulary)
    prompts = [Prompt(f"p{n}", "any", text[:100], "here") for n, text in enumerate(texts)]
    result = trace_gguf(path, prompts, path.with_suffix(".parquet"))
    metadata = open_trace(result.path).metadata
    assert metadata is not None
    assert metadata.complete
    # Each byte is a token, and a space three, after the one that begins a text. llama.cpp adds a space.
    num_tokens = sum(
        1 + len(text.encode()) + 2 * text.count(" ")
        for text in (f" {prompt.text}" for prompt in prompts)
    )
    assert result.num_tokens == num_tokens, (result.num_tokens, num_tokens)
    assert result.num_rows == num_tokens * 6 * 2


if __name__ == "__main__":
    main()
