"""Auxiliary losses that training adds for balance, as a trace's choices and probabilities have them.

With `c` the assignments of each of `E` experts in `T` decisions of top-k, `N` their sum, and `P` the
mean over the decisions of each expert's probability, of which a decision's sum to 1:

- `switch`: `E sum(c / (T k) P)` per layer, averaged over layers: 1 if even (Switch Transformer,
  arXiv 2101.03961, eq. 4; `switch_load_balancing_loss_func` of Megatron-LM);
- `huggingface`: `E sum(c / T P)` with the layers' tokens pooled: k if even
  (`load_balancing_loss_func` of transformers, before its coefficient);
- `olmoe`: `E sum(c / T P)` per layer, averaged over layers: k if even (OLMoE, arXiv 2409.02060);

An even load of decisions that chose fewer than k experts gives `N / (T k)` and `N / T` instead.

- `mean_squared`: mean over experts of `(c / (T k) - 1 / E)**2`, averaged over layers, as tutorials
  show it; it is `cv**2 / E**2`, and a random router gives `(E - k) / (T k E**2)`;
- `z_loss`: mean over decisions of `logsumexp(logits)**2` (ST-MoE, arXiv 2202.08906), averaged over
  layers; `(ln E)**2` where all logits are 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Logits are known from rounded probabilities up to an interval, which may be this wide.
_WIDEST_INTERVAL = 0.05


@dataclass(frozen=True)
class Loss:
    """A loss, and the one of an even router.

    Attributes:
        name: As the module lists them.
        value: None where it is unknown.
        baseline: Of a uniform random router; of zero logits for z-loss.
    """

    name: str
    value: float | None
    baseline: float | None


@dataclass(frozen=True)
class LayerLosses:
    """The parts of one layer that losses are made of.

    Attributes:
        load: Assignments of each expert. # (num_experts,)
        num_decisions: Decisions of the layer; None if top-k is unknown, like the next two.
        top_k: Of the layer.
        mean_squared_baseline: Expected from a uniform random router.
        mean_probability: Of each expert; None if it is unknown. # (num_experts,)
        z_loss: None if it is unknown.
    """

    load: NDArray[np.int64]
    num_decisions: int | None
    top_k: int | None
    mean_squared_baseline: float | None
    mean_probability: NDArray[np.float64] | None
    z_loss: float | None

    @property
    def switch(self) -> float | None:
        """The loss of this layer as Switch and Megatron-LM define it."""
        if self.mean_probability is None or not self.num_decisions or not self.top_k:
            return None
        product = float((self.load * self.mean_probability).sum())
        return len(self.load) * product / (self.num_decisions * self.top_k)

    @property
    def switch_baseline(self) -> float | None:
        """That loss of an even load: 1 if every decision chose top-k experts."""
        if not self.num_decisions or not self.top_k:
            return None
        return float(self.load.sum() / (self.num_decisions * self.top_k))

    @property
    def mean_squared(self) -> float | None:
        """The loss of this layer as tutorials show it."""
        if not self.load.any():
            return None
        return float(np.mean((self.load / self.load.sum() - 1 / len(self.load)) ** 2))


class ProbabilityMeter:
    """Adds up the probabilities of one layer's decisions.

    Attributes:
        num_decisions: Decisions so far.
        num_unnormalized: Of these, decisions whose probabilities are all 0.

    Args:
        num_experts: Experts of the layer.
        with_logits: The probabilities are those of a sigmoid, from which logits follow.
    """

    def __init__(self, num_experts: int, *, with_logits: bool) -> None:
        self.num_decisions = self.num_unnormalized = 0
        self._sum = np.zeros(num_experts)
        self._with_logits = with_logits
        self._squared_low, self._squared_high, self._squared = 0.0, 0.0, 0.0

    def add(self, probabilities: NDArray[np.float16]) -> None:
        """Add decisions: (num_decisions, num_experts)."""
        values = probabilities.astype(np.float64)
        totals = values.sum(axis=1, keepdims=True)
        self.num_decisions += len(values)
        self.num_unnormalized += int((totals == 0).sum())
        self._sum += np.divide(values, totals, out=np.zeros_like(values), where=totals > 0).sum(
            axis=0
        )
        if self._with_logits:
            # Neighbours halfway to the next float16 bound the probability before rounding.
            half = np.spacing(probabilities).astype(np.float64) / 2
            low, exact, high = (
                _sum_exponents(np.clip(values + shift, 0, 1)) for shift in (-half, 0, half)
            )
            least = np.where((low < 0) & (high > 0), 0.0, np.minimum(np.abs(low), np.abs(high)))
            self._squared_low += float((least**2).sum())
            self._squared += float((exact**2).sum())
            self._squared_high += float((np.maximum(np.abs(low), np.abs(high)) ** 2).sum())

    def find_mean(self) -> NDArray[np.float64] | None:
        """Return each expert's mean share of a decision's probability: (num_experts,)."""
        if not self.num_decisions or self.num_unnormalized:
            return None
        return self._sum / self.num_decisions

    def find_z_loss(self) -> float | None:
        """Return the z-loss; None if the logits don't follow, or only roughly."""
        if not self._with_logits or not self.num_decisions:
            return None
        width = self._squared_high - self._squared_low
        if not math.isfinite(width) or width > _WIDEST_INTERVAL * self._squared:
            return None
        return self._squared / self.num_decisions


def summarize_losses(layers: Sequence[LayerLosses]) -> tuple[Loss, ...]:
    """Return each loss of all layers together."""
    pooled, pooled_baseline = _pool(layers)
    return (
        Loss(
            "switch",
            _average([layer.switch for layer in layers]),
            _average([layer.switch_baseline for layer in layers]),
        ),
        Loss("huggingface", pooled, pooled_baseline),
        Loss(
            "olmoe",
            _average([_multiply(layer.switch, layer.top_k) for layer in layers]),
            _average([_multiply(layer.switch_baseline, layer.top_k) for layer in layers]),
        ),
        Loss(
            "mean_squared",
            _average([layer.mean_squared for layer in layers]),
            _average([layer.mean_squared_baseline for layer in layers]),
        ),
        Loss(
            "z_loss",
            _average([layer.z_loss for layer in layers]),
            _average([math.log(len(layer.load)) ** 2 for layer in layers]),
        ),
    )


def _pool(layers: Sequence[LayerLosses]) -> tuple[float | None, float | None]:
    """Return the loss of transformers, which takes all layers' tokens together, and the even one."""
    sizes = [layer.num_decisions for layer in layers if layer.num_decisions]
    if len({len(layer.load) for layer in layers}) != 1 or len(sizes) != len(layers):
        return None, None
    load = np.sum([layer.load for layer in layers], axis=0) / sum(sizes)
    sums = [
        layer.mean_probability * size
        for layer, size in zip(layers, sizes, strict=True)
        if layer.mean_probability is not None
    ]
    if len(sums) != len(layers):
        return None, float(load.sum())
    mean = np.sum(sums, axis=0) / sum(sizes)
    return float(len(load) * (load * mean).sum()), float(load.sum())


def _multiply(value: float | None, factor: int | None) -> float | None:
    return None if value is None or factor is None else value * factor


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _sum_exponents(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `log(sum(exp(logit)))` of sigmoids: the exponential of a logit is `p / (1 - p)`."""
    with np.errstate(divide="ignore"):
        sums: NDArray[np.float64] = np.log((probabilities / (1 - probabilities)).sum(axis=1))
    return sums
