"""Repetition from token to token: by loops, and of routers whose rule is known."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations, pairwise

import numpy as np
import pyarrow as pa
import pytest

from moetool.analysis.specialization import repetition
from moetool.analysis.specialization.decision_sizes import find_any_chance
from moetool.analysis.specialization.from_trace import SpecializationOptions, measure_trace
from moetool.analysis.specialization.repetition import count_common
from moetool.analysis.specialization.result import Repetition
from tests.analysis.dropped_choices import drop_choices_by_rank
from tests.analysis.random_traces import Router, list_decisions, make_random_trace, open_rows

SKEWED = Router(num_experts=8, top_k=2, num_layers=2, popularity=(8, 4, 2, 1, 1, 1, 1, 1))


def measure(table: pa.Table, *, router: Router) -> tuple[Repetition, ...]:
    options = SpecializationOptions(num_permutations=1)
    return measure_trace(open_rows(table, router=router), options).repetition


@pytest.mark.parametrize(("num_experts", "first", "second"), [(5, 1, 1), (8, 2, 1), (6, 3, 2)])
def test_the_chance_of_a_common_expert_is_that_of_all_choices(
    num_experts: int, first: int, second: int
) -> None:
    pairs = [
        bool({*one} & {*other})
        for one in combinations(range(num_experts), first)
        for other in combinations(range(num_experts), second)
    ]
    assert find_any_chance(num_experts, first, second) == pytest.approx(np.mean(pairs))


def test_mixtrals_baselines_are_those_of_its_paper() -> None:
    assert 1 / 8 == 0.125
    assert round(find_any_chance(8, 2, 2), 3) == 0.464


@pytest.mark.parametrize("few_experts", [0, 64])
def test_common_experts_are_counted_without_those_that_did_not_run(
    few_experts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repetition, "_FEW_EXPERTS", few_experts)
    monkeypatch.setattr(repetition, "_CELLS_AT_ONCE", 8)
    one = np.array([[0, 1, 2], [3, -1, -1], [-1, -1, -1]])
    other = np.array([[2, 0, 5], [4, 3, -1], [-1, -1, -1]])
    assert count_common(one, other).tolist() == [2, 1, 0]


def test_shares_are_those_of_a_reading_token_by_token() -> None:
    table = make_random_trace((9, 4, 12, 7, 1), router=SKEWED, seed=3)
    # Two positions of a prompt are missing: their neighbours do not follow each other.
    gone = np.isin(table.column("position").to_numpy(), [3, 4])
    gone &= np.array(table.column("prompt_id").to_pylist()) == "p2"
    table = table.filter(pa.array(~gone))
    decisions = list_decisions(table)
    for found in measure(table, router=SKEWED):
        mine = [
            each
            for each in decisions
            if each.layer == found.layer and found.domain in (None, each.domain)
        ]
        pairs = [
            (one.experts, other.experts)
            for one, other in pairwise(mine)
            if one.prompt_id == other.prompt_id and other.position == one.position + 1
        ]
        assert found.num_pairs == len(pairs)
        assert found.first == pytest.approx(np.mean([a[0] == b[0] for a, b in pairs]))
        assert found.any == pytest.approx(np.mean([bool({*a} & {*b}) for a, b in pairs]))
        assert found.overlap == pytest.approx(np.mean([len({*a} & {*b}) / 2 for a, b in pairs]))
        firsts = np.bincount([each.experts[0] for each in mine]) / len(mine)
        assert found.shuffled.first == pytest.approx(np.square(firsts).sum())
        use = np.bincount([expert for each in mine for expert in each.experts]) / len(mine)
        assert found.shuffled.overlap == pytest.approx(np.square(use).sum() / 2)


@pytest.mark.parametrize("chances", [(0, 0), (0, 0.6), (0.1, 0.6)], ids=str)
@pytest.mark.parametrize("popularity", [(), SKEWED.popularity], ids=["even", "skewed"])
def test_a_router_without_memory_lands_on_its_baselines(
    popularity: tuple[float, ...], chances: tuple[float, float]
) -> None:
    router = Router(num_experts=8, top_k=2, num_layers=1, popularity=popularity)
    table = drop_choices_by_rank(make_random_trace((800,) * 8, router=router), chances)
    found, *_ = measure(table, router=router)
    for name in ("first", "any", "overlap"):
        share, shuffled = getattr(found, name), getattr(found.shuffled, name)
        # Overlaps of neighbouring pairs have a decision in common, which doubles their variance
        # at most; those of shuffled tokens are drawn as well.
        error = np.sqrt(0.25 * (2 / found.num_pairs + 1 / 10_000))
        assert abs(share - shuffled) < 4 * error, name
        by_chance = getattr(found.baseline, name)
        if not popularity:
            assert abs(share - by_chance) < 4 * error, name
        else:
            assert share > by_chance + 4 * error, name
    always = {"first": 1 / 8, "any": find_any_chance(8, 2, 2), "overlap": 2 / 8}
    if not any(chances):
        assert asdict(found.baseline) == pytest.approx(always)
    else:
        assert (found.baseline.any or 1) < 0.6 * always["any"]


def test_baselines_are_those_of_a_reading_pair_by_pair() -> None:
    router = Router(num_experts=8, top_k=3, num_layers=1)
    table = drop_choices_by_rank(make_random_trace((9, 14, 12, 7), router=router), (0.2, 0.3, 0.5))
    decisions = list_decisions(table)
    for found in measure(table, router=router):
        pairs = [
            (one.experts, other.experts)
            for one, other in pairwise(decisions)
            if one.prompt_id == other.prompt_id and found.domain in (None, one.domain)
        ]
        sizes = [[sum(expert >= 0 for expert in experts) for experts in pair] for pair in pairs]
        has_two = [one[0] >= 0 and other[0] >= 0 for one, other in pairs]
        assert found.baseline.first == pytest.approx(np.mean(has_two) / 8)
        chances = [find_any_chance(8, *pair) for pair in sizes]
        assert found.baseline.any == pytest.approx(np.mean(chances))
        assert found.baseline.overlap == pytest.approx(np.mean([a * b for a, b in sizes]) / 8 / 3)


def test_every_expert_for_every_token_always_repeats() -> None:
    router = Router(num_experts=3, top_k=3, num_layers=1)
    found, *_ = measure(make_random_trace(router=router), router=router)
    for name in ("any", "overlap"):
        shares = [getattr(each, name) for each in (found, found.baseline, found.shuffled)]
        assert shares == pytest.approx([1, 1, 1])


def test_without_ranks_no_first_choice_is_known() -> None:
    table = make_random_trace().drop_columns(["rank"])
    source = open_rows(table, router=Router())
    result = measure_trace(source, SpecializationOptions(num_permutations=1))
    found, *_ = result.repetition
    assert (found.first, found.shuffled.first, found.baseline.first) == (None, None, None)
    assert found.any is not None
    assert any("no ranks by weight" in note for note in result.notes)


def test_prompts_of_one_token_have_no_pairs() -> None:
    found, *_ = measure(make_random_trace((1, 1, 1, 1)), router=Router())
    assert (found.num_pairs, found.first, found.any, found.overlap) == (0, None, None, None)
