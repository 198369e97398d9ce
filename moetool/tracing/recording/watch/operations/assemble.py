"""The decision of a block, put together from the products of one observed run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from moetool.tracing.recording.watch.operations.observer import NotObservedError
from moetool.tracing.recording.watch.operations.products import Product
from moetool.tracing.recording.watch.operations.run import ObservedRun
from moetool.tracing.recording.watch.operations.seeds import STRANGE, TokenSeeds


class Final(NamedTuple):
    """The last product of an expert, with the token of each of its rows.

    Attributes:
        tokens: `EMPTY` where a row is not used. # (num_rows,)
        weights: By which rows are added to their tokens. # (num_rows,)
    """

    product: Product
    tokens: torch.Tensor
    weights: torch.Tensor


def read_finals(run: ObservedRun) -> list[Final] | None:
    """Return the last products of all experts, by gradients of the block's output.

    None if an output of an expert was not added as it is, or not to a single token's.
    """
    seeds = TokenSeeds(run.output)
    edges = [edge for product in run.finals for edge in run.observer.find_edges(product)]
    if not edges or run.output.grad_fn is None or any(edge is None for edge in edges):
        raise NotObservedError("gradients do not reach all of its experts")
    numbers, signs = (iter(_pull_back(run, edges, seed)) for seed in (seeds.numbers, seeds.signs))
    finals: list[Final] = []
    for product in run.finals:
        read = [
            seeds.read(_to_rows(product, next(numbers)), _to_rows(product, next(signs)))
            for _ in run.observer.find_edges(product)
        ]
        tokens, weights = read[-1]
        belongs_to_none = (tokens >= 0) & (product.experts < 0)
        if bool((tokens == STRANGE).any() | belongs_to_none.any()) or not _agree(read):
            return None
        finals.append(Final(product, tokens, weights))
    return finals


def find_weights(finals: Sequence[Final], *, num_tokens: int, num_experts: int) -> torch.Tensor:
    """Return the weight with which each expert's output was added to each token's.

    Returns:
        # (num_tokens, num_experts)
    """
    size = num_tokens * num_experts
    by_root: dict[frozenset[int], torch.Tensor] = {}
    counts: dict[frozenset[int], torch.Tensor] = {}
    for product, tokens, row_weights in finals:
        weights = row_weights
        if product.factors is not None:
            weights = weights * product.factors.to(weights.dtype)
        is_used = tokens >= 0
        slots = tokens[is_used] * num_experts + product.experts[is_used].long()
        table = by_root.setdefault(product.roots, weights.new_zeros(size))
        table.index_add_(0, slots, weights[is_used].to(table.dtype))
        count = torch.bincount(slots, minlength=size)
        counts[product.roots] = counts.get(product.roots, 0) + count
    if any(bool((count > 1).any()) for count in counts.values()):
        raise NotObservedError("an expert runs on a token more than once")
    # Shared layers have negative roots.
    shared = [roots for roots in by_root if min(roots, default=0) < 0]
    for roots in by_root if shared else ():
        if roots not in shared and not _is_multiple(by_root[roots], by_root[shared[0]]):
            raise NotObservedError("parts of an expert get different weights")
    tables = [by_root[roots] for roots in shared or by_root]
    return _merge(tables, [counts[roots] for roots in shared or by_root]).view(
        num_tokens, num_experts
    )


def add_up(run: ObservedRun, finals: Sequence[Final]) -> torch.Tensor:
    """Return the sum of what experts returned, by the weights that gradients showed.

    Returns:
        # (num_tokens, hidden_size)
    """
    total = torch.zeros_like(run.output, dtype=torch.float64, requires_grad=False)
    for product, tokens, weights in finals:
        is_used = tokens >= 0
        if not bool(is_used.any()):
            continue
        rows = product.to_rows(run.observer.outputs[product.number]).double()
        terms = rows[is_used] * weights[is_used, None].double() / product.num_summands
        total.index_add_(0, tokens[is_used], terms)
    return total


def find_received(run: ObservedRun, *, num_experts: int) -> torch.Tensor | None:
    """Return which tokens' hidden states each expert received.

    They may have passed a norm or another child of the block before.

    Returns:
        # (num_tokens, num_experts); None if experts received something else.
    """
    firsts = run.firsts
    if not firsts:
        raise NotObservedError("its hidden states never met the weights of its experts")
    if any(product.edge is None for product in firsts):
        return None
    num_tokens = len(run.output)
    for place, width in run.places:
        if any(product.rows.shape[1] != width for product in firsts):
            continue
        received = _count_received(firsts, place, num_tokens=num_tokens, num_experts=num_experts)
        if received is not None:
            return received
    return None


def _count_received(
    firsts: Sequence[Product], place: Any, *, num_tokens: int, num_experts: int
) -> torch.Tensor | None:
    """Return the same for rows that are taken from one place; None if they are not."""
    width = firsts[0].rows.shape[1]
    received = torch.zeros(num_tokens, num_experts, dtype=torch.bool)
    # A column for each expert: with more experts than columns, more than once.
    for start in range(0, num_experts, width):
        seeds = []
        for product in firsts:
            met = product.incoming - start  # (num_incoming, num_met)
            is_here = (product.incoming >= 0) & (met >= 0) & (met < width)
            seed = torch.zeros(
                len(met), width + 1, dtype=product.rows.dtype, device=product.incoming.device
            )
            seed.scatter_(1, torch.where(is_here, met, width).long(), 1)
            seeds.append(product.to_incoming(seed[:, :width]))
        gradient = _differentiate([product.edge for product in firsts], place, seeds)
        if gradient is None:
            return None
        counts = gradient.reshape(num_tokens, width)
        if bool(((counts != counts.round()) | (counts < 0)).any()):
            return None
        here = min(width, num_experts - start)
        if bool((counts[:, here:] != 0).any()):
            return None
        received = received.to(counts.device)
        received[:, start : start + here] = counts[:, :here] > 0
    return received


def is_mixture(run: ObservedRun) -> bool:
    """Return whether a row that an expert receives depends on several tokens."""
    first = run.firsts[0]
    if first.edge is None:
        return False
    seed = torch.zeros(
        len(first.incoming),
        first.rows.shape[1],
        dtype=first.rows.dtype,
        device=first.incoming.device,
    )
    seed[len(seed) // 2] = 1
    gradient = _differentiate([first.edge], run.start, [first.to_incoming(seed)])
    if gradient is None:
        return False
    tokens = gradient.reshape(len(run.output), -1).ne(0).any(dim=1)
    return int(tokens.sum()) > 1


def _differentiate(edges: Any, place: Any, seeds: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return the gradient at a place for gradients at edges; None if it does not matter there."""
    gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(
        edges, place, seeds, retain_graph=True, allow_unused=True
    )
    return gradients[0]


def choose(weights: torch.Tensor, received: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids and weights of the experts that ran, the largest weight first.

    Args:
        weights: # (num_tokens, num_experts)
        received: # (num_tokens, num_experts)

    Returns:
        Both # (num_tokens, top_k), padded with -1 and 0.
    """
    # Where an expert runs on every token, only a weight of zero shows that it was not chosen.
    runs_on_all = received.all(dim=0)  # (num_experts,)
    chosen = received & (~runs_on_all | (weights != 0))
    width = max(int(chosen.sum(dim=1).max()), 1)
    ranked = weights.double().masked_fill(~chosen, -torch.inf)
    ids = ranked.argsort(dim=1, descending=True, stable=True)[:, :width]
    none = ~chosen.gather(1, ids)
    return ids.masked_fill(none, -1), weights.gather(1, ids).masked_fill(none, 0)


def _pull_back(run: ObservedRun, edges: Any, seed: torch.Tensor) -> Sequence[torch.Tensor | None]:
    """Return the gradients at the outputs of products for a gradient at the block's output."""
    gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(
        run.output, edges, seed, retain_graph=True, allow_unused=True
    )
    return gradients


def _to_rows(product: Product, gradient: torch.Tensor | None) -> torch.Tensor:
    if gradient is None:
        gradient = torch.zeros(
            product.shape, dtype=product.rows.dtype, device=product.experts.device
        )
    return product.to_rows(gradient.reshape(product.shape))


def _agree(read: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    """Return whether a product's output and its wider copy have the same tokens and weights."""
    (tokens, weights), (wide_tokens, wide_weights) = read[0], read[-1]
    rounding = torch.finfo(weights.dtype).eps
    near = (
        weights.double() - wide_weights.double()
    ).abs() <= rounding * wide_weights.double().abs()
    return torch.equal(tokens, wide_tokens) and bool(near.all())


def _is_multiple(table: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether weights of an update are those of its layer, times one number for all."""
    is_used = table != 0
    ratios = table[is_used].double() / other[is_used].double()
    rounding = 4 * torch.finfo(table.dtype).eps
    return not len(ratios) or bool((ratios - ratios[0]).abs().max() <= rounding * ratios[0].abs())


def _merge(tables: list[torch.Tensor], counts: list[torch.Tensor]) -> torch.Tensor:
    """Return the weights of experts some of which end in several products, as with adapters."""
    merged, seen = tables[0], counts[0] > 0
    for table, count in zip(tables[1:], counts[1:], strict=True):
        both = seen & (count > 0)
        if not torch.equal(merged[both], table[both]):
            raise NotObservedError("parts of an expert get different weights")
        merged = torch.where(seen, merged, table)
        seen = seen | (count > 0)
    return merged
