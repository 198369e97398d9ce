"""Compare the decisions of llama.cpp on a GPU with those of transformers on the CPU, for `demo`.

Needs llama-cpp-python with CUDA, and `demo` as a GGUF file. Prints how many decisions are equal, and
the largest margin between the last chosen expert and the next one among those that differ first in
their prompt (benchmarks/gguf/measured/cuda_routing.json):

    python -m benchmarks.gguf.cuda.routing demo.gguf --n-gpu-layers 99
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moetool.catalogue.names import demo_folder
from moetool.tracing.llama_cpp.options import LlamaCppOptions
from moetool.tracing.llama_cpp.record import record_prompts
from tests.command import REPOSITORY

_NUM_PROMPTS, _MOST_TOKENS = 80, 96


def read_prompts() -> list[list[int]]:
    """Return the first sample prompts as ids."""
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    texts = [
        json.loads(line)["text"]
        for path in sorted((REPOSITORY / "sample_prompts").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [tokenizer(text)["input_ids"][:_MOST_TOKENS] for text in texts[:_NUM_PROMPTS]]


def main() -> None:
    """Run the prompts both ways, and print what is equal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--n-gpu-layers", type=int, default=0)
    parser.add_argument("--cache-type", default="f32")
    given = parser.parse_args()
    options = LlamaCppOptions(
        num_gpu_layers=given.n_gpu_layers, type_k=given.cache_type, type_v=given.cache_type
    )
    model = AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=torch.float32)
    prompts, equal, total, margins = read_prompts(), 0, 0, [0.0]
    for ids, found in zip(prompts, record_prompts(given.path, prompts, options), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), output_router_logits=True).router_logits
        is_first = True
        for layer, scores in zip(found.layers, logits, strict=True):
            shares, top_k = scores.softmax(-1).numpy(), layer.experts.shape[1]
            best = np.sort(np.argsort(-shares, axis=1)[:, :top_k], axis=1)
            same = (best == np.sort(layer.experts, axis=1)).all(axis=1)
            ranked = -np.sort(-shares, axis=1)
            if is_first:
                margins += (ranked[~same, top_k - 1] - ranked[~same, top_k]).tolist()
            is_first = is_first and bool(same.all())
            equal, total = equal + int(same.sum()), total + len(same)
    sys.stdout.write(f"{equal} of {total} decisions are equal; margin {max(margins):.2g}\n")


if __name__ == "__main__":
    main()
