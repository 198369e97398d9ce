"""The shares that experts of limited capacity would drop, as values of a result."""

from __future__ import annotations

from dataclasses import dataclass

from moetool.analysis.balance.capacity.drops import Policy


@dataclass(frozen=True)
class DroppedBaseline:
    """The shares that a uniform random router would drop; see `CapacityShare`."""

    dropped_share: float | None
    by_position: tuple[float | None, ...]


@dataclass(frozen=True)
class CapacityShare:
    """The share of assignments that experts of limited capacity would drop.

    Attributes:
        factor: Capacity factor.
        policy: Who comes first: `position` or `probability`.
        tokens_per_batch: As asked for, or the mean size of the batches; None if it is unknown.
        dropped_share: Dropped assignments over all.
        by_position: The same by decile of the place in the batch; None for deciles without tokens,
            and for all if it is unknown.
        baseline: Of a uniform random router: `dropped_share` and `by_position`.
    """

    factor: float
    policy: Policy
    tokens_per_batch: float | None
    dropped_share: float | None
    by_position: tuple[float | None, ...] | None
    baseline: DroppedBaseline


@dataclass(frozen=True)
class LayerShare:
    """A share of one layer at a capacity factor, and that of a uniform random router."""

    factor: float
    share: float | None
    baseline: float | None


@dataclass(frozen=True)
class ExpertChoice:
    """Expert choice as a counterfactual.

    Attributes:
        factor: Capacity factor.
        tokens_per_batch: As asked for, or the mean size of the batches.
        share_without_expert: Tokens that no expert takes, over all.
        baseline: The same for experts that take tokens at random.
    """

    factor: float
    tokens_per_batch: float | None
    share_without_expert: float | None
    baseline: float | None
