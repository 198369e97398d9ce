"""The tokens of rows, found by their values: for rows that are copies up to rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from moetool.tracing.recording.watch.operations.products import Product
from moetool.tracing.recording.watch.operations.run import ObservedRun
from moetool.tracing.recording.watch.weighted_rows import WeightedRows, is_product

# Roundings by which a row may differ from its token's hidden state.
_ROUNDINGS = 4
# Beyond this many comparisons of numbers it would take seconds.
_MOST_COMPARISONS = 2_000_000_000


class Matched(NamedTuple):
    """The tokens that experts received, going by values.

    Attributes:
        tokens: Which tokens' hidden states each expert received. # (num_tokens, num_experts)
        weights: What these were multiplied by before; 1 where they were not, and 0 where an expert
            did not receive them. # (num_tokens, num_experts)
    """

    tokens: torch.Tensor
    weights: torch.Tensor


def match_received(run: ObservedRun, weights: torch.Tensor) -> Matched | None:
    """Return which tokens' hidden states each expert received, going by the rows' values.

    Tokens may have equal hidden states. Of these, each expert must have received as many as have
    weights of it.

    Args:
        weights: By which outputs of experts were added up. # (num_tokens, num_experts)

    Returns:
        None if experts received something else, or equal rows of which some have no weight.
    """
    for states in run.states:
        matched = Matched(torch.zeros_like(weights, dtype=torch.bool), torch.zeros_like(weights))
        if all(_match(product, states, weights, matched) for product in run.firsts):
            return matched
    # Code that torch does not see may have multiplied rows, or a product with a mask of weights.
    scores = run.observer.trail.list_scores(len(run.output))
    for states in run.states if scores.shape[1] else ():
        matched = Matched(torch.zeros_like(weights, dtype=torch.bool), torch.zeros_like(weights))
        products = (_find_weighted(product, states, scores) for product in run.firsts)
        if all(p is not None and _match(p, states, weights, matched) for p in products):
            return matched
    return None


def _find_weighted(product: Product, states: torch.Tensor, scores: torch.Tensor) -> Product | None:
    """Return a product with the weights that explain its rows; None if the scores have no such weights.

    Args:
        states: A row for each token. # (num_tokens, width)
        scores: Numbers of each token that may be weights. # (num_tokens, num_scores)
    """
    if product.weighted is not None or product.rows.shape[1] != states.shape[1]:
        return None
    if product.rows.numel() * len(states) > _MOST_COMPARISONS:
        return None
    values, rounding = states.double(), _ROUNDINGS * torch.finfo(product.rows.dtype).eps
    sizes = values.square().sum(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    before, factors = torch.zeros_like(product.rows), torch.ones_like(product.rows)
    for number in torch.nonzero(product.rows.ne(0).any(dim=1)).flatten().tolist():
        row = product.rows[number].double()
        ratios = values @ row / sizes  # (num_tokens,)
        off = (row - ratios[:, None] * values).abs().amax(dim=1)
        tokens = torch.nonzero(off <= rounding * row.abs().max()).flatten()
        if not len(tokens):
            return None
        token = int(tokens[0])
        distances = (scores[token] - ratios[token]).abs()
        if distances.min() > 2 * rounding * ratios[token].abs():
            return None
        before[number] = states[token].to(before.dtype)
        factors[number] = scores[token, distances.argmin()].to(factors.dtype)
    return replace(product, weighted=WeightedRows(before, factors, torch.ones_like(factors)))


def _match(product: Product, states: torch.Tensor, weights: torch.Tensor, matched: Matched) -> bool:
    """Note which tokens the rows of a product belong to; return whether all do.

    Args:
        states: A row for each token. # (num_tokens, width)
    """
    if product.incoming.shape[1] != 1 or product.rows.shape[1] != states.shape[1]:
        return False
    if product.rows.numel() * len(states) > _MOST_COMPARISONS:
        return False
    rows, factors = product.rows, torch.ones_like(product.rows)
    if product.weighted is not None:
        rows, factors, _ = product.weighted
        if not is_product(product.weighted, product.rows):
            return False
    experts = product.incoming[:, 0]  # (num_incoming,)
    for expert in sorted(set(experts.tolist())):
        is_row = (experts == expert) & rows.ne(0).any(dim=1)
        if expert < 0 or not bool(is_row.any()):
            continue
        same = _compare(rows[is_row], states)  # (num_rows, num_tokens)
        used = weights[:, expert] != 0  # (num_tokens,)
        is_used = (same & used).any(dim=1)  # (num_rows,)
        rest = same[~is_used]
        if bool((rest.sum(dim=1) != 1).any()):
            return False
        reached = (same & used).any(dim=0)  # (num_tokens,)
        if int(is_used.sum()) != int(reached.sum()):
            return False
        tokens = reached | rest.any(dim=0)
        found = _read_factors(factors[is_row, 0], same, tokens)
        if found is None:
            return False
        before = matched.weights[tokens, expert]
        if bool(((before != 0) & (before != found)).any()):
            return False
        matched.tokens[:, expert] |= tokens
        matched.weights[tokens, expert] = found.to(before.dtype)
    return True


def _read_factors(
    factors: torch.Tensor, same: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor | None:
    """Return what tokens were multiplied by; None if equal tokens were not by the same number.

    Args:
        factors: # (num_rows,)
        same: Which rows equal which tokens. # (num_rows, num_tokens)
        tokens: Those that are asked for. # (num_tokens,)
    """
    of_tokens = factors[:, None].expand(same.shape)
    least = of_tokens.masked_fill(~same, torch.inf).amin(dim=0)[tokens]
    largest = of_tokens.masked_fill(~same, -torch.inf).amax(dim=0)[tokens]
    return least if torch.equal(least, largest) else None


def _compare(rows: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Return which rows equal which hidden states.

    Returns:
        # (num_rows, num_tokens)
    """
    rounding = _ROUNDINGS * torch.finfo(rows.dtype).eps
    states = states.to(rows.dtype)
    limits = rounding * states.abs().amax(dim=1)  # (num_tokens,)
    return torch.stack([((row - states).abs().amax(dim=1) <= limits) for row in rows])
