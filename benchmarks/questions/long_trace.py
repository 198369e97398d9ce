"""Write a long trace of a simulated router, as moetool writes traces.

python benchmarks/questions/long_trace.py trace.parquet NUM_TOKENS
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from moetool.trace.decisions import LayerDecisions, TracedTokens
from moetool.trace.metadata import RoutedLayer, TraceMetadata
from moetool.trace.rows import assignment_rows
from moetool.trace.writing.writer import TraceFile

NUM_EXPERTS, TOP_K, NUM_LAYERS = 64, 8, 16
DOMAINS = ("code", "law", "mathematics", "prose")
TOKENS_PER_TABLE = 8_000
LARGEST_TOKEN_ID = 50_000


def make_trace(path: Path, num_tokens: int) -> None:
    """Write a trace of a simulated router that prefers other experts in each domain."""
    rng = np.random.default_rng(0)
    bias = rng.normal(0, 0.7, (NUM_LAYERS, len(DOMAINS), NUM_EXPERTS)).astype(np.float32)
    layers = tuple(
        RoutedLayer("decoder", layer, f"layers.{layer}", None, NUM_EXPERTS, 0, TOP_K)
        for layer in range(NUM_LAYERS)
    )
    metadata = TraceMetadata(
        complete=True, model="simulated", layers=layers, num_decisions=num_tokens * NUM_LAYERS
    )
    num_prompts = num_done = 0
    with TraceFile(path, metadata=metadata, keeps_parts=False) as sink:
        while num_done < num_tokens:
            lengths: list[int] = []
            while sum(lengths) < min(TOKENS_PER_TABLE, num_tokens - num_done):
                left = num_tokens - num_done - sum(lengths)
                lengths.append(min(int(rng.integers(100, 1200)), left))
            tokens = make_tokens(lengths, first=num_prompts, rng=rng)
            domain = np.array([DOMAINS.index(word) for word in tokens.domains])[tokens.prompt]
            sink.write(
                assignment_rows(
                    tokens,
                    [
                        choose_experts(bias[layer][domain], layer, rng)
                        for layer in range(NUM_LAYERS)
                    ],
                )
            )
            num_done += sum(lengths)
            num_prompts += len(lengths)
        sink.finish(metadata)


def make_tokens(lengths: list[int], *, first: int, rng: np.random.Generator) -> TracedTokens:
    """Return prompts of Zipf-distributed token ids."""
    token_id = np.minimum(rng.zipf(1.3, sum(lengths)), LARGEST_TOKEN_ID).astype(np.int32)
    return TracedTokens(
        prompt_ids=[f"prompt-{first + number:07d}" for number in range(len(lengths))],
        domains=[DOMAINS[code] for code in rng.integers(0, len(DOMAINS), len(lengths))],
        prompt=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        position=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        phase=np.zeros(sum(lengths), dtype=np.int8),
        token_id=token_id,
        pieces=[f"t{number}" for number in np.unique(token_id)],
    )


def choose_experts(
    bias: np.ndarray[tuple[int, int], np.dtype[np.float32]], layer: int, rng: np.random.Generator
) -> LayerDecisions:
    """Return the experts of the largest logits, with their softmax as weights."""
    logits = bias + rng.gumbel(size=bias.shape).astype(np.float32)
    experts = np.argpartition(-logits, TOP_K - 1, axis=1)[:, :TOP_K]
    chosen = np.take_along_axis(np.exp(logits), experts, axis=1)
    weights = chosen / np.exp(logits).sum(axis=1, keepdims=True)
    return LayerDecisions("decoder", layer, experts.astype(np.int16), weights.astype(np.float32))


if __name__ == "__main__":
    make_trace(Path(sys.argv[1]), int(sys.argv[2]))
