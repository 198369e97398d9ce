"""Routing that tests know, and what they find of it in an imported trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moetool import read_trace

# By prompt, position and layer: experts in their order, and weights if there are any.
Decisions = dict[tuple[str, int, int], tuple[tuple[int, ...], tuple[float, ...] | None]]


@dataclass(frozen=True)
class Prompt:
    """A prompt, what was written after it, and its routing.

    The last token that was written is never fed to the model, so it has no experts.
    """

    prompt_id: str
    ids: NDArray[np.int64]
    num_prompt_tokens: int
    experts: NDArray[np.int64]  # (num_tokens - 1, num_hidden_layers, top_k), dense layers zero
    weights: NDArray[np.float32]  # of the same shape

    @property
    def num_rows(self) -> int:
        return len(self.ids) - 1


@dataclass(frozen=True)
class Known:
    """The routing of a toy model: some hidden layers, of which some route."""

    num_layers: int
    routed: tuple[int, ...]
    num_experts: int
    top_k: int
    prompts: tuple[Prompt, ...]

    def decisions(
        self,
        *,
        with_weights: bool,
        is_sorted: bool = False,
        prompt_ids: dict[str, str] | None = None,
    ) -> Decisions:
        """Return every decision; with ids in ascending order if the format loses theirs."""
        found: Decisions = {}
        for prompt in self.prompts:
            name = (prompt_ids or {}).get(prompt.prompt_id, prompt.prompt_id)
            for position in range(prompt.num_rows):
                for layer in self.routed:
                    experts = prompt.experts[position, layer].tolist()
                    weights = prompt.weights[position, layer].tolist()
                    found[name, position, layer] = (
                        tuple(sorted(experts) if is_sorted else experts),
                        tuple(weights) if with_weights else None,
                    )
        return found


def make_known(
    seed: int = 0,
    *,
    num_layers: int = 4,
    routed: tuple[int, ...] = (1, 2, 3),
    num_experts: int = 8,
    top_k: int = 2,
    num_prompts: int = 3,
) -> Known:
    """Return random routing with weights that fall from rank to rank."""
    random = np.random.default_rng(seed)
    prompts = []
    for number in range(num_prompts):
        num_tokens = int(random.integers(3, 9))
        experts = np.zeros((num_tokens - 1, num_layers, top_k), dtype=np.int64)
        weights = np.zeros(experts.shape, dtype=np.float32)
        for token in range(num_tokens - 1):
            for layer in routed:
                experts[token, layer] = random.permutation(num_experts)[:top_k]
                weights[token, layer] = -np.sort(-random.uniform(0.05, 1, top_k))
        prompts.append(
            Prompt(
                prompt_id=f"request-{number}",
                ids=random.integers(0, 1000, num_tokens),
                num_prompt_tokens=int(random.integers(1, num_tokens)),
                experts=experts,
                weights=weights,
            )
        )
    return Known(num_layers, routed, num_experts, top_k, tuple(prompts))


def find_decisions(frame: pd.DataFrame) -> Decisions:
    """Return the decisions of a trace, one row at a time."""
    grouped: dict[tuple[str, int, int], list[tuple[int, int, float | None]]] = {}
    for row in frame.to_dict("records"):
        key = (str(row["prompt_id"]), int(row["position"]), int(row["layer"]))
        rows = grouped.setdefault(key, [])
        rows.append((row.get("rank", len(rows)), int(row["expert"]), row.get("weight")))
    found: Decisions = {}
    for key, rows in grouped.items():
        rows.sort()
        weights = tuple(float(weight) for _, _, weight in rows if weight is not None)
        found[key] = (tuple(expert for _, expert, _ in rows), weights or None)
    return found


def read_imported(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return an imported trace, checked as it is read, and its metadata."""
    frame = read_trace(path)
    metadata: dict[str, Any] = frame.attrs["moetool"]
    assert metadata["schema"] == "moetool.trace/1"
    tokens = frame[["prompt_id", "position"]].drop_duplicates()
    assert metadata["num_tokens"] == len(tokens)
    assert metadata["num_prompts"] == tokens["prompt_id"].nunique()
    decisions = frame[["prompt_id", "position", "stack", "layer"]].drop_duplicates()
    assert metadata["num_decisions"] == len(decisions)
    return frame, metadata
