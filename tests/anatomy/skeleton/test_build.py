"""Skeletons are created without initial values; tensors with data get theirs."""

from __future__ import annotations

import torch
from torch import nn

from moetool.anatomy.skeleton.build import created_on


def test_only_tensors_without_data_are_not_filled() -> None:
    filled = torch.zeros(3)

    with created_on("meta"):
        layer = nn.Linear(3, 3)
        nn.init.constant_(filled, 2)
        nn.init.uniform_(tensor=layer.weight)

    assert layer.weight.is_meta
    assert filled.tolist() == [2, 2, 2]


def test_models_with_data_are_filled() -> None:
    with created_on("cpu"):
        layer = nn.Linear(64, 64)

    assert 0 < layer.weight.std() < 1
