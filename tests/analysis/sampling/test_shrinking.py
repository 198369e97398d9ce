"""Smaller samples, and tokens that another trace routes elsewhere."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.analysis.sampling.changes import find_changed_tokens
from moetool.analysis.sampling.result import PromptSample
from moetool.analysis.sampling.shrinking import choose_fewer, keep_beginning, keep_prompts
from tests.analysis.sampling.plain_samples import list_decisions, list_tokens
from tests.analysis.sampling.test_measure import make_frame, sample


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**16),
    kept=st.sets(st.sampled_from(["p0", "p1", "p2", "p3", "p4"]), min_size=1),
    dropped=st.sets(st.sampled_from(["weight", "phase", "token_id"])),
)
def test_keeping_prompts_keeps_their_tokens_and_decisions(
    seed: int, kept: set[str], dropped: set[str]
) -> None:
    whole = sample(make_frame(seed=seed).drop(columns=sorted(dropped)))
    small = keep_prompts(whole, kept)
    assert list_tokens(small) == [token for token in list_tokens(whole) if token[0] in kept]
    assert list_decisions(small) == {
        key: decision for key, decision in list_decisions(whole).items() if key[0][0] in kept
    }
    mine = [token in set(list_tokens(small)) for token in list_tokens(whole)]
    assert small.list_pieces() == [
        piece for piece, is_kept in zip(whole.list_pieces(), mine, strict=True) if is_kept
    ]
    assert small.prompts == tuple(one for one in whole.prompts if one.prompt_id in kept)
    assert small.is_complete == (len(kept) == len(whole.prompts))


@pytest.fixture(scope="module")
def whole() -> PromptSample:
    return sample(make_frame(seed=1))


@given(share=st.floats(0, 1))
def test_fewer_prompts_have_at_most_the_share_of_tokens_unless_it_is_one(
    share: float, whole: PromptSample
) -> None:
    chosen = choose_fewer(whole, share=share)
    small = keep_prompts(whole, chosen)
    assert len(small.prompts) == len(chosen) >= 1
    assert small.num_tokens <= share * whole.num_tokens or len(chosen) == 1


def test_changed_tokens_are_those_with_another_set_of_experts() -> None:
    frame = make_frame(seed=2).drop(columns="weight")
    mine = sample(frame)
    changed = (frame["position"] == 1) & (frame["layer"] == 1) & (frame["stack"] == "decoder")
    other = frame.copy()
    # The same experts in another order are the same set.
    swapped = (frame["position"] == 0) & (frame["layer"] == 0)
    other.loc[swapped, "rank"] = 1 - other.loc[swapped, "rank"]
    other.loc[changed, "expert"] = (other.loc[changed, "expert"] + 2) % 6
    theirs = sample(other, like=mine)
    ours, after = list_decisions(mine), list_decisions(theirs)
    tokens = list_tokens(mine)
    expected = [
        {
            index: set(after[token, layer.layer.layer])
            for index, token in enumerate(tokens)
            if token[1] == layer.layer.stack
            and ours[token, layer.layer.layer].keys() != after[token, layer.layer.layer].keys()
        }
        for layer in mine.layers
    ]
    found = find_changed_tokens(mine, theirs)
    assert [{token: set(chosen) for token, chosen in each.items()} for each in found] == expected
    assert sum(map(len, expected)) >= 4
    assert find_changed_tokens(mine, mine) == [{} for _ in mine.layers]


def test_a_layer_of_another_width_is_compared_by_the_experts_that_ran() -> None:
    frame = make_frame(seed=2)
    frame.loc[frame["rank"] == 1, ["expert", "weight"]] = -1, 0
    mine = sample(frame)
    narrow = frame[frame["rank"] == 0].reset_index(drop=True)
    theirs = sample(narrow, like=mine, top_k=1)
    assert {layer.experts.shape[1] for layer in theirs.layers} == {1}
    assert find_changed_tokens(mine, theirs) == [{} for _ in mine.layers]
    lacking = sample(narrow[narrow["layer"] == 0].reset_index(drop=True), like=mine, top_k=1)
    assert find_changed_tokens(mine, lacking) == [{} for _ in mine.layers]


def test_a_sample_says_how_much_it_holds(whole: PromptSample) -> None:
    small = keep_prompts(whole, ["p1"])
    assert repr(small) == "<PromptSample: 1 of 5 prompts, 4 of 32 tokens>"
    assert small.to_dict()["num_tokens"] == 4


def test_a_frame_of_a_sample_has_the_rows_of_the_trace(whole: PromptSample) -> None:
    frame = make_frame(seed=1)
    frame = frame[frame["expert"] >= 0]
    small = keep_prompts(whole, ["p1", "p3"]).to_frame()
    keys = ["prompt_id", "stack", "layer", "position", "rank"]
    expected = frame[frame["prompt_id"].isin(["p1", "p3"])].set_index(keys).sort_index()
    found = small.set_index(keys).sort_index()
    assert set(found.columns) == set(expected.columns)
    pd.testing.assert_frame_equal(
        found[list(expected.columns)], expected, check_dtype=False, check_index_type=False
    )


@given(share=st.floats(0, 1))
def test_the_beginning_of_a_prompt_is_a_share_of_each_stack(
    share: float, whole: PromptSample
) -> None:
    for prompt in whole.prompts:
        mine = keep_prompts(whole, [prompt.prompt_id])
        small = keep_beginning(mine, share=share)
        tokens, kept = list_tokens(mine), list_tokens(small)
        for stack in set(mine.stack):
            of_stack = [token for token in tokens if token[1] == stack]
            number = max(1, int(share * len(of_stack)))
            assert [token for token in kept if token[1] == stack] == of_stack[:number]
        assert small.prompts[0].num_tokens == len(kept)
        assert small.prompts[0].num_left_out == prompt.num_left_out + len(tokens) - len(kept)
        ours, theirs = list_decisions(mine), list_decisions(small)
        assert theirs == {key: ours[key] for key in theirs}
        assert not small.is_complete
