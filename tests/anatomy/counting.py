"""Skeletons of the tiny families, and their parameter tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from moetool.anatomy.parameters import ParameterTable
from moetool.anatomy.routing.moe_layers import MoeLayer, find_experts
from moetool.anatomy.routing.top_k import find_top_k
from moetool.anatomy.skeleton.table import count_skeleton
from tests.families.tiny.configs import HIDDEN_SIZE, build_config, find_family
from tests.families.tiny.models import available, build_family
from tests.families.tiny.proof import Proof, prove, unreadable_families


@dataclass(frozen=True)
class CountedFamily:
    """A family's skeleton, its routed layers, how many experts they choose, and its table."""

    skeleton: PreTrainedModel
    layers: tuple[MoeLayer, ...]
    top_k: dict[MoeLayer, int | None]
    table: ParameterTable


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
    layers = find_experts(skeleton).layers
    top_k = {layer: find_top_k(skeleton, layer, hidden_size=HIDDEN_SIZE) for layer in layers}
    table = count_skeleton(skeleton, layers, top_k=top_k, dtype=dtype)
    return CountedFamily(skeleton, layers, top_k, table)


def readable_families() -> list[str]:
    """Return the families all of whose experts a rule reads; a test checks that it does."""
    return [name for name in available() if name not in unreadable_families()]


@cache
def prove_family(name: str) -> Proof:
    """Return what a tiny family's running model was seen to do."""
    return prove(build_family(name))
