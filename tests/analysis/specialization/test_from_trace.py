"""Specialization of stored traces: columns, layers, parts in any order, and what is missing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from moetool.analysis.specialization.by_token.measure import measure_token_specialization
from moetool.analysis.specialization.from_trace import SpecializationOptions, measure_trace
from moetool.analysis.specialization.given_token import token_sample
from moetool.analysis.specialization.result import Specialization
from moetool.errors import InputError, UsageError
from tests.analysis.dropped_choices import drop_choices_by_rank
from tests.analysis.random_traces import Router, make_random_trace, open_rows

LENGTHS = (40, 55, 30, 45, 60, 35)
TABLE = make_random_trace(LENGTHS, num_token_ids=9)


def measure(table: pa.Table = TABLE, **options: Any) -> Specialization:
    chosen = SpecializationOptions(num_permutations=19, **options)
    return measure_trace(open_rows(table), chosen)


def reorder(table: pa.Table, names: tuple[str, ...]) -> pa.Table:
    prompts = np.array(table.column("prompt_id").to_pylist())
    return pa.concat_tables([table.filter(pa.array(prompts == name)) for name in names])


def test_every_list_covers_every_layer() -> None:
    result = measure()
    places = {("decoder", 0), ("decoder", 1), ("decoder", 2)}
    for items in (result.layers, result.experts, result.divergences, result.repetition):
        assert {(each.stack, each.layer) for each in items} == places
    for layer in result.layers:
        assert (layer.num_experts, layer.top_k, layer.num_tokens) == (8, 2, sum(LENGTHS))
        assert layer.shared_share == 1
        assert layer.conditional_p_value is not None
        assert layer.baseline is not None
        assert layer.baseline.same_domain_overlap == pytest.approx(0.25)
        assert layer.baseline.other_domain_overlap == pytest.approx(0.25)
    assert result.trace is not None
    assert result.trace.num_assignments == TABLE.num_rows
    assert result.verdict.num_tested_layers == result.verdict.num_shared_layers == 3


def test_chosen_layers_are_those_of_the_whole_trace() -> None:
    whole, part = measure(), measure(layers=[2])
    (layer,) = part.layers
    known = {
        name: value
        for name, value in vars(whole.layers[2]).items()
        # The rates of false discoveries depend on how many layers are looked at.
        if not name.endswith("q_value")
    }
    assert {name: getattr(layer, name) for name in known} == known
    assert part.divergences == tuple(each for each in whole.divergences if each.layer == 2)
    assert part.repetition == tuple(each for each in whole.repetition if each.layer == 2)
    with pytest.raises(UsageError, match="no routed layer 3"):
        measure(layers=[3])


def test_the_order_of_prompts_changes_no_observed_figure() -> None:
    one = measure()
    other = measure(reorder(TABLE, ("p4", "p1", "p5", "p0", "p3", "p2")))
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        for name in (
            "mutual_information_nats",
            "conditional_information_nats",
            "same_domain_overlap",
            "other_domain_overlap",
        ):
            assert getattr(mine, name) == pytest.approx(getattr(theirs, name)), name
        assert asdict(mine)["baseline"] == pytest.approx(asdict(theirs)["baseline"])
    for pair in zip(one.divergences, other.divergences, strict=True):
        assert pair[0].divergence_nats == pytest.approx(pair[1].divergence_nats)
    for each in zip(one.repetition, other.repetition, strict=True):
        for name in ("num_pairs", "first", "any", "overlap"):
            assert getattr(each[0], name) == pytest.approx(getattr(each[1], name)), name
        assert asdict(each[0])["baseline"] == pytest.approx(asdict(each[1])["baseline"])
        for name in ("first", "overlap"):
            one_share, other_share = (getattr(one.shuffled, name) for one in each)
            assert one_share == pytest.approx(other_share), name


def test_another_column_may_hold_the_domain() -> None:
    domains = TABLE.column("domain").cast(pa.string())
    table = TABLE.append_column("language", domains.dictionary_encode()).drop_columns(["domain"])
    result = measure(table, by="language")
    assert result.by == "language"
    assert result.layers == measure().layers
    assert result.experts == measure().experts
    with pytest.raises(UsageError, match="no column 'tongue'"):
        measure(by="tongue")
    with pytest.raises(InputError, match=r"Prompt 'p0' has two values of 'position', '0' and '1'"):
        measure(by="position")
    with pytest.raises(InputError, match="All prompts have the same stack, 'decoder'"):
        measure(by="stack")


def test_without_token_ids_vocabulary_is_unknown_and_the_rest_is_not() -> None:
    whole, part = measure(), measure(TABLE.drop_columns(["token_id"]))
    for mine, theirs in zip(whole.layers, part.layers, strict=True):
        assert theirs.conditional_excess_nats is None
        assert theirs.excess_nats == mine.excess_nats
    assert part.repetition == whole.repetition
    assert any("no column token_id" in note for note in part.notes)
    assert part.verdict.num_shared_layers == 0


def test_tokens_without_an_id_do_not_count_as_the_same_token() -> None:
    index = TABLE.column_names.index("token_id")
    position = TABLE.column("position").to_numpy()
    token_id = np.where(position % 3 == 0, -1, TABLE.column("token_id").to_numpy())
    unknown = TABLE.set_column(index, "token_id", pa.array(token_id.astype(np.int32)))
    found = measure(unknown)
    without = measure(TABLE.filter(pa.array(position % 3 != 0)))
    for mine, theirs in zip(found.layers, without.layers, strict=True):
        assert mine.conditional_information_nats == theirs.conditional_information_nats
        assert mine.same_domain_overlap == theirs.same_domain_overlap
    assert found.repetition == measure().repetition
    source = open_rows(unknown)
    listed = measure_token_specialization(source, SpecializationOptions(), min_count=2).tokens
    assert min(token.token_id for token in listed) >= 0


def test_domains_without_a_common_token_say_so() -> None:
    domain = np.array(TABLE.column("domain").to_pylist()) == "code"
    token_id = TABLE.column("token_id").to_numpy() + 100 * domain
    index = TABLE.column_names.index("token_id")
    result = measure(TABLE.set_column(index, "token_id", pa.array(token_id.astype(np.int32))))
    assert {layer.conditional_excess_nats for layer in result.layers} == {None}
    assert any("No token id occurs in two prompts" in note for note in result.notes)


def test_a_sample_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_sample, "_MOST_PROMPTS", 4)
    result = measure()
    assert any("a sample of 4 of 6 prompts" in note for note in result.notes)
    # Counts are still those of all prompts.
    assert result.layers[0].num_tokens == sum(LENGTHS)
    assert result.repetition[0].num_pairs == sum(LENGTHS) - len(LENGTHS)


def test_every_expert_for_every_token_tells_nothing() -> None:
    router = Router(num_experts=3, top_k=3)
    table = make_random_trace(LENGTHS, router=router, num_token_ids=9)
    result = measure_trace(
        open_rows(table, router=router), SpecializationOptions(num_permutations=19)
    )
    for layer in result.layers:
        assert layer.excess_nats == pytest.approx(0, abs=1e-12)
        assert layer.conditional_excess_nats == pytest.approx(0, abs=1e-12)
        assert (layer.p_value, layer.conditional_p_value) == (1, 1)
    assert {each.divergence_nats for each in result.divergences} == {0}
    assert result.verdict.num_domain_experts == 0


def test_decisions_with_fewer_experts_are_held_against_a_router_of_as_few() -> None:
    """Every second domain loses most second choices, and no token of either repeats a router's."""
    lengths = [40] * 40
    excess, divergence, same, other = [], [], [], []
    for seed in range(6):
        table = make_random_trace(lengths, seed=seed, num_token_ids=9)
        few, many = (
            drop_choices_by_rank(table, chances, seed=seed) for chances in ((0.1, 0.8), (0, 0.3))
        )
        is_code = np.array(table.column("domain").to_pylist()) == "code"
        expert = np.where(is_code, *(one.column("expert").to_numpy() for one in (few, many)))
        mixed = table.set_column(
            table.column_names.index("expert"), "expert", pa.array(expert.astype(np.int16))
        )
        result = measure(mixed)
        for layer in result.layers:
            assert layer.baseline is not None
            assert layer.baseline.mutual_information_nats is not None
            assert layer.mutual_information_nats is not None
            excess.append(layer.mutual_information_nats / layer.baseline.mutual_information_nats)
            same.append(
                (layer.same_domain_overlap or 0) - (layer.baseline.same_domain_overlap or 0)
            )
            other.append(
                (layer.other_domain_overlap or 0) - (layer.baseline.other_domain_overlap or 0)
            )
            # Two of eight experts for every token would have more in common.
            assert (layer.baseline.other_domain_overlap or 0) < 0.6 * 2 / 8
        for each in result.divergences:
            assert each.baseline.divergence_nats is not None
            assert each.divergence_nats is not None
            divergence.append(each.divergence_nats / each.baseline.divergence_nats)
        shares = {(cell.domain, round(cell.even_share, 1)) for cell in result.experts}
        assert shares == {("code", 0.1), ("prose", 0.2)}
    for ratios in (excess, divergence):
        assert abs(np.mean(ratios) - 1) < 4 * np.std(ratios, ddof=1) / np.sqrt(len(ratios))
    for differences in (same, other):
        error = np.std(differences, ddof=1) / np.sqrt(len(differences))
        assert abs(np.mean(differences)) < 4 * error
