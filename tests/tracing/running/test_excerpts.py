"""The prompts that a run returns to be shown, against the recorder prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pytest
from transformers import PreTrainedModel

from moetool.trace.decisions import NO_EXPERT
from moetool.trace.excerpt import PromptExcerpt, choose_excerpt_tokens
from moetool.tracing.options import GenerationOptions
from tests.families.tiny.models import build_family
from tests.tiny_models import build_model
from tests.tracing.recording.writing import make_sequences, read_plainly, trace

# Short enough to be shown whole.
SEQUENCES = make_sequences((3, 8, 5, 8, 1, 7, 4, 6))
NUM_NEW_TOKENS = 6
WRITE = GenerationOptions(max_new_tokens=NUM_NEW_TOKENS)


@pytest.fixture(scope="module")
def mixtral() -> PreTrainedModel:
    return build_model("mixtral")


def list_rows(excerpts: Sequence[PromptExcerpt]) -> pd.DataFrame:
    """Return the assignments that excerpts show."""
    return pd.DataFrame(
        [
            (excerpt.prompt_id, stack.stack, layer, token.position, rank, expert)
            for excerpt in excerpts
            for stack in excerpt.stacks
            for token in stack.tokens
            for layer, chosen in zip(stack.layers, token.experts, strict=True)
            for rank, expert in enumerate(chosen)
        ],
        columns=["prompt_id", "stack", "layer", "position", "rank", "expert"],
    )


def assert_same_rows(excerpts: Sequence[PromptExcerpt], expected: pd.DataFrame) -> None:
    shown = list_rows(excerpts)
    key = list(shown.columns)
    ordered, other = (
        frame[key].sort_values(key).reset_index(drop=True) for frame in (shown, expected)
    )
    assert len(ordered) > 0
    pd.testing.assert_frame_equal(ordered, other, check_dtype=False)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_excerpts_show_what_the_recorder_sees_of_each_prompt_alone(
    mixtral: PreTrainedModel, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With batches of one, the prompts that are shown come from several windows.
    monkeypatch.setattr("moetool.tracing.running.batches.BATCHES_PER_WINDOW", 2)
    traced = trace(mixtral, SEQUENCES, WRITE, batch_size=batch_size, num_excerpts=5)
    excerpts = traced.run.excerpts
    assert (traced.num_windows > 2) == (batch_size == 1)
    assert [excerpt.prompt_id for excerpt in excerpts] == list("01234")
    assert [excerpt.written for excerpt in excerpts] == [text.text for text in traced.texts[:5]]
    whole = [
        [*given, *written[:-1]]
        for given, written in zip(SEQUENCES[:5], traced.continuations, strict=False)
    ]
    assert_same_rows(excerpts, read_plainly(mixtral, whole))
    for excerpt, given in zip(excerpts, SEQUENCES, strict=False):
        tokens = excerpt.stacks[0].tokens
        assert [token.is_new for token in tokens].index(True) == len(given)
        # The tests' tokenizer spells token 7 as 7.
        assert [token.piece for token in tokens][: len(given)] == list(map(str, given))


def test_prompts_that_are_only_read_have_no_written_text(mixtral: PreTrainedModel) -> None:
    excerpts = trace(mixtral, SEQUENCES, None, num_excerpts=2).run.excerpts
    assert [excerpt.written for excerpt in excerpts] == [None, None]
    assert_same_rows(excerpts, read_plainly(mixtral, SEQUENCES[:2]))
    assert not any(token.is_new for token in excerpts[0].stacks[0].tokens)


def test_no_prompts_are_kept_unless_asked_for(mixtral: PreTrainedModel) -> None:
    assert trace(mixtral, SEQUENCES, WRITE).run.excerpts == ()


def test_of_a_long_prompt_only_the_ends_are_kept(mixtral: PreTrainedModel) -> None:
    (long,) = make_sequences([200])
    (excerpt,) = trace(mixtral, [long], None, num_excerpts=1).run.excerpts
    tokens = excerpt.stacks[0].tokens
    assert len(tokens) == choose_excerpt_tokens(1) < 200
    assert tokens[0].position == 0
    assert tokens[-1].position == 199
    plain = read_plainly(mixtral, [long])
    kept = [token.position for token in tokens]
    assert_same_rows([excerpt], plain[plain["position"].isin(kept)])


def test_each_stack_of_an_encoder_decoder_is_shown_dropped_tokens_included() -> None:
    switch = build_family("switch_transformers", expert_capacity=1, decoder_start_token_id=7)
    traced = trace(switch, SEQUENCES, WRITE, batch_size=1, num_excerpts=2)
    for excerpt in traced.run.excerpts:
        encoder, decoder = excerpt.stacks
        assert (encoder.stack, decoder.stack) == ("encoder", "decoder")
        assert not any(token.is_new for token in encoder.tokens)
        assert [token.is_new for token in decoder.tokens][:2] == [False, True]
    rows = traced.frame[traced.frame["prompt_id"].isin(["0", "1"])]
    assert (rows["expert"] == NO_EXPERT).any()
    assert_same_rows(traced.run.excerpts, rows)
