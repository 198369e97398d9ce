"""A skeleton's table has the dtypes and bytes in which transformers loads a checkpoint."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from moetool.anatomy.components import Place
from moetool.anatomy.skeleton.placement import Placement
from moetool.anatomy.skeleton.table import count_skeleton
from tests.anatomy.counting import count_family
from tests.families.tiny.models import available, build_family


@pytest.mark.parametrize("name", available())
def test_every_row_has_the_dtypes_and_bytes_that_are_loaded(name: str, tmp_path: Path) -> None:
    family = count_family(name, torch.bfloat16)
    model = build_family(name)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)

    unreadable = family.routed.experts.unreadable
    placement = Placement(loaded, family.layers, other_experts=unreadable)
    num_bytes: Counter[Place] = Counter()
    dtypes: dict[Place, set[str]] = {}
    for path, parameter in loaded.named_parameters():
        place = placement.place(path)
        num_bytes[place] += parameter.numel() * parameter.element_size()
        dtypes.setdefault(place, set()).add(str(parameter.dtype).removeprefix("torch."))
    for row in family.table.rows:
        place = Place(row.stack, row.layer, row.component)
        assert row.dtype is not None
        assert set(row.dtype.split(" + ")) == dtypes[place], row
        assert row.num_bytes == num_bytes[place]


def test_some_families_keep_parameters_in_float32() -> None:
    for name in ("ernie4_5_moe", "hunyuan_v1_moe"):
        rows = count_family(name, torch.bfloat16).table.rows

        assert {row.dtype for row in rows if "router" in row.component} == {"float32"}
        assert {row.dtype for row in rows if "experts" in row.component} == {"bfloat16"}


def test_without_a_dtype_bytes_are_unknown() -> None:
    family = count_family("mixtral")

    table = count_skeleton(family.routed, dtype=None)

    assert {(row.dtype, row.num_bytes) for row in table.rows} == {(None, None)}
    assert table.num_bytes is None
