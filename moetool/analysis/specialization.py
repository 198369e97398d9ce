"""Do experts specialize by domain, beyond what the choice of prompts explains?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.lift import DomainExpert, measure_lift
from moetool.errors import InputError
from moetool.trace.counts import ExpertCounts, LayerCounts

# Permutations drawn at a time: bounds the memory of the permuted counts.
_BATCH = 64


@dataclass(frozen=True)
class LayerSpecialization:
    """How much one layer's choice of expert tells about the domain.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        mutual_information_nats: Between expert and domain over assignments:
            `H(expert) + H(domain) - H(expert, domain)`.
        null_nats: Its mean when the prompts' labels are permuted.
        excess_nats: The difference: what the domains explain.
        normalized: `excess_nats / H(domain)`, 1 if the expert gives the domain away.
        p_value: Share of permutations that reach the observed value, the observation counted as
            one: `(1 + #{null >= observed}) / (1 + permutations)`.
    """

    stack: str
    layer: int
    mutual_information_nats: float
    null_nats: float
    excess_nats: float
    normalized: float
    p_value: float


@dataclass(frozen=True)
class DomainSize:
    """How much of a domain was traced."""

    domain: str
    prompts: int
    tokens: int


@dataclass(frozen=True)
class Specialization:
    """The whole answer: per layer whether, per domain and expert how."""

    domains: tuple[DomainSize, ...]
    layers: tuple[LayerSpecialization, ...]
    experts: tuple[DomainExpert, ...]
    num_permutations: int
    seed: int
    notes: tuple[str, ...]


def measure_specialization(
    counts: ExpertCounts,
    *,
    num_permutations: int = 999,
    seed: int = 0,
) -> Specialization:
    """Return how far experts specialize by domain.

    The unit of permutation is the prompt: tokens of one prompt are no independent witnesses, and
    permuting them would call any two heaps of text different.

    Args:
        counts: Counted by prompt.
        num_permutations: Permutations of the prompts' labels.
        seed: Of the permutations.

    Raises:
        InputError: There are fewer than two domains.
    """
    names = sorted(set(counts.domains))
    if len(names) < 2:
        raise InputError(
            f"All prompts are of one domain, {names[0]!r}: there is nothing to tell apart.",
            hint="Label the prompts with a domain each; see sample_prompts/README.md.",
        )
    label = np.array([names.index(domain) for domain in counts.domains])
    observed = _information(counts, label[None])[0]  # (num_layers,)
    rng = np.random.default_rng(seed)
    null_sum = np.zeros(len(counts.layers))
    num_reached = np.zeros(len(counts.layers), dtype=np.int64)
    for start in range(0, num_permutations, _BATCH):
        size = min(_BATCH, num_permutations - start)
        null = _information(counts, rng.permuted(np.tile(label, (size, 1)), axis=1))
        null_sum += null.sum(axis=0)
        # A permutation that only swaps equals must count as reaching the observed value.
        num_reached += (null >= observed - 1e-12).sum(axis=0)
    null_mean = null_sum / max(1, num_permutations)
    layers = tuple(
        LayerSpecialization(
            stack=layer.stack,
            layer=layer.layer,
            mutual_information_nats=float(observed[index]),
            null_nats=float(null_mean[index]),
            excess_nats=float(observed[index] - null_mean[index]),
            normalized=float(
                (observed[index] - null_mean[index]) / _domain_entropy(layer, label, len(names))
            ),
            p_value=float((1 + num_reached[index]) / (1 + num_permutations)),
        )
        for index, layer in enumerate(counts.layers)
    )
    return Specialization(
        domains=_domain_sizes(counts, names),
        layers=layers,
        experts=tuple(measure_lift(counts)),
        num_permutations=num_permutations,
        seed=seed,
        notes=counts.notes,
    )


def _information(counts: ExpertCounts, labels: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the mutual information of every labelling and layer, in nats.

    Args:
        counts: Counted by prompt.
        labels: A domain index for every prompt. # (num_labellings, num_prompts)

    Returns:
        # (num_labellings, num_layers)
    """
    num_domains = int(labels.max()) + 1
    # One row a domain: 1 for its prompts, of shape (num_labellings, num_domains, num_prompts).
    member = (labels[:, None, :] == np.arange(num_domains)[:, None]).astype(np.float64)
    information = np.empty((len(labels), len(counts.layers)))
    for index, layer in enumerate(counts.layers):
        joint = member @ layer.assignments  # (num_labellings, num_domains, num_experts)
        joint /= joint.sum(axis=(1, 2), keepdims=True)
        information[:, index] = (
            _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=2)) - _entropy(joint, axis=(1, 2))
        )
    return information


def _entropy(p: NDArray[np.float64], *, axis: int | tuple[int, ...] = -1) -> NDArray[np.float64]:
    """Return `-sum(p ln p)` with `0 ln 0 = 0`, in nats."""
    log = np.log(p, out=np.zeros_like(p), where=p > 0)
    entropy: NDArray[np.float64] = -(p * log).sum(axis=axis)
    return entropy


def _domain_entropy(layer: LayerCounts, label: NDArray[np.intp], num_domains: int) -> float:
    sizes = np.bincount(label, weights=layer.assignments.sum(axis=1), minlength=num_domains)
    return float(_entropy(sizes / sizes.sum()))


def _domain_sizes(counts: ExpertCounts, names: list[str]) -> tuple[DomainSize, ...]:
    # Every layer decides for every token, so any one tells; the largest is safe if some skip.
    decisions = np.max([layer.decisions for layer in counts.layers], axis=0)  # (num_prompts,)
    label = np.array([names.index(domain) for domain in counts.domains])
    return tuple(
        DomainSize(
            domain=name,
            prompts=int((label == index).sum()),
            tokens=int(decisions[label == index].sum()),
        )
        for index, name in enumerate(names)
    )
