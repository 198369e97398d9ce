"""Samples of prompts as plain Python values, and a plain choice of prompts."""

from __future__ import annotations

from collections.abc import Sequence

from moetool.analysis.sampling.result import PromptSample
from moetool.analysis.statistics.halves import hash_prompts

Token = tuple[str, str, int]
Decision = dict[int, float | None]


def choose_plainly(
    prompts: Sequence[str], groups: Sequence[str], num_rows: Sequence[int], *, most_rows: int
) -> list[int]:
    """Return what groups choose that take turns, each its fitting prompt with the lowest hash."""
    hashes = {one: int(hash_prompts([one])[0]) for one in prompts}
    chosen: list[int] = []
    took = True
    while took:
        took = False
        for group in sorted(set(groups)):
            left = most_rows - sum(num_rows[one] for one in chosen)
            fitting = [
                index
                for index in range(len(prompts))
                if groups[index] == group and index not in chosen and num_rows[index] <= left
            ]
            if fitting:
                chosen.append(min(fitting, key=lambda one: (hashes[prompts[one]], prompts[one])))
                took = True
    return sorted(chosen)


def list_tokens(sample: PromptSample) -> list[Token]:
    """Return the prompt, stack and position of each token."""
    ids = [prompt.prompt_id for prompt in sample.prompts]
    return [
        (ids[prompt], stack, position)
        for prompt, stack, position in zip(
            sample.prompt.tolist(), sample.stack, sample.position.tolist(), strict=True
        )
    ]


def list_decisions(sample: PromptSample) -> dict[tuple[Token, int], Decision]:
    """Return the weight of each expert that ran, by token and layer; None without weights."""
    tokens = list_tokens(sample)
    found: dict[tuple[Token, int], Decision] = {}
    for layer in sample.layers:
        for row, token in enumerate(layer.token.tolist()):
            assert tokens[token][1] == layer.layer.stack
            experts = layer.experts[row].tolist()
            weights = [None] * len(experts) if layer.weights is None else layer.weights[row]
            found[tokens[token], layer.layer.layer] = {
                expert: None if weight is None else float(weight)
                for expert, weight in zip(experts, weights, strict=True)
                if expert >= 0
            }
    return found
