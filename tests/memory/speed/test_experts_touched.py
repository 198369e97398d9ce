"""Distinct experts: against enumeration of all samples of a trace, and against chance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.errors import InputError
from moetool.memory.answers.figures import Phase
from moetool.memory.speed.experts_touched import (
    Routing,
    assume_uniform_routing,
    find_choices,
)
from moetool.memory.speed.recorded_routing import read_routing
from moetool.trace.metadata import TraceMetadata
from moetool.trace.rows import assignment_rows
from tests.families.tiny.sizes import NUM_EXPERTS as NUM_TINY_EXPERTS
from tests.families.tiny.sizes import TOP_K
from tests.simulation.skeletons import build_family_skeleton
from tests.trace.examples import (
    NUM_EXPERTS,
    describe_layers,
    make_layers,
    make_tokens,
    write_trace,
)

NUM_PROMPT, NUM_NEW = 5, 4
MIXTRAL_LAYERS = [f"model.layers.{number}.mlp.experts" for number in range(4)]

TRACED_PHASES = (Phase.PREFILL, Phase.DECODE)


def make_layer(
    number: int = 0, *, num_experts: int = NUM_EXPERTS, num_identity_experts: int = 0
) -> MoeLayer:
    return MoeLayer(
        stack="decoder",
        layer=number,
        experts_path=f"layers.{number}.experts",
        block_path=f"layers.{number}",
        num_experts=num_experts,
        num_identity_experts=num_identity_experts,
        rule=RoutingRule.RECEIVED,
    )


def make_choices(*top_k: int, num_experts: int = NUM_EXPERTS) -> dict[MoeLayer, int]:
    return {make_layer(number, num_experts=num_experts): k for number, k in enumerate(top_k)}


def expect(routing: Routing, *, num_tokens: int, phase: Phase = Phase.DECODE) -> list[float]:
    return list(routing.expect_touched(phase, num_tokens=num_tokens).per_layer.values())


def write_two_phases(tmp_path: Path, *, top_k: Sequence[int] = (2, 3)) -> Path:
    """Write a trace of one prompt and the tokens generated after it."""
    phase = [0] * NUM_PROMPT + [1] * NUM_NEW
    tokens = make_tokens([NUM_PROMPT + NUM_NEW], phase=phase)
    rows = assignment_rows(tokens, make_layers(len(phase), top_k=top_k, seed=3))
    metadata = TraceMetadata(complete=True, layers=describe_layers(top_k=top_k))
    return write_trace(tmp_path / "trace.parquet", rows, metadata=metadata)


def list_chosen(path: Path, *, layer: int, phase: str | None = None) -> list[set[int]]:
    """Return the experts that each token of a trace chose, read without moetool."""
    frame = pd.read_parquet(path)
    frame = frame[(frame.layer == layer) & ((frame.phase == phase) | (phase is None))]
    return [set(group.expert) for _, group in frame.groupby("position")]


def enumerate_mean(chosen: Sequence[set[int]], *, num_tokens: int) -> float:
    """Return the mean number of distinct experts over all ways to draw some of the tokens."""
    draws = list(itertools.product(chosen, repeat=num_tokens))
    return sum(len(set().union(*draw)) for draw in draws) / len(draws)


def test_one_token_touches_as_many_experts_as_it_chooses() -> None:
    routing = assume_uniform_routing(make_choices(2, 3, num_experts=384))
    assert expect(routing, num_tokens=1) == pytest.approx([2, 3], rel=1e-13)


def test_many_tokens_touch_all_experts() -> None:
    routing = assume_uniform_routing(make_choices(2, num_experts=128))
    assert expect(routing, num_tokens=100_000) == [128]


def test_uniform_routing_by_hand() -> None:
    # Two of eight experts: an expert is missed by one token with 3/4, by three with 27/64.
    routing = assume_uniform_routing(make_choices(2, num_experts=8))
    assert expect(routing, num_tokens=3) == pytest.approx([8 * 37 / 64])
    assert routing.name == "uniform"


def test_uniform_routing_is_what_random_routers_do() -> None:
    num_experts, top_k, num_tokens, num_trials = 16, 3, 7, 20_000
    rng = np.random.default_rng(11)
    scores = rng.random((num_trials, num_tokens, num_experts))
    chosen = np.argsort(scores, axis=2)[:, :, :top_k].reshape(num_trials, -1)
    distinct = np.array([len(set(row)) for row in chosen.tolist()])
    routing = assume_uniform_routing(make_choices(top_k, num_experts=num_experts))
    error = distinct.std() / num_trials**0.5
    assert expect(routing, num_tokens=num_tokens)[0] == pytest.approx(
        distinct.mean(), abs=4 * error
    )


@given(data=st.data(), num_experts=st.integers(1, 300), num_tokens=st.integers(1, 10_000))
def test_more_tokens_touch_more_experts_within_what_there_is(
    data: st.DataObject, num_experts: int, num_tokens: int
) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    routing = assume_uniform_routing(make_choices(top_k, num_experts=num_experts))
    (touched,), (after_one_more,) = (
        expect(routing, num_tokens=number) for number in (num_tokens, num_tokens + 1)
    )
    most = min(num_experts, top_k * num_tokens)
    assert top_k * (1 - 1e-9) <= touched <= after_one_more * (1 + 1e-9)
    assert touched <= most * (1 + 1e-9)


def test_identity_experts_are_chosen_but_not_touched() -> None:
    layer = make_layer(num_experts=6, num_identity_experts=2)
    routing = assume_uniform_routing({layer: 4})
    assert expect(routing, num_tokens=1) == [3]
    assert expect(routing, num_tokens=1000) == [6]


def test_the_mean_is_over_layers_and_unknown_without_any() -> None:
    routing = assume_uniform_routing(make_choices(1, 4))
    assert routing.expect_touched(Phase.DECODE, num_tokens=1).mean == pytest.approx(2.5)
    assert assume_uniform_routing({}).expect_touched(Phase.DECODE, num_tokens=1).mean is None


@pytest.mark.parametrize("phase", TRACED_PHASES)
@pytest.mark.parametrize("num_tokens", [1, 2, 4])
def test_a_trace_gives_the_same_as_drawing_its_tokens(
    tmp_path: Path, phase: Phase, num_tokens: int
) -> None:
    path = write_two_phases(tmp_path)
    routing = read_routing(path, make_choices(2, 3))
    chosen = [list_chosen(path, layer=layer, phase=phase.value) for layer in (0, 1)]
    assert {len(tokens) for tokens in chosen} == {NUM_PROMPT if phase == "prefill" else NUM_NEW}
    assert expect(routing, num_tokens=num_tokens, phase=phase) == pytest.approx(
        [enumerate_mean(tokens, num_tokens=num_tokens) for tokens in chosen]
    )
    assert (routing.name, routing.notes) == ("trace.parquet", ())


def test_many_tokens_of_a_trace_touch_all_experts_that_it_ever_chose(tmp_path: Path) -> None:
    tokens = make_tokens([3])
    layers = make_layers(3, top_k=(2,))
    (layer,) = layers
    same = replace(layer, experts=np.array([[0, 4], [4, 0], [0, 1]], dtype=np.int16))
    path = write_trace(
        tmp_path / "trace.parquet",
        assignment_rows(tokens, [same]),
        metadata=TraceMetadata(complete=True, layers=describe_layers(top_k=(2,))),
    )
    assert expect(read_routing(path, make_choices(2)), num_tokens=10_000) == pytest.approx([3])


def test_prompts_stand_for_generated_tokens_where_there_are_none(tmp_path: Path) -> None:
    rows = assignment_rows(make_tokens([3]), make_layers(3, top_k=(2, 2)))
    path = write_trace(tmp_path / "trace.parquet", rows)
    routing = read_routing(path, make_choices(2, 2))
    of_prefill, of_decode = (expect(routing, num_tokens=2, phase=phase) for phase in TRACED_PHASES)
    assert of_prefill == of_decode
    assert routing.notes == (
        "trace.parquet does not mark tokens of decode: all of its tokens are used instead.",
    )


def test_a_table_without_phases_or_metadata_is_enough(tmp_path: Path) -> None:
    known = write_two_phases(tmp_path)
    frame = pd.read_parquet(known)[["prompt_id", "position", "layer", "expert"]]
    path = tmp_path / "bare.csv"
    frame.to_csv(path, index=False)
    routing = read_routing(path, make_choices(2, 3))
    chosen = [list_chosen(known, layer=layer) for layer in (0, 1)]
    expected = [enumerate_mean(tokens, num_tokens=2) for tokens in chosen]
    for phase in TRACED_PHASES:
        assert expect(routing, num_tokens=2, phase=phase) == pytest.approx(expected)
    assert len(routing.notes) == 2


def test_experts_beyond_the_largest_id_of_a_bare_table_are_touched_by_no_token(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("prompt_id,position,layer,expert\na,0,0,1\na,0,0,3\n", encoding="utf-8")
    routing = read_routing(path, {make_layer(num_experts=9): 2})
    assert routing.decode["layers.0.experts"].tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0]


def test_assignments_that_ran_no_expert_touch_none(tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    rows = ["a,0,0,1", "a,0,0,-1", "a,1,0,1", "a,1,0,2"]
    path.write_text("\n".join(["prompt_id,position,layer,expert", *rows]), encoding="utf-8")
    routing = read_routing(path, make_choices(2))
    assert routing.decode["layers.0.experts"].tolist() == [0, 1, 0.5, 0, 0, 0]


def test_identity_experts_of_a_trace_are_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("prompt_id,position,layer,expert\na,0,0,1\na,0,0,5\n", encoding="utf-8")
    layer = make_layer(num_experts=4, num_identity_experts=2)
    assert expect(read_routing(path, {layer: 2}), num_tokens=50) == [1]


@pytest.mark.parametrize(
    ("choices", "fact"),
    [
        (make_choices(2, 3, 2), "seen: it lacks layer 2 (decoder)"),
        (make_choices(2), "seen: the model has no routed layer 1 (decoder)"),
        (make_choices(2, 2), "seen: layer 1 chooses 2 experts in the model, 3 in the trace"),
        (
            make_choices(2, 3, num_experts=5),
            "seen: layer 0 has 5 experts in the model, 6 in the trace",
        ),
        (
            make_choices(2, 3, num_experts=7),
            "seen: layer 0 has 7 experts in the model, 6 in the trace",
        ),
    ],
)
def test_a_trace_of_another_model_is_refused(
    tmp_path: Path, choices: Mapping[MoeLayer, int], fact: str
) -> None:
    path = write_two_phases(tmp_path)
    with pytest.raises(InputError) as caught:
        read_routing(path, choices)
    assert caught.value.message == f"'{path}' is not a trace of this model."
    assert caught.value.hint == "Name a trace of this model, made without --layers."
    assert caught.value.facts == (fact,)


def test_a_token_that_chooses_an_expert_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("prompt_id,position,layer,expert\na,0,0,1\na,0,0,1\n", encoding="utf-8")
    with pytest.raises(InputError, match="has expert 1 twice for one decision"):
        read_routing(path, make_choices(2))


def test_choices_are_asked_of_the_model() -> None:
    choices = find_choices(RoutedSkeleton.of(build_family_skeleton("mixtral")))
    assert choices is not None
    assert [layer.experts_path for layer in choices] == MIXTRAL_LAYERS
    assert {layer.num_experts for layer in choices} == {NUM_TINY_EXPERTS}
    assert set(choices.values()) == {TOP_K}


def test_layers_that_only_images_are_routed_in_are_no_choice_of_text() -> None:
    choices = find_choices(RoutedSkeleton.of(build_family_skeleton("ernie4_5_vl_moe")))
    assert choices
    assert {layer.stack for layer in choices} == {"decoder"}


def test_a_dense_model_has_no_choices() -> None:
    config = LlamaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    with torch.device("meta"):
        assert find_choices(RoutedSkeleton.of(LlamaForCausalLM(config))) == {}


def test_choices_are_unknown_where_experts_cannot_be_read() -> None:
    skeleton = build_family_skeleton("mixtral")
    skeleton.model.norm.num_experts = 4
    assert find_choices(RoutedSkeleton.of(skeleton)) is None


def test_choices_are_unknown_where_the_top_k_of_a_layer_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "moetool.anatomy.skeleton.routed_skeleton.find_each_top_k",
        lambda _model, layers, **_: {
            layer: None if layer.layer == 2 else TOP_K for layer in layers
        },
    )
    assert find_choices(RoutedSkeleton.of(build_family_skeleton("mixtral"))) is None
