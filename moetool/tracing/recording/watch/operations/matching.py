"""The tokens of rows, found by their values: for rows that are copies up to rounding."""

from __future__ import annotations

import torch

from moetool.tracing.recording.watch.operations.products import Product
from moetool.tracing.recording.watch.operations.run import ObservedRun

# Roundings by which a row may differ from its token's hidden state.
_ROUNDINGS = 4
# Beyond this many comparisons of numbers it would take seconds.
_MOST_COMPARISONS = 2_000_000_000


def match_received(run: ObservedRun, weights: torch.Tensor) -> torch.Tensor | None:
    """Return which tokens' hidden states each expert received, going by the rows' values.

    Tokens may have equal hidden states. Of these, each expert must have received as many as have
    weights of it.

    Args:
        weights: # (num_tokens, num_experts)

    Returns:
        # (num_tokens, num_experts); None if experts received something else, or equal rows of
        which some have no weight.
    """
    states = run.start.detach().reshape(len(run.output), -1)  # (num_tokens, hidden_size)
    received = torch.zeros_like(weights, dtype=torch.bool)
    for product in run.firsts:
        size = product.rows.numel() * len(states)
        if product.incoming.shape[1] != 1 or product.rows.shape[1] != states.shape[1]:
            return None
        if size > _MOST_COMPARISONS or not _match(product, states, weights, received):
            return None
    return received


def _match(
    product: Product, states: torch.Tensor, weights: torch.Tensor, received: torch.Tensor
) -> bool:
    """Note in `received` which tokens the rows of a product belong to; return whether all do."""
    experts = product.incoming[:, 0]  # (num_incoming,)
    for expert in sorted(set(experts.tolist())):
        rows = product.rows[(experts == expert) & product.rows.ne(0).any(dim=1)]
        if expert < 0 or not len(rows):
            continue
        same = _compare(rows, states)  # (num_rows, num_tokens)
        used = weights[:, expert] != 0  # (num_tokens,)
        is_used = (same & used).any(dim=1)  # (num_rows,)
        rest = same[~is_used]
        if bool((rest.sum(dim=1) != 1).any()):
            return False
        reached = (same & used).any(dim=0)  # (num_tokens,)
        if int(is_used.sum()) != int(reached.sum()):
            return False
        received[:, expert] |= reached | rest.any(dim=0)
    return True


def _compare(rows: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Return which rows equal which hidden states.

    Returns:
        # (num_rows, num_tokens)
    """
    rounding = _ROUNDINGS * torch.finfo(rows.dtype).eps
    states = states.to(rows.dtype)
    limits = rounding * states.abs().amax(dim=1)  # (num_tokens,)
    return torch.stack([((row - states).abs().amax(dim=1) <= limits) for row in rows])
