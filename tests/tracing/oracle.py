"""Weights of a block's experts, found without hooks and without knowing how it routes.

The block's output for each token is fitted, in float64 and by least squares, with what every expert
makes of that token. The coefficients are the weights: zero where an expert did not run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Largest ratio of singular values at which coefficients are still worth something in float64.
_WORST_CONDITION = 1e6


class UndeterminedError(Exception):
    """The outputs of experts do not determine the weights."""


@dataclass(frozen=True)
class Fit:
    """The weights that explain a block's output.

    Attributes:
        weights: # (num_tokens, num_experts)
        unexplained: Length of what is left of each token's output, relative to the longest output.
            # (num_tokens,)
    """

    weights: torch.Tensor
    unexplained: torch.Tensor


def fit_weights(output: torch.Tensor, by_expert: torch.Tensor) -> Fit:
    """Return the weights with which the outputs of all experts add up to the block's.

    Args:
        output: The block's output, without what it adds to its experts. # (num_tokens, hidden_size)
        by_expert: The output of every expert for every token.
            # (num_experts, num_tokens, hidden_size)

    Raises:
        UndeterminedError: Other weights would explain the output as well, or a number is not finite.
    """
    columns = by_expert.detach().double().movedim(0, 2)  # (num_tokens, hidden_size, num_experts)
    total = output.detach().double()[:, :, None]  # (num_tokens, hidden_size, 1)
    if not (columns.isfinite().all() and total.isfinite().all()):
        raise UndeterminedError("some outputs are not finite")
    if columns.shape[2] > columns.shape[1]:
        raise UndeterminedError(
            f"{columns.shape[2]} experts are more than outputs of width {columns.shape[1]} distinguish"
        )
    sizes = torch.linalg.svdvals(columns)  # (num_tokens, num_experts), the largest first
    if bool((sizes[:, -1] * _WORST_CONDITION <= sizes[:, 0]).any()):
        raise UndeterminedError("the outputs of some experts are combinations of others'")
    weights = torch.linalg.lstsq(columns, total).solution  # (num_tokens, num_experts, 1)
    rest = (columns @ weights - total).norm(dim=(1, 2))
    longest = total.norm(dim=(1, 2)).max().clamp(min=torch.finfo(torch.float64).tiny)
    return Fit(weights.squeeze(2), rest / longest)


def spread(ids: torch.Tensor, weights: torch.Tensor, *, num_experts: int) -> torch.Tensor:
    """Return recorded weights by expert, zero where none ran.

    Args:
        ids: -1 where none ran. # (num_tokens, top_k)
        weights: # (num_tokens, top_k)

    Returns:
        # (num_tokens, num_experts)
    """
    table = torch.zeros(len(ids), num_experts + 1, dtype=torch.float64)
    table.scatter_add_(1, ids.long() % (num_experts + 1), weights.double())
    return table[:, :num_experts]


def find_difference(fit: Fit, ids: torch.Tensor, weights: torch.Tensor) -> float:
    """Return the largest difference between fitted and recorded weights, or what no weights explain."""
    recorded = spread(ids, weights, num_experts=fit.weights.shape[1])
    return max(float((fit.weights - recorded).abs().max()), float(fit.unexplained.max()))
