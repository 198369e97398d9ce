"""Scores and choices agree with ESFT's definition, computed decision by decision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool import read_trace, select_experts
from moetool.analysis.selection.result import Selection
from moetool.analysis.selection.scores import choose_experts
from moetool.errors import InputError, UsageError
from tests.analysis.random_traces import Router, list_decisions, make_random_trace
from tests.analysis.selection.reference import choose_reference, score_reference

SKEWED = Router(
    num_experts=12, top_k=3, num_layers=2, first_layer=1, popularity=[1.0 + i for i in range(12)]
)


def select(table: pa.Table, **options: object) -> Selection:
    options = {"num_experts": 12, "top_k": 3, **options}
    return select_experts(table.to_pandas(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("by", ["token", "gate"])
@pytest.mark.parametrize("average", ["micro", "macro"])
@pytest.mark.parametrize("top_p", [0.05, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_scores_and_choice_are_those_of_the_reference(
    by: str, average: str, top_p: float, seed: int
) -> None:
    table = make_random_trace((5, 13, 2, 30, 7), router=SKEWED, seed=seed)
    found = select(table, by=by, average=average, top_p=top_p)
    expected = score_reference(list_decisions(table), by=by, average=average, num_experts=12)
    assert {layer.layer: list(layer.scores or ()) for layer in found.layers} == expected
    for layer, scores in expected.items():
        assert list(found.experts[str(layer)]) == choose_reference(scores, top_p)


def test_scores_of_a_real_trace_are_those_of_the_reference(demo_trace: Path) -> None:
    frame = read_trace(demo_trace)
    few = frame[frame["prompt_id"].isin(frame["prompt_id"].unique()[::20])]
    found = select_experts(few, by="gate", domain="python")
    table = pa.Table.from_pandas(few[few["domain"] == "python"])
    expected = score_reference(list_decisions(table), by="gate", average="micro", num_experts=8)
    assert {layer.layer: list(layer.scores or ()) for layer in found.layers} == expected


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.floats(0.01, 1.0))
def test_ties_go_to_the_smaller_id_and_the_expert_that_reaches_top_p_is_the_last(
    parts: list[int], top_p: float
) -> None:
    scores = [round(part / max(1, sum(parts)), 4) for part in parts]
    chosen = choose_experts(scores, top_p=top_p)
    assert chosen == choose_reference(scores, top_p)
    total = 0.0
    for expert in chosen:
        assert total < top_p
        total += scores[expert]
    assert total >= top_p or len(chosen) == len(scores)


def test_experts_are_chosen_by_rounded_scores() -> None:
    # Experts 0 and 1 both score 0.3333, though expert 1 has one token more.
    experts = np.repeat([0, 1, 2], [9_999, 10_000, 10_001])
    table = pa.table(
        {
            "prompt_id": ["p"] * 30_000,
            "position": np.arange(30_000, dtype=np.int32),
            "layer": np.zeros(30_000, dtype=np.int16),
            "expert": experts.astype(np.int16),
        }
    )
    assert select(table, num_experts=3, top_k=1, top_p=0.5).experts == {"0": (2, 0)}
    assert choose_experts([0.3333, 0.33333, 0.33337], top_p=0.5) == [2, 1]


@settings(max_examples=15)
@given(st.permutations(range(12)))
def test_permuting_expert_ids_permutes_scores_and_choices(order: list[int]) -> None:
    table = make_random_trace((9, 8, 7), router=SKEWED)
    new_id = np.array(order, dtype=np.int16)
    renamed = table.set_column(
        table.column_names.index("expert"), "expert", pa.array(new_id[table["expert"].to_numpy()])
    )
    first, second = select(table, by="gate"), select(renamed, by="gate")
    for old, new in zip(first.layers, second.layers, strict=True):
        assert old.scores is not None
        assert new.scores is not None
        assert [new.scores[new_id[expert]] for expert in range(12)] == list(old.scores)
        if len(set(old.scores)) == 12:
            assert [int(new_id[expert]) for expert in old.selected] == list(new.selected)


@settings(max_examples=15)
@given(st.permutations(range(5)))
def test_the_order_of_prompts_does_not_matter(order: list[int]) -> None:
    table = make_random_trace((5, 13, 2, 30, 7), router=SKEWED)
    prompts = table["prompt_id"].to_numpy(zero_copy_only=False)
    parts = [table.filter(pa.array(prompts == f"p{index}")) for index in order]
    shuffled = pa.concat_tables(parts)
    first, second = (select(one, by="gate", average="macro") for one in (table, shuffled))
    assert first.experts == second.experts
    assert [layer.scores for layer in first.layers] == [layer.scores for layer in second.layers]
    assert first.overlap == pytest.approx(second.overlap)


def test_all_experts_of_every_token_make_scores_uniform() -> None:
    table = make_random_trace((4, 5), router=Router(num_experts=5, top_k=5, num_layers=1))
    found = select(table, num_experts=5, top_k=5, top_p=0.6)
    assert found.layers[0].scores == (0.2,) * 5
    assert found.layers[0].selected == (0, 1, 2)
    assert found.layers[0].overlap == 1.0


def test_domains_are_filtered_and_a_missing_one_is_named() -> None:
    table = make_random_trace((5, 13, 2, 30), router=SKEWED, domains=("code", "prose"))
    mask = np.array(table["domain"].to_pylist()) == "code"
    found, alone = select(table, domain="code"), select(table.filter(pa.array(mask)))
    assert found.experts == alone.experts
    assert found.num_prompts == alone.num_prompts == 2
    assert select(table, domain=["code", "prose"]).experts == select(table).experts
    with pytest.raises(UsageError, match="no domain 'cod'"):
        select(table, domain="cod")


def test_a_gate_score_needs_weights() -> None:
    table = make_random_trace((5, 6), router=SKEWED).drop_columns(["weight", "rank"])
    assert select(table).layers[0].gate_mass is None
    with pytest.raises(InputError, match="no weights"):
        select(table, by="gate")


def test_layers_that_are_not_read_have_empty_lists(demo_trace: Path) -> None:
    found = select_experts(demo_trace, layers=[2, 3])
    assert list(found.experts) == ["0", "1", "2", "3", "4", "5"]
    assert [bool(experts) for experts in found.experts.values()] == [
        layer in (2, 3) for layer in range(6)
    ]
    assert any("were not read" in note for note in found.notes)


@pytest.mark.parametrize("top_p", [0, -0.1, 1.1, None, float("nan"), "a"])
def test_a_top_p_out_of_range_is_refused(top_p: object) -> None:
    with pytest.raises(UsageError, match="cumulative score"):
        select(make_random_trace(router=SKEWED), top_p=top_p)
