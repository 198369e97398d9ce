"""Parameters of GGUF files that converted tiny models don't show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moetool.anatomy.components import Component
from moetool.anatomy.gguf.table import count_gguf
from moetool.anatomy.headers.other_tensors import Reason
from moetool.anatomy.headers.table import HeaderTable
from moetool.anatomy.parameters import ActiveDefinition
from moetool.checkpoint.gguf.files import open_gguf
from tests.checkpoint.gguf.writer import TYPES, Tensors, moe_metadata, moe_tensors, write_gguf

EXPERTS = 8 * 3 * 256 * 256


def count(tmp_path: Path, tensors: Tensors, **metadata: Any) -> HeaderTable:
    return count_gguf(open_gguf(write_gguf(tmp_path / "a.gguf", moe_metadata(**metadata), tensors)))


@pytest.mark.parametrize("kind", sorted(set(TYPES) - {"i32"}))
def test_every_type_holds_the_same_parameters(tmp_path: Path, kind: str) -> None:
    table = count(tmp_path, moe_tensors(kind))
    components = table.table.count_components()
    assert components[Component.ROUTED_EXPERTS] == 2 * EXPERTS
    assert components[Component.EMBEDDING] == components[Component.LM_HEAD] == 1024 * 256
    active = table.table.count_active(ActiveDefinition.ALL)
    assert active is not None
    assert active.exact == table.table.total - 2 * EXPERTS * 6 // 8
    _, block, num_bytes = TYPES[kind]
    routed = [row for row in table.table.rows if row.component is Component.ROUTED_EXPERTS]
    assert [row.num_bytes for row in routed] == [EXPERTS // block * num_bytes] * 2
    assert {row.dtype for row in routed} == {kind}


def test_layers_that_predict_further_tokens_are_set_aside(tmp_path: Path) -> None:
    tensors = moe_tensors(num_layers=3) | {
        "blk.2.nextn.eh_proj.weight": ("f32", (256, 512)),
        "blk.2.nextn.embed_tokens.weight": ("f32", (1024, 256)),
    }
    whole = count(tmp_path, moe_tensors())
    table = count(tmp_path, tensors, block_count=3, nextn_predict_layers=1)
    assert table.table.total == whole.table.total
    assert table.num_layers == 2
    (group,) = table.other_tensors
    assert group.reason is Reason.MTP
    assert group.num_tensors == 14
    assert group.components[Component.ROUTED_EXPERTS] == EXPERTS


def test_tensors_that_are_not_parameters_are_set_aside(tmp_path: Path) -> None:
    others: dict[str, tuple[str, tuple[int, ...]]] = {
        "rope_freqs.weight": ("f32", (32,)),
        "blk.0.exp_probs_b.bias": ("f32", (8,)),
        "blk.0.ffn_up_exps.scale": ("f32", (8,)),
        "blk.0.attn_kv_b.weight": ("f32", (64, 256)),
        "blk.0.attn_k_b.weight": ("f32", (4, 32, 64)),
        "blk.0.attn_v_b.weight": ("f32", (4, 64, 32)),
    }
    table = count(tmp_path, moe_tensors() | others)
    by_reason = {group.reason: group.num_params for group in table.other_tensors}
    assert by_reason == {
        Reason.ROPE: 32,
        Reason.BUFFERS: 8,
        Reason.SCALES: 8,
        Reason.ABSORBED: 64 * 256,
    }
    whole = count(tmp_path, moe_tensors())
    assert table.table.total == whole.table.total + 2 * 4 * 32 * 64


def test_experts_may_be_numbered_as_in_early_files(tmp_path: Path) -> None:
    tensors = {name: each for name, each in moe_tensors().items() if "_exps" not in name}
    for layer in range(2):
        for expert in range(8):
            for part in ("gate", "up", "down"):
                tensors[f"blk.{layer}.ffn_{part}.{expert}.weight"] = ("q4_K", (256, 256))
    table, whole = count(tmp_path, tensors), count(tmp_path, moe_tensors())
    assert table.num_experts == whole.num_experts == {("decoder", 0): 8, ("decoder", 1): 8}
    assert table.table.count_active_of(Component.ROUTED_EXPERTS) == whole.table.count_active_of(
        Component.ROUTED_EXPERTS
    )


def test_a_dense_model_runs_everything(tmp_path: Path) -> None:
    tensors = {
        name: each
        for name, each in moe_tensors().items()
        if "exps" not in name and "inp" not in name
    }
    tensors["blk.0.ffn_up.weight"] = ("f32", (512, 256))
    table = count(tmp_path, tensors, expert_count=0, expert_used_count=0)
    active = table.table.count_active(ActiveDefinition.ALL)
    assert active is not None
    assert active.exact == table.table.total
    assert table.num_experts == {}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"expert_used_count": 0}, "does not state how many experts"),
        ({"expert_used_count": 9}, "top-9 of 8"),
        ({"expert_count": 4}, "states 4 experts"),
    ],
)
def test_active_parameters_in_doubt_are_unknown(
    tmp_path: Path, metadata: dict[str, int], words: str
) -> None:
    table = count(tmp_path, moe_tensors(), **metadata)
    assert table.active_unknown is not None
    assert words in table.active_unknown
    assert table.table.count_active(ActiveDefinition.ALL) is None


def test_a_matrix_of_an_unknown_name_may_be_run_or_not(tmp_path: Path) -> None:
    tensors = moe_tensors() | {"blk.0.strange_thing.weight": ("f32", (10, 10))}
    table = count(tmp_path, tensors)
    assert table.unclear == "blk.0.strange_thing.weight"
    active = table.table.count_active(ActiveDefinition.ALL)
    assert active is not None
    assert active.most - active.fewest == 100
