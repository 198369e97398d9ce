"""A lower bound on the weights of a system that is known from reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReportedWeights:
    """The reported weights of a system, and the bound that follows from them.

    Attributes:
        title: The system's name, as its maker writes it.
        source: The report.
        total: Reported parameters in the report's words; None if there is no report.
        total_params_least: The least of them; None if there is no report.
        total_params_most: The most of them; None if there is no report.
        active: Reported active parameters in the report's words; None if there is no report.
        experts: Reported experts; None if there is no report.
        bits_per_parameter: Assumed bits of a parameter.
        weights_bytes_least: The least parameters in these bits; None if there is no report.
        num_gpus_least: The fewest of the named GPU whose memory these bytes fill; None if no GPU was
            named, or if there is no report.
    """

    title: str
    source: str
    total: str | None
    total_params_least: int | None
    total_params_most: int | None
    active: str | None
    experts: str | None
    bits_per_parameter: int
    weights_bytes_least: int | None
    num_gpus_least: int | None
