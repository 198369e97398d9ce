"""Measured runs that confirmed estimates, by the kind of model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from moetool.quantizing.kinds import Quantization, QuantizedExperts


@dataclass(frozen=True)
class Confirmation:
    """Measured runs of one kind of model, compared with their estimates.

    Attributes:
        model_type: The architecture's name in transformers.
        quantization: The storage of the weights.
        models: The models whose geometry ran.
        gpu: The GPU's name.
        date: The day they ran.
        torch: torch's version.
        transformers: transformers' version.
        num_runs: The number of runs.
        worst_error: The largest difference between peaks of allocated memory, as a share of the
            measured one.
        source: The file with the measured figures.
        experts: Whether routed experts were quantized.
        stored_as: The published format in which the weights stayed; None if they were in none.
        is_training: Whether they were steps of training.
        is_light: Whether those had adapters, or an optimizer's states in 8 bits, or both.
    """

    model_type: str
    quantization: Quantization
    models: tuple[str, ...]
    gpu: str
    date: str
    torch: str
    transformers: str
    num_runs: int
    worst_error: float
    source: str
    experts: QuantizedExperts = QuantizedExperts.AS_LOADED
    stored_as: str | None = None
    is_training: bool = False
    is_light: bool = False

    @property
    def where(self) -> str:
        """The GPU and the day, for a report."""
        return f"{self.gpu}, {self.date}"


@cache
def read_confirmations() -> tuple[Confirmation, ...]:
    """Return all measured runs, in the order of the file."""
    text = files("moetool.memory.notes").joinpath("confirmed.json").read_text(encoding="utf-8")
    return tuple(
        Confirmation(
            **{
                **row,
                "quantization": Quantization(row["quantization"]),
                "models": tuple(row["models"]),
                "experts": QuantizedExperts(row.get("experts", QuantizedExperts.AS_LOADED)),
            }
        )
        for row in json.loads(text)
    )


def find_confirmation(
    model_type: str,
    quantization: Quantization,
    experts: QuantizedExperts = QuantizedExperts.AS_LOADED,
    *,
    stored_as: str | None = None,
    is_training: bool = False,
    is_light: bool = False,
) -> Confirmation | None:
    """Return the latest measured runs of a kind of model; None if there are none.

    Args:
        model_type: The architecture's name in transformers.
        quantization: The storage of the weights.
        experts: Whether routed experts are quantized.
        stored_as: The published format in which the weights stay.
        is_training: Whether they were steps of training.
        is_light: Whether those had adapters, or an optimizer's states in 8 bits, or both.
    """
    found = [
        each
        for each in read_confirmations()
        if (each.model_type, each.quantization, each.experts) == (model_type, quantization, experts)
        and (each.stored_as, each.is_training, each.is_light) == (stored_as, is_training, is_light)
    ]
    return max(found, key=lambda each: each.date, default=None)
