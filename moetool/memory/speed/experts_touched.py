"""The number of distinct experts that some tokens choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.memory.answers.figures import Phase

# The name of the routing that needs no trace.
UNIFORM = "uniform"


@dataclass(frozen=True)
class ExpertsTouched:
    """Distinct routed experts that at least one of some tokens chooses, in expectation.

    Attributes:
        per_layer: The number by the module path of a layer's experts, without identity experts.
        routing: `uniform`, or the name of the trace it was taken from.
    """

    per_layer: Mapping[str, float]
    routing: str

    @property
    def mean(self) -> float | None:
        """The mean over layers; None without any."""
        numbers = self.per_layer.values()
        return sum(numbers) / len(numbers) if numbers else None


@dataclass(frozen=True)
class Routing:
    """The share of tokens that choose each expert.

    Attributes:
        prefill: Shares among the tokens of prompts, by the module path of a layer's experts.
            # (num_experts,)
        decode: Shares among generated tokens, in the same form.
        name: `uniform`, or the name of the trace it was taken from.
        notes: Caveats for the reader, one sentence each.
    """

    prefill: Mapping[str, NDArray[np.float64]]
    decode: Mapping[str, NDArray[np.float64]]
    name: str
    notes: tuple[str, ...] = ()

    def expect_touched(self, phase: Phase, *, num_tokens: int) -> ExpertsTouched:
        """Return the expected number of distinct experts that some tokens of a phase touch.

        An expert that a share p of tokens choose is touched by at least one of T tokens with
        probability 1 - (1 - p)^T; the expectation is the sum over experts. It is exact if tokens
        choose independently of each other. Tokens of one text choose more similar experts, and
        touch fewer.

        Args:
            phase: The phase whose shares are used.
            num_tokens: Tokens that pass through a layer together.
        """
        shares = self.prefill if phase is Phase.PREFILL else self.decode
        return ExpertsTouched(
            per_layer={path: _expect_distinct(p, num_tokens) for path, p in shares.items()},
            routing=self.name,
        )


def find_choices(skeleton: RoutedSkeleton) -> Mapping[MoeLayer, int] | None:
    """Return the routed layers that text tokens run, and the number of experts per token in each.

    None if that is unknown for any of them; empty for a dense model.

    Args:
        skeleton: The model on the meta device, its weights not quantized.
    """
    if not skeleton.experts.are_all_read:
        return None
    choices: dict[MoeLayer, int] = {}
    for layer in skeleton.text_layers:
        top_k = skeleton.top_k[layer]
        if top_k is None:
            return None
        choices[layer] = top_k
    return choices


def assume_uniform_routing(choices: Mapping[MoeLayer, int]) -> Routing:
    """Return the routing of a router that chooses all sets of `top_k` experts equally often.

    Each of E experts is chosen by a share k / E of tokens, so that T tokens touch
    E · (1 - (1 - k/E)^T) of them in expectation. Identity experts are chosen as often as others.

    Args:
        choices: The number of experts a token chooses in each routed layer.
    """
    shares = {
        layer.experts_path: np.full(layer.num_experts, top_k / count_ids(layer))
        for layer, top_k in choices.items()
    }
    return Routing(prefill=shares, decode=shares, name=UNIFORM)


def _expect_distinct(shares: NDArray[np.float64], num_tokens: int) -> float:
    return float((1 - (1 - shares) ** num_tokens).sum())


def count_ids(layer: MoeLayer) -> int:
    """Return the number of experts that a layer's router chooses from."""
    return layer.num_experts + layer.num_identity_experts
