"""Skeletons of published models."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from moetool.anatomy.skeleton.build import build_whole_skeleton
from moetool.catalogue.published import read_published_config
from moetool.checkpoint.config import make_config


def build_published_skeleton(name: str, *, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """Return a published model on the meta device."""
    fields = read_published_config(name)
    config = make_config(fields, name=name, label=name, code=None, trust_remote_code=False)
    return build_whole_skeleton(config, dtype=dtype)
