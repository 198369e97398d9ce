"""A stand-in for the process that runs llama.cpp: it answers with planted decisions."""

from __future__ import annotations

import json
import sys

import numpy as np

NUM_EXPERTS, LAYERS = 8, (0, 2)


def plant(layer: int, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids and weights of a layer for some tokens, the smaller weight first."""
    ids = np.array(tokens, dtype="<i4")
    experts = np.stack([(ids + layer) % NUM_EXPERTS, (ids + layer + 3) % NUM_EXPERTS], axis=1)
    weights = np.tile(np.array([0.25, 0.75], dtype="<f4"), (len(tokens), 1))
    return experts.astype("<i4"), weights


def main() -> None:
    """Answer the job on stdin; some words in a prompt make it fail."""
    job = json.load(sys.stdin)
    output = sys.stdout.buffer
    for prompt in job["prompts"]:
        if "crash" in prompt:
            output.flush()
            sys.stderr.write("GGML_ASSERT(planted) failed\n")
            sys.exit(134)
        if "refuse" in prompt:
            output.write(json.dumps({"error": "the file has no tokenizer"}).encode() + b"\n")
            return
        tokens = [len(word) for word in prompt.split()]
        layers = [] if "dense" in prompt else [[layer, 2, NUM_EXPERTS] for layer in LAYERS]
        output.write(json.dumps({"tokens": tokens, "layers": layers}).encode() + b"\n")
        for layer in LAYERS if layers else ():
            experts, weights = plant(layer, tokens)
            output.write(experts.tobytes())
            output.write(weights.tobytes()[: -4 if "short" in prompt else None])
        output.flush()


if __name__ == "__main__":
    main()
