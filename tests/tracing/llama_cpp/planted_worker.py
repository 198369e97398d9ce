"""A stand-in for the process that runs llama.cpp: it answers with planted decisions."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import numpy as np

NUM_EXPERTS, LAYERS = 8, (0, 1)
NEW_TOKENS = (1, 7, 4)


def plant(layer: int, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids and weights of a layer for some tokens, the smaller weight first."""
    ids = np.array(tokens, dtype="<i4")
    experts = np.stack([(ids + layer) % NUM_EXPERTS, (ids + layer + 3) % NUM_EXPERTS], axis=1)
    weights = np.tile(np.array([0.25, 0.75], dtype="<f4"), (len(tokens), 1))
    return experts.astype("<i4"), weights


def say(line: dict[str, Any]) -> None:
    """Write a line."""
    sys.stdout.buffer.write(json.dumps(line).encode() + b"\n")
    sys.stdout.buffer.flush()


def refuse(message: str, *, is_untraceable: bool = False) -> None:
    """Write a line that ends the output."""
    say({"error": message, "hint": "Do something.", "is_untraceable": is_untraceable})


def main() -> None:
    """Answer the job on stdin; some words in a prompt make it fail."""
    job = json.load(sys.stdin)
    said = " ".join(job["prompts"])
    if "unloadable" in said:
        sys.stderr.write("error loading model: planted\n")
        refuse("llama.cpp could not load the file")
        return
    if "unknown graph" in said:
        refuse("it routes in another way", is_untraceable=True)
        return
    layers = LAYERS[:1] if "fewer layers" in said else LAYERS
    say({"layers": [[layer, 2, NUM_EXPERTS] for layer in layers], "routed": list(layers)})
    for prompt in job["prompts"]:
        if "crash" in prompt:
            sys.stderr.write("GGML_ASSERT(planted) failed\nand further words\n")
            sys.exit(134)
        if "killed" in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        words = prompt.split()[: job["max_prompt_tokens"]]
        prompt_tokens = [len(word) for word in words]
        new = NEW_TOKENS[: job["max_new_tokens"]]
        tokens = [*prompt_tokens, *new[:-1]]
        line = {
            "tokens": tokens,
            "texts": [f"<{token}>" for token in tokens],
            "num_prompt_tokens": len(prompt_tokens),
            "num_new_tokens": len(new),
            "is_cut": len(words) < len(prompt.split()),
        }
        say(line)
        for layer in layers:
            experts, weights = plant(layer, tokens)
            sys.stdout.buffer.write(experts.tobytes())
            sys.stdout.buffer.write(weights.tobytes()[: -4 if "short" in prompt else None])
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
