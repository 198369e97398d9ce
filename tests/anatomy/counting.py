"""Skeletons of the tiny families, and their parameter tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from moetool.anatomy.parameters import ParameterTable
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.anatomy.skeleton.table import count_skeleton
from tests.families.tiny.configs import build_config
from tests.families.tiny.families import find_family
from tests.families.tiny.models import available, build_family
from tests.families.tiny.proof import Proof, prove, unreadable_families


@dataclass(frozen=True)
class CountedFamily:
    """A family's skeleton with its routing, and its parameter table."""

    routed: RoutedSkeleton
    table: ParameterTable

    @property
    def skeleton(self) -> PreTrainedModel:
        """The model on the meta device."""
        return self.routed.model

    @property
    def layers(self) -> tuple[MoeLayer, ...]:
        """Its routed layers."""
        return self.routed.layers

    @property
    def top_k(self) -> Mapping[MoeLayer, int | None]:
        """Experts that each layer chooses for a token."""
        return self.routed.top_k


@cache
def build_family_skeleton(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a tiny family's model on the meta device."""
    config = build_config(name)
    model_class = find_family(name).model_class
    built_by = AutoModelForCausalLM.from_config if model_class is None else None
    with torch.device("meta"):
        build = built_by or getattr(transformers, str(model_class))._from_config
        model: PreTrainedModel = build(config, dtype=dtype)
    model.eval()
    return model


@cache
def count_family(name: str, dtype: torch.dtype = torch.float32) -> CountedFamily:
    """Return a tiny family, counted by its skeleton."""
    skeleton = build_family_skeleton(name, dtype)
    routed = RoutedSkeleton.of(skeleton)
    return CountedFamily(routed, count_skeleton(routed, dtype=dtype))


def readable_families() -> list[str]:
    """Return the families all of whose experts a rule reads; a test checks that it does."""
    return [name for name in available() if name not in unreadable_families()]


@cache
def prove_family(name: str) -> Proof:
    """Return the observations of a tiny family's running model."""
    return prove(build_family(name))
