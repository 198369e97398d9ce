"""A sample of prompts whose every token is kept, for figures that need more than counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.window import DecisionWindow

# Prompts are compared in pairs, tokens in cells of one number for each expert: all fit into a few
# hundred megabytes and seconds.
_MOST_PROMPTS = 512
_MOST_ASSIGNMENTS = 2**23
_MOST_EXPERT_CELLS = 2**24


@dataclass(frozen=True)
class LayerSample:
    """The decisions of one layer for the tokens of the sampled prompts.

    Attributes:
        token_id: None if the trace has no ids. # (num_tokens,)
        prompt: Index of each token's prompt. # (num_tokens,)
        experts: Negative where fewer ran. # (num_tokens, top_k)
    """

    token_id: NDArray[np.int64] | None
    prompt: NDArray[np.int64]
    experts: NDArray[np.int16]


def choose_prompts(
    names: Sequence[str],
    label: NDArray[np.intp],
    num_tokens: NDArray[np.int64],
    *,
    layers: Sequence[RoutedLayer],
    seed: int,
) -> NDArray[np.bool_]:
    """Return which prompts to sample: all if they are few, else as many of each domain.

    The choice depends on the prompts' names and the seed, not on their order.

    Args:
        names: Of the prompts.
        label: Index of each prompt's domain. # (num_prompts,)
        num_tokens: Of each prompt. # (num_prompts,)
        layers: Those that are read.
        seed: Random seed.
    """
    assignments = sum(layer.top_k for layer in layers)
    widest = max(layer.num_experts + layer.num_identity_experts for layer in layers)
    most_tokens = min(_MOST_ASSIGNMENTS // assignments, _MOST_EXPERT_CELLS // widest)
    if len(names) <= _MOST_PROMPTS and num_tokens.sum() <= most_tokens:
        return np.ones(len(names), dtype=bool)
    chosen = np.zeros(len(names), dtype=bool)
    priority = np.array(
        [crc32(f"{seed} {name}".encode(errors="surrogateescape")) for name in names],
        dtype=np.int64,
    )
    domains = np.unique(label)
    most_prompts = max(2, _MOST_PROMPTS // len(domains))
    for domain in domains:
        (mine,) = np.nonzero(label == domain)
        mine = mine[np.argsort(priority[mine], kind="stable")][:most_prompts]
        fits = np.cumsum(num_tokens[mine]) <= most_tokens // len(domains)
        chosen[mine[fits]] = True
    return chosen


@dataclass
class TokenSampler:
    """Keeps the tokens of chosen prompts, window by window.

    Args:
        is_chosen: By index of the reader's prompts. # (num_prompts,)
    """

    is_chosen: NDArray[np.bool_]
    _parts: dict[Place, list[LayerSample]] = field(default_factory=dict)

    def add(self, window: DecisionWindow) -> None:
        """Keep the decisions for tokens of chosen prompts."""
        is_kept = self.is_chosen[window.prompt]
        if not is_kept.any():
            return
        for place, choices in window.layers.items():
            mine = is_kept[choices.token]
            token = choices.token[mine]
            self._parts.setdefault(place, []).append(
                LayerSample(
                    token_id=None if window.token_id is None else window.token_id[token],
                    prompt=window.prompt[token],
                    experts=choices.experts[mine].astype(np.int16),
                )
            )

    def collect(self) -> dict[Place, LayerSample]:
        """Return the decisions of each layer; layers without any are left out."""
        samples = {}
        for place, parts in self._parts.items():
            ids = [part.token_id for part in parts if part.token_id is not None]
            samples[place] = LayerSample(
                token_id=np.concatenate(ids) if ids else None,
                prompt=np.concatenate([part.prompt for part in parts]),
                experts=np.concatenate([part.experts for part in parts]),
            )
        return samples
