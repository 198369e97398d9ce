"""Experts to drop: the smallest scores, as many from each group, and never too many."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool import select_experts
from moetool.analysis.selection.pruning.drops import count_drops, keep_experts
from moetool.errors import InputError, UsageError
from tests.analysis.random_traces import Router, list_decisions, make_random_trace

ROUTER = Router(num_experts=12, top_k=2, num_layers=2, popularity=[1.0 + i for i in range(12)])


@given(
    st.lists(st.integers(0, 5).map(float), min_size=12, max_size=12),
    st.sampled_from([1, 2, 3, 4]),
    st.floats(0.25, 0.6),
)
def test_each_group_loses_its_smallest_scores(
    scores: list[float], num_groups: int, ratio: float
) -> None:
    drops = count_drops(12, ratio=ratio, top_k=1, num_groups=num_groups)
    kept = keep_experts(scores, drops)
    assert kept == sorted(set(kept))
    size = 12 // num_groups
    for group in range(num_groups):
        members = range(group * size, (group + 1) * size)
        inside = [expert for expert in members if expert in kept]
        outside = [expert for expert in members if expert not in kept]
        assert len(outside) == drops.per_group == round(int(12 * ratio) / num_groups)
        # Pairs of score and distance from the end, so that equal scores are ordered too.
        order = {expert: (scores[expert], -expert) for expert in members}
        assert all(order[one] > order[other] for one in inside for other in outside)


def test_frequency_and_gate_mass_are_counted_as_they_are() -> None:
    table = make_random_trace((20, 30, 25), router=ROUTER)
    for by in ("token", "gate"):
        found = select_experts(table.to_pandas(), by=by, prune_ratio=0.25, num_experts=12, top_k=2)
        assert found.pruning is not None
        for layer in found.pruning.layers:
            mass = dict.fromkeys(range(12), 0.0)
            for decision in list_decisions(table):
                if decision.layer == layer.layer:
                    for expert, weight in zip(decision.experts, decision.weights, strict=True):
                        mass[expert] += 1 if by == "token" else weight
            order = sorted(mass, key=lambda expert: (mass[expert], -expert))
            assert list(layer.dropped) == sorted(order[:3])
            assert found.pruning.retained[f"model.layers.{layer.layer}.mlp"] == layer.retained
            assert set(layer.retained) | set(layer.dropped) == set(range(12))
    assert any("name its modules" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 0.05, "top_k": 2}, "drops no expert"),
        ({"ratio": 0.95, "top_k": 2}, "leaves 1 of 12"),
        ({"ratio": 0.25, "top_k": 2, "num_groups": 5}, "don't divide into 5"),
        ({"ratio": 0.1, "top_k": 2, "num_groups": 4}, "in 4 groups"),
        ({"ratio": 0.7, "top_k": 3, "num_groups": 4, "top_groups": 2}, "leaves 2 of 12"),
    ],
)
def test_drops_that_leave_too_much_or_too_little_are_refused(
    options: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        count_drops(12, **options)  # type: ignore[arg-type]


def test_groups_come_from_the_model(demo_trace: Path) -> None:
    found = select_experts(demo_trace, prune_ratio=0.25, model="demo")
    assert found.pruning is not None
    assert found.pruning.num_groups == 1
    assert list(found.pruning.retained) == [f"model.layers.{layer}.mlp" for layer in range(6)]
    grouped = select_experts(demo_trace, prune_ratio=0.25, groups=2)
    assert grouped.pruning is not None
    for layer in grouped.pruning.layers:
        assert sorted(expert // 4 for expert in layer.dropped) == [0, 1]


def test_saliency_decides_alone_and_must_be_of_the_model(demo_trace: Path) -> None:
    saliency = {
        layer: [float((expert * 3 + layer) % 8) for expert in range(8)] for layer in range(6)
    }
    found = select_experts(demo_trace, by="saliency", prune_ratio=0.5, saliency=saliency)
    assert found.pruning is not None
    for layer in found.pruning.layers:
        assert {saliency[layer.layer][expert] for expert in layer.dropped} == {0.0, 1.0, 2.0, 3.0}
    assert found.experts == select_experts(demo_trace).experts
    del saliency[3]
    with pytest.raises(InputError, match="no saliency in layer 3"):
        select_experts(demo_trace, by="saliency", prune_ratio=0.5, saliency=saliency)
    with pytest.raises(UsageError, match="need each other"):
        select_experts(demo_trace, by="saliency", prune_ratio=0.5)
    with pytest.raises(UsageError, match="none are"):
        select_experts(demo_trace, groups=2)
