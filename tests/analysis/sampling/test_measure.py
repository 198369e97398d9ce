"""Samples of traces: whole prompts, with the decisions of a plain reading."""

from __future__ import annotations

from collections import defaultdict

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.analysis.sampling.measure import COLUMNS, sample_prompts
from moetool.analysis.sampling.result import PromptSample
from moetool.trace.decisions import PHASES
from moetool.trace.reading.frames import open_frame
from moetool.trace.windows import reader as windows
from moetool.trace.windows.prompt_groups import read_prompt_groups
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.dropped_choices import drop_choices
from tests.analysis.random_traces import Router, make_random_trace
from tests.analysis.sampling import plain_samples

ROUTER = Router(num_experts=6, top_k=2, num_layers=2)


def make_frame(*, seed: int, lengths: tuple[int, ...] = (4, 1, 6, 3, 2)) -> pd.DataFrame:
    """Return an encoder's and a decoder's rows, some of which ran no expert."""
    parts = []
    for stack, own in (("decoder", lengths), ("encoder", lengths[::-1])):
        table = make_random_trace(own, router=ROUTER, num_prompt_tokens=2, seed=seed)
        frame = drop_choices(table, 0.3, seed=seed).to_pandas()
        parts.append(frame.assign(stack=stack))
    frame = pd.concat(parts, ignore_index=True)
    words: pd.DataFrame = frame.astype(
        {"token": str, "prompt_id": str, "stack": str, "domain": str, "phase": str}
    )
    return words


def sample(
    frame: pd.DataFrame,
    *,
    most: int = 10**6,
    like: PromptSample | None = None,
    top_k: int = ROUTER.top_k,
) -> PromptSample:
    source = open_frame(frame)
    reader = DecisionReader(source, columns=COLUMNS, num_experts=ROUTER.num_experts, top_k=top_k)
    groups = read_prompt_groups(source, reader.prompts, by="domain")
    return sample_prompts(reader, groups, by="domain", most_assignments=most, like=like)


def read_plainly(frame: pd.DataFrame) -> dict[tuple[plain_samples.Token, int], dict[int, float]]:
    found: dict[tuple[plain_samples.Token, int], dict[int, float]] = defaultdict(dict)
    for row in frame.to_dict("records"):
        mine = found[(row["prompt_id"], row["stack"], row["position"]), row["layer"]]
        if row["expert"] >= 0:
            mine[row["expert"]] = row.get("weight")  # type: ignore[assignment]
    return found


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**16),
    most=st.sampled_from([1, 9, 30, 60, 10**6]),
    rows_per_window=st.sampled_from([1, 40, 1000]),
    dropped=st.sets(st.sampled_from(["rank", "weight", "phase", "token", "token_id", "domain"])),
    random=st.randoms(use_true_random=False),
)
def test_a_sample_holds_whole_prompts_with_the_decisions_of_a_plain_reading(
    seed: int, most: int, rows_per_window: int, dropped: set[str], random: object
) -> None:
    frame = make_frame(seed=seed).drop(columns=sorted(dropped))
    parts = [part for _, part in frame.groupby(["prompt_id", "stack", "layer"])]
    random.shuffle(parts)  # type: ignore[attr-defined]
    shuffled = pd.concat(parts, ignore_index=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_ROWS_PER_WINDOW", rows_per_window)
        found = sample(shuffled, most=most)
    expected = read_plainly(frame)
    decisions = plain_samples.list_decisions(found)
    assert decisions == {key: expected[key] for key in decisions}
    tokens = plain_samples.list_tokens(found)
    whole = {token for token, _ in expected if token[0] in {one for one, _, _ in tokens}}
    rank = {prompt.prompt_id: number for number, prompt in enumerate(found.prompts)}
    assert tokens == sorted(tokens, key=lambda token: (rank[token[0]], *token[1:]))
    left_out = sum(prompt.num_left_out for prompt in found.prompts)
    assert len(tokens) == len(set(tokens)) == len(whole) - left_out
    assert set(tokens) <= whole
    num_rows = frame["prompt_id"].isin(rank).sum()
    if left_out:
        assert len(rank) == 1
        assert num_rows > most
    else:
        assert num_rows <= most
    assert found.is_complete == (set(tokens) == {token for token, _ in expected})
    by_prompt = [(prompt.domain, prompt.num_tokens) for prompt in found.prompts]
    assert [domain for domain, _ in by_prompt] == sorted(domain for domain, _ in by_prompt)
    assert sum(number for _, number in by_prompt) == len(tokens)
    assert found.has_ranks == ("rank" not in dropped)


def test_texts_and_phases_are_those_of_the_rows() -> None:
    frame = make_frame(seed=3)
    found = sample(frame)
    rows = frame.groupby(["prompt_id", "stack", "position"]).first()
    assert found.phase is not None
    for token, piece, phase in zip(
        plain_samples.list_tokens(found), found.list_pieces(), found.phase, strict=True
    ):
        assert (piece, PHASES[phase]) == tuple(rows.loc[token, ["token", "phase"]])
    bare = sample(frame.drop(columns=["token_id", "token", "phase"]))
    assert set(bare.list_pieces()) == {None}
    assert bare.phase is None


def test_the_order_of_prompts_and_rows_does_not_change_what_is_chosen() -> None:
    frame = make_frame(seed=5, lengths=(3, 3, 3, 3, 3, 3))
    chosen = {prompt.prompt_id for prompt in sample(frame, most=100).prompts}
    assert 0 < len(chosen) < 6
    backwards = frame.iloc[::-1].reset_index(drop=True)
    assert {prompt.prompt_id for prompt in sample(backwards, most=100).prompts} == chosen


def test_prompts_of_all_groups_are_chosen_alike() -> None:
    table = make_random_trace((3,) * 24, router=ROUTER, domains=("a", "a", "a", "b", "a", "c"))
    found = sample(table.to_pandas(), most=12 * 3 * 4)
    domains = [prompt.domain for prompt in found.prompts]
    assert (domains.count("a"), domains.count("b"), domains.count("c")) == (4, 4, 4)


def test_a_prompt_beyond_the_limit_is_cut_to_its_first_tokens() -> None:
    table = make_random_trace((40, 30), router=ROUTER)
    found = sample(table.to_pandas(), most=22)
    # Two layers of top-2 make four assignments of a token.
    assert plain_samples.list_tokens(found) == [("p1", "decoder", place) for place in range(5)]
    (prompt,) = found.prompts
    assert (prompt.num_tokens, prompt.num_left_out, found.is_complete) == (5, 25, False)
    assert len(sample(table.to_pandas(), most=1).prompt) == 1


def test_a_sample_like_another_has_the_same_tokens() -> None:
    frame = make_frame(seed=7)
    other = frame.iloc[::-1].reset_index(drop=True)
    other["weight"] = 0.25
    for most in (1, 12, 40, 10**6):
        mine = sample(frame, most=most)
        theirs = sample(other, most=10**6, like=mine)
        assert theirs.has_tokens_of(mine)
        assert theirs.is_complete == mine.is_complete


def test_a_column_other_than_the_domain_groups_prompts() -> None:
    table = make_random_trace((3,) * 4, router=ROUTER)
    frame = table.to_pandas()
    frame["language"] = frame["prompt_id"].map({"p0": "de", "p1": "de", "p3": "en"})
    source = open_frame(frame, extra=["language"])
    assert read_prompt_groups(source, ["p0", "p1", "p2", "p3"], by="language") == [
        *("de", "de", "(none)", "en")
    ]
    assert read_prompt_groups(source, ["p3"], by="nothing") == ["(none)"]
