"""Sizes of a traced model: its parameters, and the FLOPs of a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moetool.plain import make_plain


@dataclass(frozen=True)
class ModelCounts:
    """The parameters of a model and the FLOPs of a token, as `moetool inspect` states them.

    None means unknown.

    Attributes:
        total_parameters: All parameters, each counted once.
        active_parameters: Those that one text token runs; None also where that differs from token
            to token.
        flops_per_token: FLOPs of a prompt token, averaged over a prompt.
        flops_prompt_tokens: Length of that prompt.
        dense_flops_per_token: The same if every token ran every routed expert.
    """

    total_parameters: int | None = None
    active_parameters: int | None = None
    flops_per_token: float | None = None
    flops_prompt_tokens: int | None = None
    dense_flops_per_token: float | None = None

    @property
    def active_share(self) -> float | None:
        """Active parameters over all parameters."""
        if self.active_parameters is None or not self.total_parameters:
            return None
        return self.active_parameters / self.total_parameters

    @property
    def flops_ratio(self) -> float | None:
        """FLOPs of a prompt token over those of the dense model."""
        if self.flops_per_token is None or self.dense_flops_per_token is None:
            return None
        # Less than one FLOP is not a measurement, and a quotient by it may not be finite.
        if self.dense_flops_per_token < 1:
            return None
        return self.flops_per_token / self.dense_flops_per_token

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and both ratios as plain values."""
        plain: dict[str, Any] = make_plain(self)
        return {**plain, "active_share": self.active_share, "flops_ratio": self.flops_ratio}
