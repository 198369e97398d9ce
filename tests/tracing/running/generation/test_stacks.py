"""Each stack of an encoder-decoder that generates text is traced over its own tokens."""

from __future__ import annotations

import pandas as pd
import pytest
from transformers import PreTrainedModel

from moetool.errors import InputError
from tests.families.tiny.models import build_family
from tests.tracing.recording.writing import (
    BATCHES,
    assert_same_decisions,
    choose_ends,
    cut_after,
    expect_tokens,
    generate_plainly,
    make_sequences,
    trace,
    trace_writing,
)

SEQUENCES = make_sequences()
# Token with which the decoder begins.
START = 7
# Enough capacity that no expert drops a token.
AMPLE = 64


def build_switch() -> PreTrainedModel:
    # With tied embeddings it repeats its start token forever.
    return build_family(
        "switch_transformers",
        expert_capacity=AMPLE,
        tie_word_embeddings=False,
        decoder_start_token_id=START,
    )


@pytest.fixture
def switch() -> PreTrainedModel:
    return build_switch()


@pytest.fixture(scope="module")
def switch_writes() -> list[list[int]]:
    """The decoder's text for each of `SEQUENCES`, after its start token."""
    model = build_switch()
    return [generate_plainly(model, sequence) for sequence in SEQUENCES]


@pytest.mark.parametrize(("batch_size", "cache"), BATCHES)
def test_an_encoder_reads_the_prompt_and_a_decoder_writes_from_its_start_token(
    switch: PreTrainedModel, switch_writes: list[list[int]], batch_size: int, cache: str
) -> None:
    # Rows that have ended are still fed while the others continue.
    ends = choose_ends(switch_writes)
    switch.generation_config.eos_token_id = sorted(ends)
    written = [cut_after(ids, ends) for ids in switch_writes]

    traced = trace_writing(switch, SEQUENCES, batch_size=batch_size, cache=cache)

    expected = [
        stack
        for number, (given, ids) in enumerate(zip(SEQUENCES, written, strict=True))
        for stack in (
            expect_tokens(given, [0], prompt_id=str(number), stack="encoder"),
            expect_tokens([START], ids, prompt_id=str(number), stack="decoder"),
        )
    ]
    pd.testing.assert_frame_equal(
        traced.tokens, pd.concat(expected, ignore_index=True), check_dtype=False
    )
    assert traced.continuations == written
    assert traced.run.metadata.num_tokens == len(traced.tokens)
    # There is no space before a decoder's text, because it does not continue the prompt.
    assert not any(text.text.startswith(" ") for text in traced.texts)


def test_a_decoder_without_a_start_token_begins_as_it_does_in_generate(
    switch: PreTrainedModel,
) -> None:
    switch.generation_config.decoder_start_token_id = None

    traced = trace_writing(switch, SEQUENCES[:2])

    starts = traced.tokens.query("stack == 'decoder' and position == 0")
    assert set(starts["token_id"]) == {switch.generation_config.bos_token_id} != {START}
    assert traced.continuations == [generate_plainly(switch, ids) for ids in SEQUENCES[:2]]


def test_a_decoder_without_any_token_to_begin_with_is_refused(switch: PreTrainedModel) -> None:
    switch.generation_config.bos_token_id = None
    switch.generation_config.decoder_start_token_id = None

    with pytest.raises(InputError, match="does not state the first token of the decoder of Switch"):
        trace_writing(switch, SEQUENCES)


def test_an_encoder_decoder_that_only_reads_runs_its_encoder_alone() -> None:
    """Its experts drop the same tokens, so the pads are where they were."""
    crowded = build_family("switch_transformers")
    writing = trace_writing(crowded, SEQUENCES)

    reading = trace(crowded, SEQUENCES, None)

    assert set(reading.frame["stack"]) == {"encoder"}
    assert_same_decisions(reading.frame, writing.frame[writing.frame["stack"] == "encoder"])
