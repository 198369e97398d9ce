"""Jensen-Shannon divergence between domains, without the bias of small samples.

Two samples of one distribution have a divergence above 0. Permuting the labels of the prompts of
both domains gives its expectation, which exceeds that of independent tokens: the tokens of a prompt
are alike. If the domains do differ, permuted samples are mixtures, so that slightly too much is
subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.specialization.decision_sizes import expect_divergence
from moetool.analysis.specialization.result import Divergence, DivergenceBaseline
from moetool.analysis.specialization.significance import find_entropy
from moetool.analysis.statistics.decision_sizes import Sizes
from moetool.trace.reading.counts import ExpertCounts, LayerCounts

# With more domains, pairs are too many to read.
MOST_DOMAINS = 20
# A mean needs fewer permutations than a p-value.
_MOST_PERMUTATIONS = 99


def measure_divergences(
    counts: ExpertCounts,
    label: NDArray[np.intp],
    *,
    names: Sequence[str],
    sizes: Sequence[Sequence[Sizes] | None],
    num_permutations: int,
    seed: int,
) -> tuple[Divergence, ...]:
    """Return the divergence of every pair of domains in every layer; none if there are too many.

    Args:
        counts: Counted by prompt.
        label: Index of each prompt's domain. # (num_prompts,)
        names: Of the domains.
        sizes: By layer, of each domain's decisions; None if they are unknown.
        num_permutations: Permutations behind the null; of more, the first 99.
        seed: Random seed.
    """
    if len(names) > MOST_DOMAINS:
        return ()
    rng = np.random.default_rng([seed, 2])
    found: dict[tuple[int, int, int], Divergence] = {}
    for one, other in combinations(range(len(names)), 2):
        (prompts,) = np.nonzero((label == one) | (label == other))
        is_one = label[prompts] == one
        # The first labelling is the observed one.
        tiled = np.tile(is_one, (min(num_permutations, _MOST_PERMUTATIONS), 1))
        labels = np.vstack([is_one[None], rng.permuted(tiled, axis=1)]).astype(np.float64)
        for index, layer in enumerate(counts.layers):
            known = sizes[index]
            by_chance = None
            if known is not None:
                by_chance = expect_divergence(layer.num_experts, known[one], known[other])
            found[index, one, other] = _compare(
                layer,
                layer.assignments[prompts],
                labels,
                names=(names[one], names[other]),
                baseline=DivergenceBaseline(by_chance),
            )
    return tuple(found[key] for key in sorted(found))


def find_divergence(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the divergence between counts in nats; NaN where either has none.

    Args:
        one: # (..., num_experts)
        other: # The same
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        a = one / one.sum(axis=-1, keepdims=True)
        b = other / other.sum(axis=-1, keepdims=True)
    divergence = find_entropy((a + b) / 2) - (find_entropy(a) + find_entropy(b)) / 2
    # Rounding may leave less than nothing.
    return np.where(np.isfinite(a + b).all(axis=-1), np.maximum(divergence, 0), np.nan)


def _compare(
    layer: LayerCounts,
    assignments: NDArray[np.int64],
    labels: NDArray[np.float64],
    *,
    names: tuple[str, str],
    baseline: DivergenceBaseline,
) -> Divergence:
    one = labels @ assignments  # (num_labellings, num_experts)
    other = assignments.sum(axis=0) - one
    values = find_divergence(one, other)
    known = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(known):
        return Divergence(layer.stack, layer.layer, *names, None, None, None, baseline)
    return Divergence(
        layer.stack,
        layer.layer,
        *names,
        divergence_nats=float(values[0]),
        null_nats=float(known.mean()),
        excess_nats=float(values[0] - known.mean()),
        baseline=baseline,
    )
