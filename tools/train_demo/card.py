"""The README of the checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.train_demo.scores import DomainScore


def write_card(
    folder: Path,
    *,
    scores: list[DomainScore],
    shares: NDArray[np.float64],
    recipe: dict[str, str],
    num_params: int,
) -> None:
    """Write the checkpoint's README: what it is, its data, recipe, quality and expert load."""
    lines = [
        "# The demonstration checkpoint",
        "",
        f"A small `MixtralForCausalLM` ({num_params:,} parameters, float32), trained from scratch by",
        "`tools/train_demo` so that moetool has a real, trained Mixture-of-Experts model to show",
        "its work on without a download. It writes text of seven kinds badly; its routing is genuine.",
        "It is for demonstrations and tests, not for use as a language model.",
        "",
        "## Recipe",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in recipe.items()),
        "",
        "## Data and held-out quality",
        "",
        "Bits per UTF-8 byte on the held-out last 5 % of each domain (lower is better). Both baselines",
        "use the same tokenizer and are trained on the training text of that domain alone; the model",
        "does not know the domain.",
        "",
        "| domain | source | train bytes | held-out bytes | model | bigram | unigram |",
        "|---|---|---:|---:|---:|---:|---:|",
        *(
            f"| {s.name} | {s.source} | {s.train_bytes:,} | {s.held_out_bytes:,} "
            f"| {s.model:.3f} | {s.bigram:.3f} | {s.unigram:.3f} |"
            for s in scores
        ),
        "",
        "## Load of the experts",
        "",
        "Share of the assignments each expert gets on the held-out text, all domains pooled, in",
        "per cent (even load is 12.5).",
        "",
        "| layer | " + " | ".join(f"expert {e}" for e in range(shares.shape[1])) + " |",
        "|---:|" + "---:|" * shares.shape[1],
        *(
            f"| {layer} | " + " | ".join(f"{100 * share:.1f}" for share in row) + " |"
            for layer, row in enumerate(shares)
        ),
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
