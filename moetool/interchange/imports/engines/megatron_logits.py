"""Ranks and weights from the logits and the router state that Megatron-LM writes on request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.interchange.imports.reading.text import (
    damaged,
    open_input,
    quote,
    take_array,
    take_integer,
)
from moetool.interchange.imports.reading.torch_files import load_torch

_FILE = re.compile(r"router_trace_rank(\d+)\.jsonl")
_SCORE_FUNCTIONS = ("softmax", "sigmoid", "sqrtsoftplus")
_BF16_BYTES = 2


@dataclass(frozen=True)
class RouterState:
    """The state of one router.

    Attributes:
        score_function: One of those of Megatron-LM.
        bias: Added to the scores that choose experts, not to those that weigh them; None without.
    """

    score_function: str
    bias: NDArray[np.float64] | None


@dataclass(frozen=True)
class RankLogits:
    """The logits of one rank, and the states of its routers by block, MTP index and layer."""

    path: Path
    states: Mapping[tuple[str, int | None, int], RouterState]

    @classmethod
    def find(cls, trace: Path) -> RankLogits | None:
        """Return the logits next to a rank's trace; None if they or the state are missing.

        Raises:
            InputError: The state is there but can't be read.
        """
        named = _FILE.fullmatch(trace.name)
        if named is None:
            return None
        logits = trace.with_name(f"logits_rank{named[1]}.bin")
        state = trace.with_name(f"router_state_rank{named[1]}.pt")
        if not (logits.is_file() and state.is_file()):
            return None
        return cls(logits, _read_states(state))

    def find_state(self, block: str, mtp: int | None, layer: int) -> RouterState | None:
        """Return the state of a router; None if it isn't there."""
        return self.states.get((block, mtp, layer))

    def say_what_lacks(
        self, block: str, mtp: int | None, layer: int, content: Mapping[str, Any], *, top_k: int
    ) -> str | None:
        """Return what a line lacks for ranks, as the end of a sentence; None if it lacks nothing."""
        if "logit_offset" not in content:
            return "has no logits"
        state = self.find_state(block, mtp, layer)
        if state is None:
            return "is of a router that the router state doesn't have"
        if state.score_function not in _SCORE_FUNCTIONS:
            return f"is of a router with the unknown score function {state.score_function!r}"
        if top_k < 2:
            return "chooses one expert, whose weight alone the logits don't give"
        return None

    def read(
        self, content: Mapping[str, Any], *, num_tokens: int, source: str
    ) -> NDArray[np.float64]:
        """Return the logits of a line. # (num_tokens, num_experts).

        Raises:
            InputError: The line or the file of logits is damaged.
        """
        shape = take_array(
            content.get("logit_shape"), num_dimensions=1, name="logit_shape", source=source
        ).tolist()
        offset, num_bytes = (
            take_integer(content.get(name), name=name, source=source)
            for name in ("logit_offset", "logit_bytes")
        )
        is_whole = (
            len(shape) == 2
            and shape[0] == num_tokens
            and 0 <= shape[0] * shape[1] * _BF16_BYTES == num_bytes
        )
        if not is_whole:
            raise damaged(source, "describes logits of an impossible shape or place")
        with open_input(self.path) as file:
            size = file.seek(0, 2)
            if offset + num_bytes > size:
                raise damaged(quote(self.path), f"breaks off before the logits of {source}")
            file.seek(offset)
            halves = np.frombuffer(file.read(num_bytes), dtype="<u2")
        logits = (halves.astype(np.uint32) << 16).view(np.float32).reshape(shape)
        if not np.isfinite(logits).all():
            raise damaged(source, "has logits that are not finite")
        return logits.astype(np.float64)


def order_by_logits(
    experts: NDArray[np.int64],
    logits: NDArray[np.float64],
    state: RouterState,
    *,
    source: str,
) -> tuple[NDArray[np.int64], NDArray[np.float32], int, int]:
    """Return experts in order of rank, their weights, and how many decisions tie or differ.

    Megatron-LM divides the scores of the chosen experts by their sum, which gives the same
    proportions as a softmax over all experts.

    Args:
        experts: Chosen ids, ascending. # (num_tokens, top_k)
        logits: # (num_tokens, num_experts)
        state: Of the router.
        source: For error messages.

    Raises:
        InputError: There are no logits of a chosen expert.
    """
    num_experts = logits.shape[1]
    if experts.size and not 0 <= experts.min() <= experts.max() < num_experts:
        raise InputError(
            f"{source} chooses expert {experts.max()}, but has logits of {num_experts}.",
            hint="Record again: the file is damaged.",
        )
    scores = _score(logits, state.score_function)
    for_choice = scores if state.bias is None else scores + state.bias
    top_k = experts.shape[1]
    kth = np.sort(for_choice, axis=1)[:, num_experts - top_k]
    # Scores that are equal to the k-th may be chosen or not.
    chosen = np.take_along_axis(for_choice, experts, axis=1)
    num_other = int((chosen < kth[:, None]).any(axis=1).sum())
    own = np.take_along_axis(logits, experts, axis=1)
    order = np.argsort(-own, axis=1, kind="stable")
    experts = np.take_along_axis(experts, order, axis=1)
    own = np.take_along_axis(own, order, axis=1)
    num_tied = int((own[:, 1:] == own[:, :-1]).any(axis=1).sum())
    if state.score_function == "softmax":
        weights = np.exp(own - own.max(axis=1, keepdims=True, initial=-np.inf))
    else:
        weights = _score(own, state.score_function)
    total = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return experts, weights.astype(np.float32), num_tied, num_other


def _score(logits: NDArray[np.float64], function: str) -> NDArray[np.float64]:
    """Return the scores of Megatron-LM's `moe_router_score_function`."""
    if function == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    if function == "sigmoid":
        return np.asarray(np.exp(-np.logaddexp(0, -logits)))
    return np.asarray(np.sqrt(np.logaddexp(0, logits)))


def _read_states(path: Path) -> dict[tuple[str, int | None, int], RouterState]:
    content = load_torch(path)
    if not isinstance(content, dict):
        raise damaged(quote(path), "is not Megatron-LM's router state")
    states = {}
    for key, value in content.items():
        if not (isinstance(key, tuple) and len(key) == 3 and isinstance(value, dict)):
            raise damaged(quote(path), "is not Megatron-LM's router state")
        bias = value.get("expert_bias")
        if bias is not None:
            try:
                bias = bias.detach().to("cpu").float().numpy().astype(np.float64)
            except (AttributeError, RuntimeError, TypeError) as error:
                raise damaged(quote(path), "holds an expert bias that is not a tensor") from error
        states[key] = RouterState(str(value.get("score_function")), bias)
    return states
