"""Simulated texts of several domains, and routers that look at the token, the prompt or the domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Text:
    """Tokens of prompts, and the experts that a router gave them.

    Attributes:
        token_id: # (num_tokens,)
        prompt: Index of each token's prompt. # (num_tokens,)
        label: Domain of each prompt. # (num_prompts,)
        experts: # (num_tokens, top_k)
    """

    token_id: NDArray[np.int64]
    prompt: NDArray[np.int64]
    label: NDArray[np.intp]
    experts: NDArray[np.int64]


@dataclass(frozen=True)
class Router:
    """A router with a preference of each token id, and deviations from it.

    Attributes:
        of_token: Spread of the preferences of token ids.
        of_prompt: Spread of the deviation that all tokens of a prompt share.
        of_domain: Spread of the deviation that all tokens of a domain share.
    """

    num_experts: int = 8
    top_k: int = 2
    of_token: float = 1.5
    of_prompt: float = 0.0
    of_domain: float = 0.0


def write_text(
    sizes: Sequence[int], *, router: Router, seed: int, num_tokens: int = 60, num_ids: int = 200
) -> Text:
    """Return texts of domains with their own vocabularies: a word's chance differs about fivefold.

    Args:
        sizes: Prompts of each domain.
        num_tokens: Of a prompt, on average.
    """
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(sizes)), sizes)
    lengths = rng.integers(num_tokens // 2, num_tokens * 3 // 2, size=len(label))
    zipf = -np.log(np.arange(1, num_ids + 1))
    chance = np.exp(zipf + 1.5 * rng.normal(size=(len(sizes), num_ids)))
    chance /= chance.sum(axis=1, keepdims=True)
    token_id = np.concatenate(
        [
            rng.choice(num_ids, size=length, p=chance[domain])
            for domain, length in zip(label, lengths, strict=True)
        ]
    )
    prompt = np.repeat(np.arange(len(label)), lengths)
    width = router.num_experts
    of_token = router.of_token * rng.normal(size=(num_ids, width))
    of_prompt = router.of_prompt * rng.normal(size=(len(label), width))
    of_domain = router.of_domain * rng.normal(size=(len(sizes), width))
    scores = of_token[token_id] + of_prompt[prompt] + of_domain[label[prompt]]
    scores += rng.gumbel(size=scores.shape)
    return Text(token_id, prompt, label, np.argsort(-scores, axis=1)[:, : router.top_k])
