"""One Mixture-of-Experts family: its model type, and the fields that its tiny configuration needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """A model type whose layers route tokens to experts.

    Args:
        model_type: The name of the configuration, also of the family.
        model_class: Class of the model, or None for what `AutoModelForCausalLM` makes of it.
        overrides: What the configuration needs beyond the common table; dicts are for the
            configurations inside it.
        runs_since: The first transformers whose model runs, if it is not the first that has it.
        broken_in: By version of transformers, such as "5.24", what its own code raises there when
            the model is called.
    """

    model_type: str
    model_class: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    runs_since: str | None = None
    broken_in: Mapping[str, str] = field(default_factory=dict)


def make_family(model_type: str, model_class: str | None = None, **overrides: Any) -> Family:
    """Return a family that runs in every version that has it."""
    return Family(model_type, model_class, overrides)
